"""The benchmark counts what a server really did. Servers that cut streams, fail, or put several tokens into
one piece of the stream are played by a stand-in, so that each figure is known beforehand."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import struct
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import llm_benchmark
import pytest
from benchmark import benchmark_broken, benchmark_host
from conftest import PROJECT

KEY = "right-key"
OPTIONS = {"clients": [1, 3], "repeats": 2, "max_tokens": 6, "prompt_tokens": 40}


class StandinEngine(ThreadingHTTPServer):
    """Completes prompts like llama_cpp.server, token by token, as it is told.

    Attributes:
        models: the aliases that it lists.
        asked: the body of each request, in order.
        pause: seconds before each piece of a stream.
        pieces: how many pieces of text a stream has; per_piece: how many tokens stand in each.
        usage: whether a stream tells the number of its tokens at its end.
        finish: the finish_reason of streams. Answers without streaming are always of full length.
        fault: what goes wrong with streams of the model in `faulty`.
        together: streams wait until so many of them are there, 0 for not at all.
    """

    request_queue_size = 32

    def __init__(self):
        super().__init__(("127.0.0.1", 0), StandinEngineHandler)
        self.models = ["one", "two", "three", "first-model", "second-model"]
        self.asked, self.lock = [], threading.Lock()
        self.pause, self.pieces, self.per_piece = 0.0, 6, 1
        self.usage, self.finish, self.fault, self.faulty, self.together = False, "length", None, "one", None

    def handle_error(self, *_):
        """Stays silent: clients may go away."""


class StandinEngineHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Stays silent."""

    def reply(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def is_allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {KEY}"

    def do_GET(self):
        if self.path == "/openapi.json":
            return self.reply(200, {"info": {"version": "1.2.3"}})
        if not self.is_allowed():
            return self.reply(401, {"detail": "Invalid API key"})
        return self.reply(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self):
        engine = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with engine.lock:
            engine.asked.append(body)
        fault = engine.fault if body["model"] == engine.faulty else None
        if not self.is_allowed():
            return self.reply(401, {"detail": "Invalid API key"})
        if fault == "cannot be loaded":
            return self.reply(500, {"error": "Failed to load model from file"})
        if body.get("stream"):
            return self.stream(fault, body)
        # A word and its comma.
        words = len(body["prompt"].split())
        usage = {"prompt_tokens": 2 * words, "completion_tokens": body["max_tokens"]}
        return self.reply(200, {"choices": [{"text": "…", "finish_reason": "length"}], "usage": usage})

    def event(self, data: str) -> None:
        text = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))

    def stream(self, fault: str | None, body: dict) -> None:
        engine = self.server
        if fault == "refused":
            return self.reply(503, {"error": "overloaded"})
        if engine.together and body["max_tokens"] > 1:
            engine.together.wait(timeout=10)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for place in range(0 if fault == "silent" else engine.pieces):
            time.sleep(engine.pause)
            if fault == "error" and place == 2:
                self.event(json.dumps({"error": {"message": "out of memory"}}))
            if fault == "broken off" and place == 2:
                self.close_connection = True
                return None
            if fault == "reset" and place == 2:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.shutdown(socket.SHUT_RD)
                self.close_connection = True
                return self.connection.close()
            self.event(json.dumps({"choices": [{"text": f" {place}", "finish_reason": None}]}))
        finish = None if fault == "cut" else engine.finish
        self.event(json.dumps({"choices": [{"text": "", "finish_reason": finish}]}))
        if engine.usage and body.get("stream_options", {}).get("include_usage"):
            tokens = {"completion_tokens": engine.pieces * engine.per_piece}
            self.event(json.dumps({"choices": [], "usage": tokens}))
        if fault != "no end":
            self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")
        return None


@pytest.fixture
def engine():
    """A server that answers as it is told."""
    server = StandinEngine()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def measure(engine):
    """Returns a function: aliases, options -> what the benchmark says of the stand-in."""

    def measured(*models: str, key: str = KEY, **options) -> dict:
        client = llm_benchmark.Client(f"http://127.0.0.1:{engine.server_port}", key, timeout=5)
        return llm_benchmark.benchmark(client, [*models], OPTIONS | options, random.Random(7))

    return measured


