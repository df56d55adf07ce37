#!/usr/bin/python
"""Module gpu_facts: what a deployment must know of a host's NVIDIA GPUs and their driver."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_facts
short_description: Reads NVIDIA GPUs, their driver and their free memory from a host
description:
  - Reads only. nvidia-smi loads the kernel module and makes device nodes where they are missing, so
    it is not run there; a Docker that does not run is not asked.
options:
  docker_socket:
    description: Docker's socket on the host.
    type: path
    default: /run/docker.sock
  timeout:
    description: Seconds that one call of nvidia-smi may take.
    type: int
    default: 60
author: ansible-llamacpp
"""

EXAMPLES = r"""
- name: GPUs are looked at
  gpu_facts:
  register: found
"""

RETURN = r"""
gpu:
  description: What there is.
  type: dict
  returned: always
  contains:
    pci:
      description: NVIDIA GPUs on the PCI bus, each with C(slot) and C(driver) (empty when none is
        bound).
      type: list
    kernel_version:
      description: Version of the loaded kernel module; empty when none is loaded.
      type: str
    nodes:
      description: Device nodes, such as /dev/nvidia0 and /dev/nvidiactl.
      type: list
    smi:
      description: Of nvidia-smi C(path) (empty when it is missing), C(rc) (-1 when it was not run),
        C(problem) (the first line of what it says is wrong) and C(library_version) (of the driver's
        libraries; empty when unknown).
      type: dict
    gpus:
      description: GPUs that nvidia-smi lists, each with C(index), C(uuid), C(name), C(memory_total),
        C(memory_free) and C(memory_ours) (bytes; ours is what containers of this project use; 0 when
        unknown), C(compute_capability), C(driver_version) and C(mig) (whether MIG mode is on).
      type: list
    mig_devices:
      description: MIG devices, each with C(uuid) and C(gpu) (the index of its GPU).
      type: list
    containers:
      description: >-
        By name of each of this project's containers that computes on GPUs, the bytes it uses by UUID
        of the GPU; 0 where nvidia-smi does not know them.
      type: dict
    snap:
      description: Whether Docker comes from snap.
      type: bool
    docker_version:
      description: Version of Docker; empty when none runs.
      type: str
"""

import glob
import os
import re
import subprocess

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.docker_api import ERRORS, ask_docker, docker_runs, own_containers

NVIDIA = "0x10de"
# VGA and 3D controllers. Source: PCI Code and ID Assignment Specification, base class 03h.
GPU_CLASSES = ("0x0300", "0x0302")

MIB = 2**20
QUERY_GPU = [
    "--query-gpu=index,uuid,name,memory.total,memory.free,compute_cap,driver_version,mig.mode.current",
    "--format=csv,noheader,nounits",
]
QUERY_APPS = ["--query-compute-apps=gpu_uuid,pid,used_memory", "--format=csv,noheader,nounits"]
NOT_RUN = -1
TIMED_OUT = 124


def _read(path):
    """Return the text of a file; empty when it cannot be read (a process has ended, no driver)."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def pci_devices(sys_root="/sys"):
    """Return the NVIDIA GPUs on the PCI bus, in the order of their slots.

    Argument: sys_root (str), where sysfs is mounted.
    Returns a list of dicts: slot ("0000:01:00.0"), driver (name of the bound one, or "").
    """
    devices = []
    for path in sorted(glob.glob(f"{sys_root}/bus/pci/devices/*")):
        vendor = _read(f"{path}/vendor").strip()
        if vendor == NVIDIA and _read(f"{path}/class").startswith(GPU_CLASSES):
            driver = f"{path}/driver"
            devices.append(
                {
                    "slot": os.path.basename(path),
                    "driver": os.path.basename(os.readlink(driver)) if os.path.islink(driver) else "",
                }
            )
    return devices


def kernel_version(text):
    """Return the version of the loaded kernel module, or "".

    Argument: text (str) of /proc/driver/nvidia/version; the proprietary module writes "… Kernel
    Module  550.54.15 …", the open one "… Open Kernel Module for x86_64  580.65.06 …".
    """
    found = re.search(r"Kernel Module\s+(?:for\s+\S+\s+)?(\d+(?:\.\d+)+)", text)
    return found.group(1) if found else ""


def device_nodes(dev="/dev"):
    """Return the names of NVIDIA's device nodes, as they are called under /dev.

    Argument: dev (str), where devices are found.
    """
    paths = sorted(path for path in glob.glob(f"{dev}/nvidia*") if not os.path.isdir(path))
    return [f"/dev/{os.path.basename(path)}" for path in paths]


def may_be_asked(version, nodes, pci):
    """Whether nvidia-smi changes nothing: module and nodes that it would load and make are there.

    Arguments: version (str) of the kernel module, nodes (list of str), pci (list of dict).
    """
    numbered = [node for node in nodes if re.fullmatch(r"/dev/nvidia\d+", node)]
    bound = [device for device in pci if device["driver"] == "nvidia"]
    return bool(version) and "/dev/nvidiactl" in nodes and len(numbered) >= max(1, len(bound))


def _rows(text, columns):
    """Return the lines of nvidia-smi's CSV that have that many columns, as lists of str."""
    # Its CSV knows no quotes.
    rows = [[field.strip() for field in line.split(",")] for line in text.splitlines()]
    return [row for row in rows if len(row) == columns]


