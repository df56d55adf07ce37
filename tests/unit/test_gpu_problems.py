"""Every reason why a host cannot give its instances their GPUs, word for word, and what fits them."""

from __future__ import annotations

import copy

import pytest
from gpu_problems import (
    asks_for_gpus,
    cuda_build,
    gpu_problems,
    image_variant,
    known_gpus,
    requested_gpus,
    resolve_gpus,
)

UUIDS = [f"GPU-00000000-0000-4000-8000-00000000000{n}" for n in range(3)]
MIGS = ["MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"]
DRIVER = "550.54.15"


def card(index=0, name="NVIDIA L40S", capability="8.9", driver=DRIVER, mig=False):
    """A GPU as the module gpu_facts returns it."""
    return {
        "index": index,
        "uuid": UUIDS[index],
        "name": name,
        "memory_total": 46068 * 2**20,
        "memory_free": 45372 * 2**20,
        "memory_ours": 0,
        "compute_capability": capability,
        "driver_version": driver,
        "mig": mig,
    }


def smi(path="/usr/bin/nvidia-smi", rc=0, problem="", library=DRIVER):
    return {"path": path, "rc": rc, "problem": problem, "library_version": library}


def bound(*drivers):
    """PCI devices with these drivers."""
    return [{"slot": f"0000:0{n}:00.0", "driver": driver} for n, driver in enumerate(drivers, 1)]


def nodes(count):
    return ["/dev/nvidia-uvm", *[f"/dev/nvidia{n}" for n in range(count)], "/dev/nvidiactl"]


HOST = {
    "pci": bound("nvidia", "nvidia"),
    "kernel_version": DRIVER,
    "nodes": nodes(2),
    "smi": smi(),
    "gpus": [card(0), card(1)],
    "mig_devices": [],
    "snap": False,
    "docker_version": "26.1.5",
}
# What is found when nvidia-smi was not run.
UNASKED = {"smi": smi(rc=-1, library=""), "gpus": []}
WANTED = {"sharing": False, "cuda": "auto", "architectures": [], "gpu_mode": "cdi"}


def instances(*gpus):
    """Instances with these GPUs, called one, two, three."""
    names = ("one", "two", "three")
    return [
        {"name": names[n], "port": 20080 + n, "gpus": wanted, "models": ["x"]}
        for n, wanted in enumerate(gpus)
    ]


ONE, TWO = "llm_instances[0] (name one)", "llm_instances[1] (name two)"
L40S = f"0 (NVIDIA L40S, {UUIDS[0]})"
BOTH = f"{L40S}, 1 (NVIDIA L40S, {UUIDS[1]})"


@pytest.fixture
def problems():
    """Returns a function: what is different from a good host -> the problems."""

    def check(host=None, gpus=([0],), **wanted):
        return gpu_problems(copy.deepcopy({**HOST, **(host or {})}), instances(*gpus), {**WANTED, **wanted})

    return check


@pytest.mark.parametrize(
    "gpus",
    [
        ([0],),
        ([1],),
        ([0], [1]),
        ([0, UUIDS[1]],),
        ("all",),
        ([UUIDS[0]], [UUIDS[1]]),
        ([0], []),
    ],
)
def test_a_good_host_has_no_problem(problems, gpus):
    assert problems(gpus=gpus) == []


def test_a_host_whose_bus_is_hidden_has_no_problem(problems):
    assert problems({"pci": []}) == []


def test_nothing_is_asked_of_a_host_without_gpus_to_give(problems):
    bare = {"pci": [], "kernel_version": "", "nodes": [], **UNASKED, "snap": True}
    assert problems(bare, gpus=([], [])) == []


def test_no_gpu_at_all(problems):
    bare = {"pci": [], "kernel_version": "", "nodes": [], "smi": smi("", -1, "", ""), "gpus": []}
    assert problems(bare, gpus=([0], [], "all")) == [
        "no NVIDIA GPU is on this host's PCI bus, and llm_instances asks for one (one, three):"
        " set gpus: [], or pass a GPU through to this machine"
    ]


