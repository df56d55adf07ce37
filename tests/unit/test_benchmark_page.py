"""The page of the benchmark: what got worse is found, in the right direction, against the right run, and
nothing that a server or an inventory says becomes part of the page's code."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import re
import subprocess
import sys

import pytest
from conftest import PROJECT

SCRIPT = PROJECT / "scripts/benchmark-page"
loader = importlib.machinery.SourceFileLoader("benchmark_page", str(SCRIPT))
benchmark_page = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
sys.modules[loader.name] = benchmark_page  # dataclasses look there
loader.exec_module(benchmark_page)


def figures(clients: int) -> dict:
    return {
        "clients": clients,
        "first_token_s": 0.5 * clients,
        "first_token_max_s": 0.6 * clients,
        "prompt_tokens_per_s": 512.0 if clients == 1 else None,
        "tokens_per_s": 40.0,
        "total_tokens_per_s": 38.0,
        "tokens": 128,
        "complete": 3 * clients,
        "cut": 0,
        "failed": 0,
        "errors": [],
    }


ALL = "total_tokens_per_s"
MODEL = {
    "file": "vicuna.gguf",
    "settings": {"n_ctx": 4096},
    "prompt_tokens": 256,
    "counted_by": "chunks",
    "switch": {"first_s": 20.0, "warm_s": 4.0, "warm": [4.0, 4.0, 4.0]},
    "rounds": [figures(clients) for clients in (1, 2, 4)],
}
INSTANCE = {
    "port": 20080,
    "gpus": [0],
    "engine": "0.3.36",
    "image": "llamacpp:0.3.36",
    "start_s": 12.0,
    "problems": [],
    "models": {"vicuna": MODEL},
}
HOST = {"machine": {"processor": "p", "processors": 8, "memory_bytes": 2**34, "gpus": ["0, L40S"]}}
OPTIONS = {"repeats": 3, "max_tokens": 128, "prompt_tokens": 256}


def a_run(day: int, *hosts: str) -> dict:
    """A run of that day of November, by default of the host gpu1."""
    run = {
        "format": 1,
        "ended": f"2026-11-{day:02}T15:04:05Z",
        "inventory": "production",
        "options": OPTIONS,
        "hosts": {name: HOST | {"instances": {"llamacpp": INSTANCE}} for name in hosts or ["gpu1"]},
    }
    # A copy, in which hosts share nothing.
    return json.loads(json.dumps(run))


def model_of(run: dict, host: str = "gpu1") -> dict:
    return run["hosts"][host]["instances"]["llamacpp"]["models"]["vicuna"]


def worse(*runs: dict, tolerance: float = 10) -> list[str]:
    """What the last run says is worse."""
    comparisons = benchmark_page.of_run(benchmark_page.compare([*runs]), runs[-1])
    return benchmark_page.worse_lines(comparisons, tolerance)


@pytest.fixture
def write(tmp_path):
    """Returns a function: runs -> the finished script, and its page."""

    def written(*runs: dict, options: tuple[str, ...] = ()):
        for run in runs:
            (tmp_path / f"{run['ended'].replace(':', '-')}.json").write_text(
                json.dumps(run), encoding="utf-8"
            )
        done = subprocess.run(
            [sys.executable, SCRIPT, *options, tmp_path], capture_output=True, text=True, check=False
        )
        page = tmp_path / "index.html"
        return done, page.read_text(encoding="utf-8") if page.exists() else ""

    return written


@pytest.mark.parametrize(
    ("path", "bad", "good", "line"),
    [
        (f"rounds 1 {ALL}", 19.0, 50.0, "tokens/s of all clients -50 %, 38.0 → 19.0 with 2 clients"),
        ("rounds 0 tokens_per_s", 30.0, 50.0, "tokens/s of one stream -25 %, 40.0 → 30.0 with 1 client"),
        ("rounds 2 first_token_s", 3.0, 1.0, "time to first token +50 %, 2.00 → 3.00 s with 4 clients"),
        ("switch warm_s", 6.0, 3.0, "switch to it, warm +50 %, 4.00 → 6.00 s"),
    ],
    ids=["all", "one stream", "first token", "switch"],
)  # fmt: skip
def test_more_tokens_are_better_and_more_seconds_worse(path, bad, good, line):
    def with_figure(value):
        run = a_run(2)
        place = model_of(run)
        *steps, last = path.split()
        for step in steps:
            place = place[int(step) if step.isdigit() else step]
        place[last] = value
        return run

    assert worse(a_run(1), with_figure(bad)) == [f"gpu1 · llamacpp · vicuna: {line}"]
    assert worse(a_run(1), with_figure(good)) == []


def test_a_longer_start_of_an_instance_is_worse():
    slow = a_run(2)
    slow["hosts"]["gpu1"]["instances"]["llamacpp"]["start_s"] = 24.0
    assert worse(a_run(1), slow) == ["gpu1 · llamacpp: start until ready +100 %, 12.0 → 24.0 s"]


def test_numbers_of_clients_share_a_line_and_the_worst_is_shown():
    slow = a_run(2)
    for one, value in zip(model_of(slow)["rounds"], (30.0, 20.0, 37.0), strict=True):
        one["total_tokens_per_s"] = value
    (line,) = worse(a_run(1), slow)
    assert line.endswith("tokens/s of all clients -47 %, 38.0 → 20.0 with 2 clients (also with 1)")


def test_tolerance_decides():
    slow = a_run(2)
    model_of(slow)["rounds"][0]["tokens_per_s"] = 34.0  # 15 % less
    assert worse(a_run(1), slow, tolerance=16) == []
    assert len(worse(a_run(1), slow, tolerance=14)) == 1


def test_a_few_milliseconds_are_noise_whatever_they_are_in_per_cent():
    fast, slow = a_run(1), a_run(2)
    model_of(fast)["rounds"][0]["first_token_s"] = 0.012
    model_of(slow)["rounds"][0]["first_token_s"] = 0.018
    assert worse(fast, slow) == []


def test_each_model_is_compared_with_the_latest_run_that_measured_it():
    """The second run was limited to another host, so gpu1's figures of the first one count."""
    slow = a_run(3, "gpu1", "gpu2")
    model_of(slow)["rounds"][0]["tokens_per_s"] = 20.0
    assert worse(a_run(1, "gpu1", "gpu2"), a_run(2, "gpu2"), slow) == [
        "gpu1 · llamacpp · vicuna: tokens/s of one stream -50 %, 40.0 → 20.0 with 1 client"
    ]


