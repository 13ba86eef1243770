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


def test_the_metrics_page_is_up_to_date() -> None:
    made = subprocess.run([sys.executable, "-c", SHOW, DOCS / "make_metrics_page.py"], capture_output=True, check=True)
    assert (DOCS / "metrics.md").read_bytes() == made.stdout, "run: python docs/make_metrics_page.py"


def test_the_models_page_has_every_type_as_the_table_in_the_code() -> None:
    """The figures come from `scripts/test-long`; types, padding and refusals must be those of today."""
    from kdbert.models.architectures import ARCHITECTURES, REFUSED

    rows = [line.strip("| ").split(" | ") for line in (DOCS / "models.md").read_text(encoding="utf-8").splitlines()]
    cells: dict[str, list[str]] = {}
    for row in rows:
        cells.setdefault(row[0].strip("`"), row)
    for name, known in ARCHITECTURES.items():
        assert cells[name][-1] == ("shared" if known.padding else "one length at a time"), name
    assert {name: cells[name][1] for name in REFUSED} == dict(REFUSED)
    text = " ".join((DOCS / "models.md").read_text(encoding="utf-8").split())
    told = text.partition("queries, keys and values of ")[2].partition(", of every layer")[0]
    assert told.split(", ") == sorted(name for name, known in ARCHITECTURES.items() if known.attention)