NOT_LOADED = (
    "NVIDIA's kernel module is not loaded: install NVIDIA's driver, or see what `modprobe nvidia` and `dmesg`"
    " say (not built for this kernel, or not signed for Secure Boot)"
)


@pytest.mark.parametrize(
    ("drivers", "kernel", "messages"),
    [
        (
            ["nouveau", "nouveau"],
            "",
            [
                "NVIDIA device 0000:01:00.0 and 0000:02:00.0: bound to nouveau, which cannot compute;"
                " blacklist nouveau (/etc/modprobe.d), install NVIDIA's driver and reboot the host"
            ],
        ),
        (
            ["vfio-pci"],
            DRIVER,
            [
                "NVIDIA device 0000:01:00.0: bound to vfio-pci, which passes it through to a virtual machine;"
                " deploy to that machine, or bind it to NVIDIA's driver"
            ],
        ),
        (
            ["nvidiafb"],
            "",
            ["NVIDIA device 0000:01:00.0: bound to nvidiafb; bind it to NVIDIA's driver"],
        ),
        (
            [""],
            DRIVER,
            [
                "NVIDIA device 0000:01:00.0: bound to no driver, although NVIDIA's kernel module 550.54.15 is"
                " loaded; `dmesg | grep NVRM` says why (often this version does not support the GPU)"
            ],
        ),
        (["", ""], "", [NOT_LOADED]),
        (["nvidia"], "", [NOT_LOADED]),
    ],
)
def test_a_gpu_without_its_driver_is_one_problem(problems, drivers, kernel, messages):
    host = {"pci": bound(*drivers), "kernel_version": kernel, "nodes": [], **UNASKED}
    assert problems(host, gpus=([0], [1])) == messages


def test_one_line_for_each_driver_that_is_not_nvidias(problems):
    host = {"pci": bound("nouveau", "vfio-pci"), "kernel_version": "", "nodes": [], **UNASKED}
    assert [line.partition(";")[0].rpartition(" ")[2] for line in problems(host)] == ["compute", "machine"]


@pytest.mark.parametrize(
    ("library", "shown"), [("550.144", "550.144"), ("", "of another version"), ("550.54", "550.54")]
)
def test_kernel_module_and_libraries_of_different_versions(problems, library, shown):
    said = "Failed to initialize NVML: Driver/library version mismatch"
    assert problems({"smi": smi(rc=18, problem=said, library=library), "gpus": []}) == [
        f"NVIDIA's kernel module is 550.54.15, but the driver's libraries are {shown}: reboot the host"
        " (usually an unattended upgrade has replaced the driver under the running kernel)"
    ]


def test_versions_are_compared_as_far_as_both_are_written(problems):
    assert problems({"smi": smi(library="550.54")}) == []
    assert len(problems({"smi": smi(library="550.144")})) == 1
    assert len(problems({"smi": smi(library="580.65.06")})) == 1


@pytest.mark.parametrize(
    ("there", "missing", "commands"),
    [
        (
            [],
            "/dev/nvidiactl, /dev/nvidia0, /dev/nvidia1, /dev/nvidia-uvm",
            "nvidia-modprobe -c 255 -c 0 -c 1 && nvidia-modprobe -u -c 0",
        ),
        (["/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia-uvm"], "/dev/nvidia1", "nvidia-modprobe -c 1"),
        (["/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia-uvm"], "/dev/nvidiactl", "nvidia-modprobe -c 255"),
    ],
)
def test_missing_device_nodes_come_with_the_commands_that_make_them(problems, there, missing, commands):
    assert problems({"nodes": there, **UNASKED}) == [
        f"device nodes are missing ({missing}): run `{commands}`, and enable nvidia-persistenced so that they"
        " are there after a boot"
    ]


