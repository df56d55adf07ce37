"""What the tests share: the host, the API as a client sees it, and the playbooks as an operator runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import testinfra
import yaml
from openai import OpenAI

PROJECT = Path(__file__).resolve().parents[3]
SCENARIO = Path(__file__).resolve().parents[1]
HOST = "llm-default"
PORT = 20180  # the host's port 20080 as published on this machine
URL = f"http://127.0.0.1:{PORT}"


@dataclass
class Play:
    """A finished run of ansible-playbook: exit status, all it printed, and the numbers of its recap."""

    rc: int
    output: str

    def count(self, what: str) -> int:
        """The recap's number of tasks that were ok, changed, failed …"""
        return int(re.search(rf"{HOST}\s.*\b{what}=(\d+)", self.output).group(1))


@pytest.fixture(scope="session")
def host():
    """The test host, reached through docker exec."""
    return testinfra.get_host(f"docker://{HOST}")


@pytest.fixture(scope="session")
def client() -> OpenAI:
    """The OpenAI client from PyPI, as users point it at the server."""
    return OpenAI(base_url=f"{URL}/v1", api_key="none", timeout=120, max_retries=0)


@pytest.fixture(scope="session")
def play() -> Callable[..., Play]:
    """Runs a playbook against the test host with extra variables, as an operator would."""

    def run(playbook: str = "site.yml", *options: str, **variables) -> Play:
        command = ["ansible-playbook", "-i", str(SCENARIO / "inventory"), playbook, *options]
        if variables:
            command += ["-e", json.dumps(variables)]
        done = subprocess.run(
            command,
            cwd=PROJECT,
            env=os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Play(done.returncode, done.stdout)

    return run


@pytest.fixture(scope="session")
def demo_variables() -> dict:
    """The operator's variables that the scenario deploys."""
    text = (PROJECT / "inventory/demo/group_vars/llm_hosts.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


@pytest.fixture
def container(host):
    """Returns a function: what `docker inspect` says of the running container."""

    def inspect(name: str = "llamacpp") -> dict:
        return json.loads(host.check_output(f"docker inspect {name}"))[0]

    return inspect


@pytest.fixture
def untouched(host, container):
    """Proves at the end that the service is what it was: container, its start, config.json, unit."""

    def state() -> tuple:
        running = container()
        return (
            running["Id"],
            running["State"]["StartedAt"],
            host.file("/home/llm/llamacpp/config.json").content,
            host.file("/etc/systemd/system/llamacpp.service").content,
        )

    before = state()
    yield
    assert state() == before, "the running service was touched"


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Polls a condition; fails with what was waited for when it does not come true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.2)
    pytest.fail(f"waited {seconds} s in vain for: {what}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Shows the server's journal beside a failed test, so that a log of CI is enough to see why."""
    report = yield
    if report.when == "call" and report.failed:
        journal = subprocess.run(
            ["docker", "exec", HOST, "journalctl", "-u", "llamacpp", "-n", "40", "--no-pager"],
            capture_output=True,
            text=True,
            check=False,
        )
        report.sections.append(("journal of llamacpp", journal.stdout + journal.stderr))
    return report
