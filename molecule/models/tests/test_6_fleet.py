"""Three hosts that want the same file: it crosses the line to its server once."""

from __future__ import annotations

import pytest
import testinfra
from conftest import MODELS, SERVED, Running, entry, from_web

HOSTS = ("llm-models", "llm-models-2", "llm-models-3")
FILE = "model-fleet.gguf"


@pytest.fixture(scope="module")
def fleet(scenario, hub, sha256, smollm2):
    """The play that fetches the file on all of them."""
    hub.reset()
    model = entry("fleet.gguf", sha256[FILE], **from_web("plain", FILE))
    options = ("site.yml", "--tags", "models")
    run = Running(scenario, *options, inventory="fleet", llm_models=[smollm2, model])
    return run.finish(seconds=600)


@pytest.mark.parametrize("name", HOSTS)
def test_each_host_has_the_file(fleet, sha256, name):
    assert fleet.rc == 0, fleet.output
    host = testinfra.get_host(f"docker://{name}")
    assert host.file(f"{MODELS}/fleet.gguf").sha256sum == sha256[FILE]
    assert not [file for file in host.check_output(f"ls -A {MODELS}/.partial").split() if "fleet" in file]


@pytest.mark.usefixtures("fleet")
def test_its_server_has_sent_it_once(hub):
    assert hub.sent(FILE) == (SERVED / FILE).stat().st_size


@pytest.mark.usefixtures("fleet")
def test_nobody_serves_files_afterwards():
    for name in HOSTS:
        host = testinfra.get_host(f"docker://{name}")
        assert not host.socket("tcp://20079").is_listening
        assert not host.service("gguf-models-share").is_running