def test_unified_memory_is_missed_although_nvidia_smi_works(problems):
    assert problems({"nodes": nodes(2)[1:]}, gpus=([2],)) == [
        "device nodes are missing (/dev/nvidia-uvm): run `nvidia-modprobe -u -c 0`, and enable"
        " nvidia-persistenced so that they are there after a boot",
        f"{ONE}: gpus has 2, which this host does not have (it has {BOTH}): correct gpus",
    ]


def test_numbers_of_device_nodes_may_have_gaps(problems):
    assert problems({"nodes": ["/dev/nvidia1", "/dev/nvidia2", "/dev/nvidiactl", "/dev/nvidia-uvm"]}) == []


def test_nvidia_smi_is_missing(problems):
    assert problems({"smi": smi("", -1, "", ""), "gpus": []}) == [
        "nvidia-smi is not on this host: install that of the driver's version 550.54.15 (Ubuntu: package"
        " nvidia-utils-550 or nvidia-utils-550-server, Debian: nvidia-smi)"
    ]


@pytest.mark.parametrize(
    ("said", "mend"),
    [
        (
            "No devices were found",
            "see `dmesg | grep NVRM`, then reboot the host or install NVIDIA's driver again",
        ),
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
            "see `dmesg | grep NVRM`, then reboot the host or install NVIDIA's driver again",
        ),
        (
            "Unable to determine the device handle for GPU 0000:01:00.0: Unknown Error",
            "a GPU has fallen off the bus, `dmesg | grep Xid` says why; reboot the host",
        ),
    ],
)
def test_nvidia_smi_fails(problems, said, mend):
    host = {"smi": smi(rc=9, problem=said, library=""), "gpus": []}
    assert problems(host, gpus=([0], [0])) == [f"nvidia-smi fails ({said}): {mend}"]


def test_a_warning_of_nvidia_smi_beside_its_gpus_is_no_problem(problems):
    assert problems({"smi": smi(rc=14, problem="WARNING: infoROM is corrupted at gpu 0000:01:00.0")}) == []


def test_a_driver_so_old_that_nvidia_smi_does_not_know_the_question(problems):
    said = 'Field "compute_cap" is not a valid field to query.'
    host = {"kernel_version": "470.256.02", "smi": smi(rc=2, problem=said, library=""), "gpus": []}
    assert problems(host) == ["CUDA 12 needs driver ≥ 525, this host has 470.256.02: upgrade NVIDIA's driver"]


@pytest.mark.parametrize(
    ("gpus", "shown"),
    [
        ([2], "2"),
        ([0, 7], "7"),
        ([2, UUIDS[2]], f"2 and {UUIDS[2]}"),
        (["GPU-1"], "GPU-1"),
        ([MIGS[0]], MIGS[0]),
    ],
)
def test_a_gpu_that_is_not_there_is_named_with_those_that_are(problems, gpus, shown):
    assert problems(gpus=(gpus,)) == [
        f"{ONE}: gpus has {shown}, which this host does not have (it has {BOTH}): correct gpus"
    ]


def test_a_gpu_that_is_not_there_may_have_another_driver(problems):
    host = {"pci": bound("nvidia", "vfio-pci", ""), "gpus": [card(0)]}
    assert problems(host, gpus=([], [1])) == [
        f"{TWO}: gpus has 1, which this host does not have (it has {L40S}; 0000:02:00.0 is bound to vfio-pci;"
        " 0000:03:00.0 is bound to no driver): correct gpus"
    ]
    assert problems(host) == []


FALLEN = (
    f"nvidia-smi lists {L40S}, but 2 GPUs are bound to NVIDIA's driver (0000:01:00.0, 0000:02:00.0): one has"
    " fallen off the bus or does not start, `dmesg | grep -e Xid -e NVRM` says why; reboot the host, or name"
    " the others by UUID"
)


