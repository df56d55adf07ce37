"""Filters about a host's GPUs: why it cannot give them, which ones are asked for, which CUDA fits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any, NamedTuple

Gpu = dict[str, Any]


class Cuda(NamedTuple):
    """What a major version of CUDA needs: driver (major version) and compute capabilities."""

    driver: int
    lowest: tuple[int, int]
    highest: tuple[int, int]


# Sources: CUDA Compatibility guide (drivers), release notes of 12.4 (Debian's package) and 13.0
# (compute capabilities that nvcc compiles for).
CUDA = {"12": Cuda(525, (5, 0), (9, 0)), "13": Cuda(580, (7, 5), (99, 9))}

# The NVIDIA toolkit writes CDI specifications 0.7.0 since 1.19.1, which Docker reads from here on.
DOCKER_WITH_CDI = (26, 1)

# What nvidia-smi says of a GPU that no longer answers.
LOST = re.compile(r"GPU is lost|device handle|fallen off", re.IGNORECASE)


def asks_for_gpus(instances: object) -> list[tuple[str, dict[str, Any]]]:
    """Return the instances with GPUs, each with its name in messages: llm_instances[0] (name one).

    Argument: instances, llm_instances, also before it has been checked.
    """
    entries = instances if isinstance(instances, list) else []
    return [
        (f"llm_instances[{index}] (name {entry.get('name')})", entry)
        for index, entry in enumerate(entries)
        if isinstance(entry, dict) and (entry.get("gpus") == "all" or _list(entry.get("gpus")))
    ]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def known_gpus(gpu: dict[str, Any]) -> list[Gpu]:
    """Return the host's GPUs, each with the UUIDs of its MIG devices as ``mig_devices``.

    Argument: gpu, what the module gpu_facts found.
    """
    return [
        {**entry, "mig_devices": [mig["uuid"] for mig in gpu["mig_devices"] if mig["gpu"] == entry["index"]]}
        for entry in gpu["gpus"]
    ]


def resolve_gpus(gpus: object, found: list[Gpu]) -> list[Gpu]:
    """Return the GPUs that an instance's ``gpus`` names, in the order of the host, each once.

    Args:
        gpus: indexes and UUIDs, or "all"; the UUID of a MIG device names its GPU. One that the host
            does not have is left out.
        found: the host's GPUs, see known_gpus.
    """
    if gpus == "all":
        return list(found)
    return [gpu for gpu in found if any(_names(name, gpu) for name in _list(gpus))]


def _names(name: object, gpu: Gpu) -> bool:
    """Whether an entry of ``gpus`` names a GPU or one of its MIG devices."""
    if isinstance(name, bool):
        return False
    return name in (gpu["index"], gpu["uuid"], *gpu.get("mig_devices", []))


def requested_gpus(instances: object, found: list[Gpu]) -> list[Gpu]:
    """Return the GPUs that any instance names, in the order of the host, each once.

    Args:
        instances: llm_instances.
        found: the host's GPUs, see known_gpus.
    """
    names = [entry["gpus"] for _, entry in asks_for_gpus(instances)]
    return [gpu for gpu in found if any(resolve_gpus(gpus, [gpu]) for gpus in names)]


def image_variant(instances: object, backend: str, found: list[Gpu], cuda: str | int = "auto") -> str:
    """Return which image a host needs: ``cpu``, ``cuda12`` or ``cuda13``.

    Args:
        instances: llm_instances.
        backend: llm_backend.
        found: the host's GPUs, see known_gpus.
        cuda: llm_cuda.
    """
    if backend == "cpu" or (backend == "auto" and not asks_for_gpus(instances)):
        return "cpu"
    return f"cuda{cuda_build(requested_gpus(instances, found), cuda)['toolkit']}"


def cuda_build(
    gpus: list[Gpu], wanted: str | int = "auto", architectures: Iterable[Any] = ()
) -> dict[str, Any]:
    """Return how the image has to be built for GPUs, and why it cannot be.

    Args:
        gpus: the GPUs that are asked for.
        wanted: ``auto`` (13 where every GPU and its driver can, else 12), ``12`` or ``13``.
        architectures: compute capabilities to compile for, like "8.9"; empty for those of the GPUs.

    Returns:
        A dict of ``toolkit`` ("12" or "13"), ``architectures`` (list of str, sorted) and
        ``problems`` (list of str, one line each).
    """
    wanted = str(wanted)
    problems = []
    if wanted not in ("auto", *CUDA):
        problems.append(f"llm_cuda is {wanted}; it must be auto, 12 or 13")
        wanted = "auto"
    toolkit = wanted
    if wanted == "auto":
        toolkit = "13" if gpus and all(_runs_13(gpu) for gpu in gpus) else "12"
    refused = [*_capability_problems(gpus, wanted), *_driver_problems(gpus, wanted)]
    own = {gpu["compute_capability"] for gpu in gpus if _capability(gpu)}
    given = [str(entry) for entry in architectures]
    if not refused:
        refused = list(_architecture_problems(gpus, toolkit, given))
    return {
        "toolkit": toolkit,
        "architectures": sorted(set(given) or own, key=lambda text: (_numbers(text), text)),
        "problems": [*problems, *refused],
    }


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers in a version, to compare by: "550.54.15" is (550, 54, 15)."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _capability(gpu: Gpu) -> tuple[int, ...]:
    """Return the compute capability as numbers; empty when nvidia-smi does not tell it."""
    return _numbers(gpu["compute_capability"])


def _driver(gpus: list[Gpu]) -> str:
    """Return the version of the driver; empty when nvidia-smi does not tell it."""
    return next((gpu["driver_version"] for gpu in gpus if _numbers(gpu["driver_version"])), "")


def _too_old(driver: str, cuda: str) -> bool:
    return bool(driver) and _numbers(driver)[0] < CUDA[cuda].driver


def _runs_13(gpu: Gpu) -> bool:
    driver = _numbers(gpu["driver_version"])
    return bool(driver) and driver[0] >= CUDA["13"].driver and _capability(gpu) >= CUDA["13"].lowest


def _capability_problems(gpus: list[Gpu], wanted: str) -> Iterator[str]:
    """Yield the problems of compute capabilities that no driver mends."""
    known = [gpu for gpu in gpus if _capability(gpu)]
    lost = [gpu for gpu in known if _capability(gpu) < CUDA["12"].lowest]
    old = [gpu for gpu in known if CUDA["12"].lowest <= _capability(gpu) < CUDA["13"].lowest]
    new = [gpu for gpu in known if _capability(gpu) > CUDA["12"].highest]
    for gpu in lost:
        yield (
            f"{_called(gpu)} has compute capability {gpu['compute_capability']}, and CUDA 12 needs ≥ 5.0:"
            " it is not supported, take it out of gpus"
        )
    if old and new:
        yield (
            f"{_called(old[0])} needs CUDA 12 (compute capability {old[0]['compute_capability']} < 7.5) and"
            f" {_called(new[0])} needs CUDA 13 (compute capability {new[0]['compute_capability']} > 9.0), but"
            " a host has one image: take one of them out of gpus"
        )
    elif wanted == "13":
        for gpu in old:
            yield (
                f"llm_cuda: 13 needs compute capability ≥ 7.5, {_called(gpu)} has"
                f" {gpu['compute_capability']}: set llm_cuda: 12 (or auto)"
            )
    elif wanted == "12" and not _too_old(_driver(gpus), "13"):
        for gpu in new:
            yield (
                f"llm_cuda: 12 needs compute capability ≤ 9.0, {_called(gpu)} has"
                f" {gpu['compute_capability']}: set llm_cuda: 13 (or auto)"
            )


def _driver_problems(gpus: list[Gpu], wanted: str) -> Iterator[str]:
    """Yield the problem of a driver that is too old."""
    driver = _driver(gpus)
    this = f"this host has {driver}"
    new = [gpu for gpu in gpus if _capability(gpu) > CUDA["12"].highest]
    if new and _too_old(driver, "13"):
        also = " and set llm_cuda: 13 (or auto)" if wanted == "12" else ""
        yield (
            f"{_called(new[0])} has compute capability {new[0]['compute_capability']}, which needs CUDA 13"
            f" and so driver ≥ {CUDA['13'].driver}, {this}: upgrade NVIDIA's driver{also}"
        )
    elif _too_old(driver, "12"):
        yield old_driver_problem(driver)
    elif wanted == "13" and _too_old(driver, "13"):
        yield (
            f"llm_cuda: 13 needs driver ≥ {CUDA['13'].driver}, {this}: set llm_cuda: 12 (or auto), or"
            " upgrade NVIDIA's driver"
        )


def old_driver_problem(driver: str) -> str:
    """Return the problem of a driver that is too old for every CUDA; driver is its version."""
    return f"CUDA 12 needs driver ≥ {CUDA['12'].driver}, this host has {driver}: upgrade NVIDIA's driver"


def _architecture_problems(gpus: list[Gpu], toolkit: str, given: list[str]) -> Iterator[str]:
    """Yield what is wrong with the compute capabilities to compile for."""
    name = "llamacpp_image_cuda_architectures"
    if not given:
        for gpu in gpus:
            if not _capability(gpu):
                unknown = f"nvidia-smi does not tell the compute capability of {_called(gpu)}"
                yield f'{unknown}: set {name}, like ["8.9"]'
        if not gpus:
            yield f'no GPU is known to compile for: set {name}, like ["8.9"]'
        return
    lowest, highest = CUDA[toolkit].lowest, CUDA[toolkit].highest
    for entry in given:
        if not re.fullmatch(r"\d+\.\d", entry):
            yield f'{name} has {entry}; it must be a compute capability, like "8.9"'
            return
        if not lowest <= _numbers(entry) <= highest:
            yield (
                f"{name} has {entry}, which CUDA {toolkit} does not compile for: take it out, or set"
                f" llm_cuda: {'12' if toolkit == '13' else '13'}"
            )
    for gpu in gpus_not_built_for(gpus, given):
        yield (
            f"{name} has {', '.join(given)}, whose code does not run on {_called(gpu)}: add"
            f' "{gpu["compute_capability"]}", or leave it empty'
        )


def gpus_not_built_for(gpus: list[Gpu], architectures: list[str]) -> list[Gpu]:
    """Return the GPUs that code for some compute capabilities does not run on.

    It runs within a major version, upwards (8.6 on 8.9, not the reverse). Source: CUDA C++ Programming
    Guide, "Binary Compatibility".

    Args:
        gpus: the GPUs that are asked for; one whose capability is not known is left out.
        architectures: compute capabilities that code is there for, like "8.9".
    """
    built = [_numbers(entry) for entry in architectures]
    return [
        gpu
        for gpu in gpus
        if (own := _capability(gpu)) and not any(own[0] == code[0] and code <= own for code in built)
    ]


def gpu_problems(gpu: dict[str, Any], instances: list[dict[str, Any]], wanted: dict[str, Any]) -> list[str]:
    """Return every reason why a host cannot give its instances their GPUs, root causes only.

    Args:
        gpu: what the module gpu_facts found.
        instances: llm_instances, already checked.
        wanted: ``sharing`` (bool: one GPU may be given to several instances), ``cuda`` (auto, 12 or
            13), ``architectures`` (list, see cuda_build) and ``gpu_mode`` (cdi or gpus).

    Errors: KeyError when one of the arguments lacks a key (a mistake in the role).
    """
    asking = asks_for_gpus(instances)
    if not asking:
        return []
    problems = list(_docker_problems(gpu, wanted["gpu_mode"]))
    host = list(_driver_state_problems(gpu, [entry["name"] for _, entry in asking]))
    problems += host
    if gpu["gpus"]:
        found = known_gpus(gpu)
        problems += _missing_problems(gpu, found, asking)
        problems += _mig_problems(found, asking)
        problems += _overlap_problems(found, asking, wanted["sharing"])
        requested = requested_gpus(instances, found)
        if requested:
            problems += cuda_build(requested, wanted["cuda"], wanted["architectures"])["problems"]
    return problems


def _docker_problems(gpu: dict[str, Any], mode: str) -> Iterator[str]:
    """Yield why this Docker cannot give a container a GPU."""
    version = gpu["docker_version"]
    if gpu["snap"]:
        yield (
            "Docker comes from snap, which keeps it from NVIDIA's toolkit: remove it (snap remove docker)"
            " and run again, the distribution's Docker is then installed"
        )
    elif mode == "cdi" and version and _numbers(version)[:2] < DOCKER_WITH_CDI:
        first = ".".join(map(str, DOCKER_WITH_CDI))
        yield (
            f"llamacpp_server_gpu_mode: cdi needs Docker ≥ {first}, this host has {version}:"
            " set llamacpp_server_gpu_mode: gpus, or upgrade Docker"
        )


def _driver_state_problems(gpu: dict[str, Any], names: list[str]) -> list[str]:
    """Return the first thing that is wrong on the way from the PCI bus to nvidia-smi.

    Args:
        gpu: see gpu_problems.
        names: of the instances that ask for GPUs.
    """
    kernel, smi, nodes = gpu["kernel_version"], gpu["smi"], gpu["nodes"]
    if not (gpu["pci"] or kernel or nodes or gpu["gpus"]):
        return [
            f"no NVIDIA GPU is on this host's PCI bus, and llm_instances asks for one ({', '.join(names)}):"
            " set gpus: [], or pass a GPU through to this machine"
        ]
    unbound = [device for device in gpu["pci"] if device["driver"] != "nvidia"]
    if gpu["pci"] and len(unbound) == len(gpu["pci"]):
        return list(_binding_problems(unbound, kernel))
    if not kernel:
        return [NOT_LOADED]
    if "version mismatch" in smi["problem"] or _differ(kernel, smi["library_version"]):
        libraries = smi["library_version"] or "of another version"
        return [
            f"NVIDIA's kernel module is {kernel}, but the driver's libraries are {libraries}: reboot the host"
            " (usually an unattended upgrade has replaced the driver under the running kernel)"
        ]
    missing = list(_missing_nodes(nodes, len(gpu["pci"]) - len(unbound)))
    if missing:
        return [_node_problem(missing)]
    if not smi["path"]:
        major = kernel.partition(".")[0]
        return [
            f"nvidia-smi is not on this host: install that of the driver's version {kernel} (Ubuntu: package"
            f" nvidia-utils-{major} or nvidia-utils-{major}-server, Debian: nvidia-smi)"
        ]
    if gpu["gpus"]:
        return []
    # An older nvidia-smi does not know all that it is asked for, and fails for that reason.
    if _too_old(kernel, "12"):
        return [old_driver_problem(kernel)]
    if LOST.search(smi["problem"]):
        mend = "a GPU has fallen off the bus, `dmesg | grep Xid` says why; reboot the host"
    else:
        mend = "see `dmesg | grep NVRM`, then reboot the host or install NVIDIA's driver again"
    return [f"nvidia-smi fails ({smi['problem']}): {mend}"]


NOT_LOADED = (
    "NVIDIA's kernel module is not loaded: install NVIDIA's driver, or see what `modprobe nvidia` and `dmesg`"
    " say (not built for this kernel, or not signed for Secure Boot)"
)


def _binding_problems(devices: list[dict[str, str]], kernel: str) -> Iterator[str]:
    """Yield why no GPU has NVIDIA's driver, one line per driver that they have instead."""
    for driver in dict.fromkeys(device["driver"] for device in devices):
        slots = " and ".join(device["slot"] for device in devices if device["driver"] == driver)
        if driver == "nouveau":
            yield (
                f"NVIDIA device {slots}: bound to nouveau, which cannot compute; blacklist nouveau"
                " (/etc/modprobe.d), install NVIDIA's driver and reboot the host"
            )
        elif driver == "vfio-pci":
            yield (
                f"NVIDIA device {slots}: bound to vfio-pci, which passes it through to a virtual machine;"
                " deploy to that machine, or bind it to NVIDIA's driver"
            )
        elif driver:
            yield f"NVIDIA device {slots}: bound to {driver}; bind it to NVIDIA's driver"
        elif kernel:
            yield (
                f"NVIDIA device {slots}: bound to no driver, although NVIDIA's kernel module {kernel} is"
                " loaded; `dmesg | grep NVRM` says why (often this version does not support the GPU)"
            )
        else:
            yield NOT_LOADED


