"""Every reason why a host cannot take the deployment, word for word."""

from __future__ import annotations

import copy

import pytest
from host_problems import host_problems, urls_to_ask

GIB = 2**30
HASH = "a" * 64
URL = "https://m.example/x.gguf"

FACTS = {
    "distribution": "Debian",
    "distribution_version": "12.11",
    "architecture": "x86_64",
    "service_mgr": "systemd",
}
WANTED = {
    "models": [{"alias": "x", "file": "x.gguf", "url": URL, "sha256": HASH}],
    "instances": [{"name": "llamacpp", "port": 20080}],
    "supported_os": {"Debian": ["12", "13"], "Ubuntu": ["22.04", "24.04"]},
    "user": "llm",
    "uid": 10002,
    "gid": 10002,
    "models_dir": "/models",
    "docker_root": "/var/lib/docker",
    "image_bytes": 4 * GIB,
    "headroom_bytes": GIB,
    "hub_url": "https://huggingface.co",
}
HOST = {
    "listeners": {},
    "containers": [],
    "image_present": False,
    "docker_root": "",
    "space": {
        "/models": {"parent": "/", "device": 1, "free": 20 * GIB},
        "/var/lib/docker": {"parent": "/var/lib", "device": 1, "free": 20 * GIB},
    },
    "missing_files": [],
    "ids": {"name_of_uid": "", "name_of_gid": "", "uid_of_user": None, "gid_of_group": None},
    "models": {"x.gguf": {"state": "absent", "size": 0}},
}
SOURCES = {URL: {"problem": "", "size": 2 * GIB, "sha256": ""}}


@pytest.fixture
def problems():
    """Returns a function: what is different from a good host -> the problems."""

    def check(host=None, facts=None, wanted=None, sources=None):
        return host_problems(
            copy.deepcopy({**HOST, **(host or {})}),
            {**FACTS, **(facts or {})},
            copy.deepcopy({**WANTED, **(wanted or {})}),
            SOURCES if sources is None else sources,
        )

    return check


def test_a_good_host_has_no_problem(problems):
    assert problems() == []


@pytest.mark.parametrize(
    ("distribution", "version"),
    [("Debian", "12"), ("Debian", "13.1"), ("Ubuntu", "22.04"), ("Ubuntu", "24.04.3")],
)
def test_supported_systems(problems, distribution, version):
    assert problems(facts={"distribution": distribution, "distribution_version": version}) == []


@pytest.mark.parametrize(
    ("distribution", "version"), [("Debian", "11.9"), ("Debian", "120"), ("Rocky", "9.4")]
)
def test_another_system_is_named_with_the_supported_ones(problems, distribution, version):
    facts = {"distribution": distribution, "distribution_version": version}
    assert problems(facts=facts) == [
        f"operating system {distribution} {version} is not supported"
        " (supported: Debian 12/13, Ubuntu 22.04/24.04); use such a host,"
        " or add this one to preflight_supported_os at your own risk"
    ]


def test_processor_and_service_manager(problems):
    assert problems(facts={"architecture": "armv7l", "service_mgr": "openrc"}) == [
        "processor architecture armv7l is not supported; use x86_64 or aarch64",
        "the service manager is openrc, not systemd; use a host that systemd runs",
    ]


def test_ids_of_somebody_else(problems):
    ids = {"name_of_uid": "bob", "name_of_gid": "staff", "uid_of_user": None, "gid_of_group": None}
    assert problems({"ids": ids}) == [
        "llm_uid: 10002 is already the uid of user bob on this host; choose a free llm_uid",
        "llm_gid: 10002 is already the gid of group staff on this host; choose a free llm_gid",
    ]


def test_the_user_with_another_id(problems):
    ids = {"name_of_uid": "", "name_of_gid": "llm", "uid_of_user": 998, "gid_of_group": 10002}
    assert problems({"ids": ids}) == [
        "llm_uid: user llm exists on this host with uid 998, not 10002;"
        " set llm_uid: 998, or choose another llm_user"
    ]


def test_a_missing_bundle(problems):
    assert problems({"missing_files": ["/etc/ca.pem"]}) == [
        "llm_ca_bundle: /etc/ca.pem is not on this host; copy it there, or correct the path"
    ]


NGINX = {"20080": {"process": "nginx", "pid": 812, "unit": "nginx.service"}}
PROXY = {"20080": {"process": "docker-proxy", "pid": 9, "unit": "docker.service"}}


def test_a_port_of_a_foreign_process(problems):
    assert problems({"listeners": NGINX}) == [
        "llm_instances[0] (name llamacpp): port 20080 is taken by nginx (pid 812, nginx.service);"
        " stop it, or give the instance another port"
    ]
    unseen = {"20080": {"process": "", "pid": 0, "unit": ""}}
    assert problems({"listeners": unseen}) == [
        "llm_instances[0] (name llamacpp): port 20080 is taken by a process that cannot be seen"
        " (in another container or namespace); stop it, or give the instance another port"
    ]


