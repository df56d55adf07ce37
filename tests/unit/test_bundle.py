"""A bundle: what goes into it, what it says of itself, and what is wrong with one."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile

import pytest
from ansible.errors import AnsibleFilterError
from bundle import (
    bundle_manifest,
    bundle_problems,
    bundle_sums,
    controller_paths,
    models_to_bundle,
    package_versions,
    packages_index,
    unknown_models,
)
from model_files import bundled_models, model_files

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
WEB = {"alias": "web", "file": "w.gguf", "url": "https://user:pw@m.example/w.gguf?key=1", "sha256": A}
HUB = {"alias": "hub", "file": "h.gguf", "hf": {"repository": "O/N"}, "settings": {"n_ctx": 2048}}
HUB_URL = "https://huggingface.co/O/N/resolve/main/h.gguf"
SPLIT = {"alias": "split", "file": "s-00001-of-00002.gguf", "hf": {"repository": "O/S"}}
PACKAGES = """Package: docker.io
Architecture: amd64
Version: 26.1.5+dfsg1-9
Depends: libc6 (>= 2.41)
Description: Linux container runtime
 Version: not this one

Package: libgmp10
Version: 2:6.3.0
"""


def test_the_files_of_all_hosts_are_taken_once():
    side = {"setting": "clip_model_path", "file": "mm.gguf", "hf": {"repository": "O/N"}, "sha256": B}
    with_side = HUB | {"side_files": [side]}
    without_sha256 = {key: value for key, value in WEB.items() if key != "sha256"}
    assert models_to_bundle([[without_sha256, HUB], [WEB | {"alias": "other"}], [with_side]]) == [
        WEB,
        {"alias": "hub", "file": "h.gguf", "hf": {"repository": "O/N"}},
        {"alias": "hub", "file": "mm.gguf", "hf": {"repository": "O/N"}, "sha256": B},
    ]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (WEB | {"url": "https://m.example/v.gguf"}, "different sources for the file w.gguf; give"),
        (WEB | {"sha256": B}, "different sha256 for the file w.gguf; correct"),
    ],
)
def test_two_files_of_one_name_are_refused(other, message):
    with pytest.raises(AnsibleFilterError, match=message):
        models_to_bundle([[WEB], [other]])


def found(**members):
    """What the module find returns; members are sha256 by path."""
    return [{"path": f"/b/{path}", "size": 7, "checksum": sha256} for path, sha256 in members.items()]


def test_the_manifest_has_every_file_and_what_is_known_of_the_models():
    files = model_files(
        [WEB, HUB, {"alias": "c", "file": "c.gguf", "controller_path": "/srv/c.gguf", "sha256": "none"}]
    )
    announced = {HUB_URL: {"problem": "", "size": 1234, "sha256": B}}
    members = {"models/w.gguf": A, "image.tar": B, "models/c.gguf": C}
    manifest = bundle_manifest(found(**members), "/b", files, announced, {"created": "now"})
    assert manifest == {
        "format": 1,
        "created": "now",
        "models": [
            {
                "file": "w.gguf",
                "size": 7,
                "sha256": A,
                "source": "https://m.example/w.gguf",
                "included": True,
            },
            {"file": "h.gguf", "size": 1234, "sha256": B, "source": HUB_URL, "included": False},
            {"file": "c.gguf", "size": 7, "sha256": C, "source": "", "included": True},
        ],
        "files": {
            "image.tar": {"size": 7, "sha256": B},
            "models/c.gguf": {"size": 7, "sha256": C},
            "models/w.gguf": {"size": 7, "sha256": A},
        },
    }


def test_the_size_of_a_file_of_the_controller_is_known(tmp_path):
    (tmp_path / "c d.gguf").write_bytes(b"123")
    model = {"alias": "c", "file": "c.gguf", "controller_path": str(tmp_path / "c d.gguf"), "sha256": C}
    (entry,) = bundle_manifest([], "/b", model_files([model]), {}, {})["models"]
    assert entry == {"file": "c.gguf", "size": 3, "sha256": C, "source": "", "included": False}


def test_a_file_that_is_not_the_wanted_one_makes_no_bundle():
    with pytest.raises(AnsibleFilterError, match=rf"\(alias web\): the file w.gguf has sha256 {B}, expected"):
        bundle_manifest(found(**{"models/w.gguf": B}), "/b", model_files([WEB]), {}, {})


def test_a_list_without_the_files_needs_their_sha256():
    waived = {"alias": "waived", "file": "v.gguf", "url": "https://m.example/v.gguf", "sha256": "none"}
    files = model_files([WEB, HUB, waived])
    announced = {HUB_URL: {"problem": "does not answer", "size": 0, "sha256": ""}}
    mend = "; write it into llm_models, or have the bundle carry the file (BUNDLE_MODELS=yes)"
    assert unknown_models(files, announced) == [
        "llm_models[1] (alias hub): no sha256 for h.gguf (does not answer)" + mend,
        "llm_models[2] (alias waived): no sha256 for v.gguf (its source announces none)" + mend,
    ]
    assert unknown_models(model_files([WEB, HUB]), {HUB_URL: {"problem": "", "size": 1, "sha256": B}}) == []


def test_sha256sum_can_read_the_sums(tmp_path):
    content = {"a b": b"1", "models/x.gguf": b"2"}
    for name, data in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    files = {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()}
    (tmp_path / "SHA256SUMS").write_text(bundle_sums(files))
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(check, cwd=tmp_path, check=True)
    (tmp_path / "a b").write_bytes(b"3")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode == 1


def test_versions_of_packages_are_read_from_their_index():
    assert package_versions(PACKAGES) == {"docker.io": "26.1.5+dfsg1-9", "libgmp10": "2:6.3.0"}
    assert package_versions("") == {}


def test_the_index_is_read_from_the_archive(tmp_path):
    path = tmp_path / "p.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in (("./docker.io_1.deb", b"deb"), ("Packages", PACKAGES.encode())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert packages_index(str(path)) == PACKAGES


def test_another_file_is_no_archive_of_packages(tmp_path):
    (tmp_path / "p.tar").write_text("no archive")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    for name in ("p.tar", "missing.tar", "empty.tar"):
        with pytest.raises(
            AnsibleFilterError, match=rf"{name} is no archive of Debian packages .*make bundle"
        ):
            packages_index(str(tmp_path / name))


def test_files_of_the_controller_are_told_with_their_paths():
    model = {"alias": "c", "file": "c.gguf", "controller_path": "/srv/c d.gguf"}
    assert controller_paths(model_files([WEB, model])) == [{"file": "c.gguf", "path": "/srv/c d.gguf"}]


@pytest.fixture
def bundle(tmp_path):
    """An unpacked bundle."""
    models = {"w.gguf": A, "h.gguf": B, "s-00001-of-00002.gguf": B, "s-00002-of-00002.gguf": C}
    entries = [{"file": file, "sha256": sha256} for file, sha256 in models.items()]
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "models": entries}))
    return str(tmp_path)


def test_models_come_from_the_bundle(bundle):
    side = {"setting": "lora_path", "file": "w.gguf", "url": "https://m.example/w.gguf"}
    elsewhere = {"alias": "e", "file": "e.gguf", "url": "https://m.example/e.gguf"}
    on_host = {"alias": "p", "file": "w.gguf", "path": "/mnt/w.gguf", "link": True, "sha256": A}
    models = [WEB, HUB | {"side_files": [side]}, SPLIT, elsewhere, on_host]
    assert bundled_models(models, bundle) == [
        {"alias": "web", "file": "w.gguf", "controller_path": f"{bundle}/models/w.gguf", "sha256": A},
        {
            "alias": "hub",
            "file": "h.gguf",
            "controller_path": f"{bundle}/models/h.gguf",
            "sha256": B,
            "settings": {"n_ctx": 2048},
            "side_files": [
                {
                    "setting": "lora_path",
                    "file": "w.gguf",
                    "controller_path": f"{bundle}/models/w.gguf",
                    "sha256": A,
                }
            ],
        },
        {
            "alias": "split",
            "file": "s-00001-of-00002.gguf",
            "controller_path": f"{bundle}/models/s-00001-of-00002.gguf",
            "sha256": [B, C],
        },
        elsewhere,
        on_host,
    ]
    assert [entry["sha256"] for entry in model_files(bundled_models([SPLIT], bundle))] == [B, C]


def test_sha256_and_lock_of_the_operator_win_over_the_bundle(bundle):
    lock = {HUB_URL: {"sha256": C, "size": 1}}
    web, hub = bundled_models([WEB | {"sha256": "none"}, HUB], bundle, lock=lock)
    assert (web["sha256"], hub["sha256"]) == (A, C)
    (problem,) = bundle_problems(bundle, model_files([web, hub]))
    assert problem == (
        f"llm_models[1] (alias hub): sha256 expected {C}, but the file in the bundle {bundle} has {B};"
        " make a new bundle, or correct sha256"
    )


@pytest.mark.parametrize("models", ["x", None, ["x"], [{}], [{"file": 1}], [{"file": "w.gguf"}]])
def test_what_is_wrong_in_the_catalogue_stays_for_preflight_to_tell(bundle, models):
    assert bundled_models(models, bundle) == models


def test_without_a_bundle_nothing_changes(tmp_path):
    models = [WEB]
    assert bundled_models(models, "") is models
    assert bundled_models(models, str(tmp_path)) is models
    assert bundle_problems("") == []


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "is not an unpacked bundle (["),
        ("[]", "is not an unpacked bundle ("),
        ("{}", "is not an unpacked bundle ('models')"),
        ('{"format": 2, "models": []}', "is of another release of this project"),
    ],
)
def test_what_is_no_bundle_is_told(tmp_path, manifest, message):
    if manifest:
        (tmp_path / "manifest.json").write_text(manifest)
    (problem,) = bundle_problems(str(tmp_path))
    assert problem.startswith(f"llm_bundle: {tmp_path} {message}")
    assert bundle_problems("bundle") == [
        "llm_bundle: bundle must be an absolute path on this machine, which runs Ansible"
    ]
