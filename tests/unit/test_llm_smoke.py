"""The smoke test names each promise that a server breaks. A real server cannot be made to break all of them,
so a stand-in breaks them one at a time; that a real one keeps them is proved by the Molecule scenario."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import llm_smoke
import pytest
from certificates import certify, make_key, text_of
from smoke import smoke_broken, smoke_report, smoke_summary

KEY = "right-key"


class StandinHandler(BaseHTTPRequestHandler):
    """Answers like llama_cpp.server with two models; `server.fault` is the one promise that it breaks."""

    def log_message(self, *_):
        """Stays silent."""

    def reply(self, status: int, body: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def is_allowed(self) -> bool:
        fault = self.server.fault
        return fault == "open" or self.headers.get("Authorization") == f"Bearer {KEY}"

    def do_GET(self):
        fault = self.server.fault
        if self.path == "/openapi.json":
            self.reply(503 if fault == "dead" else 200, "{}")
        elif not self.is_allowed():
            self.reply(401, "{}")
        else:
            names = ["one"] if fault == "unlisted" else ["one", "two"]
            self.reply(200, json.dumps({"data": [{"id": name} for name in names]}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.server.fault if body["model"] == "two" else None
        if self.path == "/v1/embeddings":
            vectors = {"nan": [[float("nan"), 1.0]], "ragged": [[1.0], [1.0, 2.0]]}
            self.reply(
                500 if fault == "no embeddings" else 200,
                json.dumps({"data": [{"embedding": vectors.get(fault, [[0.5, 1.0, 2.0]] * 4)}]}),
            )
        elif body.get("stream"):
            self.stream(fault)
        elif fault == "broken model":
            self.reply(500, '{"error": "Failed to load model from file"}')
        else:
            text = "" if fault == "silent" else f"Paris, says {body['model']}."
            usage = {"prompt_tokens": 9, "completion_tokens": 4}
            choices = [{"message": {"content": text}}]
            self.reply(200, json.dumps({"choices": choices, "usage": usage}))

    def stream(self, fault: str | None) -> None:
        if fault == "empty stream":
            return self.reply(200, "")
        finish = None if fault == "cut" else "stop"
        parts = [({"content": word}, None) for word in ("Par", "is", ".")] + [({}, finish)]
        events = [
            json.dumps({"choices": [{"delta": delta, "finish_reason": reason}]}) for delta, reason in parts
        ]
        return self.reply(200, "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]))


@pytest.fixture
def ask():
    """Returns a function: fault of the stand-in -> result of the smoke test against it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandinHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def asked(fault: str | None = None, key: str = KEY) -> dict:
        server.fault = fault
        client = llm_smoke.Client(f"http://127.0.0.1:{server.server_port}", key, timeout=5)
        return llm_smoke.smoke(client, ["one", "two"])

    yield asked
    server.shutdown()
    server.server_close()


def test_a_sound_server_keeps_all_promises(ask):
    result = ask()
    assert result["broken"] == []
    assert result["models"]["two"]["answer"] == "Paris, says two."
    assert result["models"]["two"]["embedding_length"] == 3
    assert result["switch"].keys() == {"first_s", "repeated_s"}


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("dead", "is alive (GET /openapi.json): HTTP 503 instead of 200"),
        ("open", "refuses a wrong API key: HTTP 200 instead of 401"),
        ("unlisted", "lists exactly the deployed models: listed are ['one'], deployed are"),
        ("broken model", "two answers: HTTP 500: "),
        ("silent", "two answers: the answer is empty"),
        ("empty stream", "two streams: the stream ended without [DONE]"),
        ("cut", "two streams: the stream was cut off (finish_reason None)"),
        ("no embeddings", "two embeds: HTTP 500"),
        ("nan", "two embeds: vectors of lengths [2] with NaN"),
        ("ragged", "two embeds: vectors of lengths [1, 2]"),
    ],
)
def test_each_broken_promise_is_named(ask, fault, complaint):
    assert [line for line in ask(fault)["broken"] if line.startswith(complaint)]


def test_a_server_that_is_not_there_is_one_complaint():
    client = llm_smoke.Client("http://127.0.0.1:9", timeout=5)
    broken = llm_smoke.smoke(client, ["one"])["broken"]
    assert len(broken) == 1
    assert "no answer from http://127.0.0.1:9" in broken[0]


@pytest.fixture(scope="module")
def pairs():
    """Two pairs of certificate and private key."""
    keys = make_key(), make_key()
    return [(certify(key), text_of(key)) for key in keys]


@pytest.fixture
def ask_over_tls(pairs, tmp_path):
    """Returns a function: what is known of the certificate -> result of the smoke test over TLS."""
    (tmp_path / "pair.pem").write_text("\n".join(pairs[0]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pair.pem")
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandinHandler)
    server.fault = None
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def asked(certificate: str) -> dict:
        url = f"https://127.0.0.1:{server.server_port}"
        client = llm_smoke.Client(url, KEY, timeout=5, certificate=certificate)
        return llm_smoke.smoke(client, ["one", "two"])

    yield asked
    server.shutdown()
    server.server_close()


def test_over_tls_the_given_certificate_is_enough_and_its_chain_does_not_matter(ask_over_tls, pairs):
    assert ask_over_tls(pairs[0][0])["broken"] == []
    assert ask_over_tls(f"llm.example.com\n{pairs[0][0]}\n{pairs[1][0]}\n")["broken"] == []
    assert ask_over_tls("")["broken"] == []


@pytest.mark.parametrize(
    ("certificate", "complaint"),
    [
        (lambda pairs: pairs[1][0], " has another certificate than the deployed one"),
        (lambda pairs: f"{pairs[1][0]}\n{pairs[0][0]}", " has another certificate than the deployed one"),
        (lambda _pairs: "no certificate", "the deployed certificate cannot be read: "),
    ],
    ids=["another", "second of the chain", "none"],
)
def test_over_tls_another_certificate_is_one_complaint(ask_over_tls, pairs, certificate, complaint):
    (line,) = ask_over_tls(certificate(pairs))["broken"]
    assert line.startswith("is alive (GET /openapi.json): ")
    assert complaint in line


def test_summary_shows_answers_figures_and_complaints(ask):
    results = [
        {"item": {"name": "llamacpp", "port": 20080}, **ask("cut")},
        {"item": {"name": "second", "port": 20081}, **ask()},
    ]
    report = smoke_report(results, "gpu1")
    summary = smoke_summary(report)
    for words in ("gpu1 · llamacpp · port 20080", "Paris, says two.", "9 prompt, 4 completion"):
        assert words in summary
    lines = smoke_broken(report).splitlines()
    assert lines
    assert all(line.startswith("gpu1 llamacpp: ") for line in lines)
