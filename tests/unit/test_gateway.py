"""The gateway: what its filters plan and refuse, and haproxy.cfg, rendered by Ansible itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from certificates import certify, make_key, text_of
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from gateway import (
    NUMBERS,
    gateway_authorities,
    gateway_files,
    gateway_hosts,
    gateway_plan,
    gateway_problems,
    hosts_meanwhile,
    served_by_one,
    server_authority,
)

PROJECT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
ROLE = PROJECT / "roles/llm_gateway"
KEY, OTHER_KEY = "k" * 40, "o" * 40
NO_KEY = hashlib.sha256(b"").hexdigest()


def host(name="gpu1", models=("a", "b"), instances=({"name": "one", "port": 20080},), **changes):
    """An LLM host, as gateway_hosts gives it."""
    return {
        "name": name,
        "address": f"{name}.example.com",
        "instances": list(instances),
        "models": [{"alias": alias, "file": f"{alias}.gguf"} for alias in models],
        "certificate": "",
        "key_sha256": NO_KEY,
    } | changes


def instance(name, *models, port=20080):
    return {"name": name, "port": port, "models": list(models)}


def routes(plan):
    """Per model the names of the servers that its requests may come to, in their order."""
    return {
        alias: [server["name"] for server in pool["servers"]]
        for pool in plan["pools"]
        for alias in pool["models"]
    }


@pytest.fixture(scope="module")
def settings():
    """The role's defaults, with a client: good input."""
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8"))
    return defaults | {"llm_gateway_clients": [{"name": "alice", "key": KEY}], "llm_gateway_redirect_port": 0}


@pytest.fixture
def problems(settings):
    """Returns a function: what is different from good input -> the problems."""

    def check(hosts=None, this_host="gw1", facts=None, **changes):
        return gateway_problems(settings | changes, hosts or [host()], this_host, facts)

    return check


# ---- What serves what ----


def test_every_model_of_the_catalogue_is_served_by_an_instance_that_names_none():
    plan = gateway_plan([host()])
    assert plan["models"] == ["a", "b"]
    assert routes(plan) == {"a": ["gpu1:one"], "b": ["gpu1:one"]}


def test_a_model_comes_only_to_instances_that_serve_it_and_first_to_those_that_serve_nothing_else():
    plan = gateway_plan(
        [
            host("gpu1", instances=[instance("both", "a", "b")]),
            host("gpu2", instances=[instance("one", "a"), instance("two", "b", port=20081)]),
        ]
    )
    assert routes(plan) == {"a": ["gpu2:one", "gpu1:both"], "b": ["gpu2:two", "gpu1:both"]}
    assert [pool["balance"] for pool in plan["pools"]] == ["first", "first"]


def test_models_with_the_same_servers_share_a_queue_and_begin_at_different_servers():
    (pool,) = gateway_plan([host("gpu1"), host("gpu2")])["pools"]
    assert pool["models"] == ["a", "b"]
    assert pool["homes"] == {"a": "gpu1:one", "b": "gpu2:one"}
    assert pool["switches"]


def test_while_hosts_are_changed_a_server_is_asked_only_for_what_it_has_before_and_after():
    before = [
        host("gpu1", ("a", "b"), ({"name": "one", "port": 20080}, instance("two", "b", port=20081))),
        host("gpu2", ("a", "b")),
        host("gpu3", ("a",)),
    ]
    wanted = [host("gpu1", ("a", "b", "c"), (instance("one", "a", "c"),)), host("gpu2", ("b",)), host("gpu4")]
    meanwhile = gateway_plan(hosts_meanwhile(before, wanted))
    assert routes(meanwhile) == {"a": ["gpu1:one"], "b": ["gpu2:one"]}


def test_where_nothing_goes_the_gateway_stays_as_it_is_while_hosts_are_changed():
    before = [host("gpu1"), host("gpu2")]
    more = [host("gpu1", ("a", "b", "c")), host("gpu2"), host("gpu3")]
    assert gateway_plan(hosts_meanwhile(before, more)) == gateway_plan(before)
    assert hosts_meanwhile([], more) == []


def test_models_that_one_instance_alone_serves_are_named():
    both = [host("gpu1", ("a", "b")), host("gpu2", ("a",))]
    assert served_by_one(gateway_plan(both)) == ["b (gpu1:one)"]
    assert served_by_one(gateway_plan([host("gpu1"), host("gpu2")])) == []