def test_times_and_tokens_of_a_known_server_are_found(engine, measure):
    engine.pause = 0.02
    result = measure("one")
    assert (result["engine"], result["problems"]) == ("1.2.3", [])
    model = result["models"]["one"]
    assert model["prompt_tokens"] == 40
    for figures, clients in zip(model["rounds"], (1, 3), strict=True):
        assert figures["clients"] == clients
        assert (figures["complete"], figures["cut"], figures["failed"]) == (2 * clients, 0, 0)
        assert figures["tokens"] == 6
        assert 0.02 <= figures["first_token_s"] <= figures["first_token_max_s"]
        # A token every 20 ms is 50 a second at most, and the first one counts for the whole, too.
        assert 5 < figures["tokens_per_s"] <= 50.1
        assert 5 * clients < figures["total_tokens_per_s"] <= 50.1 * clients
    alone, several = model["rounds"]
    assert 400 < alone["prompt_tokens_per_s"] <= 2000
    assert several["prompt_tokens_per_s"] is None


def test_total_counts_all_clients_and_the_wait_for_the_first_token(measure, engine):
    """Three streams at once have three times one stream's tokens; a stream's own rate leaves the wait out."""
    engine.pause = 0.03
    alone, several = measure("one")["models"]["one"]["rounds"]
    assert several["total_tokens_per_s"] > 1.5 * alone["total_tokens_per_s"]
    assert alone["total_tokens_per_s"] < alone["tokens_per_s"]


def test_clients_of_a_round_ask_at_the_same_time(measure, engine):
    """The stand-in answers nobody before all eight are there."""
    engine.together = threading.Barrier(8)
    (figures,) = measure("one", clients=[8])["models"]["one"]["rounds"]
    assert figures["complete"] == 16


@pytest.mark.parametrize(
    ("fault", "outcome", "text"),
    [
        ("cut", "cut", "the stream was cut off (finish_reason None)"),
        ("no end", "cut", "the stream ended without [DONE]"),
        ("broken off", "cut", "the stream ended without [DONE]"),
        ("reset", "cut", "the stream broke off: ConnectionResetError"),
        ("refused", "failed", "HTTP 503: "),
        ("error", "failed", "out of memory"),
        ("silent", "failed", "the stream holds no text"),
    ],
)
def test_streams_that_do_not_end_well_are_counted_and_named(measure, engine, fault, outcome, text):
    engine.fault = fault
    result = measure("one")
    # One round: more clients would fare the same.
    (figures,) = result["models"]["one"]["rounds"]
    assert figures[outcome] == 2
    assert figures["complete"] + figures["cut"] + figures["failed"] == 2
    assert text in figures["errors"][0]
    assert figures["first_token_s"] is figures["total_tokens_per_s"] is None


def test_tokens_are_counted_by_the_server_if_it_tells(measure, engine):
    engine.usage, engine.per_piece, engine.finish = True, 3, "stop"
    model = measure("one")["models"]["one"]
    assert model["counted_by"] == "usage"
    assert model["rounds"][0]["tokens"] == 18


def test_an_answer_of_full_length_has_the_tokens_that_were_asked_for(measure, engine):
    """3 pieces with 6 tokens, because a character may need several of them; the stream does not tell."""
    engine.pieces, engine.per_piece = 3, 2
    model = measure("one")["models"]["one"]
    assert model["counted_by"] == "chunks"
    assert model["rounds"][0]["tokens"] == 6


def test_an_answer_that_ends_early_has_as_many_tokens_as_pieces(measure, engine):
    engine.pieces, engine.finish = 4, "stop"
    assert measure("one")["models"]["one"]["rounds"][0]["tokens"] == 4


def test_the_api_key_is_sent_and_a_wrong_one_named(measure):
    assert measure("one", key="wrong")["problems"] == [
        'cannot be measured: HTTP 401: {"detail": "Invalid API key"}'
    ]


