"""Faults that show only when the candidate runs: what served before serves again, and the play says why."""

from __future__ import annotations

import json

import pytest
from conftest import HOME, STATE
from testing import wait_until

MODELS = f"{HOME}/model"

# Images that differ from the real one in what their server does.
SERVER = """
import http.server, os, signal
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Server(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body = (200, "{}") if self.path == "/openapi.json" else (%s)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())
    do_GET = do_POST = answer
http.server.ThreadingHTTPServer(("", 20080), Server).serve_forever()
"""
EMPTY = json.dumps({"choices": [{"message": {"content": ""}}], "usage": {"completion_tokens": 0}})
HANGS = ["sh", "-c", "trap exit TERM; while :; do sleep 1; done"]
IMAGES = {
    "crashes at start": (
        ["sh", "-c", "echo cannot open shared object file >&2; exit 127"],
        "did not become ready",
    ),
    "never gets ready": (HANGS, "did not become ready"),
    "answers 500": (["python3", "-c", SERVER % '500, "Internal Server Error"'], "HTTP 500"),
    "answers a web page": (["python3", "-c", SERVER % '200, "<html>It works!</html>"'], "not JSON"),
    "answers with nothing": (["python3", "-c", SERVER % f"200, {EMPTY!r}"], "the answer is empty"),
}


def was_restored(run, *words: str) -> None:
    """Asserts that a play failed, said why, and said what serves now."""
    assert run.rc != 0, run.output
    for word in [*words, "What served before serves again: release", "docs/recovery.md"]:
        assert word in run.error


@pytest.fixture
def as_before(host, client):
    """Proves at the end that config.json and the unit are what they were, those of the last good release."""
    paths = (f"{HOME}/config.json", "/etc/systemd/system/llamacpp.service")
    before = [host.file(path).content for path in paths]
    good = host.check_output(f"readlink {STATE}/good")
    yield
    assert [host.file(path).content for path in paths] == before
    assert host.check_output(f"readlink {STATE}/good") == good
    assert host.file(f"{STATE}/good/config.json").content == before[0]
    assert not host.file(f"{STATE}/trying").exists


@pytest.fixture
def faulty_image(host):
    """Returns a function: a command -> name of the image that is the real one but runs this command."""
    real = host.check_output("docker inspect --format '{{.Config.Image}}' llamacpp")
    container = host.check_output("docker create %s", real)

    def make(command: list[str]) -> str:
        change = f"CMD {json.dumps(command)}"
        host.check_output("docker commit --change %s %s llamacpp:faulty", change, container)
        return "llamacpp:faulty"

    yield make
    host.check_output("docker rm %s", container)
    host.check_output("docker rmi llamacpp:faulty")


@pytest.mark.parametrize("fault", IMAGES)
def test_survives_an_image_that(deploy, as_before, faulty_image, fault):
    command, words = IMAGES[fault]
    run = deploy(
        llamacpp_server_image=faulty_image(command),
        llamacpp_server_start_timeout=15,
        llamacpp_server_probe_timeout=15,
    )
    was_restored(run, words)


@pytest.fixture
def odd(host, catalogue):
    """A whole model file of an architecture that the engine does not know: only loading it shows that."""
    path = f"{MODELS}/odd.gguf"
    host.check_output(
        "LC_ALL=C sed '0,/llama/s/llama/lamma/' %s > %s", f"{MODELS}/{catalogue[0]['file']}", path
    )
    yield {**catalogue[0], "alias": "odd", "file": "odd.gguf", "sha256": "none"}
    host.check_output("rm %s", path)


def test_survives_a_second_model_that_cannot_be_loaded(deploy, as_before, catalogue, odd):
    run = deploy(llm_models=[*catalogue, odd])
    was_restored(run, "its model odd does not answer", "odd.gguf")


def test_survives_a_first_model_that_cannot_be_loaded(deploy, as_before, catalogue, odd):
    run = deploy(llm_models=[odd, *catalogue])
    was_restored(run, "did not become ready", "odd.gguf")


def test_survives_a_context_that_is_too_large_for_the_memory(deploy, as_before, catalogue):
    # 34 GB: logits of 32768 tokens of 262144 words each.
    greedy = {**catalogue[1], "settings": {"chat_format": "gemma", "n_ctx": 0, "logits_all": True}}
    run = deploy(llm_models=[catalogue[0], greedy])
    was_restored(run, "its model gemma3 does not answer")


def test_survives_an_option_that_docker_refuses(deploy, as_before):
    run = deploy(llamacpp_server_docker_options=["--memory=1"])
    was_restored(run, "did not become ready")


