"""What rollback.yml shows and chooses."""

from __future__ import annotations

import pytest
from releases import release_table, release_to_go_back_to


def release(identifier: str, proved: str = "", good: bool = False, number: int = 0) -> dict:
    return {
        "id": identifier,
        "proved": proved,
        "good": good,
        "number": number,
        "image": "llamacpp:1",
        "models": ["one", "two"],
        "commit": "",
    }


FOUND = {
    "releases": [
        release("a", "2026-01-01T00:00:00Z"),
        release("b", "2026-01-03T00:00:00Z"),  # gone back to after c
        release("c", "2026-01-02T00:00:00Z"),
        release("d", "2026-01-04T00:00:00Z", good=True),
        release("e"),
    ]
}


def test_the_table_has_a_line_for_each_release_and_says_which_is_good():
    lines = release_table({"llamacpp": FOUND, "empty": {"releases": []}}).splitlines()
    assert len(lines) == 1 + 5
    assert [line.split()[1] for line in lines[1:]] == ["a", "b", "c", "d", "e"]
    assert [line.split()[1] for line in lines if line.endswith("<- good")] == ["d"]
    assert "never" in lines[5]


def test_a_host_without_releases_says_so():
    assert "no releases" in release_table({"llamacpp": {"releases": []}})


@pytest.mark.parametrize(("wanted", "chosen"), {"good": "d", "previous": "b", "a": "a"}.items())
def test_a_release_can_be_named_in_three_ways(wanted, chosen):
    assert release_to_go_back_to(FOUND, wanted) == {"id": chosen, "problem": ""}


def test_the_previous_release_is_the_one_proved_before_also_when_the_clock_was_set_back():
    found = [
        release("d", "2026-01-04T00:00:00Z"),  # by an older version, which did not number
        release("c", "2026-01-03T00:00:00Z", number=1),
        release("a", "2025-01-01T00:00:00Z", number=2),
        release("b", "2025-01-02T00:00:00Z", number=3, good=True),
    ]
    assert release_to_go_back_to({"releases": found}, "previous")["id"] == "a"


@pytest.mark.parametrize("wanted", ["e", "nosuch"])
def test_what_was_never_proved_is_refused_with_what_there_is(wanted):
    choice = release_to_go_back_to(FOUND, wanted)
    assert choice["id"] == ""
    assert f"to={wanted}" in choice["problem"]
    assert "a, c, b, d" in choice["problem"]


def test_without_an_earlier_release_there_is_no_way_back():
    only = {"releases": [release("a", "2026-01-01T00:00:00Z", good=True)]}
    assert release_to_go_back_to(only, "previous")["problem"]
    assert release_to_go_back_to({}, "good")["problem"]
