"""The run ends at any moment, or the host does: the service answers, and the next run finishes the work."""

from __future__ import annotations

import subprocess

import pytest
from conftest import HOST, STATE
from testing import answers, wait_until


def settings(number: int) -> dict:
    """Variables of a release that is none of the others."""
    return {"llm_server_settings": {"interrupt_requests": False}, "llamacpp_server_stop_timeout": 20 + number}


# When the run is killed: a command that succeeds on the host from that moment on.
MOMENTS = {
    "before anything is changed": "true",
    "while the release is made": f"test $(ls {STATE}/releases | wc -l) -gt %d",
    "while the files are swapped": f"test -e {STATE}/trying",
    "while the old server stops": f"test -e {STATE}/trying && ! systemctl is-active llamacpp",
    "while the new server starts": "systemctl show --property=SubState llamacpp | grep start-post",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_survives_the_death_of_ansible(begin, deploy, host, client, moment):
    variables = settings(list(MOMENTS).index(moment))
    releases = len(host.check_output(f"ls {STATE}/releases").split())
    has_come = MOMENTS[moment].replace("%d", str(releases))
    run = begin(**variables)
    wait_until(lambda: host.run(has_come).rc == 0 or not run.runs, moment)
    run.kill()
    wait_until(lambda: answers(client), "an answer")
    again = deploy(**variables)
    assert again.rc == 0, again.output
    assert (
        f"--stop-timeout={variables['llamacpp_server_stop_timeout']}"
        in host.file("/etc/systemd/system/llamacpp.service").content_string
    )
    assert not host.file(f"{STATE}/trying").exists


def test_survives_the_death_of_the_change_itself(begin, deploy, host, client):
    variables = settings(10)
    run = begin(**variables)
    wait_until(lambda: host.file(f"{STATE}/trying").exists or not run.runs, "the swap")
    host.check_output(f"kill -9 $(grep --only-matching '[0-9]*' {STATE}/.lock | head -n 1)")
    assert run.finish().rc != 0
    again = deploy(**variables)
    assert again.rc == 0, again.output
    assert not host.file(f"{STATE}/trying").exists


def test_survives_a_reboot_in_the_middle_of_a_change(begin, deploy, host, client):
    variables = settings(11)
    run = begin(**variables)
    wait_until(lambda: host.file(f"{STATE}/trying").exists or not run.runs, "the swap")
    subprocess.run(["docker", "restart", "--time", "0", HOST], check=True, capture_output=True, timeout=300)
    assert run.finish().rc != 0
    wait_until(lambda: answers(client), "an answer", seconds=300)
    again = deploy(**variables)
    assert again.rc == 0, again.output
    assert not host.file(f"{STATE}/trying").exists


def test_after_all_this_the_inventory_is_deployed_and_nothing_is_left_to_do(deploy):
    run = deploy()
    assert run.rc == 0, run.output
    again = deploy()
    assert again.count("changed") == 0, again.output
