"""Filters ``vram_table``, ``vram_fit`` and ``files_on_gpus``: do models fit the memory of their GPUs?

What a model consists of is read from its own GGUF header by the package ``gguf``. What the engine
makes of it follows llama.cpp as llama-cpp-python 0.3.36 carries it; docs/vram.md has the formulas,
and tests/unit/engine-sizes-0.3.36.json what the engine itself printed. All sizes are bytes.
"""

from __future__ import annotations

import base64
import functools
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ansible.errors import AnsibleFilterError

MIB = 1 << 20

# What a process keeps on a GPU before it has loaded anything: CUDA's context, cuBLAS, the kernels.
CONTEXT_BYTES = 500 * MIB

# What the server uses where a setting is left out. Source: ModelSettings in llama_cpp/server/settings.py.
DEFAULTS = {
    "n_gpu_layers": 0,
    "n_ctx": 2048,
    "n_batch": 512,
    "n_ubatch": 512,
    "split_mode": 1,
    "main_gpu": 0,
    "tensor_split": None,
    "offload_kqv": True,
    "flash_attn": False,
    "embedding": False,
    "type_k": None,
    "type_v": None,
}
# The same for the batching server: `parallel` of an instance (llm_config), and llama.cpp's own n_batch.
PARALLEL = 8
BATCH_N_BATCH = 2048
SPLIT_MODE_NONE = 0
F16 = 1

# llama_context: n_ctx is rounded up to a multiple of it.
CONTEXT_STEP = 256
# LLAMA_MAX_SEQ: with `embedding` the context is made for as many sequences as a batch has tokens.
MAX_SEQUENCES = 256
# MATRIX_ROW_PADDING of ggml-cuda: rows of quantised tensors are made longer by up to this.
ROW_PADDING = 512
# On top of the estimate of the compute buffer, for what graphs of other architectures hold beside it.
MARGIN = 1.1
# GGML_SCHED_MAX_COPIES: with several GPUs the inputs of a batch are kept so many times.
PIPELINE_COPIES = 4
F32_BYTES = 4
F16_BYTES = 2
INDEX_BYTES = 8

LAYER = re.compile(r"blk\.(\d+)\.(.+)")
# LLM_TENSOR_LAYER_INPUT of llama-arch.cpp: what only looks tokens up stays in the host's memory.
INPUT_TENSORS = (
    "token_embd.weight",
    "position_embd.weight",
    "token_types.weight",
    "per_layer_token_embd.weight",
)
RECURRENT_TENSOR = re.compile(r"(ssm_|shortconv|time_mix_)")
# llama_model::create_memory: these keep no cache, or keep both kinds in every layer.
WITHOUT_CACHE = (
    "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert",
    "wavtokenizer-dec", "modern-bert", "gemma-embedding", "dream", "llada", "llada-moe", "rnd1",
)  # fmt: skip
WITH_BOTH_CACHES = ("falcon-h1",)
# gemma3n.cpp: only the first 20 layers have a cache of their own, and the file does not say so.
LAYERS_WITH_CACHE = {"gemma3n": 20}

TITLES = ["model", "layers", "n_ctx", "weights", "KV cache", "compute", "context", "total", "free GiB", ""]


class Tensor(NamedTuple):
    """A row of a GGUF file's table: name, elements per dimension, type (number of ggml), bytes."""

    name: str
    dimensions: tuple[int, ...]
    type: int
    bytes: int


class Plan(NamedTuple):
    """What of a model goes onto each GPU; every list has one number of bytes per GPU."""

    weights: list[int]
    cache: list[int]
    compute: list[int]
    context: list[int]

    def totals(self) -> list[int]:
        """Return the sum for each GPU."""
        return [sum(parts) for parts in zip(*self, strict=True)]


