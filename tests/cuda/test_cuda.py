"""Every method on an NVIDIA GPU gives what it gives on the CPU; bf16, resuming, no waiting for the device."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdbert.data.batches import collate
from kdbert.devices import has_bf16_units
from kdbert.recipe import Recipe
from kdbert.training.finite import FiniteWatch
from kdbert.training.forward import StudentWithMethod
from kdbert.training.loop import build_optimizer
from kdbert.training.step import forward_backward
from kdbert.training.teacher import LiveTeacher, StoredTeacher, Teacher
from small_run import BATCH, Parts, Setting, assert_same_gradients, build, gradients

DEVICE = "cuda"
METHODS = [
    "finetune", "kd", "ics", "cka-i", "cka-l", "cka-g", "cka-il", "cka-ilg", "pkd", "rkd", "dist", "dkd", "sinkd",
    "minilm", "tinybert", "mgskd", "ckd", "ad-kd",
]  # fmt: skip
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device (torch.cuda.is_available() is False): CUDA not run here"
)
# Bit for bit the same weights on CUDA need these two, as in the PyTorch notes on reproducibility: the variable
# before cuBLAS is first used, and torch.use_deterministic_algorithms(True), which the fixture `deterministic` sets.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
BF16_TOLERANCE = 0.02  # relative, of the loss; as on the CPU


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Only kernels that give the same bits every time."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def on_cpu(parts: Parts) -> tuple[StudentWithMethod, LiveTeacher | None]:
    """Copies of student, method and teacher on the CPU."""
    module, plan, teacher = copy.deepcopy(parts.module).cpu(), parts.run.job, None
    if parts.run.teachers:
        model = copy.deepcopy(parts.run.teachers[0].network).cpu()
        teacher = LiveTeacher(model, parts.run.teachers[0].columns, "fp32", plan.needs, module.method)
    return module, teacher


def recipe_of(setting: Setting, folder: Path, method: str, **changes: Any) -> Recipe:
    """A small run by a method; the student has the depth that methods on the last but one layer need."""
    keys: dict[str, Any] = {"method.name": method, "student.layers": 3, **changes}
    if method in ("cka-g", "cka-ilg"):
        keys["memory.centroids"] = 8
    return setting.recipe(folder, dropout=0.0, **keys)


def loss_and_gradients(
    module: nn.Module, teacher: Teacher | None, parts: Parts, device: str
) -> tuple[float, dict[str, torch.Tensor]]:
    """One batch, forward and backward, on a device."""
    module.train()
    batch = collate(parts.data, np.arange(BATCH)).to(torch.device(device))
    terms = module(batch, [teacher.outputs(batch)] if teacher else [])
    terms.total.backward()
    return terms.total.item(), gradients(module)


@pytest.mark.parametrize("method", METHODS)
def test_fp32_loss_and_gradients_are_those_of_the_cpu(setting: Setting, tmp_path: Path, method: str) -> None:
    parts = build(recipe_of(setting, tmp_path / "run", method, precision="fp32"))
    assert parts.accelerator.device.type == DEVICE
    module, teacher = on_cpu(parts)
    loss, expected = loss_and_gradients(module, teacher, parts, "cpu")
    live = parts.live_teacher() if method != "finetune" else None
    cuda_loss, actual = loss_and_gradients(parts.module, live, parts, DEVICE)
    assert cuda_loss == pytest.approx(loss, rel=1e-4)
    assert_same_gradients(actual, expected, rtol=1e-4, floor=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_bf16_is_close_to_fp32(setting: Setting, tmp_path: Path, method: str) -> None:
    if not has_bf16_units(torch.device(DEVICE)):
        pytest.skip("this device does not multiply bfloat16")
    found = {}
    for precision in ("fp32", "bf16"):
        parts = build(recipe_of(setting, tmp_path / precision, method, precision=precision))
        live = parts.live_teacher() if method != "finetune" else None
        found[precision] = loss_and_gradients(parts.module, live, parts, DEVICE)
        assert {p.dtype for p in parts.module.parameters()} == {torch.float32}
    (loss, expected), (half_loss, actual) = found["fp32"], found["bf16"]
    assert half_loss != loss
    assert half_loss == pytest.approx(loss, rel=BF16_TOLERANCE)
    flat = [torch.cat([grads[name].flatten() for name in expected]) for grads in (actual, expected)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.99


@pytest.mark.parametrize("method", ["kd", "ics", "cka-ilg"])
def test_stored_and_live_teacher_agree(setting: Setting, tmp_path: Path, method: str) -> None:
    parts = build(recipe_of(setting, tmp_path / "run", method, precision="fp32"))
    batch = collate(parts.data, np.arange(BATCH)).to(torch.device(DEVICE))
    stored, live = parts.stored_teacher().outputs(batch), parts.live_teacher().outputs(batch)
    assert stored.logits.device.type == live.logits.device.type == DEVICE
    torch.testing.assert_close(stored.logits, live.logits, rtol=1e-5, atol=1e-5)
    losses = [parts.module(batch, [outputs]).total for outputs in (stored, live)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("selection", ["last", "best"])
@pytest.mark.usefixtures("deterministic")
def test_stopped_and_continued_ends_with_the_same_weights(
    setting: Setting, kdbert: Any, tmp_path: Path, selection: str
) -> None:
    changes = {"epochs": 4, "checkpoint_steps": 3, "selection": selection}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert kdbert(*setting.words(whole, **changes)).code == 0

    def stop() -> None:
        while not list(stopped.glob("checkpoints/step-*")):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=stop, daemon=True)
    watcher.start()
    words = setting.words(stopped, **changes)
    ended = kdbert(*words)
    watcher.join()
    assert ended.code == 143, ended.err
    ended = kdbert(*words)
    assert ended.code == 0, ended.err
    assert "continuing from step" in ended.err
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (whole, stopped)]
    assert weights[0] == weights[1]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whatever the test ends with, waiting for the device is allowed again after it."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["live teacher", "stored teacher", "no teacher"])
def test_no_step_waits_for_the_device(setting: Setting, tmp_path: Path, kind: str, accumulation: int) -> None:
    method = "finetune" if kind == "no teacher" else "kd"
    parts = build(setting.recipe(tmp_path, precision="auto", **{"method.name": method}))
    teachers: list[LiveTeacher | StoredTeacher] = []
    if kind == "live teacher":
        teachers = [parts.live_teacher()]
    elif kind == "stored teacher":
        teachers = [parts.stored_teacher()]
    module = parts.module.train()
    optimizer = build_optimizer(module, parts.recipe.train)
    watch = FiniteWatch(parts.accelerator.device)

    def one_step(step: int) -> None:
        terms = forward_backward(
            module, parts.data, np.arange(BATCH), teachers, parts.accelerator,
            accumulation=accumulation, seed=1, step=step,
        )  # fmt: skip
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        watch.see(step, {**terms.terms, "gradient": norm}, np.arange(BATCH))

    one_step(0)  # libraries are loaded and optimiser states made at the first step
    torch.cuda.set_sync_debug_mode("error")
    for step in (1, 2, 3):
        one_step(step)
    torch.cuda.set_sync_debug_mode("default")
    watch.check(tmp_path)


def test_the_processes_of_a_sweep_are_forked_before_cuda_is_touched(setting: Setting, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    keys = {**setting.keys(max_steps=4), "output.runs_dir": str(runs)}
    teacher = keys.pop("teachers")[0]["model"]
    words = [sys.executable, "-m", "kdbert", "sweep", "--teacher", teacher, "--seeds", "2", "--jobs", "2"]
    words += [f"{key}={value}" for key, value in keys.items()]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = [json.loads(file.read_text(encoding="utf-8")) for file in runs.glob("*/*/*/run.json")]
    assert [one["device"].partition(":")[0] for one in made] == [DEVICE, DEVICE]
