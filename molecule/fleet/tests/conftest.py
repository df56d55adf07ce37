"""The scenario, and what its tests share besides the fixtures of molecule/resources/testing.py.

Clients know the gateway only, by its certificate, and each has a key of its own.
"""

from __future__ import annotations

import csv
import io
import json
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import testinfra
import yaml
from openai import DefaultHttpxClient, OpenAI

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "resources"))
pytest.register_assert_rewrite("testing")

from testing import PROJECT, Scenario, ask  # noqa: E402

pytest_plugins = ["testing"]

SCENARIO = Path(__file__).resolve().parents[1]
GATEWAY = "llm-gateway"
# As published on this machine.
URL, STATS = "https://127.0.0.1:20743", "http://127.0.0.1:20784"
CA = PROJECT / ".cache/fleet/ca.crt"
CLIENTS = yaml.safe_load((SCENARIO / "inventory/group_vars/gateways.yml").read_text())["llm_gateway_clients"]
KEYS = {client["name"]: client["key"] for client in CLIENTS}


@pytest.fixture(scope="session")
def scenario() -> Scenario:
    """What is tested; its host is the one that has two instances."""
    return Scenario(SCENARIO, "llm-fleet-b", ("llamacpp", "only"))


@pytest.fixture(scope="session")
def gateway():
    """The host of the gateway, reached through docker exec."""
    return testinfra.get_host(f"docker://{GATEWAY}")


@pytest.fixture(scope="session")
def other_host():
    """The LLM host that has one instance, with both models."""
    return testinfra.get_host("docker://llm-fleet-a")


@pytest.fixture(scope="session")
def gateway_url() -> str:
    """What clients are given as the address of the API."""
    return f"{URL}/v1"


@pytest.fixture(scope="session")
def client_key() -> str:
    """Key of a client without limits."""
    return KEYS["alice"]


@pytest.fixture(scope="session")
def ca_file() -> Path:
    """The certificate by which clients recognise the gateway."""
    return CA


def client_of(key: str) -> OpenAI:
    """The OpenAI client from PyPI. It asks once, so that nothing that fails is hidden.

    Args:
        key: what it sends as its key.
    """
    http_client = DefaultHttpxClient(verify=ssl.create_default_context(cafile=CA))
    return OpenAI(base_url=f"{URL}/v1", api_key=key, timeout=180, max_retries=0, http_client=http_client)


@pytest.fixture(scope="session")
def clients() -> dict[str, OpenAI]:
    """The clients that the gateway knows, by name."""
    return {name: client_of(key) for name, key in KEYS.items()}


@pytest.fixture(scope="session")
def client(clients) -> OpenAI:
    """A client without limits."""
    return clients["alice"]


def access_log(gateway) -> list[dict]:
    """The access log of the gateway, one dictionary per request, in the order in which requests ended.

    Args:
        gateway: its host.
    """
    gateway.check_output("journalctl --sync")
    output = gateway.check_output("journalctl -t haproxy -o cat")
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def haproxy(gateway, command: str) -> str:
    """Says something to HAProxy as an operator does; returns its answer.

    Args:
        gateway: its host.
        command: of HAProxy's administration socket.
    """
    return gateway.check_output("python3 -c %s %s", SAY, f"{command}\n")


SAY = """
import socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect("/run/haproxy/admin.sock")
    connection.sendall(sys.argv[1].encode())
    print(b"".join(iter(lambda: connection.recv(65536), b"")).decode())
"""


def servers(gateway) -> dict[str, dict[str, str]]:
    """What HAProxy says of each server, by BACKEND/SERVER: columns of its statistics.

    Args:
        gateway: its host.
    """
    page = haproxy(gateway, "show stat")
    rows = csv.DictReader(io.StringIO(page.lstrip("# ")))
    return {f"{row['pxname']}/{row['svname']}": row for row in rows if row["type"] == "2"}


def at_once(calls: list[Callable]) -> list:
    """Calls functions at the same time, each in a thread; returns what they return, in their order.

    Args:
        calls: what to call.
    """
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


class Load:
    """Clients that ask all the time, one request after the other each, until they are told to stop.

    Args:
        client: by which they ask.
        models: what they ask for, one thread each; a model may be named several times.
    """

    def __init__(self, client: OpenAI, models: list[str]) -> None:
        self._client, self._stop = client, threading.Event()
        self.begun, self.problems = Counter(), []
        self._threads = [threading.Thread(target=self._ask, args=(model,)) for model in models]
        for thread in self._threads:
            thread.start()

    def _ask(self, model: str) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                # Every second answer is a stream, which a server that stops cuts off at once.
                if self.begun[model] % 2:
                    answer = list(ask(self._client, model, max_tokens=8, stream=True))[-1]
                else:
                    answer = ask(self._client, model, max_tokens=8)
                problem = "" if answer.choices[0].finish_reason else "cut off"
                if answer.model != model:
                    problem = f"{answer.model} has answered"
            except (openai.OpenAIError, IndexError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
            self.begun[model] += 1
            if problem:
                self.problems.append(f"{model}, after {time.monotonic() - begun:.1f} s: {problem}")
            # Room for others on two cores; and who is refused at once would be counted hundreds of times.
            self._stop.wait(1 if problem else 0.2)

    @property
    def sent(self) -> int:
        """How many requests have ended."""
        return self.begun.total()

    def stop(self) -> None:
        """Lets them end the requests they have begun."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def load(client) -> Iterator[Callable[..., Load]]:
    """Returns a function that starts clients for the models given; what still asks at the end is stopped."""
    begun = []

    def start(*models: str) -> Load:
        begun.append(Load(client, list(models)))
        return begun[-1]

    yield start
    for one in begun:
        one.stop()


FIGURES: list[str] = []


@pytest.fixture
def figures() -> list[str]:
    """Lines that the end of the output shows."""
    return FIGURES


def pytest_terminal_summary(terminalreporter) -> None:
    """Shows the figures at the end."""
    if FIGURES:
        terminalreporter.section("requests sent and failed")
        for line in FIGURES:
            terminalreporter.write_line(line)
