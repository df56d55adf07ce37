"""What changes and reboots do to instances with GPUs."""

from __future__ import annotations

import subprocess

from conftest import HOST, UUIDS
from testing import answers, wait_until


def test_a_second_run_changes_nothing_and_restarts_nothing(play, untouched):
    run = play()
    assert run.rc == 0, run.output
    assert run.count("changed") == 0, run.output


def test_a_server_that_silently_falls_back_to_the_cpu_fails_the_play(play, deployed, machine):
    machine(lambda state: state.update(offload=False))
    run = play(llm_server_settings={"interrupt_requests": True})
    assert run.rc != 0, run.output
    assert "llamacpp is serving from the CPU" in run.error
    assert "docs/runbooks/" in run.error


def test_a_server_whose_gpu_does_not_answer_is_not_started_until_it_does(host, clients, machine):
    machine(lambda state: state.update(smi_failure={"rc": 255, "message": "GPU is lost"}))
    assert host.run("systemctl restart second").rc != 0
    assert not answers(clients["second"])
    assert "engine-info: no GPU" in host.check_output("journalctl -u second -n 60 -o cat --no-pager")
    assert answers(clients["llamacpp"])
    host.check_output("standin-gpu reset")
    wait_until(lambda: answers(clients["second"]), "an answer")


def test_the_other_gpu_mode_is_dockers_own_option(play, untouched):
    # Its runtime is not run here: no stand-in can do what NVIDIA's does.
    run = play("site.yml", "--check", "--diff", llamacpp_server_gpu_mode="gpus")
    assert run.rc == 0, run.output
    lines = [line.strip(" \\") for line in run.output.splitlines()]
    for instance, gpu in {"llamacpp": "0", "second": UUIDS["second"]}.items():
        assert f"-  --device=nvidia.com/gpu={gpu}" in lines, f"{instance}: {run.output}"
        assert f"+  '--gpus=\"device={gpu}\"'" in lines, f"{instance}: {run.output}"


def test_an_instance_moves_to_another_gpu_and_back(host, play, deployed, with_gpus):
    run = play(llm_instances=with_gpus([1], [0]))
    assert run.rc == 0, run.output
    assert UUIDS["second"] in host.check_output("docker exec llamacpp nvidia-smi -L")
    assert UUIDS["llamacpp"] in host.check_output("docker exec second nvidia-smi -L")


def test_a_reboot_of_the_host_brings_both_back_on_their_gpus(host, clients):
    # The CDI specification is in /run and has to be made again before the containers start.
    subprocess.run(["docker", "restart", HOST], check=True, capture_output=True, timeout=300)
    for name, client in clients.items():
        wait_until(lambda client=client: answers(client), f"an answer of {name}", seconds=300)
        assert UUIDS[name] in host.check_output(f"docker exec {name} nvidia-smi -L")


def test_after_all_this_the_playbook_finds_nothing_to_do(play):
    run = play()
    assert run.rc == 0, run.output
    assert run.count("changed") == 0, run.output
