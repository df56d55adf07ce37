"""Filters about the files behind the catalogue.

``model_files`` lists them; ``bundled_models`` has them come from a bundle; ``link_directories`` and
``unpinned_models`` pick some out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

HUB_URL = "https://huggingface.co"
DEFAULT_REVISION = "main"
# How llama.cpp names the parts of a split model; the first one stands for all.
FIRST_PART = re.compile(r"-00001-of-(?!00000)(\d{5})(?=\.gguf)")
COMMIT = re.compile(r"[0-9a-f]{40}")
SOURCES = ("url", "hf", "path", "controller_path")

Files = list[dict[str, Any]]


def model_files(
    models: list[dict[str, Any]], hub_url: str = HUB_URL, lock: dict[str, dict[str, Any]] | None = None
) -> Files:
    """Return all files of the catalogue, each once: models, the parts of split ones, side files.

    Args:
        models: llm_models, already checked (see llm_problems).
        hub_url: address of the model hub.
        lock: llm_models_lock, by URL the ``sha256`` and ``size`` that were announced.

    Returns:
        Dicts of ``file`` (name in the directory of model files), ``part_of`` (name of the first part; of
        a file that is not split its own), ``alias`` and ``where`` (of the first model that has it, for
        messages), ``url`` (its source, http, https, file or controller), ``link`` (whether it is linked
        instead of copied), ``sha256`` (lower case; ``none``: waived; empty: its source announces it) and
        ``size`` (bytes; 0: not known).
    """
    files: dict[str, dict[str, Any]] = {}
    for index, model in enumerate(models):
        where = f"llm_models[{index}] (alias {model['alias']})"
        places = [(where, model)]
        places += [(f"{where} side_files[{n}]", side) for n, side in enumerate(model.get("side_files") or [])]
        for place, entry in places:
            for part in _parts(entry, hub_url, lock or {}):
                files.setdefault(part["file"], {**part, "alias": model["alias"], "where": place})
    return list(files.values())


def _parts(entry: dict[str, Any], hub_url: str, lock: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the files of a model or side file: one, or its parts."""
    names = _part_names(entry["file"])
    given = entry.get("sha256") or ""
    hashes = given if isinstance(given, list) else [given] * len(names)
    for name, url, sha256 in zip(names, _part_names(_source_url(entry, hub_url)), hashes, strict=True):
        locked = lock.get(url, {})
        yield {
            "file": name,
            "part_of": entry["file"],
            "url": url,
            "link": entry.get("link", False),
            "sha256": (sha256 or locked.get("sha256", "")).lower(),
            "size": locked.get("size", 0),
        }


def _part_names(name: str) -> list[str]:
    """Return the names of all parts of a file name or URL; itself if it is not split."""
    split = FIRST_PART.search(name)
    if not split:
        return [name]
    count = int(split[1])
    return [
        f"{name[: split.start()]}-{part:05d}-of-{count:05d}{name[split.end() :]}"
        for part in range(1, count + 1)
    ]


def _source_url(entry: dict[str, Any], hub_url: str) -> str:
    """Return the source of a model or side file as a URL."""
    if "hf" in entry:
        hub = entry["hf"]
        revision = quote(hub.get("revision", DEFAULT_REVISION), safe="")
        path = quote(hub.get("file", entry["file"]))
        return f"{hub_url.rstrip('/')}/{hub['repository']}/resolve/{revision}/{path}"
    if "path" in entry:
        return f"file://{quote(entry['path'])}"
    if "controller_path" in entry:
        return f"controller://{quote(os.path.abspath(entry['controller_path']))}"
    return entry["url"]


def bundled_models(
    models: object, bundle: str, hub_url: str = HUB_URL, lock: dict[str, dict[str, Any]] | None = None
) -> object:
    """Return the catalogue with the files of an unpacked bundle in place of their sources.

    A file that the bundle's manifest does not have keeps its source, and one with a ``path`` on the host
    always does. The sha256 is the operator's or that of the lock; where there is none, the bundle's.

    Args:
        models: llm_models, of whatever type: it may be checked later.
        bundle: directory on the controller; empty for none.
        hub_url: address of the model hub.
        lock: llm_models_lock.

    Errors: none; what is wrong with a bundle is told by the filter bundle_problems.
    """
    try:
        manifest = json.loads(Path(bundle, "manifest.json").read_text(encoding="utf-8")) if bundle else {}
        held = {entry["file"]: entry["sha256"] for entry in manifest.get("models", [])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        held = {}
    if not held or not isinstance(models, list):
        return models

    def from_bundle(entry: object) -> object:
        try:
            parts = list(_parts(entry, hub_url, lock or {}))
        except (AttributeError, KeyError, TypeError, ValueError):
            return entry  # preflight says what is wrong with it
        if "path" in entry or any(part["file"] not in held for part in parts):
            return entry
        hashes = [part["sha256"].replace("none", "") or held[part["file"]] for part in parts]
        return {key: value for key, value in entry.items() if key not in SOURCES} | {
            "controller_path": os.path.join(bundle, "models", entry["file"]),
            "sha256": hashes if len(hashes) > 1 else hashes[0],
        }

    changed = []
    for model in models:
        entry = from_bundle(model)
        if isinstance(entry, dict) and isinstance(entry.get("side_files"), list):
            entry = entry | {"side_files": [from_bundle(side) for side in entry["side_files"]]}
        changed.append(entry)
    return changed


def link_directories(files: Files) -> list[str]:
    """Return the directories on the host that linked files live in, sorted.

    Argument: files, from model_files.
    """
    linked = [unquote(urlsplit(entry["url"]).path) for entry in files if entry["link"]]
    return sorted({os.path.dirname(path) for path in linked})


def unpinned_models(files: Files, hub_url: str = HUB_URL) -> str:
    """Return one line about the models whose content only a branch of the hub decides; else nothing.

    Args:
        files: from model_files.
        hub_url: address of the model hub.
    """
    resolved = re.compile(re.escape(hub_url.rstrip("/")) + r"/[^/]+/[^/]+/resolve/([^/]+)/")
    revisions: dict[str, str] = {}
    for entry in files:
        found = resolved.match(entry["url"])
        if found and not entry["sha256"] and not COMMIT.fullmatch(found[1]):
            revisions[entry["where"]] = unquote(found[1])
    if not revisions:
        return ""
    return (
        f"{' and '.join(revisions)} {'follows' if len(revisions) == 1 else 'follow'} the branch"
        f" {' and '.join(sorted(set(revisions.values())))}: what it holds can change from day to day;"
        " `make lock` writes down its sha256, or pin a commit"
    )


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "bundled_models": bundled_models,
            "link_directories": link_directories,
            "model_files": model_files,
            "unpinned_models": unpinned_models,
        }
