"""What runs on the host after a deployment."""

from __future__ import annotations

import json

from testing import PROJECT, wait_until


def test_service_is_enabled_and_active(host):
    service = host.service("llamacpp")
    assert service.is_enabled
    assert service.is_running


def test_container_has_the_names_of_the_reference_deployment(host, container):
    assert container()["Name"] == "/llamacpp"
    assert container()["Config"]["Hostname"] == "llamacpp"
    assert container()["Config"]["Image"].startswith("llamacpp:0.3.36-cpu-")
    ids = host.check_output("docker image inspect -f '{{.Id}}' llamacpp:latest llamacpp:0.3.36-cpu").split()
    assert set(ids) == {container()["Image"]}


def test_server_runs_the_engines_own_module(container):
    assert container()["Config"]["Cmd"] == [
        "python3",
        "-m",
        "llama_cpp.server",
        "--config_file",
        "/llamacpp/config.json",
    ]


def test_root_file_system_and_models_are_read_only(host):
    for path in ("/probe", "/opt/llamacpp/probe", "/llamacpp/probe", "/llamacpp/model/probe"):
        refused = host.run(f"docker exec --user 0 llamacpp touch {path}")
        assert refused.rc != 0
        assert "Read-only file system" in refused.stderr


def test_environment_of_the_server_is_minimal(host, container):
    names = {entry.split("=", 1)[0] for entry in container()["Config"]["Env"]}
    assert names <= {
        "PATH",
        "PYTHONUNBUFFERED",
        "PYTHONDONTWRITEBYTECODE",
        "OMP_WAIT_POLICY",
        "GOMP_SPINCOUNT",
    }


def test_configuration_is_readable_by_the_server_only(host):
    config = host.file("/home/llm/llamacpp/config.json")
    assert (config.user, config.gid, config.mode) == ("root", 10002, 0o640)


def test_logs_are_in_the_journal(host):
    assert "Uvicorn running on" in host.check_output("journalctl -u llamacpp -o cat --no-pager")


def test_docker_sees_the_container_healthy(container):
    wait_until(lambda: container()["State"]["Health"]["Status"] == "healthy", "healthy")


def test_image_says_what_it_is(host):
    labels = json.loads(
        host.check_output("docker image inspect -f '{{json .Config.Labels}}' llamacpp:latest")
    )
    assert labels["org.opencontainers.image.version"] == "0.3.36"
    assert labels["io.ansible-llamacpp.backend"] == "cpu"
    assert len(labels["io.ansible-llamacpp.input-hash"]) >= 12


def test_image_holds_no_compiler_no_pip_and_no_private_ca(host):
    for program in ("gcc", "g++", "cc", "cmake", "ninja", "pip", "pip3"):
        found = host.run(f"docker exec llamacpp sh -c 'command -v {program}'")
        assert found.rc != 0, f"{program} is in the image"
    secret = host.file("/etc/ssl/certs/controller-ca-bundle.crt").sha256sum
    hashes = host.check_output(
        "docker exec --user 0 llamacpp find / -xdev -name '*.crt' -exec sha256sum {} +"
    )
    assert secret not in hashes


def test_engine_uses_the_fast_instructions_of_this_cpu(host):
    info = host.check_output(
        "docker exec llamacpp python3 -c "
        "'import llama_cpp; llama_cpp.llama_backend_init(); print(llama_cpp.llama_print_system_info())'"
    )
    flags = host.file("/proc/cpuinfo").content_string
    for flag, name in (("avx2", "AVX2 = 1"), ("avx512f", "AVX512 = 1")):
        assert (name in info) == (flag in flags.split()), info


def test_settings_that_preflight_checks_against_are_those_of_the_engine_in_the_image(host):
    described = json.loads(host.check_output("docker exec llamacpp describe-settings"))
    shipped = (PROJECT / "files/image/settings-0.3.36.json").read_text(encoding="utf-8")
    assert described == json.loads(shipped)
