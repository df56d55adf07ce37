"""Filters ``docker_gpu_options`` and ``gpu_use_problem``: give a container GPUs, see that it uses them."""

from __future__ import annotations

import re
from typing import Any

# What the engine logs when it has loaded a model (llama-model.cpp), unless `verbose` is false.
OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")


def docker_gpu_options(gpus: list[int | str] | str, mode: str = "cdi") -> list[str]:
    """Return the options of ``docker run`` that give a container its GPUs, as words of a systemd unit.

    Args:
        gpus: an instance's ``gpus``: indexes and UUIDs, "all", or an empty list for none.
        mode: ``cdi``, devices of the Container Device Interface (Docker 26.1 and later), or ``gpus``,
            Docker's own option, which older ones know too.

    Source: docs.docker.com, reference of ``docker run``, --device (CDI) and --gpus.
    """
    if not gpus:
        return []
    names = ["all"] if gpus == "all" else [str(gpu) for gpu in gpus]
    if mode == "cdi":
        return [f"--device=nvidia.com/gpu={name}" for name in names]
    if gpus == "all":
        return ["--gpus=all"]
    # The inner quotes are for Docker, which takes the value apart at commas.
    return [f"'--gpus=\"device={','.join(names)}\"'"]


def gpu_uuids(gpus: list[int | str] | str, found: list[dict[str, Any]]) -> list[str]:
    """Return the UUIDs of what an instance's ``gpus`` names.

    Args:
        gpus: indexes and UUIDs, or "all"; an index that the host does not have is left out.
        found: the host's GPUs, dictionaries with ``index`` and ``uuid``.
    """
    uuids = {gpu["index"]: gpu["uuid"] for gpu in found}
    if gpus == "all":
        return list(uuids.values())
    return [
        gpu if isinstance(gpu, str) else uuids[gpu] for gpu in gpus if isinstance(gpu, str) or gpu in uuids
    ]


def gpu_use_problem(
    log: str, memory: dict[str, int], model: dict[str, Any], file_size: int, name: str = "llamacpp"
) -> str:
    """Say why an instance that has GPUs does not compute on them; empty when it does.

    Args:
        log: of the server since its start.
        memory: bytes that the instance's processes use, by UUID of the GPU; 0 when the driver does not
            tell (virtual GPUs), empty when they use none.
        model: what the server has loaded, from the filter served_models.
        file_size: bytes of the model's file.
        name: of the instance.

    The engine's own count of layers decides. Where its log is switched off, a model that was to be
    on the GPU as a whole (n_gpu_layers -1) must use memory there for at least half of its file.
    """
    wanted = model.get("n_gpu_layers", 0)
    if wanted == 0:
        return ""
    where = f"{name} is serving from the CPU"
    mend = "see docs/runbooks/gpu-not-used.md"
    counts = OFFLOADED.findall(log)
    if counts:
        layers, total = map(int, counts[-1])
        if layers:
            return ""
        return f"{where}: the engine put {layers} of {total} layers of {model['alias']} on a GPU; {mend}"
    used = sum(memory.values())
    if memory and not used:
        return (
            f"whether {name} uses its GPUs cannot be told: the driver hides the memory of processes and the"
            " engine's log is off; set verbose: true in llm_model_defaults, or take gpus: []"
        )
    needed = file_size // 2 if wanted < 0 else 1
    if used >= needed:
        return ""
    return (
        f"{where}: its processes use {used >> 20} MiB on GPUs, but the file of {model['alias']} has"
        f" {file_size >> 20} MiB; {mend}"
    )


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "docker_gpu_options": docker_gpu_options,
            "gpu_uuids": gpu_uuids,
            "gpu_use_problem": gpu_use_problem,
        }
