"""A host is lost for good: what it was answering is lost, and nothing else. It stays lost."""

from __future__ import annotations

import subprocess

from testing import wait_until


def test_a_host_that_dies_costs_only_what_it_was_answering(load, figures):
    asking = load("smollm2", "smollm2", "gemma3", "gemma3")
    wait_until(lambda: asking.sent >= 10, "clients ask")
    subprocess.run(["docker", "kill", "llm-fleet-b"], check=True, capture_output=True)
    sent = asking.sent
    wait_until(lambda: asking.sent >= sent + 20, "the other host answers", seconds=180)
    asking.stop()
    figures.append(f"host killed: {asking.sent} sent, {len(asking.problems)} failed")
    assert len(asking.problems) <= 2, "only what its two servers were answering is lost"
