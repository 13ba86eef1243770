"""What must not change a loss: padding, micro-batches, the teacher's cache, buckets, bf16 (much). The teacher stays."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdbert.data.batches import Batch, collate, epoch_batches
from kdbert.methods import LossTerms
from kdbert.training.finite import FiniteWatch
from kdbert.training.loop import build_optimizer, train
from kdbert.training.step import forward_backward
from kdbert.training.teacher import LiveTeacher, Teacher
from small_run import (
    BATCH,
    FEATURES,
    ROWS,
    Parts,
    Setting,
    assert_same_gradients,
    build,
    changed,
    gradients,
    logged,
    ragged_rows,
)

WEIGHED = {"class_weights": {"negative": 0.25, "positive": 3}, "label_smoothing": 0.1}


@pytest.fixture(scope="module", params=[{}, WEIGHED], ids=["plain", "weighed"])
def exact(setting: Setting, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """The student without dropout, in float32; and with weights of classes and label smoothing."""
    return build(setting.recipe(tmp_path_factory.mktemp("run"), dropout=0.0, precision="fp32", **request.param))


def run_steps(parts: Parts, teacher: Teacher, rows: np.ndarray, accumulation: int) -> tuple[float, dict[str, Any]]:
    """Loss and gradients of one global batch."""
    parts.module.train()
    terms = forward_backward(
        parts.module, parts.data, rows, [teacher], parts.accelerator, accumulation=accumulation, seed=1, step=0
    )
    assert set(terms.terms) == {"hard", "soft"}
    return terms.total.item(), gradients(parts.module)


@pytest.mark.parametrize("live", [True, False], ids=["live teacher", "stored teacher"])
@pytest.mark.parametrize("extra", [1, 16, None], ids=["+1", "+16", "to the maximum"])
def test_padding_changes_no_loss_and_no_gradient(exact: Parts, extra: int | None, live: bool) -> None:
    rows = np.argsort(exact.data.lengths, kind="stable")[:BATCH]  # short ones, so that much can be padded
    longest = int(exact.data.lengths[rows].max())
    teacher = exact.live_teacher() if live else exact.stored_teacher()
    exact.module.train()

    def loss_of(length: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batch = collate(exact.data, rows, length)
        total = exact.module(batch, [teacher.outputs(batch)]).total
        total.backward()
        return total.detach(), gradients(exact.module)

    plain, expected = loss_of(longest)
    padded, actual = loss_of(64 if extra is None else longest + extra)
    torch.testing.assert_close(padded, plain, rtol=1e-5, atol=0)
    assert_same_gradients(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("ragged", [False, True], ids=["16 rows", "11 rows"])
@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_changes_no_loss_and_no_gradient(exact: Parts, accumulation: int, ragged: bool) -> None:
    rows = ragged_rows(exact) if ragged else np.arange(BATCH)
    teacher = exact.stored_teacher()
    loss, expected = run_steps(exact, teacher, rows, 1)
    parts_loss, actual = run_steps(exact, teacher, rows, accumulation)
    assert parts_loss == pytest.approx(loss, rel=1e-5)
    assert_same_gradients(actual, expected, rtol=1e-5)


def test_the_teachers_cache_changes_no_loss(setting: Setting, kdbert: Any, tmp_path: Path) -> None:
    for name, cache in (("stored", True), ("live", False)):
        words = setting.words(tmp_path / name, teacher_cache=cache, precision="fp32", epochs=2, max_steps=20)
        assert kdbert(*words).code == 0
    stored, live = logged(tmp_path / "stored"), logged(tmp_path / "live")
    assert sorted(stored) == sorted(live) == list(range(1, 21))
    assert {step: line["loss"] for step, line in live.items()} == pytest.approx(
        {step: line["loss"] for step, line in stored.items()}, rel=1e-6, abs=1e-6
    )
    assert max(line["loss/soft"] for line in stored.values()) > 0.1  # the teacher has a say


BF16_TOLERANCE = 0.02  # relative; bfloat16 keeps 8 bits, so logits of 1 are off by some 0.004


def test_a_bf16_encoder_gives_nearly_the_loss_of_fp32(exact: Parts) -> None:
    half = build(changed(exact.recipe, {"train.precision": "bf16"}))
    half.module.load_state_dict(exact.module.state_dict())
    rows = np.arange(BATCH)
    loss, expected = run_steps(exact, exact.stored_teacher(), rows, 1)
    half_loss, actual = run_steps(half, half.stored_teacher(), rows, 1)
    assert half_loss != loss  # it did run in bf16
    assert half_loss == pytest.approx(loss, rel=BF16_TOLERANCE)
    flat = [torch.cat([grads[name].flatten() for name in expected]) for grads in (actual, expected)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.99


def test_losses_are_computed_in_float32_outside_autocast(setting: Setting, tmp_path: Path) -> None:
    half = build(setting.recipe(tmp_path, dropout=0.0, precision="bf16"))
    seen: dict[str, Any] = {}

    def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        student, teachers, _ = arguments
        seen["inputs"] = {student.logits.dtype, teachers[0].logits.dtype}
        seen["autocast"] = torch.is_autocast_enabled("cpu")

    def after(module: nn.Module, arguments: tuple[Any, ...], terms: LossTerms) -> None:
        seen["terms"] = {term.dtype for term in terms.terms.values()} | {terms.total.dtype}

    def within(module: nn.Module, arguments: tuple[Any, ...], out: torch.Tensor) -> None:
        seen["encoder"] = out.dtype

    for hook in (
        half.module.method.register_forward_pre_hook(before),
        half.module.method.register_forward_hook(after),
        half.module.student.bert.pooler.dense.register_forward_hook(within),
    ):
        assert hook is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):  # even if the caller left autocast on
        batch = collate(half.data, np.arange(BATCH))
        half.module(batch, [half.live_teacher().outputs(batch)])
    assert seen == {
        "encoder": torch.bfloat16,
        "inputs": {torch.float32},
        "autocast": False,
        "terms": {torch.float32},
    }
    assert {p.dtype for p in half.module.parameters()} == {torch.float32}


class Recorder:
    """A teacher that also notes which examples it was asked about, and in which state its model ran."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.examples: list[int] = []

    def outputs(self, batch: Batch) -> Any:
        """Pass on."""
        self.examples += batch.example[batch.valid > 0].tolist()
        return self.teacher.outputs(batch)


