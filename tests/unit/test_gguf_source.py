"""The module that asks the sources of models, as Ansible runs it."""

from __future__ import annotations

import json

import pytest
from standins import Source, end_module, go_straight, start_module

HASH = "ab" * 32


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that has /x.gguf."""
    go_straight(monkeypatch, tmp_path)
    with Source() as server:
        server.linked = {
            "X-Linked-Etag": HASH,
            "X-Linked-Size": 99,
            "Location": "http://cdn.invalid/?key=signed",
        }
        server.offer("/x.gguf", (302, server.linked))
        yield server


@pytest.fixture
def asked(tmp_path):
    """Returns a function: arguments -> what the module returns."""

    def run(**arguments):
        failed, result = end_module(start_module(tmp_path, "gguf_source", **arguments))
        assert (failed, result["changed"]) == (False, False)
        return result

    return run


def test_problem_size_and_sha256_of_each_url_are_returned_and_no_signature(hub, asked):
    urls = [hub.url + "/x.gguf", hub.url + "/y.gguf"]
    result = asked(urls=urls, hub_url=hub.url)
    assert result["sources"] == {
        urls[0]: {"problem": "", "size": 99, "sha256": HASH},
        urls[1]: {"problem": f"{urls[1]} answers 404 (not found): correct the url", "size": 0, "sha256": ""},
    }
    assert "signed" not in json.dumps(result)


def test_the_mirror_is_told_the_token_and_the_output_is_not(hub, asked):
    url = "https://hub.example/x.gguf"
    result = asked(urls=[url], hub_url="https://hub.example", mirror_url=hub.url, token="hf_secret")
    assert result["sources"][url]["sha256"] == HASH
    assert hub.tokens() == ["Bearer hf_secret"]
    assert "hf_secret" not in json.dumps(result)


@pytest.mark.parametrize(("attempts", "sha256"), [({}, HASH), ({"attempts": 1}, "")])
def test_a_busy_hub_is_asked_as_often_as_wanted(hub, asked, attempts, sha256):
    url = hub.offer("/x.gguf", (429, {"Retry-After": 1}), (302, hub.linked))
    assert asked(urls=[url], hub_url=hub.url, **attempts)["sources"][url]["sha256"] == sha256
