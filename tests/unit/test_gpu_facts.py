"""What is read of a host's GPUs: texts as the driver writes them, trees as the kernel shows them."""

from __future__ import annotations

import stat

import gpu_facts
import pytest

MIB = 2**20
UUIDS = ["GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-3b7c8f2e-5a0d-4e57-9d2c-6f6d1f4c9a10"]

PROPRIETARY = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024
GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)
"""
OPEN = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
TWO = f"""0, {UUIDS[0]}, NVIDIA L40S, 46068, 45372, 8.9, 550.54.15, [N/A]
1, {UUIDS[1]}, NVIDIA A100-SXM4-80GB, 81920, 81049, 8.0, 550.54.15, Enabled
"""
MISMATCH = """Failed to initialize NVML: Driver/library version mismatch
NVML library version: 550.144
"""
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    " Make sure that the latest NVIDIA driver is installed and running.\n\n"
)
LIST = f"""GPU 0: NVIDIA L40S (UUID: {UUIDS[0]})
GPU 1: NVIDIA A100-SXM4-80GB (UUID: {UUIDS[1]})
  MIG 3g.40gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1g.10gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
"""
OURS = "1f" * 32
FOREIGN = "2e" * 32
OUTER = "3d" * 32


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (PROPRIETARY, "550.54.15"),
        (OPEN, "580.65.06"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.288  x\n", "535.288"),
        ("", ""),
        ("something else\n", ""),
    ],
)
def test_the_version_of_the_kernel_module(text, version):
    assert gpu_facts.kernel_version(text) == version


def device(root, slot, vendor="0x10de", kind="0x030000", driver=""):
    """Makes a PCI device as sysfs shows it."""
    path = root / "bus/pci/devices" / slot
    path.mkdir(parents=True)
    (path / "vendor").write_text(f"{vendor}\n")
    (path / "class").write_text(f"{kind}\n")
    if driver:
        target = root / "bus/pci/drivers" / driver
        target.mkdir(parents=True, exist_ok=True)
        (path / "driver").symlink_to(target)


def test_gpus_on_the_pci_bus(tmp_path):
    device(tmp_path, "0000:41:00.0", kind="0x030200", driver="nvidia")
    device(tmp_path, "0000:01:00.0", driver="nouveau")
    device(tmp_path, "0000:02:00.0")
    device(tmp_path, "0000:01:00.1", kind="0x040300", driver="snd_hda_intel")  # sound over HDMI
    device(tmp_path, "0000:03:00.0", vendor="0x1002", driver="amdgpu")
    device(tmp_path, "0000:04:00.0", kind="0x068000", driver="nvidia-nvswitch")
    assert gpu_facts.pci_devices(str(tmp_path)) == [
        {"slot": "0000:01:00.0", "driver": "nouveau"},
        {"slot": "0000:02:00.0", "driver": ""},
        {"slot": "0000:41:00.0", "driver": "nvidia"},
    ]


def test_a_host_without_a_pci_bus(tmp_path):
    assert gpu_facts.pci_devices(str(tmp_path)) == []


def test_device_nodes_without_directories(tmp_path):
    for name in ("nvidia0", "nvidia10", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "null"):
        (tmp_path / name).touch()
    (tmp_path / "nvidia-caps").mkdir()
    assert gpu_facts.device_nodes(str(tmp_path)) == [
        "/dev/nvidia-uvm",
        "/dev/nvidia-uvm-tools",
        "/dev/nvidia0",
        "/dev/nvidia10",
        "/dev/nvidiactl",
    ]


NODES = ["/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidiactl"]
BOUND = [{"slot": "0000:01:00.0", "driver": "nvidia"}]


@pytest.mark.parametrize(
    ("version", "nodes", "pci", "may"),
    [
        ("550.54.15", NODES, BOUND, True),
        ("550.54.15", NODES, [], True),  # a container or a virtual machine may hide the bus
        ("550.54.15", NODES, [*BOUND, {"slot": "0000:02:00.0", "driver": "vfio-pci"}], True),
        ("550.54.15", NODES, [*BOUND, {"slot": "0000:02:00.0", "driver": "nvidia"}], False),
        ("550.54.15", NODES[1:], BOUND, True),  # nvidia-smi needs no unified memory
        ("550.54.15", NODES[:2], BOUND, False),
        ("550.54.15", ["/dev/nvidiactl"], [], False),
        ("", NODES, BOUND, False),
    ],
)
def test_nvidia_smi_is_asked_only_where_it_makes_nothing(version, nodes, pci, may):
    assert gpu_facts.may_be_asked(version, nodes, pci) is may


def test_gpus_that_nvidia_smi_lists():
    assert gpu_facts.listed_gpus(TWO) == [
        {
            "index": 0,
            "uuid": UUIDS[0],
            "name": "NVIDIA L40S",
            "memory_total": 46068 * MIB,
            "memory_free": 45372 * MIB,
            "memory_ours": 0,
            "compute_capability": "8.9",
            "driver_version": "550.54.15",
            "mig": False,
        },
        {
            "index": 1,
            "uuid": UUIDS[1],
            "name": "NVIDIA A100-SXM4-80GB",
            "memory_total": 81920 * MIB,
            "memory_free": 81049 * MIB,
            "memory_ours": 0,
            "compute_capability": "8.0",
            "driver_version": "550.54.15",
            "mig": True,
        },
    ]


@pytest.mark.parametrize(
    "unknown", ["[N/A]", "N/A", "[Not Supported]", "[Insufficient Permissions]", "[Unknown Error]"]
)
def test_what_nvidia_smi_does_not_know_is_empty_or_zero(unknown):
    (gpu,) = gpu_facts.listed_gpus(f"0, {UUIDS[0]}" + f", {unknown}" * 6)
    assert gpu == {
        "index": 0,
        "uuid": UUIDS[0],
        "name": "",
        "memory_total": 0,
        "memory_free": 0,
        "memory_ours": 0,
        "compute_capability": "",
        "driver_version": "",
        "mig": False,
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No devices were found\n",
        MISMATCH,
        NO_DRIVER,
        'Field "compute_cap" is not a valid field to query.\n\n',
        "0" + ", [GPU is lost]" * 7 + "\n",
        "WARNING: infoROM is corrupted at gpu 0000:01:00.0\n",
    ],
)
def test_other_texts_list_no_gpu(text):
    assert gpu_facts.listed_gpus(text) == []


def test_mig_devices():
    assert gpu_facts.listed_mig_devices(LIST) == [
        {"uuid": "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "gpu": 1},
        {"uuid": "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb", "gpu": 1},
    ]
    assert gpu_facts.listed_mig_devices("No devices found.\n") == []


def test_processes_on_the_gpus():
    text = f"{UUIDS[0]}, 812, 13420\n{UUIDS[1]}, 813, [N/A]\n{UUIDS[1]}, [Insufficient Permissions], 5\n"
    assert gpu_facts.listed_apps(text) == [(UUIDS[0], 812, 13420 * MIB), (UUIDS[1], 813, 0)]
    assert gpu_facts.listed_apps("") == []


@pytest.mark.parametrize(
    ("out", "err", "line"),
    [
        (MISMATCH, "", "Failed to initialize NVML: Driver/library version mismatch"),
        (NO_DRIVER, "", NO_DRIVER.strip()),
        ("No devices were found\n", "", "No devices were found"),
        ("\n", "cannot open shared object file\n", "cannot open shared object file"),
        (TWO + "WARNING: infoROM is corrupted\n", "", "WARNING: infoROM is corrupted"),
        ("", "", "it ends with status 9 and says nothing"),
    ],
)
def test_the_line_that_says_what_is_wrong(out, err, line):
    assert gpu_facts.first_line(out, err, 9) == line


def test_the_version_of_the_libraries():
    assert gpu_facts.library_version(MISMATCH, []) == "550.144"
    assert gpu_facts.library_version(TWO, gpu_facts.listed_gpus(TWO)) == "550.54.15"
    assert gpu_facts.library_version(NO_DRIVER, []) == ""


def process(proc, pid, cgroup):
    """Makes a process as procfs shows it."""
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "cgroup").write_text(cgroup)


def test_memory_of_our_containers_is_told_from_that_of_others(tmp_path):
    process(tmp_path, 1, f"0::/system.slice/docker-{OURS}.scope\n")
    process(tmp_path, 2, f"12:pids:/docker/{OURS}\n11:cpu:/docker/{OURS}\n")
    process(tmp_path, 3, f"0::/docker/{OUTER}/system.slice/docker-{OURS}.scope\n")
    process(tmp_path, 4, f"0::/system.slice/docker-{FOREIGN}.scope\n")
    process(tmp_path, 5, "0::/user.slice/user-1000.slice/session-1.scope\n")
    apps = [(UUIDS[0], pid, 10**pid) for pid in range(1, 7)]  # 6 has just ended
    assert gpu_facts.ours(apps, {OURS: "llamacpp"}, str(tmp_path)) == {"llamacpp": {UUIDS[0]: 1110}}
    assert gpu_facts.ours([(UUIDS[1], 1, 7)], {OURS: "llamacpp"}, str(tmp_path)) == {
        "llamacpp": {UUIDS[1]: 7}
    }
    assert gpu_facts.ours(apps, {}, str(tmp_path)) == {}


@pytest.fixture
def docker_answers():
    """What the engine's API answers, by path."""
    labelled = "/containers/json?filters=%7B%22label%22%3A%20%5B%22io.ansible-llamacpp.release%22%5D%7D"
    return {"/version": {"Version": "26.1.5"}, labelled: [{"Id": OURS, "Names": ["/llamacpp"]}]}


