"""The tables of docs/vram.md, worked out from header-only files of the reference deployment's shape.

python tests/unit/vram_doc.py writes it into the page; a unit test checks that it stands there.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    import ansible.module_utils

    sys.path[:0] = [str(PROJECT / "plugins" / kind) for kind in ("filter", "modules")]
    ansible.module_utils.__path__.append(str(PROJECT / "plugins/module_utils"))

import gguf_header  # noqa: E402
import gguf_shapes  # noqa: E402
import vram  # noqa: E402

PAGE = PROJECT / "docs/vram.md"
BEGIN = "<!-- written by tests/unit/vram_doc.py -->\n"
END = "<!-- end -->\n"

# The models' and the shipped settings of group_vars/llm_hosts.yml.
SETTINGS = {"n_gpu_layers": -1, "n_ctx": 4096, "embedding": True}
MODELS = {"vicuna-13b q8_0": "vicuna-13b", "karakuri-8x7b q6_K": "karakuri-8x7b"}
# memory.total of nvidia-smi, in MiB.
GPUS = {
    "24 GB (RTX 4090, 24564 MiB)": 24564,
    "48 GB (L40S, 46068 MiB)": 46068,
    "80 GB (H100, 81559 MiB)": 81559,
}
# What the driver keeps for itself of an idle GPU: memory.total less memory.free.
HELD_BACK = 640


@functools.cache
def parts_of(name):
    """What the module gguf_header returns for a file of this shape."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "x.gguf")
        os.truncate(path, gguf_shapes.write(path, gguf_shapes.shape_of(name)))
        return [gguf_header.from_file(str(path))]


def fit(name, free):
    """What a model of the reference deployment needs of a GPU, see vram_fit."""
    return vram.vram_fit(parts_of(name), SETTINGS, [free])


def cell(name, free):
    """Whether a model fits a GPU, and what of it would."""
    found = fit(name, free)
    if found["fits"]:
        return f"fits, {vram.gib(free - found['total'])} GiB to spare"
    largest = found["largest"]
    context = f"largest `n_ctx` {largest['n_ctx']}" if largest["n_ctx"] else "no `n_ctx` fits"
    return f"**too large**; {context}; largest `n_gpu_layers` {largest['n_gpu_layers']}"


def row(*cells):
    return f"| {' | '.join(cells)} |\n"


def sample():
    """What the play prints on a host with the typical GPU."""
    total = GPUS["48 GB (L40S, 46068 MiB)"] * vram.MIB
    gpu = {"index": 0, "uuid": "GPU-0", "name": "NVIDIA L40S", "memory_total": total, "memory_ours": 0}
    gpu["memory_free"] = total - HELD_BACK * vram.MIB
    table = vram.vram_table(
        [{"name": "llamacpp", "gpus": [0]}],
        [{"alias": name, "file": name, "settings": SETTINGS} for name in MODELS.values()],
        {},
        {name: {"parts": parts_of(name), "problem": ""} for name in MODELS.values()},
        [gpu],
    )
    return "".join(f"{line}\n" for line in table["lines"])


def block():
    """A sample of what the play prints, and which GPUs hold which model."""
    both = sum(fit(name, vram.MIB << 20)["total"] for name in MODELS.values())
    text = f"```text\n{sample()}```\n\n"
    text += row("GPU", *MODELS, "both at once, an instance each") + row(*["---"] * 4)
    for title, total in GPUS.items():
        free = (total - HELD_BACK) * vram.MIB
        together = f"fits, {vram.gib(free - both)} GiB to spare" if both <= free else "**too large**"
        text += row(title, *(cell(name, free) for name in MODELS.values()), together)
    return text


def page_with(text):
    """The page with the tables replaced by a text."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}{text}{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page_with(block()), encoding="utf-8")
