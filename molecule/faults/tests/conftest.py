"""The scenario, and what its tests share besides the fixtures of molecule/resources/testing.py.

Each test whose name begins with test_survives or test_refuses injects one fault. Meanwhile a client asks real
questions all the time; the end of the output counts the faults, and the requests that were lost.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import openai
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "resources"))
pytest.register_assert_rewrite("testing")

from testing import Play, Running, Scenario, ask, openai_client  # noqa: E402

pytest_plugins = ["testing"]

HOST = "llm-faults"
PORT, SECOND_PORT = 20680, 20681  # the host's ports 20080 and 20081 as published on this machine
SCENARIO = Path(__file__).resolve().parents[1]
STATE = "/var/lib/llamacpp/llamacpp"
HOME = "/home/llm/llamacpp"


class Request(NamedTuple):
    """A question that was asked: when it was sent (monotonic seconds), and what came instead of an answer."""

    sent: float
    problem: str


class Trickle:
    """A client that asks a question, waits for the answer, and asks again."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._ended = threading.Event()
        self._client = openai_client(PORT).with_options(timeout=60)
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._ended.wait(1):
            sent, problem = time.monotonic(), ""
            try:
                answer = ask(self._client, "smollm2", max_tokens=1)
                if not answer.choices[0].message.content:
                    problem = "no text"
            # What is no completion, such as a web page, is some other object.
            except (openai.OpenAIError, AttributeError, IndexError, TypeError) as error:
                problem = f"{type(error).__name__}: {error}"
            self.requests.append(Request(sent, problem))

    def sent(self, since: float = 0) -> list[Request]:
        """The requests since a time (monotonic seconds)."""
        assert self._thread.is_alive()
        return [request for request in self.requests if request.sent >= since]

    def lost(self, since: float = 0) -> list[Request]:
        """Those of them that were not answered."""
        return [request for request in self.sent(since) if request.problem]

    def end(self) -> None:
        """Asks no more."""
        self._ended.set()
        self._thread.join()


def started(container, name: str) -> str:
    """When a container was started."""
    return container(name)["State"]["StartedAt"]


@pytest.fixture(scope="session")
def scenario() -> Scenario:
    """What is tested."""
    return Scenario(SCENARIO, HOST, ("llamacpp",))


@pytest.fixture(scope="session")
def client():
    """The OpenAI client from PyPI, as users point it at the server."""
    return openai_client(PORT)


@pytest.fixture(scope="session")
def catalogue() -> list[dict]:
    """The models that the scenario deploys."""
    text = (SCENARIO / "inventory/group_vars/llm_hosts.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["llm_models"]


@pytest.fixture(scope="session")
def deploy(play) -> Callable[..., Play]:
    """Runs what site.yml does to the servers, with extra variables."""

    def run(*options: str, **variables) -> Play:
        return play("site.yml", "--tags", "server", *options, **variables)

    return run


@pytest.fixture
def begin(in_background) -> Callable[..., Running]:
    """Returns a function like deploy, whose run goes on in the background."""

    def run(**variables) -> Running:
        return in_background("site.yml", "--tags", "server", **variables)

    return run


@pytest.fixture(scope="session")
def trickle(pytestconfig):
    """The client that asks all the time."""
    pytestconfig.trickle = client = Trickle()
    yield client
    client.end()


@pytest.fixture(scope="session")
def figures(pytestconfig) -> list[str]:
    """Lines that the end of the output shows."""
    pytestconfig.figures = []
    return pytestconfig.figures


@pytest.fixture(autouse=True)
def always_answers(client, trickle, request):
    """Proves after each test that both models answer; after a refusal also that no request was lost."""
    begun = time.monotonic()
    yield
    for model in ("smollm2", "gemma3"):
        assert ask(client, model, max_tokens=2).choices
    if request.node.name.startswith("test_refuses"):
        assert not trickle.lost(since=begun)


def pytest_terminal_summary(terminalreporter, config):
    """Says how many faults were injected, and what clients saw of them."""
    passed = [
        report
        for report in terminalreporter.getreports("passed")
        if report.when == "call" and re.search(r"::test_(survives|refuses)", report.nodeid)
    ]
    failed = [
        report
        for report in terminalreporter.getreports("failed")
        if re.search(r"::test_(survives|refuses)", report.nodeid)
    ]
    terminalreporter.write_line(
        f"{len(passed) + len(failed)} faults injected, {len(passed)} survived,"
        f" old service answering after each{' of these' if failed else ''}"
    )
    if hasattr(config, "trickle"):
        asked = len(config.trickle.requests)
        lost = sum(bool(request.problem) for request in config.trickle.requests)
        terminalreporter.write_line(
            f"{asked} requests sent meanwhile, {lost} lost (in swaps, and while nothing ran)"
        )
    for line in getattr(config, "figures", []):
        terminalreporter.write_line(line)
