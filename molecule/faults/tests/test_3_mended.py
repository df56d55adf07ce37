"""What was done to a host by hand or by accident: the next run mends it, and restarts only what must be."""

from __future__ import annotations

import pytest
from conftest import HOME
from testing import answers, wait_until

UNIT = "/etc/systemd/system/llamacpp.service"
BY_HAND = {
    "config.json edited into nonsense": f"echo '{{\"models\": [' > {HOME}/config.json",
    "the unit edited": f"sed -i s/^Restart=always/Restart=no/ {UNIT} && systemctl daemon-reload",
    "the unit disabled": "systemctl disable llamacpp",
}
REMOVED = {
    "config.json removed": f"rm {HOME}/config.json",
    "the unit removed": f"rm {UNIT} && systemctl daemon-reload",
}


@pytest.fixture(scope="module")
def mend(deploy, host):
    """Returns a function: faults -> the run that mends them all, and the state before and after."""

    def state() -> dict[str, object]:
        return {
            "config.json": host.file(f"{HOME}/config.json").content,
            "unit": host.file(UNIT).content,
            "start": host.check_output("docker inspect --format '{{.State.StartedAt}}' llamacpp"),
        }

    def mend(faults: dict[str, str]) -> tuple:
        before = state()
        for command in faults.values():
            host.check_output(command)
        return deploy(), before, state()

    return mend


@pytest.fixture(scope="module")
def edited(mend):
    """Made good in one run."""
    return mend(BY_HAND)


@pytest.fixture(scope="module")
def removed(mend):
    """Made good in one run."""
    return mend(REMOVED)


def was_mended(host, run, before: dict, after: dict) -> None:
    """Asserts that everything is as before, and that the server has run all the time."""
    assert run.rc == 0, run.output
    assert after == before, "not mended, or restarted without need"
    assert host.service("llamacpp").is_enabled


@pytest.mark.parametrize("fault", BY_HAND)
def test_survives(host, edited, fault):
    was_mended(host, *edited)


@pytest.mark.parametrize("fault", REMOVED)
def test_survives_what_is_gone(host, removed, fault):
    was_mended(host, *removed)


def test_survives_a_stop_by_hand(deploy, host):
    host.check_output("systemctl stop llamacpp")
    run = deploy()
    assert run.rc == 0, run.output
    assert host.service("llamacpp").is_running


def test_survives_a_stopped_docker(play, host):
    host.check_output("systemctl stop docker.socket docker")
    run = play()
    assert run.rc == 0, run.output


def test_survives_a_killed_docker(play, host):
    # The run begins while Docker and the server come back by themselves, and meets them halfway.
    host.check_output("systemctl kill --signal=SIGKILL docker")
    run = play()
    assert run.rc == 0, run.output


def test_survives_the_end_that_the_kernel_makes_of_a_process_without_memory(host, container, client):
    # SIGKILL, as of the OOM killer.
    before = container()
    host.check_output(f"kill -9 {before['State']['Pid']}")
    wait_until(
        lambda: host.run("docker inspect -f '{{.Id}}' llamacpp").stdout.strip() not in ("", before["Id"]),
        "another container",
    )
    wait_until(lambda: answers(client), "an answer")
