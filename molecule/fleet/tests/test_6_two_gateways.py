"""Two gateways with one address: who holds it, that it moves when its holder is lost, and that it then stays.

The second gateway is the LLM host llm-fleet-a. The address is in Docker's own network, which this machine
reaches.
"""

from __future__ import annotations

import ipaddress
import json
import re
import ssl
import time

import pytest
import yaml
from conftest import CA, GATEWAY, KEYS, Load
from openai import DefaultHttpxClient, OpenAI
from testing import wait_until

SECOND = "llm-fleet-a"


@pytest.fixture(scope="module")
def gateways(gateway, other_host) -> dict:
    """Both gateways, by name."""
    return {GATEWAY: gateway, SECOND: other_host}


@pytest.fixture(scope="module")
def own_addresses(gateways) -> dict[str, ipaddress.IPv4Interface]:
    """The address of each, with the length of its network's prefix, before it has a second one."""
    found = {}
    for name, host in gateways.items():
        (device,) = json.loads(host.check_output("ip -json -4 address show dev eth0"))
        first = device["addr_info"][0]
        found[name] = ipaddress.ip_interface(f"{first['local']}/{first['prefixlen']}")
    return found


@pytest.fixture(scope="module")
def address(own_addresses) -> ipaddress.IPv4Interface:
    """The address that is to move: the sixth to last of the network, which Docker gives last."""
    network = own_addresses[GATEWAY].network
    return ipaddress.ip_interface(f"{network[-6]}/{network.prefixlen}")


@pytest.fixture(scope="module")
def deploy(play, own_addresses, address, tmp_path_factory, gateways):
    """Returns a function that deploys both gateways, with extra variables; at the end there is one again."""
    more = tmp_path_factory.mktemp("two-gateways")
    hosts = {name: {"llm_gateway_address": str(own.ip)} for name, own in own_addresses.items()}
    (more / "hosts.yml").write_text(yaml.safe_dump({"gateways": {"hosts": hosts}}), encoding="utf-8")
    group = {"llm_gateway_virtual_address": str(address)}
    (more / "group_vars").mkdir()
    (more / "group_vars/gateways.yml").write_text(yaml.safe_dump(group), encoding="utf-8")
    sources = {"llm_allowed_sources": [str(own.ip) for own in own_addresses.values()]}
    (more / "group_vars/llm_hosts.yml").write_text(yaml.safe_dump(sources), encoding="utf-8")
    # The gateway on the LLM host looks the other one up by its name, as the gateway does.
    gateways[SECOND].check_output(
        "grep -q llm-fleet-b /etc/hosts || echo '%s' >> /etc/hosts",
        gateways[GATEWAY].check_output("grep llm-fleet-b /etc/hosts"),
    )

    def run(*options: str, **variables):
        options = options or ("--tags=gateway", "--limit=gateways")
        return play("site.yml", "-i", str(more), *options, **variables)

    yield run
    gateways[SECOND].run("systemctl disable --now keepalived haproxy")
    gateways[GATEWAY].run("systemctl disable --now keepalived")
    gateways[GATEWAY].run("rm -f /etc/keepalived/keepalived.conf")
    assert play("site.yml", "--tags", "gateway,firewall").rc == 0


@pytest.fixture(scope="module")
def two_gateways(deploy):
    """They are deployed."""
    done = deploy("--tags=gateway,firewall")
    assert done.rc == 0, done.error


@pytest.fixture(scope="module")
def client(address) -> OpenAI:
    """A client that knows the address only. The certificate is for the gateway's name, and is known."""
    context = ssl.create_default_context(cafile=CA)
    context.check_hostname = False
    return OpenAI(
        base_url=f"https://{address.ip}/v1",
        api_key=KEYS["alice"],
        timeout=60,
        max_retries=0,
        http_client=DefaultHttpxClient(verify=context),
    )