class Model:
    """What decides how much memory a model takes.

    Args:
        metadata: of its GGUF file, by key.
        tensors: of all its files.

    Raises:
        ValueError: The metadata lacks what every model has.
    """

    def __init__(self, metadata: dict[str, Any], tensors: Iterable[Tensor]) -> None:
        self.architecture = metadata.get("general.architecture", "")
        self._metadata = metadata
        blocks = self.number("block_count")
        if not blocks:
            raise ValueError(f"its metadata has no {self.architecture or 'architecture'}.block_count")
        # n_layer_all and n_layer of llama.cpp: layers that only predict further tokens are not loaded.
        self.blocks = blocks
        self.layers = blocks - self.number("nextn_predict_layers")
        self.train_context = self.number("context_length")
        self.embedding = self.number("embedding_length")
        self.layer_bytes = [0] * blocks
        self.largest = [0] * (blocks + 1)
        self.output_bytes = 0
        self.recurrent: set[int] = set()
        self.vocabulary = 0
        shared = Tensor("", (), 0, 0)
        has_output = False
        for tensor in tensors:
            match = LAYER.match(tensor.name)
            if match:
                layer = int(match.group(1))
                if layer < self.layers:
                    self.layer_bytes[layer] += on_gpu(tensor)
                    self.largest[layer] = max(self.largest[layer], tensor.bytes)
                    if RECURRENT_TENSOR.match(match.group(2)):
                        self.recurrent.add(layer)
                continue
            if tensor.name == "token_embd.weight":
                shared = tensor
            if tensor.name == "output.weight":
                has_output = True
            if tensor.name not in INPUT_TENSORS:
                self.output_bytes += on_gpu(tensor)
                self.largest[blocks] = max(self.largest[blocks], tensor.bytes)
        if shared.dimensions:
            self.vocabulary = shared.dimensions[-1]
        if not has_output:
            # Tied embeddings: the output layer gets a copy of its own (TENSOR_DUPLICATED).
            self.output_bytes += on_gpu(shared)
            self.largest[blocks] = max(self.largest[blocks], shared.bytes)

    def value(self, key: str, default: Any = 0) -> Any:  # noqa: ANN401
        """Return a value of the architecture's own metadata, without its prefix."""
        return self._metadata.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: int = 0) -> int:
        """Return a number of the metadata; of a list, its largest."""
        value = self.value(key, default)
        return int(max(value, default=default) if isinstance(value, list) else value)

    def per_layer(self, key: str, default: list[int] | None = None) -> list[int]:
        """Return a number for each layer; the metadata may have one for all, or a list."""
        value = self.value(key, default if default is not None else 0)
        values = value if isinstance(value, list) else [value] * self.blocks
        return [int(number) for number in [*values, *[0] * self.blocks][: self.blocks]]

    @functools.cached_property
    def heads(self) -> list[int]:
        """Attention heads of each layer."""
        return self.per_layer("attention.head_count")

    def head_lengths(self, what: str) -> list[int]:
        """Return the elements of one head in each layer; what is ``key`` or ``value``."""
        heads = self.heads[0] if self.heads else 0
        full = self.number(f"attention.{what}_length", self.embedding // heads if heads else 0)
        window = self.number(f"attention.{what}_length_swa", full)
        pattern = self.value("attention.sliding_window_pattern", None)
        if not isinstance(pattern, list):
            return [full if window == full else max(full, window)] * self.blocks
        windowed = self.per_layer("attention.sliding_window_pattern")
        return [window if is_windowed else full for is_windowed in windowed]

    @functools.cached_property
    def cache_widths(self) -> list[tuple[int, int]]:
        """Elements of K and V that each layer keeps per cell; (0, 0) where it has no cache."""
        if self.architecture in WITHOUT_CACHE:
            return [(0, 0)] * self.blocks
        kv_heads = self.per_layer("attention.head_count_kv", self.heads)
        # Multi-head latent attention keeps one compressed row, from which V is made again.
        latent = self.number("attention.key_length_mla") > 0
        until = self.layers
        until = min(until, LAYERS_WITH_CACHE.get(self.architecture, until))
        until = min(until, self.blocks - self.number("attention.shared_kv_layers"))
        widths = []
        for layer, (heads, k, v) in enumerate(
            zip(kv_heads, self.head_lengths("key"), self.head_lengths("value"), strict=True)
        ):
            recurrent_only = layer in self.recurrent and self.architecture not in WITH_BOTH_CACHES
            if layer >= until or recurrent_only:
                widths.append((0, 0))
            else:
                widths.append((k * heads, 0 if latent else v * heads))
        return widths

    @functools.cached_property
    def state_bytes(self) -> int:
        """Bytes that a recurrent layer keeps per sequence (llama_hparams::n_embd_r, n_embd_s)."""
        if head := self.number("wkv.head_size"):
            return F32_BYTES * self.embedding * (self.number("token_shift_count", 2) + head)
        if kept := self.number("shortconv.l_cache"):
            return F32_BYTES * self.embedding * (kept - 1)
        inner, state = self.number("ssm.inner_size"), self.number("ssm.state_size")
        rows = inner + 2 * self.number("ssm.group_count") * state
        return F32_BYTES * (max(self.number("ssm.conv_kernel") - 1, 0) * rows + state * inner)

    def unknown(self) -> str:
        """Say what of the memory is not counted, empty when all is."""
        if self.recurrent and not self.state_bytes:
            return f"state of {self.architecture}'s recurrent layers not counted"
        if self.number("attention.indexer.key_length"):
            return f"index cache of {self.architecture}'s sparse attention not counted"
        return ""


def on_gpu(tensor: Tensor) -> int:
    """Return what a tensor takes on a GPU (ggml_backend_cuda_buffer_type_get_alloc_size)."""
    row = tensor.dimensions[0] if tensor.dimensions else 0
    block, size = block_of(tensor.type)
    if block == 1 or row % ROW_PADDING == 0:
        return tensor.bytes
    return tensor.bytes + (ROW_PADDING - row % ROW_PADDING) // block * size


def block_of(number: int) -> tuple[int, int]:
    """Return elements and bytes of a block of a type of ggml.

    Raises:
        ValueError: gguf does not know the type.
    """
    gguf = gguf_package()
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]


