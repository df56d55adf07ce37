"""The entrance: who may ask for what, which server answers, and how refusals look to client libraries."""

from __future__ import annotations

import json
import socket
import ssl
from itertools import cycle, islice

import openai
import pytest
import requests
from conftest import CA, CLIENTS, KEYS, URL, access_log, at_once, client_of
from testing import ask

ADDRESS = ("127.0.0.1", int(URL.rpartition(":")[2]))
ALICE = {"Authorization": f"Bearer {KEYS['alice']}"}
# Asks the server of a host, from another host.
REACH = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).status)"


@pytest.fixture(scope="module")
def http():
    """A plain HTTP client, for what the OpenAI client does not do."""
    with requests.Session() as session:
        session.trust_env = False  # a CA bundle in the environment would win over this one
        session.verify = str(CA)
        yield session


def error_code(answer: requests.Response) -> str:
    """The code of an error in the form of OpenAI's."""
    return answer.json()["error"]["code"]


def test_each_model_is_answered_by_itself_and_stays_with_the_server_that_has_it(client, gateway):
    before = len(access_log(gateway))
    for model in islice(cycle(["smollm2", "gemma3"]), 6):
        assert ask(client, model, max_tokens=8).model == model
    lines = access_log(gateway)[before:]
    answered = {(line["model"], line["server"]) for line in lines}
    assert len(answered) == 2, "each model stays where it is"
    assert ("smollm2", "smollm2/llm-fleet-b:only") in answered


def test_the_answer_is_the_models_own(client):
    assert "Paris" in ask(client, "smollm2").choices[0].message.content


def test_completions_and_embeddings_are_routed_as_chats_are(client):
    completion = client.completions.create(model="smollm2", prompt="Once upon a time", max_tokens=4)
    assert completion.model == "smollm2"
    assert completion.choices[0].text
    embeddings = client.embeddings.create(model="gemma3", input="Tokyo", encoding_format="float")
    assert embeddings.model == "gemma3"
    assert embeddings.data[0].embedding


def test_models_of_the_whole_fleet_are_listed_while_every_server_is_busy(client):
    streams = [ask(client, "smollm2", "Tell a story.", max_tokens=200, stream=True) for _ in range(3)]
    for stream in streams:
        next(iter(stream))
    listed = client.with_options(timeout=5).models.list()
    assert [model.id for model in listed] == ["smollm2", "gemma3"]
    for stream in streams:
        stream.close()


def test_an_unknown_model_is_refused_with_the_names_of_the_known_ones(client):
    with pytest.raises(openai.NotFoundError) as refusal:
        ask(client, "gpt-4")
    assert refusal.value.code == "model_not_found"
    for name in ("gpt-4", "smollm2", "gemma3"):
        assert name in refusal.value.message


def test_a_request_without_a_model_is_refused(http):
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    answer = http.post(f"{URL}/v1/chat/completions", json=body, headers=ALICE)
    assert (answer.status_code, error_code(answer)) == (400, "model_missing")


def test_a_wrong_key_is_refused_and_so_is_that_of_the_servers(scenario):
    servers_key = "a-key-that-only-the-gateway-and-the-servers-have"
    assert servers_key in (scenario.directory / "inventory/group_vars/llm_hosts.yml").read_text()
    for key in ("wrong", servers_key):
        with pytest.raises(openai.AuthenticationError) as refusal:
            ask(client_of(key), "smollm2")
        assert refusal.value.code == "invalid_api_key"


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/metrics", "/v1/engines", "/"])
def test_everything_but_the_api_is_closed(http, path):
    assert http.get(URL + path).status_code == 401
    answer = http.get(URL + path, headers=ALICE)
    assert (answer.status_code, error_code(answer)) == (404, "unknown_url")


def test_a_body_that_is_too_large_is_refused_and_one_just_below_is_answered(client, http):
    with pytest.raises(openai.APIStatusError) as refusal:
        ask(client, "smollm2", "x" * 65536)
    assert (refusal.value.status_code, refusal.value.code) == (413, "request_too_large")
    # The model comes after all the rest: it is found where it stands, however far back.
    messages = [{"role": "user", "content": "Hello"}]
    body = json.dumps({"user": "u" * 65000, "messages": messages, "max_tokens": 1, "model": "gemma3"})
    assert 65000 < len(body) < 65536
    headers = ALICE | {"Content-Type": "application/json"}
    answer = http.post(f"{URL}/v1/chat/completions", data=body, headers=headers)
    assert (answer.status_code, answer.json()["model"]) == (200, "gemma3")


def test_a_client_has_its_requests_per_minute_and_no_more(clients):
    limit = next(client["requests_per_minute"] for client in CLIENTS if client["name"] == "bob")
    for _ in range(limit):
        ask(clients["bob"], "smollm2", max_tokens=1)
    with pytest.raises(openai.RateLimitError) as refusal:
        ask(clients["bob"], "smollm2", max_tokens=1)
    assert refusal.value.code == "rate_limit_exceeded"
    assert int(refusal.value.response.headers["Retry-After"]) > 0
    ask(clients["alice"], "smollm2", max_tokens=1)


def test_a_client_has_its_requests_at_the_same_time_and_no_more(clients):
    def one() -> str:
        try:
            return ask(clients["carol"], "smollm2", "Tell a story.", max_tokens=60).object
        except openai.RateLimitError as refusal:
            return refusal.code

    outcomes = at_once([one] * 4)
    assert sorted(outcomes) == ["chat.completion"] * 2 + ["too_many_concurrent_requests"] * 2


def test_http_leads_to_https_and_no_key_is_accepted_there(http):
    plain = "http://127.0.0.1:20780/v1/models"
    answer = http.get(plain, allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (308, "https://127.0.0.1/v1/models")
    answer = http.post(plain, headers=ALICE)
    assert (answer.status_code, error_code(answer)) == (403, "https_only")


def test_old_versions_of_tls_are_refused():
    def speaks(version: ssl.TLSVersion) -> str:
        context = ssl.create_default_context(cafile=CA)
        # OpenSSL itself must be willing to speak it, so that it is the gateway that refuses.
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        with socket.create_connection(ADDRESS, timeout=30) as plain:
            return context.wrap_socket(plain, server_hostname="127.0.0.1").version()

    assert speaks(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    assert speaks(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises(ssl.SSLError, match="alert protocol version"):
        speaks(ssl.TLSVersion.TLSv1_1)


def test_servers_are_reached_from_the_gateway_and_from_nowhere_else(gateway, other_host):
    assert gateway.check_output("python3 -c %s http://llm-fleet-b:20080/openapi.json", REACH) == "200"
    address = gateway.check_output("getent hosts llm-fleet-b").split()[0]
    assert other_host.run("python3 -c %s %s", REACH, f"http://{address}:20080/openapi.json").rc != 0


def test_keys_are_in_no_log_and_on_no_command_line(gateway):
    log = gateway.check_output("journalctl -o cat") + gateway.check_output("ps -eo args")
    assert '"client":"alice"' in log
    for key in KEYS.values():
        assert key not in log


def test_only_their_hashes_are_on_the_gateway(gateway):
    found = gateway.run("grep -rl %s /etc /var /run", KEYS["alice"]).stdout
    assert found == ""