# Takes the port as soon as it is free, and gives it back when the server's journal tells of it.
THIEF = """
import socket, subprocess, time
taken = socket.socket()
while True:
    try:
        taken.bind(("", 20080))
        break
    except OSError:
        time.sleep(0.01)
taken.listen()
while b"address already in use" not in subprocess.run(
    ["journalctl", "--unit=llamacpp", "--lines=50", "--output=cat"], stdout=subprocess.PIPE
).stdout:
    time.sleep(0.1)
"""


def test_survives_a_port_that_is_stolen_in_the_swap(deploy, host, as_before):
    host.check_output("systemd-run --unit=thief python3 -c %s", THIEF)
    try:
        run = deploy(llm_server_settings={"interrupt_requests": True})
    finally:
        host.run("systemctl stop thief")
    was_restored(run, "did not become ready", "address already in use")


def test_survives_a_first_deployment_that_fails(deploy, host, catalogue, odd):
    instances = [
        {"name": "llamacpp", "port": 20080, "gpus": [], "models": ["smollm2", "gemma3"]},
        {"name": "second", "port": 20081, "gpus": [], "models": ["odd"]},
    ]
    run = deploy(llm_models=[*catalogue, odd], llm_instances=instances)
    assert run.rc != 0
    assert "Nothing was serving before as second; it is stopped." in run.error
    assert not host.service("second").is_running
    back = deploy()
    assert back.rc == 0, back.output
    assert not host.file("/etc/systemd/system/second.service").exists
    assert not host.file("/home/llm/second").exists


def test_survives_another_name_on_its_port_that_fails(deploy, as_before, host, catalogue, odd):
    renamed = [{"name": "renamed", "port": 20080, "gpus": []}]
    run = deploy(llm_models=[odd, *catalogue], llm_instances=renamed)
    assert run.rc != 0, run.output
    assert "Nothing was serving before as renamed; it is stopped. llamacpp serves again: release" in run.error
    assert host.service("llamacpp").is_running and not host.service("renamed").is_running
    back = deploy()
    assert back.rc == 0, back.output
    assert not host.file("/etc/systemd/system/renamed.service").exists


def test_survives_two_runs_of_which_one_fails(begin, deploy, host, as_before, faulty_image):
    first = begin(llamacpp_server_image=faulty_image(HANGS), llamacpp_server_start_timeout=40)
    wait_until(lambda: host.file(f"{STATE}/trying").exists or not first.runs, "the first run's swap")
    second = deploy(llm_server_settings={"interrupt_requests": True})
    assert second.rc != 0
    assert "another run is changing llamacpp" in second.error
    was_restored(first.finish(), "did not become ready")


@pytest.fixture
def replacement(host, catalogue, odd):
    """Returns a function: number of a model -> the catalogue, with what cannot be loaded in its file."""
    sha256 = host.check_output("sha256sum %s/odd.gguf", MODELS).split()[0]

    def of(number: int) -> list[dict]:
        other = {key: value for key, value in catalogue[number].items() if key != "url"}
        models = [*catalogue]
        models[number] = other | {"path": f"{MODELS}/odd.gguf", "sha256": sha256}
        return models

    return of


@pytest.mark.parametrize(("number", "words"), [(0, "did not become ready"), (1, "gemma3 does not answer")])
def test_survives_a_model_replaced_under_its_own_name_by_one_that_fails(
    play, as_before, host, catalogue, replacement, number, words
):
    run = play("site.yml", "--tags", "models,server", llm_models=replacement(number))
    file = catalogue[number]["file"]
    was_restored(run, words, f"The model files in place are those from before, too: {file}.")
    assert host.check_output("sha256sum %s/%s", MODELS, file).startswith(catalogue[number]["sha256"])
    again = play()
    assert again.rc == 0, again.output
    assert again.count("changed") == 0, "nothing of it is left to do"
    assert not host.file(f"{MODELS}/.previous").exists


def test_survives_the_end_of_a_run_between_a_model_replaced_under_its_own_name_and_its_server(
    play, as_before, host, catalogue, replacement
):
    fetched = play("site.yml", "--tags", "models", llm_models=replacement(0))
    assert fetched.rc == 0, fetched.output
    host.check_output("systemctl kill --signal=SIGKILL llamacpp")  # it loads what is there now, and fails
    back = play("rollback.yml", "-e", "to=good")
    assert back.rc == 0, back.output
    file = catalogue[0]["file"]
    assert host.check_output("sha256sum %s/%s", MODELS, file).startswith(catalogue[0]["sha256"])
