"""Faults that no patience gets over: a line says which file and what to do, and nothing half is in place."""

from __future__ import annotations

import pytest
from conftest import MODELS, entry, from_web, line_about

FILE = "model-refused.gguf"

# What the source already answers to preflight, and what its line must say.
TOLD_BY_HEAD = {
    "html": ["web page", "correct the url"],
    "unauthorized": ["401", "take another source"],
    "forbidden": ["403", "take another source"],
    "missing": ["404", "correct the url"],
    "error": ["500", "try again later"],
}
# What shows in the file itself only.
TOLD_BY_GET = {
    "html-get": ["HTML", "Correct its url"],
    "cut-short": ["Given up", "the next run goes on"],
    "longer": ["sha256 expected", "Correct sha256 or url"],
    "damaged": ["sha256 expected", "Correct sha256 or url"],
}
# Files whose sha256 the operator has waived: their own table of tensors says how long they must be.
WAIVED = {
    "longer than it says": (from_web("longer", FILE), ["longer than its own", "correct its url"]),
    "shorter than it says": (from_web("plain", "model-half.gguf"), ["cut off", "correct its url"]),
}


def local(fault: str) -> str:
    """The local name of a fault's file."""
    return f"refused-{fault.replace(' ', '-')}.gguf"


@pytest.fixture(scope="module")
def refused_by_preflight(fetch, hub, sha256):
    """The play whose sources already answer wrongly."""
    hub.reset()
    return fetch(*[entry(local(fault), sha256[FILE], **from_web(fault, FILE)) for fault in TOLD_BY_HEAD])


@pytest.mark.parametrize("fault", TOLD_BY_HEAD)
def test_refuses_before_anything_is_changed(refused_by_preflight, host, hub, fault):
    assert refused_by_preflight.rc != 0
    assert refused_by_preflight.count("changed") == 0, refused_by_preflight.output
    line = line_about(refused_by_preflight, f"/{fault}/{FILE}")
    for words in ["llm_models", local(fault).removesuffix(".gguf"), *TOLD_BY_HEAD[fault]]:
        assert words in line
    assert not host.file(f"{MODELS}/{local(fault)}").exists
    assert {request["method"] for request in hub.log()} == {"HEAD"}


@pytest.fixture(scope="module")
def refused(fetch, hub, host, sha256):
    """The play whose sources send something wrong."""
    hub.reset()
    entries = [entry(local(fault), sha256[FILE], **from_web(fault, FILE)) for fault in TOLD_BY_GET]
    entries += [entry(local(fault), "none", **source) for fault, (source, _) in WAIVED.items()]
    yield fetch(*entries)
    host.check_output(f"rm -f {MODELS}/.partial/refused-*")


@pytest.mark.parametrize("fault", [*TOLD_BY_GET, *WAIVED])
def test_refuses(refused, host, fault):
    assert refused.rc != 0
    source, must_say = WAIVED.get(fault, ({}, TOLD_BY_GET.get(fault)))
    line = line_about(refused, local(fault), source.get("url", f"/{fault}/{FILE}"))
    for words in must_say:
        assert words in line
    assert not host.file(f"{MODELS}/{local(fault)}").exists


def test_what_was_wrong_is_not_kept_for_the_next_run(refused, host):
    left = host.check_output("ls -A %s/.partial", MODELS).split()
    assert {name.split(".")[0] for name in left if name.startswith("refused-")} <= {"refused-cut-short"}


def test_good_files_are_fetched_beside_bad_ones(fetch, hub, sha256, in_place):
    hub.reset()
    good = entry("beside.gguf", sha256["model-plain.gguf"], **from_web("plain", "model-plain.gguf"))
    bad = entry("refused-beside.gguf", sha256[FILE], **from_web("damaged", FILE))
    run = fetch(bad, good)
    assert run.rc != 0
    assert in_place("beside.gguf", sha256["model-plain.gguf"])