def test_without_a_choice_no_server_is_preferred():
    for hosts in ([host()], [host("gpu1", models=["a"]), host("gpu2", models=["a"])]):
        assert [(pool["homes"], pool["switches"]) for pool in gateway_plan(hosts)["pools"]] == [({}, False)]


def test_an_instance_in_several_backends_is_reached_through_one_relay_and_others_through_none():
    plan = gateway_plan(
        [host("gpu1", instances=[instance("both", "a", "b")]), host("gpu2", instances=[instance("one", "a")])]
    )
    assert [server["name"] for server in plan["relays"]] == ["gpu1:both"]
    relays = {server["name"]: server["relay"] for pool in plan["pools"] for server in pool["servers"]}
    assert relays["gpu1:both"].startswith("llm-")
    assert relays["gpu2:one"] == ""


def test_a_batching_instance_gets_as_many_requests_as_it_answers_at_once(render):
    batch = instance("chat", "vicuna-13b", port=20081) | {"engine": "batch"}
    one = instance("one", "vicuna-13b")
    for parallel, maxconn in (({}, 8), ({"parallel": 3}, 3)):
        (pool,) = gateway_plan([host(models=["vicuna-13b"], instances=[one, batch | parallel])])["pools"]
        assert [server["maxconn"] for server in pool["servers"]] == [None, maxconn]
    config = render(
        {"gpu1": {"ansible_host": "192.0.2.11", "llm_instances": [one, batch]}}, llm_gateway_clients=CLIENTS
    )
    lines = [line.strip() for line in config.splitlines()]
    assert "server gpu1:one 192.0.2.11:20080 check maxconn 1" in lines
    assert "server gpu1:chat 192.0.2.11:20081 check maxconn 8" in lines


def test_names_do_not_change_when_a_host_is_added():
    before = gateway_plan([host("gpu1")])
    after = gateway_plan([host("gpu1"), host("gpu2")])
    assert [pool["name"] for pool in before["pools"]] == [pool["name"] for pool in after["pools"]] == ["a"]
    assert before["pools"][0]["servers"][0] == after["pools"][0]["servers"][0]


def test_models_whose_names_differ_in_what_a_backend_cannot_be_called_get_backends_of_their_own():
    instances = [instance("one", "org/a"), instance("two", "org@a", port=20081)]
    plan = gateway_plan([host(models=["org/a", "org@a"], instances=instances)])
    assert [pool["name"] for pool in plan["pools"]] == ["org-a", "org-a-2"]


def test_a_model_called_like_a_part_of_the_gateway_gets_another_backend():
    (pool,) = gateway_plan([host(models=["llm"])])["pools"]
    assert (pool["models"], pool["name"]) == (["llm"], "llm-2")


def test_a_model_that_no_instance_serves_is_not_known():
    assert gateway_plan([host(instances=[instance("one", "a")])])["models"] == ["a"]


def test_an_ipv6_address_stands_in_brackets():
    (server,) = gateway_plan([host(address="fd00::1")])["pools"][0]["servers"]
    assert (server["address"], server["port"]) == ("[fd00::1]", 20080)


def test_what_a_gateway_knows_of_a_host_comes_from_the_hosts_own_variables_without_its_key():
    hostvars = {
        "gpu1": {
            "llm_gateway_address": "192.0.2.1",
            "llm_instances": [1],
            "llm_models": [2],
            "llm_api_key": KEY,
            "llm_tls_certificate": None,
        }
    }
    found = gateway_hosts(["gpu1"], hostvars)
    assert found == [
        {
            "name": "gpu1",
            "address": "192.0.2.1",
            "instances": [1],
            "models": [2],
            "certificate": "",
            "key_sha256": hashlib.sha256(KEY.encode()).hexdigest(),
        }
    ]


# ---- The files beside haproxy.cfg ----


def test_keys_of_clients_are_kept_as_their_sha256_only():
    clients = [{"name": "alice", "key": KEY, "requests_per_minute": 5}, {"name": "bob", "key": OTHER_KEY}]
    files = gateway_files(gateway_plan([host()]), clients, "servers-key")
    assert files["secret"] == {
        "clients.map": "".join(
            f"{hashlib.sha256(key.encode()).hexdigest().upper()} {name}\n"
            for key, name in ((KEY, "alice"), (OTHER_KEY, "bob"))
        ),
        "servers-key.map": "servers servers-key\n",
    }
    assert files["open"]["requests_per_minute.map"] == "alice 5\n"
    assert files["open"]["concurrent_requests.map"] == ""
    assert files["open"]["models.map"] == "a a\nb a\n"
    assert [one["id"] for one in json.loads(files["open"]["models.json"])["data"]] == ["a", "b"]


