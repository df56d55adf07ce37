"""What alerts and dashboard in files/monitoring ask for; for the unit tests and for scenario fleet."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

MONITORING = Path(__file__).resolve().parents[2] / "files/monitoring"
OF_THE_PROJECT = re.compile(r"\b((?:haproxy|llm|node)_[a-zA-Z0-9_]+)")


def names_of(text):
    """The names of the series in a text of Prometheus' format."""
    return set(re.findall(r"^([a-zA-Z_:][\w:]*)", text, re.MULTILINE))


def alerts():
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in rules["groups"] for rule in group["rules"]]


def dashboard():
    return json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))


def asked():
    """The expressions of alerts and dashboard, by where they stand."""
    found = {rule["alert"]: rule["expr"] for rule in alerts()}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            found[f"${variable['name']}"] = variable["query"]["query"]
    return found


def series_in(expression):
    """The names of series in an expression: without what stands in quotes, and without labels."""
    bare = re.sub(r'"[^"]*"', "", expression)
    return set(OF_THE_PROJECT.findall(re.sub(r"\b(?:by|without|on) \([^)]*\)", "", bare))) | (
        {"up"} if re.search(r"\bup\{", bare) else set()
    )