@pytest.mark.parametrize(
    ("gpus", "messages"),
    [
        ([0], [FALLEN]),
        ([1], [FALLEN]),
        ("all", [FALLEN]),
        ([UUIDS[1]], [FALLEN]),
        ([UUIDS[0]], []),
        (
            [5],
            [FALLEN, f"{ONE}: gpus has 5, which this host does not have (it has {L40S}): correct gpus"],
        ),
    ],
)
def test_a_gpu_that_has_fallen_off_the_bus(problems, gpus, messages):
    assert problems({"gpus": [card(0)]}, gpus=(gpus,)) == messages


MIG_HOST = {
    "gpus": [card(0), card(1, "NVIDIA A100", "8.0", mig=True)],
    "mig_devices": [{"uuid": uuid, "gpu": 1} for uuid in MIGS],
}


@pytest.mark.parametrize("gpus", [[1], [UUIDS[1]], "all"])
def test_a_divided_gpu_is_not_given_as_a_whole(problems, gpus):
    assert problems(MIG_HOST, gpus=(gpus,)) == [
        f"{ONE}: GPU 1 (NVIDIA A100) is in MIG mode and cannot be used as a whole: name one of its MIG"
        f" devices ({', '.join(MIGS)}), or turn the mode off (nvidia-smi -i 1 -mig 0)"
    ]


def test_a_divided_gpu_without_devices(problems):
    assert problems({**MIG_HOST, "mig_devices": []}, gpus=([1],)) == [
        f"{ONE}: GPU 1 (NVIDIA A100) is in MIG mode and cannot be used as a whole: make MIG devices"
        " (nvidia-smi mig -cgi) and name one by UUID, or turn the mode off (nvidia-smi -i 1 -mig 0)"
    ]


def test_mig_devices_are_given_one_by_one(problems):
    assert problems(MIG_HOST, gpus=([MIGS[0]], [MIGS[1]], [0])) == []
    assert problems(MIG_HOST, gpus=([MIGS[0]], [MIGS[0]])) == [
        f"{TWO}: gpus has {MIGS[0]}, which {ONE} has too: give each instance GPUs of its own,"
        " or set llm_gpu_sharing: true"
    ]


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        ([0], [0], "GPU 0 (NVIDIA L40S)"),
        ([0], [UUIDS[0], 1], "GPU 0 (NVIDIA L40S)"),
        ("all", [1], "GPU 1 (NVIDIA L40S)"),
        ([0, 1], "all", "GPU 0 (NVIDIA L40S) and GPU 1 (NVIDIA L40S)"),
        ("all", "all", "GPU 0 (NVIDIA L40S) and GPU 1 (NVIDIA L40S)"),
    ],
)
def test_one_gpu_in_two_instances_names_both(problems, first, second, shown):
    assert problems(gpus=(first, second)) == [
        f"{TWO}: gpus has {shown}, which {ONE} has too: give each instance GPUs of its own,"
        " or set llm_gpu_sharing: true"
    ]
    assert problems(gpus=(first, second), sharing=True) == []


def test_every_pair_of_instances_is_named(problems):
    assert len(problems(gpus=([0], [0], [0]))) == 3


@pytest.mark.parametrize("sharing", [False, True])
def test_one_gpu_by_both_its_names_in_one_instance(problems, sharing):
    assert problems(gpus=([0, UUIDS[0]],), sharing=sharing) == [
        f"{ONE}: gpus has GPU 0 (NVIDIA L40S) twice, as 0 and as {UUIDS[0]}; name it once"
    ]


def test_docker_from_snap(problems):
    assert problems({"snap": True, "docker_version": "20.10.24"}) == [
        "Docker comes from snap, which keeps it from NVIDIA's toolkit: remove it (snap remove docker) and run"
        " again, the distribution's Docker is then installed"
    ]


