"""Model files on their way: real files, real HTTP sources, real processes, and a stand-in of aria2.

The stand-in brings a file in steps (standins.Aria2). What the source announces comes from a web server, which
the module asks itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import signal
import socket
import ssl
import threading
from pathlib import Path
from types import SimpleNamespace

import gguf_fetch
import gguf_progress
import pytest
from ansible.module_utils import gguf, store
from conftest import PROJECT
from standins import Aria2, Source, end_module, go_straight, start_module, until

loader = importlib.machinery.SourceFileLoader("make_models", f"{PROJECT}/molecule/models/standin/make-models")
make_models = importlib.util.module_from_spec(importlib.util.spec_from_loader("make_models", loader))
loader.exec_module(make_models)

PERCENT = 4096
SIZE = 100 * PERCENT
GOOD = make_models.model("good", SIZE)
OTHER = make_models.model("other", SIZE)
HALF = {"upto": 50 * PERCENT, "exit": 1}
# Nothing but more room mends this: the run ends, with half of the file.
DISK_FULL = {**HALF, "exit": 9}
NOTHING = {"upto": 0, "exit": 1}
READOUT = "[#2089b0 204800B/409600B(50%) CN:4 DL:118476B ETA:4m51s]"


def reason(text, code=22):
    """A line in which aria2 says why an attempt failed."""
    return f"Exception: [HttpSkipResponseCommand.cc:239] errorCode={code} {text}"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Host:
    """A host with a directory of models.

    Attributes:
        directory: of the models.
        aria2: its stand-in.
        hub_url: what the model hub is to it.
        waits: seconds that were waited between attempts; they pass at once.
        owned: the files that were given their owner, each with whether the model was in place by then.
    """

    def __init__(self, folder):
        self.directory = folder / "model"
        self.directory.mkdir()
        self.partial = self.directory / ".partial"
        self.aria2 = Aria2(folder / "bin")
        self.hub_url = "https://hub.example"
        self.waits = []
        self.owned = []

    def own(self, path):
        self.owned.append((os.path.relpath(path, self.directory), (self.directory / "x.gguf").exists()))

    def options(self, files, **given):
        """The module's parameters, with patience for 3 attempts."""
        return {
            "files": files,
            "directory": str(self.directory),
            "hub_url": self.hub_url,
            "mirror_url": "",
            "token": "",
            "ca_bundle": "",
            "connections": 4,
            "parallel_files": 2,
            "rate_limit": "",
            "timeout": 5,
            "attempts": 3,
            "retry_wait": 5,
            "proofs": [str(self.directory.parent / "*" / "good" / "proved.json")],
            **given,
        }

    def fetch(self, *files, own=None, **options):
        """Runs the fetch in this process; returns (fetched, problems)."""
        return gguf_fetch.run(self.options(list(files), **options), own or self.own)

    def read(self, file="x.gguf"):
        """What is in place, None for nothing."""
        path = self.directory / file
        return path.read_bytes() if path.exists() else None

    def leftovers(self):
        """What lies among the unfinished downloads."""
        return sorted(set(os.listdir(self.partial)) - {".lock", ".progress.json"})

    def progress(self):
        return gguf_progress.progress(str(self.partial))


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host whose time passes quickly."""
    made = Host(tmp_path)
    monkeypatch.setenv("PATH", f"{made.aria2.folder}:{os.environ['PATH']}")
    go_straight(monkeypatch, tmp_path)

    class Event(threading.Event):
        def wait(self, timeout=None):
            made.waits.append(timeout)
            return self.is_set()

    monkeypatch.setattr(gguf_fetch, "threading", SimpleNamespace(Event=Event, Lock=threading.Lock))
    before = signal.getsignal(signal.SIGTERM)
    yield made
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def web():
    """A web server."""
    with Source() as server:
        yield server


@pytest.fixture
def offer(web, host):
    """Returns a function: has the web server offer a file, in steps; gives its entry for the module."""

    def offered(*steps, file="x.gguf", content=GOOD, answers=None, **entry):
        headers = {"Content-Length": len(content), "ETag": '"v1"', "Last-Modified": "yesterday"}
        url = web.offer(f"/{file}", *(answers or [(200, headers)]))
        host.aria2.plays(file, content, *steps)
        return {"file": file, "url": url, "sha256": sha256(content), "size": 0, "link": False, **entry}

    return offered


@pytest.fixture
def hub(web, host):
    """Returns a function: has the hub offer a file, in steps; gives the entry, which has no sha256.

    The web server is the hub then.
    """
    host.hub_url = web.url

    def offered(*steps, content=GOOD, announced="", **entry):
        headers = {
            "X-Linked-Etag": f'"{announced or sha256(content)}"',
            "X-Linked-Size": len(content),
            "Location": "http://cdn.invalid/lfs/0123?signature=signed",
        }
        url = web.offer("/o/r/resolve/main/x.gguf", (302, headers))
        host.aria2.plays("x.gguf", content, *steps)
        return {"file": "x.gguf", "url": url, "sha256": "", "size": 0, "link": False, **entry}

    return offered


class TestInPlace:
    def test_a_file_comes_whole_with_its_owner_and_its_record(self, host, offer):
        wanted = offer()
        fetched, problems = host.fetch(wanted)
        assert (fetched, problems) == ([{"file": "x.gguf", "attempts": 1, "bytes": SIZE}], [])
        assert host.read() == GOOD
        assert host.owned == [(".partial/x.gguf", False)], "before it is in place"
        assert store.look(str(host.directory / "x.gguf"), wanted["sha256"], wanted["url"]) == {
            "present": True, "reason": "", "hashed": False, "changed": False,
        }  # fmt: skip
        assert host.leftovers() == []
        assert host.progress() == {"x.gguf": {"state": "in place", "size": SIZE}}

    def test_what_an_earlier_fetch_has_brought_meanwhile_is_not_fetched_again(self, host, offer, web):
        wanted = offer()
        host.fetch(wanted)
        asked = len(web.seen)
        assert host.fetch(wanted) == ([{"file": "x.gguf", "attempts": 1, "bytes": SIZE}], [])
        assert len(host.aria2.calls()) == 1
        assert len(web.seen) == asked

    def test_the_hub_says_which_sha256_a_file_must_have(self, host, hub, web):
        fetched, problems = host.fetch(hub())
        assert (fetched[0]["bytes"], problems, host.read()) == (SIZE, [], GOOD)

    def test_what_aria2_is_told_is_where_the_hub_sends_to(self, host, hub, web):
        host.fetch(hub())
        assert host.aria2.calls()[0]["stdin"].splitlines() == [
            "http://cdn.invalid/lfs/0123?signature=signed",
            "  out=x.gguf",
        ]

    def test_a_waived_sha256_is_not_asked_for(self, host, offer):
        host.fetch(offer(sha256="none"))
        assert host.read() == GOOD
        assert gguf.read_record(str(host.directory / "x.gguf"))["sha256"] == sha256(GOOD)

    def test_a_file_put_there_by_hand_that_the_hub_knows_is_not_fetched(self, host, hub, web):
        (host.directory / "x.gguf").write_bytes(GOOD)
        assert host.fetch(hub())[1] == []
        assert host.aria2.calls() == []
        assert store.look(str(host.directory / "x.gguf"), sha256(GOOD))["hashed"] is False

    def test_a_file_put_there_by_hand_that_is_another_one_is_replaced(self, host, hub, web):
        (host.directory / "x.gguf").write_bytes(OTHER)
        host.fetch(hub())
        assert host.read() == GOOD

    def test_one_failing_file_does_not_keep_the_others_from_their_place(self, host, offer):
        files = [
            offer(file="gone.gguf", answers=[(404, {})]),
            offer({"content": OTHER}, file="bad.gguf"),
            offer(),
        ]
        fetched, problems = host.fetch(*files)
        assert [entry["file"] for entry in fetched] == ["x.gguf"]
        assert problems == [
            f"gone.gguf: {files[0]['url']} answers 404 (not found): correct the url",
            f"bad.gguf: what {files[1]['url']} sent is not installed: sha256 expected {sha256(GOOD)}, got"
            f" {sha256(OTHER)}. Correct sha256 or url of the model in llm_models.",
        ]
        assert {file: state["state"] for file, state in host.progress().items()} == {
            "gone.gguf": "failed", "bad.gguf": "failed", "x.gguf": "in place",
        }  # fmt: skip
        assert host.progress()["gone.gguf"]["note"] == problems[0]
        assert (host.read(), host.read("bad.gguf")) == (GOOD, None)


class TestGoesOn:
    """What has arrived is kept, as long as it is of the same file."""

    def begin(self, host, wanted):
        """Half of the file arrives."""
        host.fetch(wanted)
        assert host.aria2.found() == [None]
        assert host.leftovers() == ["x.gguf", "x.gguf.aria2", "x.gguf.source"]

    def test_from_where_an_earlier_run_was(self, host, offer):
        wanted = offer(DISK_FULL, {})
        self.begin(host, wanted)
        host.fetch(wanted)
        assert host.aria2.found() == [None, HALF["upto"]]
        assert (host.read(), host.leftovers()) == (GOOD, [])

    def test_from_where_an_earlier_attempt_was(self, host, offer):
        host.fetch(offer(HALF, {"upto": 80 * PERCENT, "exit": 1}, {}))
        assert host.aria2.found() == [None, 50 * PERCENT, 80 * PERCENT]
        assert host.read() == GOOD

    @pytest.mark.parametrize("lost", ["x.gguf.aria2", "x.gguf.source"])
    def test_not_from_what_nobody_has_notes_of(self, host, offer, lost):
        wanted = offer(DISK_FULL, {})
        self.begin(host, wanted)
        (host.partial / lost).unlink()
        host.fetch(wanted)
        assert host.aria2.found() == [None, None]
        assert (host.read(), host.leftovers()) == (GOOD, [])

    @pytest.mark.parametrize("note", ["", "[]", "\0"])
    def test_not_from_what_has_a_damaged_note(self, host, offer, note):
        wanted = offer(DISK_FULL, {})
        self.begin(host, wanted)
        (host.partial / "x.gguf.source").write_text(note)
        host.fetch(wanted)
        assert host.aria2.found() == [None, None]

    @pytest.mark.parametrize(
        ("changed", "kept"),
        [
            ({}, True),
            ({"ETag": '"v2"'}, True),  # several servers behind one name
            ({"Last-Modified": "today"}, True),
            ({"ETag": '"v2"', "Last-Modified": "today"}, False),
            ({"ETag": '"v2"', "Last-Modified": ""}, False),
            ({"ETag": "", "Last-Modified": ""}, True),
            ({"Content-Length": SIZE + 1}, False),
        ],
    )
    def test_only_with_the_same_version(self, host, offer, web, changed, kept):
        wanted = offer(DISK_FULL, {})
        self.begin(host, wanted)
        status, headers = web.answers["/x.gguf"][0]
        web.offer("/x.gguf", (status, headers | changed))
        host.fetch(wanted)
        assert host.aria2.found() == [None, HALF["upto"] if kept else None]
        assert host.read() == GOOD

    def test_only_with_the_same_sha256_of_the_hub(self, host, hub):
        self.begin(host, hub(DISK_FULL))
        host.fetch(hub(content=OTHER))
        assert host.aria2.found() == [None]
        assert host.read() == OTHER

    def test_only_with_the_same_sha256_of_the_catalogue(self, host, offer):
        self.begin(host, offer(DISK_FULL))
        host.fetch(offer(content=OTHER))
        assert host.aria2.found() == [None]
        assert host.read() == OTHER

    @pytest.mark.parametrize(("given", "kept"), [(sha256(GOOD), True), ("none", False)])
    def test_from_another_url_only_if_a_sha256_vouches_for_it(self, host, offer, web, given, kept):
        wanted = offer(DISK_FULL, {}, sha256=given)
        self.begin(host, wanted)
        url = web.offer("/moved/x.gguf", *web.answers["/x.gguf"])
        host.fetch({**wanted, "url": url})
        assert host.aria2.found() == [None, HALF["upto"] if kept else None]
        assert host.read() == GOOD

    def test_a_complete_download_is_only_verified(self, host, offer):
        wanted = offer()

        def killed(path):
            raise OSError("killed while it was verified")

        assert host.fetch(wanted, own=killed)[1] == ["x.gguf: killed while it was verified"]
        assert host.leftovers() == ["x.gguf", "x.gguf.source"]
        host.fetch(wanted)
        assert len(host.aria2.calls()) == 1
        assert (host.read(), host.leftovers()) == (GOOD, [])


class TestProof:
    def test_a_wrong_file_is_refused_and_what_is_in_place_stays(self, host, offer):
        (host.directory / "x.gguf").write_bytes(OTHER)
        fetched, problems = host.fetch(offer({"content": OTHER}))
        assert fetched == []
        assert f"sha256 expected {sha256(GOOD)}, got {sha256(OTHER)}" in problems[0]
        assert len(host.aria2.calls()) == 1, "the catalogue is to blame: it would be wrong again"
        assert (host.read(), host.leftovers()) == (OTHER, [])

    @pytest.mark.parametrize("content", [b"<html>Please sign in</html>", GOOD[:-1]])
    def test_no_waiver_lets_a_web_page_or_half_a_file_in(self, host, offer, content):
        assert host.fetch(offer({"content": content}, sha256="none"))[0] == []
        assert (host.read(), host.leftovers()) == (None, [])

    def test_what_several_attempts_have_put_together_wrongly_is_begun_anew(self, host, offer):
        fetched, problems = host.fetch(offer(HALF, {"content": OTHER}, {}))
        assert problems == []
        assert host.aria2.found() == [None, HALF["upto"], None]
        assert host.read() == GOOD
        assert fetched == [{"file": "x.gguf", "attempts": 3, "bytes": SIZE}]

    def test_what_is_not_what_the_hub_announces_is_fetched_once_more(self, host, hub, web):
        assert host.fetch(hub({"content": OTHER}, {}))[1] == []
        assert host.aria2.found() == [None, None]
        assert host.read() == GOOD

    def test_what_its_source_has_replaced_meanwhile_is_fetched_once_more(self, host, offer):
        old = (200, {"Content-Length": SIZE, "ETag": '"v1"'})
        new = (200, {"Content-Length": SIZE, "ETag": '"v2"'})
        wanted = offer({"content": OTHER}, {}, answers=[old, old, new])
        assert host.fetch(wanted)[1] == []
        assert host.aria2.found() == [None, None]
        assert host.read() == GOOD

    def test_but_not_for_ever(self, host, hub, web):
        problems = host.fetch(hub({"content": OTHER}))[1]
        assert f"got {sha256(OTHER)}" in problems[0]
        assert len(host.aria2.calls()) == 2
        assert (host.read(), host.leftovers()) == (None, [])

    def test_a_sha256_that_the_hub_contradicts_is_told_before_anything_is_fetched(self, host, hub, web):
        wanted = hub(sha256=sha256(OTHER))
        assert host.fetch(wanted) == (
            [],
            [
                f"x.gguf: sha256 expected {sha256(OTHER)}, but {wanted['url']} announces {sha256(GOOD)};"
                " correct sha256, or pin the commit in the url"
            ],
        )
        assert host.aria2.calls() == []

    def test_a_waiver_does_not_make_the_hubs_word_void(self, host, hub, web):
        problems = host.fetch(hub({"content": OTHER}, sha256="none"))[1]
        assert f"sha256 expected {sha256(GOOD)}" in problems[0]

    def test_a_file_that_nobody_vouches_for_is_not_fetched(self, host, offer):
        wanted = offer(sha256="")
        assert host.fetch(wanted)[1] == [
            f"x.gguf: {wanted['url']} announces no sha256; write it into llm_models (sha256sum FILE), or"
            " `sha256: none` to waive the check"
        ]
        assert host.aria2.calls() == []


class TestPatience:
    def test_ends_after_attempts_that_brought_nothing(self, host, offer):
        wanted = offer({**NOTHING, "lines": [reason("Timeout.", 2)]})
        assert host.fetch(wanted, attempts=4)[1] == [
            f"x.gguf: {wanted['url']} breaks off (aria2: Timeout). Given up after 4 attempts; what has"
            " arrived (0 bytes) is kept, and the next run goes on from there"
        ]
        assert len(host.aria2.calls()) == 4
        assert host.waits == [5, 10, 20]
        assert (host.partial / "x.gguf.aria2").exists()

    def test_waits_no_longer_than_a_minute(self, host, offer):
        host.fetch(offer(NOTHING), attempts=5, retry_wait=20)
        assert host.waits == [20, 40, 60, 60]

    def test_begins_anew_with_what_an_attempt_has_brought(self, host, offer):
        steps = [{"upto": percent * PERCENT, "exit": 1} for percent in (20, 20, 20, 40, 40, 40)]
        fetched, problems = host.fetch(offer(*steps, {}), attempts=3)
        assert (fetched[0]["attempts"], problems) == (7, [])
        assert host.waits == [5, 5, 10] * 2

    def test_is_not_renewed_by_next_to_nothing(self, host, offer):
        size = 1000 * PERCENT
        content = make_models.model("large", size)
        steps = [{"upto": number * PERCENT, "exit": 1} for number in range(1, 9)]
        problems = host.fetch(offer(*steps, {}, content=content), attempts=3)[1]
        assert f"Given up after 3 attempts; what has arrived ({3 * PERCENT} bytes) is kept" in problems[0]

    def test_tells_what_an_earlier_run_has_left(self, host, offer, web):
        wanted = offer(DISK_FULL)
        host.fetch(wanted)
        web.offer("/x.gguf", (503, {}))
        problems = host.fetch(wanted, attempts=2)[1]
        assert "answers 503" in problems[0]
        assert f"Given up after 2 attempts; what has arrived ({HALF['upto']} bytes) is kept" in problems[0]

    def test_is_as_long_as_the_source_asks_for(self, host, offer):
        whole = (200, {"Content-Length": SIZE})
        busy = [(429, {"Retry-After": 1}), (429, {"Retry-After": 77}), (503, {}), whole]
        assert host.fetch(offer(answers=busy))[1] == []
        assert host.waits == [77, 10], "asked for the size first, which nobody waits for"

    def test_survives_a_server_that_is_not_there(self, host, offer, web):
        wanted = offer()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/x.gguf"
        problems = host.fetch({**wanted, "url": url})[1]
        assert f"x.gguf: {url} refuses the connection" in problems[0]
        assert "Given up after 3 attempts" in problems[0]

    def test_is_not_for_what_does_not_pass(self, host, offer, web):
        wanted = offer(answers=[(200, {}), (404, {})])
        assert host.fetch(wanted)[1] == [f"x.gguf: {wanted['url']} answers 404 (not found): correct the url"]
        assert (host.waits, len(web.seen)) == ([], 2)

    def test_says_what_the_server_of_the_bytes_answers(self, host, offer):
        line = reason("The response status is not successful. status=503")
        problems = host.fetch(offer({**NOTHING, "lines": [line], "exit": 22}))[1]
        assert "answers 503 (error of the server)" in problems[0]

    def test_shows_no_address(self, host, hub, web):
        line = reason("Failed to fetch http://cdn.invalid/lfs/0123?signature=signed, cause: gone.", 1)
        problems = host.fetch(hub({**NOTHING, "lines": [line, reason("URI=http://cdn.invalid/?signed")]}))[1]
        assert "aria2: Failed to fetch" in problems[0]
        assert "signed" not in problems[0] + json.dumps(host.progress())

    def test_begins_anew_when_the_rest_is_refused_twice(self, host, offer):
        refused = {**HALF, "lines": [reason("The response status is not successful. status=416")], "exit": 22}
        host.fetch(offer(HALF, refused, refused, {}), attempts=5)
        assert host.aria2.found() == [None, HALF["upto"], HALF["upto"], None]
        assert host.read() == GOOD

    def test_begins_anew_when_a_full_disk_has_cut_off_aria2s_notes(self, host, offer):
        cut_off = {**HALF, "lines": [reason("Failed to read from the segment file x.gguf.aria2")], "exit": 1}
        host.fetch(offer(HALF, cut_off, {}))
        assert host.aria2.found() == [None, HALF["upto"], None]
        assert host.read() == GOOD

    def test_is_of_no_use_on_a_full_disk(self, host, offer, monkeypatch):
        monkeypatch.setattr(gguf_fetch, "_free", lambda directory: 10 * SIZE)
        problems = host.fetch(offer(DISK_FULL))[1]
        assert problems == [
            f"x.gguf: the disk of {host.directory} is full ({10 * SIZE} bytes free, all of this file needs"
            f" {SIZE}); make room, and the next run goes on from where it was"
        ]
        assert (len(host.aria2.calls()), host.waits) == (1, [])
        assert (host.partial / "x.gguf").stat().st_size == HALF["upto"]

    def test_is_of_no_use_where_nothing_can_be_written(self, host, offer):
        line = reason("Failed to open the file, cause: Read-only file system", 16)
        problems = host.fetch(offer({**NOTHING, "lines": [line], "exit": 16}))[1]
        assert (
            "cannot be written (aria2: Failed to open the file, cause: Read-only file system)" in problems[0]
        )
        assert len(host.aria2.calls()) == 1


class TestAria2sCommandLine:
    def test_holds_neither_address_nor_token(self, host, hub, web):
        host.fetch(hub(), token="hf_secret")
        assert web.tokens() == ["Bearer hf_secret"] * 2
        (call,) = host.aria2.calls()
        for secret in ("cdn.invalid", "signed", "hf_secret", web.url):
            assert secret not in " ".join(call["argv"])
        assert "hf_secret" not in call["stdin"]

    def test_of_a_mirror_that_has_the_file_itself_aria2_is_told_the_token_but_not_there(self, host, hub, web):
        wanted = hub()
        headers = {"X-Linked-Etag": f'"{sha256(GOOD)}"', "X-Linked-Size": SIZE, "Content-Length": SIZE}
        web.offer("/o/r/resolve/main/x.gguf", (200, headers))
        host.fetch(wanted, token="hf_secret")
        (call,) = host.aria2.calls()
        assert "hf_secret" not in " ".join(call["argv"])
        assert "  header=Authorization: Bearer hf_secret" in call["stdin"].splitlines()

    def test_files_that_are_fetched_at_once_share_the_rate(self, host, offer):
        files = [offer(file=name) for name in ("x.gguf", "y.gguf", "z.gguf")]
        host.fetch(*files, rate_limit="20M", parallel_files=2)
        assert f"--max-overall-download-limit={10 << 20}" in host.aria2.calls()[0]["argv"]

    def test_a_file_alone_has_the_whole_rate(self, host, offer):
        host.fetch(offer(), rate_limit="20M", parallel_files=4)
        assert f"--max-overall-download-limit={20 << 20}" in host.aria2.calls()[0]["argv"]

    def test_without_a_limit_has_none(self, host, offer):
        host.fetch(offer())
        assert "limit=" not in " ".join(host.aria2.calls()[0]["argv"]).replace("--lowest-speed-limit=", "")

    @pytest.mark.parametrize(("text", "rate"), [("1000", 1000), ("500K", 500 << 10), (" 2m ", 2 << 20)])
    def test_a_rate_has_its_unit(self, text, rate):
        assert gguf_fetch.bytes_of(text) == rate

    @pytest.mark.parametrize("text", ["fast", "1G", "1.5M", "-1", ""])
    def test_a_rate_that_is_none_is_told(self, text):
        with pytest.raises(ValueError, match="is not a number of bytes per second, like 500K or 20M"):
            gguf_fetch.bytes_of(text)

    def test_a_private_authority_is_trusted_besides_the_hosts_own(self, host, offer, tmp_path, monkeypatch):
        own, private = tmp_path / "own.pem", tmp_path / "private.pem"
        own.write_text("own certificates")
        private.write_text("private certificates")
        paths = ssl.get_default_verify_paths()._replace(cafile=str(own))
        monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
        host.fetch(offer(), offer(NOTHING, file="y.gguf"), ca_bundle=str(private), attempts=1)
        for file in ("x.gguf", "y.gguf"):
            assert host.aria2.calls(file)[0]["trusted"] == "own certificates\nprivate certificates\n"
        assert not [file for file in host.leftovers() if not file.startswith("y.gguf")]
        assert os.environ["SSL_CERT_FILE"].startswith(str(host.partial))


class TestPeers:
    """Other hosts that have the file already."""

    @pytest.fixture
    def peer(self):
        with Source() as server:
            server.offer("/x.gguf", (200, {"Content-Length": SIZE}))
            yield server

    def test_come_first(self, host, offer, web, peer):
        wanted = offer(peers=[peer.url + "/x.gguf"])
        assert host.fetch(wanted)[1] == []
        assert [call["stdin"].split()[0] for call in host.aria2.calls()] == wanted["peers"]
        assert web.asked() == [], "the source has nothing to do with it"
        assert host.read() == GOOD
        assert gguf.read_record(str(host.directory / "x.gguf"))["url"] == wanted["url"]

    def test_the_source_comes_next_without_delay_and_what_has_arrived_is_kept(self, host, offer, peer):
        wanted = offer(HALF, {}, peers=[peer.url + "/gone.gguf", peer.url + "/x.gguf"])
        assert host.fetch(wanted)[1] == []
        assert [call["stdin"].split()[0] for call in host.aria2.calls()] == [
            wanted["peers"][1],
            wanted["url"],
        ]
        assert host.aria2.found() == [None, HALF["upto"]]
        assert host.waits == []

    def test_that_have_something_else_are_passed_over(self, host, offer, peer):
        wanted = offer({"content": OTHER}, {}, peers=[peer.url + "/x.gguf"])
        assert host.fetch(wanted)[1] == []
        assert host.aria2.calls()[1]["stdin"].split()[0] == wanted["url"]
        assert host.read() == GOOD

    def test_are_measured_by_what_the_hub_announces(self, host, hub, web, peer):
        wanted = hub({"content": OTHER}, {"content": OTHER}, {}, peers=[peer.url + "/x.gguf"])
        assert host.fetch(wanted, token="hf_secret")[1] == []
        first, second, third = (call["stdin"].split()[0] for call in host.aria2.calls())
        assert (first, second == third, "cdn.invalid" in second) == (wanted["peers"][0], True, True)
        assert host.read() == GOOD
        assert set(peer.tokens()) == {None}


class TestWithoutNetwork:
    @pytest.fixture
    def shared(self, tmp_path):
        """A good file elsewhere on the host, as the module's entry."""
        path = tmp_path / "nfs share" / "y.gguf"
        path.parent.mkdir()
        path.write_bytes(GOOD)
        return {"file": "x.gguf", "url": path.as_uri(), "sha256": sha256(GOOD), "size": 0, "link": False}

    def test_a_file_of_the_host_is_copied(self, host, shared):
        fetched, problems = host.fetch(shared)
        assert (fetched[0]["bytes"], problems) == (SIZE, [])
        assert (host.read(), host.leftovers()) == (GOOD, [])
        assert not (host.directory / "x.gguf").is_symlink()
        assert Path(store.source_path(shared["url"])).read_bytes() == GOOD
        assert host.owned == [(".partial/x.gguf", False)]

    def test_or_linked_and_keeps_its_owner(self, host, shared):
        fetched, problems = host.fetch({**shared, "link": True})
        assert (fetched[0]["file"], problems) == ("x.gguf", [])
        assert os.readlink(host.directory / "x.gguf") == store.source_path(shared["url"])
        assert host.owned == []

    @pytest.mark.parametrize("link", [True, False])
    def test_a_wrong_one_is_refused_and_stays_where_it_is(self, host, shared, link):
        problems = host.fetch({**shared, "sha256": sha256(OTHER), "link": link})[1]
        assert "Correct sha256 or path of the model in llm_models." in problems[0]
        assert (host.read(), host.leftovers()) == (None, [])
        assert Path(store.source_path(shared["url"])).exists()

    def test_one_that_is_not_there_is_told(self, host, shared):
        path = store.source_path(shared["url"])
        os.unlink(path)
        assert host.fetch(shared)[1] == [
            f"x.gguf: {path} is not a file on this host; correct path in llm_models"
        ]

    def test_a_file_of_the_controller_lies_ready_and_is_verified(self, host):
        host.partial.mkdir()
        (host.partial / "x.gguf").write_bytes(GOOD)
        wanted = {"file": "x.gguf", "url": "controller:///srv/x.gguf", "sha256": sha256(GOOD)}
        assert host.fetch(wanted)[1] == []
        assert (host.read(), host.leftovers()) == (GOOD, [])
        (host.partial / "x.gguf").write_bytes(OTHER)
        assert "Correct sha256 or controller_path" in host.fetch(wanted)[1][0]
        assert host.read() == GOOD