def _known(field):
    """Return a field of nvidia-smi, "" for what it does not know ([N/A], [Not Supported], …)."""
    return "" if field.startswith("[") or field == "N/A" else field


def _bytes(field):
    """Return a field in MiB as bytes; 0 when nvidia-smi does not know it."""
    return int(field) * MIB if field.isdigit() else 0


def listed_gpus(text):
    """Return the GPUs in what nvidia-smi prints for QUERY_GPU; other lines are left out.

    Argument: text (str). Returns a list of dicts, see RETURN; memory_ours is 0.
    """
    gpus = []
    for index, uuid, name, total, free, capability, driver, mig in _rows(text, 8):
        # A GPU that is lost may still have a line, with an error in each field.
        if index.isdigit() and uuid.startswith("GPU-"):
            gpus.append(
                {
                    "index": int(index),
                    "uuid": uuid,
                    "name": _known(name),
                    "memory_total": _bytes(total),
                    "memory_free": _bytes(free),
                    "memory_ours": 0,
                    "compute_capability": _known(capability),
                    "driver_version": _known(driver),
                    "mig": mig == "Enabled",
                }
            )
    return gpus


def listed_mig_devices(text):
    """Return the MIG devices in what nvidia-smi -L prints: a list of dicts with uuid and gpu (index)."""
    devices = []
    gpu = None
    for line in text.splitlines():
        found = re.match(r"GPU (\d+):", line)
        if found:
            gpu = int(found.group(1))
        found = re.search(r"\(UUID: (MIG-[^)\s]+)\)", line)
        if found and gpu is not None:
            devices.append({"uuid": found.group(1), "gpu": gpu})
    return devices


def listed_apps(text):
    """Return the processes in what nvidia-smi prints for QUERY_APPS.

    Argument: text (str). Returns a list of tuples: UUID of the GPU, pid, bytes (0 when unknown).
    """
    return [(uuid, int(pid), _bytes(used)) for uuid, pid, used in _rows(text, 3) if pid.isdigit()]


def first_line(out, err, rc):
    """Return the first line in which nvidia-smi says what is wrong.

    Arguments: out, err (str), what it has printed; rc (int), its exit status.
    """
    lines = [line.strip() for text in (out, err) for line in text.splitlines()]
    said = [line for line in lines if line and not listed_gpus(line)]
    return said[0] if said else f"it ends with status {rc} and says nothing"


def library_version(text, gpus):
    """Return the version of the driver's libraries, or "" when unknown.

    Arguments: text (str) of nvidia-smi, which names it when it is not the kernel module's; gpus
    (list of dict), which it lists only when both are the same.
    """
    found = re.search(r"NVML library version:\s*(\d+(?:\.\d+)+)", text)
    if found:
        return found.group(1)
    return gpus[0]["driver_version"] if gpus else ""


