"""What must not change a loss or a gradient of the feature methods, with models as a run builds them.

The teacher is wider than the student and deeper, so that `ics` has a projection, whose gradients are compared too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import VOCABULARY, WORDS, make_bert, often
from kdbert.data.batches import Batch, collate
from kdbert.methods import LossTerms
from kdbert.training.step import forward_backward
from kdbert.training.teacher import Teacher
from small_run import (
    BATCH,
    FEATURES,
    Parts,
    Setting,
    assert_same_gradients,
    build,
    gradients,
    logged,
    make_teacher,
    ragged_rows,
)

every_method = pytest.mark.parametrize("name", FEATURES)
BY_TOKEN = "tinybert", "distilbert", "ckd", "ad-kd"  # methods whose means are over tokens: no term compares examples
FLOOR = 2e-4  # of the largest gradient: below it, differences in float32 are rounding
EXACT = {"dropout": 0.0, "precision": "fp32"}


@pytest.fixture(scope="module")
def setting(tiny_bert: Path, custom_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Task, a teacher of width 48, and a student of width 32."""
    return Setting(*custom_files, make_teacher(tmp_path_factory.mktemp("teacher"), hidden=48), tiny_bert)


Maker = Callable[[str], Parts]


@pytest.fixture(scope="module")
def exact(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """The parts of a run by a method, without dropout, in float32; made once for each."""
    return maker(setting, tmp_path_factory.mktemp("float32"), torch.float32)


@pytest.fixture(scope="module")
def double(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """The same in float64, for a live teacher.

    Where CKA is near 1, its gradient is a small difference of large matrices, so in float32 rounding alone changes
    small gradients by more than 1e-5.
    """
    return maker(setting, tmp_path_factory.mktemp("float64"), torch.float64)


def maker(setting: Setting, root: Path, dtype: torch.dtype) -> Maker:
    """What makes the parts, below one runs folder."""
    made: dict[str, Parts] = {}

    def of(name: str) -> Parts:
        if name not in made:
            folder = root / name.replace(" ", "-").replace("=", "-")
            made[name] = build(setting.recipe(folder, **EXACT, **FEATURES[name]))
            made[name].module.to(dtype)
            made[name].run.teachers[0].network.to(dtype)
        return made[name]

    return of


def short_rows(parts: Parts) -> np.ndarray:
    """The shortest examples, so that much can be padded; of them, those of one length are not all together."""
    return np.random.default_rng(0).permutation(np.argsort(parts.data.lengths, kind="stable")[:BATCH])


def loss_of(parts: Parts, batch: Batch, teacher: Teacher) -> tuple[LossTerms, dict[str, torch.Tensor]]:
    """Terms and gradients of one batch."""
    parts.module.train()
    terms = parts.module(batch, [teacher.outputs(batch)])
    terms.total.backward()
    return terms, gradients(parts.module)


def assert_same_terms(actual: LossTerms, expected: LossTerms, rtol: float = 1e-5) -> None:
    """Every term, and the total; nothing that is compared is nearly nothing."""
    assert actual.terms.keys() == expected.terms.keys()
    assert len(expected.terms) > 1
    for name, value in expected.terms.items():
        assert value.item() > 1e-6, name
        torch.testing.assert_close(actual.terms[name], value, rtol=rtol, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(actual.total, expected.total, rtol=rtol, atol=0)


paddings = pytest.mark.parametrize("extra", often([1, 16, None], [1, None].__contains__))


def padded_and_plain(parts: Parts, teacher: Teacher, extra: int | None) -> tuple[Any, Any]:
    """Terms and gradients of a batch with and without more padding than it needs."""
    rows = short_rows(parts)
    longest = int(parts.data.lengths[rows].max())
    length = 64 if extra is None else longest + extra
    return tuple(loss_of(parts, collate(parts.data, rows, padded), teacher) for padded in (length, longest))


@every_method
@paddings
def test_padding_changes_no_loss_and_no_gradient(double: Maker, name: str, extra: int | None) -> None:
    parts = double(name)
    (padded, actual), (plain, expected) = padded_and_plain(parts, parts.live_teacher(), extra)
    assert_same_terms(padded, plain, rtol=1e-9)
    assert_same_gradients(actual, expected, rtol=1e-6, floor=1e-9)


@every_method
@paddings
def test_padding_changes_nothing_with_a_stored_teacher(exact: Maker, name: str, extra: int | None) -> None:
    parts = exact(name)
    (padded, actual), (plain, expected) = padded_and_plain(parts, parts.stored_teacher(), extra)
    assert_same_terms(padded, plain)
    assert_same_gradients(actual, expected, rtol=1e-5, floor=FLOOR)


@every_method
def test_the_order_of_a_batch_changes_nothing(double: Maker, name: str) -> None:
    parts = double(name)
    rows, teacher = ragged_rows(parts), parts.live_teacher()
    plain, expected = loss_of(parts, collate(parts.data, rows), teacher)
    turned, actual = loss_of(parts, collate(parts.data, rows[::-1].copy()), teacher)
    assert_same_terms(turned, plain, rtol=1e-9)
    assert_same_gradients(actual, expected, rtol=1e-6, floor=1e-9)


@every_method
@pytest.mark.parametrize("ragged", [False, True], ids=["16 rows", "11 rows"])
def test_a_stored_teacher_gives_the_loss_of_a_live_one(exact: Maker, name: str, ragged: bool) -> None:
    parts = exact(name)
    rows = ragged_rows(parts) if ragged else short_rows(parts)
    batch = collate(parts.data, rows)
    stored, live = parts.stored_teacher(), parts.live_teacher()
    kept, seen = stored.outputs(batch), live.outputs(batch)
    assert kept.reduced.keys() == seen.reduced.keys()
    for key, value in seen.reduced.items():
        torch.testing.assert_close(kept.reduced[key], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()))
    assert kept.hidden.keys() == seen.hidden.keys()
    plain, expected = loss_of(parts, batch, live)
    replayed, actual = loss_of(parts, batch, stored)
    assert_same_terms(replayed, plain, rtol=1e-4)  # of other batches: products of other shapes, in float32
    assert_same_gradients(actual, expected, rtol=1e-5, floor=FLOOR)


@pytest.mark.parametrize("name", [name for name in FEATURES if name.partition(" ")[0] not in BY_TOKEN])
@pytest.mark.parametrize("accumulation", often([2, 3], [3].__contains__))
def test_micro_batches_are_weighed_by_their_share_of_the_step(double: Maker, name: str, accumulation: int) -> None:
    """A term that compares examples does so within each micro-batch; the step has their mean."""
    parts = double(name)
    rows, teacher = ragged_rows(parts), parts.live_teacher()
    parts.module.train()
    whole = forward_backward(
        parts.module, parts.data, rows, [teacher], parts.accelerator, accumulation=accumulation, seed=1, step=0
    )
    found = gradients(parts.module)
    sums: dict[str, float] = dict.fromkeys(whole.terms, 0.0)
    total: dict[str, torch.Tensor] = {}
    for part in np.array_split(rows, accumulation):
        share = len(part) / len(rows)
        terms, one = loss_of(parts, collate(parts.data, part), teacher)
        for key, value in terms.terms.items():
            sums[key] += share * value.item()
        for key, gradient in one.items():
            total[key] = total.get(key, torch.zeros((), dtype=torch.float64)) + share * gradient
    terms_of = {key: value.item() for key, value in whole.terms.items() if key != "token"}  # a mean over tokens
    sums = {key: value for key, value in sums.items() if key != "token"}
    assert terms_of == pytest.approx(sums, rel=1e-9)
    if name != "mgskd":
        assert_same_gradients(found, total, rtol=1e-6, floor=1e-9)


ALONE = (*BY_TOKEN, "cka-g", "pkd", "dkd", "minilm")  # methods of which no term compares examples


@pytest.mark.parametrize("name", [name for name in FEATURES if name.partition(" ")[0] in ALONE])
@pytest.mark.parametrize("accumulation", often([2, 4], [4].__contains__))
def test_accumulation_changes_nothing_where_no_examples_are_compared(
    double: Maker, name: str, accumulation: int
) -> None:
    parts = double(name)
    rows, teacher = ragged_rows(parts), parts.live_teacher()
    found = []
    for count in (1, accumulation):
        parts.module.train()
        terms = forward_backward(
            parts.module, parts.data, rows, [teacher], parts.accelerator, accumulation=count, seed=1, step=0
        )
        found.append((terms, gradients(parts.module)))
    assert_same_terms(found[1][0], found[0][0], rtol=1e-9)
    assert_same_gradients(found[1][1], found[0][1], rtol=1e-6, floor=1e-9)


BF16_TOLERANCE = 0.05  # relative, of each term; bfloat16 keeps 8 bits in every layer of both encoders


@every_method
def test_bf16_encoders_give_nearly_the_loss_of_fp32(exact: Maker, setting: Setting, tmp_path: Path, name: str) -> None:
    parts = exact(name)
    memory = {"memory.file": str(parts.run.job.centroids.path), "memory.centroids": None} if parts.run.centroids else {}
    changes = {**EXACT, **FEATURES[name], **memory, "precision": "bf16"}
    half = build(setting.recipe(tmp_path / "run", **changes))
    half.module.load_state_dict(parts.module.state_dict())
    batch = collate(parts.data, short_rows(parts))
    plain, _ = loss_of(parts, batch, parts.live_teacher())
    found, _ = loss_of(half, batch, half.live_teacher())
    assert all(value.dtype == torch.float32 for value in found.terms.values())
    assert found.total.item() != plain.total.item()
    for key, value in plain.terms.items():
        assert found.terms[key].item() == pytest.approx(value.item(), rel=BF16_TOLERANCE, abs=1e-3), key


def test_what_belongs_to_the_method_is_trained_with_the_student(exact: Maker) -> None:
    own = {
        name: {key for key, _ in exact(name).module.named_parameters() if key.startswith("method.")}
        for name in FEATURES
    }
    for name in ("ics", "distilbert"):
        assert own.pop(name) == {"method.projections.0.weight", "method.projections.0.bias"}
    for name, count in (("pkd", 2), ("tinybert", 4)):  # layers; of tinybert one more is the embeddings
        parts = range(count)
        assert own.pop(name) == {f"method.projections.{one}.{part}" for one in parts for part in ("weight", "bias")}
    for name, keys in own.items():
        with_memory = name.partition(" ")[0] in ("cka-g", "cka-ilg")
        assert keys == ({"method.centroids.student"} if with_memory else set()), name


# --- variant original ---


@pytest.fixture(scope="module")
def narrow(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """With a teacher as wide as the student, as the published ics has it."""
    teacher = make_teacher(tmp_path_factory.mktemp("narrow"))
    return Setting(setting.train, setting.dev, teacher, setting.student)


@pytest.mark.parametrize(
    "name",
    often(
        ["ics", "cka-i", "cka-l", "cka-g", "cka-ilg", "rkd features=flat", "tinybert", "ckd"],
        {"ics", "cka-ilg", "tinybert"}.__contains__,
    ),
)
def test_an_original_run_has_its_teacher_live_and_pads_to_the_maximum(
    narrow: Setting, kdbert: Any, tmp_path: Path, name: str
) -> None:
    changes = {**EXACT, **FEATURES[name], "method.variant": "original", "max_steps": 2}
    if name == "tinybert":  # the stage that reads padding, and its published code takes every n-th layer
        changes |= {"method.stage": "intermediate", "student.layers": 2}
    ended = kdbert(*narrow.words(tmp_path / "run", **changes))
    assert ended.code == 0, ended.err
    assert "teacher: runs at every step, since positions of padding are read" in ended.err
    kept = {path.name for path in tmp_path.rglob("runs/.teacher-outputs/*/*.safetensors")}
    assert kept == {"logits.safetensors"}  # of dev, for the teacher's score

    parts = build(narrow.recipe(tmp_path / "run", **changes))
    rows = next(iter(order_of(parts)))
    first = logged(tmp_path / "run")[1]
    losses = {}
    for length in (64, None):
        parts.module.train()
        terms = forward_backward(
            parts.module, parts.data, rows, [parts.live_teacher()], parts.accelerator,
            accumulation=1, seed=1, step=0, length=length,
        )  # fmt: skip
        gradients(parts.module)
        losses[length] = {f"loss/{key}": value.item() for key, value in terms.terms.items()}
    assert {key: first[key] for key in losses[64]} == pytest.approx(losses[64], rel=1e-6)
    if name != "cka-l":  # whose centring over the samples takes away what their padding shares: here nearly all of it
        assert losses[None] != pytest.approx(losses[64], rel=1e-5)  # padding is seen


def order_of(parts: Parts) -> list[np.ndarray]:
    """The batches of the first epoch."""
    from kdbert.training.loop import epoch_order

    return epoch_order(parts.recipe.train, parts.data, parts.module.method.head, parts.recipe.seed, 0)


def test_a_student_that_reads_longer_sequences_than_its_teacher_has_a_memory(
    setting: Setting, kdbert: Any, tmp_path: Path
) -> None:
    """The memory is as long as the teacher's longest example; a student without its words spells them."""
    spelling = make_bert(tmp_path / "spelling", vocabulary=[word for word in VOCABULARY if word not in WORDS])
    own = Setting(setting.train, setting.dev, setting.teacher, spelling)
    ended = kdbert(*own.words(tmp_path / "run", **EXACT, **FEATURES["cka-g"], max_steps=2))
    assert ended.code == 0, ended.err
    terms = logged(tmp_path / "run")[2]
    assert all(np.isfinite(terms[f"loss/{name}"]) for name in ("distance", "cosine", "memory_cka"))
