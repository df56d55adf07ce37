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


# Prints how many per cent of a file the kernel has in memory; with a second argument it forgets it first.
PAGES_IN_MEMORY = """
import ctypes, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
if sys.argv[2:]:
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
size = os.fstat(file).st_size
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
pages = (ctypes.c_ubyte * -(-size // os.sysconf("SC_PAGESIZE")))()
libc.mincore(ctypes.c_void_p(libc.mmap(None, size, 1, 1, file, 0)), ctypes.c_size_t(size), pages)
print(sum(page & 1 for page in pages) * 100 // len(pages))
"""


def test_the_first_switch_after_a_start_does_not_wait_for_the_disk(host):
    second = "/home/llm/llamacpp/model/gemma-3-270m-q4_k_m.gguf"
    host.check_output("systemctl stop llamacpp")
    forgotten = host.check_output("sync %s && python3 -c %s %s forget", second, PAGES_IN_MEMORY, second)
    assert int(forgotten) < 10
    host.check_output("systemctl start llamacpp")
    percent = ("python3 -c %s %s", PAGES_IN_MEMORY, second)
    wait_until(lambda: host.check_output(*percent) == "100", "the second model in memory")


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
