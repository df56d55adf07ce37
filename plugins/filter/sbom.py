"""Filters about what is in an image: ``sbom_images`` (which there are), ``sbom_document`` (the list of one).

The format is CycloneDX 1.6 (ECMA-424), as JSON: https://cyclonedx.org/docs/1.6/json/. Names of packages
are package URLs (https://github.com/package-url/purl-spec), with the qualifiers ``distro`` and
``upstream`` by which scanners find the advisories of Debian, which are about source packages.
"""

from __future__ import annotations

import json
import re
import uuid
from typing import Any
from urllib.parse import quote

PREFIX = "ansible-llamacpp:"
# Of a document's serial number; any fixed one makes the same document have the same number each time.
NAMESPACE = uuid.UUID("7c3d1f0e-5b0a-5c58-9f4e-0d8a5a6a7f11")
LLAMA_CPP = "ggml-org/llama.cpp"

Component = dict[str, Any]


def sbom_images(inspected: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each image once: its ``id``, the ``name`` it is deployed as, and what is to be said of it.

    Args:
        inspected: results of docker_image_info, one for each name (``item``). The first name counts.

    Returns:
        Each with ``id``, ``name``, ``digests`` (in registries), ``architecture``, ``created`` and ``labels``.
    """
    images: dict[str, dict[str, Any]] = {}
    for result in inspected:
        for image in result["images"]:
            described = {
                "id": image["Id"],
                "name": result["item"],
                "digests": image.get("RepoDigests") or [],
                "architecture": image.get("Architecture", ""),
                "created": image.get("Created", ""),
                "labels": (image.get("Config") or {}).get("Labels") or {},
            }
            images.setdefault(image["Id"], described)
    return list(images.values())


def sbom_name(image: dict[str, Any]) -> str:
    """Return the name of an image as that of a file: with the beginning of its id, unless it has it.

    Hosts that build their image have the same name for images that are not the same.
    """
    name = re.sub(r"[^\w.-]+", "-", image["name"])
    short = image["id"].removeprefix("sha256:")[:12]
    return name if name.endswith(short) else f"{name}-{short}"


def sbom_document(
    found: dict[str, Any], image: dict[str, Any], lock: str = "", llama_cpp_commit: str = ""
) -> dict[str, Any]:
    """Return the CycloneDX document of an image. The same image and lock give the same document.

    Args:
        found: what files/sbom/read-image has printed in it.
        image: of sbom_images.
        lock: text of the lock file of Python packages, for the hashes of their distributions; those of
            another version than is in the image are left out.
        llama_cpp_commit: of llama.cpp's source that this version of the engine carries; may be empty.
    """
    system, hashes = found["os"], _hashes(lock)
    components = [
        {"type": "operating-system", "name": system["ID"], "version": system.get("VERSION_ID", "")},
        *_engine(found, llama_cpp_commit),
        *(_debian(package, system) for package in found["debian"]),
        *(_python(package, hashes) for package in found["python"]),
        *(_library(library) for library in found["libraries"]),
    ]
    for number, component in enumerate(components):
        component["bom-ref"] = component.get("purl") or f"{number}:{component['name']}"
    about = [
        ("image-id", image["id"]),
        *(("digest", digest) for digest in image["digests"]),
        ("architecture", image["architecture"]),
        ("created", image["created"]),
        *((f"label:{key}", value) for key, value in sorted(image["labels"].items())),
    ]
    name, _, tag = image["name"].rpartition("@" if "@" in image["name"] else ":")
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": image["id"],
                "name": name,
                "version": tag,
                "properties": _properties(about),
            }
        },
        "components": components,
        "dependencies": [
            {"ref": image["id"], "dependsOn": [component["bom-ref"] for component in components]}
        ],
    }
    serial = uuid.uuid5(NAMESPACE, json.dumps(document, sort_keys=True))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "serialNumber": f"urn:uuid:{serial}",
    } | document


def _properties(values: list[tuple[str, str]]) -> list[dict[str, str]]:
    """Return properties as CycloneDX writes them, with this project's prefix, and without empty ones."""
    return [{"name": PREFIX + name, "value": value} for name, value in values if value]


def _licences(names: list[str], expression: str = "") -> dict[str, Any]:
    """Return the licences of a component: SPDX if that is known, else by the names it uses itself."""
    if expression:
        return {"licenses": [{"expression": expression}]}
    return {"licenses": [{"license": {"name": name}} for name in names]} if names else {}


def _purl(kind: str, name: str, version: str, **qualifiers: str) -> str:
    """Return a package URL."""
    query = "&".join(f"{key}={quote(value, safe=':')}" for key, value in sorted(qualifiers.items()) if value)
    return f"pkg:{kind}/{name}@{quote(version, safe=':')}" + (f"?{query}" if query else "")


def _debian(package: dict[str, Any], system: dict[str, str]) -> Component:
    """Return a Debian package as a component; its source package in the ways that scanners know."""
    source, version = package["source"], package["source_version"]
    upstream = "" if (source, version) == (package["name"], package["version"]) else source
    if version != package["version"]:
        upstream = f"{source}@{version}"
    purl = _purl(
        f"deb/{system['ID']}",
        quote(package["name"], safe=""),
        package["version"],
        arch=package["architecture"],
        distro=f"{system['ID']}-{system.get('VERSION_ID', '')}",
        upstream=upstream,
    )
    return {
        "type": "library",
        "name": package["name"],
        "version": package["version"],
        **_licences(package["licences"]),
        "purl": purl,
        "properties": [
            {"name": "aquasecurity:trivy:SrcName", "value": source},
            {"name": "aquasecurity:trivy:SrcVersion", "value": version},
        ],
    }


def _normalized(name: str) -> str:
    """Return a Python package's name as the index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _hashes(lock: str) -> dict[tuple[str, str], list[str]]:
    """Return the sha256 of a lock file's distributions by name and version."""
    hashes: dict[tuple[str, str], list[str]] = {}
    for entry in re.split(r"^(?=[^\s#])", lock, flags=re.MULTILINE):
        if pinned := re.match(r"([\w.-]+)(?:\[.*?\])?==(\S+)", entry):
            hashes[_normalized(pinned[1]), pinned[2]] = re.findall(r"--hash=sha256:([0-9a-f]{64})", entry)
    return hashes


def _python(package: dict[str, Any], hashes: dict[tuple[str, str], list[str]]) -> Component:
    """Return a Python package as a component. Its hashes are of the files that pip accepts, not of it."""
    name, version = _normalized(package["name"]), package["version"]
    distributions = [{"alg": "SHA-256", "content": content} for content in hashes.get((name, version), [])]
    purl = _purl("pypi", name, version)
    # By its name and not by an address: which index it came from is the operator's choice.
    reference = {"type": "distribution", "url": purl, "hashes": distributions}
    return {
        "type": "library",
        "name": name,
        "version": version,
        **_licences(package["licences"], package["expression"]),
        "purl": purl,
        **({"externalReferences": [reference]} if distributions else {}),
    }


def _engine(found: dict[str, Any], commit: str) -> list[Component]:
    """Return llama.cpp, which the Python package carries as source; nothing if there is none."""
    told = {library["path"].rpartition("/")[2]: library["version"] for library in found["libraries"]}
    if "libllama.so" not in told:
        return []
    purl = {"purl": f"pkg:github/{LLAMA_CPP}@{commit}"} if commit else {}
    return [
        {
            "type": "library",
            "name": "llama.cpp",
            "version": told["libllama.so"],
            **_licences([], "MIT"),
            **purl,
            "properties": _properties([("commit", commit), ("ggml", told.get("libggml-base.so", ""))]),
        }
    ]


def _library(library: dict[str, Any]) -> Component:
    """Return a shared library as a component; CUDA's by the names that its advisories have."""
    name, version = library["path"].rpartition("/")[2], library["version"]
    nvidia = re.match(r"lib(cu(dart|blas|blasLt)|nvrtc)\b", name)
    # CUDA is one product for advisories; its runtime is the part that tells the product's version.
    cpe = f"cpe:2.3:a:nvidia:cuda_toolkit:{version}:*:*:*:*:*:*:*" if name.startswith("libcudart.") else ""
    return {
        "type": "library",
        **({"supplier": {"name": "NVIDIA"}} if nvidia else {}),
        "name": name,
        **({"version": version} if version else {}),
        "hashes": [{"alg": "SHA-256", "content": library["sha256"]}],
        **({"cpe": cpe} if cpe and version else {}),
        "properties": _properties([("path", library["path"])]),
    }


class FilterModule:
    """Makes the filters known to Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"sbom_images": sbom_images, "sbom_name": sbom_name, "sbom_document": sbom_document}