def test_docker_is_asked_for_its_version_and_our_containers(docker_socket):
    assert gpu_facts.docker_facts(docker_socket) == {"version": "26.1.5", "own": {OURS: "llamacpp"}}
    assert gpu_facts.ask_docker(docker_socket, "/else") is None


def test_a_docker_that_does_not_run_is_not_asked(docker_socket, tmp_path):
    proc = tmp_path / "proc"
    (proc / "7").mkdir(parents=True)
    (proc / "7/comm").write_text("systemd\n")
    assert gpu_facts.docker_runs(docker_socket, str(proc)) is False
    (proc / "7/comm").write_text("dockerd\n")
    assert gpu_facts.docker_runs(docker_socket, str(proc)) is True
    assert gpu_facts.docker_runs(str(tmp_path / "no.sock"), str(proc)) is False


@pytest.mark.parametrize(
    ("paths", "snap"),
    [
        ([], False),
        (["usr/bin/dockerd"], False),
        (["snap/bin/docker"], True),
        (["snap/bin/docker", "usr/sbin/dockerd"], False),
    ],
)
def test_docker_from_snap(tmp_path, paths, snap):
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert gpu_facts.from_snap(str(tmp_path)) is snap


class Host:
    """A host in a directory, with a stand-in for nvidia-smi that answers what it is told to."""

    def __init__(self, path):
        self.path = path
        self.calls = []
        self.answers = {"--query-gpu": (0, TWO, ""), "-L": (0, LIST, "")}
        self.docker = {"version": "26.1.5", "own": {OURS: "llamacpp"}}
        self.smi = "/usr/bin/nvidia-smi"
        for part in ("sys", "proc/driver/nvidia", "dev"):
            (path / part).mkdir(parents=True)
        (path / "proc/driver/nvidia/version").write_text(PROPRIETARY)
        for node in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
            (path / "dev" / node).touch()
        for slot in ("0000:01:00.0", "0000:02:00.0"):
            device(path / "sys", slot, kind="0x030200", driver="nvidia")

    def run(self, arguments):
        self.calls.append(arguments)
        return self.answers.get(arguments[0].partition("=")[0], (0, "", ""))

    def facts(self):
        roots = {root: str(self.path / name) for root, name in (("sys_root", "sys"), ("proc", "proc"))}
        return gpu_facts.gpu_facts(
            self.smi, self.run, self.docker, dev=str(self.path / "dev"), root=str(self.path), **roots
        )


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_everything_of_a_host_with_two_gpus(host):
    process(host.path / "proc", 812, f"0::/system.slice/docker-{OURS}.scope\n")
    host.answers["--query-compute-apps"] = (0, f"{UUIDS[0]}, 812, 690\n", "")
    found = host.facts()
    assert found == {
        "pci": [
            {"slot": "0000:01:00.0", "driver": "nvidia"},
            {"slot": "0000:02:00.0", "driver": "nvidia"},
        ],
        "kernel_version": "550.54.15",
        "nodes": ["/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl"],
        "smi": {
            "path": "/usr/bin/nvidia-smi",
            "rc": 0,
            "problem": "",
            "library_version": "550.54.15",
        },
        "gpus": [
            {**gpu_facts.listed_gpus(TWO)[0], "memory_ours": 690 * MIB},
            gpu_facts.listed_gpus(TWO)[1],
        ],
        "mig_devices": gpu_facts.listed_mig_devices(LIST),
        "containers": {"llamacpp": {UUIDS[0]: 690 * MIB}},
        "snap": False,
        "docker_version": "26.1.5",
    }
    assert host.calls == [
        [
            "--query-gpu=index,uuid,name,memory.total,memory.free,compute_cap,driver_version,mig.mode.current",
            "--format=csv,noheader,nounits",
        ],
        ["-L"],
        ["--query-compute-apps=gpu_uuid,pid,used_memory", "--format=csv,noheader,nounits"],
    ]


