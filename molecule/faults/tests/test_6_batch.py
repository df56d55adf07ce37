"""An instance with engine batch answers many requests at once; all else is as with the other engine."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests
from conftest import SECOND_PORT, started
from testing import ask, openai_client

FIRST = {"name": "llamacpp", "port": 20080, "gpus": []}
BATCH = {
    "name": "second",
    "port": 20081,
    "gpus": [],
    "engine": "batch",
    "models": ["smollm2"],
    "parallel": 4,
    "settings": {"chat_template": None},
}


@pytest.fixture(scope="module")
def batching(deploy):
    """Deploys it beside the other instance; returns a client of it."""
    run = deploy(llm_instances=[FIRST, BATCH])
    assert run.rc == 0, run.output
    yield openai_client(SECOND_PORT)
    run = deploy()
    assert run.rc == 0, run.output


def stream(client, number: int) -> tuple[float, float, str]:
    """Asks for a long answer; returns when its first and its last piece came, and how it ended."""
    times = []
    for chunk in ask(client, "smollm2", f"Tell me story {number}.", max_tokens=60, stream=True):
        times.append(time.monotonic())
        reason = chunk.choices[0].finish_reason
    return times[0], times[-1], reason


def test_four_clients_are_answered_at_the_same_time(batching):
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda number: stream(batching, number), range(4)))
    assert all(reason in ("stop", "length") for _first, _last, reason in answers), answers
    # All have begun before the first one has ended.
    assert max(first for first, _last, _reason in answers) < min(last for _first, last, _reason in answers)


def test_more_clients_than_it_answers_at_once_wait_and_are_answered(batching):
    with ThreadPoolExecutor(12) as clients:
        answers = list(
            clients.map(lambda number: ask(batching, "smollm2", f"{number}?", max_tokens=8), range(12))
        )
    assert all(answer.choices[0].finish_reason in ("stop", "length") for answer in answers)
    assert {answer.model for answer in answers} == {"smollm2"}


def test_the_pieces_of_a_long_conversation_are_its_text(batching):
    # What it is to say is given: spaces between tokens, characters of several tokens.
    text = "Hello there, 「一、二、三」 costs 12 € in Zürich 🙂, says the cat"
    question = f"{'Count: 一、二、三 🙂. ' * 40} Repeat."
    schema = {"name": "text", "schema": {"type": "string", "pattern": f"^{text}$"}}
    given = {"response_format": {"type": "json_schema", "json_schema": schema}, "max_tokens": 120}
    assert json.loads(ask(batching, "smollm2", question, **given).choices[0].message.content) == text
    pieces = [
        piece.choices[0].delta.content or ""
        for piece in ask(batching, "smollm2", question, **given, stream=True)
    ]
    assert json.loads("".join(pieces)) == text
    assert len(pieces) > 10


def test_the_end_of_an_answer_is_not_in_its_text(batching):
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    answer = batching.completions.create(model="smollm2", prompt=prompt, temperature=0, max_tokens=60)
    assert answer.choices[0].finish_reason == "stop"
    assert "Paris" in answer.choices[0].text
    assert "<|" not in answer.choices[0].text


NO_GRAMMAR = {"name": "number", "schema": {"type": "string", "pattern": r"^\d+$"}}
IMPOSSIBLE = {
    "a JSON schema of which no grammar is made": (
        {"response_format": {"type": "json_schema", "json_schema": NO_GRAMMAR}},
        "grammar cannot be parsed",
    ),
    "more answers at once than places": ({"n": 5}, "at most 4 answers|not supported for streaming"),
    "an empty prompt": ({"prompt": ""}, "prompt is empty"),
    "what is no request at all": ({"n": "many"}, "n: Input should be a valid integer"),
    "numbers that are no tokens": ({"prompt": [1, 10**9]}, "tokens are numbers from 0 to 49151"),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_request_that_can_never_be_answered_is_refused_and_ends_nothing(
    batching, container, case, streamed
):
    options, words = IMPOSSIBLE[case]
    begun = started(container, "second")
    with pytest.raises(openai.BadRequestError, match=words):
        if "prompt" in options:
            batching.completions.create(model="smollm2", **options, stream=streamed)
        else:
            ask(batching, "smollm2", **options, stream=streamed)
    assert ask(batching, "smollm2", max_tokens=2).choices
    assert started(container, "second") == begun


def computed() -> float:
    """Returns how many tokens of prompts the server has computed, as its own metrics count them."""
    metrics = requests.get(f"http://127.0.0.1:{SECOND_PORT}/metrics", timeout=60).text
    return float(re.search(r"^llamacpp:prompt_tokens_total (\S+)$", metrics, re.MULTILINE)[1])


def test_what_it_has_read_before_is_not_computed_again(batching):
    shelves = " ".join(f"Shelf {shelf} is full." for shelf in range(60))
    question = f"Say in a few words what this is. {shelves}"
    first = ask(batching, "smollm2", question, max_tokens=4)
    before = computed()
    # More at once than the one place that has read it.
    with ThreadPoolExecutor(3) as clients:
        again = list(clients.map(lambda _: ask(batching, "smollm2", question, max_tokens=4), range(3)))
    # Whoever copied a wrong beginning would say something else.
    assert len({answer.choices[0].message.content for answer in [first, *again]}) == 1
    assert computed() - before < first.usage.prompt_tokens


def test_the_responses_api_is_there(batching):
    answer = batching.responses.create(
        model="smollm2", input="What is the capital of France?", max_output_tokens=16
    )
    assert answer.output_text.strip()


def test_the_smoke_test_knows_what_it_serves(batching, play):
    run = play("smoke.yml", llm_instances=[FIRST, BATCH])
    assert run.rc == 0, run.output
    assert "broken: " not in run.output


def test_a_second_run_changes_nothing(batching, deploy):
    run = deploy(llm_instances=[FIRST, BATCH])
    assert run.rc == 0, run.output
    assert run.count("changed") == 0, run.output


def test_a_setting_that_it_does_not_have_is_an_error_before_anything_is_touched(batching, deploy, untouched):
    run = deploy(llm_instances=[FIRST, BATCH | {"settings": {"chat_template": None, "n_threads": 2}}])
    assert run.rc != 0
    assert run.count("changed") == 0, run.output
    assert "llm_instances[1] (name second): settings.n_threads" in run.error


def test_what_served_before_serves_on_when_the_new_one_cannot_answer(batching, deploy):
    # Without any template no chat can be answered, and the server starts all the same.
    run = deploy(llm_instances=[FIRST, BATCH | {"settings": {"chat_template": ""}}])
    assert run.rc != 0
    assert "second" in run.error
    assert ask(batching, "smollm2", max_tokens=4).choices[0].message.content