def test_runs_with_answers_or_prompts_of_another_length_are_not_compared():
    slow = a_run(2)
    model_of(slow)["rounds"][0]["tokens_per_s"] = 20.0
    for option in ("max_tokens", "prompt_tokens"):
        other = a_run(1)
        other["options"][option] = 32
        assert worse(other, slow) == []


def test_what_was_not_measured_before_is_compared_with_nothing():
    before = a_run(1)
    model_of(before)["rounds"] = model_of(before)["rounds"][:1]
    model_of(before)["rounds"][0]["first_token_s"] = None
    model_of(before)["switch"] = {}
    before["hosts"]["gpu1"]["instances"]["llamacpp"]["start_s"] = None
    assert worse(before, a_run(2)) == []


def test_runs_are_ordered_by_their_time_not_by_the_names_of_their_files(write, tmp_path):
    write(a_run(1))
    (tmp_path / "2026-11-01T15-04-05Z.json").rename(tmp_path / "renamed.json")
    done, _ = write(a_run(2))
    assert done.stdout.startswith("Run of 2026-11-02 15:04 UTC, production\n")


def test_the_first_run_has_a_page_without_a_comparison(write):
    done, page = write(a_run(1))
    assert done.returncode == 0, done.stderr
    assert "There is no earlier run to compare with." in page
    assert "nothing to compare with" in done.stdout
    assert "run by run" not in page
    assert "%" not in done.stdout.split("Worse")[0]


def test_page_and_summary_say_what_is_worse_and_by_how_much(write):
    slow = a_run(2)
    model_of(slow)["rounds"][0]["tokens_per_s"] = 20.0
    done, page = write(a_run(1), slow)
    assert done.returncode == 3, done.stderr
    line = "gpu1 · llamacpp · vicuna: tokens/s of one stream -50 %, 40.0 → 20.0 with 1 client"
    assert f"<li>{line}</li>" in page
    assert f"  {line}\n" in done.stdout
    assert re.search(r"\n +1 +38\.0 +±0 % +20\.0 +-50 % +0\.500 +±0 % +3/0/0\n", done.stdout)
    assert re.search(r'20\.0\s+<small class="worse">-50 %</small>', page)
    done, page = write(options=("--tolerance", "60"))
    assert done.returncode == 0
    assert "<p>Nothing.</p>" in page