def test_a_server_that_is_not_there_is_one_problem():
    client = llm_benchmark.Client("http://127.0.0.1:9", timeout=5)
    result = llm_benchmark.benchmark(client, ["one", "two"], OPTIONS)
    assert result["models"] == {}
    assert len(result["problems"]) == 1
    assert "no answer from http://127.0.0.1:9" in result["problems"][0]


def test_no_prompt_begins_like_the_one_before(measure, engine):
    measure("one", clients=[1, 2, 4, 8], repeats=3, prompt_tokens=256)
    prompts = [body["prompt"] for body in engine.asked if body.get("stream")]
    assert len(prompts) == 45
    firsts = [prompt.split(",")[0] for prompt in prompts]
    assert len(set(firsts)) == 45
    # Of the same words, so of the same length.
    assert len({" ".join(sorted(prompt.replace(",", "").split())) for prompt in prompts}) == 1
    assert {body["temperature"] for body in engine.asked} == {0}


def test_a_prompt_has_about_the_tokens_that_were_asked_for_and_can_be_long(measure, engine):
    measure("one", clients=[1], prompt_tokens=1000)
    assert len(engine.asked[-1]["prompt"].split()) == 500


def test_switches_go_round_from_the_second_model_and_come_before_everything_else(measure, engine):
    result = measure("one", "two", "three")
    asked = [body["model"] for body in engine.asked]
    assert asked[:10] == ["one", *["two", "three", "one"] * 3]
    # After that, one model after the other: no switch spoils a figure.
    assert asked[10:] == sorted(asked[10:], key=["one", "two", "three"].index)
    switch = result["models"]["two"]["switch"]
    assert len(switch["warm"]) == 2
    assert min(switch["warm"]) <= switch["warm_s"] <= max(switch["warm"])
    assert switch["first_s"] > 0


def test_with_one_model_nothing_is_switched(measure, engine):
    assert measure("one")["models"]["one"]["switch"] == {}
    assert all(body["max_tokens"] == 6 for body in engine.asked if body.get("stream"))


def test_a_model_that_cannot_be_loaded_is_named_and_the_others_are_measured(measure, engine):
    engine.fault, engine.faulty = "cannot be loaded", "two"
    result = measure("one", "two", "three")
    assert [*result["models"]] == ["one", "three"]
    assert result["problems"][0].startswith("switch to two: HTTP 500")
    assert result["problems"][-1].startswith("two: HTTP 500")


def test_a_model_that_the_server_does_not_have_is_named_and_never_asked_for(measure, engine):
    """The real server would answer with another one, and its figures would stand under a wrong name."""
    engine.models = ["one"]
    result = measure("two", "one")
    assert result["problems"] == ["two: the server has only one"]
    assert {body["model"] for body in engine.asked} == {"one"}


