#!/usr/bin/python
"""Module preflight_facts: what a deployment must know of a host before it changes anything."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_facts
short_description: Reads listeners, free space, ids and model files from a host
description: Reads only. Asks a running Docker over its socket, and never starts one.
options:
  ports:
    description: TCP ports to look at.
    type: list
    elements: int
    default: []
  paths:
    description: Paths, existing or not, whose filesystem's free space is wanted.
    type: list
    elements: str
    default: []
  files:
    description: Files that must exist.
    type: list
    elements: str
    default: []
  user:
    description: Name of the service's user and group.
    type: str
    required: true
  uid:
    description: Numeric id wanted for the user.
    type: int
    required: true
  gid:
    description: Numeric id wanted for the group.
    type: int
    required: true
  models_dir:
    description: Directory of the model files.
    type: str
    required: true
  models:
    description: >-
      Files of the catalogue, as the filter model_files lists them; C(file), C(url) and C(sha256) of each
      are used.
    type: list
    elements: dict
    default: []
  image:
    description: Docker image, NAME:TAG, to look for.
    type: str
    required: true
  docker_socket:
    description: Docker's socket on the host.
    type: path
    default: /run/docker.sock
author: ansible-llamacpp
"""

EXAMPLES = r"""
- name: Host is looked at
  preflight_facts:
    ports: [20080]
    paths: [/home/llm/llamacpp/model]
    user: llm
    uid: 10002
    gid: 10002
    models_dir: /home/llm/llamacpp/model
    image: llamacpp:0.3.36-cpu
  register: host
"""

RETURN = r"""
listeners:
  description: Per port that is taken, a dict of C(process), C(pid) and C(unit) of who listens
    there.
  type: dict
  returned: always
containers:
  description: Running containers, and those of this project that are about to run, each with C(name),
    C(labels) and C(ports) (published on the host).
  type: list
  returned: always
image_present:
  description: Whether Docker has the image.
  type: bool
  returned: always
docker_root:
  description: Docker's data directory; empty when no Docker runs.
  type: str
  returned: always
space:
  description: Per path a dict of C(parent) (nearest that exists), C(device) and C(free) (bytes).
  type: dict
  returned: always
missing_files:
  description: Those of O(files) that do not exist.
  type: list
  returned: always
ids:
  description: Names and numbers that the wanted user and group already have on the host.
  type: dict
  returned: always
models:
  description: >-
    Per model file its state (absent, verified, outdated, unverified), C(size) in bytes, C(partial), the
    bytes that an unfinished download occupies, and C(source), which for a file with a path on the host
    is a dict of its C(size) and C(leads_to) (where it is a symlink out of its directory, else empty),
    and null when there is no such file, or another kind of source.
  type: dict
  returned: always
"""

import glob
import grp
import os
import pwd
import re
from urllib.parse import unquote, urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.docker_api import ERRORS, ask_docker, docker_runs, own_containers
from ansible.module_utils.gguf import state_of

LISTEN = "0A"


def listening_inodes(tables):
    """Return the socket inodes of listening TCP sockets by port.

    Argument: tables (list of str), the contents of /proc/net/tcp and tcp6.
    Returns a dict of port (int) to inode (str). Source: proc_net_tcp of the kernel's documentation.
    """
    inodes = {}
    for table in tables:
        for line in table.splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == LISTEN:
                inodes[int(fields[1].rpartition(":")[2], 16)] = fields[9]
    return inodes


