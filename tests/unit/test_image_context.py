"""The files of the image: what the role copies and the Dockerfile uses; the script that needs no engine."""

import json
import re
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
IMAGE = PROJECT / "files" / "image"
DOCKERFILE = (IMAGE / "Dockerfile").read_text()
ROLE = PROJECT / "roles" / "llamacpp_image"
VERSION = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())["llamacpp_image_version"]


def copied_by_the_role():
    for task in yaml.safe_load((ROLE / "tasks" / "inputs.yml").read_text()):
        files = task.get("ansible.builtin.set_fact", {}).get("__llamacpp_image_files")
        if files:
            return {name.replace("{{ llamacpp_image_version }}", VERSION) for name in files}
    raise AssertionError("the role names no files")


def copied_by_the_dockerfile():
    sources = set()
    for line in DOCKERFILE.splitlines():
        match = re.match(r"COPY (?!--from)(?:--\S+ )*(.*) \S+$", line)
        if match:
            sources.update(match.group(1).replace("${VERSION}", VERSION).split())
    return sources


def test_the_role_copies_and_hashes_exactly_what_the_dockerfile_uses():
    assert copied_by_the_role() == copied_by_the_dockerfile() | {"Dockerfile"}


def test_every_package_of_the_lock_files_has_hashes():
    for name in (f"requirements-{VERSION}.txt", "requirements-build.txt", "requirements-cuda13.txt"):
        packages = re.findall(r"^\S+==\S+ \\\n    --hash=sha256:", (IMAGE / name).read_text(), re.M)
        names = re.findall(r"^[^\s#]\S*", (IMAGE / name).read_text(), re.M)
        assert len(packages) == len(names) > 0


def test_the_lock_files_name_no_index():
    for path in IMAGE.glob("requirements-*.txt"):
        assert "://" not in path.read_text()


def test_the_engine_is_locked_at_the_version_in_the_file_name():
    lines = (IMAGE / f"requirements-{VERSION}.txt").read_text().splitlines()
    assert f"llama-cpp-python=={VERSION} \\" in lines
    assert json.loads((IMAGE / f"settings-{VERSION}.json").read_text())["version"] == VERSION


class Handler(BaseHTTPRequestHandler):
    """Answers /openapi.json with the status that the server object holds."""

    def do_GET(self):
        self.send_response(self.server.status if self.path == "/openapi.json" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.status = 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def healthcheck(tmp_path, **config):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"host": "0.0.0.0", "models": [], **config}))
    return subprocess.run(
        [sys.executable, "-IS", IMAGE / "healthcheck", file],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_server_that_answers_is_healthy(tmp_path, server):
    result = healthcheck(tmp_path, port=server.server_port)
    assert (result.returncode, result.stdout) == (0, "answers\n")


def test_a_server_that_answers_an_error_is_not_healthy(tmp_path, server):
    server.status = 500
    result = healthcheck(tmp_path, port=server.server_port)
    assert (result.returncode, result.stderr) == (1, "GET /openapi.json answered 500\n")


def test_a_closed_port_is_not_healthy(tmp_path, server):
    server.server_close()
    result = healthcheck(tmp_path, port=server.server_port)
    assert result.returncode == 1
    assert result.stderr.startswith("no answer: ")


def test_with_a_certificate_the_question_is_asked_over_tls_without_verification(tmp_path, server):
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=outer.example"),
            *("-keyout", tmp_path / "key", "-out", tmp_path / "cert"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    result = healthcheck(tmp_path, port=server.server_port, ssl_certfile="/certs/server.pem")
    assert (result.returncode, result.stdout) == (0, "answers\n")


def test_a_missing_configuration_is_not_healthy(tmp_path):
    result = subprocess.run(
        [sys.executable, "-IS", IMAGE / "healthcheck", tmp_path / "none.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("no answer: ")


def warm_up(tmp_path, *models, limit="max", free=1 << 20):
    """Runs warm-up with models of these names and sizes (KiB) where so much memory is free (KiB)."""
    for name, size in models:
        (tmp_path / name).write_bytes(b"x" * (size << 10))
    config = {"models": [{"model": str(tmp_path / name)} for name, _size in models]}
    paths = {"config.json": json.dumps(config), "memory.max": limit, "memory.current": "0"}
    paths["meminfo"] = f"MemTotal:       {free} kB\nMemAvailable:   {free + free // 10 + 1} kB\n"
    for name, content in paths.items():
        (tmp_path / name).write_text(content)
    script = (IMAGE / "warm-up").read_text()
    for ours, theirs in (
        ("meminfo", "/proc/meminfo"),
        *((n, f"/sys/fs/cgroup/{n}") for n in list(paths)[1:3]),
    ):
        assert theirs in script
        script = script.replace(theirs, str(tmp_path / ours))
    (tmp_path / "warm-up").write_text(script)
    command = [sys.executable, "-IS", tmp_path / "warm-up", tmp_path / "config.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.removeprefix(f"{tmp_path}/") for line in done.stdout.splitlines()]


def test_models_that_are_not_loaded_are_read(tmp_path):
    models = (("loaded.gguf", 1), ("second.gguf", 2048), ("third.gguf", 1024))
    assert warm_up(tmp_path, *models) == ["second.gguf: read, 2 MiB", "third.gguf: read, 1 MiB"]


def test_a_model_that_memory_has_no_room_for_is_left_out(tmp_path):
    models = (("loaded.gguf", 1), ("large.gguf", 3072), ("small.gguf", 1024))
    expected = ["large.gguf: left out, 3 MiB do not fit into 2 MiB", "small.gguf: read, 1 MiB"]
    assert warm_up(tmp_path, *models, free=2048) == expected
    assert warm_up(tmp_path, *models, limit=str(2 << 20)) == expected


def test_all_parts_of_a_split_model_are_read_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "m-00002-of-00003.gguf").write_bytes(b"x")
    lines = warm_up(tmp_path, ("loaded.gguf", 1), ("m-00001-of-00003.gguf", 1))
    assert [line.split(": ")[1] for line in lines] == [
        "read, 0 MiB",
        "read, 0 MiB",
        "No such file or directory",
    ]


def test_with_one_model_nothing_is_read(tmp_path):
    assert warm_up(tmp_path, ("loaded.gguf", 1)) == []
