"""The address that moves between gateways: what is refused, keepalived.conf, and whether HAProxy serves."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from virtual_address import gateway_peers, virtual_address_plan, virtual_address_problems

PROJECT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
ROLE = PROJECT / "roles/llm_gateway"


def peer(name="gw1", address="192.0.2.5", **changes):
    """A gateway, as gateway_peers gives it."""
    return {
        "name": name,
        "address": address,
        "virtual_address": "192.0.2.10/24",
        "router_id": 51,
    } | changes


PEERS = [peer(), peer("gw2", "192.0.2.6")]
SETTINGS = {
    "llm_gateway_virtual_address": "192.0.2.10/24",
    "llm_gateway_virtual_interface": "",
    "llm_gateway_virtual_router_id": 51,
    "llm_gateway_bind_address": "*",
}
FACTS = {
    "interfaces": ["lo", "ens-3", "eth1"],
    "default_ipv4": {"address": "198.51.100.7", "interface": "eth1"},
    "lo": {"device": "lo", "ipv4": {"address": "127.0.0.1"}},
    "ens_3": {
        "device": "ens-3",
        "ipv4": {"address": "192.0.2.9"},
        "ipv4_secondaries": [{"address": "192.0.2.5"}],
        "ipv6": [{"address": "2001:db8::5"}],
    },
    "eth1": {"device": "eth1", "ipv4": {"address": "198.51.100.7"}},
}


@pytest.fixture
def problems():
    """Returns a function: what is different from good input on gateway gw1 -> the problems."""

    def check(peers=None, hosts=(), facts=None, **changes):
        settings = SETTINGS | {f"llm_gateway_{name}": value for name, value in changes.items()}
        if peers is None:
            own = {
                "virtual_address": settings["llm_gateway_virtual_address"],
                "router_id": settings["llm_gateway_virtual_router_id"],
            }
            peers = [one | own for one in PEERS]
        return virtual_address_problems(settings, peers, list(hosts), "gw1", facts)

    return check


def test_good_input_has_no_problem(problems):
    assert problems() == problems(facts=FACTS) == []
    assert problems(peers=[peer()], facts=FACTS) == [], "a single gateway is allowed"
    assert problems(bind_address="::") == problems(bind_address="192.0.2.10") == []


def test_without_a_virtual_address_nothing_is_looked_at(problems):
    assert problems(peers=[peer(address="gw1.example.com")], virtual_address="", virtual_router_id=0) == []


def test_ipv6_is_as_good(problems):
    address = "2001:db8::10/64"
    peers = [
        peer(address="2001:db8::5", virtual_address=address),
        peer("gw2", "2001:db8::6", virtual_address="2001:DB8::0010/64"),
    ]
    assert problems(peers=peers, virtual_address=address, bind_address="::", facts=FACTS) == []
    assert problems(peers=peers, virtual_address=address) == [
        'llm_gateway_bind_address: is "*", so nobody would answer at llm_gateway_virtual_address; set "::" or'
        ' "2001:db8::10"'
    ]


PREFIX = 'it must be an address and the length of its prefix, for example 192.0.2.10/24, or "" for none'


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"virtual_address": "gw.example.com"},
            f'llm_gateway_virtual_address: is "gw.example.com"; {PREFIX}',
        ),
        ({"virtual_address": None}, f"llm_gateway_virtual_address: is null (nothing was written); {PREFIX}"),
        ({"virtual_address": "192.0.2.10/33"}, f'llm_gateway_virtual_address: is "192.0.2.10/33"; {PREFIX}'),
        (
            {"virtual_address": "192.0.2.10"},
            'llm_gateway_virtual_address: is "192.0.2.10"; write the length of its prefix too, as the'
            " gateways' own"
            " addresses have it: 192.0.2.10/24",
        ),
        (
            {"virtual_address": "127.0.0.5/8"},
            'llm_gateway_virtual_address: is "127.0.0.5/8"; it must be an address that clients can reach',
        ),
        (
            {"virtual_address": "192.0.2.0/24"},
            'llm_gateway_virtual_address: is "192.0.2.0/24"; it must be an address in the network'
            " 192.0.2.0/24, not"
            " the network or its broadcast address",
        ),
        *(
            (
                {"virtual_router_id": value},
                f"llm_gateway_virtual_router_id: is {shown}; it must be an integer from 1 to 255 that no"
                " other VRRP"
                " of this network has",
            )
            for value, shown in ((0, "0"), (256, "256"), ("51", '"51"'), (True, "true or false"))
        ),
        (
            {"virtual_interface": "eth0 {"},
            'llm_gateway_virtual_interface: is "eth0 {"; it must be the name of a network interface, or'
            ' "" for that'
            " of llm_gateway_address",
        ),
        (
            {"virtual_interface": "eth9", "facts": FACTS},
            "llm_gateway_virtual_interface: gw1 has no eth9; it has ens-3, eth1",
        ),
        (
            {"bind_address": "192.0.2.5"},
            'llm_gateway_bind_address: is "192.0.2.5", so nobody would answer at'
            " llm_gateway_virtual_address; set"
            ' "*" or "192.0.2.10"',
        ),
        (
            {"peers": [peer("gw2", "192.0.2.6")]},
            "llm_gateway_peers: gw1 is not in it; name all gateways that share llm_gateway_virtual_address",
        ),
        (
            {"peers": [peer(), peer("gw2", "192.0.2.6", virtual_address="192.0.2.10/25")]},
            'llm_gateway_virtual_address: is "192.0.2.10/24" on gw1, but "192.0.2.10/25" on gw2; set it'
            " for the"
            " group gateways",
        ),
        (
            {"peers": [peer(), peer("gw2", "192.0.2.6", virtual_address="")]},
            'llm_gateway_virtual_address: is "192.0.2.10/24" on gw1, but "" on gw2; set it for the group'
            " gateways",
        ),
        (
            {"peers": [peer(), peer("gw2", "192.0.2.6", router_id=52)]},
            "llm_gateway_virtual_router_id: is 51 on gw1, but 52 on gw2; set it for the group gateways",
        ),
        (
            {"peers": [peer(), peer("gw2", "gw2.example.com")]},
            'llm_gateway_address of gw2: is "gw2.example.com"; gateways that share an address know each'
            " other by"
            " address, so write that of this host, for example 192.0.2.5",
        ),
        (
            {"peers": [peer(), peer("gw2", "127.0.0.1")]},
            'llm_gateway_address of gw2: is "127.0.0.1"; gateways that share an address know each other'
            " by address,"
            " so write that of this host, for example 192.0.2.5",
        ),
        (
            {"peers": [peer(), peer("gw2", "192.0.2.10")]},
            "llm_gateway_virtual_address: 192.0.2.10 is gw2's own address; take one that no host has",
        ),
        (
            {"hosts": [{"name": "gpu1", "address": "192.0.2.10"}]},
            "llm_gateway_virtual_address: 192.0.2.10 is gpu1's own address; take one that no host has",
        ),
        (
            {"peers": [peer(), peer("gw2", "2001:db8::6")]},
            "llm_gateway_address of gw2: 2001:db8::6 is IPv6, but llm_gateway_virtual_address is IPv4;"
            " give one of"
            " the same kind",
        ),
        (
            {"peers": [peer(), peer("gw2")]},
            "llm_gateway_address of gw2: 192.0.2.5 is also that of gw1",
        ),
        (
            {"peers": [peer(address="203.0.113.5")], "facts": FACTS},
            "llm_gateway_address of gw1: 203.0.113.5 is no address of this host; it has 192.0.2.9, 192.0.2.5,"
            " 2001:db8::5, 198.51.100.7",
        ),
        (
            {"peers": [peer(f"gw{i}", f"192.0.2.{100 + i}") for i in range(1, 18)]},
            "llm_gateway_peers: has 17 gateways; 16 can share an address",
        ),
    ],
)
def test_each_wrong_setting_is_one_line(problems, changes, message):
    assert problems(**changes) == [message]


def test_what_gateways_know_of_each_other_comes_from_the_inventory():
    hostvars = {
        "gw1": {
            "llm_gateway_address": "192.0.2.5",
            "llm_gateway_virtual_address": "192.0.2.10/24",
            "llm_gateway_virtual_router_id": 51,
        },
        "gw2": {},
    }
    assert gateway_peers(["gw1", "gw2"], hostvars) == [
        peer(),
        peer("gw2", "", virtual_address="", router_id=None),
    ]


def test_the_first_gateway_has_the_highest_priority_and_each_knows_all_others():
    peers = [*PEERS, peer("gw3", "192.0.2.7")]
    plans = {one["name"]: virtual_address_plan(SETTINGS, peers, one["name"], FACTS) for one in peers}
    assert [plan["priority"] for plan in plans.values()] == [200, 199, 198]
    assert [plan["source"] for plan in plans.values()] == ["192.0.2.5", "192.0.2.6", "192.0.2.7"]
    assert plans["gw2"]["peers"] == ["192.0.2.5", "192.0.2.7"]


def test_the_interface_is_that_of_the_gateways_own_address_or_the_wanted_one():
    assert virtual_address_plan(SETTINGS, PEERS, "gw1", FACTS)["interface"] == "ens-3"
    wanted = SETTINGS | {"llm_gateway_virtual_interface": "eth1"}
    assert virtual_address_plan(wanted, PEERS, "gw1", FACTS)["interface"] == "eth1"


# ---- keepalived.conf and haproxy.cfg ----

PLAYBOOK = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{{{ ansible_playbook_python }}}}"
  tasks:
    - ansible.builtin.template:
        src: {role}/templates/{name}.j2
        dest: {out}/{name}
        mode: "0600"
      vars: {variables}
"""


