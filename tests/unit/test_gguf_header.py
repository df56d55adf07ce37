"""Headers of model files, read from real files and from a real HTTP server on loopback."""

from __future__ import annotations

import base64
import http.server
import json
import re
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import gguf
import gguf_header
import gguf_shapes
import pytest
from ansible.module_utils import gguf as utils
from ansible.module_utils.sources import Hub
from model_files import model_files

PROJECT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
HUB = Hub()
SHAPE = gguf_shapes.llama(
    layers=2, embedding=64, forward=96, heads=4, kv_heads=2, vocabulary=500, kind="Q8_0"
)


def write(path, words=8):
    """Writes a file of the full length (sparse), and returns that length."""
    size = gguf_shapes.write(path, SHAPE, words)
    with open(path, "r+b") as file:
        file.truncate(size)
    return size


@pytest.fixture
def model(tmp_path):
    """A model file in place."""
    path = tmp_path / "x.gguf"
    write(path)
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The bytes of a model whose header is longer than the first request."""
    path = tmp_path_factory.mktemp("large") / "x.gguf"
    write(path, words=120_000)
    return path.read_bytes()


class Source(http.server.BaseHTTPRequestHandler):
    """Sends bytes as sources of models do, each path with its own habit."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        """Answers as a hub with a gated repository does, or as its mirror."""
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        if self.headers.get("Authorization") != "Bearer sesame":
            return self.answer(401, {}, b"")
        elsewhere = f"http://localhost:{self.server.server_port}/ranges?signature=x"
        linked = {"X-Linked-Etag": '"' + "a" * 64 + '"', "X-Linked-Size": str(len(self.server.content))}
        return self.answer(302, {"Location": elsewhere, **linked}, b"")

    def do_GET(self):
        content, path = self.server.content, self.path.partition("?")[0]
        if path == "/ranges" and self.headers.get("Authorization"):
            return self.answer(400, {}, b"")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.server.seen.append((path, asked and asked.group(0)))
        start, end = int(asked.group(1)), min(int(asked.group(2)), len(content) - 1)
        if path == "/moved":
            return self.answer(302, {"Location": "/ranges"}, b"")
        if path == "/gone":
            return self.answer(404, {}, b"")
        if path == "/whole" or (path == "/forgets" and start):
            return self.answer(200, {}, content)
        if path == "/no-size":
            return self.answer(200, {}, content, announce=False)
        if path == "/shifted":
            return self.answer(206, {"Content-Range": f"bytes 1-{end}/{len(content)}"}, content[1 : end + 1])
        if path == "/broken-off":
            return self.answer(200, {"Transfer-Encoding": "chunked"}, b"ffff\r\nGGUF", announce=False)
        total = "*" if path == "/unknown-total" else len(content)
        body = content[start : end + 1]
        if path == "/short":
            body = body[: 1 + len(body) // 2]
            end = start + len(body) - 1
        return self.answer(206, {"Content-Range": f"bytes {start}-{end}/{total}"}, body)

    def answer(self, status, headers, body, announce=True):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if announce:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.close_connection = True
        self.end_headers()
        try:
            for offset in range(0, len(body), 1 << 16):
                self.wfile.write(body[offset : offset + (1 << 16)])
                self.server.sent += len(body[offset : offset + (1 << 16)])
        except OSError:  # the module has hung up
            self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def source():
    """A server; its ``content`` is to be set."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Source) as running:
        running.daemon_threads = True
        running.seen, running.sent, running.content = [], 0, b""
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        running.url = f"http://127.0.0.1:{running.server_port}"
        yield running
        running.shutdown()


def header_of(part):
    return zlib.decompress(base64.b64decode(part["header"]))


def test_the_header_of_a_file_says_all_but_the_vocabulary(model, tmp_path):
    part = gguf_header.from_file(str(model))
    assert part["size"] == model.stat().st_size
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(header_of(part))
    with copy.open("r+b") as file:
        file.truncate(part["size"])
    original, read = gguf.GGUFReader(model), gguf.GGUFReader(copy)
    assert {field for field in original.fields if field not in read.fields} == {
        "tokenizer.ggml.model",
        "tokenizer.ggml.tokens",
    }
    kept = [name for name in read.fields if not name.startswith("GGUF.")]
    assert "llama.attention.head_count_kv" in kept
    assert all(read.fields[name].contents() == original.fields[name].contents() for name in kept)
    assert [(t.name, t.n_bytes, t.shape.tolist()) for t in read.tensors] == [
        (t.name, t.n_bytes, t.shape.tolist()) for t in original.tensors
    ]


