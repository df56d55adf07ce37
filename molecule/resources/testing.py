"""What the tests of all scenarios share: host, API as clients see it, playbooks as operators run them.

A scenario's conftest.py loads this as a plugin of pytest and adds the fixture `scenario`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
import testinfra
from openai import OpenAI

PROJECT = Path(__file__).resolve().parents[2]


@dataclass
class Scenario:
    """A Molecule scenario: its directory, its host, and the names of the instances deployed there."""

    directory: Path
    host: str
    instances: tuple[str, ...]


@dataclass
class Play:
    """A finished run of ansible-playbook: host, exit status, all it printed, and the numbers of its recap."""

    host: str
    rc: int
    output: str

    def count(self, what: str, host: str = "") -> int:
        """The recap's number of tasks that were ok, changed, failed …, on this host or another one."""
        return int(re.search(rf"{host or self.host}\s.*\b{what}=(\d+)", self.output).group(1))

    @property
    def error(self) -> str:
        """What the last failed task says."""
        return self.output.split("fatal:")[-1]


class Running:
    """A playbook that runs in the background, as an operator started it.

    Args:
        scenario: whose inventory is deployed.
        options: of ansible-playbook, the playbook among them.
        inventory: the directory of its inventory.
        variables: extra variables.
    """

    def __init__(self, scenario: Scenario, *options: str, inventory: str = "inventory", **variables) -> None:
        self._host = scenario.host
        command = ["ansible-playbook", "-i", str(scenario.directory / inventory)]
        self._output = tempfile.NamedTemporaryFile("w")  # noqa: SIM115 (open as long as this run)
        self._process = subprocess.Popen(
            [*command, *options, "-e", json.dumps(variables)],
            cwd=PROJECT,
            env=os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return Path(self._output.name).read_text(encoding="utf-8")

    def kill(self) -> None:
        """Ends it, with all its processes on this machine, before it can clean up."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def finish(self, seconds: float = 300) -> Play:
        """Waits for its end; kills it and fails when it does not come in time."""
        try:
            self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"it still runs after {seconds} s: {self.output}")
        return Play(self._host, self._process.returncode, self.output)


def openai_client(port: int) -> OpenAI:
    """The OpenAI client from PyPI, as users point it at a server.

    Args:
        port: of the server, as published on this machine.
    """
    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120, max_retries=0)


def ask(client: OpenAI, model: str, question: str = "What is the capital of France?", **options):
    """Asks a model a question, with a short answer that is the same each time.

    Args:
        client: where to ask.
        model: alias of the model.
        question: what to ask.
        options: further parameters of a chat completion.
    """
    return client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        **{"max_tokens": 32} | options,
    )


def answers(client: OpenAI) -> bool:
    """Whether a server answers within half a minute.

    Args:
        client: where to ask.
    """
    try:
        client.with_options(timeout=30).models.list()
    except openai.APIError:
        return False
    return True


@pytest.fixture(scope="session")
def host(scenario):
    """The test host, reached through docker exec."""
    return testinfra.get_host(f"docker://{scenario.host}")


@pytest.fixture(scope="session")
def play(scenario) -> Callable[..., Play]:
    """Runs a playbook against the test host with extra variables, as an operator would."""

    def run(playbook: str = "site.yml", *options: str, **variables) -> Play:
        command = ["ansible-playbook", "-i", str(scenario.directory / "inventory"), playbook, *options]
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
        return Play(scenario.host, done.returncode, done.stdout)

    return run


@pytest.fixture
def in_background(scenario):
    """Returns a function that starts a playbook as Running does; what still runs at the end is killed."""
    begun = []

    def run(*options: str, **variables) -> Running:
        begun.append(Running(scenario, *options, **variables))
        return begun[-1]

    yield run
    for running in begun:
        if running.runs:
            running.kill()


@pytest.fixture
def container(host):
    """Returns a function: what `docker inspect` says of the running container."""

    def inspect(name: str = "llamacpp") -> dict:
        return json.loads(host.check_output(f"docker inspect {name}"))[0]

    return inspect


@pytest.fixture(scope="session")
def services(host, scenario) -> Callable[[], dict[str, tuple]]:
    """Returns a function: of each instance what tells whether it was touched.

    That is its container and when it was started, its config.json, its unit.
    """

    def look() -> dict[str, tuple]:
        return {
            name: (
                host.check_output("docker inspect --format '{{.Id}} {{.State.StartedAt}}' %s", name),
                host.file(f"/home/llm/{name}/config.json").content,
                host.file(f"/etc/systemd/system/{name}.service").content,
            )
            for name in scenario.instances
        }

    return look


@pytest.fixture
def untouched(services):
    """Proves at the end that each instance is what it was."""
    before = services()
    yield
    assert services() == before, "a running service was touched"


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
    """Shows the journals of servers and Docker beside a failed test: a log of CI is enough to see why."""
    report = yield
    scenario = item.funcargs.get("scenario")
    if scenario and report.failed:
        for name in scenario.instances:
            command = ["journalctl", "-u", name, "-u", "docker", "-n", "20000", "--no-pager"]
            journal = subprocess.run(
                ["docker", "exec", scenario.host, *command],
                capture_output=True,
                text=True,
                check=False,
            )
            # The engine writes hundreds of lines about a model that it loads, Docker what its kernel lacks.
            noise = re.compile("llama_graph_|level=info|WARNING: No")
            lines = [line for line in journal.stdout.splitlines() if not noise.search(line)]
            report.sections.append((f"journal of {name}", "\n".join([*lines[-80:], journal.stderr])))
    return report