def process_of(inode, proc="/proc"):
    """Return who holds a socket: a dict of process (name), pid (0: not found) and unit.

    Arguments: inode (str) of the socket; proc (str), where procfs is mounted.
    """
    link = f"socket:[{inode}]"
    for descriptor in glob.iglob(f"{proc}/[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor) != link:
                continue
            pid = descriptor.split("/")[-3]
            name = _read(f"{proc}/{pid}/comm").strip()
            units = re.findall(r"([^/\n]+\.service)", _read(f"{proc}/{pid}/cgroup"))
            return {"process": name, "pid": int(pid), "unit": units[-1] if units else ""}
        except OSError:
            continue  # the process or the descriptor has just ended
    return {"process": "", "pid": 0, "unit": ""}


def listeners(ports, proc="/proc"):
    """Return who listens on the given ports.

    Arguments: ports (list of int); proc (str), where procfs is mounted.
    Returns a dict of port (str, as JSON keys are) to the dict of process_of; free ports are left
    out.
    """
    tables = [
        _read(f"{proc}/net/{table}") for table in ("tcp", "tcp6") if os.path.exists(f"{proc}/net/{table}")
    ]
    inodes = listening_inodes(tables)
    return {str(port): process_of(inodes[port], proc) for port in ports if port in inodes}


def _read(path):
    """Return the text of a file."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def space(path):
    """Return the free space where a path is, or would be created.

    Argument: path (str, absolute).
    Returns a dict: parent (nearest directory that exists), device (number of the filesystem), free
    (bytes that ordinary users may still write). Errors: OSError.
    """
    while not os.path.exists(path):
        path = os.path.dirname(path)
    status = os.statvfs(path)
    return {
        "parent": path,
        "device": os.stat(path).st_dev,
        "free": status.f_bavail * status.f_frsize,
    }


def ids(user, uid, gid):
    """Return what the host's name service knows of the wanted ids (NSS: files, LDAP, …).

    Arguments: user (str, also the group's name), uid (int), gid (int).
    Returns a dict: name_of_uid, name_of_gid (str, empty when free), uid_of_user, gid_of_group (int
    or None).
    """

    def known(look_up, key, field):
        try:
            return getattr(look_up(key), field)
        except KeyError:
            return None

    return {
        "name_of_uid": known(pwd.getpwuid, uid, "pw_name") or "",
        "name_of_gid": known(grp.getgrgid, gid, "gr_name") or "",
        "uid_of_user": known(pwd.getpwnam, user, "pw_uid"),
        "gid_of_group": known(grp.getgrnam, user, "gr_gid"),
    }


def starting_containers(docker_socket, ask):
    """Return our containers that Docker is about to run: it has their ports before it says that they run.

    Arguments: docker_socket (str), ask (callable, see ask_docker).
    Returns a list of dicts: name, labels, ports.
    """
    containers = []
    for container in own_containers(docker_socket, ask, status=["created"]):
        # None, when it has gone meanwhile.
        found = ask(docker_socket, f"/containers/{container['Id']}/json") or {}
        bindings = found.get("HostConfig", {}).get("PortBindings") or {}
        published = [one["HostPort"] for places in bindings.values() for one in places or []]
        ports = {int(port) for port in published if port.isdigit()}  # empty: Docker chooses one
        name = container["Names"][0].lstrip("/")
        containers.append({"name": name, "labels": list(container["Labels"]), "ports": sorted(ports)})
    return containers


def docker_facts(docker_socket, image, ask=ask_docker):
    """Return what a running Docker knows.

    Arguments: docker_socket (str), image (str, NAME:TAG), ask (callable, see ask_docker).
    Returns a dict: containers (list of name, labels, ports), image_present (bool), docker_root
    (str).
    """
    # First, so that one which runs by the time of the second question is not missed.
    containers = starting_containers(docker_socket, ask)
    containers += [
        {
            "name": container["Names"][0].lstrip("/"),
            "labels": list(container.get("Labels") or {}),
            "ports": sorted(
                {port["PublicPort"] for port in container.get("Ports") or [] if "PublicPort" in port}
            ),
        }
        for container in ask(docker_socket, "/containers/json") or []
    ]
    return {
        "containers": containers,
        "image_present": ask(docker_socket, f"/images/{image}/json") is not None,
        "docker_root": (ask(docker_socket, "/info") or {}).get("DockerRootDir", ""),
    }


def model_states(models, models_dir):
    """Return the state of each model file.

    Arguments: models (list of dict), models_dir (str).
    Returns a dict by file name: state (see state_of of module_utils gguf), size (bytes, 0 when
    absent), partial (bytes on disk of an unfinished download), source (see host_source).
    """
    states = {}
    for model in models:
        path = os.path.join(models_dir, model["file"])
        state = state_of(path, model["sha256"], model["url"])
        states[model["file"]] = {
            "state": state,
            "size": 0 if state == "absent" else os.path.getsize(path),
            "partial": allocated(os.path.join(models_dir, ".partial", model["file"])),
            "source": host_source(model["url"]),
        }
    return states


def allocated(path):
    """Return the bytes that a file (str) occupies, 0 when there is none; its holes count for nothing."""
    try:
        return os.stat(path).st_blocks * 512
    except OSError:
        return 0


def host_source(url):
    """Return what is known of a source on this host: a dict of size (bytes) and leads_to (str).

    A symlink that leads out of its directory cannot be followed in a container that has only that
    directory. Argument: url (str). Returns None for another source, or when there is no such file.
    """
    source = urlsplit(url)
    path = unquote(source.path)
    if source.scheme != "file" or not os.path.isfile(path):
        return None
    target = os.path.realpath(path)
    stays = os.path.dirname(target) == os.path.realpath(os.path.dirname(path))
    return {"size": os.path.getsize(path), "leads_to": "" if stays else target}


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "ports": {"type": "list", "elements": "int", "default": []},
            "paths": {"type": "list", "elements": "str", "default": []},
            "files": {"type": "list", "elements": "str", "default": []},
            "user": {"type": "str", "required": True},
            "uid": {"type": "int", "required": True},
            "gid": {"type": "int", "required": True},
            "models_dir": {"type": "str", "required": True},
            "models": {"type": "list", "elements": "dict", "default": []},
            "image": {"type": "str", "required": True},
            "docker_socket": {"type": "path", "default": "/run/docker.sock"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    docker = {"containers": [], "image_present": False, "docker_root": ""}
    try:
        # Before Docker is asked whose ports they are: what listens by now, it knows by then.
        found = listeners(wanted["ports"])
    except OSError as error:
        module.fail_json(msg=str(error))
    try:
        if docker_runs(wanted["docker_socket"]):
            docker = docker_facts(wanted["docker_socket"], wanted["image"])
    except ERRORS as error:
        module.warn(f"Docker on this host does not answer ({error}); its containers are not known")
    paths = [*wanted["paths"], *([docker["docker_root"]] if docker["docker_root"] else [])]
    try:
        module.exit_json(
            changed=False,
            listeners=found,
            space={path: space(path) for path in paths},
            missing_files=[path for path in wanted["files"] if path and not os.path.isfile(path)],
            ids=ids(wanted["user"], wanted["uid"], wanted["gid"]),
            models=model_states(wanted["models"], wanted["models_dir"]),
            **docker,
        )
    except OSError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
