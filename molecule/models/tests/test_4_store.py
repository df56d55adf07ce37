"""The directory of model files: damage, changed hashes, what nobody needs, and 200 GB that are not read."""

from __future__ import annotations

import pytest
from conftest import MODELS, SERVED, entry, from_hub, from_web, line_about


@pytest.fixture(autouse=True)
def quiet(hub):
    """The hub's log is of one test."""
    hub.reset()


# ---- Damage


DAMAGE = """
import os, sys
about = os.stat(sys.argv[1])
with open(sys.argv[1], "r+b") as file:
    file.seek(about.st_size // 2)
    byte = file.read(1)[0]
    file.seek(about.st_size // 2)
    file.write(bytes([byte ^ 1]))
os.utime(sys.argv[1], ns=(about.st_atime_ns, about.st_mtime_ns))
"""


def test_damage_of_the_disk_is_found_when_told_to_look_and_mended(fetch, host, hub, sha256, in_place):
    right = sha256["model-plain.gguf"]
    model = entry("worn.gguf", right, **from_web("plain", "model-plain.gguf"))
    assert fetch(model).rc == 0
    host.check_output("python3 -c %s %s", DAMAGE, f"{MODELS}/worn.gguf")
    assert host.file(f"{MODELS}/worn.gguf").sha256sum != right
    hub.reset()
    usual = fetch(model)
    assert (usual.rc, usual.count("changed"), hub.log()) == (0, 0, [])
    thorough = fetch(model, llm_models_verify="always")
    assert thorough.rc == 0, thorough.output
    assert in_place("worn.gguf", right)
    again = fetch(model, llm_models_verify="always")
    assert again.count("changed") == 0, again.output


# ---- The lock


def test_a_file_that_is_no_longer_the_locked_one_is_told_with_both_hashes(fetch, hub, host, sha256, in_place):
    url = "http://hub.internal/moved/model/resolve/main/model-moved.gguf"
    old, new = sha256["model-moved.gguf"], sha256["model-moved.gguf.new"]
    lock = {url: {"sha256": old, "size": (SERVED / "model-moved.gguf").stat().st_size}}
    model = entry("locked.gguf", **from_hub("moved/model", "model-moved.gguf"))
    assert fetch(model, llm_models_lock=lock).rc == 0
    assert in_place("locked.gguf", old)
    hub.move()
    # What is in place is the locked one: that the hub has moved on is nobody's business.
    assert fetch(model, llm_models_lock=lock).count("changed") == 0
    host.check_output(f"rm {MODELS}/locked.gguf")
    run = fetch(model, llm_models_lock=lock)
    assert run.rc != 0
    assert line_about(run, old, new, "make lock")
    assert not host.file(f"{MODELS}/locked.gguf").exists
    accepted = fetch(model, llm_models_lock={url: {"sha256": new, "size": 0}})
    assert accepted.rc == 0, accepted.output
    assert in_place("locked.gguf", new)


# ---- Pruning


@pytest.fixture
def forgotten(fetch, host, sha256):
    """A model file that the catalogue no longer has, and a file that is none."""
    model = entry("forgotten.gguf", sha256["model-plain.gguf"], **from_web("plain", "model-plain.gguf"))
    assert fetch(model).rc == 0
    host.check_output(f"touch {MODELS}/notes.txt {MODELS}/.partial/forgotten.gguf.aria2")
    yield f"{MODELS}/forgotten.gguf"
    host.check_output(f"rm -f {MODELS}/notes.txt {MODELS}/*forgotten*")


def test_without_being_told_nothing_is_removed(fetch, host, forgotten):
    assert fetch().count("changed") == 0
    assert host.file(forgotten).exists


def test_check_mode_lists_what_pruning_would_remove(fetch, host, forgotten):
    run = fetch(options=("--check",), llm_models_prune=True)
    assert run.rc == 0, run.output
    assert "forgotten.gguf" in run.output
    assert host.file(forgotten).exists


def test_pruning_removes_what_nobody_needs_and_nothing_else(fetch, host, forgotten, smollm2):
    run = fetch(llm_models_prune=True)
    assert run.rc == 0, run.output
    assert not host.file(forgotten).exists
    assert not host.file(f"{MODELS}/.forgotten.gguf.verified").exists
    assert not host.file(f"{MODELS}/.partial/forgotten.gguf.aria2").exists
    assert host.file(f"{MODELS}/{smollm2['file']}").exists
    assert host.file(f"{MODELS}/notes.txt").exists
    again = fetch(llm_models_prune=True)
    assert again.count("changed") == 0, again.output


def test_pruning_spares_what_a_server_uses_though_the_catalogue_has_it_no_longer(play, host, sha256, smollm2):
    run = play(
        "site.yml",
        "--tags",
        "models",
        llm_models=[entry("alone.gguf", sha256["model-plain.gguf"], **from_web("plain", "model-plain.gguf"))],
        llm_instances=[{"name": "llamacpp", "port": 20080, "gpus": [], "models": ["alone"]}],
        llm_models_prune=True,
    )
    assert run.rc == 0, run.output
    assert host.file(f"{MODELS}/{smollm2['file']}").exists
    assert host.file(f"{MODELS}/.{smollm2['file']}.verified").exists


# ---- 200 GB


RECORD = """
import json, os, sys
path, sha256, url = sys.argv[1:]
about = os.stat(path)
directory, name = os.path.split(path)
with open(os.path.join(directory, f".{name}.verified"), "w") as file:
    json.dump({"sha256": sha256, "size": about.st_size, "mtime_ns": about.st_mtime_ns,
               "inode": about.st_ino, "url": url}, file)
"""


@pytest.fixture
def large(host):
    """Four verified models of 50 GB, of which only the length and the record are real."""
    directory = "/srv/large"
    host.check_output(f"mkdir -p {directory}")
    models = []
    for number in range(4):
        model = entry(f"large-{number}.gguf", f"{number}" * 64, **from_web("plain", f"large-{number}.gguf"))
        path = f"{directory}/{model['file']}"
        host.check_output("truncate -s 50G %s", path)
        host.check_output("python3 -c %s %s %s %s", RECORD, path, model["sha256"], model["url"])
        models.append(model)
    yield directory, models
    host.check_output(f"rm -r {directory}")


def test_verified_files_are_not_read_again(play, hub, large):
    # If one were read, it would be found out: it is nothing but zeros, and 200 GB of them take minutes.
    directory, models = large
    options = ("site.yml", "--tags", "models", "-v")
    variables = {
        "llm_models_dir": directory,
        "llm_models": models,
        "llm_instances": [{"name": "llamacpp", "port": 20080, "gpus": [], "models": ["large-0"]}],
    }
    run = play(*options, **variables)  # sets owner and mode
    assert run.rc == 0, run.output
    again = play(*options, **variables)
    assert again.rc == 0, again.output
    assert again.count("changed") == 0, again.output
    assert "hashed: []" in again.output
    assert hub.log() == []
