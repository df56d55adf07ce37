"""What confines unit and container is in force, not only declared, and secrets stay where they belong."""

from __future__ import annotations

import json

import openai
import pytest
from testing import answers

KEY, TOKEN = "key-of-clients-4711", "token-of-the-hub-4711"
# As patterns for grep, which find the secrets but not themselves.
PATTERNS = ["key-of-clients-471[1]", "token-of-the-hub-471[1]"]


def process_status(host, pid: str) -> dict[str, str]:
    """/proc/PID/status.

    Args:
        host: where the process runs.
        pid: its number there.
    """
    lines = host.check_output(f"cat /proc/{pid}/status").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def assert_it_has_no_privileges(status: dict[str, str]) -> None:
    """No capability now or later, and a filter of system calls."""
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[capabilities], 16) == 0, capabilities
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def files_with(host, pattern: str, user: str) -> list[str]:
    """Files of the host in which a user finds a pattern.

    Args:
        host: where to look.
        pattern: for grep.
        user: who looks.
    """
    # Status 2 is that of files and directories that this user may not read.
    # Neither models nor the images' own files: they are large, and came before the secrets.
    left_out = "--exclude-dir=proc --exclude-dir=sys --exclude-dir=overlay2 --exclude=*.gguf"
    command = f"runuser -u {user} -- grep -rls -D skip -e '{pattern}' {left_out} /"
    found = host.run(f"LC_ALL=C {command}")
    assert found.rc in (0, 1, 2), found.stderr
    return found.stdout.splitlines()


@pytest.fixture
def unit_pid(host) -> str:
    """The unit's main process, the Docker client in the foreground."""
    return host.check_output("systemctl show -p MainPID --value llamacpp")


@pytest.fixture
def in_unit(host, unit_pid):
    """Returns a function: runs a command with the files and the network that the unit's main process has."""
    return lambda command: host.run(f"nsenter --target {unit_pid} --mount --net -- {command}")


@pytest.fixture
def server_pid(container) -> str:
    """The server, as numbered on the host."""
    return str(container()["State"]["Pid"])


def test_systemd_rates_the_unit_safe(host):
    # It says 0.7, of 10: there remain root without capabilities, the root directory and AF_UNIX.
    rated = host.run("systemd-analyze security --no-pager --threshold=10 llamacpp.service")
    assert rated.rc == 0, rated.stdout


def test_the_units_processes_have_no_privileges(host, unit_pid):
    assert_it_has_no_privileges(process_status(host, unit_pid))


def test_the_unit_has_no_network(in_unit):
    devices = in_unit("cat /proc/self/net/dev").stdout.splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]


@pytest.mark.parametrize("directory", ["/etc", "/usr/local/bin", "/var/lib", "/var/log", "/run", "/run/lock"])
def test_the_unit_cannot_write(in_unit, directory):
    refused = in_unit(f"touch {directory}/probe")
    assert refused.rc != 0
    assert "Read-only file system" in refused.stderr


def test_the_unit_sees_no_homes_no_devices_and_no_temporary_files_of_others(host, in_unit):
    host.check_output("touch /tmp/of-others /root/of-others")
    try:
        for directory in ("/home", "/root", "/tmp", "/var/tmp"):
            assert in_unit(f"find {directory} -mindepth 1").stdout == "", directory
    finally:
        host.check_output("rm /tmp/of-others /root/of-others")
    assert in_unit("find /dev -type b").stdout == ""
    assert in_unit("test -e /dev/kmsg").rc != 0


def test_a_proxy_of_roots_docker_client_does_not_reach_the_container(host, container, client):
    proxy = json.dumps({"proxies": {"default": {"httpProxy": "http://proxy.internal:3128"}}})
    host.check_output(f"mkdir -p /root/.docker && echo '{proxy}' > /root/.docker/config.json")
    try:
        host.check_output("systemctl restart llamacpp")
        assert answers(client)
        assert "proxy.internal" not in json.dumps(container()["Config"]["Env"])
    finally:
        host.check_output("rm -r /root/.docker")


def test_the_servers_process_has_no_privileges(host, server_pid):
    status = process_status(host, server_pid)
    assert_it_has_no_privileges(status)
    assert status["Uid"].split() == status["Gid"].split() == ["10002"] * 4
    assert host.user("llm").uid == 10002


def test_the_server_is_in_namespaces_of_its_own(host, container, server_pid):
    for kind in ("cgroup", "ipc", "mnt", "net", "pid", "uts"):
        own, hosts = (host.check_output(f"readlink /proc/{pid}/ns/{kind}") for pid in (server_pid, "1"))
        assert own != hosts, kind
    assert container()["HostConfig"]["IpcMode"] != "shareable"


def test_the_container_is_given_nothing_of_the_host_but_its_own_directory_to_read(container):
    given = container()
    assert [(mount["Source"], mount["RW"]) for mount in given["Mounts"]] == [("/home/llm/llamacpp", False)]
    settings = given["HostConfig"]
    assert settings["ReadonlyRootfs"]
    assert not settings["Privileged"]
    assert not settings["CapAdd"]
    assert not settings["Devices"]
    # No "unconfined" beside it.
    assert settings["SecurityOpt"] == ["no-new-privileges"]


