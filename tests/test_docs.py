"""Pages that are made from the code are made from this code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
# In a process of its own: others of this one may have registered methods.
SHOW = "import runpy, sys; sys.stdout.buffer.write(runpy.run_path(sys.argv[1])['page']().encode())"


def test_the_recipe_page_is_up_to_date() -> None:
    made = subprocess.run([sys.executable, "-c", SHOW, DOCS / "make_recipe_page.py"], capture_output=True, check=True)
    assert (DOCS / "recipe.md").read_bytes() == made.stdout, "run: python docs/make_recipe_page.py"