def test_each_plot_has_its_place_and_the_figures_of_its_runs(write):
    _, page = write(a_run(1, "gpu1", "gpu2"), a_run(2, "gpu1", "gpu2"))
    plots = json.loads(re.search(r'id="figures">(.*?)</script>', page)[1])
    assert [*plots] == re.findall(r'class="plot" id="(\w+)"', page)
    assert len(plots) == 8
    by_clients, _, over_time, _ = [*plots.values()][:4]
    assert [line["name"] for line in by_clients["data"]] == [
        "before: 2026-11-01 15:04",
        "last: 2026-11-02 15:04",
    ]
    assert [line["name"] for line in over_time["data"]] == ["1 client", "2 clients", "4 clients"]
    assert over_time["data"][0]["x"] == ["2026-11-01 15:04<br>0.3.36", "2026-11-02 15:04<br>0.3.36"]


def test_a_host_that_the_last_run_left_out_is_still_there(write):
    done, page = write(a_run(1, "gpu1", "gpu2"), a_run(2, "gpu2"))
    assert "<h2>gpu1</h2>" in page
    assert "gpu1" not in done.stdout


def test_the_page_loads_nothing(write):
    _, page = write(a_run(1))
    assert "default-src 'none'" in page
    assert not re.search(r"<(?:script|link|img)[^>]*\b(?:src|href)=", page)


def test_nothing_that_a_server_or_an_inventory_says_becomes_code(write):
    evil = "</script><script>alert(1)</script><b onclick='x'>\"&"
    run, later = a_run(1), a_run(2)
    for one in (run, later):
        one["inventory"] = evil
        one["hosts"] = {evil: one["hosts"]["gpu1"]}
        host = one["hosts"][evil]
        host["machine"] |= {"processor": evil, "gpus": [evil]}
        instance = host["instances"].pop("llamacpp")
        host["instances"][evil] = instance
        instance |= {"engine": evil, "image": evil, "problems": [evil]}
        model = instance["models"].pop("vicuna")
        instance["models"][evil] = model
        model |= {"file": evil, "settings": {evil: evil}}
        model["rounds"][0] |= {"cut": 1, "errors": [evil]}
    done, page = write(run, later)
    assert done.returncode == 0, done.stderr
    own = page.replace(page[page.index("<script>") : page.index('<script type="application/json"')], "")
    assert "alert(1)" in own
    assert "<script>alert" not in own
    assert "<b onclick" not in own
    assert own.count("</script>") == 2
    # In plots, text is HTML.
    plots = re.search(r'id="figures">(.*?)</script>', page)[1]
    assert "<" not in plots
    assert "<script>" not in json.dumps(json.loads(plots))


def test_streams_that_were_cut_stand_on_the_page_and_in_the_summary(write):
    run = a_run(1)
    model_of(run)["rounds"][2] |= {
        "complete": 9,
        "cut": 2,
        "failed": 1,
        "errors": ["HTTP 500: oops", "was cut off"],
    }
    done, page = write(run)
    line = (
        "gpu1 · llamacpp · vicuna: 2 cut and 1 failed of 12 streams of 4 at once: HTTP 500: oops; was cut off"
    )
    assert line in page
    assert line in done.stdout


def test_an_instance_that_did_not_answer_is_named(write):
    run = a_run(1)
    run["hosts"]["gpu1"]["instances"]["llamacpp"] |= {
        "engine": None,
        "start_s": None,
        "models": {},
        "problems": ["gone"],
    }
    done, page = write(run)
    assert done.returncode == 0, done.stderr
    assert "gpu1 · llamacpp: gone" in page
    assert "engine does not answer" in done.stdout


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "Expecting property name"),
        ("[]", "not a result of benchmark.yml"),
        ('{"format": 2}', "format 2, this version reads 1"),
        ('{"format": 1, "ended": "yesterday", "hosts": {}}', "yesterday"),
        (json.dumps(a_run(3) | {"hosts": {"gpu1": {"instances": {"a": {"start_s": "x"}}}}}), "not a result"),
        (json.dumps({key: value for key, value in a_run(3).items() if key != "options"}), "options"),
        ("\x00\xff", "Expecting value"),
    ],
    ids=["half", "a list", "another format", "no time", "figures that are none", "no options", "rubbish"],
)  # fmt: skip
def test_a_file_that_is_no_result_is_named_and_the_others_are_shown(write, tmp_path, text, complaint):
    (tmp_path / "2026-11-09.json").write_text(text, encoding="utf-8")
    done, page = write(a_run(1))
    assert done.returncode == 0, done.stderr
    assert re.search(rf"2026-11-09\.json: .*{complaint}", done.stdout)
    assert "2026-11-09.json: " in page


def test_no_results_at_all_is_one_line(write):
    done, page = write()
    assert done.returncode == 1
    assert done.stderr.endswith("holds no results of benchmark.yml.\n")
    assert page == ""