def signed(name, alternative=None):
    """The text of an authority's certificate, and of a server's that it has signed."""
    keys = make_key(), make_key()
    authority = x509.load_pem_x509_certificate(certify(keys[0], "authority").encode())
    names = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    one = x509.CertificateBuilder().subject_name(names).issuer_name(authority.subject)
    one = one.public_key(keys[1].public_key()).serial_number(1)
    one = one.not_valid_before(authority.not_valid_before_utc).not_valid_after(authority.not_valid_after_utc)
    if alternative:
        one = one.add_extension(x509.SubjectAlternativeName([x509.DNSName(alternative)]), critical=False)
    one = one.sign(keys[0], hashes.SHA256())
    return tuple(made.public_bytes(serialization.Encoding.PEM).decode() for made in (authority, one))


def test_a_self_signed_server_is_recognised_by_exactly_its_certificate():
    certificate = certify(make_key())
    found = server_authority(certificate + "\n" + certify(make_key()), "other authorities")
    assert found["ca"].strip() == certificate
    assert found["name"] == ""


def test_a_server_of_an_authority_is_recognised_by_authority_and_name():
    authority, certificate = signed("gpu1", "gpu1.example.com")
    assert server_authority(certificate + authority) == {"ca": authority, "name": "gpu1.example.com"}
    assert server_authority(certificate) == {"ca": "", "name": "gpu1.example.com"}
    assert server_authority(certificate, authority) == {
        "ca": f"{authority.strip()}\n",
        "name": "gpu1.example.com",
    }
    assert server_authority(signed("gpu1")[1])["name"] == "gpu1"


def test_servers_without_tls_have_no_authority():
    hosts = [host(), host("gpu2", certificate=certify(make_key()))]
    assert list(gateway_authorities(hosts)) == ["gpu2"]


# ---- Wrong input ----


def test_good_input_has_no_problem(problems):
    assert problems() == []
    assert problems(llm_gateway_stats_bind="[::1]:8404", llm_gateway_default_model="a") == []
    assert problems(llm_gateway_client_metrics_bind="192.0.2.5:3903") == []


