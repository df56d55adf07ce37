"""Every reason why a host cannot give its instances their GPUs: one clear error, and nothing is touched."""

from __future__ import annotations

import pytest
from conftest import UUIDS

FIRST, SECOND = UUIDS.values()
MIG = "MIG-00000000-0000-4000-8000-000000000010"


def preflight(play, **variables):
    """Runs what site.yml always does first, and nothing of what it does after that."""
    return play("site.yml", "--tags", "none", **variables)


def driver(version: str):
    """An edit of the machine: another driver, module and libraries alike."""
    return lambda state: state.update(driver=version, library=version)


def gpu(index: int, **changes):
    """An edit of the machine: what is different about one GPU."""
    return lambda state: state["gpus"][index].update(changes)


# What is wrong with the machine, and what the one error must say: the reason and the mend.
BROKEN_MACHINES = {
    "no GPU": (
        lambda state: state.update(pci=False),
        ["no NVIDIA GPU is on this host's PCI bus", "llamacpp, second", "gpus: []"],
    ),
    "nouveau has the GPUs": (
        lambda state: state.update(nouveau=True),
        ["0000:01:00.0 and 0000:02:00.0", "nouveau", "blacklist", "reboot"],
    ),
    "driver not loaded": (
        lambda state: state.update(driver=""),
        ["kernel module is not loaded", "modprobe nvidia"],
    ),
    "driver upgraded without a reboot": (
        lambda state: state.update(library="550.144.03"),
        ["550.54.15", "550.144", "reboot the host"],
    ),
    "no device nodes": (
        lambda state: state.update(nodes=False),
        ["/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia-uvm", "nvidia-modprobe", "nvidia-persistenced"],
    ),
    "nvidia-smi fails": (
        lambda state: state.update(
            smi_failure={"rc": 255, "message": "Failed to initialize NVML: Unknown Error"}
        ),
        ["nvidia-smi fails", "Failed to initialize NVML: Unknown Error", "dmesg | grep NVRM"],
    ),
    "GPU does not answer": (
        lambda state: state.update(
            smi_failure={
                "rc": 255,
                "message": "Unable to determine the device handle for GPU0000:02:00.0: Unknown Error",
            }
        ),
        ["GPU0000:02:00.0", "fallen off the bus", "Xid", "reboot the host"],
    ),
    "GPU has fallen off the bus": (
        gpu(1, lost=True),
        [f"0 (NVIDIA L40S, {FIRST})", "2 GPUs", "0000:02:00.0", "Xid", "reboot the host"],
    ),
    "GPU in MIG mode": (
        gpu(0, mig="Enabled", mig_devices=[MIG]),
        ["llm_instances[0] (name llamacpp)", "MIG mode", MIG, "nvidia-smi -i 0 -mig 0"],
    ),
    "driver too old": (
        driver("515.105.01"),
        ["CUDA 12 needs driver ≥ 525", "515.105.01", "upgrade NVIDIA's driver"],
    ),
    # Its nvidia-smi does not know one of the fields that it is asked for.
    "driver far too old": (
        driver("470.256.02"),
        ["CUDA 12 needs driver ≥ 525", "470.256.02", "upgrade NVIDIA's driver"],
    ),
    "GPU too old": (
        gpu(0, compute_cap="3.5"),
        ["GPU 0 (NVIDIA L40S)", "compute capability 3.5", "≥ 5.0", "gpus"],
    ),
    "GPU too small for the model": (
        gpu(0, memory_total_mib=256),
        ["llm_instances[0] (name llamacpp)", "smollm2 needs", "GPU 0 (NVIDIA L40S)", "252 MiB free"],
    ),
}


@pytest.mark.parametrize("case", BROKEN_MACHINES)
def test_a_broken_machine_is_one_clear_error_and_nothing_is_touched(play, untouched, machine, case):
    edit, must_say = BROKEN_MACHINES[case]
    machine(edit)
    run = preflight(play)
    assert_refused(run, must_say)


