"""Filters ``llm_config`` and ``served_models``: the content of config.json, and what an instance serves."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError

# Where every container sees the directory of model files.
MODEL_DIRECTORY = "/llamacpp/model"

# Requests that a batching instance answers at once, where its `parallel` is left out.
PARALLEL = 8
# n_ctx of llama_cpp.server, where it is left out (ModelSettings).
N_CTX = 2048
# Settings of a model that mean the same to both servers; the batching one calls two of them otherwise.
COMMON_SETTINGS = {
    **{
        name: name
        for name in (
            *("n_gpu_layers", "split_mode", "main_gpu", "tensor_split", "use_mmap", "use_mlock"),
            *("n_batch", "n_ubatch", "flash_attn", "offload_kqv", "type_k", "type_v"),
            *("rope_scaling_type", "rope_freq_base", "rope_freq_scale", "yarn_ext_factor"),
            *("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx"),
        )
    },
    "n_threads": "threads",
    "n_threads_batch": "threads_batch",
}


def llm_config(
    instance: dict[str, Any],
    models: list[dict[str, Any]],
    server_settings: dict[str, Any] | None = None,
    model_defaults: dict[str, Any] | None = None,
    model_directory: str = MODEL_DIRECTORY,
) -> dict[str, Any]:
    """Return what the server of one instance reads as its config.json.

    The order of keys is the order they are written in (host, port, server settings, models;
    per model: path, alias, defaults, own settings, side files), so that an unchanged input renders
    an unchanged file. The order of models matters to llama_cpp.server: the first is loaded at start,
    and answers requests for unknown models.

    Arguments:
        instance: one entry of ``llm_instances``: ``name``, ``port`` and optionally ``models``,
            a list of aliases; left out, all models in the order of the catalogue. With ``engine: batch``,
            of one model, also ``parallel`` and ``settings``.
        models: the catalogue ``llm_models``.
        server_settings: ``llm_server_settings``, fields of the engine's class ServerSettings. Of them the
            batching server has only those of TLS.
        model_defaults: ``llm_model_defaults``, fields of the engine's class ModelSettings that
            every model gets unless its own ``settings`` say otherwise.
        model_directory: directory of the model files as the server sees it.

    Errors:
        AnsibleFilterError when the instance names an alias that the catalogue does not have.

    Source: ConfigFileSettings in llama_cpp/server/settings.py of llama-cpp-python, and ConfigFile in
    examples/server/server.py of its source distribution.
    """
    catalogue = {model["alias"]: model for model in models}
    wanted = instance.get("models")
    aliases = list(catalogue) if wanted is None else wanted
    unknown = [alias for alias in aliases if alias not in catalogue]
    if unknown:
        raise AnsibleFilterError(
            f"llm_instances: {instance.get('name')} serves {', '.join(map(str, unknown))}, which"
            f" llm_models"
            f" does not have; it has {', '.join(map(str, catalogue))}"
        )
    if instance.get("engine") == "batch":
        tls = {name: value for name, value in (server_settings or {}).items() if name.startswith("ssl_")}
        model = catalogue[aliases[0]]
        return {
            "server": {"host": "0.0.0.0", "port": instance["port"], **tls},
            "model": {
                "path": f"{model_directory}/{model['file']}",
                "alias": aliases[0],
                **batch_settings(instance, model, model_defaults),
            },
        }
    return {
        "host": "0.0.0.0",
        "port": instance["port"],
        **(server_settings or {}),
        "models": [
            {
                "model": f"{model_directory}/{catalogue[alias]['file']}",
                "model_alias": alias,
                **(model_defaults or {}),
                **(catalogue[alias].get("settings") or {}),
                **{
                    side["setting"]: f"{model_directory}/{side['file']}"
                    for side in catalogue[alias].get("side_files") or []
                },
            }
            for alias in aliases
        ],
    }


def batch_settings(
    instance: dict[str, Any], model: dict[str, Any], model_defaults: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a model's settings for the batching server.

    The model's n_ctx stays what one request may use: the context is made for ``parallel`` of them. Without
    ``max_seq_len`` a request that does not say how long its answer may be would claim all of it.

    Arguments:
        instance: one entry of ``llm_instances`` with ``engine: batch``; its ``settings`` win.
        model: its entry of ``llm_models``.
        model_defaults: ``llm_model_defaults``.
    """
    settings = {**(model_defaults or {}), **(model.get("settings") or {})}
    parallel, n_ctx = instance.get("parallel", PARALLEL), settings.get("n_ctx", N_CTX)
    return {
        "n_ctx": n_ctx * parallel,
        "max_seq_len": n_ctx,
        "n_seq_max": parallel,
        # A cache for each place: attention then reads a request's own tokens, not those of all of them.
        "kv_unified": False,
        # Keeps the logits of every token in Python's memory, for nothing that OpenAI's API has.
        "store_logits": False,
        **{COMMON_SETTINGS[name]: value for name, value in settings.items() if name in COMMON_SETTINGS},
        **(instance.get("settings") or {}),
    }


def served_models(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the models of a config.json, whichever server reads it.

    Arguments:
        config: what llm_config returns.

    Returns:
        Per model ``alias``, ``path`` (as the server sees it) and ``n_gpu_layers``.
    """
    if "model" in config:
        model = config["model"]
        return [{key: model.get(key, 0) for key in ("alias", "path", "n_gpu_layers")}]
    return [
        {"alias": one["model_alias"], "path": one["model"], "n_gpu_layers": one.get("n_gpu_layers", 0)}
        for one in config["models"]
    ]


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"llm_config": llm_config, "served_models": served_models}