class TestRoom:
    def test_too_little_is_told_before_the_first_byte(self, host, offer, monkeypatch):
        monkeypatch.setattr(gguf_fetch, "_free", lambda directory: 2 * SIZE - 1)
        with pytest.raises(gguf_fetch.Failed) as failed:
            host.fetch(offer(), offer(file="y.gguf"))
        assert str(failed.value) == (
            f"too little space in {host.directory}: {2 * SIZE} bytes are missing of x.gguf, y.gguf,"
            f" {2 * SIZE - 1} are free; make room, or choose another llm_models_dir"
        )
        assert host.aria2.calls() + host.aria2.calls("y.gguf") == []

    def test_what_has_arrived_needs_none(self, host, offer, monkeypatch):
        wanted = offer(DISK_FULL, {})
        host.fetch(wanted)
        monkeypatch.setattr(gguf_fetch, "_free", lambda directory: SIZE - HALF["upto"])
        assert host.fetch(wanted)[1] == []
        assert host.read() == GOOD

    def test_a_copy_needs_room_and_a_link_none(self, host, tmp_path, monkeypatch):
        (tmp_path / "y.gguf").write_bytes(GOOD)
        url = (tmp_path / "y.gguf").as_uri()
        wanted = {"file": "x.gguf", "url": url, "sha256": sha256(GOOD), "link": False}
        monkeypatch.setattr(gguf_fetch, "_free", lambda directory: 0)
        with pytest.raises(gguf_fetch.Failed, match=f"{SIZE} bytes are missing of x.gguf"):
            host.fetch(wanted)
        assert host.fetch({**wanted, "link": True})[1] == []