def gguf_package() -> Any:  # noqa: ANN401
    """Return the package gguf, which only hosts with GPUs need on their controller.

    Raises:
        AnsibleFilterError: It is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise AnsibleFilterError(
            "vram: the Python package gguf is not installed where Ansible runs;"
            " `pip install -r requirements.txt` in its environment, or set llm_vram_check to 'off'"
        ) from error
    return gguf


@functools.lru_cache(maxsize=64)
def read_model(parts: tuple[tuple[str, int], ...]) -> Model:
    """Return a model from what the module gguf_header found.

    Args:
        parts: per file of the model its header (zlib, base64) and its size in bytes.

    Raises:
        ValueError: A header is not what gguf understands, or speaks of a longer file.
        AnsibleFilterError: The package gguf is not installed.
    """
    gguf = gguf_package()
    metadata: dict[str, Any] = {}
    tensors = []
    for header, size in parts:
        try:
            with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
                file.write(zlib.decompress(base64.b64decode(header)))
                # Sparse: gguf maps the tensors, and nobody looks at them.
                file.truncate(size)
                reader = gguf.GGUFReader(Path(file.name))
                for name, field in reader.fields.items():
                    metadata.setdefault(name, field.contents())
                tensors += [
                    Tensor(tensor.name, tuple(tensor.shape.tolist()), int(tensor.tensor_type), tensor.n_bytes)
                    for tensor in reader.tensors
                ]
        except (ValueError, LookupError, OSError, OverflowError, TypeError, zlib.error) as error:
            raise ValueError(f"its header cannot be read, or the file is cut off ({error})") from error
    return Model(metadata, tensors)


def model_of(parts: list[dict[str, Any]]) -> Model:
    """Return a model from ``parts`` of the module gguf_header. Raises: as read_model."""
    return read_model(tuple((part["header"], int(part["size"])) for part in parts))


def placement(model: Model, settings: dict[str, Any], free: list[int]) -> list[int | None]:
    """Return the GPU (its place in the list) of each layer, the output layer last; None is the CPU.

    The output layer is the first to go onto a GPU, then the last of the others.

    Args:
        model: the model.
        settings: all of DEFAULTS.
        free: bytes that are free on each GPU, in whose proportion layers are shared out.

    Source: llama_model_base::load_tensors.
    """
    wanted = settings["n_gpu_layers"]
    layers = model.blocks + 1
    count = layers if wanted < 0 else min(wanted, layers)
    if settings["split_mode"] == SPLIT_MODE_NONE:
        shares = [float(place == settings["main_gpu"]) for place in range(len(free))]
    else:
        given = list(settings["tensor_split"] or [])
        shares = [float(share) for share in [*given, *[0.0] * len(free)][: len(free)]]
        if not any(shares):
            shares = [float(max(size, 0)) for size in free]
    total = sum(shares)
    if not total:
        shares, total = [1.0] * len(free), float(len(free))
    bounds = [sum(shares[: place + 1]) / total for place in range(len(free))]
    first = layers - count
    places: list[int | None] = [None] * first
    for layer in range(first, layers):
        reached = (layer - first) / count
        places.append(next(place for place, bound in enumerate(bounds) if reached < bound))
    return places


def plan(
    model: Model,
    given: dict[str, Any],
    free: list[int],
    context_bytes: int = CONTEXT_BYTES,
) -> Plan:
    """Return what a model takes of each GPU.

    Args:
        model: the model.
        given: its settings, as in config.json.
        free: bytes that are free on each GPU.
        context_bytes: see CONTEXT_BYTES.

    Raises:
        ValueError: type_k or type_v is no type of ggml.
    """
    settings = {**DEFAULTS, **{key: value for key, value in given.items() if value is not None}}
    places = placement(model, settings, free)
    gpus = range(len(free))
    cells, tokens, sequences = sizes(model, settings)

    weights = [0 for _gpu in gpus]
    cache = [0 for _gpu in gpus]
    for layer, place in enumerate(places[:-1]):
        if place is not None:
            weights[place] += model.layer_bytes[layer]
            if settings["offload_kqv"]:
                cache[place] += cache_bytes(model, settings, layer, cells, sequences)
    if places[-1] is not None:
        weights[places[-1]] += model.output_bytes

    inputs, peak, scratch = compute_bytes(model, settings, cells, tokens)
    on_cpu = [model.largest[layer] for layer, place in enumerate(places) if place is None]
    pipelined = len(free) > 1 and not on_cpu and settings["offload_kqv"] and settings["split_mode"] == 1
    compute = int(MARGIN * (inputs * (PIPELINE_COPIES if pipelined else 1) + peak)) + scratch
    # Long prompts are computed on the GPU also where the weights are not: one tensor at a time.
    compute += max(on_cpu, default=0)
    return Plan(weights, cache, [compute for _gpu in gpus], [context_bytes for _gpu in gpus])


def sizes(model: Model, settings: dict[str, Any]) -> tuple[int, int, int]:
    """Return cells of the cache, tokens of the largest batch, and sequences.

    Source: Llama.__init__ of llama_cpp/llama.py, the constructor of llama_context, graph_reserve.
    """
    n_ctx = settings["n_ctx"] or model.train_context
    batch = min(n_ctx, settings["n_batch"])
    tokens = min(batch, settings["n_ubatch"])
    sequences = min(batch, MAX_SEQUENCES) if settings["embedding"] else 1
    return rounded(n_ctx, CONTEXT_STEP), rounded(tokens, sequences), sequences


def rounded(number: int, step: int) -> int:
    """Return a number rounded up to a multiple of step."""
    return -(-number // step) * step


def cache_bytes(model: Model, settings: dict[str, Any], layer: int, cells: int, sequences: int) -> int:
    """Return what a layer keeps of the conversation: K, V and the state of recurrent layers.

    Layers with a sliding window keep all cells too: swa_full is on, and the server cannot change it.

    Source: llama_kv_cache, llama_kv_cache_iswa and llama_memory_recurrent.
    """
    width_k, width_v = model.cache_widths[layer]
    if width_v and not settings["flash_attn"]:
        # V is kept transposed, and then made equally wide in all layers.
        width_v = max(v for _k, v in model.cache_widths)
    total = 0
    for width, setting in ((width_k, "type_k"), (width_v, "type_v")):
        block, size = block_of(F16 if settings[setting] is None else settings[setting])
        total += width * cells // block * size
    if layer in model.recurrent:
        total += model.state_bytes * sequences
    return total


def compute_bytes(model: Model, settings: dict[str, Any], cells: int, tokens: int) -> tuple[int, int, int]:
    """Return upper estimates of what computing a batch takes: inputs, peak of the graph, scratch.

    The first two are the engine's "compute buffer size", the third what ggml-cuda takes from its
    pool beside it: the largest of f16 copies of the scores or of an output, or f32 ones of K.
    """
    flash = settings["flash_attn"]
    row = model.embedding * tokens * F32_BYTES
    heads = max(model.heads, default=0)
    width_k = max((k for k, _v in model.cache_widths), default=0)
    width_v = max((v for _k, v in model.cache_widths), default=0)
    queries = heads * max(model.head_lengths("key"), default=0) * tokens * F32_BYTES
    results = heads * max(model.head_lengths("value"), default=0) * tokens * F32_BYTES
    scores = 0 if flash else heads * cells * tokens * F32_BYTES

    masks = 2 if model.number("attention.sliding_window") else 1
    mask = masks * cells * tokens * (F16_BYTES if flash else F32_BYTES)
    inputs = row + mask + tokens * INDEX_BYTES * masks * (2 if flash else 1 + width_v)

    attention = 2 * row + queries + scores + 2 * results
    quantised = settings["type_k"] not in (None, F16) or settings["type_v"] not in (None, F16)
    if flash and quantised:
        # The kernels for batches want f16: K and V of a layer are converted as a whole.
        attention += (width_k + width_v) * cells * F16_BYTES
    width = model.number("feed_forward_length")
    if experts := model.number("expert_used_count"):
        expert = model.number("expert_feed_forward_length") or width
        shared = model.number("expert_shared_feed_forward_length")
        width = max(width, experts * expert + (shared or model.number("expert_shared_count") * expert))
    forward = 3 * row + 3 * width * tokens * F32_BYTES
    output = 2 * row + model.vocabulary * tokens * F32_BYTES
    peak = max(attention, forward, output)

    copies = [max(width, model.vocabulary) * tokens * F16_BYTES]
    if not flash:
        copies += [(scores + results) // F32_BYTES * F16_BYTES, width_k * cells * F32_BYTES]
    return inputs, peak, max(copies)


def vram_fit(
    model: Model | list[dict[str, Any]],
    settings: dict[str, Any],
    free: list[int],
    context_bytes: int = CONTEXT_BYTES,
) -> dict[str, Any]:
    """Return what a model takes of its GPUs, and what would fit if that is too much.

    Args:
        model: from read_model, or ``parts`` as the module gguf_header returns them.
        settings: of the model, as in config.json.
        free: bytes that are free on each GPU that the model may use.
        context_bytes: see CONTEXT_BYTES.

    Returns:
        ``weights``, ``cache``, ``compute``, ``context``, ``total`` (bytes on all GPUs together),
        ``per_gpu`` (bytes, in the order of free), ``fits`` (bool), ``layers`` (on the GPUs and of all,
        as "41/41"), ``n_ctx``; and, where it does not fit, ``largest``: n_ctx, n_gpu_layers and n_batch
        that would, each None when no value does while the others stay as they are.

    Raises:
        ValueError: The model cannot be read.
    """
    if isinstance(model, list):
        model = model_of(model)
    settings = {**DEFAULTS, **{key: value for key, value in settings.items() if value is not None}}

    def fits(**changed: int) -> bool:
        needed = plan(model, {**settings, **changed}, free, context_bytes).totals()
        return all(need <= room for need, room in zip(needed, free, strict=True))

    needed = plan(model, settings, free, context_bytes)
    n_ctx = settings["n_ctx"] or model.train_context
    places = placement(model, settings, free)
    result = {
        **{what: sum(parts) for what, parts in needed._asdict().items()},
        "per_gpu": needed.totals(),
        "total": sum(needed.totals()),
        "fits": fits(),
        "layers": f"{sum(place is not None for place in places)}/{len(places)}",
        "n_ctx": n_ctx,
    }
    if not result["fits"]:
        on_gpu = sum(place is not None for place in places)
        result["largest"] = {
            "n_ctx": largest(range(CONTEXT_STEP, n_ctx, CONTEXT_STEP), lambda value: fits(n_ctx=value)),
            "n_gpu_layers": largest(range(on_gpu), lambda value: fits(n_gpu_layers=value)),
            "n_batch": largest(range(32, settings["n_batch"], 32), lambda value: fits(n_batch=value)),
        }
    return result


def largest(values: range, fits: Callable[[int], bool]) -> int | None:
    """Return a value that fits before one that does not, by halving; None where none is found.

    More of anything needs more memory, so that is the largest, but for one exception: the last layer
    that goes onto a GPU may save more than it needs there.
    """
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if fits(values[middle]):
            low = middle + 1
        else:
            high = middle
    return values[low - 1] if low else None


def vram_table(
    instances: list[dict[str, Any]],
    models: list[dict[str, Any]],
    model_defaults: dict[str, Any],
    headers: dict[str, dict[str, Any]],
    gpus: list[dict[str, Any]],
    context_bytes: int = CONTEXT_BYTES,
) -> dict[str, list[str]]:
    """Return a table of what each instance's models take of its GPUs, and what does not fit.

    An instance has one model in memory at a time, so of an instance the largest counts; what several
    instances take of one GPU adds up. What this project's own containers use now counts as free.

    Args:
        instances: llm_instances; those without GPUs are left out.
        models: the catalogue llm_models.
        model_defaults: llm_model_defaults.
        headers: by model file, from the module gguf_header.
        gpus: of the host, each with index, uuid, name, memory_total, memory_free and memory_ours.
        context_bytes: see CONTEXT_BYTES.

    Returns:
        ``lines`` to show, and ``problems``, one line for each model that does not fit.
    """
    catalogue = {model["alias"]: model for model in models}
    free = {gpu["uuid"]: gpu["memory_free"] + gpu["memory_ours"] for gpu in gpus}
    all_served = [
        serve(
            instance, f"llm_instances[{index}]", catalogue, model_defaults or {}, headers, gpus, context_bytes
        )
        for index, instance in enumerate(instances)
        if instance.get("gpus")
    ]
    lines, problems = [], []
    for served in all_served:
        others = [
            other for other in all_served if other is not served and other.takes.keys() & served.takes.keys()
        ]
        # Taken by the others, of each GPU of this instance.
        taken = [sum(other.takes.get(gpu["uuid"], 0) for other in others) for gpu in served.gpus]
        room = [max(free[gpu["uuid"]] - more, 0) for gpu, more in zip(served.gpus, taken, strict=True)]
        rows = []
        for alias, settings, model, why in served.models:
            if model is None:
                rows.append([alias, f"not checked: {why}"])
                continue
            fit = vram_fit(model, settings, room, context_bytes)
            numbers = [fit[what] for what in ("weights", "cache", "compute", "context", "total")]
            rows.append(
                [
                    alias,
                    fit["layers"],
                    str(fit["n_ctx"]),
                    *map(gib, [*numbers, sum(room)]),
                    verdict(fit, model),
                ]
            )
            if not fit["fits"]:
                beside = " and ".join(other.name for other in others)
                shares = served.shares
                problems.append(
                    f"{served.where}: {alias} {too_large(fit, served.gpus, room, beside, shares)}"
                )
        on = " and ".join(described(gpu) for gpu in served.gpus) or "GPUs that are not known"
        lines += [f"{served.name} on {on}", *aligned([TITLES, *rows])]
    return {"lines": lines, "problems": problems}


class Served(NamedTuple):
    """An instance with its GPUs.

    ``models`` are rows of alias, settings, Model or None, and why it is None; ``takes`` says, by UUID,
    how many bytes the largest of them takes of a GPU; ``shares``, how many requests share the context.
    """

    where: str
    name: str
    gpus: list[dict[str, Any]]
    models: list[tuple[str, dict[str, Any], Model | None, str]]
    takes: dict[str, int]
    shares: int


def serve(
    instance: dict[str, Any],
    where: str,
    catalogue: dict[str, dict[str, Any]],
    model_defaults: dict[str, Any],
    headers: dict[str, dict[str, Any]],
    gpus: list[dict[str, Any]],
    context_bytes: int,
) -> Served:
    """Return what an instance serves, alone on its GPUs.

    Args:
        instance: entry of llm_instances, with GPUs.
        where: its place in the inventory.
        catalogue: llm_models by alias.
        model_defaults: llm_model_defaults.
        headers: by model file, from the module gguf_header.
        gpus: of the host.
        context_bytes: see CONTEXT_BYTES.
    """
    own = gpus_of(instance, gpus)
    free = [gpu["memory_free"] + gpu["memory_ours"] for gpu in own]
    known = own and all(gpu["memory_total"] for gpu in own)
    takes = {gpu["uuid"]: 0 for gpu in own}
    rows: list[tuple[str, dict[str, Any], Model | None, str]] = []
    for alias in aliases_of(instance, catalogue):
        settings = {**model_defaults, **(catalogue[alias].get("settings") or {})}
        if instance.get("engine") == "batch":
            settings |= batched(instance, settings)
        header = headers.get(catalogue[alias]["file"], {"problem": "its header has not been read"})
        try:
            if not known:
                raise ValueError("the memory of these GPUs is not known")
            if header["problem"]:
                raise ValueError(header["problem"])
            model = model_of(header["parts"])
            needs = plan(model, settings, free, context_bytes).totals()
        except ValueError as error:
            rows.append((alias, settings, None, str(error)))
            continue
        rows.append((alias, settings, model, ""))
        for gpu, need in zip(own, needs, strict=True):
            takes[gpu["uuid"]] = max(takes[gpu["uuid"]], need)
    shares = instance.get("parallel", PARALLEL) if instance.get("engine") == "batch" else 1
    return Served(f"{where} (name {instance['name']})", instance["name"], own, rows, takes, shares)


def batched(instance: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return what of a model's settings is another for the batching server (see the filter llm_config).

    Args:
        instance: entry of llm_instances with ``engine: batch``.
        settings: of the model, with llm_model_defaults.
    """
    own = instance.get("settings") or {}
    n_ctx = settings.get("n_ctx", DEFAULTS["n_ctx"]) * instance.get("parallel", PARALLEL)
    return {
        "embedding": False,
        "n_batch": settings.get("n_batch", BATCH_N_BATCH),
        "n_ctx": n_ctx,
        **{name: value for name, value in own.items() if name in DEFAULTS and value is not None},
    }


