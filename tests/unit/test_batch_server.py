"""What batch-server puts around the server of the image: a key, the name of the model, TLS, threads."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
import threading
import types
from importlib.machinery import SourceFileLoader

import pytest
from conftest import PROJECT
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel

KEY = "a-key"


class StandinServer(types.ModuleType):
    """Stands for the batching server's module: remembers how its application is run."""

    def __init__(self):
        super().__init__("llama_cpp_batch")
        model = types.SimpleNamespace(
            model_path="/llamacpp/model/a.gguf",
            n_seq_max=4,
            n_ctx=100,
            has_attention_budget=True,
            attention_partitioned=True,
            n_vocab=50,
            vocab="vocabulary",
        )
        scheduler = types.SimpleNamespace(model=model)
        self.FastAPI, self.JSONResponse = FastAPI, JSONResponse
        self.Model = type("Model", (), {"token_bytes_with_prev": told_apart, "vocab": "vocabulary"})
        self.CompletionRequest = types.SimpleNamespace(from_prepared=types.SimpleNamespace)
        self.CompletionRequestValidationError = type("CompletionRequestValidationError", (ValueError,), {})
        self.OpenAIFormatter = type("OpenAIFormatter", (), {"returned_tokens": lambda *_, start_index: "all"})
        self.JsonSchemaConverter = types.SimpleNamespace(to_gbnf={"{}": "root ::= object"}.__getitem__)
        self.freed = []
        self.llama_cpp = types.SimpleNamespace(
            llama_sampler_init_grammar=lambda _vocabulary, text, root: (
                None if b"\\" in text else (text, root)
            ),
            llama_sampler_free=self.freed.append,
            llama_vocab_is_eog=lambda _vocabulary, token: token == 2,
        )
        self.model = model
        self.service = types.SimpleNamespace(
            scheduler=scheduler, prepare_completion_prompt=lambda payload: payload.normalized_prompt()
        )
        self.application = Application(self.service)
        self.uvicorn = types.SimpleNamespace(run=self.run)
        self.ran = {}

    def run(self, application, **arguments):
        self.ran = {"application": application, **arguments}

    def main(self):
        assert sys.argv[1] == "--config-file"
        self.uvicorn.run(self.application, host="0.0.0.0", port=1, log_level="info")


def told_apart(_model, before, token):
    """Stands for what the engine tells of a token's text: what it was asked."""
    return [*before, token]


class Answers(BaseModel):
    """What the engine makes of a request, and finds wrong only then."""

    number: int


class Application(FastAPI):
    """Has some of the engine's pages, and notes how many requests could wait when it begins."""

    def __init__(self, service):
        super().__init__()
        self.state.service = service
        self.threads = 0
        for path in ("/v1/models", "/metrics", "/healthz"):
            self.get(path)(lambda: {})
        self.options("/v1/models")(lambda: {})
        self.get("/v1/answers/{number}")(self.give)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            self.threads = asyncio.get_running_loop()._default_executor._max_workers
        else:
            await super().__call__(scope, receive, send)

    async def give(self, number: int):
        if number == 1:
            Answers(number="one")
        if number > 4:
            raise HTTPException(503 if number > 100 else 400, "at most 4 answers")
        return 1 / number


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns a function: API key, the configuration's section "server" -> the stand-in after a run."""

    def start(key="", **server):
        fake = StandinServer()
        monkeypatch.setitem(sys.modules, "llama_cpp_batch", fake)
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"server": server, "model": {"path": "/x.gguf", "alias": "chat"}}))
        monkeypatch.setattr(sys, "argv", ["batch-server", "--config_file", str(config)])
        monkeypatch.setenv("API_KEY", key)
        monkeypatch.setattr(threading, "excepthook", threading.excepthook)
        loader = SourceFileLoader("batch_server", str(PROJECT / "files/image/batch-server"))
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader("batch_server", loader))
        loader.exec_module(module)
        module.main()
        return fake

    return start