def train_parts(parts: Parts, teacher: Any, folder: Path) -> None:
    """Run the loop on parts."""
    folder.mkdir(parents=True, exist_ok=True)
    train(
        parts.recipe.train,
        seed=parts.recipe.seed,
        data=parts.data,
        module=parts.module,
        teachers=[teacher],
        evaluate=lambda model: {"dev/accuracy": 0.0},
        selection="dev/accuracy",
        folder=folder,
        accelerator=parts.accelerator,
        trackers=[],
    )


def test_with_and_without_buckets_every_epoch_sees_every_example_once(setting: Setting, tmp_path: Path) -> None:
    orders = {}
    for bucketing in (True, False):
        parts = build(setting.recipe(tmp_path / str(bucketing), bucketing=bucketing, epochs=2))
        recorder = Recorder(parts.stored_teacher())
        train_parts(parts, recorder, tmp_path / str(bucketing))
        epochs = [recorder.examples[:ROWS], recorder.examples[ROWS:]]
        assert [sorted(epoch) for epoch in epochs] == [list(range(ROWS))] * 2
        assert epochs[0] != epochs[1]
        orders[bucketing] = epochs
        planned = epoch_batches(parts.data.lengths, BATCH, seed=1, epoch=1, bucketing=bucketing)
        assert epochs[1] == np.concatenate(planned).tolist()
    assert orders[True] != orders[False]


def test_class_balanced_batches_are_what_training_sees(setting: Setting, tmp_path: Path) -> None:
    parts = build(setting.recipe(tmp_path / "run", batch_sampler="class-balanced", examples_per_class=8, epochs=1))
    recorder = Recorder(parts.stored_teacher())
    train_parts(parts, recorder, tmp_path / "run")
    assert sorted(recorder.examples) == list(range(ROWS))
    labels = parts.data.labels
    assert labels is not None
    planned = epoch_batches(parts.data.lengths, BATCH, seed=1, epoch=0, bucketing=True, classes=labels, per_class=8)
    assert recorder.examples == np.concatenate(planned).tolist()


