"""Filter ``daemon_config``: what Docker's configuration file is to hold, without losing what is in it."""

from __future__ import annotations

import json
import re
from typing import Any

PATH = "/etc/docker/daemon.json"


def daemon_config(text: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Merge wanted keys into the text of daemon.json.

    Mappings are merged key by key, everything else is replaced, and what nobody asks for stays as it is.

    Args:
        text: content of the file; empty when there is none, which Docker takes as no settings.
        wanted: keys and values that the file must have.

    Returns:
        A dict of ``config`` (what the file is to hold), ``differs`` (whether that means something else than
        the text; white space and the order of keys do not count), ``indent`` (characters or number of
        spaces that the text indents with) and ``problem`` (why the text cannot be read, else empty).
    """
    indent = re.search(r'^([ \t]+)"', text, re.MULTILINE)
    result: dict[str, Any] = {
        "config": {},
        "differs": False,
        "indent": indent[1] if indent else 2,
        "problem": "",
    }
    try:
        found = json.loads(text) if text.strip() else {}
    except json.JSONDecodeError as error:
        result["problem"] = f"{PATH}, line {error.lineno}, column {error.colno}: {error.msg}"
        return result
    if not isinstance(found, dict):
        result["problem"] = f"{PATH}, line 1: not a JSON object"
        return result
    result["config"] = _merged(found, wanted)
    result["differs"] = result["config"] != found
    return result


def _merged(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of what was found with what is wanted in it, at any depth."""
    merged = dict(found)
    for key, value in wanted.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        merged[key] = _merged(found[key], value) if both else value
    return merged


class FilterModule:
    """Registers the filter with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"daemon_config": daemon_config}