def multicasting() -> str:
    """The name of an interface of this machine that VRRP can use: not a loopback, and with multicast."""
    for flags in sorted(Path("/sys/class/net").glob("*/flags")):
        if int(flags.read_text(), 16) & 0x1008 == 0x1000:
            return flags.parent.name
    pytest.fail("no interface with multicast")


@pytest.fixture
def render(tmp_path, run_playbook):
    """Returns a function: gateways, virtual address -> keepalived.conf of gw1, which Keepalived takes."""

    def rendered(peers, address="192.0.2.10/24") -> str:
        settings = SETTINGS | {"llm_gateway_virtual_address": address}
        plan = virtual_address_plan(settings, peers, "gw1", FACTS)
        variables = json.dumps({"llm_gateway_virtual_router_id": 51, "__llm_gateway_virtual": plan})
        run_playbook(PLAYBOOK.format(role=ROLE, out=tmp_path, name="keepalived.conf", variables=variables))
        config = (tmp_path / "keepalived.conf").read_text(encoding="utf-8")
        # Where Keepalived is there, it has the last word; interface, script and user are those of a gateway.
        if keepalived := shutil.which("keepalived", path=f"{os.environ['PATH']}:/usr/sbin"):
            here = tmp_path / "here.conf"
            text = config.replace("interface ens-3", f"interface {multicasting()}")
            text = text.replace("user haproxy", "user root")
            text = text.replace("/etc/keepalived/llm-haproxy-serves", shutil.which("true"))
            here.write_text(text, encoding="utf-8")
            checked = subprocess.run(
                [keepalived, "--config-test", f"--use-file={here}"],
                capture_output=True,
                text=True,
                check=False,
            )
            assert checked.returncode == 0, checked.stdout + checked.stderr
        return config

    return rendered