class TestWhatAServerWasProvedWith:
    """A file that is replaced under its own name, while the last good release of a server needs it."""

    OLD = GOOD[:-1] + b"!"

    @pytest.fixture
    def replaced(self, host, tmp_path):
        """Returns a function that puts a content in place; the first one is in place, and proved."""
        proof = tmp_path / "llamacpp" / "good" / "proved.json"
        proof.parent.mkdir(parents=True)
        proof.write_text(json.dumps({"models": {"x.gguf": sha256(self.OLD)}}))
        source = tmp_path / "source.gguf"

        def put(content):
            source.write_bytes(content)
            return host.fetch({"file": "x.gguf", "url": source.as_uri(), "sha256": sha256(content)})

        assert put(self.OLD)[1] == []
        return put

    def test_stays_when_another_content_takes_its_name(self, host, replaced):
        inode = (host.directory / "x.gguf").stat().st_ino
        assert replaced(GOOD)[1] == []
        assert host.read() == GOOD
        held = host.directory / ".previous" / f"{sha256(self.OLD)}.gguf"
        assert held.read_bytes() == self.OLD
        assert held.stat().st_ino == inode, "it takes no room besides its own"

    def test_comes_back_without_its_source_and_without_room(self, host, replaced, tmp_path, monkeypatch):
        replaced(GOOD)
        (tmp_path / "source.gguf").unlink()
        monkeypatch.setattr(gguf_fetch, "_free", lambda directory: 0)
        url = (tmp_path / "source.gguf").as_uri()
        assert host.fetch({"file": "x.gguf", "url": url, "sha256": sha256(self.OLD)})[1] == []
        assert host.read() == self.OLD
        assert store.look(str(host.directory / "x.gguf"), sha256(self.OLD), url)["hashed"] is False

    def test_stays_also_when_a_third_one_follows(self, host, replaced):
        replaced(GOOD)
        replaced(GOOD[:-1] + b"?")
        assert sorted(os.listdir(host.directory / ".previous")) == [
            f".{sha256(self.OLD)}.gguf.verified",
            f"{sha256(self.OLD)}.gguf",
        ]

    def test_is_not_kept_when_no_server_was_proved_with_it(self, host, replaced, tmp_path):
        (tmp_path / "llamacpp" / "good" / "proved.json").write_text('{"models": {"y.gguf": "1"}}')
        replaced(GOOD)
        assert not (host.directory / ".previous").exists()


