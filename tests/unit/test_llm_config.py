"""The content of config.json: both golden renderings of the shipped group_vars, and variations."""

from __future__ import annotations

import json

import pytest
from ansible.errors import AnsibleFilterError
from llm_config import llm_config, served_models

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


def batch(model=None, defaults=None, server=None, **instance):
    """The configuration of a batching instance that serves one model with these settings."""
    models = [{"alias": "a", "file": "a.gguf", "settings": model or {}}, *MODELS[1:]]
    config = {"name": "x", "port": 1, "models": ["a"], "engine": "batch", **instance}
    return llm_config(config, models, server or {}, defaults or {})


def test_a_batching_instance_has_the_configuration_of_its_own_server():
    same_text(
        batch({"n_ctx": 4096}, {"use_mlock": False, "logits_all": False}, {"interrupt_requests": False}),
        """{"server": {"host": "0.0.0.0", "port": 1},
            "model": {"path": "/llamacpp/model/a.gguf", "alias": "a", "n_ctx": 32768, "max_seq_len": 4096,
                      "n_seq_max": 8, "kv_unified": false, "store_logits": false, "use_mlock": false}}""",
    )


def test_what_a_request_may_use_does_not_depend_on_how_many_run():
    for parallel in (1, 3):
        model = batch({"n_ctx": 1000}, parallel=parallel)["model"]
        assert (model["n_ctx"], model["max_seq_len"], model["n_seq_max"]) == (1000 * parallel, 1000, parallel)
    assert batch()["model"]["max_seq_len"] == 2048


def test_settings_that_both_servers_have_are_taken_over_by_their_other_names():
    model = batch({"n_threads": 3, "n_batch": 64}, {"n_threads_batch": 4, "n_batch": 32})["model"]
    assert (model["threads"], model["threads_batch"], model["n_batch"]) == (3, 4, 64)
    assert "n_threads" not in model


def test_the_instance_has_the_last_word():
    model = batch({"n_ctx": 4096, "n_threads": 2}, settings={"threads": 6, "n_ctx": 8192})["model"]
    assert (model["threads"], model["n_ctx"]) == (6, 8192)


def test_a_batching_instance_gets_the_certificate_too():
    tls = {"ssl_certfile": "/llamacpp/tls.crt", "ssl_keyfile": "/llamacpp/tls.key"}
    assert batch(server=tls)["server"] == {"host": "0.0.0.0", "port": 1, **tls}


def test_what_is_served_is_told_alike_for_both_servers():
    models = [{"alias": "a", "file": "a.gguf", "settings": {"n_gpu_layers": -1}}]
    expected = [{"alias": "a", "path": "/llamacpp/model/a.gguf", "n_gpu_layers": -1}]
    assert served_models(llm_config({"name": "x", "port": 1}, models)) == expected
    assert served_models(llm_config({"name": "x", "port": 1, "engine": "batch"}, models)) == expected
