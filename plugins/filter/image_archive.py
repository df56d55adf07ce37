"""Filters about an image that is not built here: what it says of itself, and when it cannot serve on a host.

``image_archive`` reads a ``docker save`` archive, ``image_inspected`` what Docker says of an image that
it has; ``image_problems`` compares either with a host. ``image_registry`` names the registry of an image.
"""

from __future__ import annotations

import json
import tarfile
from typing import Any

from ansible.errors import AnsibleFilterError

LABEL = "io.ansible-llamacpp."
# Names of processor architectures: the kernel's (ansible_facts) and Docker's.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MEND = "write one with image.yml or `docker save NAME:TAG`"
# Docker's own name for its hub, as its login knows it.
DOCKER_HUB = "https://index.docker.io/v1/"

Image = dict[str, Any]


def image_archive(path: str) -> Image:
    """Return what the archive of one image says of it; nothing but its descriptions is read.

    Args:
        path: of the archive on the controller.

    Returns:
        ``name`` (NAME:TAG), ``digests`` (what it may be called by, each ``sha256:`` and 64 hexadecimal
        digits; the first one is its id, the hash of its configuration), ``layers`` (digests),
        ``architecture`` (Docker's name), ``version``, ``backend``, ``cuda`` and ``architectures`` (compute
        capabilities) from the image's labels, and ``variant`` (cpu, cuda12 …).

    Raises:
        AnsibleFilterError: when the file cannot be read or is no archive of one named image.

    Source of the format: manifest.json of the Docker Image Specification v1.2, which archives in OCI
    layout (Docker 25 and later) have too.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            manifest = json.load(_member(archive, "manifest.json"))
            names = [name for image in manifest for name in image["RepoTags"] or []]
            if len(manifest) != 1 or not names:
                raise AnsibleFilterError(
                    f"llamacpp_image_archive: {path} holds {len(manifest)} images with"
                    f" {len(names)} names, not one image with a name; {MEND}"
                )
            config_path = manifest[0]["Config"]
            config = json.load(_member(archive, config_path))
    except (OSError, tarfile.TarError, KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"llamacpp_image_archive: {path} is no archive of a Docker image ({error}); {MEND}"
        ) from error
    # ID.json in older archives, blobs/sha256/ID in newer ones.
    digest = config_path.rpartition("/")[2].removesuffix(".json")
    return {
        "name": names[0],
        "digests": [f"sha256:{digest}"],
        "layers": config["rootfs"]["diff_ids"],
        **_described(config.get("architecture", ""), (config.get("config") or {}).get("Labels") or {}),
    }


def image_inspected(images: list[dict[str, Any]], name: str) -> Image:
    """Return what Docker says of an image that it has, in the form of image_archive.

    Args:
        images: what ``docker image inspect`` prints of it; empty when there is none.
        name: under which it was asked for.

    Returns:
        See image_archive; ``digests`` also has those that registries know it by. Empty without an image.
    """
    if not images:
        return {}
    image = images[0]
    known = [digest.rpartition("@")[2] for digest in image.get("RepoDigests") or []]
    return {
        "name": name,
        "digests": [image["Id"], *known],
        "layers": image["RootFS"]["Layers"],
        **_described(image.get("Architecture", ""), (image.get("Config") or {}).get("Labels") or {}),
    }


def _described(architecture: str, labels: dict[str, str]) -> Image:
    """Return what an image's architecture and labels say, by the names of image_archive."""
    backend = labels.get(f"{LABEL}backend", "")
    cuda = labels.get(f"{LABEL}cuda", "")
    architectures = labels.get(f"{LABEL}cuda-architectures", "")
    return {
        "architecture": architecture,
        "version": labels.get("org.opencontainers.image.version", ""),
        "backend": backend,
        "cuda": cuda,
        "architectures": [_capability(name) for name in architectures.split(";") if name],
        "variant": f"{backend}{cuda}",
    }


def _member(archive: tarfile.TarFile, name: str) -> Any:  # noqa: ANN401
    """Return one file of the archive, open for reading. Raises KeyError when it is not there."""
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file


def _capability(architecture: str) -> str:
    """Return the compute capability that a CMake name stands for: "89-real" -> "8.9"."""
    digits = architecture.partition("-")[0].rstrip("af")
    return f"{digits[:-1]}.{digits[-1:]}"


def image_problems(
    image: Image,
    where: str,
    version: str,
    backend: str,
    architecture: str,
    not_built_for: list[dict[str, Any]],
    wanted_id: str = "",
) -> list[str]:
    """Return every reason why an image cannot serve on a host.

    Args:
        image: from image_archive or image_inspected.
        where: the variable that names the image, and the image, for the messages.
        version: of llama-cpp-python that is to run.
        backend: cpu or cuda; an image with cuda serves on the CPU too.
        architecture: of the host's processor, as ``ansible_facts`` name it.
        not_built_for: the GPUs of instances that its code does not run on (filter gpus_not_built_for).
        wanted_id: llamacpp_image_id, with or without ``sha256:``; empty for any.
    """
    problems = []
    if wanted_id and f"sha256:{wanted_id.removeprefix('sha256:')}" not in image["digests"]:
        problems.append(
            f"{where} is {' or '.join(image['digests'])}, but llamacpp_image_id is {wanted_id};"
            " take the image that is meant, or correct llamacpp_image_id"
        )
    if not image["backend"]:
        return [
            *problems,
            f"{where} was not built from this project's files/image (it lacks the labels);"
            " take one that image.yml has built",
        ]
    if image["version"] != version:
        problems.append(
            f"{where} is of version {image['version']}, but llm_server_version is {version};"
            " take another image, or that version"
        )
    if image["architecture"] != ARCHITECTURES.get(architecture, architecture):
        problems.append(
            f"{where} is for {image['architecture']}, but the host is {architecture}; build it for that"
        )
    if backend == "cuda" and image["backend"] != "cuda":
        problems.append(
            f"{where} computes on the CPU only, but instances have GPUs; build it with `make image-cuda`"
        )
    for gpu in not_built_for if image["architectures"] else []:
        problems.append(
            f"{where} is built for compute capability {', '.join(image['architectures'])}, but GPU"
            f" {gpu['index']} ({gpu['name']}) has {gpu['compute_capability']}; build it for that"
        )
    return problems


def image_registry(name: str) -> str:
    """Return the address of the registry that an image comes from, as `docker login` takes it.

    Argument: name, REGISTRY/NAME:TAG or REGISTRY/NAME@DIGEST; a first part without a dot or colon is no
    registry but belongs to a name on Docker Hub.
    """
    first, slash, _rest = name.partition("/")
    return first if slash and (set(".:") & set(first) or first == "localhost") else DOCKER_HUB


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "image_archive": image_archive,
            "image_inspected": image_inspected,
            "image_problems": image_problems,
            "image_registry": image_registry,
        }
