"""Filters that turn results of the module llm_benchmark into a report, and name what failed in it."""

from __future__ import annotations


def benchmark_host(results: list[dict], catalogue: list[dict], defaults: dict) -> dict:
    """Returns the results of llm_benchmark over the instances of one host as that host's part of the report.

    Args:
        results: of a loop over llm_instances, one per instance.
        catalogue: llm_models, for the file and the settings of each model.
        defaults: llm_model_defaults.

    Returns:
        {machine, instances: {name: {port, gpus, engine, image, start_s, problems, models}}}, see the module's
        RETURN. Each model has, besides, file and settings.
    """
    known = {model["alias"]: model for model in catalogue}
    instances = {}
    for result in results:
        instance = result["item"]
        models = {}
        for alias, figures in result["models"].items():
            model = known.get(alias, {})
            settings = {**(defaults or {}), **(model.get("settings") or {})}
            models[alias] = {"file": model.get("file"), "settings": settings, **figures}
        instances[instance["name"]] = {
            "port": instance["port"],
            "gpus": instance.get("gpus") or [],
            **{key: result[key] for key in ("engine", "image", "start_s", "problems")},
            "models": models,
        }
    return {"machine": results[0]["machine"] if results else {}, "instances": instances}


def _failed_streams(figures: dict) -> str:
    streams = figures["complete"] + figures["cut"] + figures["failed"]
    counts = " and ".join(f"{figures[kind]} {kind}" for kind in ("cut", "failed") if figures[kind])
    return f"{counts} of {streams} streams of {figures['clients']} at once: {'; '.join(figures['errors'])}"


def benchmark_broken(hosts: dict[str, dict]) -> list[str]:
    """Names what could not be measured, and which streams were cut or failed; one line each.

    Args:
        hosts: per name what benchmark_host returned.
    """
    lines = []
    for host, report in hosts.items():
        for name, instance in report["instances"].items():
            lines += [f"{host} · {name}: {problem}" for problem in instance["problems"]]
            lines += [
                f"{host} · {name} · {alias}: {_failed_streams(figures)}"
                for alias, model in instance["models"].items()
                for figures in model["rounds"]
                if figures["cut"] or figures["failed"]
            ]
    return lines


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict:
        """Returns the filters by name."""
        return {"benchmark_host": benchmark_host, "benchmark_broken": benchmark_broken}