def _differ(kernel: str, library: str) -> bool:
    """Whether two versions differ as far as both are written ("550.144" is "550.144.03")."""
    if not library:
        return False
    return any(a != b for a, b in zip(_numbers(kernel), _numbers(library), strict=False))


def _missing_nodes(nodes: list[str], bound: int) -> Iterator[str]:
    """Yield the device nodes that should be there for as many GPUs as are bound to the driver."""
    if "/dev/nvidiactl" not in nodes:
        yield "/dev/nvidiactl"
    expected = max(1, bound)
    # The numbers may have gaps, for example where a GPU was unbound.
    if sum(bool(re.fullmatch(r"/dev/nvidia\d+", node)) for node in nodes) < expected:
        yield from (f"/dev/nvidia{n}" for n in range(expected) if f"/dev/nvidia{n}" not in nodes)
    if "/dev/nvidia-uvm" not in nodes:
        yield "/dev/nvidia-uvm"


def _node_problem(missing: list[str]) -> str:
    """Return the problem of missing device nodes, with the commands that make them."""
    # 255 is the number of nvidiactl. Source: nvidia-modprobe.
    minors = [node.removeprefix("/dev/nvidia").replace("ctl", "255") for node in missing]
    numbers = "".join(f" -c {minor}" for minor in minors if minor.isdigit())
    commands = [f"nvidia-modprobe{numbers}"] if numbers else []
    if "-uvm" in minors:
        commands.append("nvidia-modprobe -u -c 0")
    return (
        f"device nodes are missing ({', '.join(missing)}): run `{' && '.join(commands)}`, and enable"
        " nvidia-persistenced so that they are there after a boot"
    )


