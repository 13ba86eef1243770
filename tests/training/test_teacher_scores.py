"""A teacher's own run says how it scores; it is not scored again on the same examples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbert.disk.sealed import sealed
from small_run import Setting


@pytest.fixture(scope="module")
def teacher(setting: Setting, kdbert: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned run."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    done = kdbert(
        "finetune-teacher", "--task", "custom", "--train-file", setting.train, "--dev-file", setting.dev,
        "--model", setting.student, "--max-length", 64, "--epochs", 3, "--output-dir", run, "--learning-rate", 1e-3,
    )  # fmt: skip
    assert done.code == 0, done.err
    return run


def facts(run: Path) -> dict[str, Any]:
    """run.json."""
    found: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return found


PASS = "one pass over dev"


def test_the_recorded_scores_are_taken_and_are_those_of_a_pass(
    setting: Setting, teacher: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    taken = kdbert(
        *Setting(setting.train, setting.dev, teacher, setting.student).words(tmp_path / "taken", max_steps=2)
    )
    assert taken.code == 0, taken.err
    assert PASS not in taken.err
    model = tmp_path / "model"  # the same weights, but nobody says how they score
    shutil.copytree(teacher / "model", model)
    scored = kdbert(*Setting(setting.train, setting.dev, model, setting.student).words(tmp_path / "s", max_steps=2))
    assert scored.code == 0, scored.err
    (mine,), (theirs,) = facts(tmp_path / "taken")["teachers"], facts(tmp_path / "s")["teachers"]
    assert mine["metrics"] == facts(teacher)["metrics"] == theirs["metrics"]
    assert PASS in scored.err


@pytest.mark.parametrize("change", ["length", "dev file", "weights"])
def test_other_examples_or_another_reading_are_scored_anew(
    change: str, setting: Setting, teacher: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    dev, more = setting.dev, []
    if change == "dev file":
        dev = tmp_path / "dev.csv"
        dev.write_text("\n".join(setting.dev.read_text(encoding="utf-8").splitlines()[:30]) + "\n", encoding="utf-8")
    elif change == "length":
        more = ["--set", "task.max_length=12"]
    else:
        changed = sealed(facts(teacher) | {"model_fingerprint": "0" * 16})
        copied = tmp_path / "teacher"
        copied.mkdir()
        (copied / "model").symlink_to(teacher / "model")
        (copied / "run.json").write_text(json.dumps(changed), encoding="utf-8")
        teacher = copied
    use = Setting(setting.train, dev, teacher, setting.student)
    done = kdbert(*use.words(tmp_path / "run", max_steps=2), *more)
    assert done.code == 0, done.err
    assert PASS in done.err
