"""No family of golden cases is forgotten: a test compares it, or its issue is still open and it is named here."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from golden_cases import OURS

# Families whose methods are not built yet. Whoever builds one writes its test, with the family's name in the
# test file's `FAMILIES`, and takes the name out of this list.
OPEN = {
    "blurb_metrics",
    "vekd",
    "vekd_collator",
}


def covered_families() -> set[str]:
    """What the test files of this folder say they compare, in their constant `FAMILIES`."""
    found: set[str] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and any(
                isinstance(t, ast.Name) and t.id == "FAMILIES" for t in node.targets
            ):
                found.update(ast.literal_eval(node.value))
    return found


def test_every_family_is_compared_or_listed_as_open(golden_dir: Path) -> None:
    manifest = json.loads((golden_dir / "manifest.json").read_text(encoding="utf-8"))
    families = {case["method"] for case in manifest["cases"]}
    covered = covered_families()
    assert not families - covered - OPEN, "families of the manifest that no test compares and nobody listed"
    assert not OPEN & covered, "listed as open, but a test compares them: take them out of OPEN"
    if golden_dir.resolve() == OURS.resolve():  # another set may hold a part of the families
        assert not OPEN - families, "listed as open, but the manifest has no such family"
