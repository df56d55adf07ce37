"""Faults that one play gets over by itself: the right file is in place, and few bytes were sent twice."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from conftest import MODELS, SERVED, entry, from_hub, from_web


class Case(NamedTuple):
    """A fault: where the file comes from, and the bytes that may be sent for it, in sizes of the file."""

    source: dict
    file: str
    most: float
    version: str = ""


RESUMED = 1.05
TEN_TIMES = 1.1  # going on costs aria2 a first answer that it hangs up on, up to 0.2 MB
BEGUN_ANEW = 2.05

CASES = {
    fault: Case(from_web(fault, f"model-{fault}.gguf"), f"model-{fault}.gguf", most)
    for fault, most in {
        "plain": RESUMED,
        "drop": RESUMED,
        "drop-often": TEN_TIMES,
        "stall": RESUMED,
        "trickle": RESUMED,
        "range-refused": RESUMED,
        "limited": RESUMED,
        "unavailable": RESUMED,
        "no-range": RESUMED,
        "no-range-drop": BEGUN_ANEW,
    }.items()
} | {
    # The catalogue wants the version that the server has from then on.
    "changes": Case(from_web("changes", "model-changes.gguf"), "model-changes.gguf", BEGUN_ANEW, ".new"),
    "changes, same length": Case(
        from_web("changes", "model-alike.gguf"), "model-alike.gguf", BEGUN_ANEW, ".new"
    ),
    # The hub says what the file must be, so the way is to blame and not the catalogue.
    "damaged once": Case(
        from_hub("any/damaged-once", "model-damaged-once.gguf"), "model-damaged-once.gguf", BEGUN_ANEW
    ),
    # The answer breaks, and by then the address that the hub gave is good no longer.
    "signature expires": Case(from_hub("brief/drop", "model-brief.gguf"), "model-brief.gguf", RESUMED),
    "hub": Case(from_hub("any/model", "model-hub.gguf"), "model-hub.gguf", RESUMED),
}  # fmt: skip
FAULTS = [name for name in CASES if name not in ("plain", "hub")]


@pytest.fixture(scope="module")
def entries(sha256) -> list[dict]:
    """The models of all cases; those of the hub without sha256, which the hub announces."""
    return [
        entry(case.file, "" if "hf" in case.source else sha256[case.file + case.version], **case.source)
        for case in CASES.values()
    ]


@pytest.fixture(scope="module")
def survivors(fetch, host, hub, entries):
    """The one play that fetches them all."""
    host.check_output(f"rm -f {MODELS}/model-* {MODELS}/.model-*")  # of an earlier run of these tests
    hub.reset()
    return fetch(*entries)


def test_one_play_fetches_them_all(survivors):
    assert survivors.rc == 0, survivors.output


def bring(case: Case, hub, sha256, in_place) -> None:
    """Proves that the file of a case came whole, with no more bytes than it may take."""
    assert in_place(case.file, sha256[case.file + case.version])
    sent = hub.sent(case.file)
    size = (SERVED / (case.file + case.version)).stat().st_size
    assert size <= sent <= case.most * size, f"{sent / size:.2f} times the file were sent"


@pytest.mark.parametrize("name", ["plain", "hub"])
@pytest.mark.usefixtures("survivors")
def test_without_a_fault_each_byte_is_sent_once(hub, sha256, in_place, name):
    bring(CASES[name], hub, sha256, in_place)


@pytest.mark.parametrize("fault", FAULTS)
def test_survives(survivors, hub, sha256, in_place, fault):
    bring(CASES[fault], hub, sha256, in_place)
    assert f"{CASES[fault].file}: in place" in survivors.output


@pytest.mark.parametrize("fault", ["limited", "unavailable"])
@pytest.mark.usefixtures("survivors")
def test_an_overloaded_server_is_asked_again_and_not_hammered(hub, fault):
    # Two refusals of each method, and the answers.
    requests = [request for request in hub.log() if request["path"].startswith(f"/{fault}/")]
    assert 4 <= len(requests) <= 12


@pytest.mark.usefixtures("survivors")
def test_files_belong_to_root_and_may_be_read_by_the_server(host):
    listed = host.check_output("stat -c '%%U:%%G %%a' %s/model-*.gguf", MODELS)
    assert set(listed.splitlines()) == {"root:root 644"}


@pytest.mark.usefixtures("survivors")
def test_a_second_run_asks_no_server_and_changes_nothing(fetch, hub, entries):
    hub.reset()
    run = fetch(*entries)
    assert run.rc == 0, run.output
    assert run.count("changed") == 0, run.output
    assert hub.log() == []