def test_a_port_of_a_foreign_container_with_and_without_a_proxy_process(problems):
    containers = [{"name": "web", "labels": [], "ports": [80, 20080]}]
    for listeners in (PROXY, {}):
        assert problems({"listeners": listeners, "containers": containers}) == [
            "llm_instances[0] (name llamacpp): port 20080 is published by the container web;"
            " stop it, or give the instance another port"
        ]


@pytest.mark.parametrize(
    "container",
    [
        {"name": "llamacpp", "labels": [], "ports": [20080]},
        {"name": "removed", "labels": ["io.ansible-llamacpp.release"], "ports": [20080]},
    ],
)
def test_our_own_container_may_have_the_port(problems, container):
    assert problems({"listeners": PROXY, "containers": [container]}) == []


def test_a_source_with_a_problem_names_the_model(problems):
    sources = {URL: {"problem": f"{URL} answers 404", "size": 0, "sha256": ""}}
    assert problems(sources=sources) == [f"llm_models[0] (alias x): {URL} answers 404"]


def test_a_file_of_the_hub_without_an_announced_sha256(problems):
    models = [{"alias": "x", "file": "x.gguf", "url": URL}]
    assert problems(wanted={"models": models}) == [
        "llm_models[0] (alias x): https://huggingface.co announces no sha256 for this url;"
        " write what `sha256sum x.gguf` prints where the file is trusted,"
        " or `sha256: none` to waive the check"
    ]


def test_another_sha256_than_the_hub_announces(problems):
    sources = {URL: {"problem": "", "size": 1, "sha256": "b" * 64}}
    assert problems(sources=sources) == [
        f"llm_models[0] (alias x): sha256 expected {HASH}, but https://huggingface.co announces"
        f" {'b' * 64}; correct sha256, or pin the commit in the url"
    ]
    waived = [{**WANTED["models"][0], "sha256": "none"}]
    assert problems(wanted={"models": waived}, sources=sources) == []


@pytest.mark.parametrize(
    ("state", "sha256", "asked"),
    [
        ("absent", HASH, True),
        ("outdated", HASH, True),
        ("verified", HASH, False),
        ("verified", "", False),
        ("unverified", HASH, False),
        ("unverified", "none", False),
        ("unverified", "", True),
    ],
)
def test_only_sources_that_are_needed_are_asked(state, sha256, asked):
    models = [{"alias": "x", "file": "x.gguf", "url": URL, "sha256": sha256}] * 2
    host = {"models": {"x.gguf": {"state": state, "size": 1}}}
    assert urls_to_ask(models, host) == ([URL] if asked else [])


def test_too_little_space_on_one_file_system_for_models_and_image_together(problems):
    host = {"space": {path: {**HOST["space"][path], "free": 6 * GIB} for path in HOST["space"]}}
    assert problems(host) == [
        "too little space for /models and /var/lib/docker: needed 7.0 GiB (model x.gguf 2.0 GiB,"
        " image (preflight_image_bytes) 4.0 GiB, head-room (preflight_headroom_bytes) 1.0 GiB),"
        " free 6.0 GiB; free some, or choose another llm_models_dir"
    ]


def test_space_is_counted_per_file_system(problems):
    space = {
        "/models": {"parent": "/", "device": 1, "free": 4 * GIB},
        "/data": {"parent": "/data", "device": 2, "free": 512 * 2**20},
    }
    assert problems({"space": space, "docker_root": "/data"}) == [
        "too little space for /data: needed 5.0 GiB (image (preflight_image_bytes) 4.0 GiB,"
        " head-room (preflight_headroom_bytes) 1.0 GiB), free 512 MiB;"
        " free some, or choose another disk for Docker"
    ]


@pytest.mark.parametrize(
    ("state", "size", "enough"),
    [
        ("absent", 0, False),
        ("outdated", 2 * GIB, False),
        ("unverified", 5, False),
        ("unverified", 2 * GIB, True),
        ("verified", 2 * GIB, True),
    ],
)
def test_space_is_asked_only_for_what_is_still_to_be_written(problems, state, size, enough):
    host = {
        "models": {"x.gguf": {"state": state, "size": size}},
        "image_present": True,
        "space": {"/models": {"parent": "/models", "device": 1, "free": 0}},
    }
    assert (problems(host) == []) is enough


def test_all_problems_are_reported_together(problems):
    found = problems(
        {"listeners": NGINX, "missing_files": ["/x"]},
        facts={"service_mgr": "init"},
        sources={URL: {"problem": f"{URL} answers 404", "size": 0, "sha256": ""}},
        wanted={"headroom_bytes": 2**50},
    )
    assert len(found) == 5
    assert all("\n" not in line for line in found)
