#!/usr/bin/python
"""Module gguf_progress: how far a running fetch of model files is."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_progress
short_description: Tells how far the fetch of model files is
description: Waits a little for the end of the module gguf_fetch, and reads what it says of itself.
options:
  directory:
    description: Directory of the model files.
    type: path
    required: true
  wait:
    description: Seconds to wait at most.
    type: int
    default: 15
author: ansible-llamacpp
"""

EXAMPLES = r"""
- name: Progress is read
  gguf_progress:
    directory: /home/llm/llamacpp/model
"""

RETURN = r"""
finished:
  description: Whether no fetch is running.
  type: bool
  returned: always
files:
  description: >-
    Per file a dict of C(state) (waiting, fetching, retrying, verifying, in place, failed) and, where they
    are known, C(done), C(size) (bytes), C(speed) (bytes per second), C(eta) and C(note).
  type: dict
  returned: always
"""

import fcntl
import json
import os
import time

from ansible.module_utils.basic import AnsibleModule


def running(directory):
    """Whether a fetch into a directory (str) of unfinished downloads holds its lock."""
    try:
        with open(os.path.join(directory, ".lock"), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def progress(directory):
    """Return what the fetch into a directory (str) of unfinished downloads says of its files (dict)."""
    try:
        with open(os.path.join(directory, ".progress.json"), encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "wait": {"type": "int", "default": 15},
        },
        supports_check_mode=True,
    )
    directory = os.path.join(module.params["directory"], ".partial")
    end = time.monotonic() + module.params["wait"]
    while running(directory) and time.monotonic() < end:
        time.sleep(0.2)
    module.exit_json(changed=False, finished=not running(directory), files=progress(directory))


if __name__ == "__main__":
    main()
