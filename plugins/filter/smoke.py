"""Filters that turn results of the module llm_smoke into a report, a summary and a list of complaints."""

from __future__ import annotations

import textwrap

WIDTH = 96


def smoke_report(results: list[dict], host: str) -> dict:
    """Returns the results of llm_smoke over llm_instances as one report.

    Args:
        results: of a loop over llm_instances, one per instance.
        host: the host's name in the inventory.

    Returns:
        {host, instances: [{name, port, models, switch, kept, broken}]}, see the module's RETURN.
    """
    wanted = ("models", "switch", "kept", "broken")
    return {
        "host": host,
        "instances": [
            {"name": result["item"]["name"], "port": result["item"]["port"]}
            | {
                key: result.get(key) or type_()
                for key, type_ in zip(wanted, (dict, dict, list, list), strict=True)
            }
            for result in results
        ],
    }


def smoke_broken(report: dict) -> str:
    """One line per broken promise: which host, which instance, what came instead."""
    return "\n".join(
        f"{report['host']} {instance['name']}: {line}"
        for instance in report["instances"]
        for line in instance["broken"]
    )


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:,} {unit}".rstrip()


def _quoted(text: str | None) -> list[str]:
    lines = textwrap.wrap(" ".join((text or "-").split()), WIDTH - 14, max_lines=3, placeholder=" …")
    return [f"  answer      {lines[0]}"] + [f"              {line}" for line in lines[1:]]


def _model_lines(alias: str, figures: dict) -> list[str]:
    get = figures.get
    tokens = ", ".join(
        (
            _number(get("prompt_tokens"), "prompt"),
            _number(get("completion_tokens"), "completion"),
            _number(get("tokens_per_second"), "tokens/s"),
        )
    )
    load, first = _number(get("load_s"), "s"), _number(get("first_token_s"), "s")
    return [
        f"  {alias}",
        *("  " + line for line in _quoted(get("answer"))),
        f"    tokens      {tokens}",
        f"    times       loads and answers in {load}; loaded, first token in {first}",
        f"    embedding   {_number(get('embedding_length'), 'numbers per vector')}",
        "",
    ]


def smoke_summary(report: dict) -> str:
    """A summary to read: per model answer, tokens, speed and times; the switch; kept and broken promises."""
    lines: list[str] = []
    for instance in report["instances"]:
        lines += [f"{report['host']} · {instance['name']} · port {instance['port']}", ""]
        for alias, figures in instance["models"].items():
            lines += _model_lines(alias, figures)
        switch = instance["switch"]
        if switch:
            lines.append(
                f"  switch of models: first {_number(switch.get('first_s'), 's')}, "
                f"repeated {_number(switch.get('repeated_s'), 's')}"
            )
        kept, broken = len(instance["kept"]), len(instance["broken"])
        lines.append(f"  promises: {kept} kept, {broken} broken")
        lines += [f"    broken: {line}" for line in instance["broken"]]
    return "\n".join(lines)


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict:
        """Returns the filters by name."""
        return {
            "smoke_report": smoke_report,
            "smoke_broken": smoke_broken,
            "smoke_summary": smoke_summary,
        }
