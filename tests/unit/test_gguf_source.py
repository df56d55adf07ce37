"""What the sources of models announce, asked of a real HTTP server on loopback."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from urllib.error import URLError

import gguf_source
import pytest

HASH = "ab" * 32


class Server(http.server.BaseHTTPRequestHandler):
    """Answers HEAD as the sources of models do."""

    seen: list[str]

    def do_HEAD(self):
        self.server.seen.append(self.path)
        status, headers = {
            "/file": (200, {"Content-Length": "1234", "Content-Type": "application/octet-stream"}),
            "/page": (200, {"Content-Type": "text/html; charset=utf-8"}),
            "/hub/file": (
                302,
                {"X-Linked-Etag": f'"{HASH}"', "X-Linked-Size": "99", "Location": "/nowhere"},
            ),
            "/hub/renamed": (307, {"Location": "/hub/file"}),
            "/hub/small": (200, {"ETag": '"0123"', "Content-Length": "5"}),
            "/elsewhere": (
                302,
                {"X-Linked-Etag": f'"{HASH}"', "X-Linked-Size": "99", "Location": "/file"},
            ),
            "/loop": (302, {"Location": "/loop"}),
            "/gone": (404, {}),
            "/secret": (403, {}),
            "/login": (401, {}),
            "/broken": (503, {}),
            "/teapot": (418, {}),
            "/get-only": (405, {}),
        }[self.path.partition("?")[0]]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server():
    """The address of the server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.seen = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        running.url = f"http://127.0.0.1:{running.server_port}"
        yield running
        running.shutdown()


@pytest.fixture
def ask(server):
    """Returns a function: path -> what its source announces."""

    def asked(path):
        return gguf_source.ask(server.url + path, server.url + "/hub", 5)

    return asked


def test_a_file_has_its_size(ask):
    assert ask("/file") == {"problem": "", "size": 1234, "sha256": "", "no_connection": False}


def test_the_hub_announces_size_and_sha256_also_after_a_renaming(ask):
    for path in ("/hub/file", "/hub/renamed"):
        assert ask(path) == {"problem": "", "size": 99, "sha256": HASH, "no_connection": False}


def test_only_the_hub_is_believed(ask):
    assert ask("/elsewhere")["sha256"] == ""
    assert ask("/elsewhere")["size"] == 1234


def test_a_small_file_of_the_hub_has_no_sha256(ask):
    assert ask("/hub/small")["sha256"] == ""


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/gone", "answers 404 (not found): correct the url"),
        (
            "/secret",
            "answers 403 (access refused): it wants a login or an accepted licence;"
            " take another source, or put the file into llm_models_dir by hand",
        ),
        (
            "/login",
            "answers 401 (access refused): it wants a login or an accepted licence;"
            " take another source, or put the file into llm_models_dir by hand",
        ),
        (
            "/broken",
            "answers 503 (error of the server): try again later, or take another source",
        ),
        ("/teapot", "answers 418: correct the url, or take another source"),
        (
            "/page",
            "answers a web page, not a GGUF file: correct the url (on the hub, /resolve/ instead of /blob/)",
        ),
        ("/loop", "redirects more than 10 times: correct the url"),
    ],
)
def test_each_wrong_answer_has_its_message(ask, path, problem):
    assert ask(path)["problem"] == problem


def test_a_source_that_does_not_know_head_is_left_to_the_fetch(ask):
    assert ask("/get-only") == {"problem": "", "size": 0, "sha256": "", "no_connection": False}


def refused(url, timeout):
    raise URLError(ConnectionRefusedError(111, "Connection refused"))


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (
            URLError(ConnectionRefusedError(111, "Connection refused")),
            "refuses the connection: start that server, or correct the url or llm_proxy_environment",
        ),
        (
            URLError(socket.gaierror(-2, "Name or service not known")),
            "has a host name that this host cannot resolve:"
            " correct the url, the host's DNS or llm_proxy_environment",
        ),
        (
            TimeoutError("timed out"),
            "gives no answer within 5 s: check firewall, llm_proxy_environment and the url",
        ),
        (
            URLError("unknown url type"),
            "cannot be asked (<urlopen error unknown url type>):"
            " check the url, firewall and llm_proxy_environment",
        ),
    ],
)
def test_each_failed_connection_has_its_message(error, problem):
    def send(url, timeout):
        raise error

    answer = gguf_source.ask("https://m.example/x.gguf", "https://hub.example", 5, send)
    assert (answer["problem"], answer["no_connection"]) == (problem, True)


def test_a_private_certificate_leads_to_the_bundle():
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate in certificate chain"
    assert gguf_source.connection_problem(URLError(error), 5) == (
        "has a certificate that the host does not trust"
        " (self-signed certificate in certificate chain): set llm_ca_bundle"
    )


def test_a_dead_server_is_asked_only_once():
    asked = []

    def send(url, timeout):
        asked.append(url)
        return refused(url, timeout)

    urls = ["https://m.example/a.gguf", "https://m.example/b.gguf", "https://n.example/c.gguf"]
    sources = gguf_source.ask_all(urls, "https://hub.example", 5, send)
    assert asked == [urls[0], urls[2]]
    assert all("refuses the connection" in source["problem"] for source in sources.values())


def test_one_url_is_asked_once_and_its_secrets_are_not_shown(server):
    server.seen.clear()
    address = server.url.replace("//", "//user:secret@") + "/gone?token=secret"
    sources = gguf_source.ask_all([address, address], "https://hub.example", 5)
    assert server.seen == ["/gone?token=secret"]
    assert sources[address]["problem"] == (f"{server.url}/gone answers 404 (not found): correct the url")


def test_what_is_required_decides_what_fails():
    sources = {
        "https://m.example/a": {"problem": "https://m.example/a answers 404", "sha256": ""},
        "https://m.example/b": {"problem": "", "sha256": ""},
        "https://m.example/c": {"problem": "", "sha256": HASH},
    }
    assert gguf_source.failures(sources, "nothing") == []
    assert gguf_source.failures(sources, "answer") == ["https://m.example/a answers 404"]
    assert gguf_source.failures(sources, "sha256") == [
        "https://m.example/a answers 404",
        "https://m.example/b announces no sha256; write it into llm_models (sha256sum FILE),"
        " or `sha256: none` to waive the check",
    ]
