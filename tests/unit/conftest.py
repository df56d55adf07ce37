"""Makes the plugins importable, as Ansible finds them by ansible.cfg."""

from __future__ import annotations

import http.server
import json
import os
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import ansible.module_utils
import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]

sys.path[:0] = [str(PROJECT / "plugins" / kind) for kind in ("filter", "modules")]
ansible.module_utils.__path__.append(str(PROJECT / "plugins" / "module_utils"))


@pytest.fixture(scope="session")
def group_vars():
    """The shipped group_vars, as an operator reads them."""
    return yaml.safe_load((PROJECT / "group_vars/llm_hosts.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def schema():
    """The settings of the pinned version of the server."""
    version = yaml.safe_load((PROJECT / "roles/preflight/defaults/main.yml").read_text())[
        "preflight_server_version"
    ]
    return json.loads((PROJECT / f"files/image/settings-{version}.json").read_text())


@pytest.fixture
def run_playbook(tmp_path):
    """Returns a function: the text of a playbook for localhost, or for an inventory -> what its run prints.

    A run that fails is a failure.
    """

    def run(text: str, inventory: str = "localhost,") -> str:
        playbook = tmp_path / "playbook.yml"
        playbook.write_text(text, encoding="utf-8")
        done = subprocess.run(
            ["ansible-playbook", "-i", inventory, str(playbook)],
            cwd=PROJECT,
            env=os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def docker_socket(tmp_path, docker_answers):
    """A socket behind which an engine answers GET requests with the module's docker_answers, else 404."""

    class Docker(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(docker_answers.get(self.path, {"message": "not found"})).encode()
            self.send_response(200 if self.path in docker_answers else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

        def address_string(self):
            return "unix"

    path = str(tmp_path / "docker.sock")
    with socketserver.ThreadingUnixStreamServer(path, Docker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield path
        server.shutdown()
