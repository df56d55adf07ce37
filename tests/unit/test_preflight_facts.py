"""What preflight reads from a host: real sockets, a real file system, a stand-in for Docker."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from urllib.parse import quote

import preflight_facts
import pytest
from ansible.module_utils import gguf

# As the kernel prints them, without the columns that nobody needs to the right of the inode.
TABLE = """  sl  local_address rem_address   st tx_queue:rx_queue tr:when retrnsmt uid timeout inode
   0: 0100007F:4E70 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 111
   1: 0100007F:4E71 0100007F:C000 01 00000000:00000000 00:00000000 00000000 0 0 222
"""
ANY = "0" * 32
TABLE6 = f"""  sl  local_address remote_address st
   0: {ANY}:4E72 {ANY}:0000 0A 00000000:00000000 00:00000000 00000000 0 0 333
"""


def test_listening_sockets_are_found_in_the_tables_of_the_kernel():
    assert preflight_facts.listening_inodes([TABLE, TABLE6]) == {20080: "111", 20082: "333"}


def test_who_listens_is_named_with_its_pid():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        found = preflight_facts.listeners([port])
    assert found[str(port)]["pid"] == os.getpid()
    assert found[str(port)]["process"]


def test_a_free_port_is_left_out():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, but nobody listens
        assert preflight_facts.listeners([free.getsockname()[1]]) == {}


def test_the_unit_of_a_process_is_named(tmp_path):
    process = tmp_path / "812"
    (process / "fd").mkdir(parents=True)
    (process / "fd/3").symlink_to("socket:[111]")
    (process / "comm").write_text("nginx\n")
    (process / "cgroup").write_text("0::/system.slice/nginx.service\n")
    (tmp_path / "net").mkdir()
    (tmp_path / "net/tcp").write_text(TABLE)
    assert preflight_facts.listeners([20080], str(tmp_path)) == {
        "20080": {"process": "nginx", "pid": 812, "unit": "nginx.service"}
    }


def test_a_listener_of_another_namespace_has_no_name(tmp_path):
    assert preflight_facts.process_of("999", str(tmp_path)) == {
        "process": "",
        "pid": 0,
        "unit": "",
    }


def test_space_is_that_of_the_nearest_directory_that_exists(tmp_path):
    found = preflight_facts.space(str(tmp_path / "not/yet/there"))
    assert found["parent"] == str(tmp_path)
    assert found["device"] == os.stat(tmp_path).st_dev
    status = os.statvfs(tmp_path)
    assert abs(found["free"] - status.f_bavail * status.f_frsize) < 2**30


def test_ids_are_those_of_the_name_service():
    name, group = pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name
    assert preflight_facts.ids("no-such-user", 0, 0) == {
        "name_of_uid": name,
        "name_of_gid": group,
        "uid_of_user": None,
        "gid_of_group": None,
    }
    assert preflight_facts.ids(name, 4000001, 4000001) == {
        "name_of_uid": "",
        "name_of_gid": "",
        "uid_of_user": 0,
        "gid_of_group": 0,
    }


def test_states_of_model_files(tmp_path):
    content = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)
    hashes = {}
    for name in ("verified", "outdated", "unverified"):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        hashes[name] = gguf.sha256_of(str(path))
    for name in ("verified", "outdated"):
        gguf.write_record(str(tmp_path / f"{name}.gguf"), hashes[name], "https://m.example/x")
    models = [
        {"file": "absent.gguf", "url": "u", "sha256": ""},
        {"file": "verified.gguf", "url": "https://m.example/x", "sha256": ""},
        {"file": "outdated.gguf", "url": "https://m.example/x", "sha256": "0" * 64},
        {"file": "unverified.gguf", "url": "u", "sha256": "none"},
    ]
    states = preflight_facts.model_states(models, str(tmp_path))
    rest = {"partial": 0, "source": None}
    assert states == {
        "absent.gguf": {"state": "absent", "size": 0, **rest},
        "verified.gguf": {"state": "verified", "size": 24, **rest},
        "outdated.gguf": {"state": "outdated", "size": 24, **rest},
        "unverified.gguf": {"state": "unverified", "size": 24, **rest},
    }


def test_of_an_unfinished_download_only_what_is_on_disk_counts(tmp_path):
    (tmp_path / ".partial").mkdir()
    with open(tmp_path / ".partial/x.gguf", "wb") as file:
        file.write(b"x" * 2**20)
        file.truncate(2**30)  # the rest is a hole
        os.fsync(file.fileno())
    states = preflight_facts.model_states([{"file": "x.gguf", "url": "u", "sha256": ""}], str(tmp_path))
    assert 2**20 <= states["x.gguf"]["partial"] < 2**21


def test_a_path_on_the_host_is_looked_at(tmp_path):
    (tmp_path / "my models").mkdir()
    (tmp_path / "x.gguf").write_bytes(b"12345")
    names = {name: tmp_path / "my models" / name for name in ("plain", "beside", "outside", "dangling")}
    names["plain"].write_bytes(b"123")
    names["beside"].symlink_to("plain")
    names["outside"].symlink_to("../x.gguf")
    names["dangling"].symlink_to("gone")
    found = {
        name: preflight_facts.host_source(f"file://{tmp_path}/my%20models/{name}")
        for name in (*names, "absent", "")
    }
    assert found == {
        "plain": {"size": 3, "leads_to": ""},
        "beside": {"size": 3, "leads_to": ""},
        "outside": {"size": 5, "leads_to": str(tmp_path / "x.gguf")},
        "dangling": None,
        "absent": None,
        "": None,
    }
    assert preflight_facts.host_source(f"controller://{tmp_path}/x.gguf") is None


@pytest.fixture
def docker_answers():
    """What the engine's API answers, by path."""
    return {
        "/containers/json": [
            {
                "Names": ["/llamacpp"],
                "Labels": {"io.ansible-llamacpp.release": "x"},
                "Ports": [
                    {"PrivatePort": 20080, "PublicPort": 20080, "IP": "0.0.0.0"},
                    {"PrivatePort": 20080, "PublicPort": 20080, "IP": "::"},
                    {"PrivatePort": 9},
                ],
            },
            {"Names": ["/bare"], "Labels": None, "Ports": None},
        ],
        "/images/llamacpp:0.3.36-cpu/json": {"Id": "sha256:1"},
        "/info": {"DockerRootDir": "/data/docker"},
    }


