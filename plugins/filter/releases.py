"""Filters ``release_table`` and ``release_to_go_back_to``: what rollback.yml shows and chooses."""

from __future__ import annotations

from typing import Any


def release_table(instances: dict[str, dict[str, Any]]) -> str:
    """Return a table of all releases, as text.

    Arguments:
        instances: by name, what the module llm_release_facts found.
    """
    header = ("instance", "release", "proved", "image", "models", "inventory", "")
    rows = [
        (
            name,
            release["id"],
            release["proved"] or "never",
            release["image"],
            ", ".join(release["models"]),
            release.get("commit") or "-",
            "<- good" if release["good"] else "",
        )
        for name, found in instances.items()
        for release in found["releases"]
    ]
    if not rows:
        return "There are no releases on this host; site.yml makes them."
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in [header, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def release_to_go_back_to(found: dict[str, Any], wanted: str) -> dict[str, str]:
    """Return which release an operator means, and what is wrong with it.

    Arguments:
        found: of one instance, what the module llm_release_facts found.
        wanted: ``good`` (the last one that was proved), ``previous`` (the one proved before it), or an id.

    Returns:
        ``id`` and ``problem``, of which one is empty.
    """
    releases = found.get("releases", [])
    # Clocks may be set back; proofs without a number are older than those with one.
    proved = sorted(
        (one for one in releases if one["proved"]), key=lambda one: (one["number"], one["proved"])
    )
    others = [one["id"] for one in proved if not one["good"]]
    good = [one["id"] for one in proved if one["good"]]
    if wanted == "good" and good:
        return {"id": good[0], "problem": ""}
    if wanted == "previous" and others:
        return {"id": others[-1], "problem": ""}
    if wanted in others + good:
        return {"id": wanted, "problem": ""}
    known = ", ".join(one["id"] for one in proved) or "none"
    return {"id": "", "problem": f"to={wanted}: there is no such proved release here; there are: {known}."}


class FilterModule:
    """Makes the filters known to Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"release_table": release_table, "release_to_go_back_to": release_to_go_back_to}
