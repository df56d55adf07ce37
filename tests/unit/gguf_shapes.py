"""Header-only GGUF files: models of real shapes without a single weight.

A shape is a dict of ``metadata`` (by key) and ``tensors``: by name a list of type and dimensions;
``*`` in a name stands for every layer, and a list of types gives one to each of them.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import gguf
import numpy

RECORDED = Path(__file__).with_name("engine-sizes-0.3.36.json")


def llama(*, layers, embedding, forward, heads, kv_heads, vocabulary, kind, experts=0, context=4096):
    """Returns the shape of a model of llama's kind, all of its matrices of one type."""
    shape = {
        "metadata": {
            "general.architecture": "llama",
            "llama.block_count": layers,
            "llama.context_length": context,
            "llama.embedding_length": embedding,
            "llama.feed_forward_length": forward,
            "llama.attention.head_count": heads,
            "llama.attention.head_count_kv": kv_heads,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.dimension_count": embedding // heads,
            "llama.vocab_size": vocabulary,
        },
        "tensors": {
            "token_embd.weight": [kind, embedding, vocabulary],
            "output_norm.weight": ["F32", embedding],
            "output.weight": [kind, embedding, vocabulary],
            "blk.*.attn_norm.weight": ["F32", embedding],
            "blk.*.attn_q.weight": [kind, embedding, embedding],
            "blk.*.attn_k.weight": [kind, embedding, embedding // heads * kv_heads],
            "blk.*.attn_v.weight": [kind, embedding, embedding // heads * kv_heads],
            "blk.*.attn_output.weight": [kind, embedding, embedding],
            "blk.*.ffn_norm.weight": ["F32", embedding],
        },
    }
    tensors = shape["tensors"]
    if experts:
        shape["metadata"] |= {"llama.expert_count": experts, "llama.expert_used_count": 2}
        tensors["blk.*.ffn_gate_inp.weight"] = ["F32", embedding, experts]
        tensors["blk.*.ffn_gate_exps.weight"] = [kind, embedding, forward, experts]
        tensors["blk.*.ffn_down_exps.weight"] = [kind, forward, embedding, experts]
        tensors["blk.*.ffn_up_exps.weight"] = [kind, embedding, forward, experts]
    else:
        tensors["blk.*.ffn_gate.weight"] = [kind, embedding, forward]
        tensors["blk.*.ffn_down.weight"] = [kind, forward, embedding]
        tensors["blk.*.ffn_up.weight"] = [kind, embedding, forward]
    return shape


def vicuna_13b():
    """The first model of the reference deployment (Vicuna 13B v1.5, q8_0)."""
    return llama(
        layers=40, embedding=5120, forward=13824, heads=40, kv_heads=40, vocabulary=32000, kind="Q8_0"
    )


def karakuri_8x7b():
    """The second model of the reference deployment (KARAKURI LM 8x7B, q6_K): Mixtral's shape."""
    return llama(
        layers=32, embedding=4096, forward=14336, heads=32, kv_heads=8, vocabulary=45416, kind="Q6_K",
        experts=8, context=32768,
    )  # fmt: skip


def hybrid():
    """A small model of two kinds of layers (Granite 4's): of four layers one has attention."""
    layers, embedding, inner, state, groups, ranks = 4, 768, 1536, 128, 1, 48
    attention = [layer == 3 for layer in range(layers)]
    tensors = {
        "token_embd.weight": ["Q8_0", embedding, 100352],
        "output_norm.weight": ["F32", embedding],
        "blk.*.attn_norm.weight": ["F32", embedding],
        "blk.*.ffn_norm.weight": ["F32", embedding],
        "blk.*.ffn_gate.weight": ["Q8_0", embedding, 2048],
        "blk.*.ffn_down.weight": ["Q8_0", 2048, embedding],
        "blk.*.ffn_up.weight": ["Q8_0", embedding, 2048],
    }
    for layer, has_attention in enumerate(attention):
        if has_attention:
            tensors |= {
                f"blk.{layer}.attn_q.weight": ["Q8_0", embedding, embedding],
                f"blk.{layer}.attn_k.weight": ["Q8_0", embedding, embedding // 3],
                f"blk.{layer}.attn_v.weight": ["Q8_0", embedding, embedding // 3],
                f"blk.{layer}.attn_output.weight": ["Q8_0", embedding, embedding],
            }
        else:
            conv = inner + 2 * groups * state
            tensors |= {
                f"blk.{layer}.ssm_in.weight": ["Q8_0", embedding, inner + conv + ranks],
                f"blk.{layer}.ssm_conv1d.weight": ["F32", 4, conv],
                f"blk.{layer}.ssm_conv1d.bias": ["F32", conv],
                f"blk.{layer}.ssm_dt.bias": ["F32", ranks],
                f"blk.{layer}.ssm_a": ["F32", 1, ranks],
                f"blk.{layer}.ssm_d": ["F32", 1, ranks],
                f"blk.{layer}.ssm_norm.weight": ["F32", inner // groups, groups],
                f"blk.{layer}.ssm_out.weight": ["Q8_0", inner, embedding],
            }
    return {
        "metadata": {
            "general.architecture": "granitehybrid",
            "granitehybrid.block_count": layers,
            "granitehybrid.context_length": 32768,
            "granitehybrid.embedding_length": embedding,
            "granitehybrid.feed_forward_length": 2048,
            "granitehybrid.attention.head_count": 12,
            "granitehybrid.attention.head_count_kv": [4 if has else 0 for has in attention],
            "granitehybrid.attention.layer_norm_rms_epsilon": 1e-5,
            "granitehybrid.rope.dimension_count": 64,
            "granitehybrid.vocab_size": 100352,
            "granitehybrid.ssm.conv_kernel": 4,
            "granitehybrid.ssm.inner_size": inner,
            "granitehybrid.ssm.state_size": state,
            "granitehybrid.ssm.group_count": groups,
            "granitehybrid.ssm.time_step_rank": ranks,
        },
        "tensors": tensors,
    }


SHAPES = {"vicuna-13b": vicuna_13b, "karakuri-8x7b": karakuri_8x7b, "hybrid": hybrid}


def shape_of(name):
    """Returns a shape by its name: one of SHAPES, or one recorded from a real file."""
    if name in SHAPES:
        return SHAPES[name]()
    return json.loads(RECORDED.read_text(encoding="utf-8"))["shapes"][name]


def tensors_of(shape):
    """Returns every tensor of a shape: name, dimensions, type."""
    layers = shape["metadata"][f"{shape['metadata']['general.architecture']}.block_count"]
    tensors = []
    for name, (kind, *dimensions) in shape["tensors"].items():
        for layer in range(layers) if "*" in name else [0]:
            one = kind[layer] if isinstance(kind, list) else kind
            tensors.append((name.replace("*", str(layer)), dimensions, gguf.GGMLQuantizationType[one]))
    return tensors


def bytes_of(kind, *dimensions):
    """Returns the bytes of a tensor of a type (its name) and dimensions."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(numpy.prod(dimensions)) // block * size


def write(path, shape, words=8):
    """Writes a shape as a GGUF file without weights, and returns the bytes that the file stands for.

    Its vocabulary is a few words; the engine takes as many as the metadata's vocab_size says.
    """
    metadata = shape["metadata"]
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.add_tokenizer_model("no_vocab")
    writer.add_token_list([f"word{number}" for number in range(words)])
    for name, dimensions, kind in tensors_of(shape):
        writer.add_tensor_info(
            name,
            list(reversed(dimensions)),
            numpy.dtype("float16"),  # not looked at beside raw_dtype
            bytes_of(kind.name, *dimensions),
            raw_dtype=kind,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    aligned = functools.partial(gguf.GGUFWriter.ggml_pad, n=writer.data_alignment)
    tensors = (aligned(bytes_of(kind.name, *dimensions)) for _name, dimensions, kind in tensors_of(shape))
    return aligned(Path(path).stat().st_size) + sum(tensors)


def recorded(path):
    """Returns the shape of a real GGUF file, as it is recorded."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    prefixes = (f"{architecture}.", "general.architecture")
    metadata = {name: field.contents() for name, field in reader.fields.items() if name.startswith(prefixes)}
    tensors = {}
    for tensor in reader.tensors:
        name, dimensions = tensor.name, [int(number) for number in tensor.shape]
        if name.startswith("blk."):
            _blk, layer, rest = name.split(".", 2)
            entry = tensors.setdefault(f"blk.*.{rest}", [{}, *dimensions])
            entry[0][int(layer)] = tensor.tensor_type.name
        else:
            tensors[name] = [tensor.tensor_type.name, *dimensions]
    for entry in tensors.values():
        if isinstance(entry[0], dict):
            kinds = [kind for _layer, kind in sorted(entry[0].items())]
            entry[0] = kinds if len(set(kinds)) > 1 else kinds[0]
    return {"metadata": metadata, "tensors": tensors}
