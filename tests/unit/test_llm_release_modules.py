"""The modules llm_release and llm_release_facts, as Ansible runs them: in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from test_releases import KEY, NAME, PROJECT, Stage, World

# The world of test_releases plays Docker and the server; this is its systemctl, which also notes its calls.
SYSTEMCTL = """#!/bin/sh
echo "$1" >>{calls}
case $1 in
restart) {restart} ;;
show) printf 'ActiveState={active}\\nUnitFileState=enabled\\n' ;;
esac
"""


@pytest.fixture
def world(tmp_path):
    stage = Stage(tmp_path)
    yield World(stage, tmp_path / "world")
    stage.close()


@pytest.fixture
def run_module(world, tmp_path):
    """Runs a module; returns (failed, result)."""

    def run(module, restart=":", active="inactive", **arguments):
        tools = tmp_path / "tools"
        tools.mkdir(exist_ok=True)
        calls = tmp_path / "calls"
        (tools / "systemctl").write_text(SYSTEMCTL.format(calls=calls, restart=restart, active=active))
        (tools / "journalctl").write_text("#!/bin/sh\necho 'last words'\n")
        for tool in tools.iterdir():
            tool.chmod(0o755)
        arguments.update(state_dir=str(world.state), docker_socket=world.stage.socket)
        (tmp_path / "arguments.json").write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        run = subprocess.run(
            [sys.executable, "-c", "import ansible.module_utils as u, runpy, sys;"
             f"u.__path__.append('{PROJECT}/plugins/module_utils');"
             f"runpy.run_path('{PROJECT}/plugins/modules/{module}.py', run_name='__main__')",
             str(tmp_path / "arguments.json")],
            capture_output=True, text=True, check=False, env={**os.environ, "PATH": f"{tools}:/usr/bin:/bin"},
        )  # fmt: skip
        assert run.stdout, run.stderr
        return run.returncode != 0, json.loads(run.stdout)

    return run


def played(world, release):
    """Have the server be there that the release will have started."""
    release.put_in_place()
    world.systemctl("restart")
    for _source, target in release.files():
        if os.path.exists(target):
            os.unlink(target)


def test_a_run_that_nobody_waits_for_any_more_is_brought_to_its_end(world, run_module, tmp_path):
    release = world.make("a")
    played(world, release)
    leave = "for signal in HUP INT TERM; do kill -$signal $PPID; done"
    failed, result = run_module("llm_release", name=NAME, release="a", restart=leave)
    assert (failed, result["changed"], result["restarted"]) == (False, True, True)
    assert list(result["probed"]) == ["two", "three", "one"]
    assert release.is_in_place()
    assert (tmp_path / "calls").read_text().split()[-3:] == ["daemon-reload", "enable", "restart"]


def test_a_release_that_does_not_serve_fails_with_the_reason_and_without_the_key(world, run_module):
    release = world.make("a", key=KEY)
    played(world, release)
    world.faults[release.label] = "500"
    failed, result = run_module("llm_release", name=NAME, release="a")
    assert failed
    assert "its model two does not answer: HTTP 500" in result["msg"]
    assert "Nothing was serving before" in result["msg"]
    assert "last words" in result["msg"]
    assert KEY not in json.dumps(result)


@pytest.mark.parametrize(
    ("state", "told"),
    [("good", f"{NAME} does not run release a; run again"), ("restored", "It is slow.")],
)
def test_each_state_of_a_release_does_its_own(world, run_module, state, told):
    world.make("a")
    failed, result = run_module("llm_release", name=NAME, release="a", state=state, why="It is slow.")
    assert (failed, result["msg"]) == (True, told)


def test_an_absent_instance_has_no_releases_any_more(world, run_module, tmp_path):
    world.make("a")
    failed, result = run_module("llm_release", name=NAME, state="absent")
    assert (failed, result["changed"]) == (False, True)
    assert os.listdir(world.state) == []
    assert (tmp_path / "calls").read_text().split() == ["daemon-reload"]


def test_the_facts_name_the_instances_that_are_there_besides(world, run_module):
    world.make("a", key=KEY)
    (world.state / "other").mkdir()
    (world.state / "another").mkdir()
    (world.state / "a file").touch()
    failed, result = run_module(
        "llm_release_facts", names=[NAME], active="active", api_key=KEY, _ansible_check_mode=True
    )
    assert (failed, result["changed"], result["others"]) == (False, False, ["another", "other"])
    assert [one["id"] for one in result["instances"][NAME]["releases"]] == ["a"]
    assert result["instances"][NAME]["is_active"] is True


def test_a_host_without_releases_has_no_other_instances(world, run_module):
    failed, result = run_module("llm_release_facts")
    assert (failed, result["instances"], result["others"]) == (False, {}, [])
    assert result["ports"] == []
    assert not world.state.exists()


def test_the_facts_name_the_ports_of_all_releases(run_module, world):
    for path, text in {
        "one/releases/a": '{"port": 20081, "models": []}',
        "one/releases/b": '{"port": 20080}',
        "other/releases/a": '{"port": 20081}',
        "other/releases/half": "{",
        "other/releases/strange": '{"port": "ssh"}',
    }.items():
        (world.state / path).mkdir(parents=True)
        (world.state / path / "config.json").write_text(text, encoding="utf-8")
    failed, result = run_module("llm_release_facts")
    assert (failed, result["ports"]) == (False, [20080, 20081])
