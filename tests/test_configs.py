"""Every recipe under configs/: the command in its head is accepted, with small models under the names it uses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, often
from named_models import make_place

RECIPES = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "sweeps")
# Tasks whose training file is not among the test data -> its name.
WITHOUT_TRAINING_FILE = {
    **dict.fromkeys(("ebm-pico", "jnlpba"), "train.json"), **dict.fromkeys(("mnli", "qnli", "qqp"), "train.tsv"),
}  # fmt: skip


def seldom_alike(recipe: Path) -> bool:
    """Recipes of one method on many tasks are alike: of BLURB's, one with a training file, and one without."""
    chosen = {"blurb": ("hoc", "jnlpba"), "pkd": ("rte",), "sinkd": ("mrpc",), "ckd": ("rte",), "ad-kd": ("stsb",)}
    return recipe.stem in chosen.get(recipe.parent.name, (recipe.stem,))


def commands(text: str) -> list[str]:
    """The commands in a recipe's head."""
    return re.findall(r"^#   (kdbert .*)$", text, re.MULTILINE)


@pytest.fixture(scope="module")
def place(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the commands are typed in."""
    return make_place(tmp_path_factory.mktemp("recipes"), data_dir)


@pytest.mark.real_data
@pytest.mark.parametrize(
    "recipe", often(RECIPES, seldom_alike), ids=lambda path: str(path.relative_to(ROOT / "configs"))
)
def test_the_commands_in_its_head_are_accepted(
    recipe: Path, place: Path, kdbert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    text = recipe.read_text(encoding="utf-8")
    found = commands(text)
    assert found, "the head names no command"
    assert "Should give" in text or "No number of it" in text or "could be found" in text or "could not be" in text
    assert "Costs" in text
    for command in found:
        done = kdbert(*shlex.split(command)[1:], "--dry-run")
        if recipe.stem in WITHOUT_TRAINING_FILE:
            assert done.code == 2
            assert f"no file {WITHOUT_TRAINING_FILE[recipe.stem]!r}" in done.err
            continue
        assert done.code == 0, done.err