TOO_SHORT = "it must have 32 to 256, so that nobody guesses it; make one with `openssl rand -hex 32`"
LIST = "give a list with at least one client (name, key)"


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([], f"llm_gateway_clients: is empty, so nobody could use the gateway; {LIST}"),
        ({"alice": KEY}, f"llm_gateway_clients: is a dictionary; {LIST}"),
        ([KEY], "llm_gateway_clients[0]: must be a dictionary (name, key), not a string"),
        ([{"name": "a"}], "llm_gateway_clients[0] (name a): key is missing; it must be given"),
        ([{"key": KEY}], "llm_gateway_clients[0]: name is missing; it must be given"),
        (
            [{"name": "a b", "key": KEY}],
            "llm_gateway_clients[0]: name must be 1 to 63 letters, digits, '-', '_' or '.', and begin"
            " with a letter"
            " or digit, because it stands in logs",
        ),
        (
            [{"name": "a", "key": "short"}],
            f"llm_gateway_clients[0] (name a): key has 5 characters; {TOO_SHORT}",
        ),
        (
            [{"name": "a", "key": KEY + "\n"}],
            "llm_gateway_clients[0] (name a): key has characters that a bearer token cannot have;"
            " letters, digits"
            " and . _ ~ + / - may be in it, and = at its end; make one with `openssl rand -hex 32`",
        ),
        (
            [{"name": "a", "key": 10**40}],
            "llm_gateway_clients[0] (name a): key is an integer; it must be a string in quotes; make one with"
            " `openssl rand -hex 32`",
        ),
        (
            [{"name": "a", "key": KEY}, {"name": "a", "key": OTHER_KEY}],
            "llm_gateway_clients[1] (name a): name a is already that of llm_gateway_clients[0]; give"
            " each its own",
        ),
        (
            [{"name": "a", "key": KEY}, {"name": "b", "key": KEY}],
            "llm_gateway_clients[1] (name b): key is also that of llm_gateway_clients[0] (name a); give"
            " each client"
            " its own; make one with `openssl rand -hex 32`",
        ),
        (
            [{"name": "a", "key": KEY, "request_per_minute": 3}],
            'llm_gateway_clients[0] (name a): "request_per_minute" is not a key here; did you mean'
            " requests_per_minute?",
        ),
        (
            [{"name": "a", "key": KEY, "concurrent_requests": 0}],
            "llm_gateway_clients[0] (name a): concurrent_requests is 0; it must be an integer from 1 to"
            " 1000000;"
            " left out, there is no limit",
        ),
    ],
)
def test_each_wrong_client_is_one_line_without_its_key(problems, clients, message):
    found = problems(llm_gateway_clients=clients)
    assert found == [message]
    assert KEY not in "".join(found)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_out_of_their_range_or_in_quotes_are_refused(problems, name):
    least, most, unit = NUMBERS[name]
    for value, shown in (
        (least - 1, least - 1),
        (most + 1, most + 1),
        ("1M", '"1M"'),
        (True, "true or false"),
    ):
        wanted = f"{name}: is {shown}; it must be an integer from {least} to {most} ({unit})"
        assert problems(**{name: value}) == [wanted]
    assert problems(**{name: least}) == problems(**{name: most}) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llm_gateway_port": "443"}, 'llm_gateway_port: is "443"; it must be an integer from 1 to 65535'),
        (
            {"llm_gateway_redirect_port": 70000},
            "llm_gateway_redirect_port: is 70000; it must be an integer from 1 to 65535; 0 turns it off",
        ),
        (
            {"llm_gateway_redirect_port": 80},
            "llm_gateway_redirect_port: 80 is also llm_gateway_port; take another port",
        ),
        (
            {"llm_gateway_stats_bind": "8404"},
            'llm_gateway_stats_bind: is "8404"; write ADDRESS:PORT, for example 127.0.0.1:8404, or "" to'
            " have none",
        ),
        (
            {"llm_gateway_stats_bind": "127.0.0.1:80"},
            "llm_gateway_stats_bind: port 80 is also llm_gateway_port; take another port",
        ),
        (
            {"llm_gateway_client_metrics_bind": "gw1:3903"},
            'llm_gateway_client_metrics_bind: is "gw1:3903"; write ADDRESS:PORT, for example 127.0.0.1:3903,'
            ' or "" to have none',
        ),
        (
            {"llm_gateway_stats_bind": "127.0.0.1:8404", "llm_gateway_client_metrics_bind": "[::1]:8404"},
            "llm_gateway_client_metrics_bind: port 8404 is also that of llm_gateway_stats_bind; take another"
            " port",
        ),
        (
            {"llm_gateway_bind_address": "gateway"},
            'llm_gateway_bind_address: is "gateway"; it must be an address of the gateway, or * for all'
            " of IPv4, or"
            " :: for all of both",
        ),
        (
            {"llm_gateway_paths": ["v1"]},
            'llm_gateway_paths: "v1" is not a path; write it like /v1/chat/completions',
        ),
        (
            {"llm_gateway_paths": ["/docs"]},
            "llm_gateway_paths: /docs is closed on purpose; take it out (it needs no key)",
        ),
        (
            {"llm_gateway_default_model": "aa"},
            'llm_gateway_default_model: "aa" is served by no instance; did you mean a? (served are: a,'
            ' b; "" answers'
            " requests without a model with 400)",
        ),
        (
            {"llm_gateway_default_model": "b"},
            "llm_gateway_default_model: gpu1:one would answer with a, because a server answers requests"
            " without a"
            " model with its first; put b first in the models of this instance",
        ),
        (
            {"llm_gateway_servers_key": "with space"},
            "llm_api_key: has characters that a bearer token cannot have; letters, digits and . _ ~ + /"
            " - may be in"
            " it, and = at its end",
        ),
        (
            {"facts": {"distribution": "Ubuntu", "distribution_version": "22.04"}},
            "operating system Ubuntu 22.04 has no HAProxy from 2.6 on that this is tested with; take a"
            " gateway with"
            " Debian 12/13, Ubuntu 24.04",
        ),
    ],
)
def test_each_wrong_setting_is_one_line(problems, changes, message):
    assert problems(**changes) == [message]


