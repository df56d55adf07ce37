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
ENTRY = {
    "file": "x.gguf",
    "alias": "x",
    "where": "llm_models[0] (alias x)",
    "url": URL,
    "link": False,
    "sha256": HASH,
    "size": 0,
}
WANTED = {
    "files": [ENTRY],
    "lock": {},
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
    "models": {"x.gguf": {"state": "absent", "size": 0, "partial": 0, "source": None}},
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
    assert problems(wanted={"files": [{**ENTRY, "sha256": ""}]}) == [
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
    for fine in ("none", "b" * 64, ""):
        assert problems(wanted={"files": [{**ENTRY, "sha256": fine}]}, sources=sources) == []


def test_another_sha256_than_the_lock_has_is_named_with_both_and_how_to_accept_it(problems):
    sources = {URL: {"problem": "", "size": 1, "sha256": "b" * 64}}
    assert problems(wanted={"lock": {URL: {"sha256": HASH, "size": 1}}}, sources=sources) == [
        f"llm_models[0] (alias x): llm_models_lock has sha256 {HASH}, but https://huggingface.co now"
        f" announces {'b' * 64}; pin the commit, or accept the new file by `make lock INVENTORY=…"
        ' ARGS="-e lock_update=true"`'
    ]


def on_host(state="absent", size=0, partial=0, source=None):
    """What the host says of the file."""
    return {"models": {"x.gguf": {"state": state, "size": size, "partial": partial, "source": source}}}


PATH_ENTRY = {**ENTRY, "url": "file:///mnt/my%20models/x.gguf"}


@pytest.mark.parametrize(
    ("link", "state", "missed"),
    [(False, "absent", True), (False, "outdated", True), (False, "verified", False),
     (True, "absent", True), (True, "verified", True)],
)  # fmt: skip
def test_a_path_that_is_not_on_the_host(problems, link, state, missed):
    message = (
        "llm_models[0] (alias x): path /mnt/my models/x.gguf is not a file on this host; mount its directory"
        " there, or correct path"
    )
    found = problems(on_host(state), wanted={"files": [{**PATH_ENTRY, "link": link}]})
    assert found == ([message] if missed else [])


def test_a_linked_path_must_not_lead_out_of_its_directory(problems):
    host = on_host(source={"size": 1, "leads_to": "/mnt/blobs/x"})
    assert problems(host, wanted={"files": [PATH_ENTRY]}) == [], "it is copied"
    assert problems(host, wanted={"files": [{**PATH_ENTRY, "link": True}]}) == [
        "llm_models[0] (alias x): path /mnt/my models/x.gguf is itself a link out of its directory, which a"
        " container could not follow; write path: /mnt/blobs/x"
    ]


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
    files = [{**ENTRY, "sha256": sha256}] * 2
    assert urls_to_ask(files, on_host(state, size=1)) == ([URL] if asked else [])
    for path in ("file:///mnt/x.gguf", "controller:///srv/x.gguf"):
        assert urls_to_ask([{**ENTRY, "url": path}], on_host(state)) == [], "no server has it"


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
    assert (problems(on_host(state, size) | NO_SPACE) == []) is enough


NO_SPACE = {"image_present": True, "space": {"/models": {"parent": "/models", "device": 1, "free": 0}}}


def test_of_an_unfinished_download_only_the_rest_needs_space(problems):
    space = {"/models": {"parent": "/models", "device": 1, "free": GIB}}
    assert problems({**on_host(partial=GIB // 2), **NO_SPACE, "space": space}) == [
        "too little space for /models: needed 2.5 GiB (rest of model x.gguf 1.5 GiB, head-room"
        " (preflight_headroom_bytes) 1.0 GiB), free 1.0 GiB; free some, or choose another llm_models_dir"
    ]
    for rest in (2 * GIB, 3 * GIB):
        assert problems({**on_host(partial=rest), **NO_SPACE}) == [], "never less than nothing"


def test_the_lock_tells_the_size_that_a_source_does_not(problems):
    silent = {URL: {"problem": "", "size": 0, "sha256": ""}}
    assert problems(NO_SPACE, sources=silent) == []
    assert (
        "model x.gguf 3.0 GiB"
        in problems(NO_SPACE, wanted={"files": [{**ENTRY, "size": 3 * GIB}]}, sources=silent)[0]
    )


@pytest.mark.parametrize("link", [False, True])
def test_a_path_on_the_host_needs_space_when_it_is_copied(problems, link):
    host = on_host(source={"size": 3 * GIB, "leads_to": ""}) | NO_SPACE
    found = problems(host, wanted={"files": [{**PATH_ENTRY, "link": link}]})
    assert ["model x.gguf 3.0 GiB" in line for line in found] == ([] if link else [True])


def test_a_file_of_the_controller_needs_the_space_it_has_there(problems, tmp_path):
    with open(tmp_path / "a b.gguf", "wb") as file:
        file.truncate(3 * GIB)
    entry = {**ENTRY, "url": f"controller://{tmp_path}/a%20b.gguf"}
    assert "model x.gguf 3.0 GiB" in problems(NO_SPACE, wanted={"files": [entry]})[0]


def test_all_problems_are_reported_together(problems):
    found = problems(
        {"listeners": NGINX, "missing_files": ["/x"]},
        facts={"service_mgr": "init"},
        sources={URL: {"problem": f"{URL} answers 404", "size": 0, "sha256": ""}},
        wanted={"headroom_bytes": 2**50},
    )
    assert len(found) == 5
    assert all("\n" not in line for line in found)
