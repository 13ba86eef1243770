"""Every family of golden cases is compared by a test; those of another set that no test compares are reported."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from golden_cases import COMPARED, GOLDEN, MANIFEST, OURS

for path in Path(__file__).parent.glob("test_*.py"):
    import_module(path.stem)  # which enters its tests in COMPARED

FAMILIES = {entry["method"] for entry in MANIFEST}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_test_compares_it(family: str) -> None:
    if family not in COMPARED and GOLDEN.resolve() != OURS.resolve():
        pytest.xfail(f"open: no test compares {family}")
    assert family in COMPARED


def test_every_test_has_cases() -> None:
    if GOLDEN.resolve() == OURS.resolve():  # another set may hold any part of the families
        assert COMPARED.keys() <= FAMILIES
        assert len(MANIFEST) >= 50
