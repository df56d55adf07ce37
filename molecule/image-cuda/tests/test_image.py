"""What can be told of the image with CUDA where there is no GPU."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import time

import pytest
import testinfra
from openai import APIConnectionError, OpenAI

HOST = "llm-image"
IMAGE = "llamacpp:latest"
LIBRARY = "/opt/llamacpp/backends/libggml-cuda.so"
DRIVER = "/root/driver/usr/lib/x86_64-linux-gnu/nvidia/current"
MODEL = "smollm2-135m-instruct-q4_1.gguf"
ARCHITECTURES = {int(name.replace(".", "")) for name in (os.environ.get("ARCH") or "8.9").split(",")}


@pytest.fixture(scope="module")
def host():
    """The host that has built the image."""
    return testinfra.get_host(f"docker://{HOST}")


@pytest.fixture(scope="module")
def run(host):
    """Returns a function: options of docker run and a command -> what came back."""

    def in_container(*command: str, options: str = ""):
        return host.run(f"docker run --rm --network none {options} {IMAGE} {' '.join(command)}")

    return in_container


@pytest.fixture(scope="module")
def driver(host) -> str:
    """NVIDIA's real driver library, from Debian, as an option of docker run that mounts it."""
    host.check_output(
        "sed -Ei '/^deb /s/$/ non-free/; /^Components:/s/$/ non-free/'"
        " $(find /etc/apt -name '*.list' -o -name '*.sources')"
    )
    host.check_output("cd /root && apt-get -qq update && apt-get -qq download libcuda1")
    host.check_output("cd /root && dpkg -x libcuda1_*.deb driver")
    return f"--volume {DRIVER}/libcuda.so.1:/usr/lib/x86_64-linux-gnu/libcuda.so.1:ro"


def built_for(library: bytes) -> set[int]:
    """Return the architectures (89 for 8.9) of the machine code in a library's fat binaries.

    Each has a header (magic, version, its size; then the size of what follows) and entries of which
    kind 2 is machine code; the number of the architecture is at byte 28. cuobjdump says the same.
    """
    found = set()
    position = library.find(MAGIC)
    while position >= 0:
        header, size = struct.unpack_from("<HQ", library, position + 6)
        entry, end = position + header, position + header + size
        while entry < end:
            kind, _, entry_header, payload = struct.unpack_from("<HHIQ", library, entry)
            if kind == 2:
                found.add(struct.unpack_from("<I", library, entry + 28)[0])
            entry += entry_header + payload
        position = library.find(MAGIC, end)
    return found


MAGIC = struct.pack("<I", 0xBA55ED50)


def test_the_image_is_at_most_2_gb(host):
    assert int(host.check_output(f"docker image inspect --format '{{{{.Size}}}}' {IMAGE}")) <= 2_000_000_000


def test_the_library_holds_machine_code_for_the_wanted_gpus_and_no_others():
    command = ["docker", "exec", HOST, "docker", "run", "--rm", IMAGE, "cat", LIBRARY]
    library = subprocess.run(command, capture_output=True, check=True).stdout
    assert built_for(library) == ARCHITECTURES


def test_the_drivers_library_is_needed_and_the_only_one_missing(run):
    libraries = run(
        "sh",
        "-c",
        f"'LD_LIBRARY_PATH=$(echo /opt/llamacpp/lib/python3*/site-packages/llama_cpp/lib) ldd {LIBRARY}'",
    )
    missing = [line.split()[0] for line in libraries.stdout.splitlines() if "not found" in line]
    assert missing == ["libcuda.so.1"]


def test_without_a_driver_the_image_says_that_it_needs_one(run):
    asked = run("engine-info", "--require-gpu")
    assert asked.rc == 1
    assert "NVIDIA's driver library libcuda.so.1 is not in this container" in asked.stderr


def test_with_the_drivers_library_cuda_loads_and_reports_no_gpu(run, driver):
    asked = run("engine-info", options=driver)
    info = json.loads(asked.stdout)
    assert "libggml-cuda.so" in info["backends"]
    assert info["gpus"] == []
    assert "the driver library is there, but no GPU" in info["gpu_problem"]


def test_with_the_drivers_library_and_no_gpu_it_serves_on_the_cpu(host, driver):
    get = f"from urllib.request import *; urlretrieve('http://models.internal/{MODEL}', '/srv/{MODEL}')"
    host.check_output(f'python3 -c "{get}"')
    server = f"--host 0.0.0.0 --port 20080 --model /srv/{MODEL} --n_gpu_layers -1 --chat_format chatml"
    host.check_output(
        f"docker run --detach --rm --name server --publish 20080:20080 --volume /srv:/srv:ro {driver}"
        f" {IMAGE} python3 -m llama_cpp.server {server} --use_mlock False"
    )
    client = OpenAI(base_url="http://127.0.0.1:20380/v1", api_key="none", max_retries=0, timeout=60)
    deadline = time.monotonic() + 120
    try:
        while True:
            try:
                client.models.list()
                break
            except APIConnectionError:
                assert time.monotonic() < deadline, host.run("docker logs server").stderr
                time.sleep(0.5)
        answer = client.chat.completions.create(
            model="m",
            temperature=0,
            max_tokens=12,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
        )
        assert "Paris" in answer.choices[0].message.content
    finally:
        host.run("docker rm --force server")
