"""What the lock of the models says of each file, and when it must not be written."""

from __future__ import annotations

import pytest
from models_lock import models_lock

HUB = "https://hub.example/o/r/resolve/main"
A, B, C = (letter * 64 for letter in "abc")


def wanted(name, sha256="", url=HUB):
    return {"file": name, "url": f"{url}/{name}", "sha256": sha256, "where": f"llm_models[0] (alias {name})"}


def announced(**hashes):
    """What gguf_source returns, by the files' names."""
    return {
        f"{HUB}/{name}.gguf": {"problem": "", "size": 7 if sha256 else 0, "sha256": sha256}
        for name, sha256 in hashes.items()
    }


def locked(**hashes):
    return {f"{HUB}/{name}.gguf": {"sha256": sha256, "size": 7} for name, sha256 in hashes.items()}


def test_what_is_announced_is_locked_and_then_unchanged():
    files = [wanted("x.gguf"), wanted("y.gguf"), wanted("x.gguf")]
    first = models_lock(files, announced(x=A, y=B), {})
    assert first == {
        "lock": locked(x=A, y=B),
        "lines": [f"{HUB}/x.gguf: new, {A}", f"{HUB}/y.gguf: new, {B}"],
        "problems": [],
    }
    second = models_lock(files, announced(x=A, y=B), first["lock"])
    assert second["lock"] == first["lock"]
    assert second["lines"] == [f"{HUB}/x.gguf: unchanged", f"{HUB}/y.gguf: unchanged"]


def test_a_changed_sha256_is_a_problem_until_it_is_accepted():
    old = locked(x=A)
    found = models_lock([wanted("x.gguf")], announced(x=B), old)
    assert found["lock"] == old
    assert found["problems"] == [
        f"{HUB}/x.gguf: its sha256 was {A}, and now {B} is announced: the file has been replaced."
        " Pin a commit to stay with the old one;"
        ' `make lock INVENTORY=… ARGS="-e lock_update=true"` accepts it'
    ]
    found = models_lock([wanted("x.gguf")], announced(x=B), old, update=True)
    assert (found["lock"], found["problems"]) == (locked(x=B), [])
    assert found["lines"] == [f"{HUB}/x.gguf: changed from {A} to {B}"]


@pytest.mark.parametrize("url", ["https://files.example", "file:///mnt/nfs", "controller:///srv"])
def test_who_announces_no_sha256_is_not_locked(url):
    found = models_lock([wanted("x.gguf", C, url)], {}, {})
    assert (found["lock"], found["problems"]) == ({}, [])
    assert found["lines"] == [f"{url}/x.gguf: announces no sha256: keep sha256 in llm_models"]


def test_a_lock_does_not_vanish_because_nothing_is_announced_any_more():
    found = models_lock([wanted("x.gguf")], announced(x=""), locked(x=A))
    assert (found["lock"], found["problems"]) == (locked(x=A), [])
    assert found["lines"] == [f"{HUB}/x.gguf: not announced any more, stays {A}"]


def test_what_no_model_uses_is_dropped():
    found = models_lock([wanted("x.gguf")], announced(x=A), locked(x=A, y=B))
    assert found["lock"] == locked(x=A)
    assert found["lines"] == [f"{HUB}/x.gguf: unchanged", f"{HUB}/y.gguf: no longer used"]


def test_a_source_that_cannot_be_asked_is_a_problem_and_its_lock_stays():
    sources = {f"{HUB}/x.gguf": {"problem": f"{HUB}/x.gguf answers 500", "size": 0, "sha256": ""}}
    found = models_lock([wanted("x.gguf")], sources, locked(x=A))
    assert found == {"lock": locked(x=A), "lines": [], "problems": [f"{HUB}/x.gguf answers 500"]}


@pytest.mark.parametrize("update", [False, True])
def test_a_sha256_of_the_catalogue_that_the_hub_contradicts_is_a_problem(update):
    found = models_lock([wanted("x.gguf", A)], announced(x=B), {}, update)
    assert found["lock"] == {}
    assert found["problems"] == [
        f"llm_models[0] (alias x.gguf): sha256 is {A}, but {HUB}/x.gguf announces {B}:"
        " correct it, or leave it out"
    ]
    assert models_lock([wanted("x.gguf", "none")], announced(x=B), {}, update)["lock"] == locked(x=B)


def test_a_size_that_is_not_announced_stays_known():
    sources = {f"{HUB}/x.gguf": {"problem": "", "size": 0, "sha256": A}}
    assert models_lock([wanted("x.gguf")], sources, locked(x=A))["lock"] == locked(x=A)


def test_lines_and_problems_hold_no_secret_of_a_url():
    url = "https://user:secret@hub.example/x.gguf?token=secret"
    file = {"file": "x.gguf", "url": url, "sha256": "", "where": "llm_models[0]"}
    for old, sha256 in (({}, A), ({url: {"sha256": B, "size": 1}}, A), ({}, "")):
        found = models_lock([file], {url: {"problem": "", "size": 1, "sha256": sha256}}, old)
        assert "secret" not in str([found["lines"], found["problems"]])
    assert "secret" not in str(models_lock([], {}, {url: {"sha256": B, "size": 1}}))