def ours(apps, own, proc="/proc"):
    """Return the bytes that this project's containers use: name -> UUID of the GPU -> bytes.

    Arguments: apps (list of tuple, see listed_apps); own (dict, see docker_facts); proc (str), where
    procfs is mounted.
    """
    used = {}
    for uuid, pid, size in apps:
        # …/docker-ID.scope (systemd) or …/docker/ID (cgroupfs), after the ids of containers around it.
        for container in set(re.findall(r"[0-9a-f]{64}", _read(f"{proc}/{pid}/cgroup"))) & own.keys():
            on_gpus = used.setdefault(own[container], {})
            on_gpus[uuid] = on_gpus.get(uuid, 0) + size
    return used


def docker_facts(docker_socket, ask=ask_docker):
    """Return what a running Docker knows.

    Arguments: docker_socket (str), ask (callable, see ask_docker).
    Returns a dict: version (str), own (dict: id of each of this project's containers -> its name).
    """
    containers = own_containers(docker_socket, ask)
    return {
        "version": (ask(docker_socket, "/version") or {}).get("Version", ""),
        "own": {container["Id"]: container["Names"][0].lstrip("/") for container in containers},
    }


def from_snap(root="/"):
    """Whether Docker comes from snap: its command is there, and no engine from elsewhere.

    Argument: root (str), the directory that holds usr/ and snap/.
    """
    engines = ("usr/bin/dockerd", "usr/sbin/dockerd", "usr/local/bin/dockerd")
    return os.path.exists(os.path.join(root, "snap/bin/docker")) and not any(
        os.path.exists(os.path.join(root, engine)) for engine in engines
    )


def runner(path, timeout):
    """Return a function that runs nvidia-smi with a list of arguments.

    Arguments: path (str) of nvidia-smi, timeout (int, seconds).
    The function returns the exit status, what was printed and what was printed as errors.
    """

    def run(arguments):
        try:
            process = subprocess.Popen(
                [path, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "LC_ALL": "C"},
                encoding="utf-8",
                errors="replace",
            )
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            # Not waited for: with a GPU that no longer answers it may hang in the kernel.
            process.kill()
            return TIMED_OUT, "", f"it gives no answer within {timeout} s"
        except OSError as error:
            return TIMED_OUT, "", str(error)
        return process.returncode, out, err

    return run


def gpu_facts(path, run, docker, sys_root="/sys", proc="/proc", dev="/dev", root="/"):
    """Return what the module returns as gpu.

    Arguments: path (str) of nvidia-smi or ""; run (callable, see runner); docker (dict, see
    docker_facts); sys_root, proc, dev, root (str), see the functions that read there.
    """
    pci = pci_devices(sys_root)
    version = kernel_version(_read(f"{proc}/driver/nvidia/version"))
    nodes = device_nodes(dev)
    smi = {"path": path, "rc": NOT_RUN, "problem": "", "library_version": ""}
    gpus, mig_devices, containers = [], [], {}
    if path and may_be_asked(version, nodes, pci):
        smi["rc"], out, err = run(QUERY_GPU)
        gpus = listed_gpus(out)
        if smi["rc"] or not gpus:
            smi["problem"] = first_line(out, err, smi["rc"])
        smi["library_version"] = library_version(out + err, gpus)
    if gpus:
        mig_devices = listed_mig_devices(run(["-L"])[1])
        containers = ours(listed_apps(run(QUERY_APPS)[1]), docker["own"], proc)
        for gpu in gpus:
            gpu["memory_ours"] = sum(on_gpus.get(gpu["uuid"], 0) for on_gpus in containers.values())
    return {
        "pci": pci,
        "kernel_version": version,
        "nodes": nodes,
        "smi": smi,
        "gpus": gpus,
        "mig_devices": mig_devices,
        "containers": containers,
        "snap": from_snap(root),
        "docker_version": docker["version"],
    }


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "docker_socket": {"type": "path", "default": "/run/docker.sock"},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    docker = {"version": "", "own": {}}
    try:
        if docker_runs(module.params["docker_socket"]):
            docker = docker_facts(module.params["docker_socket"])
    except ERRORS as error:
        module.warn(f"Docker on this host does not answer ({error}); its containers are not known")
    path = module.get_bin_path("nvidia-smi") or ""
    run = runner(path, module.params["timeout"])
    module.exit_json(changed=False, gpu=gpu_facts(path, run, docker))


if __name__ == "__main__":
    main()
