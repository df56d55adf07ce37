"""Makes the plugins importable, as Ansible finds them by ansible.cfg."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ansible.module_utils
import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]

sys.path[:0] = [str(PROJECT / "plugins" / kind) for kind in ("filter", "modules")]
ansible.module_utils.__path__.append(str(PROJECT / "plugins" / "module_utils"))


@pytest.fixture(scope="session")
def group_vars():
    """The shipped group_vars, as an operator reads them."""
    return yaml.safe_load((PROJECT / "group_vars/llm_hosts.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def schema():
    """The settings of the pinned version of the server."""
    version = yaml.safe_load((PROJECT / "roles/preflight/defaults/main.yml").read_text())[
        "preflight_server_version"
    ]
    return json.loads((PROJECT / f"files/image/settings-{version}.json").read_text())
