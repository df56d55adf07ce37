"""Model files: what is refused, what is verified, what is read again; on real files."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.module_utils import gguf, store

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
    monkeypatch.setattr(
        store, "sha256_of", lambda path, *rest: paths.append(path) or gguf.sha256_of(path, *rest)
    )
    return paths


def test_a_missing_file_is_not_in_place(tmp_path):
    found = store.look(str(tmp_path / "x.gguf"), sha256(GOOD), URL)
    assert found == {
        "present": False,
        "reason": "it is not there",
        "hashed": False,
        "changed": False,
    }


def test_a_file_without_record_is_read_once(model, reads):
    assert store.look(model, sha256(GOOD), URL) == {
        "present": True,
        "reason": "",
        "hashed": True,
        "changed": True,
    }
    assert store.look(model, sha256(GOOD).upper(), URL) == {
        "present": True,
        "reason": "",
        "hashed": False,
        "changed": False,
    }
    assert reads == [model]


def test_the_record_says_what_was_verified_and_no_secret(model):
    store.look(model, sha256(GOOD), URL)
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
    assert store.look(model, sha256(GOOD), URL, record=False)["changed"] is True
    assert os.listdir(os.path.dirname(model)) == ["x.gguf"]


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"sha256": 1}', "\x00"])
def test_a_damaged_record_counts_as_none(model, reads, record):
    Path(gguf.record_path(model)).write_text(record)
    assert store.look(model, sha256(GOOD), URL)["present"] is True
    assert reads == [model]


def test_a_touched_file_is_read_again_and_still_good(model, reads):
    store.look(model, sha256(GOOD), URL)
    os.utime(model, ns=(1, 1))
    assert store.look(model, sha256(GOOD), URL)["present"] is True
    assert len(reads) == 2


def test_a_damaged_file_is_noticed_and_not_in_place(model):
    store.look(model, sha256(GOOD), URL)
    Path(model).write_bytes(OTHER)
    found = store.look(model, sha256(GOOD), URL)
    assert (found["present"], found["changed"]) == (False, False)
    assert found["reason"] == f"its sha256 is {sha256(OTHER)}, expected {sha256(GOOD)}"


def test_another_expected_sha256_reads_the_file_again(model, reads):
    store.look(model, sha256(GOOD), URL)
    found = store.look(model, sha256(OTHER), URL)
    assert found["reason"] == f"its sha256 is {sha256(GOOD)}, expected {sha256(OTHER)}"
    assert len(reads) == 2


def test_a_file_that_is_not_gguf_is_not_read_to_its_end(model, reads):
    Path(model).write_bytes(b"<html>")
    assert store.look(model, sha256(b"<html>"), URL)["present"] is False
    assert reads == []


def test_a_waived_file_is_recorded_and_then_guarded_by_its_record(model, reads):
    assert store.look(model, "none", URL)["present"] is True
    assert store.look(model, "none", URL)["hashed"] is False
    Path(model).write_bytes(OTHER)
    found = store.look(model, "none", URL)
    assert found["reason"] == f"its sha256 is {sha256(OTHER)}, expected {sha256(GOOD)}"


def test_without_a_sha256_another_url_is_another_file(model, reads):
    store.look(model, "none", URL)
    for given in ("none", ""):
        found = store.look(model, given, "https://m.example/y.gguf")
        assert (found["present"], found["reason"]) == (False, "its URL has changed")
    assert len(reads) == 1
    assert store.look(model, sha256(GOOD), "https://m.example/y.gguf")["present"] is True


def test_without_a_sha256_only_an_earlier_verification_counts(model, reads):
    found = store.look(model, "", URL)
    assert (found["present"], found["reason"]) == (False, "it has not been verified yet")
    assert reads == []
    store.look(model, sha256(GOOD), URL)
    assert store.look(model, "", URL)["present"] is True


def test_a_directory_in_the_place_of_a_model_is_an_error(tmp_path):
    with pytest.raises(OSError, match="is not a file; move it away"):
        store.look(str(tmp_path), "none", URL)


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
    store.install(source, path, sha256(GOOD), URL, len(GOOD))
    assert os.stat(path).st_ino == inode, "moved, not copied"
    assert not os.path.exists(source)
    assert store.look(path, sha256(GOOD), URL)["hashed"] is False


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
    store.look(model, sha256(GOOD), URL)
    source = download(content)
    with pytest.raises(store.Refused) as refused:
        store.install(source, model, expected, URL, size)
    assert str(refused.value) == message
    assert not os.path.exists(source)
    assert Path(model).read_bytes() == GOOD
    assert store.look(model, sha256(GOOD), URL)["hashed"] is False


def test_a_content_that_is_brought_back_twice_leaves_nothing_behind(tmp_path, model, download):
    store.look(model, sha256(GOOD), URL)
    proof = tmp_path / "proved.json"
    proof.write_text(json.dumps({"models": {os.path.basename(model): sha256(GOOD)}}))
    store.install(download(OTHER), model, sha256(OTHER), URL, proofs=[str(proof)])
    assert store.bring_back(model, sha256(GOOD), [str(proof)]) is True
    os.unlink(gguf.record_path(model))  # as after a kill between the file and its record
    assert store.bring_back(model, sha256(GOOD), [str(proof)]) is True
    assert store.look(model, sha256(GOOD), URL)["hashed"] is False
    assert not [name for name in os.listdir(tmp_path / ".previous") if name.endswith(".link")]


def test_a_wrong_file_on_the_host_is_not_blamed_on_a_url(download, tmp_path):
    with pytest.raises(store.Refused, match=r"Correct sha256 or path of the model in llm_models\.$"):
        store.check_download(download(), sha256(OTHER), "file:///mnt/x.gguf")
    with pytest.raises(store.Refused, match=r"Correct its controller_path in llm_models\.$"):
        store.check_download(download(b"{}"), "none", "controller:///srv/x.gguf")


def with_tensor(content):
    """A GGUF file of one tensor of bytes."""
    header = struct.pack("<4sIQQQ1sIQIQ", b"GGUF", 3, 1, 0, 1, b"t", 1, len(content), 24, 0)
    return header.ljust(64, b"\0") + content


def test_a_cut_off_download_is_told_before_it_is_read(download, reads):
    content = with_tensor(b"x" * 100)[:-1]
    with pytest.raises(store.Refused) as refused:
        store.check_download(download(content), sha256(content), URL)
    assert str(refused.value) == (
        "x.gguf: what https://m.example/x.gguf sent is not installed, because it is cut off:"
        " 163 of 164 bytes. Run the play again; if it stays so, it is damaged at its source:"
        " correct its url in llm_models."
    )
    assert reads == []


def test_a_download_that_is_too_long_is_refused_unless_its_sha256_is_known(download):
    content = with_tensor(b"x" * 64) + b"<html>"
    assert store.check_download(download(content), sha256(content), URL) == sha256(content)
    with pytest.raises(
        store.Refused, match="it is longer than its own table of tensors says: 134 bytes, not"
    ):
        store.check_download(download(content), "none", URL)


def test_a_file_in_place_that_is_cut_off_is_not_read(model, reads):
    Path(model).write_bytes(with_tensor(b"x" * 100)[:-1])
    assert store.look(model, sha256(GOOD), URL)["reason"] == "it is cut off: 163 of 164 bytes"
    assert reads == []


def test_a_download_that_replaces_a_link_leaves_its_target_alone(tmp_path, download):
    target = tmp_path / "elsewhere.gguf"
    target.write_bytes(OTHER)
    path = tmp_path / "x.gguf"
    path.symlink_to(target)
    store.install(download(), str(path), sha256(GOOD), URL)
    assert (path.is_symlink(), path.read_bytes(), target.read_bytes()) == (False, GOOD, OTHER)


def damage(path):
    """Changes a byte of a file, and neither its size nor its time, as a failing disk does."""
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("given", [sha256(GOOD), "none", ""])
def test_what_a_disk_has_damaged_is_found_by_reading_everything(model, given):
    store.look(model, sha256(GOOD), URL)
    always = store.look(model, given, URL, verify="always")
    assert always == {"present": True, "reason": "", "hashed": True, "changed": False}
    damage(model)
    assert store.look(model, given, URL)["present"] is True, "nobody has read it yet"
    for verify in ("always", "recorded", "recorded"):
        found = store.look(model, given, URL, verify=verify)
        assert found["present"] is False, "once it is known, it stays known"
    reason = f"its sha256 is {sha256(GOOD[:-1] + b'?')}, expected {sha256(GOOD)}"
    assert found["reason"] == (reason if given else "it has not been verified yet")


def test_check_mode_notes_no_damage(model):
    store.look(model, sha256(GOOD), URL)
    damage(model)
    record = Path(gguf.record_path(model)).read_text()
    assert store.look(model, sha256(GOOD), URL, record=False, verify="always")["present"] is False
    assert Path(gguf.record_path(model)).read_text() == record


@pytest.fixture
def shared(tmp_path):
    """A good model file outside of the store, and its URL."""
    path = tmp_path / "nfs share" / "y.gguf"
    path.parent.mkdir()
    path.write_bytes(GOOD)
    return str(path), path.as_uri()


def test_a_linked_file_stays_where_it_is_and_is_verified_once(tmp_path, shared, reads):
    target, url = shared
    path = str(tmp_path / "x.gguf")
    assert store.source_path(url) == target
    assert store.install_link(target, path, sha256(GOOD), url, len(GOOD)) == sha256(GOOD)
    assert os.readlink(path) == target
    assert store.look(path, sha256(GOOD), url, link=True)["present"] is True
    assert reads == [target]
    Path(target).write_bytes(OTHER)
    assert "its sha256 is" in store.look(path, sha256(GOOD), url, link=True)["reason"]


def test_a_wrong_file_is_not_linked_and_not_removed(tmp_path, model, shared):
    target, url = shared
    Path(target).write_bytes(OTHER)
    with pytest.raises(store.Refused, match=r"^x\.gguf: what file:///"):
        store.install_link(target, model, sha256(GOOD), url)
    assert Path(model).read_bytes() == GOOD
    assert not os.path.islink(model)
    assert Path(target).read_bytes() == OTHER


def test_a_leftover_of_an_interrupted_link_is_no_obstacle(tmp_path, model, shared):
    target, url = shared
    (tmp_path / ".x.gguf.link").symlink_to("nowhere")
    store.install_link(target, model, sha256(GOOD), url)
    assert os.readlink(model) == target
    assert sorted(os.listdir(tmp_path)) == [".x.gguf.verified", "nfs share", "x.gguf"]


def test_a_link_whose_target_is_gone_is_missing(tmp_path, shared):
    target, url = shared
    path = str(tmp_path / "x.gguf")
    store.install_link(target, path, sha256(GOOD), url)
    os.unlink(target)
    assert store.look(path, sha256(GOOD), url, link=True)["reason"] == "it is not there"


def test_a_copy_becomes_a_link_and_a_link_a_copy(tmp_path, model, shared):
    target, url = shared
    store.look(model, sha256(GOOD), url)
    assert store.look(model, sha256(GOOD), url, link=True)["reason"] == f"it is not a link to {target}"
    store.install_link(target, model, sha256(GOOD), url)
    assert store.look(model, sha256(GOOD), url)["reason"] == (
        f"it is a link to {target}, and a copy is wanted"
    )


def test_a_link_that_an_operator_has_made_is_as_good_as_a_file(tmp_path, shared):
    target, _url = shared
    path = tmp_path / "x.gguf"
    path.symlink_to(target)
    assert store.look(str(path), sha256(GOOD), URL)["present"] is True


@pytest.fixture
def run_module(tmp_path_factory):
    """Runs the module as Ansible does, in a process of its own; returns (failed, result)."""

    def run(**arguments):
        path = tmp_path_factory.mktemp("arguments") / "arguments.json"
        path.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        run = subprocess.run(
            [sys.executable, "-c", "import ansible.module_utils as u, runpy, sys;"
             f"u.__path__.append('{PROJECT}/plugins/module_utils');"
             f"runpy.run_path('{PROJECT}/plugins/modules/gguf_store.py', run_name='__main__')", str(path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.stdout, run.stderr
        return run.returncode != 0, json.loads(run.stdout)

    return run


def wanted(file, **details):
    return {"file": file, "url": URL, "sha256": sha256(GOOD), "size": 0, "link": False, **details}


def test_the_module_returns_the_entries_of_missing_files_with_reasons(run_module, tmp_path, model):
    (tmp_path / "web.gguf").write_bytes(b"<html>")
    files = [wanted("x.gguf"), wanted("web.gguf", alias="w"), wanted("y.gguf", sha256="", where="there")]
    failed, result = run_module(directory=str(tmp_path), files=files)
    assert (failed, result["changed"], result["hashed"]) == (False, True, ["x.gguf"])
    assert result["present"] == files[:1]
    assert result["missing"] == [
        {**files[1], "reason": "it is an HTML or XML page: '<html>'"},
        {**files[2], "reason": "it is not there"},
    ]
    failed, result = run_module(directory=str(tmp_path), files=files[:1])
    assert (failed, result["changed"], result["hashed"], result["missing"]) == (False, False, [], [])
    failed, result = run_module(directory=str(tmp_path), files=files[:1], verify="always")
    assert (failed, result["changed"], result["hashed"], result["missing"]) == (False, False, ["x.gguf"], [])


def test_the_module_sets_the_mode_of_files_and_never_of_what_is_linked(run_module, tmp_path, model, shared):
    target, url = shared
    os.chmod(target, 0o644)
    store.install_link(target, str(tmp_path / "y.gguf"), sha256(GOOD), url)
    files = [wanted("x.gguf"), wanted("y.gguf", url=url, link=True)]
    for changed in (True, False):
        failed, result = run_module(directory=str(tmp_path), files=files, mode="0640")
        assert (failed, result["changed"], result["missing"]) == (False, changed, [])
    assert os.stat(model).st_mode & 0o777 == 0o640
    assert os.stat(target).st_mode & 0o777 == 0o644


def test_check_mode_changes_nothing_and_says_what_would_change(run_module, tmp_path, model):
    os.chmod(model, 0o600)
    failed, result = run_module(
        directory=str(tmp_path), files=[wanted("x.gguf")], mode="0640", _ansible_check_mode=True
    )
    assert (failed, result["changed"], result["missing"]) == (False, True, [])
    assert os.stat(model).st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["x.gguf"]


def test_a_store_that_is_not_there_yet_misses_everything(run_module, tmp_path):
    failed, result = run_module(
        directory=str(tmp_path / "none"), files=[wanted("x.gguf")], _ansible_check_mode=True
    )
    assert (failed, result["changed"]) == (False, False)
    assert [entry["reason"] for entry in result["missing"]] == ["it is not there"]


def test_each_directory_in_the_place_of_a_file_has_its_line(run_module, tmp_path):
    (tmp_path / "x.gguf").mkdir()
    (tmp_path / "y.gguf").mkdir()
    failed, result = run_module(directory=str(tmp_path), files=[wanted("x.gguf"), wanted("y.gguf")])
    assert failed
    assert result["msg"].splitlines() == [
        f"{tmp_path}/{name}.gguf is not a file; move it away, or choose another name for the model file"
        for name in "xy"
    ]


def test_large_files_that_are_recorded_are_not_read(run_module, tmp_path):
    """200 files of 1 TiB each, sparse: reading one of them would take an hour."""
    files = []
    for number in range(200):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(GOOD)
        os.truncate(path, 1 << 40)
        gguf.write_record(str(path), sha256(GOOD), URL)
        files.append(wanted(path.name))
    failed, result = run_module(directory=str(tmp_path), files=files, mode="0644")
    assert (failed, result["hashed"], result["missing"]) == (False, [], [])
