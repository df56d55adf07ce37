"""The scenario, and what its tests share besides the fixtures of molecule/resources/testing.py.

Each test whose name begins with test_survives or test_refuses is about one fault; the end of the output
counts them.
"""

from __future__ import annotations

import http.client
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "resources"))
pytest.register_assert_rewrite("testing")

from testing import PROJECT, Play, Running, Scenario, ask, openai_client  # noqa: E402

pytest_plugins = ["testing"]

HOST = "llm-models"
PORT, SECOND_PORT = 20480, 20481  # the host's ports 20080 and 20081 as published on this machine
HUB_PORT = 20482
SCENARIO = Path(__file__).resolve().parents[1]
MODELS = "/home/llm/llamacpp/model"
SERVED = PROJECT / ".cache/store/hub"
TOKEN = "open-sesame"


class Hub:
    """The stand-in hub, as tests look at it and order it about."""

    def _ask(self, method: str, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", HUB_PORT, timeout=10)
        connection.request(method, path)
        response = connection.getresponse()
        assert response.status == 200, path
        return response.read()

    def reset(self) -> None:
        """Has it forget its log, and start all faults anew."""
        self._ask("POST", "/control/reset")

    def move(self) -> None:
        """Has it serve other files under the names of owner `moved`."""
        self._ask("POST", "/control/move")

    def log(self) -> list[dict]:
        """All requests since the last reset."""
        return json.loads(self._ask("GET", "/control/log"))

    def sent(self, file: str = "") -> int:
        """The bytes that have gone out for a file, in whatever version; left out: for all."""
        return sum(
            entry["sent"]
            for entry in self.log()
            if not file or entry["path"].removesuffix(".new").endswith(f"/{file}")
        )


def entry(file: str, sha256: str = "", **source) -> dict:
    """An entry of llm_models.

    Args:
        file: the local name.
        sha256: of the file; empty to leave it out.
        source: url, hf, path or controller_path.
    """
    return {"alias": Path(file).stem, "file": file, **source} | ({"sha256": sha256} if sha256 else {})


def from_web(fault: str, file: str) -> dict:
    """The source of a file on the ordinary web server."""
    return {"url": f"http://files.internal/{fault}/{file}"}


def from_hub(repository: str, file: str) -> dict:
    """The source of a file on the hub."""
    return {"hf": {"repository": repository, "file": file}}


def line_about(play: Play, *words: str) -> str:
    """The first line of a play's last error in which all words are; fails when there is none."""
    for line in play.error.splitlines():
        if all(word in line for word in words):
            return line
    pytest.fail(f"no line has {words}: {play.error}")


@pytest.fixture(scope="session")
def scenario() -> Scenario:
    """What is tested."""
    return Scenario(SCENARIO, HOST, ("llamacpp",))


@pytest.fixture(scope="session")
def client():
    """The OpenAI client from PyPI, as users point it at the server."""
    return openai_client(PORT)


@pytest.fixture(scope="session")
def hub() -> Hub:
    """The stand-in hub."""
    return Hub()


@pytest.fixture(scope="session")
def sha256() -> dict[str, str]:
    """The SHA-256 of each file that the hub has."""
    return json.loads((SERVED / "sha256.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def smollm2() -> dict:
    """The model that is deployed."""
    path = SCENARIO / "inventory/group_vars/llm_hosts.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))["llm_models"][0]


@pytest.fixture(scope="session")
def fetch(play, smollm2) -> Callable[..., Play]:
    """Returns a function: entries of llm_models, options, variables -> a finished run that fetches them."""

    def run(*entries: dict, options: tuple[str, ...] = (), **variables) -> Play:
        variables = {"llm_models": [smollm2, *entries]} | variables
        return play("site.yml", "--tags", "models", *options, **variables)

    return run


@pytest.fixture
def begin(in_background, smollm2) -> Callable[..., Running]:
    """Returns a function like that of fetch, whose run goes on in the background."""

    def run(*entries: dict, options: tuple[str, ...] = (), **variables) -> Running:
        variables = {"llm_models": [smollm2, *entries]} | variables
        return in_background("site.yml", "--tags", "models", *options, **variables)

    return run


@pytest.fixture(scope="session")
def in_place(host):
    """Returns a function: local file and sha256 -> whether this very file is in place, and nothing half."""

    def look(file: str, sha256: str, directory: str = MODELS) -> bool:
        left = host.run("ls -A %s/.partial", directory).stdout.split()
        assert not [name for name in left if name.startswith(file)]
        return host.file(f"{directory}/{file}").sha256sum == sha256

    return look


def service(host) -> str:
    """Which container serves, and since when."""
    return host.check_output("docker inspect -f '{{.Id}} {{.State.StartedAt}}' llamacpp")


@pytest.fixture(scope="session")
def served(host) -> dict:
    """What served when the tests began; who restarts it on purpose writes down what serves now."""
    return {"by": service(host)}


@pytest.fixture(autouse=True)
def still_serves(host, client, served):
    """Proves after each test that the model which was there all the time is still served."""
    yield
    assert service(host) == served["by"], "the running service was touched"
    assert ask(client, "smollm2", max_tokens=2).choices[0].message.content


def pytest_terminal_summary(terminalreporter):
    """Says how many faults were gone through, and how."""
    passed = [
        re.search(r"::test_(survives|refuses)", report.nodeid)
        for report in terminalreporter.getreports("passed")
        if report.when == "call"
    ]
    ends = [match.group(1) for match in passed if match]
    survived, refused = ends.count("survives"), ends.count("refuses")
    terminalreporter.write_line(f"{survived} faults survived, {refused} refused with nothing half in place")
