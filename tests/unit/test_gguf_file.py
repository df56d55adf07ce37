"""Model files: what is refused, what is verified, what is read again; on real files."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import gguf_file
import pytest
from ansible.module_utils import gguf

PROJECT = Path(__file__).resolve().parents[2]
GOOD = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0) + b"tensors"
OTHER = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0) + b"TENSORS"
URL = "https://user:secret@m.example/x.gguf?token=secret"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def model(tmp_path):
    """A good model file in place, without a record."""
    path = tmp_path / "x.gguf"
    path.write_bytes(GOOD)
    return str(path)


@pytest.fixture
def reads(monkeypatch):
    """The paths that were read completely."""
    paths = []
    monkeypatch.setattr(gguf_file, "sha256_of", lambda path: paths.append(path) or gguf.sha256_of(path))
    return paths


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (GOOD, ""),
        (struct.pack("<4sIQQ", b"GGUF", 2, 0, 0), ""),
        (b"", "it is empty (0 bytes)"),
        (GOOD[:10], "its header is cut off after 10 bytes"),
        (
            struct.pack("<4sIQQ", b"GGUF", 1, 0, 0),
            "it has GGUF version 1; llama.cpp reads 2 and 3",
        ),
        (
            struct.pack(">4sIQQ", b"GGUF", 3, 0, 0),
            "it is a big-endian GGUF file; take the little-endian one",
        ),
        (
            b"\n<!DOCTYPE html>\n<html>Sign  in</html>",
            "it is an HTML or XML page: '<!DOCTYPE html> <html>Sign in</html>'",
        ),
        (b"<html>" + b"x" * 600, f"it is an HTML or XML page: '<html>{'x' * 54}'"),
        (b'{"error": "gone"}', 'it is JSON: \'{"error": "gone"}\''),
        (b"Entry not found", "it is text: 'Entry not found'"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "it is a git-lfs pointer, not the file itself (use the /resolve/ URL):"
            " 'version https://git-lfs.github.com/spec/v1 oid sha256:1'",
        ),
        (
            b"PK\x03\x04rest",
            "it does not begin with GGUF but with bytes 504b0304: 'PKrest'",
        ),
    ],
)
def test_what_is_no_gguf_file_is_recognised(tmp_path, content, problem):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    assert gguf.header_problem(str(path)) == problem


def test_a_missing_file_is_not_in_place(tmp_path):
    found = gguf_file.look(str(tmp_path / "x.gguf"), sha256(GOOD), URL)
    assert found == {
        "present": False,
        "reason": "it is not there",
        "hashed": False,
        "changed": False,
    }


def test_a_file_without_record_is_read_once(model, reads):
    assert gguf_file.look(model, sha256(GOOD), URL) == {
        "present": True,
        "reason": "",
        "hashed": True,
        "changed": True,
    }
    assert gguf_file.look(model, sha256(GOOD).upper(), URL) == {
        "present": True,
        "reason": "",
        "hashed": False,
        "changed": False,
    }
    assert reads == [model]


def test_the_record_says_what_was_verified_and_no_secret(model):
    gguf_file.look(model, sha256(GOOD), URL)
    status = os.stat(model)
    record = Path(model).with_name(".x.gguf.verified")
    assert json.loads(record.read_text()) == {
        "sha256": sha256(GOOD),
        "size": len(GOOD),
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
        "url": "https://m.example/x.gguf",
    }
    assert record.stat().st_mode & 0o777 == 0o644
    assert sorted(os.listdir(os.path.dirname(model))) == [".x.gguf.verified", "x.gguf"]


def test_check_mode_writes_no_record(model):
    assert gguf_file.look(model, sha256(GOOD), URL, record=False)["changed"] is True
    assert os.listdir(os.path.dirname(model)) == ["x.gguf"]


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"sha256": 1}', "\x00"])
def test_a_damaged_record_counts_as_none(model, reads, record):
    Path(gguf.record_path(model)).write_text(record)
    assert gguf_file.look(model, sha256(GOOD), URL)["present"] is True
    assert reads == [model]


def test_a_touched_file_is_read_again_and_still_good(model, reads):
    gguf_file.look(model, sha256(GOOD), URL)
    os.utime(model, ns=(1, 1))
    assert gguf_file.look(model, sha256(GOOD), URL)["present"] is True
    assert len(reads) == 2


def test_a_damaged_file_is_noticed_and_not_in_place(model):
    gguf_file.look(model, sha256(GOOD), URL)
    Path(model).write_bytes(OTHER)
    found = gguf_file.look(model, sha256(GOOD), URL)
    assert (found["present"], found["changed"]) == (False, False)
    assert found["reason"] == f"its sha256 is {sha256(OTHER)}, expected {sha256(GOOD)}"


def test_another_expected_sha256_reads_the_file_again(model, reads):
    gguf_file.look(model, sha256(GOOD), URL)
    found = gguf_file.look(model, sha256(OTHER), URL)
    assert found["reason"] == f"its sha256 is {sha256(GOOD)}, expected {sha256(OTHER)}"
    assert len(reads) == 2


def test_a_file_that_is_not_gguf_is_not_read_to_its_end(model, reads):
    Path(model).write_bytes(b"<html>")
    assert gguf_file.look(model, sha256(b"<html>"), URL)["present"] is False
    assert reads == []


def test_a_waived_file_is_recorded_and_then_guarded_by_its_record(model, reads):
    assert gguf_file.look(model, "none", URL)["present"] is True
    assert gguf_file.look(model, "none", URL)["hashed"] is False
    Path(model).write_bytes(OTHER)
    found = gguf_file.look(model, "none", URL)
    assert found["reason"] == f"its sha256 is {sha256(OTHER)}, expected {sha256(GOOD)}"


def test_without_a_sha256_another_url_is_another_file(model, reads):
    gguf_file.look(model, "none", URL)
    for given in ("none", ""):
        found = gguf_file.look(model, given, "https://m.example/y.gguf")
        assert (found["present"], found["reason"]) == (False, "its URL has changed")
    assert len(reads) == 1
    assert gguf_file.look(model, sha256(GOOD), "https://m.example/y.gguf")["present"] is True


def test_without_a_sha256_only_an_earlier_verification_counts(model, reads):
    found = gguf_file.look(model, "", URL)
    assert (found["present"], found["reason"]) == (False, "it has not been verified yet")
    assert reads == []
    gguf_file.look(model, sha256(GOOD), URL)
    assert gguf_file.look(model, "", URL)["present"] is True


def test_a_directory_in_the_place_of_a_model_is_an_error(tmp_path):
    with pytest.raises(OSError, match="is not a file; move it away"):
        gguf_file.look(str(tmp_path), "none", URL)


@pytest.fixture
def download(tmp_path):
    """Returns a function: content -> path of a finished download of it."""
    directory = tmp_path / ".partial"
    directory.mkdir()

    def finished(content=GOOD):
        path = directory / "x.gguf"
        path.write_bytes(content)
        return str(path)

    return finished


def test_a_good_download_is_moved_into_place_and_recorded(tmp_path, download):
    path = str(tmp_path / "x.gguf")
    source = download()
    inode = os.stat(source).st_ino
    gguf_file.install(source, path, sha256(GOOD), URL, len(GOOD))
    assert os.stat(path).st_ino == inode, "moved, not copied"
    assert not os.path.exists(source)
    assert gguf_file.look(path, sha256(GOOD), URL)["hashed"] is False


@pytest.mark.parametrize(
    ("content", "expected", "size", "message"),
    [
        (
            OTHER,
            sha256(GOOD),
            0,
            f"x.gguf: what https://m.example/x.gguf sent is not installed: sha256 expected"
            f" {sha256(GOOD)}, got {sha256(OTHER)}."
            " Correct sha256 or url of the model in llm_models.",
        ),
        (
            b"<html>Sign in</html>",
            "none",
            0,
            "x.gguf: what https://m.example/x.gguf sent is not installed, because it is an HTML or"
            " XML page: '<html>Sign in</html>'. Correct its url in llm_models.",
        ),
        (
            GOOD,
            "none",
            999,
            f"x.gguf: what https://m.example/x.gguf sent is not installed, because it has"
            f" {len(GOOD)} bytes of the announced 999. Run the play again; if it stays so, the"
            " source or a proxy on the way cuts it off.",
        ),
    ],
)
def test_a_wrong_download_is_removed_and_what_is_in_place_stays(
    model, download, content, expected, size, message
):
    gguf_file.look(model, sha256(GOOD), URL)
    source = download(content)
    with pytest.raises(gguf_file.Refused) as refused:
        gguf_file.install(source, model, expected, URL, size)
    assert str(refused.value) == message
    assert not os.path.exists(source)
    assert Path(model).read_bytes() == GOOD
    assert gguf_file.look(model, sha256(GOOD), URL)["hashed"] is False


def run_module(**arguments):
    """Run the module as Ansible does, in a process of its own; return (failed, result)."""
    run = subprocess.run(
        [sys.executable, "-c", "import ansible.module_utils as u, runpy, sys;"
         f"u.__path__.append('{PROJECT}/plugins/module_utils');"
         f"runpy.run_path('{PROJECT}/plugins/modules/gguf_file.py', run_name='__main__')",
         json.dumps({"ANSIBLE_MODULE_ARGS": arguments})],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return run.returncode != 0, json.loads(run.stdout)


def test_the_module_sets_owner_and_mode_before_the_file_is_in_place(tmp_path, download):
    path = tmp_path / "x.gguf"
    failed, result = run_module(path=str(path), source=download(), sha256=sha256(GOOD), url=URL, mode="0640")
    assert (failed, result["changed"], result["present"]) == (False, True, True)
    assert path.stat().st_mode & 0o777 == 0o640
    failed, result = run_module(path=str(path), sha256=sha256(GOOD), url=URL, mode="0640")
    assert (failed, result["changed"]) == (False, False)
    failed, result = run_module(path=str(path), sha256=sha256(GOOD), url=URL, mode="0600")
    assert (failed, result["changed"]) == (False, True)


def test_the_module_fails_with_the_one_line_of_a_refusal(tmp_path, download):
    failed, result = run_module(path=str(tmp_path / "x.gguf"), source=download(b"{}"), sha256="none")
    assert failed
    assert result["msg"].startswith("x.gguf: what ")
    assert "it is JSON: '{}'" in result["msg"]
    assert os.listdir(tmp_path / ".partial") == []


def test_the_module_never_installs_a_file_whose_sha256_nobody_knows(tmp_path, download):
    failed, result = run_module(path=str(tmp_path / "x.gguf"), source=download(), url=URL)
    assert failed
    assert result["msg"] == (
        "x.gguf: no sha256 is known for https://m.example/x.gguf;"
        " give sha256 in llm_models (sha256sum FILE), or 'sha256: none' to waive it"
    )


def test_check_mode_says_what_would_be_fetched_and_touches_nothing(tmp_path):
    failed, result = run_module(
        path=str(tmp_path / "x.gguf"),
        source=str(tmp_path / "none.gguf"),
        sha256=sha256(GOOD),
        url=URL,
        mode="0644",
        _ansible_check_mode=True,
    )
    assert (failed, result["changed"]) == (False, True)
    assert result["msg"] == f"{tmp_path}/x.gguf would be fetched from https://m.example/x.gguf"
    assert os.listdir(tmp_path) == []