def digest(module: nn.Module) -> str:
    """A hash of every weight and buffer."""
    whole = hashlib.sha256()
    for name, value in module.state_dict().items():
        whole.update(name.encode() + value.numpy().tobytes())
    return whole.hexdigest()


def test_a_live_teacher_is_frozen_in_eval_mode_and_unchanged(setting: Setting, tmp_path: Path) -> None:
    parts = build(setting.recipe(tmp_path / "run", teacher_cache=False, precision="fp32"))
    model = parts.run.teachers[0].network
    assert model.config.hidden_dropout_prob > 0
    assert any(isinstance(m, nn.Dropout) and m.p > 0 for m in parts.module.student.modules())
    before = digest(model)
    states = set()
    model.register_forward_hook(
        lambda module, arguments, out: states.add((module.training, torch.is_grad_enabled(), out.logits.requires_grad))
    )
    teacher = parts.live_teacher()
    student_before = digest(parts.module.student)
    train_parts(parts, teacher, tmp_path / "run")

    assert states == {(False, False, False)}
    assert not any(module.training for module in model.modules())
    assert all(not p.requires_grad and p.grad is None for p in model.parameters())
    assert digest(model) == before
    assert digest(parts.module.student) != student_before
    trained = {id(p) for p in parts.module.parameters()}
    assert not trained & {id(p) for p in model.parameters()}
    batch = collate(parts.data, np.arange(BATCH))
    assert torch.equal(teacher.outputs(batch).logits, teacher.outputs(batch).logits)  # no dropout


@pytest.mark.parametrize("cache", [True, False], ids=["stored", "live"])
def test_a_run_leaves_the_teachers_files_as_they_were(
    setting: Setting, kdbert: Any, tmp_path: Path, cache: bool
) -> None:
    def hashes() -> dict[str, str]:
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in setting.teacher.iterdir()}

    before = hashes()
    assert kdbert(*setting.words(tmp_path / "run", teacher_cache=cache, max_steps=3)).code == 0
    assert hashes() == before


def test_teacher_logits_are_put_into_the_tasks_order(exact: Parts) -> None:
    model, batch = exact.run.teachers[0].network, collate(exact.data, np.arange(BATCH))
    own, turned = (LiveTeacher(model, order, "fp32").outputs(batch).logits for order in ([0, 1], [1, 0]))
    assert torch.equal(turned, own[:, [1, 0]])
    assert not torch.equal(turned, own)


class NoReading(TorchDispatchMode):
    """Refuses what makes a GPU's host wait: reading a number, or a shape that depends on values."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        assert name not in self.READS, f"aten::{name} inside a training step"
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["kd", "ics", "cka-i", "cka-g", "cka-ilg", "minilm", "tinybert", "mgskd", "ckd"])
def cuda_like(setting: Setting, tmp_path: Path, request: pytest.FixtureRequest) -> Parts:
    """The student with the attention and the dropout that a GPU gets."""
    changes = {"attention": "sdpa", "fast_dropout": False, **FEATURES.get(request.param, {})}
    parts = build(setting.recipe(tmp_path, precision="fp32", **changes))
    assert parts.module.student.config._attn_implementation == "sdpa"
    return parts


@pytest.mark.parametrize("live", [True, False], ids=["live teacher", "stored teacher"])
def test_a_step_reads_no_number_from_the_device(cuda_like: Parts, live: bool) -> None:
    """On CUDA each such read waits for the device (tests/cuda checks it there; this one runs everywhere)."""
    teacher = cuda_like.live_teacher() if live else cuda_like.stored_teacher()
    module = cuda_like.module.train()
    optimizer = build_optimizer(module, cuda_like.recipe.train)
    watch = FiniteWatch(torch.device("cpu"))
    rows = np.arange(BATCH)
    for step in range(2):
        with NoReading():
            terms = forward_backward(
                module, cuda_like.data, rows, [teacher], cuda_like.accelerator, accumulation=2, seed=1, step=step
            )
            norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()  # its fused CPU kernel differs from CUDA's
        optimizer.zero_grad(set_to_none=True)
        with NoReading():
            watch.see(step, {**terms.terms, "gradient": norm}, rows)
