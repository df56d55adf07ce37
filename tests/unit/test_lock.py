"""`make lock`, with a hub that announces as the real one does; its hosts are never reached."""

from __future__ import annotations

import http.server
import os
import subprocess
import threading
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
# Of digits alone: in YAML such a sha256 is a number unless it is quoted.
OLD, NEW, SECOND = ("a" * 64, "b" * 64, "2" * 64)


class HubHandler(http.server.BaseHTTPRequestHandler):
    """Answers HEAD as huggingface.co does: a redirect, with the file's sha256 and size."""

    def do_HEAD(self):
        token, sha256 = self.server.announced[self.path]
        self.server.asked.append(self.path)
        if self.headers.get("Authorization", "") != token:
            self.send_response(401)
        else:
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:1/signed")
            self.send_header("X-Linked-Etag", f'"{sha256}"')
            self.send_header("X-Linked-Size", "1234")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    """A hub; ``announced`` is to be set: by path the Authorization it wants, and the sha256."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as running:
        running.announced, running.asked = {}, []
        running.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def inventory(tmp_path, hub):
    """An inventory of two hosts that cannot be reached, one of which has a model of its own."""
    models = [{"alias": "one", "file": "one.gguf", "hf": {"repository": "o/r"}}]
    second = {"alias": "two", "file": "two.gguf", "hf": {"repository": "gated/r", "revision": "v 1"}}
    settings = {"gguf_models_hub_url": hub.url, "llm_hub_token": "open-sesame", "ansible_become": True}
    hosts = {
        "gpu1": {**settings, "llm_models": models},
        "gpu2": {
            **settings,
            "llm_models": [*models, second],
            "ansible_connection": "community.docker.docker",
        },
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"llm_hosts": {"hosts": hosts}}))
    hub.announced = {
        "/o/r/resolve/main/one.gguf": ("Bearer open-sesame", NEW),
        "/gated/r/resolve/v%201/two.gguf": ("Bearer open-sesame", SECOND),
    }
    return tmp_path


def lock(inventory, *arguments):
    """Runs lock.yml; returns (whether it failed, its output)."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    run = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), str(PROJECT / "lock.yml"), *arguments],
        env={**environment, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return run.returncode != 0, run.stdout


def test_a_replaced_file_is_told_then_accepted_and_then_locked_with_those_of_all_hosts(inventory, hub):
    path = inventory / "group_vars/llm_hosts/models_lock.yml"
    path.parent.mkdir(parents=True)
    one, two = (hub.url + path for path in hub.announced)
    path.write_text(yaml.safe_dump({"llm_models_lock": {one: {"sha256": OLD, "size": 99}}}))
    before = path.read_bytes()

    failed, output = lock(inventory)
    assert failed
    for told in (OLD, NEW, "lock_update=true"):
        assert told in output
    assert path.read_bytes() == before
    assert sorted(hub.asked) == sorted(hub.announced), "each URL is asked once"

    failed, output = lock(inventory, "--limit", "gpu1", "-e", "lock_update=true")
    assert not failed, output
    assert yaml.safe_load(path.read_text()) == {
        "llm_models_lock": {one: {"sha256": NEW, "size": 1234}, two: {"sha256": SECOND, "size": 1234}}
    }
    assert path.stat().st_mode & 0o777 == 0o644
    assert "open-sesame" not in output + path.read_text()

    failed, output = lock(inventory)
    assert not failed, output
    assert "changed=0" in output


def test_check_mode_shows_what_would_be_written_and_writes_nothing(inventory, hub):
    failed, output = lock(inventory, "--check", "--diff", "-e", '{"llm_models": []}')
    assert not failed, output
    assert "+llm_models_lock: {}" in output
    assert hub.asked == []
    assert os.listdir(inventory) == ["hosts.yml"]


def test_a_file_of_variables_in_the_way_is_told_before_anything_is_asked(inventory, hub):
    variables = inventory / "group_vars/llm_hosts"
    variables.parent.mkdir()
    variables.with_suffix(".yml").write_text("llm_user: llm\n")
    failed, output = lock(inventory)
    assert failed
    assert f"mv {variables}.yml {variables}.new/main.yml" in " ".join(output.split())
    assert not variables.exists()
    assert hub.asked == []
