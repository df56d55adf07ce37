"""The content of config.json: both golden renderings of the shipped group_vars, and variations."""

from __future__ import annotations

import json

import pytest
from ansible.errors import AnsibleFilterError
from llm_config import llm_config

REFERENCE = """
{"host": "0.0.0.0", "port": 20080, "models": [
 {"model": "/llamacpp/model/vicuna-13b-v1.5.Q8_0.gguf", "model_alias": "vicuna-13b",
  "chat_format": "vicuna", "n_gpu_layers": -1, "n_ctx": 4096},
 {"model": "/llamacpp/model/karakuri-lm-8x7b-chat-v0.1-Q6_K.gguf", "model_alias": "karakuri-8x7b",
  "chat_format": "llama-2", "n_gpu_layers": -1, "n_ctx": 4096}]}
"""
AS_SHIPPED = """
{"host": "0.0.0.0", "port": 20080, "interrupt_requests": false, "models": [
 {"model": "/llamacpp/model/vicuna-13b-v1.5.Q8_0.gguf", "model_alias": "vicuna-13b",
  "logits_all": false, "embedding": true, "use_mlock": false,
  "chat_format": "vicuna", "n_gpu_layers": -1, "n_ctx": 4096},
 {"model": "/llamacpp/model/karakuri-lm-8x7b-chat-v0.1-Q6_K.gguf", "model_alias": "karakuri-8x7b",
  "logits_all": false, "embedding": true, "use_mlock": false,
  "chat_format": "llama-2", "n_gpu_layers": -1, "n_ctx": 4096}]}
"""

MODELS = [{"alias": "a", "file": "a.gguf"}, {"alias": "b", "file": "b.gguf", "settings": {}}]


def same_text(config, golden):
    """Equal as text, so that the order of keys counts too."""
    assert json.dumps(config, indent=1) == json.dumps(json.loads(golden), indent=1)


def test_with_empty_dictionaries_it_is_the_reference(group_vars):
    same_text(llm_config(group_vars["llm_instances"][0], group_vars["llm_models"]), REFERENCE)
    same_text(llm_config(group_vars["llm_instances"][0], group_vars["llm_models"], {}, {}), REFERENCE)


def test_as_shipped_only_the_named_keys_are_added(group_vars):
    config = llm_config(
        group_vars["llm_instances"][0],
        group_vars["llm_models"],
        group_vars["llm_server_settings"],
        group_vars["llm_model_defaults"],
    )
    same_text(config, AS_SHIPPED)


def aliases(instance):
    return [model["model_alias"] for model in llm_config(instance, MODELS)["models"]]


def test_without_a_list_all_models_are_served_in_the_order_of_the_catalogue():
    assert aliases({"name": "x", "port": 1}) == ["a", "b"]


def test_the_list_of_an_instance_orders_its_models():
    assert aliases({"name": "x", "port": 1, "models": ["b", "a"]}) == ["b", "a"]
    assert aliases({"name": "x", "port": 1, "models": ["b"]}) == ["b"]


def test_settings_of_a_model_win_over_the_defaults():
    models = [{"alias": "a", "file": "a.gguf", "settings": {"n_ctx": 8192}}]
    config = llm_config({"name": "x", "port": 1}, models, {}, {"n_ctx": 4096, "seed": 1})
    assert config["models"] == [
        {"model": "/llamacpp/model/a.gguf", "model_alias": "a", "n_ctx": 8192, "seed": 1}
    ]


def test_settings_of_side_files_are_their_paths_in_the_container():
    sides = [
        {"setting": "clip_model_path", "file": "mmproj.gguf", "url": "https://m.example/p.gguf"},
        {"setting": "lora_path", "file": "lora.gguf", "path": "/mnt/l.gguf", "link": True},
    ]
    models = [{"alias": "a", "file": "a.gguf", "settings": {"n_ctx": 1}, "side_files": sides}]
    (entry,) = llm_config({"name": "x", "port": 1}, models)["models"]
    same_text(
        entry,
        """{"model": "/llamacpp/model/a.gguf", "model_alias": "a", "n_ctx": 1,
            "clip_model_path": "/llamacpp/model/mmproj.gguf", "lora_path": "/llamacpp/model/lora.gguf"}""",
    )


def test_two_models_may_share_one_file():
    models = [{"alias": "a", "file": "x.gguf"}, {"alias": "b", "file": "x.gguf"}]
    config = llm_config({"name": "x", "port": 1}, models)
    assert {model["model"] for model in config["models"]} == {"/llamacpp/model/x.gguf"}


def test_an_unknown_alias_is_an_error_that_lists_the_known_ones():
    with pytest.raises(AnsibleFilterError, match="x serves c, which llm_models does not have; it has a, b"):
        llm_config({"name": "x", "port": 1, "models": ["c"]}, MODELS)
