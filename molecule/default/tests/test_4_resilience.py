"""Stops and restarts; what dies is in the scenario faults. Runs last, because it reboots the host."""

from __future__ import annotations

import subprocess

from conftest import HOST
from testing import answers, wait_until


def test_a_restart_of_docker_brings_the_service_back(host, client):
    host.check_output("systemctl restart docker")
    wait_until(lambda: answers(client), "an answer")
    wait_until(lambda: host.service("llamacpp").is_running, "an active unit")


def test_start_returns_when_the_api_answers(host, client):
    host.check_output("systemctl restart llamacpp")
    assert answers(client)


def test_a_stop_is_a_stop(host, client):
    host.check_output("systemctl stop llamacpp")
    assert not answers(client)
    assert host.check_output("systemctl show -p Result --value llamacpp") == "success"
    assert host.check_output("docker ps --all --quiet --filter name=llamacpp") == ""
    host.check_output("systemctl start llamacpp")


def test_the_first_switch_after_a_start_does_not_wait_for_the_disk(host, client):
    second = "/home/llm/llamacpp/model/gemma-3-270m-q4_k_m.gguf"
    forget = (
        "import os, sys; os.posix_fadvise(os.open(sys.argv[1], os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)"
    )
    cached = f"fincore --bytes --noheadings --output res {second}"
    host.check_output("systemctl stop llamacpp")
    host.check_output("sync %s && python3 -c %s %s", second, forget, second)
    assert int(host.check_output(cached)) == 0
    host.check_output("systemctl start llamacpp")
    wait_until(lambda: int(host.check_output(cached)) >= host.file(second).size, "the second model in memory")


def test_a_reboot_of_the_host_brings_the_service_back(host, client):
    booted = host.check_output("cat /proc/1/stat").split()[21]
    subprocess.run(["docker", "restart", HOST], check=True, capture_output=True, timeout=300)
    assert host.check_output("cat /proc/1/stat").split()[21] != booted
    wait_until(lambda: answers(client), "an answer", seconds=300)
    wait_until(lambda: host.service("llamacpp").is_running, "an active unit")


def test_after_all_this_the_playbook_finds_nothing_to_do(play):
    run = play()
    assert run.rc == 0, run.output
    assert run.count("changed") == 0, run.output
