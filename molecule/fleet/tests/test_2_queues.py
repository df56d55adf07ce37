"""Queues: one request per server at a time, nothing is cut off, and who waits too long is told so."""

from __future__ import annotations

import openai
import pytest
from conftest import at_once, haproxy, servers
from testing import ask, wait_until

QUESTIONS = [f"What is {number} and {number}?" for number in range(1, 9)]


@pytest.fixture(scope="module")
def alone(client):
    """What SmolLM2 answers to each question when nobody else asks."""
    return [ask(client, "smollm2", question).choices[0].message.content for question in QUESTIONS]


def test_eight_clients_at_once_are_all_answered_in_full(client, alone, gateway):
    # The maxima count from zero again.
    haproxy(gateway, "clear counters all")
    calls = [lambda question=question: ask(client, "smollm2", question) for question in QUESTIONS]
    answers = at_once(calls)
    assert [answer.choices[0].message.content for answer in answers] == alone
    busiest = {name: int(row["smax"]) for name, row in servers(gateway).items() if name.startswith("llm-")}
    assert busiest, "relays are there"
    assert max(busiest.values()) == 1, busiest
    assert max(int(row["smax"]) for name, row in servers(gateway).items() if name.endswith(":only")) == 1


def test_eight_streams_at_once_come_complete_in_pieces(client, alone):
    def stream(question: str) -> list[str]:
        chunks = list(ask(client, "smollm2", question, stream=True))
        assert chunks[-1].choices[0].finish_reason, "cut off"
        return [chunk.choices[0].delta.content or "" for chunk in chunks]

    streams = at_once([lambda question=question: stream(question) for question in QUESTIONS])
    assert ["".join(pieces) for pieces in streams] == alone
    assert all(len(pieces) > 3 for pieces in streams)


def test_both_models_are_asked_at_once_and_each_answers_for_itself(client):
    models = ["smollm2", "gemma3"] * 4
    answers = at_once([lambda model=model: ask(client, model, max_tokens=8) for model in models])
    assert [answer.model for answer in answers] == models


def test_who_goes_away_from_a_stream_frees_the_server(client, gateway):
    streams = [ask(client, "smollm2", "Tell a long story.", max_tokens=1500, stream=True) for _ in range(3)]
    for stream in streams:
        next(iter(stream))

    def busy() -> int:
        return sum(int(row["scur"]) for row in servers(gateway).values())

    assert busy() >= 3
    for stream in streams:
        stream.close()
    wait_until(lambda: busy() == 0, "the servers are free", seconds=20)
    ask(client, "smollm2", max_tokens=1)


def test_who_waits_too_long_gets_503_and_a_reload_cuts_nobody_off(client, play):
    gateway_only = ("site.yml", "--tags=gateway", "--limit=gateways")
    run = play(*gateway_only, llm_gateway_queue_timeout=1)
    assert run.rc == 0, run.output
    streams = [ask(client, "smollm2", "Tell a long story.", max_tokens=1000, stream=True) for _ in range(3)]
    streams = [iter(stream) for stream in streams]
    for stream in streams:
        next(stream)
    with pytest.raises(openai.InternalServerError) as refusal:
        ask(client, "smollm2", max_tokens=1)
    assert (refusal.value.status_code, refusal.value.code) == (503, "overloaded")
    assert int(refusal.value.response.headers["Retry-After"]) > 0
    run = play(*gateway_only)
    assert run.rc == 0, run.output
    for stream in streams:
        assert list(stream)[-1].choices[0].finish_reason, "cut off by the reload"
