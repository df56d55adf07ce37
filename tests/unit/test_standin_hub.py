"""The stand-in hub of the scenario `models`: its faults and its counting, as a client sees them."""

from __future__ import annotations

import hashlib
import http.client
import importlib.machinery
import importlib.util
import json
import sys
import threading
import time

import pytest
from ansible.module_utils import gguf
from conftest import PROJECT

STANDIN = PROJECT / "molecule/models/standin"
DATA = bytes(range(256)) * (1 << 12)  # 1 MiB
SHA256 = hashlib.sha256(DATA).hexdigest()
SHARE = {share: len(DATA) * share // 100 for share in (10, 30, 50, 60)}  # percent -> bytes


@pytest.fixture(scope="module")
def standin():
    """Returns a function: name of a program of the scenario -> the program as a module."""
    names = []

    def load(name: str):
        loader = importlib.machinery.SourceFileLoader(f"standin-{name}", str(STANDIN / name))
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
        sys.modules[loader.name] = module  # dataclasses look there
        names.append(loader.name)
        loader.exec_module(module)
        return module

    yield load
    for name in names:
        del sys.modules[name]


@pytest.fixture(scope="module")
def address(standin, tmp_path_factory):
    """Where a hub serves a file, and another version of it."""
    root = tmp_path_factory.mktemp("hub")
    (root / "a.gguf").write_bytes(DATA)
    (root / "a.gguf.new").write_bytes(DATA + b"new")
    with standin("hub").Hub(("127.0.0.1", 0), root) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address
        server.shutdown()


@pytest.fixture
def ask(address):
    """Returns a function: path and headers -> (status, headers, body as far as it came)."""
    connections = []

    def request(path: str, method: str = "GET", host: str = "files.internal", wait: float = 5, **headers):
        connection = http.client.HTTPConnection(*address, timeout=wait)
        connections.append(connection)
        connection.request(method, path, headers={"Host": host} | headers)
        response = connection.getresponse()
        body = b""
        try:
            while part := response.read1():
                body += part
        except (TimeoutError, http.client.IncompleteRead):
            pass
        return response.status, response.headers, body

    request("/control/reset", "POST")
    yield request
    for connection in connections:
        connection.close()


@pytest.fixture
def log(ask):
    """Returns a function: what the hub has noted."""
    return lambda: json.loads(ask("/control/log")[2])


def test_a_file_is_served_whole_and_in_parts(ask):
    status, headers, body = ask("/plain/a.gguf")
    assert (status, body, headers["Accept-Ranges"]) == (200, DATA, "bytes")
    for wanted, part in (
        ("bytes=10-19", slice(10, 20)),
        (f"bytes={len(DATA) - 5}-", slice(-5, None)),
        ("bytes=-7", slice(-7, None)),
        (f"bytes=100-{len(DATA) * 2}", slice(100, None)),
    ):
        status, headers, body = ask("/plain/a.gguf", Range=wanted)
        assert (status, body) == (206, DATA[part]), wanted
        assert int(headers["Content-Length"]) == len(body)
        assert headers["Content-Range"].endswith(f"/{len(DATA)}")


@pytest.mark.parametrize("wanted", [f"bytes={len(DATA)}-", "bytes=-0"])
def test_a_part_that_the_file_does_not_have_is_refused(ask, wanted):
    status, headers, _ = ask("/plain/a.gguf", Range=wanted)
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")


def test_a_range_that_makes_no_sense_is_ignored(ask):
    assert ask("/plain/a.gguf", Range="bytes=9-3")[0] == 200
    assert ask("/plain/a.gguf", Range="lines=1-3")[0] == 200


def test_a_part_of_another_version_is_not_sent(ask):
    etag = ask("/plain/a.gguf", "HEAD")[1]["ETag"]
    assert ask("/plain/a.gguf", Range="bytes=5-", **{"If-Range": etag})[0] == 206
    assert ask("/plain/a.gguf", Range="bytes=5-", **{"If-Range": '"other"'})[0] == 200


def test_drop_cuts_once_and_what_was_sent_is_counted(ask, log):
    _, headers, body = ask("/drop/a.gguf")
    assert int(headers["Content-Length"]) == len(DATA)
    assert len(body) == SHARE[30]
    status, _, rest = ask("/drop/a.gguf", Range=f"bytes={len(body)}-")
    assert (status, body + rest) == (206, DATA)
    entries = log()
    assert [entry["sent"] for entry in entries] == [SHARE[30], len(DATA) - SHARE[30]]
    assert (entries[1]["range"], entries[1]["status"]) == (f"bytes={SHARE[30]}-", 206)


def test_drop_counts_over_all_connections(ask):
    assert len(ask("/drop/a.gguf", Range=f"bytes=0-{SHARE[10] * 2 - 1}")[2]) == SHARE[10] * 2
    assert len(ask("/drop/a.gguf", Range=f"bytes={SHARE[50]}-")[2]) == SHARE[30] - SHARE[10] * 2


def test_drop_often_cuts_every_response(ask):
    body = b""
    for _ in range(11):
        body += ask("/drop-often/a.gguf", Range=f"bytes={len(body)}-")[2]
        assert len(body) % SHARE[10] == 0 or len(body) == len(DATA)
    assert body == DATA


def test_stall_falls_silent_once(ask, log):
    start = time.monotonic()
    assert len(ask("/stall/a.gguf", wait=1)[2]) == SHARE[30]
    assert time.monotonic() > start + 1  # the client's patience, not the server, ended it
    assert log()[0]["sent"] == SHARE[30]
    assert len(ask("/stall/a.gguf")[2]) == len(DATA)


def test_trickle_sends_a_byte_per_second_once(ask, log):
    # The client gives up as it would for a silence only: not within these seconds.
    start = time.monotonic()
    thread = threading.Thread(target=ask, args=("/trickle/a.gguf",), daemon=True)
    thread.start()
    while not (entries := log()) or entries[0]["sent"] < SHARE[30] + 2:
        assert time.monotonic() < start + 10
        time.sleep(0.1)
    assert time.monotonic() > start + 1.5
    assert len(ask("/trickle/a.gguf")[2]) == len(DATA)


def test_no_range_sends_everything_again(ask):
    status, headers, body = ask("/no-range/a.gguf", Range="bytes=5-")
    assert (status, body) == (200, DATA)
    assert "Accept-Ranges" not in headers


def test_no_range_drop_is_cut_in_the_middle_once(ask, log):
    assert len(ask("/no-range-drop/a.gguf")[2]) == SHARE[50]
    assert ask("/no-range-drop/a.gguf", Range=f"bytes={SHARE[50]}-")[2] == DATA
    assert sum(entry["sent"] for entry in log()) == len(DATA) + SHARE[50]


def test_range_refused_refuses_to_resume_once(ask):
    assert len(ask("/range-refused/a.gguf", Range="bytes=0-")[2]) == SHARE[30]
    assert ask("/range-refused/a.gguf", Range=f"bytes={SHARE[30]}-")[0] == 416
    assert ask("/range-refused/a.gguf", Range=f"bytes={SHARE[30]}-")[2] == DATA[SHARE[30] :]


@pytest.mark.parametrize(("fault", "status"), [("limited", 429), ("unavailable", 503)])
def test_a_busy_server_answers_at_the_third_request(ask, fault, status):
    for method in ("HEAD", "GET"):
        answers = [ask(f"/{fault}/a.gguf", method)[:2] for _ in range(3)]
        assert [answer[0] for answer in answers] == [status, status, 200]
        assert answers[0][1]["Retry-After"] == ("2" if status == 429 else None)


def test_a_changed_file_has_another_length_and_another_etag(ask):
    _, before, body = ask("/changes/a.gguf")
    assert len(body) == SHARE[30]
    _, after, body = ask("/changes/a.gguf")
    assert (body, before["ETag"] != after["ETag"]) == (DATA + b"new", True)


def test_damage_is_one_bit_always_or_once(ask):
    bodies = [ask(f"/{fault}/a.gguf")[2] for fault in ("damaged", "damaged", "damaged-once", "damaged-once")]
    flipped = [sum((a ^ b).bit_count() for a, b in zip(body, DATA, strict=True)) for body in bodies]
    assert flipped == [1, 1, 1, 0]


def test_cut_short_never_passes_its_end(ask):
    assert ask("/cut-short/a.gguf")[2] == DATA[: SHARE[60]]
    status, headers, body = ask("/cut-short/a.gguf", Range=f"bytes={SHARE[60]}-")
    assert (status, int(headers["Content-Length"]), body) == (206, len(DATA) - SHARE[60], b"")


def test_longer_sends_more_than_the_file_has(ask):
    _, headers, body = ask("/longer/a.gguf")
    assert int(headers["Content-Length"]) == len(body) == len(DATA) + (1 << 20)


def test_web_pages_come_in_place_of_the_file(ask):
    for fault, head, get in (
        ("html", "text/html", "text/html"),
        ("html-get", "application/octet-stream", "application/octet-stream"),
    ):
        assert ask(f"/{fault}/a.gguf", "HEAD")[1]["Content-Type"] == head
        _, headers, body = ask(f"/{fault}/a.gguf")
        assert (headers["Content-Type"], body.startswith(b"<!DOCTYPE html>")) == (get, True)
    assert int(ask("/html-get/a.gguf", "HEAD")[1]["Content-Length"]) == len(DATA)


def test_slow_is_one_speed_for_all_connections(ask):
    start = time.monotonic()
    threads = [threading.Thread(target=ask, args=("/slow/a.gguf",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start > 0.9  # 2 MiB at 2 MiB/s


def test_answers_leave_the_connection_open(address):
    connection = http.client.HTTPConnection(*address, timeout=5)
    for method, path in (("HEAD", "/plain/a.gguf"), ("GET", "/missing/a.gguf"), ("GET", "/plain/a.gguf")):
        connection.request(method, path, headers={"Host": "files.internal"})
        response = connection.getresponse()
        response.read()
        assert not response.will_close
    connection.close()


def test_files_outside_the_directory_do_not_exist(ask):
    assert ask("/plain/../../../../../../etc/passwd")[0] == 404
    assert ask("/plain/%2Fetc%2Fpasswd")[0] == 404


class TestHub:
    """hub.internal and cdn.internal."""

    def follow(self, ask, path: str, **headers):
        """Asks the hub and then the CDN, without the hub's headers."""
        status, found, _ = ask(path, host="hub.internal", **headers)
        assert status == 302
        return ask(found["Location"].removeprefix("http://cdn.internal"), host="cdn.internal")

    def test_redirects_and_announces_the_sha256(self, ask, log):
        status, headers, _ = ask("/any/model/resolve/main/a.gguf", "HEAD", "hub.internal")
        assert (status, headers["X-Linked-Etag"]) == (302, f'"{SHA256}"')
        assert int(headers["X-Linked-Size"]) == len(DATA)
        assert len(headers["X-Repo-Commit"]) == 40
        assert self.follow(ask, "/any/model/resolve/main/a.gguf")[2] == DATA
        assert [entry["host"] for entry in log()] == ["hub.internal"] * 2 + ["cdn.internal"]

    def test_a_repositorys_name_chooses_the_fault(self, ask):
        assert len(self.follow(ask, "/any/drop/resolve/main/a.gguf")[2]) == SHARE[30]

    def test_a_gated_repository_wants_the_token(self, ask, log):
        path = "/gated/model/resolve/main/a.gguf"
        assert ask(path, host="hub.internal")[0] == 401
        assert ask(path, host="hub.internal", Authorization="Bearer wrong")[0] == 403
        assert self.follow(ask, path, Authorization="Bearer open-sesame")[2] == DATA
        assert [entry["authorization"] for entry in log()] == [False, True, True, False]

    def test_the_cdn_wants_a_signature_and_no_token(self, ask):
        assert ask("/plain/a.gguf", host="cdn.internal")[0] == 403
        location = ask("/any/model/resolve/main/a.gguf", host="hub.internal")[1]["Location"]
        path = location.removeprefix("http://cdn.internal")
        assert ask(path, host="cdn.internal", Authorization="Bearer open-sesame")[0] == 400

    def test_a_brief_signature_is_good_for_a_moment(self, ask):
        location = ask("/brief/model/resolve/main/a.gguf", host="hub.internal")[1]["Location"]
        path = location.removeprefix("http://cdn.internal")
        assert ask(path, host="cdn.internal")[0] == 200
        end = time.monotonic() + 10
        while ask(path, "HEAD", "cdn.internal")[0] == 200 and time.monotonic() < end:
            time.sleep(0.1)
        assert ask(path, host="cdn.internal")[0] == 403

    def test_a_moved_file_is_another_one_until_the_reset(self, ask):
        path = "/moved/model/resolve/main/a.gguf"
        new = hashlib.sha256(DATA + b"new").hexdigest()
        announced = []
        for order in ("reset", "move", "reset"):
            ask(f"/control/{order}", "POST")
            announced.append(ask(path, "HEAD", "hub.internal")[1]["X-Linked-Etag"])
        assert announced == [f'"{SHA256}"', f'"{new}"', f'"{SHA256}"']


def test_a_reset_starts_log_and_faults_anew(ask, log):
    ask("/drop/a.gguf")
    ask("/control/reset", "POST")
    assert log() == []
    assert len(ask("/drop/a.gguf")[2]) == SHARE[30]


def test_test_models_are_gguf_files_of_their_size(standin, tmp_path):
    make = standin("make-models")
    data = make.model("any", 4096)
    (tmp_path / "a.gguf").write_bytes(data)
    assert (gguf.header_problem(str(tmp_path / "a.gguf")), len(data)) == ("", 4096)
    assert data == make.model("any", 4096) != make.model("other", 4096)
