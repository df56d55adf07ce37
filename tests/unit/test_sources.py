"""What hub, mirror and web servers say of a model file, asked of real HTTP servers on loopback."""

from __future__ import annotations

import email.utils
import socket
import ssl
import time
from urllib.error import URLError

import pytest
from ansible.module_utils import sources
from ansible.module_utils.sources import Hub, ask, ask_all
from standins import Source, go_straight

HASH = "ab" * 32
FILE = (200, {"Content-Length": 1234, "ETag": '"v1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"})
BUSY = (503, {})


@pytest.fixture(autouse=True)
def straight(monkeypatch, tmp_path):
    go_straight(monkeypatch, tmp_path)


@pytest.fixture
def start():
    """Returns a function that starts a server."""
    servers = []

    def started():
        servers.append(Source().__enter__())
        return servers[-1]

    yield started
    for server in servers:
        server.__exit__()


@pytest.fixture
def web(start):
    """An ordinary web server."""
    return start()


@pytest.fixture
def hub(start):
    """The hub: it has /o/r/resolve/main/x.gguf on its CDN, another server."""
    server = start()
    server.cdn = start()
    server.file = server.offer("/o/r/resolve/main/x.gguf", linked(server.cdn.url + "/x?signature=secret"))
    return server


def linked(location, sha256=HASH, size=99, status=302):
    """The hub's answer for a file that is elsewhere."""
    headers = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": size, "Location": location}
    return status, headers


@pytest.fixture
def waits(monkeypatch):
    """The seconds that are slept, at once."""
    slept = []
    monkeypatch.setattr(sources.time, "sleep", slept.append)
    return slept


def test_a_file_has_its_size_and_version(web):
    url = web.offer("/x.gguf", FILE)
    assert ask(url, Hub(), 5) == {
        "problem": "",
        "transient": False,
        "retry_after": 0,
        "no_connection": False,
        "size": 1234,
        "sha256": "",
        "etag": '"v1"',
        "modified": "Mon, 01 Jan 2024 00:00:00 GMT",
        "address": url,
    }
    assert web.asked() == ["HEAD /x.gguf"]


def test_the_hub_announces_size_and_sha256_and_its_cdn_is_not_asked(hub):
    answer = ask(hub.file, Hub(hub.url), 5)
    assert (answer["problem"], answer["size"], answer["sha256"]) == ("", 99, HASH)
    assert answer["address"] == hub.cdn.url + "/x?signature=secret"
    assert hub.cdn.seen == []


def test_a_renamed_repository_is_followed_on_the_hub(hub):
    old = hub.offer("/o/old/resolve/main/x.gguf", (307, {"Location": "/o/r/resolve/main/x.gguf"}))
    answer = ask(old, Hub(hub.url + "/"), 5)
    assert (answer["sha256"], answer["address"]) == (HASH, hub.cdn.url + "/x?signature=secret")


def test_only_the_hub_is_believed(hub, web):
    url = web.offer("/x.gguf", linked(web.offer("/here.gguf", FILE)))
    answer = ask(url, Hub(hub.url), 5)
    assert (answer["sha256"], answer["size"], answer["address"]) == ("", 1234, web.url + "/here.gguf")
    # Not even by way of somebody else's redirect: what it stands for, nobody knows.
    answer = ask(web.offer("/y.gguf", (302, {"Location": hub.file})), Hub(hub.url), 5)
    assert answer["sha256"] == ""


def test_a_server_whose_name_only_begins_like_the_hubs_is_not_the_hub():
    assert Hub("https://hub.example").has("https://hub.example/x")
    assert not Hub("https://hub.example").has("https://hub.example.evil/x")
    assert Hub("https://hub.example", token="t").headers("https://hub.example.evil/x") == {}


def test_an_etag_that_is_no_sha256_is_none(hub):
    url = hub.offer("/small.gguf", (200, {"X-Linked-Etag": '"0123"', "Content-Length": 5}))
    assert ask(url, Hub(hub.url), 5)["sha256"] == ""


def test_redirects_are_followed_to_the_last_address(web, start):
    last = start()
    end = last.offer("/c.gguf", FILE)
    web.offer("/b.gguf", (303, {"Location": end}))
    url = web.offer("/a.gguf", (301, {"Location": "b.gguf"}))
    answer = ask(url, Hub(), 5)
    assert (answer["problem"], answer["size"], answer["address"]) == ("", 1234, end)
    assert web.asked() == ["HEAD /a.gguf", "HEAD /b.gguf"]


def test_a_circle_of_redirects_has_an_end(web):
    url = web.offer("/loop", (302, {"Location": "/loop"}))
    assert ask(url, Hub(), 5)["problem"] == "redirects more than 10 times: correct the url"
    assert len(web.seen) == 10


class TestToken:
    def test_the_hub_is_told_the_token_and_nobody_else(self, hub, web):
        hub.offer("/o/r/resolve/main/x.gguf", (302, {"Location": hub.cdn.url + "/x"}))
        hub.cdn.offer("/x", FILE)
        own = Hub(hub.url, token="hf_secret")
        ask_all([hub.file, web.offer("/x.gguf", FILE)], own, 5)
        assert hub.tokens() == ["Bearer hf_secret"]
        assert hub.cdn.tokens() == [None]
        assert web.tokens() == [None]

    def test_without_a_token_the_hub_is_told_none(self, hub):
        ask(hub.file, Hub(hub.url), 5)
        assert hub.tokens() == [None]

    def test_the_mirror_is_asked_and_told_the_token_in_place_of_the_hub(self, hub, start):
        mirror = start()
        mirror.offer("/hf/o/r/resolve/main/x.gguf", linked(hub.cdn.url + "/x", sha256="cd" * 32))
        answer = ask(hub.file, Hub(hub.url, mirror.url + "/hf/", "hf_secret"), 5)
        assert answer["sha256"] == "cd" * 32, "it is believed like the hub"
        assert mirror.tokens() == ["Bearer hf_secret"]
        assert hub.seen == []
        assert hub.cdn.seen == []

    def test_a_mirror_may_have_the_file_itself(self, hub, start):
        mirror = start()
        headers = {"X-Linked-Etag": f'"{HASH}"', "X-Linked-Size": 99, "Content-Length": 99}
        mirror.offer("/o/r/resolve/main/x.gguf", (200, headers))
        answer = ask(hub.file, Hub(hub.url, mirror.url, "hf_secret"), 5)
        assert answer["address"] == mirror.url + "/o/r/resolve/main/x.gguf"
        assert (answer["sha256"], answer["size"]) == (HASH, 99)

    def test_a_redirect_of_get_alone_is_found_before_anybody_takes_the_token_along(self, hub, start):
        path = "/o/r/resolve/main/x.gguf"
        hub.offer(f"HEAD {path}", (200, {"X-Linked-Etag": f'"{HASH}"', "X-Linked-Size": 99}))
        hub.offer(f"GET {path}", linked(hub.cdn.url + "/x"))
        answer = ask(hub.url + path, Hub(hub.url, "", "hf_secret"), 5)
        assert answer["address"] == hub.cdn.url + "/x"
        assert hub.cdn.seen == []

    def test_other_sources_are_not_asked_at_the_mirror(self, web, start):
        mirror = start()
        url = web.offer("/x.gguf", FILE)
        assert ask(url, Hub("https://hub.example", mirror.url), 5)["size"] == 1234
        assert mirror.seen == []

    @pytest.mark.parametrize("status", [401, 403])
    @pytest.mark.parametrize(
        ("token", "why"),
        [("", "it wants to know who asks"), ("hf_secret", "the token of llm_hub_token may not read it")],
    )
    def test_a_gated_repository_leads_to_licence_and_token(self, hub, status, token, why):
        url = hub.offer("/gated/r/resolve/main/x.gguf", (status, {}))
        assert ask(url, Hub(hub.url, token=token), 5)["problem"] == (
            f"answers {status} (access refused): {why}; accept its licence on the hub's page of the"
            " repository, and set llm_hub_token to a token of that account"
        )
        assert hub.asked() == ["HEAD /gated/r/resolve/main/x.gguf"]


@pytest.mark.parametrize(
    ("status", "problem", "transient"),
    [
        (404, "answers 404 (not found): correct the url", False),
        (410, "answers 410 (not found): correct the url", False),
        *(
            (
                status,
                f"answers {status} (access refused): it wants a login or an accepted licence;"
                " take another source, or put the file into llm_models_dir by hand",
                False,
            )
            for status in (401, 403)
        ),
        (418, "answers 418: correct the url, or take another source", False),
        (408, "answers 408: correct the url, or take another source", True),
        (429, "answers 429 (too many requests): try again later, or take another source", True),
        *(
            (status, f"answers {status} (error of the server): try again later, or take another source", True)
            for status in (500, 502, 503, 504)
        ),
        (507, "answers 507 (error of the server): try again later, or take another source", False),
    ],
)
def test_each_refusal_has_its_message_and_may_pass_or_not(web, status, problem, transient):
    answer = ask(web.offer("/x.gguf", (status, {})), Hub(), 5)
    assert (answer["problem"], answer["transient"]) == (problem, transient)
    assert answer["no_connection"] is False


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/xhtml+xml"])
def test_a_web_page_is_no_model(web, kind):
    assert ask(web.offer("/x.gguf", (200, {"Content-Type": kind})), Hub(), 5)["problem"] == (
        "answers a web page, not a GGUF file: correct the url (on the hub, /resolve/ instead of /blob/)"
    )


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("text", "seconds"), [("7", 7), ("100000", 300), ("", 0), ("soon", 0), ("-5", 0), (None, 0)]
    )
    def test_seconds(self, web, text, seconds):
        url = web.offer("/x.gguf", (429, {"Retry-After": text} if text is not None else {}))
        assert ask(url, Hub(), 5)["retry_after"] == seconds

    @pytest.mark.parametrize(("ahead", "seconds"), [(60, 60), (100000, 300), (-60, 0)])
    def test_date(self, ahead, seconds):
        date = email.utils.formatdate(time.time() + ahead, usegmt=True)
        assert seconds - 2 <= sources.retry_after({"Retry-After": date}) <= seconds


class TestWithoutHead:
    """Simple servers and pre-signed addresses answer to GET only."""

    @pytest.mark.parametrize("status", [405, 501])
    def test_a_part_of_the_file_is_asked_for(self, web, status):
        web.offer("HEAD /x.gguf", (status, {}))
        part = (206, {"Content-Range": "bytes 0-0/5678", "Content-Length": 1, "ETag": '"v2"'})
        answer = ask(web.offer("GET /x.gguf", part), Hub(), 5)
        assert (answer["problem"], answer["size"], answer["etag"]) == ("", 5678, '"v2"')
        assert web.asked() == ["HEAD /x.gguf", "GET /x.gguf"]
        assert web.seen[1][2]["Range"] == "bytes=0-0"

    def test_a_server_that_does_not_know_range_either_is_understood(self, web):
        web.offer("HEAD /x.gguf", (405, {}))
        assert ask(web.offer("GET /x.gguf", FILE), Hub(), 5)["size"] == 1234

    def test_a_redirect_is_followed_also_when_only_get_tells_it(self, web):
        web.offer("HEAD /x.gguf", (405, {}))
        end = web.offer("/end.gguf", FILE)
        url = web.offer("GET /x.gguf", (302, {"Location": "/end.gguf", "Content-Type": "text/html"}))
        answer = ask(url, Hub(), 5)
        assert (answer["problem"], answer["size"], answer["address"]) == ("", 1234, end)

    def test_403_is_a_missing_head_only_behind_a_redirect(self, web):
        web.offer("HEAD /signed", (403, {}))
        web.offer("GET /signed", (206, {"Content-Range": "bytes 0-0/5678"}))
        url = web.offer("/x.gguf", (302, {"Location": "/signed"}))
        assert ask(url, Hub(), 5)["size"] == 5678
        assert "answers 403" in ask(web.url + "/signed", Hub(), 5)["problem"]

    def test_get_refuses_too(self, web):
        url = web.offer("/x.gguf", (405, {}))
        assert ask(url, Hub(), 5)["problem"] == "answers 405: correct the url, or take another source"


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
    def send(url, timeout, headers):
        raise error

    answer = ask("https://m.example/x.gguf", Hub(), 5, send)
    assert answer["problem"] == problem
    assert (answer["no_connection"], answer["transient"]) == (True, True)


def test_a_private_certificate_leads_to_the_bundle():
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate in certificate chain"
    assert sources.connection_problem(URLError(error), 5) == (
        "has a certificate that the host does not trust"
        " (self-signed certificate in certificate chain): set llm_ca_bundle"
    )


class TestAskAll:
    def test_a_busy_server_is_asked_again_with_longer_and_longer_waits(self, web, waits):
        url = web.offer("/x.gguf", BUSY, BUSY, BUSY, FILE)
        assert ask_all([url], Hub(), 5, attempts=4)[url]["size"] == 1234
        assert waits == [2, 4, 8]

    def test_a_server_that_says_how_long_is_believed(self, web, waits):
        url = web.offer("/x.gguf", (429, {"Retry-After": 7}), BUSY, FILE)
        assert ask_all([url], Hub(), 5, attempts=3)[url]["problem"] == ""
        assert waits == [7, 4]

    def test_patience_has_an_end(self, web, waits):
        url = web.offer("/x.gguf", BUSY)
        assert "answers 503" in ask_all([url], Hub(), 5, attempts=3)[url]["problem"]
        assert (len(web.seen), waits) == (3, [2, 4])

    def test_what_does_not_pass_is_asked_once(self, web, waits):
        ask_all([web.offer("/x.gguf", (404, {}))], Hub(), 5, attempts=3)
        assert (len(web.seen), waits) == (1, [])

    def test_a_dead_server_is_asked_only_once(self, waits):
        asked = []

        def send(url, timeout, headers):
            asked.append(url)
            raise URLError(ConnectionRefusedError(111, "Connection refused"))

        urls = ["https://m.example/a.gguf", "https://m.example/b.gguf", "https://n.example/c.gguf"]
        answers = ask_all(urls, Hub(), 5, attempts=3, send=send)
        assert asked == [urls[0], urls[2]]
        assert waits == []
        for url in urls:
            assert answers[url]["problem"].startswith(f"{url} refuses the connection")

    def test_one_url_is_asked_once_and_its_secrets_are_not_shown(self, web):
        address = web.url.replace("//", "//user:secret@") + "/gone?token=secret"
        answers = ask_all([address, address], Hub(), 5)
        assert web.asked() == ["HEAD /gone?token=secret"]
        assert answers[address]["problem"] == f"{web.url}/gone answers 404 (not found): correct the url"
