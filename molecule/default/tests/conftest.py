"""The scenario, and what its tests share besides the fixtures of molecule/resources/testing.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "resources"))
pytest.register_assert_rewrite("testing")

from testing import PROJECT, Scenario, openai_client  # noqa: E402

pytest_plugins = ["testing"]

HOST = "llm-default"
PORT = 20180  # the host's port 20080 as published on this machine
URL = f"http://127.0.0.1:{PORT}"


@pytest.fixture(scope="session")
def scenario() -> Scenario:
    """What is tested."""
    return Scenario(Path(__file__).resolve().parents[1], HOST, ("llamacpp",))


@pytest.fixture(scope="session")
def client():
    """The OpenAI client from PyPI, as users point it at the server."""
    return openai_client(PORT)


@pytest.fixture(scope="session")
def demo_variables() -> dict:
    """The operator's variables that the scenario deploys."""
    text = (PROJECT / "inventory/demo/group_vars/llm_hosts.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)