@pytest.fixture
def holders(gateways, address):
    """Returns a function: the gateways that hold the address."""

    def ask() -> list[str]:
        command = f"ip -oneline address show to {address.ip}"
        return [name for name, host in gateways.items() if host.check_output(command)]

    return ask


pytestmark = pytest.mark.usefixtures("two_gateways")


def test_one_gateway_holds_the_address_and_answers_there(holders, client):
    assert len(holders()) == 1
    assert {model.id for model in client.models.list()} == {"smollm2", "gemma3"}


def test_a_second_run_changes_nothing_on_either(deploy, holders):
    before = holders()
    done = deploy()
    assert done.rc == 0, done.error
    assert [done.count("changed", name) for name in (GATEWAY, SECOND)] == [0, 0]
    assert holders() == before


def test_a_configuration_that_a_killed_play_has_left_is_read_by_the_next_one(deploy, gateways, holders):
    before = holders()
    for host in gateways.values():
        host.check_output("touch /etc/keepalived/keepalived.conf")
    done = deploy()
    assert done.rc == 0, done.error
    for host in gateways.values():
        assert "Reload complete" in host.check_output("journalctl --unit=keepalived --lines=10 --output=cat")
    assert holders() == before


@pytest.mark.parametrize("unit", ["haproxy", "keepalived"])
def test_the_address_moves_when_its_holder_is_lost_and_stays_there(gateways, holders, client, figures, unit):
    (lost,) = holders()
    (other,) = set(gateways) - {lost}
    load = Load(client, ["smollm2"])
    try:
        wait_until(lambda: load.sent > 1, "answers at the address")
        begun = time.monotonic()
        gateways[lost].check_output(f"systemctl stop {unit}")
        try:
            wait_until(lambda: holders() == [other], f"{other} holds the address", 15)
            moved, sent, problems = time.monotonic() - begun, load.sent, len(load.problems)
            wait_until(lambda: load.sent > sent + 2, f"answers of {other}")
        finally:
            gateways[lost].check_output(f"systemctl start {unit}")
        # Twice as long as an election takes.
        end = time.monotonic() + 8
        while time.monotonic() < end:
            assert holders() == [other]
            time.sleep(0.5)
    finally:
        load.stop()
    # Those that were open, or came before the address had moved; one that had begun may end after it.
    assert len(load.problems) <= problems + 1, load.problems
    figures.append(
        f"{unit} of the holder stopped: the address moved in {moved:.1f} s, {load.sent} requests sent,"
        f" {len(load.problems)} failed"
    )


def test_gateways_that_do_not_hear_each_other_are_named(deploy, gateways, holders):
    for hook in ("input", "output"):
        chain = f"chain {hook} {{ type filter hook {hook} priority 0; meta l4proto 112 drop; }}"
        gateways[SECOND].check_output("nft %s", f"table inet mute {{ {chain}; }}")
    try:
        wait_until(lambda: len(holders()) == 2, "both hold the address", 20)
        done = deploy()
        assert done.rc != 0
        found = re.search(r"(\S+) and (\S+) hold \S+ at the same time", " ".join(done.output.split()))
        assert found, done.output
        assert set(found.groups()) == set(gateways)
    finally:
        gateways[SECOND].check_output("nft delete table inet mute")
    wait_until(lambda: len(holders()) == 1, "one holds the address", 20)


def test_without_the_variable_nobody_holds_the_address_and_a_second_run_changes_nothing(
    deploy, gateways, holders
):
    done = deploy(llm_gateway_virtual_address="")
    assert done.rc == 0, done.error
    assert holders() == []
    for host in gateways.values():
        assert not host.file("/etc/keepalived/keepalived.conf").exists
        assert not host.service("keepalived").is_running
        assert host.service("haproxy").is_running
    done = deploy(llm_gateway_virtual_address="")
    assert [done.count("changed", name) for name in (GATEWAY, SECOND)] == [0, 0]