# What the operator did wrong, as the GPUs of both instances and other variables, and what the error must say.
BAD_INPUT = {
    "index that is not there": (
        [[7], [SECOND]],
        {},
        ["llm_instances[0] (name llamacpp)", "7", f"0 (NVIDIA L40S, {FIRST})", f"1 (NVIDIA L40S, {SECOND})"],
    ),
    "UUID that is not there": (
        [[0], ["GPU-00000000-0000-4000-8000-00000000beef"]],
        {},
        ["llm_instances[1] (name second)", "00000000beef", SECOND],
    ),
    "one GPU for two instances": (
        [[0], [FIRST]],
        {},
        [
            "llm_instances[1] (name second)",
            "GPU 0 (NVIDIA L40S)",
            "llm_instances[0]",
            "llm_gpu_sharing: true",
        ],
    ),
    "all GPUs and one of them": (
        ["all", [1]],
        {},
        ["llm_instances[1] (name second)", "GPU 1 (NVIDIA L40S)", "llm_gpu_sharing: true"],
    ),
    "one GPU by two names": (
        [[0, FIRST], [1]],
        {},
        ["llm_instances[0] (name llamacpp)", "GPU 0 (NVIDIA L40S)", "twice", FIRST],
    ),
    "CUDA that the driver cannot": (
        [[0], [1]],
        {"llm_cuda": 13},
        ["llm_cuda: 13", "driver ≥ 580", "550.54.15", "llm_cuda: 12"],
    ),
    "GPUs on the CPU backend": (
        [[0], [1]],
        {"llm_backend": "cpu"},
        ["llm_instances[0] (name llamacpp)", "llm_backend", "gpus: []"],
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_gpus_that_cannot_be_given_are_one_clear_error_and_nothing_is_touched(
    play, untouched, with_gpus, case
):
    gpus, variables, must_say = BAD_INPUT[case]
    run = preflight(play, llm_instances=with_gpus(*gpus), **variables)
    assert_refused(run, must_say)


def assert_refused(run, must_say: list[str]) -> None:
    """Checks that a run ended with one error, which says all this, before it changed anything."""
    assert run.rc != 0, run.output
    assert run.count("changed") == 0, run.output
    assert run.output.count("fatal:") == 1, run.output
    for words in must_say:
        assert words in run.error, f"{words!r} is not in: {run.error}"


def test_a_model_that_is_too_large_is_refused_with_what_would_fit(play, untouched, machine, variables):
    # 8192 tokens of context need about 1000 MiB, 2048 about 800.
    machine(gpu(0, memory_total_mib=900))
    smollm2, gemma3 = variables["llm_models"]
    large = smollm2 | {"settings": smollm2["settings"] | {"n_ctx": 8192}}
    run = preflight(play, llm_models=[large, gemma3])
    assert_refused(run, ["smollm2", "n_ctx", "n_gpu_layers"])
    kept = preflight(play)
    assert kept.rc == 0, kept.output


@pytest.mark.parametrize("check", ["warn", "off"])
def test_a_model_that_is_too_large_is_let_through_when_told_to(play, untouched, machine, check):
    machine(gpu(0, memory_total_mib=256))
    run = preflight(play, llm_vram_check=check)
    assert run.rc == 0, run.output
    assert ("Warning: models that do not fit" in run.output) == (check == "warn"), run.output


def test_one_gpu_for_two_instances_is_accepted_when_allowed(play, untouched, with_gpus):
    run = preflight(play, llm_instances=with_gpus([0], [FIRST]), llm_gpu_sharing=True)
    assert run.rc == 0, run.output


@pytest.mark.parametrize(
    ("case", "edit", "gpus"),
    [
        ("the GPUs that are left, by UUID", gpu(0, lost=True), [[], [SECOND]]),
        ("a MIG device, by UUID", gpu(0, mig="Enabled", mig_devices=[MIG]), [[MIG], [1]]),
        ("a machine without GPUs, for the CPU", lambda state: state.update(pci=False), [[], []]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_be_given_is_given(play, untouched, machine, with_gpus, case, edit, gpus):
    machine(edit)
    run = preflight(play, llm_instances=with_gpus(*gpus))
    assert run.rc == 0, run.output


def test_a_second_run_counts_the_memory_of_our_own_servers_as_free(play, untouched, machine):
    # Large enough for the model once, not twice; the servers that run use all that is left.
    machine(gpu(0, memory_total_mib=900))
    run = preflight(play)
    assert run.rc == 0, run.output