@pytest.mark.parametrize("version", ["20.10.24", "25.0.5", "26.0.0"])
def test_a_docker_that_does_not_read_the_cdi_specifications(problems, version):
    assert problems({"docker_version": version}) == [
        f"llamacpp_server_gpu_mode: cdi needs Docker ≥ 26.1, this host has {version}:"
        " set llamacpp_server_gpu_mode: gpus, or upgrade Docker"
    ]
    assert problems({"docker_version": version}, gpu_mode="gpus") == []


@pytest.mark.parametrize("version", ["", "26.1.0", "27.0.1", "29.7.2+dfsg"])
def test_a_docker_that_will_do(problems, version):
    assert problems({"docker_version": version}) == []


def test_the_cuda_that_was_chosen_is_checked_for_the_requested_gpus_only(problems):
    host = {"gpus": [card(0), card(1, "Tesla K80", "3.7")]}
    assert problems(host, gpus=([0],)) == []
    assert problems(host, gpus=([0], [1])) == [
        "GPU 1 (Tesla K80) has compute capability 3.7, and CUDA 12 needs ≥ 5.0: it is not supported,"
        " take it out of gpus"
    ]
    assert problems(cuda=13) == [
        "llm_cuda: 13 needs driver ≥ 580, this host has 550.54.15: set llm_cuda: 12 (or auto), or upgrade"
        " NVIDIA's driver"
    ]
    assert len(problems(architectures=["9.0"])) == 1


def test_independent_problems_are_reported_together(problems):
    found = problems({"docker_version": "20.10.24"}, gpus=([0], [0], [9]), cuda="13")
    assert len(found) == 4
    assert all("\n" not in line for line in found)


V100, T4, H100, B200 = (
    ("Tesla V100", "7.0"),
    ("Tesla T4", "7.5"),
    ("NVIDIA H100", "9.0"),
    ("NVIDIA B200", "10.0"),
)


@pytest.mark.parametrize(
    ("model", "driver", "toolkit"),
    [
        (T4, "580.65.06", "13"),
        (H100, "581.0", "13"),
        (B200, "580.65.06", "13"),
        (V100, "580.65.06", "12"),
        (T4, "579.99", "12"),
        (("GTX 750", "5.0"), "525.60.13", "12"),
        (H100, "525.60.13", "12"),
    ],
)
def test_the_newest_cuda_that_gpu_and_driver_can(model, driver, toolkit):
    gpu = card(0, *model, driver)
    expected = {"toolkit": toolkit, "architectures": [model[1]], "problems": []}
    assert cuda_build([gpu]) == expected
    assert cuda_build([gpu], toolkit) == expected
    assert cuda_build([gpu], int(toolkit)) == expected


def test_every_gpu_must_be_able_to_run_cuda_13():
    new = [card(0, *H100, "580.65.06"), card(1, *V100, "580.65.06")]
    assert cuda_build(new) == {"toolkit": "12", "architectures": ["7.0", "9.0"], "problems": []}


def test_architectures_are_those_of_the_gpus_each_once_in_numerical_order():
    gpus = [card(n, "x", capability, "580.65.06") for n, capability in enumerate(["10.0", "8.9", "8.9"])]
    assert cuda_build(gpus)["architectures"] == ["8.9", "10.0"]
    assert cuda_build(gpus, architectures=["8.9", "8.0", "10.0"])["architectures"] == ["8.0", "8.9", "10.0"]


