"""Which host fetches a model file from its source, and which takes it from that host."""

from __future__ import annotations

import pytest
from fleet_plan import fleet_plan

HASH = "ab" * 32


def entry(file="x.gguf", url="https://m.example/x.gguf", sha256=HASH, **more):
    return {"file": file, "url": url, "sha256": sha256, "size": 7, **more}


def plan(share=True, **stores):
    """The plan for hosts in their order, each given as (present, missing)."""
    hostvars = {
        host: {
            "__gguf_models_store": {"present": present, "missing": missing},
            "__gguf_models_shared_at": f"http://{host}:20090",
        }
        for host, (present, missing) in stores.items()
    }
    return fleet_plan(hostvars, list(stores), share)


def taken(holder, file="x.gguf", at="", **more):
    """An entry that is taken from another host."""
    return entry(file, **more) | {"holder": holder, "peers": [f"http://{holder}:20090/{at or file}"]}


def test_who_has_a_file_gives_it_to_the_others():
    found = plan(a=([], [entry()]), b=([entry()], []), c=([], [entry()]))
    assert found == {
        "a": {"first": [], "then": [taken("b")]},
        "b": {"first": [], "then": []},
        "c": {"first": [], "then": [taken("b")]},
    }


def test_of_those_that_lack_it_the_first_one_fetches_it_for_all():
    found = plan(a=([], []), b=([], [entry()]), c=([], [entry()]), d=([], [entry()]))
    assert found["b"] == {"first": [entry()], "then": []}
    assert found["c"] == found["d"] == {"first": [], "then": [taken("b")]}


def test_one_of_several_that_have_it_gives_it():
    found = plan(a=([], [entry()]), b=([entry()], []), c=([entry()], []))
    assert found["a"]["then"] == [taken("b")]


def test_a_host_alone_fetches_everything():
    files = [entry(), entry("y.gguf")]
    assert plan(a=([], files)) == {"a": {"first": files, "then": []}}


def test_each_file_has_its_own_holder():
    x, y, z = (entry(f"{name}.gguf", f"https://m.example/{name}.gguf") for name in "xyz")
    found = plan(a=([x], [y, z]), b=([y], [x, z]))
    assert found["a"] == {"first": [z], "then": [taken("b", "y.gguf", url=y["url"])]}
    assert found["b"] == {
        "first": [],
        "then": [taken("a", "x.gguf", url=x["url"]), taken("a", "z.gguf", url=z["url"])],
    }


def test_without_sharing_everybody_asks_the_source():
    found = plan(share=False, a=([entry()], []), b=([], [entry()]), c=([], [entry()]))
    assert found["b"] == found["c"] == {"first": [entry()], "then": []}


@pytest.mark.parametrize("url", ["file:///mnt/nfs/x.gguf", "controller:///srv/x.gguf"])
def test_what_does_not_come_over_the_network_stays_local(url):
    found = plan(a=([entry(url=url)], []), b=([], [entry(url=url)]))
    assert found["b"] == {"first": [entry(url=url)], "then": []}


@pytest.mark.parametrize(
    "other", [{"sha256": "cd" * 32}, {"url": "https://m.example/new/x.gguf"}, {"sha256": ""}]
)
def test_another_sha256_or_url_is_another_file(other):
    found = plan(a=([entry()], []), b=([], [entry(**other)]))
    assert found["b"] == {"first": [entry(**other)], "then": []}


def test_why_it_is_missing_makes_it_no_other_file():
    found = plan(a=([], [entry(reason="it is not there")]), b=([], [entry(reason="it is cut off")]))
    assert found["b"]["then"] == [taken("a", reason="it is cut off")]


def test_a_name_is_written_as_a_url_wants_it():
    file = entry("mein modell#1.gguf")
    found = plan(a=([file], []), b=([], [file]))
    assert found["b"]["then"] == [taken("a", file["file"], at="mein%20modell%231.gguf")]


def test_a_host_that_was_not_looked_at_takes_no_part():
    hostvars = {
        "a": {},
        "b": {"__gguf_models_store": {"present": [], "missing": [entry()]}},
    }
    assert fleet_plan(hostvars, ["a", "b"]) == {
        "a": {"first": [], "then": []},
        "b": {"first": [entry()], "then": []},
    }
