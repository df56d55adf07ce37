"""Filters about a bundle, which takes what a deployment needs to hosts without a network (bundle.yml)."""

from __future__ import annotations

import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ansible.errors import AnsibleFilterError

FORMAT = 1
SOURCES = ("url", "hf", "path", "controller_path")
SHA256 = re.compile(r"[0-9a-f]{64}")

Files = list[dict[str, Any]]


def models_to_bundle(catalogues: list[list[dict[str, Any]]]) -> Files:
    """Return the models and side files of several catalogues as one, each file once.

    Args:
        catalogues: llm_models of each host.

    Returns:
        Models of ``alias``, ``file``, one source (``url``, ``hf``, ``path`` or ``controller_path``), and
        ``sha256`` where one is given; a side file has become a model of its own.

    Raises:
        AnsibleFilterError: when two files of one name are not the same; a bundle has one of each name.
    """
    found: dict[str, dict[str, Any]] = {}
    for model in (model for catalogue in catalogues for model in catalogue):
        for entry in (model, *(model.get("side_files") or [])):
            source = {key: entry[key] for key in SOURCES if key in entry}
            known = found.setdefault(
                entry["file"], {"alias": model["alias"], "file": entry["file"], **source}
            )
            if source != {key: known[key] for key in SOURCES if key in known}:
                raise AnsibleFilterError(
                    f"llm_models: the hosts of this inventory have different sources for the file"
                    f" {entry['file']}; give one of the files another name"
                )
            if "sha256" in entry and known.setdefault("sha256", entry["sha256"]) != entry["sha256"]:
                raise AnsibleFilterError(
                    f"llm_models: the hosts of this inventory have different sha256 for the file"
                    f" {entry['file']}; correct one, or give one of the files another name"
                )
    return list(found.values())


def bundle_manifest(
    found: Files,
    directory: str,
    files: Files,
    announced: dict[str, dict[str, Any]],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Return what a bundle says of itself, in its manifest.json.

    Args:
        found: every file in it, with ``path``, ``size`` (bytes) and ``checksum`` (sha256).
        directory: of the bundle.
        files: of the models, from the filter model_files.
        announced: what the module gguf_source returns, by URL; for models that are not in the bundle.
        about: what else is to be in it.

    Raises:
        AnsibleFilterError: when a model file is not the wanted one.
    """
    members = {
        os.path.relpath(entry["path"], directory): {"size": entry["size"], "sha256": entry["checksum"]}
        for entry in found
    }
    return {
        "format": FORMAT,
        **about,
        "models": [_model(entry, members, announced) for entry in files],
        "files": dict(sorted(members.items())),
    }


def _model(
    entry: dict[str, Any], members: dict[str, dict[str, Any]], announced: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return what the manifest says of a model file; see bundle_manifest."""
    wanted = entry["sha256"].replace("none", "")
    source = announced.get(entry["url"], {})
    member = members.get(f"models/{entry['file']}")
    size = source.get("size") or entry["size"]
    if member:
        size = member["size"]
    elif entry["url"].startswith("controller:"):
        size = os.path.getsize(unquote(urlsplit(entry["url"]).path))
    sha256 = member["sha256"] if member else wanted or source.get("sha256", "")
    if wanted and sha256 != wanted:
        raise AnsibleFilterError(
            f"{entry['where']}: the file {entry['file']} has sha256 {sha256}, expected {wanted}; run again"
        )
    return {
        "file": entry["file"],
        "size": size,
        "sha256": sha256,
        "source": _printable(entry["url"]),
        "included": member is not None,
    }


def unknown_models(files: Files, announced: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each model file of which nobody says what it must be, as long as it is elsewhere.

    Arguments: see bundle_manifest.
    """
    problems = []
    for entry in files:
        source = announced.get(entry["url"], {})
        if not SHA256.fullmatch(entry["sha256"]) and not source.get("sha256"):
            why = source.get("problem") or "its source announces none"
            problems.append(
                f"{entry['where']}: no sha256 for {entry['file']} ({why}); write it into llm_models, or have"
                " the bundle carry the file (BUNDLE_MODELS=yes)"
            )
    return problems


def _printable(url: str) -> str:
    """Return a URL without user, password and query, which may be secrets; of a path nothing."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else ""


def bundle_sums(files: dict[str, dict[str, Any]]) -> str:
    """Return the files of a manifest as `sha256sum --check` reads them."""
    return "".join(f"{entry['sha256']}  {path}\n" for path, entry in files.items())


def package_versions(index: str) -> dict[str, str]:
    """Return the versions by package of a Debian repository.

    Argument: index, its file Packages. Source of the format: deb-control(5).
    """
    fields = (dict(re.findall(r"(?m)^(Package|Version): (.+)$", entry)) for entry in index.split("\n\n"))
    return {entry["Package"]: entry["Version"] for entry in fields if entry}


def packages_index(path: str) -> str:
    """Return the file Packages of an archive of a Debian repository (tar).

    Argument: path of the archive on the controller.
    Errors: AnsibleFilterError when it cannot be read.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            member = archive.extractfile("Packages")
            return member.read().decode() if member else ""
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        raise AnsibleFilterError(
            f"offline_packages_archive: {path} is no archive of Debian packages ({error}); `make bundle`"
            " writes one"
        ) from error


def controller_paths(files: Files) -> Files:
    """Return the files that come from the controller, each a dict of ``file`` and ``path`` there.

    Argument: files, from the filter model_files.
    """
    return [
        {"file": entry["file"], "path": unquote(urlsplit(entry["url"]).path)}
        for entry in files
        if urlsplit(entry["url"]).scheme == "controller"
    ]


def bundle_problems(bundle: str, files: Files = ()) -> list[str]:
    """Return what is wrong with an unpacked bundle, one line each.

    Args:
        bundle: llm_bundle, a directory on the controller; empty for none.
        files: of the models that are wanted, from the filter model_files; left out while these are not
            checked yet.
    """
    if not bundle:
        return []
    if not os.path.isabs(bundle):
        return [f"llm_bundle: {bundle} must be an absolute path on this machine, which runs Ansible"]
    try:
        manifest = json.loads(Path(bundle, "manifest.json").read_text(encoding="utf-8"))
        held = {entry["file"]: entry["sha256"] for entry in manifest["models"]}
        known = manifest["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [
            f"llm_bundle: {bundle} is not an unpacked bundle ({error}); unpack one that `make bundle` has"
            " written, and give its directory"
        ]
    if not known:
        return [f"llm_bundle: {bundle} is of another release of this project; make it anew with this one"]
    return [
        f"{entry['where']}: sha256 expected {entry['sha256']}, but the file in the bundle {bundle} has"
        f" {held[entry['file']]}; make a new bundle, or correct sha256"
        for entry in files
        if entry["url"].startswith("controller:")
        and SHA256.fullmatch(entry["sha256"])
        and held.get(entry["file"], entry["sha256"]) != entry["sha256"]
    ]


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "bundle_manifest": bundle_manifest,
            "bundle_problems": bundle_problems,
            "bundle_sums": bundle_sums,
            "controller_paths": controller_paths,
            "models_to_bundle": models_to_bundle,
            "package_versions": package_versions,
            "packages_index": packages_index,
            "unknown_models": unknown_models,
        }