def test_docker_is_asked_for_containers_image_and_data_directory(docker_socket):
    assert preflight_facts.docker_facts(docker_socket, "llamacpp:0.3.36-cpu") == {
        "containers": [
            {"name": "llamacpp", "labels": ["io.ansible-llamacpp.release"], "ports": [20080]},
            {"name": "bare", "labels": [], "ports": []},
        ],
        "image_present": True,
        "docker_root": "/data/docker",
    }
    assert preflight_facts.docker_facts(docker_socket, "other:1")["image_present"] is False


def test_a_container_that_is_about_to_run_has_its_port_by_now(docker_socket, docker_answers):
    # Docker starts its proxy, which listens, before the container.
    filters = quote('{"label": ["io.ansible-llamacpp.release"], "status": ["created"]}')
    starting = {"Id": "1", "Names": ["/second"], "Labels": {"io.ansible-llamacpp.release": "x"}, "Ports": []}
    gone = {**starting, "Id": "2", "Names": ["/gone"]}
    docker_answers[f"/containers/json?filters={filters}"] = [starting, gone]
    bindings = {
        "20081/tcp": [{"HostIp": "0.0.0.0", "HostPort": "20081"}],
        "8/tcp": [{"HostPort": ""}],
        "9/tcp": None,
    }
    docker_answers["/containers/1/json"] = {"HostConfig": {"PortBindings": bindings}}
    found = preflight_facts.docker_facts(docker_socket, "other:1")["containers"]
    assert {one["name"]: one["ports"] for one in found} == {
        "second": [20081],
        "gone": [],
        "llamacpp": [20080],
        "bare": [],
    }


def test_a_docker_that_does_not_run_is_not_asked(docker_socket, tmp_path):
    proc = tmp_path / "proc"
    (proc / "7").mkdir(parents=True)
    (proc / "7/comm").write_text("systemd\n")
    assert preflight_facts.docker_runs(docker_socket, str(proc)) is False
    (proc / "7/comm").write_text("dockerd\n")
    assert preflight_facts.docker_runs(docker_socket, str(proc)) is True
    assert preflight_facts.docker_runs(str(tmp_path / "no.sock"), str(proc)) is False
