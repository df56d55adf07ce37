"""Filter ``image_input_hash``: one value that changes when an image has to be built anew."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError


def image_input_hash(directory: str, names: list[str], arguments: dict[str, Any]) -> str:
    """Return the hash of everything that decides what a built image contains.

    Args:
        directory: the build context, on the controller.
        names: the files of the context, relative to it. Their order does not matter.
        arguments: the build arguments that change the result (not: where to download from).

    Returns:
        64 hexadecimal digits (SHA-256).

    Raises:
        AnsibleFilterError: when a file cannot be read.
    """
    files = {}
    for name in names:
        try:
            content = Path(directory, name).read_bytes()
        except OSError as error:
            raise AnsibleFilterError(f"image_input_hash: {error}") from error
        files[str(name)] = hashlib.sha256(content).hexdigest()
    inputs = {
        "arguments": {str(name): str(value) for name, value in arguments.items()},
        "files": files,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


class FilterModule:
    """What Ansible looks for in this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"image_input_hash": image_input_hash}