class TestModule:
    """The whole module, in processes of its own."""

    @pytest.fixture
    def start(self, host, tmp_path):
        """Returns a function: starts the module with some files and options."""
        processes = []

        def started(*files, **options):
            process = start_module(tmp_path, "gguf_fetch", **host.options(list(files), **options))
            processes.append(process)
            return process

        yield started
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.communicate()

    def alive(self, pid):
        try:
            return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False

    def test_gives_mode_and_tells_files_and_problems_and_no_secret(self, host, hub, offer, web, start):
        bad = offer(file="y.gguf", answers=[(404, {})])
        failed, result = end_module(start(hub(), bad, token="hf_secret", mode="0640"))
        assert (failed, result["changed"]) == (True, True)
        assert result["fetched"] == [{"file": "x.gguf", "attempts": 1, "bytes": SIZE}]
        assert result["problems"] == [f"y.gguf: {bad['url']} answers 404 (not found): correct the url"]
        assert result["msg"].splitlines()[1:] == [f"- {problem}" for problem in result["problems"]]
        assert (host.directory / "x.gguf").stat().st_mode & 0o777 == 0o640
        assert "hf_secret" not in json.dumps(result)
        assert "signed" not in json.dumps(result)

    def test_a_second_fetch_ends_the_first_and_goes_on_from_there(self, host, offer, start):
        stays = {"upto": HALF["upto"], "stay": READOUT}
        wanted = offer(stays, {})
        first = start(wanted)
        shown = until(lambda: host.progress().get("x.gguf", {}).get("speed") and host.progress())
        assert shown["x.gguf"] == {
            "state": "fetching",
            "done": 204800,
            "size": 409600,
            "speed": 118476,
            "eta": "4m51s",
        }
        assert gguf_progress.running(str(host.partial))
        second = start(wanted)
        failed, result = end_module(first)
        assert (failed, result["msg"]) == (
            True,
            "Another fetch of these files has been started and goes on from here.",
        )
        failed, result = end_module(second)
        assert (failed, result["problems"]) == (False, [])
        assert host.aria2.found() == [None, HALF["upto"]]
        assert host.read() == GOOD
        assert not gguf_progress.running(str(host.partial))

    def test_sigterm_ends_aria2_too_and_what_has_arrived_is_kept(self, host, offer, start):
        process = start(offer({**HALF, "stay": READOUT}))
        (call,) = until(host.aria2.calls)
        until(lambda: host.progress().get("x.gguf", {}).get("speed"))
        assert self.alive(call["pid"])
        process.terminate()
        assert end_module(process)[0] is True
        assert not self.alive(call["pid"])
        assert host.leftovers() == ["x.gguf", "x.gguf.aria2", "x.gguf.source"]
        assert (host.partial / "x.gguf").stat().st_size == HALF["upto"]
        assert (host.partial / ".lock").read_text() == ""

    def test_a_rate_that_is_none_is_told_before_anything_happens(self, host, start):
        failed, result = end_module(start(rate_limit="fast"))
        assert (failed, result["msg"]) == (
            True, "'fast' is not a number of bytes per second, like 500K or 20M",
        )  # fmt: skip
        assert not host.partial.exists()


def test_an_earlier_fetch_that_does_not_end_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_fetch.time, "sleep", lambda seconds: None)
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(gguf_fetch.Failed, match="does not end; look for aria2c and python3 on the host"):
            gguf_fetch.lock(str(tmp_path))


def test_without_aria2_the_host_says_so(host, offer, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert "aria2c" in host.fetch(offer())[1][0]
