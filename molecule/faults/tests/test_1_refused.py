"""Faults that are found before the swap: the running server is not touched, and no request is lost."""

from __future__ import annotations

import pytest
from conftest import HOME, STATE

NEW = {"llm_server_settings": {"interrupt_requests": True}}


SETTINGS = {
    "unknown setting": ({"n_ctxx": 4096}, ["n_ctxx", "n_ctx"]),
    "wrong type": ({"n_ctx": "many"}, ["n_ctx", "many", "integer"]),
    "unknown chat format": ({"chat_format": "chatmll"}, ["chatmll", "chatml"]),
}


@pytest.fixture(scope="module")
def with_wrong_settings(deploy, services):
    """All of them in one run, after which the service is what it was."""
    before = services()
    run = deploy(
        llm_model_defaults={name: value for wrong, _ in SETTINGS.values() for name, value in wrong.items()}
    )
    assert services() == before
    return run


@pytest.mark.parametrize("case", SETTINGS)
def test_refuses_a_setting(with_wrong_settings, case):
    run = with_wrong_settings
    assert run.rc != 0
    assert run.count("changed") == 0
    assert [line for line in run.error.splitlines() if all(word in line for word in SETTINGS[case][1])]


def test_refuses_a_model_whose_file_is_missing(deploy, host, untouched, catalogue):
    # The store is not looked at here: the engine's own check finds it.
    gone = {**catalogue[0], "alias": "gone", "file": "gone.gguf"}
    run = deploy(llm_models=[*catalogue, gone])
    assert run.rc != 0
    assert "gone.gguf" in run.error


def test_refuses_a_masked_unit(deploy, host, untouched):
    unit = host.file("/etc/systemd/system/llamacpp.service").content_string
    host.check_output("mv /etc/systemd/system/llamacpp.service /root/ && systemctl mask llamacpp")
    try:
        run = deploy(**NEW)
    finally:
        host.check_output("systemctl unmask llamacpp && mv /root/llamacpp.service /etc/systemd/system/")
        host.check_output("systemctl daemon-reload")
    assert run.rc != 0
    assert "systemctl unmask llamacpp" in run.error
    assert host.file("/etc/systemd/system/llamacpp.service").content_string == unit


def test_refuses_to_begin_on_a_full_disk(deploy, host, untouched):
    host.check_output("mkdir -p /mnt/full && mount -t tmpfs -o size=64k tmpfs /mnt/full")
    host.run("cat /dev/zero >/mnt/full/zeros")
    try:
        run = deploy(llamacpp_server_state_dir="/mnt/full/state", **NEW)
    finally:
        host.check_output("umount /mnt/full && rmdir /mnt/full")
    assert run.rc != 0
    assert "No space left on device" in run.output


def test_refuses_to_swap_on_a_full_disk(deploy, host, untouched):
    # All files go to their places or none: the one of the API key finds no room, after the others have.
    host.check_output("mkdir -p /etc/llamacpp && mount -t tmpfs -o size=4k,mode=0700 tmpfs /etc/llamacpp")
    host.run("cat /dev/zero >/etc/llamacpp/zeros")
    try:
        run = deploy(llm_api_key="no-room-for-this", **NEW)
    finally:
        host.check_output("umount /etc/llamacpp")
    assert run.rc != 0
    assert "No space left on device" in run.error
    assert "was not restarted and goes on serving" in run.error
    assert not host.run("ls /etc/systemd/system/*.new /home/llm/llamacpp/*.new").stdout


def test_refuses_to_swap_on_a_read_only_disk(deploy, host, untouched):
    host.check_output(f"mount --bind {HOME} {HOME} && mount -o remount,bind,ro {HOME}")
    try:
        run = deploy(**NEW)
    finally:
        host.check_output(f"umount {HOME}")
    assert run.rc != 0
    assert "Read-only file system" in run.output


def test_refuses_to_work_without_dockers_socket(play, host, untouched):
    host.check_output("mv /run/docker.sock /run/docker.sock.away")
    try:
        run = play(**NEW)
    finally:
        host.check_output("mv /run/docker.sock.away /run/docker.sock")
    assert run.rc != 0
    assert "docker" in run.error.lower()


def test_refuses_a_second_run_at_the_same_time(deploy, host, untouched):
    # What another run has while it changes the instance.
    host.check_output(f"systemd-run --unit=other-run flock {STATE}/.lock sleep 300")
    try:
        run = deploy(**NEW)
    finally:
        host.check_output("systemctl stop other-run")
    assert run.rc != 0
    assert "another run is changing llamacpp" in run.error


def test_refuses_to_go_back_to_what_never_was(play, untouched):
    run = play("rollback.yml", "-e", "to=2020-01-01T00-00-00Z-00000000")
    assert run.rc != 0
    assert run.count("changed") == 0
    assert "there are: 2" in run.error
