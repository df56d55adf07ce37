"""Filters for CDI specifications, as nvidia-ctk and the service nvidia-cdi-refresh write them."""

from __future__ import annotations

import re
from typing import Any

import yaml

ASSIGNMENT = re.compile(r"""^\s*([A-Za-z_]\w*)=(["']?)(.*?)\2\s*$""", re.MULTILINE)


def service_environment(text: str) -> dict[str, str]:
    """Return what an EnvironmentFile of systemd sets.

    Args:
        text: its content; lines that are no assignment (comments) count for nothing.
    """
    return {name: value for name, _, value in ASSIGNMENT.findall(text)}


def is_same_spec(text: str, generated: str) -> bool:
    """Whether a specification says what nvidia-ctk has generated.

    Args:
        text: content of the specification in place, YAML or JSON.
        generated: what `nvidia-ctk cdi generate` has printed. Only its first document is meant: with some
            options others follow, which the service writes to files of their own.

    Errors: yaml.YAMLError when `generated` is not YAML; a text that is not is another specification.
    """
    wanted = next(iter(yaml.safe_load_all(generated)), None)
    try:
        return bool(yaml.safe_load(text) == wanted)
    except yaml.YAMLError:
        return False


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"is_same_spec": is_same_spec, "service_environment": service_environment}
