"""What an image from elsewhere says of itself, and when it cannot serve on a host."""

import io
import json
import tarfile

import pytest
from ansible.errors import AnsibleFilterError
from gpu_problems import gpus_not_built_for
from image_archive import image_archive, image_inspected, image_problems, image_registry

ID = "ab" * 32
LABELS = {
    "org.opencontainers.image.version": "0.3.36",
    "io.ansible-llamacpp.backend": "cuda",
    "io.ansible-llamacpp.cuda": "12",
    "io.ansible-llamacpp.cuda-architectures": "80-real;89-real;120a-real",
}
GPU = {"index": 0, "name": "NVIDIA L40S", "compute_capability": "8.9", "driver_version": "550.54.15"}


@pytest.fixture
def save(tmp_path):
    """Returns a function: an archive as `docker save` writes it -> its path."""

    def saved(config_path=f"{ID}.json", tags=("llamacpp:0.3.36-cuda12",), images=1, labels=LABELS) -> str:
        config = {
            "architecture": "amd64",
            "config": {"Labels": labels},
            "rootfs": {"diff_ids": ["sha256:01", "sha256:02"]},
        }
        manifest = [{"Config": config_path, "RepoTags": list(tags), "Layers": []}] * images
        path = tmp_path / "image.tar"
        with tarfile.open(path, "w") as archive:
            for name, content in ((config_path, config), ("manifest.json", manifest)):
                data = json.dumps(content).encode()
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return str(path)

    return saved


@pytest.mark.parametrize("config_path", [f"{ID}.json", f"blobs/sha256/{ID}"])
def test_both_forms_of_archives_tell_what_they_hold(save, config_path):
    assert image_archive(save(config_path)) == {
        "name": "llamacpp:0.3.36-cuda12",
        "digests": [f"sha256:{ID}"],
        "layers": ["sha256:01", "sha256:02"],
        "architecture": "amd64",
        "version": "0.3.36",
        "backend": "cuda",
        "cuda": "12",
        "architectures": ["8.0", "8.9", "12.0"],
        "variant": "cuda12",
    }


@pytest.mark.parametrize(
    ("archive", "message"),
    [({"images": 2}, "holds 2 images"), ({"tags": ()}, "1 images with 0 names"), ({"images": 0}, "holds 0")],
)
def test_an_archive_of_not_exactly_one_named_image_is_refused(save, archive, message):
    with pytest.raises(AnsibleFilterError, match=message):
        image_archive(save(**archive))


def test_other_files_are_refused_with_their_path(tmp_path):
    (tmp_path / "image.tar").write_text("no archive")
    for path in (tmp_path / "image.tar", tmp_path / "missing.tar"):
        with pytest.raises(AnsibleFilterError, match=rf"{path} is no archive .*write one with image.yml"):
            image_archive(str(path))


def test_an_image_that_docker_has_says_the_same(save):
    name = "registry.example.com:5000/llm/llamacpp:1"
    inspected = {
        "Id": f"sha256:{ID}",
        "RepoDigests": ["registry.example.com:5000/llm/llamacpp@sha256:" + "cd" * 32],
        "Architecture": "amd64",
        "Config": {"Labels": LABELS},
        "RootFS": {"Type": "layers", "Layers": ["sha256:01", "sha256:02"]},
    }
    assert image_inspected([inspected], name) == image_archive(save()) | {
        "name": name,
        "digests": [f"sha256:{ID}", "sha256:" + "cd" * 32],
    }
    bare = inspected | {"RepoDigests": None, "Config": {"Labels": None}}
    assert image_inspected([bare], name)["digests"] == [f"sha256:{ID}"]
    assert image_inspected([], name) == {}


def problems(image, version="0.3.36", backend="cuda", architecture="x86_64", gpus=(GPU,), wanted_id=""):
    not_built_for = gpus_not_built_for(list(gpus), image["architectures"])
    return image_problems(image, "X: image i", version, backend, architecture, not_built_for, wanted_id)


def test_an_image_that_fits_has_no_problem(save):
    assert problems(image_archive(save())) == []
    assert problems(image_archive(save()), backend="cpu", gpus=()) == []


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ({"version": "0.3.37"}, "is of version 0.3.36, but llm_server_version is 0.3.37"),
        ({"architecture": "aarch64"}, "is for amd64, but the host is aarch64"),
        (
            {"gpus": [GPU | {"compute_capability": "9.0"}]},
            "8.0, 8.9, 12.0, but GPU 0 (NVIDIA L40S) has 9.0; build it for that",
        ),
    ],
)
def test_an_image_that_does_not_fit_says_why(save, host, message):
    (problem,) = problems(image_archive(save()), **host)
    assert problem.startswith("X: image i is ")
    assert message in problem


@pytest.mark.parametrize("wanted", [ID, f"sha256:{ID}"])
def test_the_id_that_an_operator_gives_counts(save, wanted):
    image = image_archive(save())
    assert problems(image, wanted_id=wanted) == []
    other = wanted.replace("ab", "cd")
    assert problems(image, wanted_id=other) == [
        f"X: image i is sha256:{ID}, but llamacpp_image_id is {other}; take the image that is meant, or"
        " correct llamacpp_image_id"
    ]
    assert problems(image | {"digests": ["sha256:" + "cd" * 32, f"sha256:{ID}"]}, wanted_id=wanted) == []


def test_an_image_for_the_cpu_is_none_for_gpus(save):
    image = image_archive(save(labels=LABELS | {"io.ansible-llamacpp.backend": "cpu"}))
    (problem,) = problems(image | {"architectures": []})
    assert "computes on the CPU only" in problem


def test_an_image_from_elsewhere_is_refused(save):
    (problem,) = problems(image_archive(save(labels=None)))
    assert "was not built from this project's files/image" in problem


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [("8.6", "8.9", True), ("8.9", "8.9", True), ("8.9", "8.6", False), ("8.9", "9.0", False)],
)
def test_code_runs_on_later_gpus_of_the_same_generation(built, capability, runs):
    assert (gpus_not_built_for([GPU | {"compute_capability": capability}], [built]) == []) is runs


@pytest.mark.parametrize(
    ("name", "registry"),
    [
        ("registry.example.com/llm/llamacpp:1", "registry.example.com"),
        ("registry:5000/llamacpp@sha256:00", "registry:5000"),
        ("localhost/llamacpp:1", "localhost"),
        ("llm/llamacpp:1", "https://index.docker.io/v1/"),
        ("llamacpp:1.0", "https://index.docker.io/v1/"),
    ],
)
def test_the_registry_of_an_image_is_known_by_its_name(name, registry):
    assert image_registry(name) == registry