@pytest.mark.parametrize("path", ["/ranges", "/short", "/moved", "/whole"])
def test_every_kind_of_source_gives_the_same_as_the_file(source, large, tmp_path, path):
    (tmp_path / "x.gguf").write_bytes(large)
    source.content = large
    part = gguf_header.from_url(source.url + path, HUB, 5)
    assert part == gguf_header.from_file(str(tmp_path / "x.gguf"))


def test_ranges_grow_until_the_header_is_complete(source, large):
    source.content = large + bytes(20 * MIB)
    gguf_header.from_url(f"{source.url}/ranges", HUB, 5)
    assert source.seen == [("/ranges", "bytes=0-1048575"), ("/ranges", "bytes=1048576-2097151")]
    assert source.sent == 2 * MIB


def test_a_source_without_ranges_is_not_read_to_its_end(source, large):
    source.content = large + bytes(64 * MIB)
    part = gguf_header.from_url(f"{source.url}/whole", HUB, 5)
    assert part["size"] == len(source.content)
    assert source.sent < 32 * MIB


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/gone", "answers 404 to a request for its first bytes"),
        ("/shifted", "answers other bytes than it was asked for"),
        ("/unknown-total", "does not announce the size of the file"),
        ("/forgets", "answers other bytes than it was asked for"),
        ("/broken-off", r"cannot be read \(IncompleteRead"),
        ("/no-size", "does not announce the size of the file"),
    ],
)
def test_each_wrong_answer_has_its_message_without_secrets(source, large, path, problem):
    source.content = large
    address = source.url.replace("//", "//user:secret@") + path + "?token=secret"
    with pytest.raises(ValueError, match=problem) as raised:
        gguf_header.from_url(address, HUB, 5)
    assert str(raised.value).startswith(f"{source.url}{path}")
    assert "secret" not in str(raised.value)


def test_a_source_that_cannot_be_reached_has_its_message():
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:1/x cannot be read \(.*refused"):
        gguf_header.from_url("http://127.0.0.1:1/x", HUB, 5)


def entry(key, kind, value):
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<html>" + bytes(50), "it is not a GGUF file that llama.cpp reads"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "it is not a GGUF file that llama.cpp reads"),
        (b"GGUF", "it ends after 4 bytes, within its header"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1), "it ends after 24 bytes, within its header"),
        (
            struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + entry(b"a", 8, struct.pack("<Q", 1 << 60)),
            "its header is longer than 64 MiB",
        ),
        (
            struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + entry(b"a", 13, bytes(9)),
            "its header has a value of the unknown type 13",
        ),
        (
            struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + entry(b"a", 9, struct.pack("<IQ", 9, 1)),
            "its header has a value of the unknown type 9",
        ),
    ],
)
def test_a_file_that_is_not_one_has_its_message(tmp_path, content, problem):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {problem}")):
        gguf_header.from_file(str(path))


def test_every_type_of_value_is_passed_by(tmp_path):
    values = [entry(b"k%d" % kind, kind, bytes(size)) for kind, size in utils.VALUE_BYTES.items()]
    arrays = [
        entry(b"a%d" % kind, 9, struct.pack("<IQ", kind, 3) + bytes(3 * size))
        for kind, size in utils.VALUE_BYTES.items()
    ]
    strings = entry(b"s", 9, struct.pack("<IQ", 8, 2) + struct.pack("<Q2sQ", 2, b"ab", 0))
    dropped = entry(b"tokenizer.x", 8, struct.pack("<Q3s", 3, b"abc"))
    content = b"".join([*values, *arrays, strings])
    path = tmp_path / "x.gguf"
    path.write_bytes(
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 2 * len(values) + 2) + content + dropped + b"the rest"
    )
    found = header_of(gguf_header.from_file(str(path)))
    assert found == struct.pack("<4sIQQ", b"GGUF", 3, 0, 2 * len(values) + 1) + content


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_gated_repository_is_read_with_the_token_that_nobody_else_sees(source, large, tmp_path, mirrored):
    (tmp_path / "x.gguf").write_bytes(large)
    source.content = large
    hub = Hub("https://hub.example" if mirrored else source.url, source.url if mirrored else "", "sesame")
    url = f"{'https://hub.example' if mirrored else source.url}/o/n/resolve/main/x.gguf"
    assert gguf_header.from_url(url, hub, 5) == gguf_header.from_file(str(tmp_path / "x.gguf"))
    assert source.seen[0] == ("/o/n/resolve/main/x.gguf", "Bearer sesame")
    assert {path for path, _ in source.seen[1:]} == {"/ranges"}, "400 to whoever tells it a token"