def files_on_gpus(
    instances: list[dict[str, Any]], models: list[dict[str, Any]], files: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the files of the models that an instance with GPUs serves, without side files.

    Args:
        instances: llm_instances.
        models: llm_models.
        files: of the models, from the filter model_files.
    """
    catalogue = {model["alias"]: model["file"] for model in models}
    served = {
        catalogue[alias] for one in instances if one.get("gpus") for alias in aliases_of(one, catalogue)
    }
    return [entry for entry in files if entry["part_of"] in served]


def aliases_of(instance: dict[str, Any], catalogue: Iterable[str]) -> list[str]:
    """Return the aliases that an instance serves; left out, all of the catalogue."""
    wanted = instance.get("models")
    return list(catalogue) if wanted is None else wanted


def gpus_of(instance: dict[str, Any], gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the GPUs of an instance, in its order.

    What the host does not have, and MIG devices, whose memory nvidia-smi does not list, are missing.
    """
    wanted = instance["gpus"]
    if wanted == "all":
        return gpus
    named = {str(name): gpu for gpu in gpus for name in (gpu["index"], gpu["uuid"])}
    return [named[str(name)] for name in wanted if str(name) in named]


def verdict(fit: dict[str, Any], model: Model) -> str:
    """Return the last column of the table. Arguments: what vram_fit said of the model."""
    words = "fits" if fit["fits"] else "TOO LARGE"
    if fit["layers"].startswith("0/"):
        words += ", but runs on the CPU: its n_gpu_layers is 0"
    return f"{words} ({model.unknown()})" if model.unknown() else words


def too_large(
    fit: dict[str, Any], own: list[dict[str, Any]], room: list[int], beside: str, shares: int = 1
) -> str:
    """Return what is missing on which GPU, and what would fit.

    Args:
        fit: from vram_fit.
        own: GPUs of the instance.
        room: bytes that are left for it on each of them.
        beside: names of other instances on the same GPUs.
        shares: requests that share the context, each with the model's n_ctx.
    """
    full = next(place for place, need in enumerate(fit["per_gpu"]) if need > room[place])
    found = fit["largest"] | {"n_ctx": (fit["largest"]["n_ctx"] or 0) // shares}
    ways = [f"{name}: {found[name]}" for name in ("n_ctx", "n_gpu_layers") if found[name]]
    if not ways and found["n_batch"]:
        ways = [f"n_batch: {found['n_batch']}"]
    advice = (
        f"the largest that fits is {', or '.join(ways)} (in its settings in llm_models)"
        if ways
        else "no n_ctx, n_gpu_layers or n_batch makes it fit"
    )
    need, left = -(-fit["per_gpu"][full] // MIB), room[full] // MIB
    return (
        f"needs {need} MiB of GPU {own[full]['index']} ({own[full]['name']}), which has"
        f" {left} MiB free{f' beside {beside}' if beside else ''}; {advice}; or give the instance another GPU"
    )


def described(gpu: dict[str, Any]) -> str:
    """Return a GPU as an operator knows it."""
    free = gib(gpu["memory_free"] + gpu["memory_ours"])
    return f"GPU {gpu['index']} ({gpu['name']}, {free} of {gib(gpu['memory_total'])} GiB free)"


def gib(size: int) -> str:
    """Return bytes as GiB with two decimals."""
    return f"{size / 2**30:.2f}"


def aligned(rows: list[list[str]]) -> list[str]:
    """Return rows as lines with columns of equal width, numbers to the right."""
    widths = [max(len(row[column]) for row in rows if len(row) > 2) for column in range(len(TITLES) - 1)]
    widths[0] = max(len(row[0]) for row in rows)
    lines = []
    for name, *cells in rows:
        if len(cells) == 1:
            text = cells[0]
        else:
            text = "  ".join(
                [*(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=False)), cells[-1]]
            )
        lines.append(f"  {name.ljust(widths[0])}  {text}".rstrip())
    return lines


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"files_on_gpus": files_on_gpus, "vram_fit": vram_fit, "vram_table": vram_table}
