"""The profiles for hardware: good input, and small enough for what they are named after."""

from __future__ import annotations

import gguf_shapes
import pytest
import vram
import yaml
from conftest import PROJECT
from llm_problems import llm_problems
from test_vram import gpu, parts_of

PROFILES = sorted((PROJECT / "inventory/profiles").glob("*.yml"))
FILES = {
    "vicuna-13b-v1.5.Q8_0.gguf": "vicuna-13b",
    "karakuri-lm-8x7b-chat-v0.1-Q6_K.gguf": "karakuri-8x7b",
}


@pytest.fixture(params=PROFILES, ids=lambda path: path.stem)
def profile(request, group_vars):
    """The name of a profile, and the shipped variables with it."""
    return request.param.stem, {**group_vars, **yaml.safe_load(request.param.read_text(encoding="utf-8"))}


def test_a_profile_is_good_input(profile, schema):
    name, variables = profile
    models = variables["llm_models"]
    if name == "cpu":
        models = [{**model, "settings": {"n_ctx": 4096}} for model in models]
    names = ("llm_instances", "llm_server_settings", "llm_model_defaults")
    settings = [variables[one] for one in names]
    assert llm_problems(models, *settings, schema, backend=variables["llm_backend"]) == []


def test_a_profile_fits_its_gpu(profile):
    name, variables = profile
    if not name.startswith("gpu-"):
        assert not any(instance["gpus"] for instance in variables["llm_instances"])
        return
    gigabytes = int(name.removeprefix("gpu-").removesuffix("g"))
    headers = {
        file: {"parts": parts_of(gguf_shapes.shape_of(shape)), "problem": ""} for file, shape in FILES.items()
    }
    # What such a GPU really has: 24 GB are 22.5 GiB on an L4, 80 GB are 79.2 GiB on an H100.
    card = gpu(0, 0.93 * gigabytes)
    table = vram.vram_table(
        variables["llm_instances"], variables["llm_models"], variables["llm_model_defaults"], headers, [card]
    )
    assert table["problems"] == []
    assert sum("fits" in line for line in table["lines"]) == len(variables["llm_instances"])
