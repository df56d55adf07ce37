"""What batch-server puts around the server of the image: a key, the name of the model, TLS, threads."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import types
from importlib.machinery import SourceFileLoader

import pytest
from conftest import PROJECT

KEY = "a-key"


class StandinServer(types.ModuleType):
    """Stands for the batching server's module: remembers how its application is run."""

    def __init__(self):
        super().__init__("llama_cpp_batch")
        model = types.SimpleNamespace(model_path="/llamacpp/model/a.gguf")
        scheduler = types.SimpleNamespace(model=model)
        self.FastAPI = object
        self.Model = type("Model", (), {"token_bytes_with_prev": told_apart})
        self.model = model
        self.application = Application(
            types.SimpleNamespace(service=types.SimpleNamespace(scheduler=scheduler))
        )
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


class Application:
    """An ASGI application that answers 200 to everything."""

    def __init__(self, state):
        self.state = state
        self.threads = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            self.threads = asyncio.get_running_loop()._default_executor._max_workers
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})


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
        loader = SourceFileLoader("batch_server", str(PROJECT / "files/image/batch-server"))
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader("batch_server", loader))
        loader.exec_module(module)
        module.main()
        return fake

    return start


def answer(fake, path="/v1/models", key=None, kind="http", **scope):
    """Sends a request to the application as it is run; returns what it answers first."""
    sent = []

    async def send(message):
        sent.append(message)

    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    request = {"type": kind, "path": path, "headers": headers, "method": "GET", **scope}
    asyncio.run(fake.ran["application"](request, None, send))
    return sent[0] if sent else {}


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
