"""Action of the module gguf_fetch: starts it on the host, and shows its progress until it ends."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

# Seconds until it is believed that a job is over, or has never begun, that does not say so itself.
PATIENCE = 10
OF_THE_JOB = ("ansible_job_id", "finished", "results_file", "started")


class ActionModule(ActionBase):
    """Runs the module as an asynchronous job, so that it outlives a play that is killed."""

    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the module returns. The task has ``async`` and ``poll: 0``: it is waited for here."""
        result = super().run(tmp, task_vars)
        if not self._task.async_val or self._task.poll:
            raise AnsibleActionFail("gguf_fetch needs async (how many seconds it may take) and poll: 0")
        options = self._task.args
        job = self._execute_module(
            module_name="gguf_fetch", module_args=options, task_vars=task_vars, wrap_async=True
        )
        if "ansible_job_id" not in job:
            return result | job
        host = self._task.delegate_to or task_vars["inventory_hostname"]
        shown: dict[str, str] = {}
        doubts = 0
        while doubts < PATIENCE:
            ended = self._job(job, "status", task_vars)
            look = self._execute_module(
                module_name="gguf_progress",
                module_args={
                    "directory": options["directory"],
                    "wait": 0 if ended.get("finished") else int(options.get("progress_interval", 15)),
                },
                task_vars=task_vars,
                wrap_async=False,
            )
            for file, state in look.get("files", {}).items():
                line = progress_line(file, state)
                if shown.get(file) != line:
                    display.display(f"{host}: {line}")
                    shown[file] = line
            if ended.get("finished"):
                self._job(job, "cleanup", task_vars)
                told = {key: value for key, value in ended.items() if key not in OF_THE_JOB}
                return result | told
            doubts = 0 if look.get("finished") is False else doubts + 1
            if doubts:
                time.sleep(1)
        return result | {
            "failed": True,
            "msg": "The fetch has ended without a word (has the host been restarted?)."
            " What has arrived is kept; run the play again to go on.",
        }

    def _job(self, job: dict[str, Any], mode: str, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Return what Ansible knows of a job; mode is status, or cleanup to have its notes removed."""
        directory = self.get_shell_option("async_dir", default="~/.ansible_async")
        return self._execute_module(
            module_name="ansible.legacy.async_status",
            module_args={"jid": job["ansible_job_id"], "mode": mode, "_async_dir": directory},
            task_vars=task_vars,
            wrap_async=False,
        )


def progress_line(file: str, state: dict[str, Any]) -> str:
    """Return in one line how far a file is.

    Args:
        file: its name.
        state: as the module gguf_progress returns it.
    """
    words = [state["state"]]
    size = state.get("size", 0)
    if size and "done" in state:
        words.append(f"{100 * state['done'] // size} % of {_bytes(size)}")
    elif size:
        words.append(_bytes(size))
    if state.get("speed"):
        words.append(f"{_bytes(state['speed'])}/s")
    if state.get("eta"):
        words.append(f"ETA {state['eta']}")
    if state.get("note"):
        words.append(state["note"])
    return f"{file}: {', '.join(words)}"


def _bytes(size: int) -> str:
    """Return a number of bytes as text."""
    for unit, bytes_of_unit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_of_unit:
            return f"{size / bytes_of_unit:.1f} {unit}"
    return f"{size} bytes"
