"""What models need of a GPU: against the engine's own figures, by hand, and word for word."""

from __future__ import annotations

import builtins
import functools
import json
import os
import tempfile
from pathlib import Path

import gguf_header
import gguf_shapes
import llm_config
import pytest
import vram
import vram_doc
from ansible.errors import AnsibleFilterError

MIB, GIB = 1 << 20, 1 << 30
RECORD = json.loads(gguf_shapes.RECORDED.read_text(encoding="utf-8"))
ALL = {"n_gpu_layers": -1}
SHIPPED = {**ALL, "embedding": True, "logits_all": False}


def parts_of(shape):
    """What the module gguf_header returns for a file of this shape."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "x.gguf")
        os.truncate(path, gguf_shapes.write(path, shape))
        return [gguf_header.from_file(str(path))]


@functools.cache
def model(name):
    return vram.model_of(parts_of(gguf_shapes.shape_of(name)))


def small(**changed):
    """A model of two layers, with other metadata."""
    shape = gguf_shapes.llama(
        layers=2, embedding=512, forward=1024, heads=8, kv_heads=2, vocabulary=1000, kind="Q8_0"
    )
    shape["metadata"] |= changed
    return shape


def fit(shape, free=(80 * GIB,), **settings):
    return vram.vram_fit(parts_of(shape), {**ALL, **settings}, list(free))


@pytest.fixture(params=RECORD["engine"], ids=lambda case: f"{case['model']}-{case['settings']}")
def case(request):
    """What the engine printed, with the plan for the same settings: all on one GPU."""
    settings = {**vram.DEFAULTS, **RECORD["shipped_settings"], **ALL, **request.param["settings"]}
    known = model(request.param["model"])
    return known, settings, vram.plan(known, settings, [80 * GIB]), request.param["mib"]


def test_the_cache_is_what_the_engine_allocates(case):
    _model, _settings, plan, engine = case
    assert plan.cache[0] / MIB == pytest.approx(engine["cache"] + engine["state"], abs=0.02)


def test_the_weights_are_what_the_engine_loads(case, request):
    _model, _settings, plan, engine = case
    tensors = gguf_shapes.shape_of(request.node.callspec.params["case"]["model"])["tensors"]
    # Where it is not the output layer too, the table of words stays in the host's memory.
    on_host = 0
    if "output.weight" in tensors:
        on_host = gguf_shapes.bytes_of(*tensors["token_embd.weight"])
    assert (plan.weights[0] + on_host) / MIB == pytest.approx(engine["model"] or engine["file"], rel=0.001)


def test_the_compute_buffer_is_an_upper_estimate_of_the_engines(case):
    known, settings, plan, engine = case
    cells, tokens, _sequences = vram.sizes(known, settings)
    scratch = vram.compute_bytes(known, settings, cells, tokens)[2]
    estimate = (plan.compute[0] - scratch) / MIB
    assert engine["compute"] <= estimate <= 1.3 * engine["compute"]


def test_every_setting_that_the_server_has_is_known_with_its_default(schema):
    fields = schema["model_settings"]["properties"]
    assert {name: fields[name].get("default") for name in vram.DEFAULTS} == vram.DEFAULTS
    assert "swa_full" not in fields, "windowed layers would then need less"


def test_layers_go_onto_the_gpu_from_the_output_backwards():
    known = vram.model_of(parts_of(small()))
    first, last = known.layer_bytes

    def weights(count):
        return fit(small(), n_gpu_layers=count)["weights"]

    assert known.output_bytes > 0
    assert [weights(count) for count in (0, 1, 2, 3, 99, -1)] == [
        0,
        known.output_bytes,
        known.output_bytes + last,
        *[known.output_bytes + last + first] * 3,
    ]
    assert [fit(small(), n_gpu_layers=count)["layers"] for count in (0, 2, -1)] == ["0/3", "2/3", "3/3"]


def test_only_layers_on_the_gpu_have_their_cache_there():
    per_layer = 2 * 2 * 64 * 2048 * 2  # K and V, two heads of 64, cells, f16
    caches = [fit(small(), n_gpu_layers=count)["cache"] for count in (0, 1, 2, 3)]
    assert caches == [0, 0, per_layer, 2 * per_layer]
    assert fit(small(), offload_kqv=False)["cache"] == 0


def test_the_words_stay_on_the_host_unless_they_are_the_output_too():
    table = gguf_shapes.bytes_of("Q8_0", 512, 1000)
    tied = small()
    del tied["tensors"]["output.weight"]
    norm = 512 * 4
    assert vram.model_of(parts_of(small())).output_bytes == table + norm
    assert vram.model_of(parts_of(tied)).output_bytes == table + norm


def test_rows_of_quantised_tensors_are_padded_on_a_gpu():
    assert vram.on_gpu(vram.Tensor("x", (576, 10), 8, 6120)) == 6120 + 448 // 32 * 34
    assert vram.on_gpu(vram.Tensor("x", (1024, 10), 8, 10880)) == 10880
    assert vram.on_gpu(vram.Tensor("x", (576,), 0, 2304)) == 2304


def test_the_context_is_rounded_up_and_taken_from_the_file_where_it_is_0():
    caches = {n_ctx: fit(small(), n_ctx=n_ctx)["cache"] for n_ctx in (1, 256, 257, 512, 4096, 0)}
    assert caches[1] == caches[256] < caches[257] == caches[512]
    assert caches[0] == caches[4096], "context_length of this shape is 4096"
    assert fit(small(), n_ctx=0)["n_ctx"] == 4096


def test_heads_may_differ_by_layer():
    one = fit(small())["cache"] // 2
    varied = small(**{"llama.attention.head_count_kv": [2, 0]})
    assert fit(varied, flash_attn=True)["cache"] == one
    varied = small(**{"llama.attention.head_count_kv": [2, 1]})
    assert fit(varied, flash_attn=True)["cache"] == one + one // 2
    # Without flash attention V is as wide everywhere as in the widest layer.
    assert fit(varied)["cache"] == one + one // 4 + one // 2


def test_heads_may_have_their_own_lengths():
    plain = fit(small())["cache"]
    changed = small(**{"llama.attention.key_length": 128, "llama.attention.value_length": 32})
    assert fit(changed)["cache"] == plain // 2 * (128 + 32) // 64
    windowed = {"llama.attention.key_length_swa": 32, "llama.attention.sliding_window_pattern": [True, False]}
    assert fit(small(**windowed))["cache"] == plain - plain // 8
    del windowed["llama.attention.sliding_window_pattern"]
    assert fit(small(**windowed))["cache"] == plain, "the larger one, where the file does not tell which"


def test_latent_attention_keeps_no_values():
    latent = {"llama.attention.key_length_mla": 192, "llama.attention.key_length": 64}
    assert fit(small(**latent))["cache"] == fit(small())["cache"] // 2


def test_layers_without_a_cache_of_their_own_are_not_counted():
    one = fit(small())["cache"] // 2
    assert fit(small(**{"llama.attention.shared_kv_layers": 1}))["cache"] == one
    spare = small(**{"llama.nextn_predict_layers": 1})
    assert fit(spare)["cache"] == one
    assert fit(spare)["weights"] < fit(small())["weights"]


def test_a_kind_without_a_cache_has_none():
    shape = json.loads(json.dumps(small()).replace("llama", "bert"))
    assert fit(shape)["cache"] == 0


@pytest.mark.parametrize(
    ("metadata", "tensor", "state"),
    [
        ({"wkv.head_size": 64}, "time_mix_w1.weight", 4 * 512 * (64 + 2)),
        ({"shortconv.l_cache": 3}, "shortconv.conv.weight", 4 * 512 * 2),
        (
            {"ssm.inner_size": 1024, "ssm.state_size": 16, "ssm.conv_kernel": 4, "ssm.group_count": 2},
            "ssm_conv1d.weight",
            4 * (3 * (1024 + 2 * 2 * 16) + 16 * 1024),
        ),
    ],
)
def test_recurrent_layers_keep_a_state_per_sequence_instead(metadata, tensor, state):
    shape = small(**{f"llama.{key}": value for key, value in metadata.items()})
    shape["tensors"][f"blk.1.{tensor}"] = ["F32", 512]
    one = fit(small())["cache"] // 2
    assert fit(shape)["cache"] == one + state
    assert fit(shape, embedding=True)["cache"] == one + 256 * state
    assert fit(shape, embedding=True, n_batch=100)["cache"] == one + 100 * state
    assert vram.model_of(parts_of(shape)).unknown() == ""


def test_what_is_not_counted_is_said():
    shape = small()
    shape["tensors"]["blk.0.ssm_conv1d_q.weight"] = ["F32", 512]
    unknown = vram.model_of(parts_of(shape)).unknown()
    assert unknown == "state of llama's recurrent layers not counted"
    sparse = small(**{"llama.attention.indexer.key_length": 128})
    assert vram.model_of(parts_of(sparse)).unknown() == "index cache of llama's sparse attention not counted"


def test_layers_are_shared_out_in_proportion():
    known = vram.model_of(parts_of(small()))
    places = functools.partial(vram.placement, known)
    settings = {**vram.DEFAULTS, **ALL}
    assert places(settings, [100, 100]) == [0, 0, 1]
    assert places(settings, [100, 300]) == [0, 1, 1]
    assert places(settings, [0, 0]) == [0, 0, 1]
    assert places({**settings, "tensor_split": [0, 1]}, [100, 100]) == [1, 1, 1]
    assert places({**settings, "tensor_split": [1]}, [100, 100]) == [0, 0, 0]
    assert places({**settings, "split_mode": 0, "main_gpu": 1}, [100, 100]) == [1, 1, 1]
    assert places({**settings, "n_gpu_layers": 2}, [100, 100]) == [None, 0, 1]


def test_every_gpu_has_its_own_context_and_buffers():
    one, two = fit(small()), fit(small(), free=(GIB, GIB))
    assert two["context"] == 2 * one["context"] == 2 * 500 * MIB
    assert two["weights"] == one["weights"]
    assert two["compute"] > 2 * one["compute"], "the inputs of a batch are kept four times"
    assert two["total"] == sum(two["per_gpu"])
    assert fit(small(), free=(GIB, GIB), tensor_split=[1, 0])["per_gpu"][1] == two["compute"] // 2 + 500 * MIB


def test_weights_left_on_the_cpu_are_copied_one_at_a_time():
    full, part = fit(small()), fit(small(), n_gpu_layers=1)
    assert part["compute"] - full["compute"] == gguf_shapes.bytes_of("Q8_0", 512, 1024)


def test_the_context_of_cuda_can_be_set():
    parts = parts_of(small())
    assert vram.vram_fit(parts, ALL, [GIB], context_bytes=7)["context"] == 7


def test_what_would_fit_is_the_largest_that_does():
    free = 16 * GIB
    found = vram.vram_fit(parts_of(gguf_shapes.vicuna_13b()), {**SHIPPED, "n_ctx": 4096}, [free])
    assert found["fits"] is False

    def needed(**settings):
        known = model("vicuna-13b")
        return vram.plan(known, {**SHIPPED, "n_ctx": 4096, **settings}, [free]).totals()[0]

    largest = found["largest"]
    assert needed(n_ctx=largest["n_ctx"]) <= free < needed(n_ctx=largest["n_ctx"] + 256)
    layers = largest["n_gpu_layers"]
    assert needed(n_gpu_layers=layers) <= free < needed(n_gpu_layers=layers + 1)
    assert largest["n_ctx"] % 256 == 0
    assert 0 < layers < 41


def test_what_fits_exactly_fits():
    parts = parts_of(small())
    total = vram.vram_fit(parts, ALL, [GIB])["total"]
    assert vram.vram_fit(parts, ALL, [total])["fits"] is True
    assert vram.vram_fit(parts, ALL, [total - 1])["fits"] is False


def test_parts_of_a_split_model_are_one(tmp_path):
    whole, second = small(), small()
    second["tensors"] = {"blk.1.ffn_up.weight": whole["tensors"].pop("blk.*.ffn_up.weight")}
    whole["tensors"]["blk.0.ffn_up.weight"] = second["tensors"]["blk.1.ffn_up.weight"]
    parts = parts_of(whole) + parts_of(second)
    assert vram.vram_fit(parts, ALL, [GIB])["weights"] == fit(small())["weights"]


def test_a_file_that_is_cut_off_or_no_model_cannot_be_sized():
    [part] = parts_of(small())
    with pytest.raises(ValueError, match="its header cannot be read, or the file is cut off"):
        vram.model_of([{**part, "size": part["size"] // 2}])
    shape = small()
    del shape["metadata"]["llama.block_count"]
    shape["tensors"] = {}
    shape["metadata"]["llama.block_count"] = 0
    with pytest.raises(ValueError, match=r"its metadata has no llama\.block_count"):
        vram.model_of(parts_of(shape))


def test_without_the_package_gguf_the_way_out_is_said(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name == "gguf":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(AnsibleFilterError, match=r"pip install -r requirements\.txt"):
        vram.gguf_package()


# ---- The table ----------------------------------------------------------------------------------

MODELS = [
    {"alias": "vicuna-13b", "file": "v.gguf", "settings": {"n_gpu_layers": -1, "n_ctx": 4096}},
    {"alias": "karakuri-8x7b", "file": "k.gguf", "settings": {"n_gpu_layers": -1, "n_ctx": 4096}},
]
DEFAULTS = {"embedding": True, "logits_all": False}


@pytest.fixture(scope="module")
def headers():
    return {
        file: {"parts": parts_of(gguf_shapes.shape_of(name)), "problem": ""}
        for file, name in (("v.gguf", "vicuna-13b"), ("k.gguf", "karakuri-8x7b"))
    }


def gpu(index, gib, free=None, ours=0):
    return {
        "index": index,
        "uuid": f"GPU-{index}",
        "name": "NVIDIA X",
        "memory_total": gib * GIB,
        "memory_free": int((gib if free is None else free) * GIB),
        "memory_ours": ours * GIB,
    }


def instance(name, gpus, *aliases):
    return {"name": name, "port": 1, "gpus": gpus, **({"models": list(aliases)} if aliases else {})}


@pytest.fixture
def table(headers):
    def made(instances, gpus, defaults=DEFAULTS, **changed):
        return vram.vram_table(instances, MODELS, defaults, {**headers, **changed}, gpus)

    return made


def test_an_instance_on_a_gpu_that_holds_its_models(table):
    assert table([instance("llamacpp", [0])], [gpu(0, 48)]) == {
        "lines": [
            "llamacpp on GPU 0 (NVIDIA X, 48.00 of 48.00 GiB free)",
            "  model          layers  n_ctx  weights  KV cache  compute  context  total  free GiB",
            "  vicuna-13b      41/41   4096    12.72      3.12     0.60     0.49  16.93     48.00  fits",
            "  karakuri-8x7b   33/33   4096    35.63      0.50     0.47     0.49  37.08     48.00  fits",
        ],
        "problems": [],
    }


def test_a_model_that_is_too_large_is_one_line_with_what_would_fit(table):
    found = table([instance("cpu", []), instance("llamacpp", [0])], [gpu(0, 24, free=16)])
    assert [line.split()[-2:] for line in found["lines"][2:]] == [["TOO", "LARGE"]] * 2
    assert found["problems"] == [
        "llm_instances[1] (name llamacpp): vicuna-13b needs 17338 MiB of GPU 0 (NVIDIA X), which has"
        " 16384 MiB free; the largest that fits is n_ctx: 2816, or n_gpu_layers: 38 (in its settings in"
        " llm_models); or give the instance another GPU",
        "llm_instances[1] (name llamacpp): karakuri-8x7b needs 37973 MiB of GPU 0 (NVIDIA X), which has"
        " 16384 MiB free; the largest that fits is n_gpu_layers: 13 (in its settings in llm_models); or"
        " give the instance another GPU",
    ]


def test_where_only_a_smaller_batch_helps_it_is_said_and_where_nothing_does_that_too():
    parts = parts_of(gguf_shapes.shape_of("gemma3"))  # 262,144 words: a batch takes more than the model

    def advice(free):
        found = vram.vram_table(
            [instance("one", [0])],
            [{"alias": "gemma3", "file": "g.gguf", "settings": ALL}],
            DEFAULTS,
            {"g.gguf": {"parts": parts, "problem": ""}},
            [gpu(0, 24, free=free)],
        )
        [line] = found["problems"]
        return line.split("; ")[1]

    assert advice(1.1) == "the largest that fits is n_batch: 192 (in its settings in llm_models)"
    assert advice(0.5) == "no n_ctx, n_gpu_layers or n_batch makes it fit"


def test_what_our_own_containers_use_counts_as_free(table):
    instances = [instance("llamacpp", [0], "vicuna-13b")]
    assert table(instances, [gpu(0, 24, free=1)])["problems"]
    assert table(instances, [gpu(0, 24, free=1, ours=20)])["problems"] == []


def test_of_an_instance_the_largest_model_counts_and_instances_add_up(table):
    both = [instance("one", [0], "vicuna-13b", "karakuri-8x7b"), instance("two", ["GPU-0"], "vicuna-13b")]
    assert table(both, [gpu(0, 55)])["problems"] == []
    found = table(both, [gpu(0, 53)])
    assert len(found["problems"]) == 2
    assert (
        "karakuri-8x7b needs 37973 MiB of GPU 0 (NVIDIA X), which has 36934 MiB free beside two;"
        in (found["problems"][0])
    )
    apart = [both[0], instance("two", [1], "vicuna-13b")]
    assert table(apart, [gpu(0, 53), gpu(1, 53)])["problems"] == []


def test_all_gpus_are_all_of_the_host(table):
    found = table([instance("llamacpp", "all", "karakuri-8x7b")], [gpu(0, 24), gpu(1, 24)])
    assert found["lines"][0] == (
        "llamacpp on GPU 0 (NVIDIA X, 24.00 of 24.00 GiB free) and GPU 1 (NVIDIA X, 24.00 of 24.00 GiB free)"
    )
    assert found["problems"] == []
    [line] = table([instance("llamacpp", "all", "karakuri-8x7b")], [gpu(0, 24), gpu(1, 12)])["problems"]
    assert "of GPU 0 (NVIDIA X), which has" in line


def test_a_models_own_settings_win_over_the_defaults(table):
    [_title, row] = table(
        [instance("one", [0], "vicuna-13b")],
        [gpu(0, 48)],
        defaults={"n_ctx": 512, "type_k": 8, "flash_attn": True},
    )["lines"][1:]
    assert row.split()[2:5] == ["4096", "12.72", "2.39"]


def test_a_model_that_stays_on_the_cpu_is_pointed_out(headers):
    models = [{"alias": "v", "file": "v.gguf", "settings": {}}]
    lines = vram.vram_table([instance("one", [0])], models, {}, headers, [gpu(0, 48)])["lines"]
    assert lines[-1].endswith("fits, but runs on the CPU: its n_gpu_layers is 0")


@pytest.mark.parametrize(
    ("gpus", "changed", "why"),
    [
        ([0], {"v.gguf": {"parts": [], "problem": "https://m.example/v.gguf answers 404"}},
         "https://m.example/v.gguf answers 404"),
        ([0], {"v.gguf": {"parts": [{"header": "", "size": 1}], "problem": ""}},
         "its header cannot be read, or the file is cut off"),
        (["MIG-1"], {}, "the memory of these GPUs is not known"),
        ([1], {}, "the memory of these GPUs is not known"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_no_problem_but_is_said(table, gpus, changed, why):
    unknown = {**gpu(1, 0), "memory_total": 0}
    found = table([instance("one", gpus, "vicuna-13b")], [gpu(0, 48), unknown], **changed)
    assert found["problems"] == []
    assert found["lines"][-1].startswith(f"  vicuna-13b  not checked: {why}")


def test_a_wrong_type_of_the_cache_is_left_to_the_engine(table):
    found = table([instance("one", [0], "vicuna-13b")], [gpu(0, 48)], defaults={"type_k": 999})
    assert found["lines"][-1] == "  vicuna-13b  not checked: 999 is not a valid GGMLQuantizationType"


def test_only_headers_of_models_on_gpus_are_read():
    files = [
        {"file": file, "part_of": part_of}
        for file, part_of in (("v.gguf", "v.gguf"), ("k.gguf", "k.gguf"), ("k2", "k.gguf"), ("side", "side"))
    ]
    instances = [instance("cpu", []), instance("gpu", [0], "karakuri-8x7b")]
    assert vram.files_on_gpus(instances, MODELS, files) == files[1:3]
    assert vram.files_on_gpus([instance("gpu", "all")], MODELS, files) == files[:3]
    assert vram.files_on_gpus([instance("cpu", [])], MODELS, files) == []


def test_the_page_has_the_table_of_the_reference_deployment():
    page = vram_doc.PAGE.read_text(encoding="utf-8")
    assert page == vram_doc.page_with(vram_doc.block()), "python tests/unit/vram_doc.py writes it"


def test_the_page_speaks_of_the_shipped_settings(group_vars):
    shipped = [{**group_vars["llm_model_defaults"], **one["settings"]} for one in group_vars["llm_models"]]
    for settings in shipped:
        assert {key: settings[key] for key in vram_doc.SETTINGS} == vram_doc.SETTINGS


def test_a_batching_instance_has_a_context_for_each_of_its_requests(table):
    batch = instance("chat", [0], "vicuna-13b") | {"engine": "batch", "parallel": 4}
    alone, shared = (
        table([one], [gpu(0, 48)])["lines"][2].split() for one in (batch | {"parallel": 1}, batch)
    )
    assert (alone[2], shared[2]) == ("4096", "16384")
    assert float(shared[4]) == pytest.approx(4 * float(alone[4]), abs=0.02)
    assert table([batch | {"settings": {"n_ctx": 512}}], [gpu(0, 48)])["lines"][2].split()[2] == "512"


def test_what_would_fit_a_batching_instance_is_said_per_request(table, headers):
    batch = instance("chat", [0], "vicuna-13b") | {"engine": "batch", "parallel": 4}
    (problem,) = table([batch], [gpu(0, 24)])["problems"]
    n_ctx = int(problem.split("n_ctx: ")[1].split(",")[0].split(" ")[0])
    assert 0 < n_ctx < 4096
    fitting = [model | {"settings": model["settings"] | {"n_ctx": n_ctx}} for model in MODELS]
    assert not vram.vram_table([batch], fitting, DEFAULTS, headers, [gpu(0, 24)])["problems"]


@pytest.mark.parametrize("instance", [{}, {"parallel": 3}, {"settings": {"n_ctx": 512}}])
def test_the_context_that_is_counted_is_the_one_that_is_configured(instance):
    batch = {"name": "chat", "port": 1, "engine": "batch", **instance}
    for settings in ({}, {"n_ctx": 4096}):
        configured = llm_config.llm_config(batch, [{"alias": "a", "file": "a.gguf", "settings": settings}])
        assert vram.batched(batch, settings)["n_ctx"] == configured["model"]["n_ctx"]
