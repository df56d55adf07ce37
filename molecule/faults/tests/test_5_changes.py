"""Changes that go well: only what changed is restarted, and the way back is one command."""

from __future__ import annotations

import json
import time

import openai
import pytest
from conftest import SECOND_PORT, STATE, started
from testing import ask, openai_client


def test_a_model_that_no_instance_uses_restarts_nothing(deploy, untouched, catalogue):
    instances = [{"name": "llamacpp", "port": 20080, "gpus": [], "models": ["smollm2", "gemma3"]}]
    run = deploy(llm_models=[*catalogue, {**catalogue[0], "alias": "spare"}], llm_instances=instances)
    assert run.rc == 0, run.output
    assert run.count("changed") == 0, run.output


def test_of_two_instances_only_the_changed_one_is_restarted(deploy, container):
    first = {"name": "llamacpp", "port": 20080, "gpus": []}
    second = {"name": "second", "port": 20081, "gpus": []}
    run = deploy(llm_instances=[first, second | {"models": ["gemma3"]}])
    assert run.rc == 0, run.output
    before = started(container, "llamacpp"), started(container, "second")
    changed = {"llm_instances": [first, second | {"models": ["smollm2"]}]}
    told = deploy("--check", "--diff", **changed)
    assert "second would be restarted" in told.output
    assert "llamacpp would be" not in told.output
    assert '-      "model_alias": "gemma3"' in told.output
    assert (started(container, "llamacpp"), started(container, "second")) == before
    run = deploy(**changed)
    assert run.rc == 0, run.output
    assert started(container, "llamacpp") == before[0]
    assert started(container, "second") > before[1]
    assert "Paris" in ask(openai_client(SECOND_PORT), "smollm2").choices[0].message.content
    back = deploy()
    assert back.rc == 0, back.output
    with pytest.raises(openai.APIConnectionError):
        openai_client(SECOND_PORT).models.list()


def test_another_image_costs_the_requests_of_one_restart(deploy, host, trickle, container, figures):
    real = container()["Config"]["Image"]
    host.check_output("docker tag %s llamacpp:next", real)
    begun = time.monotonic()
    run = deploy("-v", llamacpp_server_image="llamacpp:next")
    assert run.rc == 0, run.output
    assert container()["Config"]["Image"] == "llamacpp:next"
    down = float(run.output.split("down_s:")[1].split()[0])
    sent, lost = len(trickle.sent(since=begun)), trickle.lost(since=begun)
    assert sent
    # One that was being answered, and those that came while nothing listened.
    assert not lost or lost[-1].sent - lost[0].sent <= down + 1, lost
    figures.append(
        f"upgrade under load: down for {down} s, {len(lost)} of {sent} requests lost, all in the swap"
    )


def test_rollback_goes_back_to_the_release_before(play, deploy, host, container):
    before = json.loads(host.file(f"{STATE}/good/release.json").content_string)
    assert before["image"] == "llamacpp:next"
    listed = play("rollback.yml")
    assert listed.rc == 0, listed.output
    assert listed.count("changed") == 0
    assert before["id"] in listed.output
    run = play("rollback.yml", "-e", "to=previous")
    assert run.rc == 0, run.output
    assert container()["Config"]["Image"] != "llamacpp:next"
    host.check_output("docker rmi llamacpp:next")
    gone = play("rollback.yml", "-e", f"to={before['id']}")
    assert gone.rc != 0
    assert "llamacpp:next" in gone.error and "nothing was touched" in gone.error
    again = deploy()
    assert again.rc == 0, again.output
    assert again.count("changed") == 0, again.output


@pytest.fixture
def late(host):
    """Variables that give what Ansible runs on the host a clock that was set back by more than a year."""
    host.check_output("apt-get update -qq && apt-get install --yes -qq --no-install-recommends faketime")
    wrapper = '#!/bin/sh\nexec env NO_FAKE_STAT=1 faketime --exclude-monotonic -f -400d python3 "$@"\n'
    host.check_output("printf %%s %s > /usr/local/bin/late && chmod +x /usr/local/bin/late", wrapper)
    yield {"ansible_python_interpreter": "/usr/local/bin/late"}
    host.check_output("rm /usr/local/bin/late && apt-get purge --yes -qq --autoremove faketime")


def test_survives_a_clock_that_jumps_back(play, deploy, host, late):
    def good() -> str:
        return host.check_output(f"basename $(readlink {STATE}/good)")

    first = good()
    proved = []
    for value in (True, False):
        run = deploy(
            llm_server_settings={"interrupt_requests": value}, llamacpp_server_keep_releases=2, **late
        )
        assert run.rc == 0, run.output
        proved.append(good())
    assert proved[-1] in play("rollback.yml").output.split("<- good")[0].splitlines()[-1]
    assert len({first, *proved}) == 3
    clock = json.loads(host.file(f"{STATE}/good/proved.json").content_string)["at"]
    assert clock < json.loads(host.file(f"{STATE}/good/release.json").content_string)["created"]
    kept = set(host.check_output(f"ls {STATE}/releases").split())
    assert set(proved) <= kept
    back = play("rollback.yml", "-e", "to=previous")
    assert back.rc == 0, back.output
    assert good() == proved[0], "by order of proof, not by clock"
    run = deploy()
    assert run.rc == 0, run.output


def test_another_name_takes_over_the_port(deploy, host):
    for name, before in (("renamed", "llamacpp"), ("llamacpp", "renamed")):
        run = deploy(llm_instances=[{"name": name, "port": 20080, "gpus": []}])
        assert run.rc == 0, run.output
        assert host.service(name).is_running
        assert not host.file(f"/etc/systemd/system/{before}.service").exists
        assert not host.file(f"/var/lib/llamacpp/{before}").exists