def _missing_problems(
    gpu: dict[str, Any], found: list[Gpu], asking: list[tuple[str, dict[str, Any]]]
) -> Iterator[str]:
    """Yield the GPUs that are asked for and not there, and those that nvidia-smi has lost."""
    bound = [device["slot"] for device in gpu["pci"] if device["driver"] == "nvidia"]
    absent = {
        where: [name for name in _list(entry["gpus"]) if not resolve_gpus([name], found)]
        for where, entry in asking
    }
    by_index = any(
        entry["gpus"] == "all" or any(isinstance(name, int) for name in entry["gpus"]) for _, entry in asking
    )
    # Whoever names the remaining GPUs by UUID gets them; indexes may have moved.
    lost = len(found) < len(bound) and (by_index or any(absent.values()))
    if lost:
        yield (
            f"nvidia-smi lists {_all(found)}, but {len(bound)} GPUs are bound to NVIDIA's driver"
            f" ({', '.join(bound)}): one has fallen off the bus or does not start,"
            " `dmesg | grep -e Xid -e NVRM` says why; reboot the host, or name the others by UUID"
        )
    has = "; ".join(
        [
            _all(found),
            *[
                f"{device['slot']} is bound to {device['driver'] or 'no driver'}"
                for device in gpu["pci"]
                if device["driver"] != "nvidia"
            ],
        ]
    )
    for where, names in absent.items():
        # Where one is lost, that may be the one that is asked for.
        wrong = [name for name in names if not lost or (isinstance(name, int) and name >= len(bound))]
        if wrong:
            yield (
                f"{where}: gpus has {' and '.join(map(str, wrong))}, which this host does not have"
                f" (it has {has}): correct gpus"
            )


