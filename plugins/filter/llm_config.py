"""Filter ``llm_config``: the content of an instance's config.json."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError

# Where every container sees the directory of model files.
MODEL_DIRECTORY = "/llamacpp/model"


def llm_config(
    instance: dict[str, Any],
    models: list[dict[str, Any]],
    server_settings: dict[str, Any] | None = None,
    model_defaults: dict[str, Any] | None = None,
    model_directory: str = MODEL_DIRECTORY,
) -> dict[str, Any]:
    """Return what ``python3 -m llama_cpp.server --config_file`` reads for one instance.

    The order of keys is the order they are written in (host, port, server settings, models;
    per model: path, alias, defaults, own settings, side files), so that an unchanged input renders
    an unchanged file. The order of models matters to the server: the first is loaded at start,
    and answers requests for unknown models.

    Arguments:
        instance: one entry of ``llm_instances``: ``name``, ``port`` and optionally ``models``,
            a list of aliases; left out, all models in the order of the catalogue.
        models: the catalogue ``llm_models``.
        server_settings: ``llm_server_settings``, fields of the engine's class ServerSettings.
        model_defaults: ``llm_model_defaults``, fields of the engine's class ModelSettings that
            every model gets unless its own ``settings`` say otherwise.
        model_directory: directory of the model files as the server sees it.

    Errors:
        AnsibleFilterError when the instance names an alias that the catalogue does not have.

    Source: ConfigFileSettings in llama_cpp/server/settings.py of llama-cpp-python.
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


class FilterModule:
    """Registers the filter with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"llm_config": llm_config}