@pytest.mark.parametrize(
    ("model", "driver", "wanted", "message"),
    [
        (
            T4,
            "515.86.01",
            "auto",
            "CUDA 12 needs driver ≥ 525, this host has 515.86.01: upgrade NVIDIA's driver",
        ),
        (
            T4,
            "515.86.01",
            "12",
            "CUDA 12 needs driver ≥ 525, this host has 515.86.01: upgrade NVIDIA's driver",
        ),
        (
            T4,
            "515.86.01",
            "13",
            "CUDA 12 needs driver ≥ 525, this host has 515.86.01: upgrade NVIDIA's driver",
        ),
        (
            T4,
            "579.99",
            "13",
            "llm_cuda: 13 needs driver ≥ 580, this host has 579.99: set llm_cuda: 12 (or auto), or upgrade"
            " NVIDIA's driver",
        ),
        (
            B200,
            "570.86",
            "auto",
            "GPU 0 (NVIDIA B200) has compute capability 10.0, which needs CUDA 13 and so driver ≥ 580,"
            " this host has 570.86: upgrade NVIDIA's driver",
        ),
        (
            B200,
            "570.86",
            "12",
            "GPU 0 (NVIDIA B200) has compute capability 10.0, which needs CUDA 13 and so driver ≥ 580,"
            " this host has 570.86: upgrade NVIDIA's driver and set llm_cuda: 13 (or auto)",
        ),
        (
            B200,
            "580.65.06",
            "12",
            "llm_cuda: 12 needs compute capability ≤ 9.0, GPU 0 (NVIDIA B200) has 10.0: set llm_cuda: 13"
            " (or auto)",
        ),
        (
            V100,
            "580.65.06",
            "13",
            "llm_cuda: 13 needs compute capability ≥ 7.5, GPU 0 (Tesla V100) has 7.0: set llm_cuda: 12"
            " (or auto)",
        ),
        (
            ("Tesla K80", "3.7"),
            "525.60.13",
            "auto",
            "GPU 0 (Tesla K80) has compute capability 3.7, and CUDA 12 needs ≥ 5.0: it is not supported,"
            " take it out of gpus",
        ),
        (
            ("x", ""),
            "550.54.15",
            "auto",
            "nvidia-smi does not tell the compute capability of GPU 0 (x): set"
            ' llamacpp_image_cuda_architectures, like ["8.9"]',
        ),
        (T4, "580.65.06", "11", "llm_cuda is 11; it must be auto, 12 or 13"),
    ],
)
def test_each_problem_of_the_cuda_has_its_message(model, driver, wanted, message):
    assert cuda_build([card(0, *model, driver)], wanted)["problems"] == [message]


def test_gpus_that_no_cuda_has_in_common():
    gpus = [card(0, *V100, "580.65.06"), card(1, *B200, "580.65.06")]
    assert cuda_build(gpus)["problems"] == [
        "GPU 0 (Tesla V100) needs CUDA 12 (compute capability 7.0 < 7.5) and GPU 1 (NVIDIA B200) needs"
        " CUDA 13 (compute capability 10.0 > 9.0), but a host has one image: take one of them out of gpus"
    ]


ARCHITECTURES = "llamacpp_image_cuda_architectures has"


@pytest.mark.parametrize(
    ("driver", "architectures", "message"),
    [
        (DRIVER, ["89"], f'{ARCHITECTURES} 89; it must be a compute capability, like "8.9"'),
        (DRIVER, ["native"], f'{ARCHITECTURES} native; it must be a compute capability, like "8.9"'),
        (
            DRIVER,
            ["8.9", "12.0"],
            f"{ARCHITECTURES} 12.0, which CUDA 12 does not compile for: take it out, or set llm_cuda: 13",
        ),
        (
            "580.65.06",
            ["7.0", "8.9"],
            f"{ARCHITECTURES} 7.0, which CUDA 13 does not compile for: take it out, or set llm_cuda: 12",
        ),
        (
            DRIVER,
            ["7.5", "9.0"],
            f"{ARCHITECTURES} 7.5, 9.0, whose code does not run on GPU 0 (NVIDIA L40S): add"
            ' "8.9", or leave it empty',
        ),
    ],
)
def test_each_problem_of_the_architectures_has_its_message(driver, architectures, message):
    assert cuda_build([card(driver=driver)], "auto", architectures)["problems"] == [message]


