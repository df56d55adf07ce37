"""NVIDIA's container toolkit and Docker's configuration, after a deployment."""

from __future__ import annotations

import json

import pytest

VERSION = "1.20.0-1"
PACKAGES = {
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
}


def test_the_four_packages_have_the_pinned_version(host):
    shown = host.check_output(f"dpkg-query -W -f '${{Package}} ${{Version}}\\n' {' '.join(PACKAGES)}")
    assert set(shown.splitlines()) == {f"{package} {VERSION}" for package in PACKAGES}


def test_the_repository_has_a_newer_version(host):
    # Otherwise the test above would also pass without a pin.
    offered = host.check_output("apt-cache madison nvidia-container-toolkit").splitlines()
    newest = offered[0].split("|")[1].strip()
    assert host.run(f"dpkg --compare-versions {newest} gt {VERSION}").rc == 0, offered


def test_an_upgrade_of_the_system_leaves_them_alone(host):
    assert set(host.check_output("apt-mark showhold").split()) == PACKAGES
    would = host.check_output("apt-get --simulate dist-upgrade")
    assert not [line for line in would.splitlines() if line.startswith("Inst ") and "nvidia" in line]


def test_the_key_can_be_read_by_apt(host):
    keyring = host.file("/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg")
    assert (keyring.user, keyring.group, keyring.mode) == ("root", "root", 0o644)


def test_an_older_entry_of_the_repository_is_gone(host):
    assert not host.file("/etc/apt/sources.list.d/nvidia-docker.list").exists
    assert host.run("apt-get update").rc == 0


def test_settings_of_docker_that_somebody_else_made_are_still_there(host):
    settings = json.loads(host.file("/etc/docker/daemon.json").content_string)
    assert settings["log-opts"] == {"max-file": "3"}
    assert settings["shutdown-timeout"] == 20
    assert settings["features"] == {"containerd-snapshotter": False, "cdi": True}


@pytest.mark.parametrize("device", ["0", "1", "all", "GPU-00000000-0000-4000-8000-000000000001"])
def test_docker_gives_a_container_a_device_by_its_name(host, device):
    options = f"--rm --pull=never --network=none --device=nvidia.com/gpu={device}"
    listed = host.check_output(f"docker run {options} llamacpp:latest nvidia-smi -L").splitlines()
    assert len(listed) == (2 if device == "all" else 1)
    assert device in ("0", "all") or "000000000001" in listed[0]


def test_docker_refuses_a_device_that_is_not_there(host):
    refused = host.run("docker run --rm --pull=never --device=nvidia.com/gpu=7 llamacpp:latest true")
    assert refused.rc != 0
    assert "nvidia.com/gpu=7" in refused.stderr