def answer(fake, path="/v1/models", key=None, kind="http", **scope):
    """Sends a request to the application as it is run; returns the beginning and the body of its answer."""
    sent = [{}]

    async def send(message):
        sent.append(message)

    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    request = {"type": kind, "path": path, "headers": headers, "method": "GET", "query_string": b"", **scope}
    # What the application could not do is raised again for the log, after the answer.
    with contextlib.suppress(ZeroDivisionError):
        asyncio.run(fake.ran["application"](request, None, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return {**sent[min(1, len(sent) - 1)], "body": body.decode()}


def test_without_a_key_everybody_is_answered(run):
    assert answer(run())["status"] == 200


@pytest.mark.parametrize(("key", "status"), [(KEY, 200), (None, 401), ("", 401), (f"{KEY}x", 401)])
def test_with_a_key_only_who_has_it_is_answered(run, key, status):
    assert answer(run(KEY), key=key)["status"] == status
    assert answer(run(KEY), "/metrics", key=key)["status"] == status


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/healthz"])
def test_what_tells_that_it_lives_needs_no_key(run, path):
    assert answer(run(KEY), path)["status"] == 200


def test_a_browser_may_ask_what_it_may_do(run):
    assert answer(run(KEY), method="OPTIONS")["status"] == 200


def test_a_websocket_without_the_key_is_closed(run):
    assert answer(run(KEY), "/v1/responses", kind="websocket", method=None)["type"] == "websocket.close"


def test_the_certificate_is_the_configurations(run):
    tls = {"ssl_certfile": "/llamacpp/tls.crt", "ssl_keyfile": "/llamacpp/tls.key"}
    ran = run(**tls, host="0.0.0.0").ran
    assert {name: ran.get(name) for name in tls} == tls
    assert "ssl_certfile" not in run().ran


@pytest.mark.parametrize(
    ("page", "status", "kind", "message"),
    [
        ("answers/5", 400, "invalid_request_error", "at most 4 answers"),
        ("answers/101", 503, "server_error", "at most 4 answers"),
        ("answers/many", 400, "invalid_request_error", "number: Input should be a valid integer"),
        ("answers/1", 400, "invalid_request_error", "number: Input should be a valid integer"),
        ("answers/0", 500, "server_error", "Internal server error"),
        ("nothing", 404, "invalid_request_error", "Not Found"),
    ],
)
def test_errors_are_told_as_openai_does(run, page, status, kind, message):
    told = answer(run(), f"/v1/{page}")
    assert told["status"] == status
    error = json.loads(told["body"])["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["type"] == kind
    assert message in error["message"]


def test_answers_name_the_model_by_its_alias(run):
    assert run().model.model_path == "chat"


def test_many_requests_can_wait(run):
    fake = run()
    answer(fake, kind="lifespan")
    assert fake.application.threads >= 256


@pytest.mark.parametrize(("length", "read"), [(0, 0), (3, 3), (4000, 16)])
def test_the_text_of_a_token_is_told_by_the_end_of_what_came_before(run, length, read):
    model = run().Model()
    before = list(range(length))
    assert model.token_bytes_with_prev_bytes(before, b"all of it", 7) == [*before[length - read :], 7]


def test_what_marks_the_end_of_an_answer_is_no_text(run):
    assert run().Model().token_bytes_with_prev_bytes([5, 6], b"all of it", 2) == b""


def prepare(fake, **request):
    """Makes a request as the engine does: a prompt of 10 tokens that may become 30."""
    usual = {
        "internal_completion_count": 1,
        "effective_max_len": 30,
        "prompt_tokens": list(range(10)),
        "prompt_plan": types.SimpleNamespace(eval_token_count=10),
        "grammar_text": None,
        "grammar_root": "root",
    }
    return fake.CompletionRequest.from_prepared(**usual | request)


def test_a_request_is_what_the_engine_makes_of_it(run):
    assert prepare(run(), internal_completion_count=4, effective_max_len=100).effective_max_len == 100


def test_an_empty_prompt_is_refused(run):
    fake = run()
    with pytest.raises(fake.CompletionRequestValidationError, match="prompt is empty"):
        prepare(fake, prompt_tokens=[])


@pytest.mark.parametrize("prompt", ["a text", [0, 49]])
def test_a_prompt_is_read_as_the_engine_does(run, prompt):
    payload = types.SimpleNamespace(normalized_prompt=lambda: [prompt])
    assert run().service.prepare_completion_prompt(payload) == [prompt]


@pytest.mark.parametrize("token", [-1, 50])
def test_numbers_that_are_no_tokens_are_refused(run, token):
    fake = run()
    payload = types.SimpleNamespace(normalized_prompt=lambda: [[0, token]])
    with pytest.raises(fake.CompletionRequestValidationError, match="from 0 to 49"):
        fake.service.prepare_completion_prompt(payload)


def test_more_answers_than_there_are_places_are_refused(run):
    fake = run()
    with pytest.raises(
        fake.CompletionRequestValidationError, match="n or best_of is 5; this server gives at most 4"
    ):
        prepare(fake, internal_completion_count=5)


def test_answers_that_never_fit_the_context_they_share_are_refused(run):
    fake = run()
    fake.model.attention_partitioned = False
    assert prepare(fake, internal_completion_count=4)  # 10 + 4 x 20 tokens
    with pytest.raises(fake.CompletionRequestValidationError, match="need 110 tokens and there are 100"):
        prepare(fake, internal_completion_count=4, effective_max_len=35)
    fake.model.has_attention_budget = False  # a recurrent model needs the same memory for any length
    assert prepare(fake, internal_completion_count=4, effective_max_len=35)


def test_a_grammar_that_the_engine_cannot_read_is_refused(run):
    fake = run()
    assert prepare(fake, grammar_text='root ::= "a"')
    assert fake.freed == [(b'root ::= "a"', b"root")]
    with pytest.raises(fake.CompletionRequestValidationError, match="grammar cannot be parsed"):
        prepare(fake, grammar_text='root ::= "\\d"')


def test_a_schema_of_which_no_grammar_is_made_is_refused(run):
    fake = run()
    assert fake.JsonSchemaConverter.to_gbnf("{}") == "root ::= object"
    with pytest.raises(fake.CompletionRequestValidationError, match="of the JSON schema: 'odd'"):
        fake.JsonSchemaConverter.to_gbnf("odd")


def test_it_ends_when_one_of_its_threads_has(run, monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    run()
    computing = threading.Thread(target=lambda: {}["lost"])
    computing.start()
    computing.join()
    assert ended == [1]
    assert "KeyError: 'lost'" in capfd.readouterr().err


def grown(fake, *texts, **answer):
    """Returns a function: finish_reason, start_index, end of the text so far -> what is new of an answer."""
    records = [types.SimpleNamespace(text_bytes=text) for text in texts]
    completion = types.SimpleNamespace(**{"token_records": records, "logprobs": None} | answer)
    formatter = fake.OpenAIFormatter()
    formatter.ReturnedToken = lambda index, text, _record, _offset: (index, text)

    def new(finish_reason, start_index, end):
        formatter.returned_output_end = lambda *_: end
        return formatter.returned_tokens(completion, finish_reason, start_index=start_index)

    return new


def test_a_step_of_a_stream_begins_where_the_one_before_has_ended(run):
    new = grown(run(), b"one", b" two", b" three", b" four")
    assert new(None, 0, 3) == "all"  # the engine's own method
    assert new(None, 1, 7) == [(1, b" two")]
    assert new(None, 2, 13) == [(2, b" three")]
    assert new(None, 2, 18) == [(2, b" three"), (3, b" four")]


def test_what_may_become_a_stop_word_is_held_back_and_cut_off_at_the_end(run):
    new = grown(run(), b"one", b" two", b" three", b" four")
    assert new(None, 1, 10) == [(1, b" two")]
    assert new("stop", 2, 10) == [(2, b" th")]
    assert new("stop", 2, 7) == []


def test_probabilities_are_left_to_the_engines_own_method(run):
    assert grown(run(), b"one", b" two", logprobs=3)(None, 1, 7) == "all"
