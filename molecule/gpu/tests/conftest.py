"""The scenario, and what its tests share besides the fixtures of molecule/resources/testing.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "resources"))
pytest.register_assert_rewrite("testing")

from testing import Scenario, openai_client  # noqa: E402

pytest_plugins = ["testing"]

HOST = "llm-gpu"
PORTS = {"llamacpp": 20280, "second": 20281}  # of each instance, as published on this machine
UUIDS = {
    "llamacpp": "GPU-00000000-0000-4000-8000-000000000000",
    "second": "GPU-00000000-0000-4000-8000-000000000001",
}
STATE = "/run/standin-gpu/state.json"


@pytest.fixture(scope="session")
def scenario() -> Scenario:
    """What is tested."""
    return Scenario(Path(__file__).resolve().parents[1], HOST, tuple(PORTS))


@pytest.fixture(scope="session")
def clients() -> dict:
    """The OpenAI client from PyPI for each instance, as users point it at the server."""
    return {name: openai_client(port) for name, port in PORTS.items()}


@pytest.fixture(scope="session")
def variables(scenario) -> dict:
    """The operator's variables that the scenario deploys."""
    path = scenario.directory / "inventory/group_vars/llm_hosts.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture
def with_gpus(variables):
    """Returns a function: GPUs for each instance -> llm_instances with them."""

    def instances(*gpus: list | str) -> list[dict]:
        pairs = zip(variables["llm_instances"], gpus, strict=True)
        return [instance | {"gpus": own} for instance, own in pairs]

    return instances


@pytest.fixture
def machine(host):
    """Returns a function that edits the stand-in machine; at the end it is as after a boot."""

    def change(edit) -> None:
        state = json.loads(host.file(STATE).content_string)
        edit(state)
        host.check_output(f"echo %s > {STATE} && standin-gpu apply", json.dumps(state))

    yield change
    host.check_output("standin-gpu reset")


@pytest.fixture
def deployed(play):
    """Brings the inventory's state back at the end."""
    yield
    run = play()
    assert run.rc == 0, run.output
