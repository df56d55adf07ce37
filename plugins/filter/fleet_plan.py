"""Filter ``fleet_plan``: which host fetches a model file from its source, and who takes it from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

Entry = dict[str, Any]


def fleet_plan(
    hostvars: Mapping[str, Mapping[str, Any]], hosts: list[str], share: bool = True
) -> dict[str, dict[str, list[Entry]]]:
    """Return for each host what it fetches from the source, and what it takes from another host afterwards.

    A file that some host has already is not fetched from its source again; of several hosts that lack it,
    the first one fetches it for all. Files that do not come over the network stay out of this.

    Args:
        hostvars: variables by host. Used are ``__gguf_models_store`` (what the module gguf_store has
            returned: ``missing`` and ``present``) and ``__gguf_models_shared_at`` (URL at which the host
            shares its files).
        hosts: of the play, in its order.
        share: False lets every host fetch everything from the source.

    Returns:
        By host a dict of ``first`` (entries that it fetches from their source) and ``then`` (entries that
        it takes from another host, each with ``holder``, that host, and ``peers``, the URL there).

    Errors: none.
    """
    stores = {host: hostvars[host].get("__gguf_models_store") or {} for host in hosts}
    holders: dict[tuple[str, ...], str] = {}
    for host, store in stores.items():
        for entry in store.get("present", []):
            holders.setdefault(_identity(entry), host)
    plan: dict[str, dict[str, list[Entry]]] = {host: {"first": [], "then": []} for host in hosts}
    for host, store in stores.items():
        for entry in store.get("missing", []):
            holder = holders.setdefault(_identity(entry), host)
            if not share or holder == host or not entry["url"].startswith(("http://", "https://")):
                plan[host]["first"].append(entry)
            else:
                there = f"{hostvars[holder]['__gguf_models_shared_at']}/{quote(entry['file'])}"
                plan[host]["then"].append(entry | {"holder": holder, "peers": [there]})
    return plan


def _identity(entry: Entry) -> tuple[str, ...]:
    """Return what makes two hosts' entries the same file."""
    return entry["file"], entry["url"], entry["sha256"]


class FilterModule:
    """Registers the filter with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"fleet_plan": fleet_plan}
