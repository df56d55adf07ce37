"""What site.yml has put on a host can be taken off it. Last, because nothing is left to be asked."""

from __future__ import annotations

import pytest
from conftest import HOME


@pytest.fixture(autouse=True)
def always_answers():
    """Nothing answers here."""


def test_uninstall_asks_what_becomes_of_the_models(play, untouched):
    run = play("uninstall.yml")
    assert run.rc != 0
    assert run.count("changed") == 0
    assert "remove_models=true" in run.error


def test_uninstall_leaves_the_models_when_told_to(play, host):
    run = play("uninstall.yml", "-e", "remove_models=false")
    assert run.rc == 0, run.output
    assert host.run(f"ls {HOME}/model/*.gguf").stdout.count("\n") == 2
    assert not host.file("/etc/systemd/system/llamacpp.service").exists


def test_uninstall_leaves_a_virgin_host(play, host):
    run = play("uninstall.yml", "-e", "remove_models=true")
    assert run.rc == 0, run.output
    again = play("uninstall.yml", "-e", "remove_models=true")
    assert again.rc == 0, again.output
    assert again.count("changed") == 0, again.output
    # What systemd makes there for units goes at the next boot; that of a container is not another one.
    elsewhere = ["/proc/*", "/var/tmp/systemd-private-*"]
    left = " ".join(f"-not -path '{path}'" for path in elsewhere)
    found = f"find / -xdev {left} \\( -iname '*llamacpp*' -o -iname '*.gguf' \\)"
    assert host.check_output(found) == ""
    assert not host.file("/home/llm").exists
    assert not host.user("llm").exists
    assert host.check_output("docker images --quiet llamacpp") == ""
    assert host.service("docker").is_running
    # As on a host that this project has never seen.
    checked = play("site.yml", "--check")
    assert checked.rc == 0, checked.output
