"""Questions to a running Docker over its socket, for modules that only read.

Runs on the hosts: Python standard library only, 3.9 or later. Docker's own modules need the library
requests, which a host may not have yet.
"""

from __future__ import annotations

import glob
import http.client
import json
import os
import socket
import urllib.parse

# A container with this label was started by this project, whatever its name.
OWN_LABEL = "io.ansible-llamacpp.release"
# What ask raises when Docker does not answer as it should.
ERRORS = (OSError, ValueError, http.client.HTTPException)


class DockerConnection(http.client.HTTPConnection):
    """HTTP over Docker's Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self):
        """Connect to the Unix socket in place of a TCP port."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask_docker(docker_socket, path):
    """Return Docker's answer to GET path as data, or None when it is not 200.

    Arguments: docker_socket (str), path (str). Errors: see ERRORS.
    """
    connection = DockerConnection(docker_socket)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        return json.loads(body) if response.status == 200 else None
    finally:
        connection.close()


def own_containers(docker_socket, ask=ask_docker, **filters):
    """Return what Docker lists of this project's containers.

    Arguments: docker_socket (str), ask (callable, see ask_docker), filters (list of str each): Docker's own;
    those that run are listed, unless ``status`` says otherwise. Errors: see ERRORS.
    """
    wanted = urllib.parse.quote(json.dumps({"label": [OWN_LABEL], **filters}))
    return ask(docker_socket, f"/containers/json?filters={wanted}") or []


def docker_runs(docker_socket, proc="/proc"):
    """Whether dockerd is there to be asked; a connection alone could start it, by its socket."""
    if not os.path.exists(docker_socket):
        return False
    for comm in glob.iglob(f"{proc}/[0-9]*/comm"):
        try:
            with open(comm, encoding="utf-8") as file:
                if file.read().strip() == "dockerd":
                    return True
        except OSError:
            continue  # the process has just ended
    return False
