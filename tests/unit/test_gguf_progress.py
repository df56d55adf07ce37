"""What is seen of a running fetch: the module that reads it, and the action that shows it."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import threading
import time
from types import SimpleNamespace

import gguf_progress
import pytest
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from conftest import PROJECT
from standins import end_module, start_module

spec = importlib.util.spec_from_file_location("gguf_fetch_action", f"{PROJECT}/plugins/action/gguf_fetch.py")
action = importlib.util.module_from_spec(spec)
spec.loader.exec_module(action)


@pytest.fixture
def partial(tmp_path):
    """The directory of unfinished downloads of a directory of models."""
    path = tmp_path / ".partial"
    path.mkdir()
    return path


@pytest.fixture
def held(partial):
    """The lock that a running fetch holds."""
    with (partial / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


class TestModule:
    def test_where_nothing_was_ever_fetched_nothing_runs(self, tmp_path):
        assert gguf_progress.running(str(tmp_path)) is False
        assert gguf_progress.progress(str(tmp_path)) == {}

    def test_a_fetch_runs_as_long_as_it_holds_its_lock(self, partial, held):
        assert gguf_progress.running(str(partial)) is True
        fcntl.flock(held, fcntl.LOCK_UN)
        assert gguf_progress.running(str(partial)) is False

    def test_to_look_does_not_keep_a_fetch_from_its_lock(self, partial):
        with (partial / ".lock").open("w") as lock:
            assert gguf_progress.running(str(partial)) is False
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @pytest.mark.parametrize("text", ["", "{", "\0"])
    def test_progress_that_cannot_be_read_is_none(self, partial, text):
        (partial / ".progress.json").write_text(text)
        assert gguf_progress.progress(str(partial)) == {}

    def test_waits_as_long_as_wanted_and_tells_what_the_fetch_says(self, tmp_path, partial, held):
        files = {"x.gguf": {"state": "fetching", "done": 1, "size": 2}}
        (partial / ".progress.json").write_text(json.dumps(files))
        failed, result = end_module(start_module(tmp_path, "gguf_progress", directory=str(tmp_path), wait=0))
        assert (failed, result["changed"]) == (False, False)
        assert (result["finished"], result["files"]) == (False, files)

    def test_waits_no_longer_than_the_fetch_takes(self, tmp_path, held):
        ending = threading.Timer(0.3, fcntl.flock, (held, fcntl.LOCK_UN))
        ending.start()
        start = time.monotonic()
        _failed, result = end_module(
            start_module(tmp_path, "gguf_progress", directory=str(tmp_path), wait=60)
        )
        ending.join()
        assert result["finished"] is True
        assert time.monotonic() < start + 30


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ({"state": "waiting"}, "waiting"),
        ({"state": "fetching", "done": 0, "size": 0}, "fetching"),
        ({"state": "fetching", "done": 0, "size": 999}, "fetching, 0 % of 999 bytes"),
        (
            {
                "state": "fetching",
                "done": 6_917_529,
                "size": 13_835_058_000,
                "speed": 45_600_000,
                "eta": "5m3s",
            },
            "fetching, 0 % of 13.8 GB, 45.6 MB/s, ETA 5m3s",
        ),
        ({"state": "verifying", "done": 1500, "size": 2000}, "verifying, 75 % of 2.0 kB"),
        ({"state": "in place", "size": 13_835_058_000}, "in place, 13.8 GB"),
        (
            {"state": "retrying", "note": "answers 503; again in 5 s"},
            "retrying, answers 503; again in 5 s",
        ),
    ],
)
def test_a_line_says_how_far_a_file_is(state, line):
    assert action.progress_line("x.gguf", state) == f"x.gguf: {line}"


class TestAction:
    """The action plugin, with a stand-in of what Ansible does on the host."""

    @pytest.fixture
    def shown(self, monkeypatch):
        """The lines that the operator sees."""
        lines = []
        monkeypatch.setattr(action, "display", SimpleNamespace(display=lines.append))
        return lines

    @pytest.fixture
    def plugin(self, monkeypatch):
        """Returns a function: answers by module, one after the other -> plugin that notes what it runs."""
        monkeypatch.setattr(ActionBase, "run", lambda self, tmp, task_vars: {"of_the_base": True})
        monkeypatch.setattr(action.time, "sleep", lambda seconds: None)

        def made(async_val=60, poll=0, **answers):
            task = SimpleNamespace(
                async_val=async_val,
                poll=poll,
                args={"directory": "/models", "files": [], "progress_interval": "3"},
                delegate_to=None,
            )
            plugin = action.ActionModule(task, None, None, None, None, None)
            plugin.ran = []

            def execute(module_name, module_args, task_vars, wrap_async):
                plugin.ran.append((module_name, module_args, wrap_async))
                return answers[module_name.rpartition(".")[2]].pop(0)

            plugin._execute_module = execute
            plugin.get_shell_option = lambda name, default: "~/.ansible_async"
            return plugin

        return made

    def test_starts_a_job_shows_each_news_once_and_returns_what_the_job_returns(self, plugin, shown):
        half = {"files": {"x.gguf": {"state": "fetching", "done": 5, "size": 10}}}
        whole = {"files": {"x.gguf": {"state": "in place", "size": 10}}}
        made = plugin(
            gguf_fetch=[{"ansible_job_id": "j1", "started": 1, "finished": 0}],
            gguf_progress=[{"files": {}}, half, half, whole],
            async_status=[
                {"finished": 0}, {"finished": 0}, {"finished": 0},
                {"finished": 1, "started": 1, "ansible_job_id": "j1", "results_file": "f", "changed": True},
                {},
            ],
        )  # fmt: skip
        assert made.run(task_vars={"inventory_hostname": "a"}) == {"of_the_base": True, "changed": True}
        assert shown == ["a: x.gguf: fetching, 50 % of 10 bytes", "a: x.gguf: in place, 10 bytes"]
        assert made.ran[0] == ("gguf_fetch", made._task.args, True)
        job = {"jid": "j1", "_async_dir": "~/.ansible_async"}
        assert ("ansible.legacy.async_status", {**job, "mode": "status"}, False) in made.ran
        assert made.ran[-1] == ("ansible.legacy.async_status", {**job, "mode": "cleanup"}, False)

    def test_looks_at_the_progress_as_often_as_wanted_and_once_more_at_the_end(self, plugin, shown):
        made = plugin(
            gguf_fetch=[{"ansible_job_id": "j1"}],
            gguf_progress=[{"finished": False, "files": {}}] * 3,
            async_status=[{"finished": 0}, {"finished": 0}, {"finished": 1}, {}],
        )
        made.run(task_vars={"inventory_hostname": "a"})
        looks = [(arguments, wraps) for name, arguments, wraps in made.ran if name == "gguf_progress"]
        assert looks == [({"directory": "/models", "wait": wait}, False) for wait in (3, 3, 0)]

    def test_a_failed_job_fails_the_task(self, plugin, shown):
        made = plugin(
            gguf_fetch=[{"ansible_job_id": "j1"}],
            gguf_progress=[{"files": {}}],
            async_status=[{"finished": 1, "failed": True, "msg": "x.gguf: gone"}, {}],
        )
        result = made.run(task_vars={"inventory_hostname": "a"})
        assert (result["failed"], result["msg"]) == (True, "x.gguf: gone")

    def test_a_job_that_does_not_start_is_told_at_once(self, plugin, shown):
        made = plugin(gguf_fetch=[{"failed": True, "msg": "no Python"}])
        assert made.run(task_vars={"inventory_hostname": "a"})["msg"] == "no Python"

    def test_a_job_that_dies_without_a_word_is_not_waited_for_for_ever(self, plugin, shown):
        made = plugin(
            gguf_fetch=[{"ansible_job_id": "j1"}],
            gguf_progress=[{"finished": False, "files": {}}] * 2 + [{"finished": True, "files": {}}] * 100,
            async_status=[{"finished": 0}] * 100,
        )
        result = made.run(task_vars={"inventory_hostname": "a"})
        assert result["failed"] is True
        assert "has ended without a word" in result["msg"]

    def test_a_fetch_that_is_seen_to_run_may_take_as_long_as_it_wants(self, plugin, shown):
        made = plugin(
            gguf_fetch=[{"ansible_job_id": "j1"}],
            gguf_progress=[{"finished": number % 5 == 0} for number in range(200)],
            async_status=[{"finished": 0}] * 150 + [{"finished": 1, "changed": True}, {}],
        )
        assert made.run(task_vars={"inventory_hostname": "a"})["changed"] is True

    @pytest.mark.parametrize("task", [{"async_val": 0}, {"poll": 10}])
    def test_a_task_that_would_not_outlive_the_play_is_refused(self, plugin, task):
        with pytest.raises(AnsibleActionFail, match="needs async"):
            plugin(**task).run(task_vars={})
