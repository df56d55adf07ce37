"""Metrics: Prometheus would find on the gateway what alerts and dashboard ask for, by client and model."""

from __future__ import annotations

import re
import sys

import openai
import pytest
from testing import PROJECT, ask, wait_until

sys.path.insert(0, str(PROJECT / "tests/unit"))

from monitoring import MONITORING, asked, names_of, series_in

# As the inventory says.
HAPROXY, CLIENTS, NODE = "127.0.0.1:8404", "127.0.0.1:3903", "127.0.0.1:9100"
READ = (
    "import sys, urllib.request as r; print(r.urlopen('http://' + sys.argv[1] + '/metrics').read().decode())"
)


@pytest.fixture(scope="module")
def scrape(gateway):
    """Returns a function: ADDRESS:PORT -> the text that Prometheus would read there."""
    return lambda bind: gateway.check_output("python3 -c %s %s", READ, bind)


@pytest.fixture
def counted(scrape):
    """Returns a function: the beginning of a line of the metrics -> its value, 0 where there is none."""

    def value(line):
        found = re.search(rf"^{re.escape(line)} (\S+)$", scrape(CLIENTS), re.MULTILINE)
        return float(found[1]) if found else 0.0

    return value


@pytest.fixture
def grows(counted):
    """Returns a function: a line, its value before, by how much -> waits until it has grown by that."""

    def wait(line, before, by):
        wait_until(lambda: counted(line) >= before + by, f"{line} {before + by}", seconds=30)
        assert counted(line) == before + by

    return wait


def test_a_request_is_counted_under_its_client_and_model(clients, counted, grows):
    lines = [
        'llm_gateway_requests_total{client="carol",model="gemma3",status="200"}',
        'llm_gateway_queue_seconds_count{client="carol",model="gemma3"}',
        'llm_gateway_first_byte_seconds_count{client="carol",model="gemma3"}',
        'llm_gateway_duration_seconds_count{client="carol",model="gemma3"}',
    ]
    before = {line: counted(line) for line in lines}
    ask(clients["carol"], "gemma3", max_tokens=4)
    for line in lines:
        grows(line, before[line], 1)


def test_models_that_do_not_exist_make_no_series(clients, counted, grows, scrape):
    line = 'llm_gateway_requests_total{client="alice",model="unknown",status="404"}'
    before = counted(line)
    for name in ("nonsense-1", 'nonsense-2","status":200,"x":"'):
        with pytest.raises(openai.NotFoundError):
            ask(clients["alice"], name, max_tokens=4)
    grows(line, before, 2)
    assert "nonsense" not in scrape(CLIENTS)
    assert counted("llm_gateway_unread_log_lines_total") == 0


def test_no_key_is_in_any_metric(scrape):
    text = "".join(scrape(bind) for bind in (HAPROXY, CLIENTS, NODE))
    assert 'client="alice"' in text
    assert "key-0123456789abcdef" not in text
    assert "a-key-that-only" not in text


def test_all_that_alerts_and_dashboard_ask_for_exists(scrape):
    existing = {"up"}.union(*(names_of(scrape(bind)) for bind in (HAPROXY, CLIENTS, NODE)))
    # The gateway has no GPU: what is told of one is compared with the script's output, in tests/unit.
    missing = {name for expression in asked().values() for name in series_in(expression)} - existing
    assert {name for name in missing if not name.startswith("llm_gpu_")} == set()


def test_counting_goes_on_after_each_half_of_it_has_died(gateway, clients, counted, grows):
    line = 'llm_gateway_requests_total{client="alice",model="smollm2",status="200"}'
    for name in ("journalctl", "mtail"):
        pid = f"systemctl show --property=MainPID --value llm-gateway-metrics; pkill -KILL -x {name}"
        before = gateway.check_output(pid)

        def counts_again(before: str = before) -> bool:
            main = gateway.check_output("systemctl show --property=MainPID --value llm-gateway-metrics")
            read = gateway.run("python3 -c %s %s", READ, CLIENTS).rc == 0
            return main not in ("0", before) and read and gateway.run("pgrep -x journalctl").rc == 0

        wait_until(counts_again, f"metrics are counted after the death of {name}", seconds=60)
        at_first = counted(line)
        ask(clients["alice"], "smollm2", max_tokens=4)
        grows(line, at_first, 1)


def test_promtool_accepts_and_proves_the_rules(gateway):
    """The distribution's own, unpacked beside it; Docker's /tmp runs no programs."""
    gateway.check_output("mkdir -p /var/tmp/promtool/monitoring")
    for file in MONITORING.glob("*.yml"):
        gateway.check_output(
            "printf %%s %s > %s",
            file.read_text(encoding="utf-8"),
            f"/var/tmp/promtool/monitoring/{file.name}",
        )
    gateway.check_output(
        "cd /var/tmp/promtool; test -x usr/bin/promtool"
        " || { apt-get update -q && apt-get download -q promtool && dpkg -x promtool_*.deb . ; }"
    )
    for check in ("check rules alerts.yml", "check config prometheus.yml", "test rules alerts_test.yml"):
        done = gateway.run(f"cd /var/tmp/promtool/monitoring && ../usr/bin/promtool {check}")
        assert done.rc == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout
