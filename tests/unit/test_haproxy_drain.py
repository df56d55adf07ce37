"""The module haproxy_drain against a stand-in of HAProxy's socket, whose requests take time to end.

That a real HAProxy understands it, under load, is proved by the Molecule scenario fleet.
"""

from __future__ import annotations

import json
import socket
import threading

import haproxy_drain
import pytest

MAINTENANCE = 0x01


class StandinHaproxy:
    """Answers on a socket as HAProxy does.

    Args:
        path: of the socket.
        rows: per server (backend, server) what differs from a healthy idle server that nobody tracks.
    """

    def __init__(self, path, rows: dict[tuple[str, str], dict]) -> None:
        healthy = {"scur": 0, "status": "UP", "tracked": "", "admin": 0, "weight": 1}
        self.rows = {place: healthy | changes for place, changes in rows.items()}
        self.said: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                command = connection.recv(4096).decode().strip()
                connection.sendall(self._answer(command).encode())

    def _answer(self, command: str) -> str:
        if command == "show stat":
            lines = ["# pxname,svname,scur,status,type,tracked,"]
            lines += ["front,FRONTEND,9,OPEN,0,,", "a,BACKEND,9,UP,1,,"]
            for (backend, server), row in self.rows.items():
                lines.append(f"{backend},{server},{row['scur']},{row['status']},2,{row['tracked']},")
                # A request ends each time that somebody looks.
                row["scur"] = max(0, row["scur"] - 1)
            return "\n".join([*lines, "", ""])
        if command == "show servers state":
            lines = ["1", "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight"]
            lines += [
                f"1 {backend} 1 {server} - 2 {row['admin']} {row['weight']}"
                for (backend, server), row in self.rows.items()
            ]
            return "\n".join([*lines, "", ""])
        self.said.append(command)
        _set, _server, place, _weight, share = command.split()
        row = self.rows.get(tuple(place.split("/")))
        if row is None:
            return "No such server.\n\n"
        row["weight"] = {"0%": 0, "100%": 1}[share]
        return "\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns a function that runs the module; it returns (failed, result, what HAProxy was told)."""

    def module(rows, state, **arguments):
        haproxy = StandinHaproxy(tmp_path / "admin.sock", rows)
        return (*ask(state=state, **arguments), haproxy.said)

    def ask(**arguments):
        class Exit(Exception):
            pass

        class Module:
            params = {"server": "", "wait": 0, "socket": str(tmp_path / "admin.sock")} | arguments
            check_mode = arguments.pop("check", False)

            def exit_json(self, **result):
                raise Exit(False, result)

            def fail_json(self, **result):
                raise Exit(True, result)

        monkeypatch.setattr(haproxy_drain, "AnsibleModule", lambda **_: Module())
        with pytest.raises(Exit) as ended:
            haproxy_drain.main()
        json.dumps(ended.value.args[1])
        return ended.value.args

    module.ask = ask
    return module


def test_a_server_is_drained_wherever_it_is_and_no_other_one(run):
    rows = {("a", "gpu1:one"): {}, ("b", "gpu1:one"): {}, ("a", "gpu2:one"): {}}
    failed, result, said = run(rows, "drained", server="gpu1:one")
    assert (failed, result) == (False, {"changed": True, "running": 0, "down": []})
    assert said == ["set server a/gpu1:one weight 0%", "set server b/gpu1:one weight 0%"]


def test_its_requests_are_awaited(run):
    _failed, result, _said = run({("a", "gpu1:one"): {"scur": 4}}, "drained", server="gpu1:one", wait=30)
    assert result["running"] == 0


def test_requests_that_do_not_end_in_time_are_told_and_no_failure(run):
    failed, result, _said = run({("a", "gpu1:one"): {"scur": 10_000}}, "drained", server="gpu1:one", wait=1)
    assert not failed
    assert result["running"] > 9_000


def test_the_way_of_others_to_a_server_stays_open_so_that_what_they_sent_can_end(run):
    rows = {("a", "gpu1:one"): {"tracked": "relay/gpu1:one"}, ("relay", "gpu1:one"): {}}
    assert run(rows, "drained", server="gpu1:one")[2] == ["set server a/gpu1:one weight 0%"]


def test_a_drained_server_is_drained_already(run):
    _failed, result, said = run({("a", "gpu1:one"): {"weight": 0}}, "drained", server="gpu1:one")
    assert (result["changed"], said) == (False, [])


def test_all_drained_servers_are_put_back_but_for_those_in_maintenance(run):
    rows = {
        ("a", "gpu1:one"): {"weight": 0},
        ("a", "gpu2:one"): {},
        ("a", "gpu3:one"): {"admin": MAINTENANCE, "weight": 0, "status": "MAINT"},
    }
    _failed, result, said = run(rows, "ready", wait=1)
    assert said == ["set server a/gpu1:one weight 100%"]
    assert result == {"changed": True, "running": 0, "down": []}


def test_a_server_that_does_not_come_up_is_told(run):
    rows = {("a", "gpu1:one"): {"weight": 0, "status": "DOWN 1/2"}}
    _failed, result, _said = run(rows, "ready", server="gpu1:one", wait=1)
    assert result["down"] == ["a/gpu1:one"]


def test_a_server_that_is_down_is_not_waited_for_when_it_is_drained(run):
    _failed, result, _said = run(
        {("a", "gpu1:one"): {"status": "DOWN"}}, "drained", server="gpu1:one", wait=60
    )
    assert result["running"] == 0


def test_check_mode_tells_the_change_and_makes_none(run):
    _failed, result, said = run({("a", "gpu1:one"): {}}, "drained", server="gpu1:one", check=True)
    assert (result["changed"], said) == (True, [])


def test_where_no_haproxy_runs_nothing_is_to_be_done(run):
    assert run.ask(state="drained", server="gpu1:one") == (
        False,
        {"changed": False, "running": 0, "down": []},
    )


def test_what_haproxy_refuses_is_told(run, monkeypatch):
    monkeypatch.setattr(StandinHaproxy, "_answer", answer_of_an_unwilling_one(StandinHaproxy._answer))
    failed, result, _said = run({("a", "gpu1:one"): {}}, "drained", server="gpu1:one")
    assert failed
    assert "Permission denied" in result["msg"]


def answer_of_an_unwilling_one(answer):
    """Answers of a HAProxy that may only be looked at."""
    return lambda self, command: (
        "Permission denied\n\n" if command.startswith("set") else answer(self, command)
    )
