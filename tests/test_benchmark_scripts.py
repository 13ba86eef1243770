"""Each script of benchmarks/, and scripts/gpu-check, runs to its end, on little data with a small model.

What it measures is not looked at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import ROOT, make_bert
from kdbert.data.batches import collate
from small_run import BATCH, Setting, build

pytestmark = [pytest.mark.long, pytest.mark.real_data]


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    """Run one; returns what it printed."""

    def run(name: str, *words: object, **variables: object) -> str:
        commands = Path(sys.executable).parent
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ["PYTHONPATH"]]),
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            **{key: str(value) for key, value in variables.items()},
        }  # fmt: skip
        done = subprocess.run(
            [ROOT / "benchmarks" / name, *map(str, words)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def teacher(glue_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of RTE, hardly trained."""
    from kdbert.recipe import Recipe
    from kdbert.runs.commands import finetune

    keys = {
        "task.name": "rte", "task.data_dir": str(glue_dir), "task.max_length": 32, "method.name": "finetune",
        "train.max_steps": 2,
        "student.model": str(make_bert(tmp_path_factory.mktemp("bert") / "bert", positions=512)),
        "output.dir": str(tmp_path_factory.mktemp("runs") / "teacher"),
    }  # fmt: skip
    return finetune(Recipe.build(flags=keys)).path


def test_losses(script: Callable[..., str]) -> None:
    small = {"rounds": 1, "threads": 1, "batch": 8, "length": 12, "width": 16, "centroids": 5, "heads": 4}
    assert "ckd" in script("losses", *(word for key, value in small.items() for word in (f"--{key}", value)))


def test_vocabulary(script: Callable[..., str]) -> None:
    sizes = ("--length", 16, "--pieces", 31000, "--hidden", 24, "--rounds", 1, "--steps", 1)
    assert "dense" in script("vocabulary", "--batch-size", 2, *sizes)


def test_general(script: Callable[..., str], tmp_path: Path) -> None:
    corpus, model = tmp_path / "a.txt", make_bert(tmp_path / "bert", positions=128)
    corpus.write_text("".join(f"the {'good ' * (n % 60)}film {n}\n" for n in range(600)), encoding="utf-8")
    words = ("--corpus", corpus, "--teacher", model, "--layers", 2, "--steps", 2, "--rounds", 1)
    assert "median ratio" in script("general", *words)


def test_prediction(script: Callable[..., str], teacher: Path, glue_dir: Path) -> None:
    words = ("--task", "rte", "--data-dir", glue_dir, "--model", teacher, "--examples", 20, "--rounds", 1)
    assert "kdbert" in script("prediction", *words)


@pytest.mark.parametrize("more", [("--methods", "finetune,kd,ics,cka-ilg"), ("--levers", "--breakdown", "kd")])
def test_step_time(script: Callable[..., str], teacher: Path, glue_dir: Path, more: tuple[str, ...]) -> None:
    words = ("--task", "rte", "--data-dir", glue_dir, "--teacher", teacher, "--rounds", 1, "--steps", 1)
    assert "ms a step" in script("step-time", *words, "--student-layers", 2, *more)


def test_speed(script: Callable[..., str], glue_dir: Path, tmp_path: Path) -> None:
    model = make_bert(tmp_path / "bert", positions=128)
    words: tuple[Any, ...] = (
        "--data-dir", glue_dir, "--tasks", "rte", "--methods", "kd,cka-ilg", "--model", model, "--examples", 120,
        "--rounds", 1, "--epochs", 1, "--work", tmp_path / "work", "--json", tmp_path / "figures.json",
    )  # fmt: skip
    script("speed", *words)
    assert json.loads((tmp_path / "figures.json").read_text())


def test_first_step(script: Callable[..., str], teacher: Path, glue_dir: Path) -> None:
    assert "first step after" in script("first-step", DATA=glue_dir, TEACHER=teacher, ROUNDS=1)


def test_sweep_jobs(script: Callable[..., str], glue_dir: Path) -> None:
    assert "median ratio" in script("sweep-jobs", DATA=glue_dir, ROUNDS=1, STEPS=2)


def test_gpu_check_without_a_gpu(script: Callable[..., str], tmp_path: Path) -> None:
    page = script("../scripts/gpu-check", "--device", "cpu", "--small", "--out", tmp_path, "--minutes", 9)
    assert page.strip() == (tmp_path / "cpu.md").read_text(encoding="utf-8").strip()
    found = json.loads((tmp_path / "cpu.json").read_text(encoding="utf-8"))
    assert found["left_out"] == []
    assert found["tests"]["counts"]["skipped"] == len(found["tests"]["each"]) > 0
    done = [(one["method"], one["contestant"]) for one in found["figures"] if len(one["ratios"]) == 2 and one["waits"]]
    assert len(set(done)) == 4 * 4


def test_gpu_check_of_cuda_needs_a_gpu() -> None:
    words = [sys.executable, ROOT / "scripts" / "gpu-check"]
    done = subprocess.run(words, capture_output=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("method", ["kd", "ics", "cka-ilg", "minilm"])
def test_trainer_has_the_loss_of_kdbert(setting: Setting, tmp_path: Path, method: str) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
    from steps import LIBRARY, InTrainer

    keys = {"method.name": method, "student.layers": 3, "precision": "fp32", "dropout": 0.0, **LIBRARY}
    if method == "cka-ilg":
        keys["memory.centroids"] = 6
    parts = build(setting.recipe(tmp_path / "run", **keys))
    batch = collate(parts.data, np.arange(BATCH))
    expected = parts.module(batch, [parts.live_teacher().outputs(batch)]).total
    found = InTrainer(parts.run)(batch.input_ids, batch.attention_mask, batch.token_type_ids, batch.labels)["loss"]
    torch.testing.assert_close(found, expected)
