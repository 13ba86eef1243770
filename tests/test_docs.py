"""docs/recipe.md says what the recipe's own fields say."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_recipe_page_is_up_to_date() -> None:
    page = runpy.run_path(str(DOCS / "make_recipe_page.py"))["page"]()
    assert (DOCS / "recipe.md").read_text(encoding="utf-8") == page, "run: python docs/make_recipe_page.py"
