"""What a client gets, through the OpenAI client from PyPI."""

from __future__ import annotations

import json

import openai
import pytest
from testing import ask


def test_models_are_listed_exactly(client):
    assert sorted(model.id for model in client.models.list()) == ["gemma3", "smollm2"]


def test_smollm2_knows_the_capital_of_france(client):
    assert "Paris" in ask(client, "smollm2").choices[0].message.content


def test_gemma3_answers_with_words(client):
    # A base model: that it answers is promised, not what it says.
    answer = ask(client, "gemma3")
    assert answer.choices[0].message.content.strip()
    assert answer.usage.completion_tokens > 1


def test_answers_stream_token_by_token(client):
    chunks = [chunk.choices[0] for chunk in ask(client, "smollm2", stream=True)]
    assert "Paris" in "".join(choice.delta.content or "" for choice in chunks)
    assert len(chunks) > 3
    assert chunks[-1].finish_reason == "stop"


def test_the_request_chooses_the_model_there_and_back(client):
    # Vectors of different lengths prove which model answered; the reply's `model` only echoes the request.
    lengths = []
    for model in ("smollm2", "gemma3", "smollm2"):
        vectors = client.embeddings.create(model=model, input="Paris", encoding_format="float")
        lengths.append(len(vectors.data[0].embedding[0]))
    assert lengths == [576, 640, 576]


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_japanese_prompts_are_taken(client, model):
    answer = ask(client, model, "日本の首都はどこですか。")
    assert answer.choices[0].message.content
    assert answer.usage.prompt_tokens > 5


def test_a_long_answer_is_not_cut_off_by_a_second_request(client):
    stream = iter(ask(client, "smollm2", "Tell a long story.", stream=True, max_tokens=200))
    first = next(stream)
    assert ask(client, "smollm2").choices[0].message.content
    rest = [chunk.choices[0] for chunk in stream]
    assert first and rest[-1].finish_reason in ("stop", "length")


NO_GRAMMAR = {"type": "json_object", "schema": {"type": "string", "pattern": r"^\d+$"}}
MISTAKES = {
    "a JSON schema of which no grammar is made": (
        {"response_format": NO_GRAMMAR},
        "grammar cannot be parsed",
    ),
    "a broken grammar": ({"extra_body": {"grammar": "root ::= ("}}, "grammar cannot be parsed"),
    "more than the context": ({"question": "word " * 3000}, "maximum context length is 2048"),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_request_is_told_to_its_client_and_ends_nothing(client, untouched, mistake, streamed):
    options, words = MISTAKES[mistake]
    with pytest.raises(openai.APIError, match=words) as told:
        list(ask(client, "smollm2", **options, stream=streamed))
    # The status of a stream is sent before its first word.
    assert streamed or told.value.status_code == 400
    assert ask(client, "smollm2", max_tokens=2).choices


def test_smoke_test_keeps_all_promises_and_reports(play, tmp_path):
    report = tmp_path / "report.json"
    smoke = play("smoke.yml", smoke_report=str(report))
    assert smoke.rc == 0, smoke.output
    assert "0 broken" in smoke.output
    assert "Paris" in report.read_text(encoding="utf-8")


def test_smoke_test_names_each_broken_promise(play, demo_variables):
    # Expecting a model that is not deployed: listed wrongly; the engine silently answers with another one.
    missing = {**demo_variables["llm_models"][0], "alias": "missing"}
    smoke = play("smoke.yml", llm_models=[*demo_variables["llm_models"], missing])
    assert smoke.rc != 0
    assert "llm-default llamacpp: lists exactly the deployed models:" in smoke.output


def test_benchmark_measures_both_models_and_compares_a_second_run(play, tmp_path):
    options = {"benchmark_clients": [1, 2], "benchmark_repeats": 1, "benchmark_max_tokens": 16}
    benchmark = play("benchmark.yml", benchmark_dir=str(tmp_path), benchmark_prompt_tokens=64, **options)
    assert benchmark.rc == 0, benchmark.output
    (path,) = tmp_path.glob("*.json")
    instance = json.loads(path.read_text(encoding="utf-8"))["hosts"]["llm-default"]["instances"]["llamacpp"]
    assert instance["image"].startswith(f"llamacpp:{instance['engine']}-cpu-")
    assert 0 < instance["start_s"] < 300
    assert sorted(instance["models"]) == ["gemma3", "smollm2"]
    for model in instance["models"].values():
        assert [figures["complete"] for figures in model["rounds"]] == [1, 2]
        assert 40 < model["prompt_tokens"] < 90
        assert all(0 < figures["tokens"] <= 16 for figures in model["rounds"])
        assert all(
            figures["first_token_s"] > 0 and figures["tokens_per_s"] > 0 for figures in model["rounds"]
        )
        assert model["switch"]["warm_s"] > 0
    again = play("benchmark.yml", benchmark_dir=str(tmp_path), benchmark_prompt_tokens=64, **options)
    assert again.rc == 0, again.output
    assert "smollm2 (compared with 20" in again.output
