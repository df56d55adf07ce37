"""Filters ``image_archive`` and ``image_archive_problems``: what a ``docker save`` archive holds."""

from __future__ import annotations

import json
import tarfile
from typing import Any

from ansible.errors import AnsibleFilterError

LABEL = "io.ansible-llamacpp."
# Names of processor architectures: the kernel's (ansible_facts) and Docker's.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MEND = "write one with `make image` or `docker save NAME:TAG`"


def image_archive(path: str) -> dict[str, Any]:
    """Return what the archive of one image says of it; nothing but its descriptions is read.

    Args:
        path: of the archive on the controller.

    Returns:
        ``name`` (NAME:TAG), ``id`` (64 hexadecimal digits: the sha256 of the image's configuration),
        ``layers`` (digests), ``architecture`` (Docker's name), ``version``, ``backend``, ``cuda`` and
        ``architectures`` (compute capabilities) from the image's labels, and ``variant`` (cpu, cuda12 …).

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
    labels = (config.get("config") or {}).get("Labels") or {}
    backend = labels.get(f"{LABEL}backend", "")
    cuda = labels.get(f"{LABEL}cuda", "")
    architectures = labels.get(f"{LABEL}cuda-architectures", "")
    return {
        "name": names[0],
        # ID.json in older archives, blobs/sha256/ID in newer ones.
        "id": config_path.rpartition("/")[2].removesuffix(".json"),
        "layers": config["rootfs"]["diff_ids"],
        "architecture": config.get("architecture", ""),
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


def image_archive_problems(
    image: dict[str, Any],
    path: str,
    version: str,
    backend: str,
    architecture: str,
    not_built_for: list[dict[str, Any]],
) -> list[str]:
    """Return every reason why the image of an archive cannot serve on a host.

    Args:
        image: from image_archive.
        path: of the archive, for the messages.
        version: of llama-cpp-python that is to run.
        backend: cpu or cuda; an image with cuda serves on the CPU too.
        architecture: of the host's processor, as ``ansible_facts`` name it.
        not_built_for: the GPUs of instances that its code does not run on (filter gpus_not_built_for).
    """
    where = f"llamacpp_image_archive: the image {image['name']} in {path}"
    if not image["backend"]:
        return [f"{where} was not built from this project's files/image (it lacks the labels); {MEND}"]
    problems = []
    if image["version"] != version:
        problems.append(
            f"{where} is of version {image['version']}, but llm_server_version is {version};"
            " take another archive, or that version"
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


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "image_archive": image_archive,
            "image_archive_problems": image_archive_problems,
        }
