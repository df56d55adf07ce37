"""What ends a play or a host in the middle of a download, and a disk that is too small for one."""

from __future__ import annotations

import subprocess

import pytest
from conftest import HOST, MODELS, SERVED, entry, from_web, line_about, service
from testing import answers, wait_until

FILE = "model-slow.gguf"
SIZE = 24 << 20
RESUMED = 1.05
BEGUN_ANEW = 2.05


@pytest.fixture
def midway(begin, hub, sha256):
    """Returns a function: local file -> its slow download, when a fifth of it has come."""

    def start(file: str, **variables):
        hub.reset()
        run = begin(entry(file, sha256[FILE], **from_web("slow", FILE)), **variables)
        wait_until(lambda: hub.sent(FILE) > SIZE / 5 or not run.runs, "a fifth of the file")
        assert run.runs, run.output
        return run

    return start


def test_survives_the_death_of_ansible(midway, fetch, host, hub, sha256, in_place):
    run = midway("killed.gguf")
    run.kill()
    assert not host.file(f"{MODELS}/killed.gguf").exists
    again = fetch(entry("killed.gguf", sha256[FILE], **from_web("slow", FILE)))
    assert again.rc == 0, again.output
    assert in_place("killed.gguf", sha256[FILE])
    assert hub.sent(FILE) <= RESUMED * SIZE


def test_survives_the_death_of_ansible_with_nobody_coming_back(midway, host, hub, sha256, in_place):
    midway("alone.gguf").kill()
    over = f"test -e {MODELS}/alone.gguf -a ! -e {MODELS}/.partial/alone.gguf.source"
    wait_until(lambda: host.run(over).rc == 0, "the fetch's own end")
    assert in_place("alone.gguf", sha256[FILE])
    assert hub.sent(FILE) <= RESUMED * SIZE


def test_survives_the_death_of_the_fetch_itself(midway, fetch, host, hub, sha256, in_place):
    run = midway("shot.gguf")
    host.check_output(f"kill -9 $(cat {MODELS}/.partial/.lock) $(pgrep -x aria2c)")
    assert run.finish().rc != 0
    assert not host.file(f"{MODELS}/shot.gguf").exists
    again = fetch(entry("shot.gguf", sha256[FILE], **from_web("slow", FILE)))
    assert again.rc == 0, again.output
    assert in_place("shot.gguf", sha256[FILE])
    # What aria2 had noted before is not fetched again; it notes every ten seconds.
    assert hub.sent(FILE) <= BEGUN_ANEW * SIZE


# ---- Disks


@pytest.fixture
def small_disk(host):
    """A file system of 140 MiB on the host: enough for the deployed model and the slow one, just."""
    host.check_output("mkdir -p /mnt/small && mount -t tmpfs -o size=140m tmpfs /mnt/small")
    yield {"llm_models_dir": "/mnt/small/model", "preflight_headroom_bytes": 0}
    host.check_output("umount --lazy /mnt/small && rmdir /mnt/small")


def test_refuses_a_file_for_which_there_is_no_room_before_its_first_byte(
    fetch, host, hub, sha256, small_disk
):
    hub.reset()
    host.check_output("fallocate -l 30M /mnt/small/other")
    run = fetch(entry("too-large.gguf", sha256[FILE], **from_web("slow", FILE)), **small_disk)
    assert run.rc != 0
    assert run.count("changed") == 0
    line = line_about(run, "too-large.gguf", "/mnt/small/model")
    assert "needed 118 MiB" in line and "free 110 MiB" in line and "llm_models_dir" in line
    assert hub.sent(FILE) == 0


def test_refuses_half_a_file_when_the_disk_fills_up_meanwhile(
    midway, fetch, host, hub, smollm2, sha256, in_place, small_disk
):
    run = midway("no-room.gguf", **small_disk)
    deployed = host.file(f"/mnt/small/model/.{smollm2['file']}.verified")
    wait_until(lambda: deployed.exists, "the other model")
    host.run("cat /dev/zero >/mnt/small/other")
    done = run.finish()
    assert done.rc != 0
    assert "make room" in line_about(done, "no-room.gguf", "full")
    assert not host.file("/mnt/small/model/no-room.gguf").exists
    host.check_output("rm /mnt/small/other")
    again = fetch(entry("no-room.gguf", sha256[FILE], **from_web("slow", FILE)), **small_disk)
    assert again.rc == 0, again.output
    assert in_place("no-room.gguf", sha256[FILE], "/mnt/small/model")
    assert hub.sent(FILE) <= BEGUN_ANEW * SIZE  # aria2's own notes may have found no room


# ---- The host; last, because the service starts anew


def test_survives_a_reboot_of_the_host(midway, fetch, play, host, hub, client, served, sha256, in_place):
    assert (SERVED / FILE).stat().st_size == SIZE
    run = midway("rebooted.gguf")
    subprocess.run(["docker", "restart", HOST], check=True, capture_output=True, timeout=300)
    assert run.finish().rc != 0
    wait_until(lambda: answers(client), "an answer", seconds=300)
    served["by"] = service(host)
    assert not host.file(f"{MODELS}/rebooted.gguf").exists
    names = play("molecule/models/prepare.yml")  # the host's own names of the hub went with the restart
    assert names.rc == 0, names.output
    again = fetch(entry("rebooted.gguf", sha256[FILE], **from_web("slow", FILE)))
    assert again.rc == 0, again.output
    assert in_place("rebooted.gguf", sha256[FILE])
    assert hub.sent(FILE) <= RESUMED * SIZE


def test_after_all_this_the_playbook_finds_nothing_to_do(play):
    run = play()
    assert run.rc == 0, run.output
    assert run.count("changed") == 0, run.output