@pytest.mark.parametrize("version", ["12.11", "13"])
def test_supported_systems_are_no_problem(problems, version):
    assert problems(facts={"distribution": "Debian", "distribution_version": version}) == []


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        (
            [host(instances=[])],
            "llm_hosts: no host has an instance with a model, so the gateway would have no server; add a"
            " host",
        ),
        (
            [host(address="")],
            'llm_gateway_address of gpu1: is ""; it must be the address or name at which gateways reach'
            " this host",
        ),
        (
            [host(address="127.0.0.1")],
            "llm_gateway_address of gpu1: 127.0.0.1 is the gateway itself, not gpu1; give the address at"
            " which"
            " gateways reach it",
        ),
        (
            [host(), host("gpu2", key_sha256="other")],
            "llm_api_key: gpu1 and gpu2 have different ones, or one has none, but a gateway has one key"
            " for all"
            " servers; set the same for the group llm_hosts",
        ),
        (
            [host(key_sha256=hashlib.sha256(KEY.encode()).hexdigest())],
            "llm_gateway_clients[0] (name alice): key is also that of llm_api_key; give each client its"
            " own; make one"
            " with `openssl rand -hex 32`",
        ),
        (
            [host(models=["Llama 3"])],
            'llm_models of gpu1: alias "Llama 3" cannot be routed by; behind a gateway it must be 1 to'
            " 128 letters,"
            " digits or . _ : / @ + -, and begin with a letter or digit",
        ),
        (
            [
                host(models=["a"]),
                host("gpu2", models=["a"]) | {"models": [{"alias": "a", "file": "other.gguf"}]},
            ],
            'llm_models: alias a is "a.gguf" on gpu1, but "other.gguf" on gpu2 (file); clients would get'
            " either, so"
            " give one of them another alias",
        ),
        (
            [host(certificate="-----BEGIN CERTIFICATE-----")],
            "llm_tls_certificate of gpu1: cannot be read as PEM text; copy the whole file",
        ),
        (
            [host(certificate=signed("")[1])],
            "llm_tls_certificate of gpu1: has neither a DNS name nor a common name, by which the gateway"
            " could tell it"
            " from others of its authority; have one made with a DNS name",
        ),
    ],
)
def test_each_wrong_host_is_one_line(problems, hosts, message):
    assert problems(hosts) == [message]


def test_a_gateway_on_an_llm_host_reaches_its_own_instances_and_needs_a_port_of_its_own(problems):
    assert problems([host(address="127.0.0.1")], this_host="gpu1") == []
    assert problems(this_host="gpu1", llm_gateway_port=20080) == [
        "llm_gateway_port: 20080 is that of instance one on this host; take another port"
    ]


# ---- haproxy.cfg ----

PLAYBOOK = """
- hosts: gw1
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{{{ ansible_playbook_python }}}}"
    ansible_facts: {{}}
  tasks:
    - name: Role's defaults are known, under what the inventory says
      ansible.builtin.include_role: {{name: llm_gateway, tasks_from: check, public: true}}
    - name: Files are rendered
      ansible.builtin.include_tasks: {tasks}
      vars: {task_vars}
"""
TASKS = """
- ansible.builtin.template:
    src: {role}/templates/haproxy.cfg.j2
    dest: {out}/haproxy.cfg
    mode: "0600"
- ansible.builtin.copy:
    content: "{{{{ [__llm_gateway_files, __llm_gateway_authorities] | to_json }}}}"
    dest: "{out}/files.json"
    mode: "0600"
"""