def test_keepalived_conf_of_the_first_of_two_gateways_is_the_golden_one(render):
    assert render(PEERS) == (GOLDEN / "keepalived.conf").read_text(encoding="utf-8")


def test_a_single_gateway_has_no_peers_and_ipv6_is_never_the_sender_of_other_connections(render):
    assert "unicast" not in render([peer()])
    config = render([peer(address="2001:db8::5"), peer("gw2", "2001:db8::6")], "2001:db8::10/64")
    assert "\t\t2001:db8::10/64 preferred_lft 0\n" in config


def test_haproxy_listens_at_the_virtual_address_also_where_another_gateway_holds_it(tmp_path, run_playbook):
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8"))
    variables = defaults | {
        "llm_gateway_virtual_address": "192.0.2.10/24",
        "__llm_gateway_plan": {"models": [], "pools": [], "relays": []},
        "__llm_gateway_fingerprint": "none",
    }
    binds = {}
    for address in ("192.0.2.10", "*"):
        text = json.dumps(variables | {"llm_gateway_bind_address": address})
        run_playbook(PLAYBOOK.format(role=ROLE, out=tmp_path, name="haproxy.cfg", variables=text))
        config = (tmp_path / "haproxy.cfg").read_text(encoding="utf-8")
        binds[address] = re.search(r"^frontend llm\n\tbind (.*)$", config, re.MULTILINE)[1]
    assert binds == {"192.0.2.10": "192.0.2.10:80 proto h1 transparent", "*": "*:80 proto h1"}


# ---- Does HAProxy serve? ----


@pytest.fixture
def ask_haproxy(tmp_path):
    """Returns a function: what HAProxy answers (None: nobody listens) -> exit status of the script."""
    path = tmp_path / "state.sock"
    script = tmp_path / "llm-haproxy-serves"
    text = (ROLE / "files/llm-haproxy-serves").read_text(encoding="utf-8")
    script.write_text(text.replace("/run/haproxy/llm-state.sock", str(path)), encoding="utf-8")

    def ask(answer: bytes | None) -> int:
        with socket.socket(socket.AF_UNIX) as haproxy:
            if answer is not None:
                haproxy.bind(str(path))
                haproxy.listen()
                threading.Thread(target=serve, args=(haproxy, answer), daemon=True).start()
            command = [sys.executable, "-IS", str(script)]
            status = subprocess.run(command, check=False, capture_output=True, timeout=10).returncode
        path.unlink(missing_ok=True)
        return status

    def serve(haproxy: socket.socket, answer: bytes) -> None:
        connection, _ = haproxy.accept()
        with connection:
            connection.recv(1000)
            if answer == b"silence":
                connection.recv(1000)  # until the other end has gone
            else:
                connection.sendall(answer)

    return ask


def test_haproxy_that_answers_serves(ask_haproxy):
    assert ask_haproxy(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") == 0


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 503 Service Unavailable\r\n\r\n", b"silence"])
def test_haproxy_that_is_gone_or_silent_or_refuses_does_not_serve(ask_haproxy, answer):
    assert ask_haproxy(answer) == 1
