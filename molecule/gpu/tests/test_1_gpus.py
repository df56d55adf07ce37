"""What each instance gets of the host's GPUs, as seen by clients, inside the containers and on the host."""

from __future__ import annotations

import pytest
from conftest import PORTS, UUIDS
from testing import ask

INDEXES = {"llamacpp": 0, "second": 1}


def nvidia_smi(host, arguments: str, name: str = "") -> list[str]:
    """The lines that nvidia-smi prints on the host, or in an instance's container."""
    inside = f"docker exec {name} " if name else ""
    return host.check_output(f"{inside}nvidia-smi {arguments}").splitlines()


def test_the_first_instance_knows_the_capital_of_france(clients):
    assert "Paris" in ask(clients["llamacpp"], "smollm2").choices[0].message.content


def test_the_second_instance_answers_with_its_own_model(clients):
    # A base model: that it answers is promised, not what it says.
    assert ask(clients["second"], "gemma3").choices[0].message.content.strip()
    assert [model.id for model in clients["second"].models.list()] == ["gemma3"]


def test_the_smoke_test_keeps_all_promises_on_both(play):
    smoke = play("smoke.yml")
    assert smoke.rc == 0, smoke.output
    assert "llamacpp · port 20080" in smoke.output and "second · port 20081" in smoke.output


@pytest.mark.parametrize("name", PORTS)
def test_a_container_lists_exactly_its_gpu(host, name):
    assert nvidia_smi(host, "-L", name) == [
        f"GPU {INDEXES[name]}: NVIDIA L40S (UUID: {UUIDS[name]})",
    ]


@pytest.mark.parametrize(("name", "own", "other"), [("llamacpp", 0, 1), ("second", 1, 0)])
def test_a_container_has_the_devices_of_its_gpu_alone(host, name, own, other):
    nodes = host.check_output(f"docker exec {name} sh -c 'ls -d /dev/nvidia*'").split()
    assert f"/dev/nvidia{own}" in nodes
    assert f"/dev/nvidia{other}" not in nodes
    # Of its first process: what is given with a device is not handed on to `docker exec`.
    environment = host.check_output(f"docker exec {name} cat /proc/1/environ").split("\0")
    assert [entry for entry in environment if entry.startswith("STANDIN_GPU_")] == [
        f"STANDIN_GPU_{own}={UUIDS[name]}"
    ]


def test_a_container_without_a_gpu_cannot_open_one(host):
    # The node is made inside, so that the kernel's refusal is seen and not that there is none.
    numbers = host.check_output("stat -c '%Hr %Lr' /dev/nvidia0")
    refused = host.run(
        "docker run --rm --pull=never --network=none --user=0 --cap-add=MKNOD llamacpp:latest "
        f"sh -c 'mknod -m 666 /dev/nvidia0 c {numbers} && head -c0 /dev/nvidia0'"
    )
    assert refused.rc != 0
    assert "Operation not permitted" in refused.stderr


@pytest.mark.parametrize("name", PORTS)
def test_the_host_sees_the_server_on_its_gpu_and_on_no_other(host, container, name):
    on_gpus = nvidia_smi(host, "--query-compute-apps=gpu_uuid,pid --format=csv,noheader")
    pid = container(name)["State"]["Pid"]
    assert [line.split(", ")[0] for line in on_gpus if line.endswith(f", {pid}")] == [UUIDS[name]]


@pytest.mark.parametrize("name", PORTS)
def test_a_daemon_reload_does_not_take_the_gpu_from_a_running_container(host, container, name):
    before = container(name)
    host.check_output("systemctl daemon-reload")
    assert nvidia_smi(host, "-L", name) == [
        f"GPU {INDEXES[name]}: NVIDIA L40S (UUID: {UUIDS[name]})",
    ]
    host.check_output(f"docker exec {name} head -c0 /dev/nvidia{INDEXES[name]}")
    assert container(name)["State"]["StartedAt"] == before["State"]["StartedAt"]