@pytest.fixture
def render(tmp_path, run_playbook):
    """Returns a function: variables of hosts, variables of the gateway -> haproxy.cfg."""

    def rendered(hosts, **variables) -> str:
        inventory = tmp_path / "inventory"
        shutil.rmtree(inventory, ignore_errors=True)
        (inventory / "group_vars").mkdir(parents=True)
        for group in ("llm_hosts", "gateways"):
            (inventory / f"group_vars/{group}.yml").symlink_to(PROJECT / f"group_vars/{group}.yml")
        groups = {"llm_hosts": {"hosts": hosts}, "gateways": {"hosts": {"gw1": variables}}}
        (inventory / "hosts.yml").write_text(yaml.safe_dump(groups), encoding="utf-8")
        (task,) = yaml.safe_load((ROLE / "tasks/configure.yml").read_text(encoding="utf-8"))
        task_vars = json.dumps(task["vars"] | {"__llm_gateway_wanted": "{{ llm_gateway_hosts }}"})
        task_vars = task_vars.replace("'haproxy.cfg.j2'", f"'{ROLE}/templates/haproxy.cfg.j2'")
        (tmp_path / "tasks.yml").write_text(TASKS.format(role=ROLE, out=tmp_path), encoding="utf-8")
        run_playbook(PLAYBOOK.format(tasks=tmp_path / "tasks.yml", task_vars=task_vars), str(inventory))
        config = (tmp_path / "haproxy.cfg").read_text(encoding="utf-8")
        # Where HAProxy is there, it has the last word; what it does with it is tested on a host.
        if haproxy := shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin"):
            files, authorities = json.loads((tmp_path / "files.json").read_text(encoding="utf-8"))
            pair = (variables.get(f"llm_gateway_tls_{name}", "") for name in ("certificate", "private_key"))
            content = files["open"] | files["secret"] | {"gateway.pem": "\n".join(pair)}
            content |= {f"ca-{name}.crt": authority["ca"] for name, authority in authorities.items()}
            for name, text in content.items():
                (tmp_path / name).write_text(text, encoding="utf-8")
            here = tmp_path / "here.cfg"
            here.write_text(config.replace("/etc/haproxy/llm", str(tmp_path)), encoding="utf-8")
            checked = subprocess.run([haproxy, "-c", "-f", here], capture_output=True, text=True, check=False)
            assert checked.returncode == 0, checked.stderr
        return config

    return rendered


CLIENTS = [{"name": "alice", "key": KEY, "requests_per_minute": 60}, {"name": "bob", "key": OTHER_KEY}]


def test_haproxy_cfg_of_two_hosts_with_the_reference_models_is_the_golden_one(render):
    dedicated = {"llm_instances": [{"name": "vicuna", "port": 20080, "gpus": [0], "models": ["vicuna-13b"]}]}
    hosts = {"gpu1": {"ansible_host": "192.0.2.11"}, "gpu2": {"ansible_host": "192.0.2.12"} | dedicated}
    config = render(hosts, llm_gateway_clients=CLIENTS, llm_gateway_stats_bind="127.0.0.1:8404")
    assert config == (GOLDEN / "haproxy.cfg").read_text(encoding="utf-8")


def test_no_key_reaches_haproxy_cfg_and_another_key_is_another_configuration(render):
    hosts = {"gpu1": {"ansible_host": "192.0.2.11", "llm_api_key": "of-the-servers"}}
    both = render(hosts, llm_gateway_clients=CLIENTS)
    assert not [secret for secret in (KEY, OTHER_KEY, "of-the-servers") if secret in both]
    assert "http-request set-header Authorization" in both
    renewed = [CLIENTS[0], CLIENTS[1] | {"key": "n" * 40}]
    assert render(hosts, llm_gateway_clients=renewed) != both


def test_with_certificates_https_is_spoken_on_both_sides(render):
    key = make_key()
    authority, certificate = signed("gpu1", "gpu1.example.com")
    pair = {
        "llm_gateway_tls_certificate": certify(key, ends=40000),
        "llm_gateway_tls_private_key": text_of(key),
    }
    config = render(
        {"gpu1": {"ansible_host": "192.0.2.11", "llm_tls_certificate": certificate + authority}},
        llm_gateway_clients=CLIENTS,
        **pair,
    )
    lines = [line.strip() for line in config.splitlines()]
    assert "bind *:443 proto h1 ssl crt /etc/haproxy/llm/gateway.pem alpn http/1.1" in lines
    assert "bind *:80 proto h1" in lines
    assert "option tcp-check" in lines
    assert (
        "server gpu1:llamacpp 192.0.2.11:20080 ssl verify required ca-file /etc/haproxy/llm/ca-gpu1.crt"
        " verifyhost gpu1.example.com sni str(gpu1.example.com) check port 20080 maxconn 1"
    ) in lines
    assert pair["llm_gateway_tls_private_key"].splitlines()[1] not in config


def test_a_default_model_takes_the_place_of_the_refusal(render):
    assert "model_missing" in (GOLDEN / "haproxy.cfg").read_text(encoding="utf-8")
    hosts = {"gpu1": {"ansible_host": "192.0.2.11"}}
    config = render(hosts, llm_gateway_clients=CLIENTS, llm_gateway_default_model="vicuna-13b")
    assert "model_missing" not in config
    assert "http-request set-var(txn.model) str(vicuna-13b) if !{ var(txn.model) -m found }" in config