def test_a_gated_repository_without_a_token_has_its_message(source):
    url = f"{source.url}/o/n/resolve/main/x.gguf?token=secret"
    with pytest.raises(ValueError, match=r"x\.gguf answers 401 \(access refused\).*llm_hub_token") as raised:
        gguf_header.from_url(url, Hub(source.url), 5)
    assert "secret" not in str(raised.value)


def entry_of(path, url="http://127.0.0.1:1/x.gguf", sha256="none"):
    (entry,) = model_files([{"alias": "x", "file": path.name, "url": url, "sha256": sha256}])
    return entry


def read(entry, directory):
    """What is known of one file, and why it is not."""
    return gguf_header.read_all([entry], str(directory), HUB, 5)[entry["part_of"]]


def test_a_file_in_place_is_read_and_its_source_is_not_asked(model):
    assert read(entry_of(model), model.parent) == {
        "parts": [gguf_header.from_file(str(model))],
        "problem": "",
    }


@pytest.mark.parametrize("place", ["absent", "another one", "damaged"])
def test_what_is_not_the_wanted_file_is_read_at_its_source(source, model, place):
    source.content = model.read_bytes()
    wanted = gguf_header.from_file(str(model))
    if place == "absent":
        model.unlink()
    elif place == "another one":
        utils.write_record(str(model), "0" * 64, "http://elsewhere/x")
    else:
        model.write_bytes(b"<html>")
    found = read(entry_of(model, f"{source.url}/ranges", "1" * 64), model.parent)
    assert found == {"parts": [wanted], "problem": ""}
    assert source.seen


def test_a_path_on_the_host_is_read_there(model, tmp_path):
    (tmp_path / "my models").mkdir()
    model.rename(tmp_path / "my models/source.gguf")
    (entry,) = model_files(
        [{"alias": "x", "file": "x.gguf", "path": f"{tmp_path}/my models/source.gguf", "sha256": "none"}]
    )
    found = read(entry, tmp_path)
    assert found == {
        "parts": [gguf_header.from_file(f"{tmp_path}/my models/source.gguf")],
        "problem": "",
    }


def test_a_file_of_the_controller_is_of_unknown_size_until_it_is_here(model):
    (entry,) = model_files(
        [{"alias": "x", "file": "x.gguf", "controller_path": "/srv/x.gguf", "sha256": "none"}]
    )
    assert read(entry, model.parent)["problem"] == ""
    model.unlink()
    assert read(entry, model.parent) == {
        "parts": [],
        "problem": "size unknown until x.gguf is on the host",
    }


def test_a_problem_is_one_of_that_model_only(model):
    absent = {**entry_of(model), "file": "y.gguf", "part_of": "y.gguf"}
    found = gguf_header.read_all([absent, entry_of(model)], str(model.parent), HUB, 5)
    assert found["y.gguf"]["parts"] == []
    assert found["y.gguf"]["problem"].startswith("http://127.0.0.1:1/x.gguf cannot be read")
    assert found["x.gguf"]["problem"] == ""


def test_of_a_split_model_every_part_is_read_where_it_is(source, model):
    source.content = model.read_bytes()
    name = "m-00001-of-00003.gguf"
    split = {"alias": "m", "file": name, "url": f"{source.url}/{name}", "sha256": "none"}
    files = model_files([split])
    for entry in files[:2]:
        (model.parent / entry["file"]).write_bytes(model.read_bytes())
    found = gguf_header.read_all(files, str(model.parent), HUB, 5)
    assert found == {name: {"parts": 3 * [gguf_header.from_file(str(model))], "problem": ""}}
    assert {path for path, _ in source.seen} == {"/m-00003-of-00003.gguf"}
    files[1]["url"] = f"{source.url}/gone"
    (model.parent / files[1]["file"]).unlink()
    found = gguf_header.read_all(files, str(model.parent), HUB, 5)[name]
    assert found == {
        "parts": [],
        "problem": f"{source.url}/gone answers 404 to a request for its first bytes",
    }


def test_the_module_answers_for_each_model_and_never_shows_the_token(model):
    arguments = {
        "files": [entry_of(model)],
        "models_dir": str(model.parent),
        "timeout": 5,
        "token": "sesame",
    }
    run = subprocess.run(
        [sys.executable, "-c", "import ansible.module_utils as u, runpy;"
         f"u.__path__.append('{PROJECT}/plugins/module_utils');"
         f"runpy.run_path('{PROJECT}/plugins/modules/gguf_header.py', run_name='__main__')",
         json.dumps({"ANSIBLE_MODULE_ARGS": arguments})],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    result = json.loads(run.stdout)
    assert result["changed"] is False
    assert result["headers"] == {"x.gguf": read(entry_of(model), model.parent)}
    assert "sesame" not in run.stdout
