#!/usr/bin/python
"""Module haproxy_drain: takes a server out of a running HAProxy and puts it back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_drain
short_description: Takes a server out of a running HAProxy without losing a request, and puts it back
description:
  - >-
    A drained server gets no new requests and ends those that it has. It is given no weight, because
    HAProxy's own state "drain" does not keep rules of C(use-server) from it; they have to ask for
    C(srv_weight).
  - >-
    Unlike community.general.haproxy it does not wait for a server that is down, does not put back what an
    operator has put into maintenance, reports a change only where there is one, has a check mode, and
    knows servers that track another one. A reload of HAProxy puts all servers back.
options:
  server:
    description: Name of the server, in whichever backends it is; empty for all of them.
    type: str
    default: ""
  state:
    description: V(drained) or V(ready), which leaves servers in maintenance as they are.
    type: str
    choices: [drained, ready]
    required: true
  wait:
    description: >-
      Seconds to wait for V(drained) until its requests have ended, for V(ready) until health checks have
      found it up. What has not come true then is told in RV(running) and RV(down), and is no failure.
    type: int
    default: 0
  socket:
    description: HAProxy's socket for its administrator. Where nothing listens there, nothing is to be done.
    type: path
    default: /run/haproxy/admin.sock
author: ansible-llamacpp
"""

EXAMPLES = r"""
- name: No new requests reach the server, and those it has have ended
  haproxy_drain:
    server: gpu1:llamacpp
    state: drained
    wait: 300
"""

RETURN = r"""
running:
  description: Requests that the server still has.
  type: int
  returned: always
down:
  description: Where the server is not up, as BACKEND/SERVER.
  type: list
  elements: str
  returned: always
"""

import csv
import io
import socket
import time

from ansible.module_utils.basic import AnsibleModule

# Bit of srv_admin_state in "show servers state" (HAProxy's management guide, 9.3).
MAINTENANCE = 0x01


class NoHaproxy(Exception):
    """Nothing listens at the socket."""


class Haproxy:
    """A running HAProxy.

    Args:
        path: its socket for the administrator.
    """

    def __init__(self, path):
        self._path = path

    def ask(self, command):
        """Returns the answer to a command.

        Raises:
            NoHaproxy: nothing listens.
            OSError: it listens, but gives no answer within 10 seconds.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            try:
                connection.connect(self._path)
            except (FileNotFoundError, ConnectionRefusedError) as problem:
                raise NoHaproxy from problem
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def servers(self, name):
        """Returns the places of a server, of all servers for an empty name.

        One that others track is left out: it is the way to the server for those, and has to stay open until
        what they have sent has ended.
        """
        rows = list(csv.DictReader(io.StringIO(self.ask("show stat").lstrip("# "))))
        tracked = {row["tracked"] for row in rows if row.get("tracked")}
        return [
            row
            for row in rows
            if row["type"] == "2"
            and name in ("", row["svname"])
            and f"{row['pxname']}/{row['svname']}" not in tracked
        ]

    def states(self):
        """Returns by (backend, server) whether it is drained, without those in maintenance."""
        _version, head, *lines = self.ask("show servers state").splitlines()
        names = head.lstrip("# ").split()
        servers = (dict(zip(names, line.split(), strict=False)) for line in lines if line.strip())
        return {
            (one["be_name"], one["srv_name"]): one["srv_uweight"] == "0"
            for one in servers
            if not int(one["srv_admin_state"]) & MAINTENANCE
        }


def place(row):
    """Returns a server of "show stat" as commands name it."""
    return f"{row['pxname']}/{row['svname']}"


def running(rows):
    """Returns how many requests servers of "show stat" have."""
    return sum(int(row["scur"]) for row in rows)


def down(rows):
    """Returns which servers of "show stat" are not up, and not meant to be away."""
    return [place(row) for row in rows if row["status"].startswith(("DOWN", "NOLB"))]


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "server": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["drained", "ready"], "required": True},
            "wait": {"type": "int", "default": 0},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
        },
        supports_check_mode=True,
    )
    name, state = module.params["server"], module.params["state"]
    haproxy = Haproxy(module.params["socket"])
    try:
        rows, states = haproxy.servers(name), haproxy.states()
        drained = state == "drained"
        wrong = [place(row) for row in rows if states.get((row["pxname"], row["svname"]), drained) != drained]
        if not module.check_mode:
            share = "0%" if drained else "100%"
            for one in wrong:
                answer = haproxy.ask(f"set server {one} weight {share}").strip()
                if answer:
                    module.fail_json(msg=f"HAProxy does not change {one}: {answer}")
            end = time.monotonic() + module.params["wait"]
            while time.monotonic() < end:
                rows = haproxy.servers(name)
                if not (running(rows) if drained else down(rows)):
                    break
                time.sleep(0.2)
            rows = haproxy.servers(name)
    except NoHaproxy:
        module.exit_json(changed=False, running=0, down=[])
    except OSError as problem:
        module.fail_json(msg=f"HAProxy does not answer at {module.params['socket']}: {problem}")
    module.exit_json(changed=bool(wrong), running=running(rows), down=down(rows))


if __name__ == "__main__":
    main()