def test_a_mismatch_is_told_with_the_version_of_the_libraries(host):
    host.answers["--query-gpu"] = (18, MISMATCH, "")
    found = host.facts()
    assert found["smi"] == {
        "path": "/usr/bin/nvidia-smi",
        "rc": 18,
        "problem": "Failed to initialize NVML: Driver/library version mismatch",
        "library_version": "550.144",
    }
    assert (found["gpus"], found["mig_devices"]) == ([], [])
    assert len(host.calls) == 1


@pytest.mark.parametrize("status", [0, 6])
def test_no_devices_were_found(host, status):
    host.answers["--query-gpu"] = (status, "No devices were found\n", "")
    assert host.facts()["smi"]["problem"] == "No devices were found"


def test_a_warning_beside_the_gpus_does_not_hide_them(host):
    host.answers["--query-gpu"] = (14, TWO + "WARNING: infoROM is corrupted at gpu 0000:01:00.0\n", "")
    found = host.facts()
    assert len(found["gpus"]) == 2
    assert found["smi"]["problem"] == "WARNING: infoROM is corrupted at gpu 0000:01:00.0"


def test_nothing_is_run_without_the_kernel_module(host):
    (host.path / "proc/driver/nvidia/version").unlink()
    found = host.facts()
    assert host.calls == []
    assert (found["kernel_version"], found["smi"]["rc"], found["smi"]["problem"]) == ("", -1, "")