UNIT = """\
ExecStart={ path=/usr/bin/docker ; argv[]=docker run --rm --name=a --label=b=c llamacpp:0.3.36-cpu ; \
ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=7 ; code=(null) ; status=0/0 }
ExecMainStartTimestampMonotonic=1000000
ActiveEnterTimestampMonotonic=6150000
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (UNIT, ("llamacpp:0.3.36-cpu", 5.2)),
        (UNIT.replace("-cpu ;", "-cpu batch-server --config_file x ;"), ("llamacpp:0.3.36-cpu", 5.2)),
        (UNIT.replace("=6150000", "=900000"), ("llamacpp:0.3.36-cpu", None)),
        ("ExecMainStartTimestampMonotonic=0\nActiveEnterTimestampMonotonic=0\n", (None, None)),
        ("", (None, None)),
    ],
    ids=["started", "the batching server", "starts just now", "never started", "says nothing"],
)
def test_image_and_start_are_what_systemd_says(text, expected):
    assert llm_benchmark.parse_unit(text) == expected


def test_gpus_are_what_nvidia_smi_says():
    def run(_command):
        return 0, "0, NVIDIA L40S, 46068 MiB, 550.54\n1, NVIDIA L40S, 46068 MiB, 550.54\n", ""

    assert len(llm_benchmark.machine(run, "/usr/bin/nvidia-smi")["gpus"]) == 2
    assert llm_benchmark.machine(run, None)["gpus"] == []
    assert (
        llm_benchmark.machine(lambda _: (9, "driver not loaded\n", ""), "/usr/bin/nvidia-smi")["gpus"] == []
    )


def test_report_has_file_and_settings_of_each_model(measure):
    result = measure("one") | {"image": "i", "start_s": 5.1, "machine": {"processor": "p"}}
    result["item"] = {"name": "first", "port": 20080, "gpus": [0]}
    catalogue = [{"alias": "one", "file": "one.gguf", "settings": {"n_ctx": 4096}}]
    host = benchmark_host([result], catalogue, {"n_ctx": 512, "embedding": True})
    assert host["machine"] == {"processor": "p"}
    assert host["instances"]["first"]["gpus"] == [0]
    model = host["instances"]["first"]["models"]["one"]
    assert (model["file"], model["settings"]) == ("one.gguf", {"n_ctx": 4096, "embedding": True})


# ---- The playbook ---------------------------------------------------------------------------------------


@pytest.fixture
def play(engine, tmp_path):
    """Returns a function: options of ansible-playbook -> exit status and output of benchmark.yml."""
    inventory = {
        "llm_hosts": {
            "hosts": {
                name: {
                    "ansible_connection": "local",
                    "ansible_python_interpreter": "{{ ansible_playbook_python }}",
                    "llm_models": [{"alias": f"{name}-model", "file": "some.gguf"}],
                    "llm_instances": [{"name": "llamacpp", "port": engine.server_port}],
                    "llm_api_key": KEY,
                }
                for name in ("first", "second")
            }
        }
    }
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet/hosts.json").write_text(json.dumps(inventory))

    def run(*options: str) -> tuple[int, str]:
        quick = "benchmark_clients=1,2 benchmark_repeats=1 benchmark_max_tokens=6"
        place = f"benchmark_dir={tmp_path / 'results'}"
        command = [
            "ansible-playbook",
            "-i",
            str(tmp_path / "fleet"),
            "benchmark.yml",
            "-e",
            quick,
            "-e",
            place,
        ]
        done = subprocess.run(
            [*command, *options],
            cwd=PROJECT,
            env=os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_two_runs_of_the_playbook_make_two_results_and_one_page_that_compares_them(play, engine, tmp_path):
    results = tmp_path / "results"
    engine.pause = 0.1
    status, output = play()
    assert status == 0, output
    assert not re.search(r"changed=[1-9]", output)
    (path,) = results.glob("*.json")
    run = json.loads(path.read_text())
    assert [*run["hosts"]] == ["first", "second"]
    assert (
        run["hosts"]["second"]["instances"]["llamacpp"]["models"]["second-model"]["rounds"][1]["complete"]
        == 2
    )
    assert run["inventory"] == "fleet"
    assert "first · llamacpp · engine 1.2.3" in output
    assert KEY not in output + path.read_text()
    # One host after the other.
    asked = [body["model"] for body in engine.asked]
    assert asked == sorted(asked)
    assert len(set(asked)) == 2

    # The same server again, slower.
    engine.pause = 0.25
    status, output = play("--limit", "second", "-e", "benchmark_fail=true")
    assert status != 0
    assert "Worse than in the run before by more than 10 %" in output
    assert (
        "second · llamacpp · second-model: tokens/s of one stream -" in (results / "index.html").read_text()
    )
    assert len([*results.glob("*.json")]) == 2


def test_check_mode_measures_and_writes_nothing(play, engine, tmp_path):
    status, output = play("--check")
    assert status == 0, output
    assert "nothing was measured" in output
    assert engine.asked == []
    assert not (tmp_path / "results").exists()


def test_a_cut_stream_fails_the_play_after_everything_has_been_written(play, engine, tmp_path):
    engine.fault, engine.faulty = "cut", "first-model"
    status, output = play()
    assert status != 0
    line = (
        "first · llamacpp · first-model: 1 cut of 1 streams of 1 at once: "
        "the stream was cut off (finish_reason None)"
    )
    assert line in output
    assert line in (tmp_path / "results/index.html").read_text()
    (path,) = (tmp_path / "results").glob("*.json")
    assert benchmark_broken(json.loads(path.read_text())["hosts"]) == [line]
