"""Metrics: what mtail counts, what is told of GPUs, and whether alerts and dashboard ask for what exists."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from certificates import NOW, certify, make_key
from exporters import certificate_metrics, exporter_problems
from monitoring import MONITORING, alerts, asked, dashboard, names_of, series_in

PROJECT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
PROGRAM = PROJECT / "roles/llm_gateway/templates/llm-gateway-metrics.mtail.j2"
GPU_SCRIPT = PROJECT / "roles/llm_exporters/templates/llm-gpu-metrics.j2"
SEARCHED = f"{os.environ['PATH']}:/usr/sbin"
# Of the node exporter itself and of Prometheus; scenario fleet asks the real ones.
FOREIGN = {
    "up",
    "node_filesystem_avail_bytes",
    "node_filesystem_size_bytes",
    "node_load1",
    "node_memory_MemAvailable_bytes",
    "node_memory_MemTotal_bytes",
    "node_textfile_mtime_seconds",
}
METRIC = re.compile(r"^(?:counter|histogram) (\w+)", re.MULTILINE)


@pytest.fixture
def write_gpus(tmp_path):
    """Returns a function: what nvidia-smi prints, its exit status -> the text that the script writes."""

    def written(answer, status=0):
        smi = tmp_path / "nvidia-smi"
        (tmp_path / "answer").write_text(answer, encoding="utf-8")
        smi.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\nexit {status}\n", encoding="utf-8")
        smi.chmod(0o755)
        script = tmp_path / "llm-gpu-metrics"
        text = GPU_SCRIPT.read_text(encoding="utf-8").replace("{{ ansible_managed | comment }}\n", "")
        script.write_text(text, encoding="utf-8")
        out = tmp_path / "textfile"
        out.mkdir(exist_ok=True)
        subprocess.run(
            ["sh", script, out],
            env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            check=True,
        )
        assert [one.name for one in out.iterdir()] == ["llm-gpus.prom"]
        return (out / "llm-gpus.prom").read_text(encoding="utf-8")

    return written


GPUS = "0, GPU-4f1c, NVIDIA L4, 61, 97, 21504, 23034, 71.35\n1, GPU-77aa, NVIDIA L4, 35, 0, 1, 23034, [N/A]\n"


# ---- Alerts and dashboard ----


def test_alerts_and_dashboard_ask_only_for_series_that_exist(write_gpus):
    existing = FOREIGN | names_of((GOLDEN / "haproxy-metrics.txt").read_text(encoding="utf-8"))
    for name in METRIC.findall(PROGRAM.read_text(encoding="utf-8")):
        existing |= {name, f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    existing |= names_of(write_gpus(GPUS)) | names_of(certificate_metrics({"a": certify(make_key())}))
    wrong = {where: series_in(expression) - existing for where, expression in asked().items()}
    assert {where: names for where, names in wrong.items() if names} == {}
    # That none was overlooked: each expression asks for something.
    assert all(series_in(expression) for expression in asked().values())


def test_each_alert_leads_to_a_section_of_the_runbook():
    sections = re.findall(
        r"^## (\w+)$", (PROJECT / "docs/runbooks/alarms.md").read_text("utf-8"), re.MULTILINE
    )
    assert sections == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"docs/runbooks/alarms.md#{rule['alert'].lower()}"


def test_each_alert_is_tested():
    tests = yaml.safe_load((MONITORING / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    tested = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert tested == {rule["alert"] for rule in alerts()}


def test_alerts_ask_for_the_jobs_of_the_example():
    example = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    jobs = {job["job_name"] for job in example["scrape_configs"]}
    wanted = {job for expression in asked().values() for job in re.findall(r'job="([^"]+)"', expression)}
    assert wanted == jobs


def test_panels_of_the_dashboard_do_not_overlap_and_have_numbers_of_their_own():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


# ---- What mtail reads ----

LINE = (
    '{{"from":"192.0.2.7","client":"{client}","method":"POST","path":"{path}","model":"{model}",'
    '"server":"{server}","status":{status},"bytes_in":213,"bytes_out":2179,"TR":0,"Tw":{Tw},"Tc":0,"Tr":201,'
    '"Ta":9579,"retries":"0","queued_behind":2,"running":1,"end":"--"}}'
)
GOOD = {
    "client": "alice",
    "path": r"\/v1\/completions",
    "model": "a",
    "server": "a/gpu1:one",
    "status": 200,
    "Tw": 377,
}


def pattern():
    """The regular expression of the program; the syntax that it uses is the same in Go and Python."""
    text = PROGRAM.read_text(encoding="utf-8")
    return re.compile(re.search(r"^/(.*)/ \{$", text, re.MULTILINE)[1])


def test_the_log_of_the_gateway_is_what_mtail_reads():
    """From log-format, each variable replaced by what HAProxy would write."""
    config = (GOLDEN / "haproxy.cfg").read_text(encoding="utf-8")
    line = re.search(r"^\tlog-format '(.*)'$", config, re.MULTILINE)[1]
    values = {"%ci": "192.0.2.7", "%HM": "POST", "%b": "a", "%s": "gpu1:one", "%ts": "--", "%rc": "+1"}
    line = line.replace("%[var(txn.client)]", "alice")
    line = re.sub(r"%\[var\(txn.path\)[^]]*\]", r"\\/v1\\/completions", line)
    line = re.sub(r"%\[var\(txn.model\)[^]]*\]", "a", line)
    line = re.sub(r"%[A-Za-z]+", lambda found: values.get(found[0], "7"), line)
    found = pattern().match(line)
    assert found, line
    assert (found["named"], found["asked"], found["backend"]) == ("alice", "a", "a")
    assert {found[name] for name in ("status", "bytes_in", "bytes_out", "Tw", "Tr", "Ta")} == {"7"}


@pytest.mark.parametrize("injected", [r"\"", r"x\",\"server\":\"a\/b\",\"status\":200", r"\\", r"\u0000"])
def test_what_a_client_writes_is_not_taken_for_the_logs_own(injected):
    line = LINE.format(**GOOD | {"path": injected, "model": injected, "server": "llm/<NOSRV>", "status": 404})
    found = pattern().match(line)
    assert (found["asked"], found["backend"], found["status"]) == (injected, "llm", "404")


def test_the_pattern_is_not_longer_than_mtail_takes():
    assert len(pattern().pattern) <= 1024


# ---- The real programs, where they are here; scenario fleet has them in any case ----


def scraped(url, until):
    """What stands at an address, as soon as it has a text."""
    end = time.monotonic() + 20
    while True:
        try:
            text = urllib.request.urlopen(url, timeout=5).read().decode()
            if until in text:
                return text
        except OSError:
            text = ""
        assert time.monotonic() < end, f"{url}: no {until} in\n{text}"
        time.sleep(0.1)


def test_recorded_names_are_those_of_haproxy(tmp_path, free_ports):
    recorded = names_of((GOLDEN / "haproxy-metrics.txt").read_text(encoding="utf-8"))
    assert "haproxy_backend_active_servers" in recorded
    haproxy = shutil.which("haproxy", path=SEARCHED)
    if not haproxy:
        return
    (port,) = free_ports(1)
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "defaults\n mode http\n timeout client 9s\n timeout server 9s\n timeout connect 9s\n"
        f"frontend f\n bind 127.0.0.1:{port}\n"
        " http-request use-service prometheus-exporter if { path /metrics }\n"
        "backend b\n server s 127.0.0.1:9\n",
        encoding="utf-8",
    )
    with subprocess.Popen([haproxy, "-db", "-f", config]) as process:
        try:
            text = scraped(f"http://127.0.0.1:{port}/metrics", "haproxy_backend_active_servers")
        finally:
            process.terminate()
    used = {name for expression in asked().values() for name in series_in(expression) if name in recorded}
    assert used
    assert used - names_of(text) == set()


def test_mtail_counts_by_client_and_known_model(tmp_path, free_ports):
    assert "hidden text model" in PROGRAM.read_text(encoding="utf-8")
    mtail = shutil.which("mtail", path=SEARCHED)
    if not mtail:
        return
    program = tmp_path / "metrics.mtail"
    program.write_text(
        PROGRAM.read_text(encoding="utf-8").replace("{{ ansible_managed | comment }}\n", ""), encoding="utf-8"
    )
    refused = {"server": "llm/<NOSRV>", "model": r"no\"such", "status": 404, "Tw": -1}
    lines = [GOOD, GOOD | {"status": 503}, GOOD | refused, GOOD | refused | {"client": "-", "status": 401}]
    text = "".join(LINE.format(**line) + "\n" for line in lines)
    text += '{"from": something else}\nServer a/gpu1:one is DOWN\n'
    (port,) = free_ports(1)
    options = ["--progs", program, "--logs", "/dev/stdin", "--address", "127.0.0.1", "--port", str(port)]
    options += ["--logtostderr", "--emit_prog_label=false"]
    with subprocess.Popen([mtail, *options], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            scraped(f"http://127.0.0.1:{port}/metrics", "llm_gateway_unread_log_lines_total")
            process.stdin.write(text.encode())
            process.stdin.flush()
            read = scraped(f"http://127.0.0.1:{port}/metrics", "llm_gateway_unread_log_lines_total 1")
        finally:
            process.terminate()
    for line in (
        'requests_total{client="alice",model="a",status="200"} 1',
        'requests_total{client="alice",model="a",status="503"} 1',
        'requests_total{client="alice",model="unknown",status="404"} 1',
        'requests_total{client="unknown",model="unknown",status="401"} 1',
        'request_bytes_total{client="alice",model="a"} 426',
        'response_bytes_total{client="alice",model="a"} 4358',
        'queue_seconds_bucket{client="alice",model="a",le="0.1"} 0',
        'queue_seconds_bucket{client="alice",model="a",le="0.5"} 2',
        'queue_seconds_sum{client="alice",model="a"} 0.754',
        'first_byte_seconds_sum{client="alice",model="a"} 0.402',
        'duration_seconds_sum{client="alice",model="a"} 19.158',
    ):
        assert f"llm_gateway_{line}\n" in read, read
    assert 'queue_seconds_count{client="alice",model="unknown"}' not in read
    assert "such" not in read


@pytest.fixture
def free_ports():
    """Returns a function: how many -> ports of the loopback that nothing listens on."""
    import socket

    def free(count):
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        ports = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        return ports

    return free


# ---- GPUs ----


def test_what_nvidia_smi_says_becomes_metrics_in_base_units(write_gpus):
    text = write_gpus(GPUS)
    for line in (
        "llm_gpu_up 1",
        'llm_gpu_temperature_celsius{gpu="0",uuid="GPU-4f1c",name="NVIDIA L4"} 61',
        'llm_gpu_utilization_ratio{gpu="0",uuid="GPU-4f1c",name="NVIDIA L4"} 0.97',
        'llm_gpu_memory_used_bytes{gpu="0",uuid="GPU-4f1c",name="NVIDIA L4"} 22548578304',
        'llm_gpu_memory_total_bytes{gpu="1",uuid="GPU-77aa",name="NVIDIA L4"} 24152899584',
        'llm_gpu_power_watts{gpu="0",uuid="GPU-4f1c",name="NVIDIA L4"} 71.35',
    ):
        assert f"{line}\n" in text


def test_what_a_gpu_does_not_tell_is_left_out(write_gpus):
    text = write_gpus(GPUS)
    assert 'llm_gpu_utilization_ratio{gpu="1"' in text
    assert 'llm_gpu_power_watts{gpu="1"' not in text


@pytest.mark.parametrize(
    ("answer", "status"), [("", 9), ("No devices were found\n", 0), (GPUS, 15), ("Unknown Error\n", 0)]
)
def test_without_an_answer_of_nvidia_smi_nothing_of_gpus_is_told(write_gpus, answer, status):
    assert names_of(write_gpus(answer, status)) == {"llm_gpu_up"}
    assert "llm_gpu_up 0\n" in write_gpus(answer, status)


# ---- Certificates ----


def test_the_end_of_a_certificate_is_told_in_seconds_since_1970():
    text = certificate_metrics({"gateway": certify(make_key(), ends=30), "server": "", "other": "broken"})
    (line,) = [line for line in text.splitlines() if not line.startswith("#")]
    name, seconds = line.split()
    assert name == 'llm_certificate_not_after_seconds{certificate="gateway"}'
    assert int(seconds) == int((NOW + datetime.timedelta(days=30)).timestamp())


# ---- Wrong input ----


@pytest.mark.parametrize("bind", ["", None, "192.0.2.10:9100", "[fd00::1]:9100"])
def test_good_input_of_exporters_has_no_problem(bind):
    assert exporter_problems(bind, False, [80, 443, "20080"]) == []


@pytest.mark.parametrize(
    ("bind", "gpus", "message"),
    [
        (
            "9100",
            False,
            'llm_node_exporter_bind: is "9100"; write ADDRESS:PORT, for example 192.0.2.10:9100, or ""'
            " to have none",
        ),
        (
            9100,
            False,
            'llm_node_exporter_bind: is 9100; write ADDRESS:PORT, for example 192.0.2.10:9100, or ""'
            " to have none",
        ),
        (
            "1.2.3:70000",
            False,
            'llm_node_exporter_bind: is "1.2.3:70000"; write ADDRESS:PORT, for example 192.0.2.10:9100, or ""'
            " to have none",
        ),
        (
            "127.0.0.1:20080",
            False,
            "llm_node_exporter_bind: port 20080 is already used on this host; take another port",
        ),
        (
            "",
            True,
            "llm_gpu_exporter: is true, but llm_node_exporter_bind is empty, and the node exporter is what"
            " shows the metrics of GPUs; set llm_node_exporter_bind, or llm_gpu_exporter: false",
        ),
        ("", "yes", 'llm_gpu_exporter: is "yes"; it must be true or false'),
    ],
)
def test_each_wrong_input_of_exporters_is_one_line(bind, gpus, message):
    assert exporter_problems(bind, gpus, [20080]) == [message]