def test_the_servers_user_can_neither_write_nor_reach_docker(host, server_pid):
    for directory in ("/", "/opt/llamacpp", "/llamacpp", "/llamacpp/model", "/etc", "/var/tmp"):
        refused = host.run(f"docker exec llamacpp touch {directory}/probe")
        assert refused.rc != 0
        assert "Read-only file system" in refused.stderr or "Permission denied" in refused.stderr
    assert "docker.sock" not in host.check_output(f"cat /proc/{server_pid}/mountinfo")
    assert host.run("docker exec llamacpp find / -xdev -name 'docker*.sock'").stdout == ""


def test_temporary_files_of_the_server_are_few_and_no_programs(host):
    host.check_output("docker exec llamacpp cp /usr/bin/true /tmp/program")
    refused = host.run("docker exec llamacpp /tmp/program")
    assert refused.rc == 126
    assert "permission denied" in refused.stdout + refused.stderr
    filled = host.run(
        "docker exec llamacpp sh -c 'head -c 100M /dev/zero > /tmp/large; s=$?; rm /tmp/*; exit $s'"
    )
    assert filled.rc != 0
    assert "No space left on device" in filled.stderr


def test_a_crash_of_the_server_leaves_no_core(host, server_pid):
    limits = host.check_output(f"grep 'Max core file size' /proc/{server_pid}/limits")
    assert limits.split()[4:6] == ["0", "0"]


def test_system_calls_that_docker_filters_are_refused(host):
    # A user namespace needs no privileges; that it is refused is the filter's doing.
    unshare = "unshare --user true"
    assert host.run(f"docker exec llamacpp {unshare}").rc != 0
    unfiltered = (
        "docker run --rm --network=none --cap-drop=ALL --user=10002 --security-opt=seccomp=unconfined"
    )
    host.check_output(f"{unfiltered} llamacpp:latest {unshare}")


@pytest.fixture(scope="module")
def with_secrets(play, host):
    """A play that deploys both secrets, with all that it says at -vvv; what was before is put back."""
    run = play("site.yml", "--tags=models,server", "-vvv", "--diff", llm_api_key=KEY, llm_hub_token=TOKEN)
    assert run.rc == 0, run.output
    yield run
    back = play("rollback.yml", to="previous")
    assert back.rc == 0, back.output
    assert not host.file("/etc/llamacpp/llamacpp.env").exists


def test_secrets_are_not_in_the_plays_output(with_secrets):
    # But in the line that shows the command itself, with its -e.
    lines = [line for line in with_secrets.output.splitlines() if not line.startswith("ansible-playbook ")]
    assert len(lines) > 100
    for secret in (KEY, TOKEN):
        assert secret not in "\n".join(lines)


def test_a_server_with_a_key_is_behind_it(with_secrets, play, client, tmp_path):
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    assert client.with_options(api_key=KEY).models.list().data
    report = tmp_path / "smoke.json"
    smoke = play("smoke.yml", llm_api_key=KEY, smoke_report=str(report))
    assert smoke.rc == 0, smoke.output
    (instance,) = json.loads(report.read_text(encoding="utf-8"))["instances"]
    assert "refuses a wrong API key" in instance["kept"]


@pytest.mark.usefixtures("with_secrets")
def test_secrets_are_not_in_the_journal(host):
    def lines_with(pattern: str) -> int:
        return int(host.run(f"journalctl -o export | LC_ALL=C grep --text --count -e '{pattern}'").stdout)

    assert lines_with("ansible-llm_releas[e]") > 0
    for pattern in PATTERNS:
        assert lines_with(pattern) == 0


@pytest.mark.usefixtures("with_secrets")
def test_secrets_are_on_no_command_line(host):
    lines = host.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "llama_cpp.server" in lines
    for secret in (KEY, TOKEN):
        assert secret not in lines


@pytest.mark.usefixtures("with_secrets")
def test_secrets_are_in_no_file_that_others_may_read(host):
    assert files_with(host, "env-file=/etc/llamacp[p]", "nobody"), "it finds what others may read"
    for pattern in PATTERNS:
        assert files_with(host, pattern, "nobody") == []


@pytest.mark.usefixtures("with_secrets")
def test_the_key_is_in_roots_files_only_and_the_token_in_none(host):
    key, token = (files_with(host, pattern, "root") for pattern in PATTERNS)
    assert token == []
    assert "/etc/llamacpp/llamacpp.env" in key
    # Docker and containerd note the environment of a container.
    dockers = ("/var/lib/docker/containers/", "/var/lib/containerd/", "/run/containerd/")
    ours = [path for path in key if not path.startswith(dockers)]
    assert [path for path in ours if not path.startswith(("/etc/llamacpp/", "/var/lib/llamacpp/"))] == []
    assert {path: host.file(path).mode for path in ours} == dict.fromkeys(ours, 0o600)
