"""Under load an update loses no request, a broken one stops at the first host, a crash costs one answer."""

from __future__ import annotations

import json

import pytest
from conftest import access_log, haproxy, servers
from testing import ask, wait_until

GATEWAY_ONLY = ("site.yml", "--tags=gateway", "--limit=gateways")
CHANGED = {"embedding": True, "logits_all": False, "use_mlock": False, "n_batch": 256}
BUSY = ("smollm2", "smollm2", "gemma3", "gemma3")


def container(host, name: str = "llamacpp") -> str:
    """What tells one start of an instance from another."""
    return host.check_output("docker inspect --format '{{.Id}} {{.State.StartedAt}}' %s", name)


def settle(gateway) -> None:
    """Waits until the gateway finds every server up."""

    def all_up() -> bool:
        return all(row["status"] == "UP" for row in servers(gateway).values())

    wait_until(all_up, "all servers are up", seconds=60)


def test_an_update_of_every_host_under_load_loses_no_request(play, load, host, other_host, figures):
    before = [container(other_host), container(host), container(host, "only")]
    asking = load(*BUSY)
    run = play(llm_model_defaults=CHANGED)
    wait_until(lambda: asking.sent >= 200, "two hundred requests are answered", seconds=300)
    asking.stop()
    figures.append(f"rolling update of two hosts: {asking.sent} sent, {len(asking.problems)} failed")
    assert run.rc == 0, run.output
    assert not asking.problems
    after = [container(other_host), container(host), container(host, "only")]
    assert not set(before) & set(after), "every server was changed"
    for one in (host, other_host):
        config = json.loads(one.file("/home/llm/llamacpp/config.json").content)
        assert {model["n_batch"] for model in config["models"]} == {256}
    assert run.output.count("PLAY [LLM servers]") == 2, "one host after the other"


def test_a_change_that_fails_on_the_first_host_touches_no_other_one(
    play, load, services, other_host, figures
):
    untouched = services()
    asking = load(*BUSY)
    # The container ends at once.
    run = play(llamacpp_server_docker_options=["--entrypoint=/bin/false"])
    asking.stop()
    figures.append(f"update that fails on the first host: {asking.sent} sent, {len(asking.problems)} failed")
    assert run.rc != 0
    assert run.count("failed", "llm-fleet-a") == 1
    assert "What served before serves again" in run.error
    assert services() == untouched, "the second host serves what it served"
    assert not asking.problems
    assert other_host.service("llamacpp").is_running


def test_a_server_that_crashes_costs_only_what_it_was_answering_and_comes_back(load, host, gateway, figures):
    settle(gateway)
    asking = load(*BUSY)
    wait_until(lambda: asking.sent >= 10, "clients ask")
    host.check_output("docker kill only")
    down = "smollm2/llm-fleet-b:only"
    wait_until(lambda: servers(gateway)[down]["status"].startswith("DOWN"), "the gateway sees it", seconds=10)
    wait_until(lambda: servers(gateway)[down]["status"] == "UP", "it is back", seconds=90)
    sent = asking.sent
    wait_until(lambda: asking.sent >= sent + 10, "clients are answered")
    asking.stop()
    figures.append(f"crash of a server: {asking.sent} sent, {len(asking.problems)} failed")
    assert len(asking.problems) <= 1, "only what it was answering is lost"


def test_a_drained_server_is_asked_nothing_until_the_next_play_puts_it_back_and_maintenance_stays(
    play, gateway, client
):
    settle(gateway)
    only, drained = "smollm2/llm-fleet-b:only", "smollm2/llm-fleet-a:llamacpp"
    # As a killed play and an operator leave them.
    haproxy(gateway, f"set server {drained} weight 0%")
    haproxy(gateway, f"set server {only} state maint")
    for _ in range(4):
        assert ask(client, "smollm2", max_tokens=1).model == "smollm2"
    answered = {line["server"] for line in access_log(gateway)[-4:]}
    assert answered == {"smollm2/llm-fleet-b:llamacpp"}
    run = play(*GATEWAY_ONLY)
    assert run.count("changed", "llm-gateway") == 1
    found = servers(gateway)
    assert (found[drained]["status"], found[drained]["weight"]) == ("UP", "1")
    assert found[only]["status"] == "MAINT"
    haproxy(gateway, f"set server {only} state ready")
    settle(gateway)


def test_a_configuration_that_haproxy_does_not_take_leaves_the_old_one_serving(play, gateway, client):
    before = gateway.file("/etc/haproxy/haproxy.cfg").content
    run = play(*GATEWAY_ONLY, llm_gateway_tls_ciphers="NO-SUCH-CIPHER")
    assert run.rc != 0
    assert "NO-SUCH-CIPHER" in run.output or "cipher" in run.output
    assert gateway.file("/etc/haproxy/haproxy.cfg").content == before
    assert ask(client, "smollm2", max_tokens=1).model == "smollm2"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"llm_gateway_clients": []}, ["llm_gateway_clients", "give a list with at least one client"]),
        ({"llm_gateway_default_model": "gema3"}, ["llm_gateway_default_model", "did you mean gemma3?"]),
    ],
)
def test_wrong_input_is_refused_before_any_host_is_touched(play, variables, words):
    run = play(**variables)
    assert run.rc != 0
    for word in words:
        assert word in run.output
    assert run.count("failed", "llm-gateway") == 1
    assert "llm-fleet-a" not in run.output, "no other host was even asked"
