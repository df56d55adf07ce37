"""What pruning removes, and above all what it does not; on real files and real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf_prune
import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path):
    """A directory of three model files, one of them with a record."""
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("a.gguf", "b.gguf", "c.gguf"):
        (directory / name).write_bytes(b"GGUF" + name.encode())
    (directory / ".b.gguf.verified").write_text("{}")
    return directory


@pytest.fixture
def processes(tmp_path):
    """A directory like /proc with the given processes only."""
    directory = tmp_path / "proc"
    directory.mkdir()

    def of(*numbers):
        for number in numbers:
            (directory / str(number)).symlink_to(f"/proc/{number}")
        return str(directory)

    return of


@pytest.fixture
def unused(store, processes):
    """Returns a function: what may go, and what is in use, by name."""

    def names(keep=(), configs=(), proc=None):
        files, used = gguf_prune.unused(str(store), keep, configs, proc or processes())
        return sorted(files), used

    return names


def test_what_is_not_to_be_kept_goes_with_its_record(store, processes):
    files, used = gguf_prune.unused(str(store), ["a.gguf"], [], processes())
    assert used == {}
    assert files == {
        "b.gguf": [f"{store}/b.gguf", f"{store}/.b.gguf.verified"],
        "c.gguf": [f"{store}/c.gguf"],
    }


def test_the_record_of_a_file_that_is_gone_goes_too(store, unused):
    (store / ".removed.gguf.verified").write_text("{}")
    assert "removed.gguf" in unused()[0]
    assert "removed.gguf" not in unused(keep=["removed.gguf"])[0]


def test_what_no_model_file_is_stays(store, unused):
    (store / "notes.txt").write_text("mine")
    (store / "x.gguf.bak").write_text("mine")
    (store / "directory.gguf").mkdir()
    (store / "below").mkdir()
    (store / "below" / "d.gguf").write_text("GGUF")
    os.mkfifo(store / "pipe.gguf")
    assert unused() == (["a.gguf", "b.gguf", "c.gguf"], {})


def test_what_any_configuration_names_stays_in_whatever_setting(tmp_path, store, unused):
    for instance, config in (
        ("one", {"models": [{"model": "/llamacpp/model/a.gguf", "n_ctx": 4096}]}),
        ("two", {"models": [{"model": "/x.gguf", "clip_model_path": "/llamacpp/model/b.gguf"}], "c.gguf": 1}),
    ):
        (tmp_path / instance).mkdir()
        (tmp_path / instance / "config.json").write_text(json.dumps(config))
    assert unused(configs=[f"{tmp_path}/*/config.json"]) == (
        ["c.gguf"],
        {"a.gguf": f"{tmp_path}/one/config.json", "b.gguf": f"{tmp_path}/two/config.json"},
    )


@pytest.mark.parametrize("content", ["", "{", "\xff"])
def test_a_configuration_that_cannot_be_read_stops_everything(tmp_path, unused, content):
    path = tmp_path / "config.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(gguf_prune.Unsure, match=f"{path} cannot be read as JSON .* no model file is removed"):
        unused(configs=[str(path)])


def test_all_parts_of_a_split_model_stay(tmp_path, store, unused):
    for model in ("kept", "named", "old"):
        for part in (1, 2):
            (store / f"{model}-0000{part}-of-00002.gguf").write_text("GGUF")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"models": [{"model": "/llamacpp/model/named-00001-of-00002.gguf"}]}))
    files, used = unused(["a.gguf", "b.gguf", "c.gguf", "kept-00001-of-00002.gguf"], [str(config)])
    assert files == ["old-00001-of-00002.gguf", "old-00002-of-00002.gguf"]
    assert list(used) == ["named-00001-of-00002.gguf", "named-00002-of-00002.gguf"]


@pytest.fixture
def holder():
    """Starts processes that run Python statements and then wait; returns their numbers."""
    started = []

    def start(statements):
        process = subprocess.Popen(
            [sys.executable, "-c", f"{statements}\nprint(flush=True)\ninput()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        process.stdout.readline()
        return process.pid

    yield start
    for process in started:
        process.communicate(b"\n")


MAPPED = """
import mmap, os
with open({path!r}, 'rb') as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
os.closerange(3, 100)  # as the engine does; Python's mmap holds a descriptor of its own
"""


def test_what_a_process_has_open_or_mapped_stays(store, unused, processes, holder):
    opens = holder(f"file = open({str(store / 'a.gguf')!r})")
    maps = holder(MAPPED.format(path=str(store / "b.gguf")))
    assert unused(proc=processes(opens, maps)) == (
        ["c.gguf"],
        {"a.gguf": f"process {opens}", "b.gguf": f"process {maps}"},
    )


def test_a_mapped_file_is_known_where_its_name_is_another(tmp_path, store, unused, processes, holder):
    os.link(store / "a.gguf", tmp_path / "other name")
    maps = holder(MAPPED.format(path=str(tmp_path / "other name")))
    assert unused(proc=processes(maps))[1] == {"a.gguf": f"process {maps}"}


def test_a_link_stays_while_its_target_is_in_use_and_goes_alone(tmp_path, store, processes, holder):
    target = tmp_path / "nfs.gguf"
    target.write_text("GGUF")
    (store / "link.gguf").symlink_to(target)
    (store / "broken.gguf").symlink_to(tmp_path / "nowhere")
    maps = holder(MAPPED.format(path=str(target)))
    files, used = gguf_prune.unused(str(store), [], [], processes(maps))
    assert list(files) == ["a.gguf", "b.gguf", "broken.gguf", "c.gguf"]
    assert used == {"link.gguf": f"process {maps}"}
    files, _used = gguf_prune.unused(str(store), [], [], str(tmp_path))
    assert files["link.gguf"] == [f"{store}/link.gguf"]


def test_a_mapped_file_is_known_by_name_where_its_device_number_is_another(store, unused, tmp_path):
    """As on btrfs, whose device numbers in maps are not those of stat."""
    process = tmp_path / "proc" / "7"
    (process / "fd").mkdir(parents=True)
    inode = (store / "a.gguf").stat().st_ino
    (process / "maps").write_text(
        f"7f00-7f01 r--p 00000000 ff:ff {inode}    /llamacpp/model/a.gguf\n7f02-7f03 rw-p 00000000 00:00 0\n"
    )
    assert unused(proc=str(tmp_path / "proc"))[1] == {"a.gguf": "process 7"}


def test_a_process_that_ends_meanwhile_is_no_obstacle(unused, processes):
    (Path(processes()) / "999999999").mkdir()
    assert unused()[1] == {}


def test_a_process_that_cannot_be_looked_into_stops_everything(unused, processes, monkeypatch):
    def refuse(process):
        raise PermissionError(13, "Permission denied", process)

    monkeypatch.setattr(gguf_prune, "_open_in", refuse)
    with pytest.raises(gguf_prune.Unsure, match="whether process 1 uses a model file cannot be told"):
        unused(proc=processes(1))


def test_leftovers_of_downloads_go_unless_their_file_is_kept(store, unused, processes, holder):
    partial = store / ".partial"
    partial.mkdir()
    left = "a.gguf a.gguf.aria2 x.gguf x.gguf.aria2 x.gguf.source y.gguf.aria2 z.gguf z.gguf.aria2"
    for name in [*left.split(), ".progress.json", ".lock"]:
        (partial / name).write_text(name)
    fetches = holder(f"file = open({str(partial / 'z.gguf')!r})")
    proc = processes(fetches)
    files, used = gguf_prune.unused(str(store), ["a.gguf", "b.gguf", "c.gguf"], [], proc)
    assert used == {".partial/z.gguf": f"process {fetches}"}
    assert files == {
        ".partial/x.gguf": [f"{partial}/x.gguf", f"{partial}/x.gguf.aria2", f"{partial}/x.gguf.source"],
        ".partial/y.gguf": [f"{partial}/y.gguf.aria2"],
    }


@pytest.fixture
def held(store, tmp_path):
    """A replaced content of a.gguf, and the proof that names it."""
    directory = store / ".previous"
    directory.mkdir()
    (directory / "1234.gguf").write_bytes(b"GGUF")
    (directory / ".1234.gguf.verified").write_text("{}")
    proof = tmp_path / "proved.json"
    proof.write_text('{"models": {"a.gguf": "1234"}}')
    return proof


def test_what_a_server_was_proved_with_stays_and_goes_when_no_proof_names_it(store, processes, held):
    arguments = {"directory": str(store), "keep": ["a.gguf", "b.gguf", "c.gguf"], "proofs": [str(held)]}
    assert run_module(processes(), **arguments)[1]["removed"] == []
    held.write_text('{"models": {"a.gguf": "5678"}}')
    failed, result = run_module(processes(), **arguments)
    assert not failed
    assert result["removed"] == [{"file": ".previous/1234.gguf", "bytes": 4}]
    assert not (store / ".previous").exists()


def run_module(proc, **arguments):
    """Run the module in a process of its own that sees no other processes; return (failed, result)."""
    run = subprocess.run(
        [sys.executable, "-c", "import ansible.module_utils as u, sys;"
         f"u.__path__.append('{PROJECT}/plugins/module_utils');"
         f"sys.path.insert(0, '{PROJECT}/plugins/modules');"
         f"import gguf_prune; gguf_prune.unused.__defaults__ = ({proc!r}, ()); gguf_prune.main()",
         json.dumps({"ANSIBLE_MODULE_ARGS": arguments})],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout, run.stderr
    return run.returncode != 0, json.loads(run.stdout)


def test_the_module_lists_in_check_mode_and_removes_otherwise(tmp_path, store, processes):
    target = tmp_path / "target.gguf"
    target.write_text("GGUF")
    (store / "link.gguf").symlink_to(target)
    config = tmp_path / "config.json"
    config.write_text('["c.gguf"]')
    arguments = {"directory": str(store), "keep": ["a.gguf"], "configs": [str(config)]}
    before = sorted(os.listdir(store))
    failed, listed = run_module(processes(), **arguments, _ansible_check_mode=True)
    assert not failed
    assert sorted(os.listdir(store)) == before
    failed, result = run_module(processes(), **arguments)
    assert not failed
    assert {**listed, "invocation": None} == {**result, "invocation": None}
    assert result["changed"] is True
    assert result["removed"] == [{"file": "b.gguf", "bytes": 10}, {"file": "link.gguf", "bytes": 0}]
    assert (result["kept_in_use"], result["used_by"]) == (["c.gguf"], {"c.gguf": str(config)})
    assert sorted(os.listdir(store)) == ["a.gguf", "c.gguf"]
    assert target.exists()
    failed, result = run_module(processes(), **arguments)
    assert (failed, result["changed"], result["removed"]) == (False, False, [])


def test_the_module_removes_nothing_when_it_is_not_sure(tmp_path, store, processes):
    config = tmp_path / "config.json"
    config.write_text("{")
    failed, result = run_module(processes(), directory=str(store), keep=[], configs=[str(config)])
    assert failed
    assert result["msg"].startswith(f"{config} cannot be read as JSON")
    assert len(os.listdir(store)) == 4


def test_a_store_that_is_not_there_has_nothing_to_remove(tmp_path, processes):
    failed, result = run_module(processes(), directory=str(tmp_path / "none"), keep=[])
    assert (failed, result["changed"], result["removed"]) == (False, False, [])
