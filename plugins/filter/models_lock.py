"""Filter ``models_lock``: what the hub announces about the models, compared with what was written down."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

ACCEPT = '`make lock INVENTORY=… ARGS="-e lock_update=true"` accepts it'

Lock = dict[str, dict[str, Any]]


def models_lock(
    files: list[dict[str, Any]], sources: dict[str, dict[str, Any]], old: Lock, update: bool = False
) -> dict[str, Any]:
    """Return the new lock, and what is to be said about it.

    Args:
        files: of the catalogue, from model_files without a lock.
        sources: by URL, what gguf_source returns.
        old: llm_models_lock so far.
        update: whether a sha256 that has changed is accepted.

    Returns:
        ``lock`` (by URL ``sha256`` and ``size`` in bytes), ``lines`` (one for each URL, for people) and
        ``problems`` (lines; when there are any, the lock must not be written).
    """
    lock: Lock = {}
    lines: list[str] = []
    problems: list[str] = []
    used = {entry["url"]: entry for entry in files}
    for url, entry in used.items():
        name = _printable(url)
        source = sources.get(url, {"problem": "", "size": 0, "sha256": ""})
        before, now, given = old.get(url, {}), source["sha256"], entry["sha256"]
        if before:
            lock[url] = dict(before)
        if source["problem"]:
            problems.append(source["problem"])
        elif not now and before:
            lines.append(f"{name}: not announced any more, stays {before['sha256']}")
        elif not now:
            lines.append(f"{name}: announces no sha256: keep sha256 in llm_models")
        elif given not in ("", "none", now):
            problems.append(
                f"{entry['where']}: sha256 is {given}, but {name} announces {now}:"
                " correct it, or leave it out"
            )
        elif before and before["sha256"] != now and not update:
            problems.append(
                f"{name}: its sha256 was {before['sha256']}, and now {now} is announced: the file has been"
                f" replaced. Pin a commit to stay with the old one; {ACCEPT}"
            )
        else:
            lock[url] = {"sha256": now, "size": source["size"] or before.get("size", 0)}
            if not before:
                lines.append(f"{name}: new, {now}")
            elif before["sha256"] == now:
                lines.append(f"{name}: unchanged")
            else:
                lines.append(f"{name}: changed from {before['sha256']} to {now}")
    lines += [f"{_printable(url)}: no longer used" for url in old if url not in used]
    return {"lock": lock, "lines": sorted(lines), "problems": problems}


def _printable(url: str) -> str:
    """Return a URL without user, password and query, which may be secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class FilterModule:
    """Registers the filter with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"models_lock": models_lock}
