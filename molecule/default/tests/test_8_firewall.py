"""Who may connect, proved by connections: from this machine, from the host itself, and from a neighbour."""

from __future__ import annotations

import json
import subprocess

import pytest
from conftest import HOST
from testing import answers, wait_until

NEIGHBOUR = f"{HOST}-models"  # the models server: another machine, as the host sees it
ASK = r'printf "GET /openapi.json HTTP/1.0\r\n\r\n" >&3; head -1 <&3'


def inspect(what: str, template: str) -> str:
    """A detail of the host, or of its network, as Docker on this machine knows it."""
    command = ["docker", *what.split(), "--format", "{{json %s}}" % template]  # noqa: UP031 (braces)
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def gateway() -> str:
    """The address that requests of this machine come from, through the port that is published here."""
    return inspect(f"inspect {HOST}", ".NetworkSettings.Networks.bridge.Gateway")


@pytest.fixture(scope="module")
def address() -> str:
    """The host's address, as its neighbours know it."""
    return inspect(f"inspect {HOST}", ".NetworkSettings.Networks.bridge.IPAddress")


@pytest.fixture(scope="module")
def network() -> str:
    """The network that the host and its neighbours are in."""
    return inspect("network inspect bridge", "(index .IPAM.Config 0).Subnet")


@pytest.fixture(scope="module")
def neighbour(address):
    """Returns a function: what the neighbour is answered; nothing when it cannot connect."""

    def ask() -> str:
        command = f"exec 3<>/dev/tcp/{address}/20080; {ASK}"
        return subprocess.run(
            ["docker", "exec", NEIGHBOUR, "timeout", "5", "bash", "-c", command],
            capture_output=True,
            text=True,
            check=False,
        ).stdout

    return ask


@pytest.fixture(scope="module")
def docker_rules(host):
    """Returns a function: the rules in the tables that are Docker's."""
    return lambda: host.check_output("iptables -t filter -S && iptables -t nat -S")


@pytest.fixture(scope="module")
def allow(play):
    """Returns a function: a run of site.yml that lets only these sources connect, none for everyone."""
    return lambda *sources: play("site.yml", "--tags", "firewall", llm_allowed_sources=sources)


@pytest.fixture(scope="module", autouse=True)
def as_before(host, docker_rules):
    """Proves at the end that Docker's rules are what they were."""
    before = docker_rules()
    yield
    assert docker_rules() == before
    assert "llamacpp" not in host.run("nft list tables").stdout


def test_only_an_allowed_source_may_connect(allow, host, client, neighbour, gateway, address, untouched):
    assert "200" in neighbour()
    connected = subprocess.Popen(
        [
            "docker",
            "exec",
            "-i",
            NEIGHBOUR,
            "bash",
            "-c",
            f"exec 3<>/dev/tcp/{address}/20080; echo; read; {ASK}",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert connected.stdout.readline() == "\n"
    run = allow(gateway)
    assert run.rc == 0, run.output
    assert answers(client)
    assert neighbour() == ""
    for name in ("127.0.0.1", address):
        assert host.run(f"timeout 5 bash -c '</dev/tcp/{name}/20080'").rc == 0
    # Who was connected before stays so.
    said, _ = connected.communicate("\n", timeout=60)
    assert "200" in said


def test_a_second_run_leaves_the_rules_alone(allow, gateway, untouched):
    run = allow(gateway)
    assert run.rc == 0, run.output
    assert run.count("changed") == 0, run.output


def test_the_rules_outlive_docker_and_are_loaded_at_boot(host, client, neighbour):
    host.check_output("systemctl restart docker")
    wait_until(lambda: answers(client), "an answer after a restart of Docker")
    assert neighbour() == ""
    assert host.service("llamacpp-firewall").is_enabled


def test_a_name_is_refused_and_the_rules_stay(allow, host, neighbour, untouched):
    before = host.check_output("nft -s list table inet llamacpp")
    run = allow("gateway.example.com")
    assert run.rc != 0
    assert 'llm_allowed_sources[0]: "gateway.example.com" is a name' in run.error
    assert run.count("changed") == 0
    assert host.check_output("nft -s list table inet llamacpp") == before
    assert neighbour() == ""


def test_a_network_may_connect(allow, client, neighbour, network, untouched):
    run = allow("192.0.2.0/24", network)
    assert run.rc == 0, run.output
    assert "200" in neighbour()
    assert answers(client)


def test_rules_that_somebody_has_flushed_come_back(allow, host, network, untouched):
    before = host.check_output("nft -s list table inet llamacpp")
    host.check_output("nft delete table inet llamacpp")
    run = allow("192.0.2.0/24", network)
    assert run.rc == 0, run.output
    assert run.count("changed") == 1, run.output
    assert host.check_output("nft -s list table inet llamacpp") == before


def test_without_sources_everyone_may_connect_and_nothing_is_left(allow, host, client, neighbour, untouched):
    run = allow()
    assert run.rc == 0, run.output
    assert "llamacpp" not in host.check_output("nft list tables")
    assert host.check_output("find /etc -name '*llamacpp-firewall*'") == ""
    assert "200" in neighbour()
    assert answers(client)