def test_code_for_a_later_minor_version_does_not_run():
    assert cuda_build([card(0, "NVIDIA A100", "8.0")], "auto", ["8.6"])["problems"] == [
        f'{ARCHITECTURES} 8.6, whose code does not run on GPU 0 (NVIDIA A100): add "8.0", or leave it empty'
    ]


@pytest.mark.parametrize("architectures", [["8.9"], ["8.0"], [8.6], ["9.0", "8.9"]])
def test_code_for_an_earlier_minor_version_runs(architectures):
    assert cuda_build([card()], "auto", architectures)["problems"] == []


def test_without_a_gpu_the_architectures_have_to_be_given():
    assert cuda_build([], "auto", ["8.9"]) == {"toolkit": "12", "architectures": ["8.9"], "problems": []}
    assert cuda_build([], 13) == {
        "toolkit": "13",
        "architectures": [],
        "problems": ['no GPU is known to compile for: set llamacpp_image_cuda_architectures, like ["8.9"]'],
    }


def test_what_nvidia_smi_does_not_tell_of_the_driver_is_not_held_against_it():
    gpu = card(driver="")
    assert cuda_build([gpu], "auto") == {"toolkit": "12", "architectures": ["8.9"], "problems": []}
    assert cuda_build([gpu], "13")["problems"] == []


@pytest.mark.parametrize(
    ("gpus", "indexes"),
    [
        ("all", [0, 1, 2]),
        ([], []),
        ([1], [1]),
        ([2, 0], [0, 2]),
        ([UUIDS[1]], [1]),
        ([1, UUIDS[1]], [1]),
        ([MIGS[0]], [1]),
        ([MIGS[0], MIGS[1]], [1]),
        ([7, "GPU-1", "0", True], []),
        (None, []),
    ],
)
def test_the_gpus_that_an_instance_names(gpus, indexes):
    found = known_gpus(
        {
            "gpus": [card(0), card(1, mig=True), card(2)],
            "mig_devices": [{"uuid": uuid, "gpu": 1} for uuid in MIGS],
        }
    )
    assert [gpu["index"] for gpu in resolve_gpus(gpus, found)] == indexes


def test_the_gpus_of_a_host_know_their_mig_devices():
    gpus = [card(0), card(1)]
    found = {"gpus": gpus, "mig_devices": [{"uuid": MIGS[0], "gpu": 1}]}
    assert known_gpus(found) == [{**gpus[0], "mig_devices": []}, {**gpus[1], "mig_devices": [MIGS[0]]}]
    assert resolve_gpus([1], gpus) == [gpus[1]]  # without them, as older facts may be


def test_the_gpus_that_any_instance_names():
    gpus = [card(0), card(1), card(2)]
    named = requested_gpus(instances([2], [], [2, 0]), gpus)
    assert [gpu["index"] for gpu in named] == [0, 2]
    assert requested_gpus(instances("all"), gpus) == gpus


@pytest.mark.parametrize(
    ("backend", "gpus", "driver", "variant"),
    [
        ("auto", [], "580.65.06", "cpu"),
        ("cpu", [0], "580.65.06", "cpu"),
        ("auto", [0], "580.65.06", "cuda13"),
        ("auto", "all", DRIVER, "cuda12"),
        ("cuda", [], "580.65.06", "cuda12"),
    ],
)
def test_the_image_that_a_host_needs(backend, gpus, driver, variant):
    assert image_variant(instances(gpus), backend, [card(driver=driver)]) == variant
    assert image_variant(instances([0]), "auto", [card(driver="580.65.06")], 12) == "cuda12"


@pytest.mark.parametrize(
    "junk", [None, 7, "x", {}, [None], ["x"], [{}], [{"gpus": 7}], [{"gpus": None}], [{"gpus": "some"}]]
)
def test_input_that_is_still_to_be_checked_asks_for_nothing(junk):
    assert asks_for_gpus(junk) == []
    assert image_variant(junk, "auto", []) == "cpu"
