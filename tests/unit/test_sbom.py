"""The list of what is in an image: complete, valid CycloneDX, such that scanners find advisories by it."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from sbom import sbom_document, sbom_images, sbom_name

PROJECT = Path(__file__).resolve().parents[2]
DEFAULTS = yaml.safe_load((PROJECT / "roles/llamacpp_image/defaults/main.yml").read_text())
VERSION = DEFAULTS["llamacpp_image_version"]
LOCK = (PROJECT / f"files/image/requirements-{VERSION}.txt").read_text()
FASTAPI = re.search(r"^fastapi==(\S+)", LOCK, re.M)[1]
COMMIT = (PROJECT / f"files/image/llama.cpp-{VERSION}.txt").read_text().strip()
ID = "sha256:" + "ab" * 32

INSPECTED = {
    "Id": ID,
    "RepoDigests": [],
    "Architecture": "amd64",
    "Created": "2026-11-23T05:15:40.692434816Z",
    "Config": {"Labels": {"org.opencontainers.image.version": "0.3.36", "io.ansible-llamacpp.cuda": ""}},
}


def debian(name, version, source="", source_version="", licences=()):
    return {
        "name": name,
        "version": version,
        "architecture": "amd64",
        "source": source or name,
        "source_version": source_version or version,
        "licences": list(licences),
    }


def library(path, version=""):
    return {"path": path, "sha256": "0" * 64, "version": version}


SITE = "/opt/llamacpp/lib/python3.13/site-packages"
# As files/sbom/read-image prints it in an image with CUDA 13, shortened.
FOUND = {
    "os": {"ID": "debian", "VERSION_ID": "13", "NAME": "Debian GNU/Linux"},
    "debian": [
        debian("libgomp1", "14.2.0-19", "gcc-14", licences=["GPL-3", "LGPL"]),
        debian("libstdc++6", "14.2.0-19", "gcc-14"),
        debian("bash", "5.2.37-2+b10", source_version="5.2.37-2", licences=["GPL-3+"]),
        debian("bsdutils", "1:2.41.5-0+deb13u1", "util-linux", "2.41.5-0+deb13u1"),
        debian("libcap2", "1:2.75-10+b3", source_version="1:2.75-10"),
        debian("apt", "3.0.4"),
    ],
    "python": [
        {"name": "fastapi", "version": FASTAPI, "expression": "MIT", "licences": ["MIT License"]},
        {"name": "llama_cpp_python", "version": "0.3.36", "expression": "", "licences": ["MIT"]},
        {"name": "Jinja2", "version": "0.0.1", "expression": "", "licences": []},
    ],
    "libraries": [
        library("/opt/llamacpp/backends/libggml-cuda.so"),
        library(f"{SITE}/llama_cpp/lib/libggml-base.so", "0.25.3"),
        library(f"{SITE}/llama_cpp/lib/libllama.so", "0.5.0-dev"),
        library("/usr/local/lib/libcublas.so.13", "13.1.1"),
        library("/usr/local/lib/libcudart.so.13", "13.0"),
        library("/usr/local/lib/libnvrtc-builtins.so.13.0"),
    ],
}


def image(name="llamacpp:0.3.36-cuda13-5d4584657404"):
    return sbom_images([{"item": name, "images": [INSPECTED]}])[0]


def document(found=FOUND, lock=LOCK, commit=COMMIT):
    return sbom_document(found, image(), lock, commit)


def component(name, content=None):
    (found,) = [one for one in (content or document())["components"] if one["name"] == name]
    return found


@pytest.mark.parametrize(
    "content",
    [
        document(),
        document(lock="", commit=""),
        document(FOUND | {"debian": [], "python": [], "libraries": []}),
    ],
    ids=["all", "without lock and commit", "nothing found"],
)
def test_it_is_what_the_schema_of_cyclonedx_1_6_asks_for(content):
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(content))
    assert error is None, str(error)
    references = [one["bom-ref"] for one in content["components"]]
    assert len(references) == len(set(references))
    assert content["dependencies"] == [{"ref": ID, "dependsOn": references}]


def test_everything_that_was_found_is_listed_once():
    names = [one["name"] for one in document()["components"]]
    assert len(names) == len(set(names)) == 2 + 6 + 3 + 6
    assert {"debian", "llama.cpp", "libgomp1", "fastapi", "jinja2", "libggml-cuda.so"} <= set(names)


def test_it_names_the_image():
    about = document()["metadata"]["component"]
    assert (about["name"], about["version"]) == ("llamacpp", "0.3.36-cuda13-5d4584657404")
    properties = {one["name"]: one["value"] for one in about["properties"]}
    assert properties["ansible-llamacpp:image-id"] == ID
    assert properties["ansible-llamacpp:label:org.opencontainers.image.version"] == "0.3.36"
    assert "" not in properties.values()


@pytest.mark.parametrize(
    ("name", "purl", "source"),
    [
        ("apt", "pkg:deb/debian/apt@3.0.4?arch=amd64&distro=debian-13", "apt"),
        (
            "libstdc++6",
            "pkg:deb/debian/libstdc%2B%2B6@14.2.0-19?arch=amd64&distro=debian-13&upstream=gcc-14",
            "gcc-14",
        ),
        (
            "bash",
            "pkg:deb/debian/bash@5.2.37-2%2Bb10?arch=amd64&distro=debian-13&upstream=bash%405.2.37-2",
            "bash",
        ),
        (
            "bsdutils",
            "pkg:deb/debian/bsdutils@1:2.41.5-0%2Bdeb13u1?arch=amd64&distro=debian-13"
            "&upstream=util-linux%402.41.5-0%2Bdeb13u1",
            "util-linux",
        ),
        (
            "libcap2",
            "pkg:deb/debian/libcap2@1:2.75-10%2Bb3?arch=amd64&distro=debian-13&upstream=libcap2%401:2.75-10",
            "libcap2",
        ),
    ],
)
def test_scanners_can_tell_the_source_package_that_debians_advisories_are_about(name, purl, source):
    package = component(name)
    assert package["purl"] == purl
    assert {"name": "aquasecurity:trivy:SrcName", "value": source} in package["properties"]


def test_package_urls_mean_what_was_found():
    for package in FOUND["debian"]:
        parsed = PackageURL.from_string(component(package["name"])["purl"])
        assert (parsed.name, parsed.version) == (package["name"], package["version"])
    engine = PackageURL.from_string(component("llama-cpp-python")["purl"])
    assert (engine.type, engine.name, engine.version) == ("pypi", "llama-cpp-python", "0.3.36")


def test_licences_are_spdx_where_that_is_known_and_else_as_the_package_names_them():
    assert component("fastapi")["licenses"] == [{"expression": "MIT"}]
    assert component("llama-cpp-python")["licenses"] == [{"license": {"name": "MIT"}}]
    assert component("libgomp1")["licenses"] == [
        {"license": {"name": "GPL-3"}},
        {"license": {"name": "LGPL"}},
    ]
    assert "licenses" not in component("apt")


def test_python_packages_have_the_hashes_of_their_locked_distributions():
    (reference,) = component("fastapi")["externalReferences"]
    assert f"--hash=sha256:{reference['hashes'][0]['content']}" in LOCK.partition("fastapi==")[2][:200]
    assert len(reference["hashes"]) == 2


def test_a_version_that_is_not_the_locked_one_has_no_hashes():
    assert "jinja2==" in LOCK
    assert "externalReferences" not in component("jinja2")


def test_the_llama_cpp_inside_the_engine_is_named_with_its_commit():
    assert re.fullmatch("[0-9a-f]{40}", COMMIT)
    vendored = component("llama.cpp")
    assert vendored["version"] == "0.5.0-dev"
    assert vendored["purl"] == f"pkg:github/ggml-org/llama.cpp@{COMMIT}"
    assert {"name": "ansible-llamacpp:ggml", "value": "0.25.3"} in vendored["properties"]
    assert "purl" not in component("llama.cpp", document(commit=""))


def test_cuda_is_found_by_the_name_that_its_advisories_have():
    runtime = component("libcudart.so.13")
    assert runtime["cpe"] == "cpe:2.3:a:nvidia:cuda_toolkit:13.0:*:*:*:*:*:*:*"
    cublas = component("libcublas.so.13")
    assert (cublas["version"], cublas["supplier"]) == ("13.1.1", {"name": "NVIDIA"})
    assert component("libnvrtc-builtins.so.13.0")["supplier"] == {"name": "NVIDIA"}
    # ggml's library for CUDA is not NVIDIA's.
    assert "supplier" not in component("libggml-cuda.so")


def test_a_runtime_that_does_not_tell_its_version_is_listed_without_a_guess():
    found = copy.deepcopy(FOUND)
    found["libraries"] = [library("/usr/local/lib/libcudart.so.13")]
    runtime = component("libcudart.so.13", document(found))
    assert not {"version", "cpe"} & set(runtime)
    assert runtime["hashes"] == [{"alg": "SHA-256", "content": "0" * 64}]


def test_the_same_image_gives_the_same_document_and_another_one_another_number():
    assert document() == document()
    other = copy.deepcopy(FOUND)
    other["debian"][0]["version"] = "14.2.0-20"
    assert document(other)["serialNumber"] != document()["serialNumber"]


def test_an_image_with_two_names_is_one_image():
    images = sbom_images(
        [
            {"item": "a:1", "images": [INSPECTED]},
            {"item": "gone:1", "images": []},
            {"item": "b:1", "images": [INSPECTED]},
        ]
    )
    assert [(one["name"], one["id"]) for one in images] == [("a:1", ID)]


@pytest.mark.parametrize(
    ("name", "file"),
    {
        "llamacpp:0.3.36-cpu-5d4584657404": "llamacpp-0.3.36-cpu-5d4584657404-abababababab",
        "llamacpp:0.3.36-cpu-abababababab": "llamacpp-0.3.36-cpu-abababababab",
        "registry.example.com:5000/llm/llamacpp:1": "registry.example.com-5000-llm-llamacpp-1-abababababab",
    }.items(),
)
def test_images_that_are_not_the_same_do_not_share_a_file(name, file):
    assert sbom_name(image(name)) == file