def _mig_problems(found: list[Gpu], asking: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """Yield the GPUs that are asked for as a whole although they are divided."""
    for where, entry in asking:
        for gpu in found:
            whole = entry["gpus"] == "all" or any(
                name in (gpu["index"], gpu["uuid"]) for name in entry["gpus"]
            )
            if gpu["mig"] and whole:
                devices = ", ".join(gpu["mig_devices"])
                mend = (
                    f"name one of its MIG devices ({devices})"
                    if devices
                    else "make MIG devices (nvidia-smi mig -cgi) and name one by UUID"
                )
                yield (
                    f"{where}: {_called(gpu)} is in MIG mode and cannot be used as a whole: {mend}, or"
                    f" turn the mode off (nvidia-smi -i {gpu['index']} -mig 0)"
                )


def _claims(gpus: object, found: list[Gpu]) -> dict[str, list[str]]:
    """Return what an instance's ``gpus`` takes: UUIDs of GPUs and MIG devices, with all names for each."""
    claims: dict[str, list[str]] = {}
    for gpu in found:
        for uuid in (gpu["uuid"], *gpu.get("mig_devices", [])):
            names = [uuid] if uuid != gpu["uuid"] else [gpu["index"], uuid]
            given = ["all"] if gpus == "all" else [str(name) for name in _list(gpus) if name in names]
            if given:
                claims[uuid] = given
    return claims


def _overlap_problems(
    found: list[Gpu], asking: list[tuple[str, dict[str, Any]]], sharing: bool
) -> Iterator[str]:
    """Yield the GPUs that are given away twice."""
    called = {gpu["uuid"]: _called(gpu) for gpu in found}
    claims = [(where, _claims(entry["gpus"], found)) for where, entry in asking]
    for where, claimed in claims:
        for uuid, names in claimed.items():
            if len(names) > 1:
                twice = f"{called.get(uuid, uuid)} twice, as {' and as '.join(names)}"
                yield f"{where}: gpus has {twice}; name it once"
    if sharing:
        return
    for (first, one), (second, other) in combinations(claims, 2):
        both = [called.get(uuid, uuid) for uuid in other if uuid in one]
        if both:
            yield (
                f"{second}: gpus has {' and '.join(both)}, which {first} has too: give each instance GPUs"
                " of its own, or set llm_gpu_sharing: true"
            )


def _called(gpu: Gpu) -> str:
    return f"GPU {gpu['index']} ({gpu['name']})"


def _all(found: list[Gpu]) -> str:
    """List what there is, as it can be written in ``gpus``."""
    return ", ".join(
        f"{gpu['index']} ({', '.join([gpu['name'], gpu['uuid'], *gpu['mig_devices']])})" for gpu in found
    )


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "asks_for_gpus": asks_for_gpus,
            "cuda_build": cuda_build,
            "gpu_problems": gpu_problems,
            "gpus_not_built_for": gpus_not_built_for,
            "image_variant": image_variant,
            "known_gpus": known_gpus,
            "requested_gpus": requested_gpus,
        }
