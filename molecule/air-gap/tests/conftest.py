"""The scenario, and what its tests share besides the fixtures of molecule/resources/testing.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "resources"))
pytest.register_assert_rewrite("testing")

from testing import PROJECT, Scenario  # noqa: E402

pytest_plugins = ["testing"]

BUNDLE = PROJECT / ".cache/air-gap/bundle"


@pytest.fixture(scope="session")
def scenario() -> Scenario:
    """What is tested."""
    return Scenario(Path(__file__).resolve().parents[1], "llm-island", ("llamacpp",))


@pytest.fixture(scope="session")
def manifest() -> dict:
    """What the bundle says of itself."""
    return json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
