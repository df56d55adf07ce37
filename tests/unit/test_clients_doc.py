"""The page on clients shows the recipes that tests run."""

from __future__ import annotations

from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECIPES = sorted(path for path in (DOCS / "clients").iterdir() if path.is_file())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_the_page_shows_each_recipe_as_it_is_run(recipe):
    page = (DOCS / "clients.md").read_text(encoding="utf-8")
    assert f"\n{recipe.read_text(encoding='utf-8')}```\n" in page