def test_nothing_is_run_without_the_device_nodes(host):
    (host.path / "dev/nvidiactl").unlink()
    host.facts()
    assert host.calls == []


def test_a_host_without_nvidia_smi_and_without_docker(host):
    host.smi, host.docker = "", {"version": "", "own": {}}
    found = host.facts()
    assert host.calls == []
    assert found["smi"] == {"path": "", "rc": -1, "problem": "", "library_version": ""}
    assert (found["kernel_version"], len(found["pci"]), found["docker_version"]) == ("550.54.15", 2, "")


def test_a_host_without_anything(tmp_path):
    run = pytest.fail
    found = gpu_facts.gpu_facts(
        "",
        run,
        {"version": "", "own": {}},
        *[str(tmp_path / name) for name in ("sys", "proc", "dev", "root")],
    )
    assert found == {
        "pci": [],
        "kernel_version": "",
        "nodes": [],
        "smi": {"path": "", "rc": -1, "problem": "", "library_version": ""},
        "gpus": [],
        "mig_devices": [],
        "containers": {},
        "snap": False,
        "docker_version": "",
    }


def program(path, text):
    """Makes a program of a shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_program_is_run_in_plain_english_with_its_arguments(tmp_path):
    smi = program(tmp_path / "nvidia-smi", 'echo "$LC_ALL $1"; echo oops >&2; exit 9')
    assert gpu_facts.runner(smi, 60)(["-L"]) == (9, "C -L\n", "oops\n")


def test_a_program_that_hangs_or_cannot_be_run_is_a_problem_not_a_crash(tmp_path):
    smi = program(tmp_path / "nvidia-smi", "exec sleep 60")
    assert gpu_facts.runner(smi, 0.1)(["-L"]) == (124, "", "it gives no answer within 0.1 s")
    status, out, err = gpu_facts.runner(str(tmp_path / "none"), 60)(["-L"])
    assert (status, out) == (124, "")
    assert "No such file" in err
