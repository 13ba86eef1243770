"""Rows without a label: the hard loss is that of the others, every other term is over all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import often
from kdbert.data.batches import collate, micro_batches
from kdbert.heads import SingleLabel
from kdbert.methods import get_method
from kdbert.training.step import forward_backward
from small_heads import make_setting
from small_run import FEATURES, Parts, Setting, assert_same_gradients, build, gradients

EXACT = {"dropout": 0.0, "precision": "fp32"}
HALF = {"task.labelled_share": 0.5}
KINDS = ("single_label", "regression", "multi_label", "token")
WEIGHED = {"class_weights": "balanced", "label_smoothing": 0.1}


@pytest.fixture(scope="module")
def tasks(setting: Setting, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small task of each head: what makes its recipes."""
    from small_run import make_teacher

    root = tmp_path_factory.mktemp("tasks")
    files = {}
    for name, rows in (("train", 101), ("dev", 31)):
        files[name] = root / f"{name}.tsv"
        lines = [f"a {'good' if number % 3 else 'bad'} film {number}\t{number % 7 / 3}" for number in range(rows)]
        files[name].write_text("\n".join(["text\tlabel", *lines]) + "\n", encoding="utf-8")
    scores = Setting(files["train"], files["dev"], make_teacher(root / "scores", labels=("score",)), tiny_bert)
    heads = {kind: make_setting(kind, root / kind, tiny_bert) for kind in ("multi_label", "token")}
    return {"single_label": setting, "regression": scores, **heads}


def made(tasks: dict[str, Any], kind: str, folder: Path, **changes: Any) -> Parts:
    """A student without dropout, in float32."""
    return build(tasks[kind].recipe(folder, **{**EXACT, **changes}))


def hard(parts: Parts, rows: np.ndarray) -> tuple[float, dict[str, torch.Tensor]]:
    """The hard loss of some rows, and its gradients."""
    parts.module.train()
    batch = collate(parts.data, rows)
    term = parts.module(batch, [parts.stored_teacher().outputs(batch)]).terms["hard"]
    term.backward()
    return term.item(), gradients(parts.module)


def steps(parts: Parts, rows: np.ndarray, accumulation: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """All terms of a global batch, and the gradients."""
    parts.module.train()
    terms = forward_backward(
        parts.module, parts.data, rows, [parts.stored_teacher()], parts.accelerator, accumulation=accumulation, seed=1,
        step=0,
    )  # fmt: skip
    return {name: value.item() for name, value in terms.terms.items()}, gradients(parts.module)


@pytest.mark.parametrize("weighed", [False, True], ids=["plain", "weighed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_hard_loss_is_that_of_the_labelled_rows_and_the_soft_loss_of_all(
    tasks: dict[str, Any], tmp_path: Path, kind: str, weighed: bool
) -> None:
    changes = WEIGHED if weighed and kind != "regression" else {}
    half = made(tasks, kind, tmp_path / "half", **HALF, **changes)
    given = {"class_weights": None}
    if changes:  # the balanced weights of half of the labels
        given = {"class_weights": {}}
        weights = half.run.job.head.class_weights
        names = half.run.job.spec.labels
        factors = [both[1] / both[0] if isinstance(both, tuple) else both for both in weights]
        given = {"class_weights": dict(zip(names, factors, strict=True)), "label_smoothing": 0.1}
        half = made(tasks, kind, tmp_path / "half", **HALF, **given)
    whole = made(tasks, kind, tmp_path / "whole", **given)
    whole.module.load_state_dict(half.module.state_dict())
    labelled = half.data.labelled
    assert labelled is not None
    rows = np.arange(20)
    kept = rows[labelled[rows]]
    assert 3 < len(kept) < 17
    expected, grads = hard(whole, kept)
    found, own = hard(half, rows)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found > 0.01
    assert_same_gradients(own, grads, rtol=1e-4)
    all_terms, _ = steps(whole, rows, 1)
    terms, together = steps(half, rows, 1)
    assert terms["soft"] == pytest.approx(all_terms["soft"], rel=1e-5)
    assert terms["hard"] == pytest.approx(expected, rel=1e-5)
    for accumulation in (2, 3, 20):  # of twenty micro-batches some have no row with a label
        parted, by_parts = steps(half, rows, accumulation)
        assert parted == pytest.approx(terms, rel=1e-5)
        assert_same_gradients(by_parts, together, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_labels_are_gone_and_their_number_changes_no_shape(
    tasks: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    half, whole = made(tasks, kind, tmp_path / "half", **HALF), made(tasks, kind, tmp_path / "whole")
    assert whole.data.labelled is None
    labelled, examples = half.data.labelled, half.run.job.train_examples
    assert labelled is not None
    assert labelled.mean() == pytest.approx(0.5, abs=0.02)
    assert half.data.labels.shape == whole.data.labels.shape
    kept = examples.of_labels(labelled)
    assert (half.data.labels[kept] == whole.data.labels[kept]).all()
    assert not half.data.labels[~kept].any()
    assert half.data.fingerprint() != whole.data.fingerprint()


def test_padding_changes_no_loss_of_rows_without_a_label(tasks: dict[str, Any], tmp_path: Path) -> None:
    parts = made(tasks, "token", tmp_path, **HALF)
    rows, teacher = np.arange(16), parts.live_teacher()
    found = []
    for more in (0, 7):
        batch = collate(parts.data, rows, int(parts.data.lengths[rows].max()) + more)
        terms = parts.module(batch, [teacher.outputs(batch)]).terms
        found.append({name: value.item() for name, value in terms.items()})
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_step_without_a_label_has_a_hard_loss_of_0_and_a_gradient(tasks: dict[str, Any], tmp_path: Path) -> None:
    parts = made(tasks, "single_label", tmp_path, **{"task.labelled_share": 0.0})
    terms, grads = steps(parts, np.arange(8), 2)
    assert terms["hard"] == 0.0
    assert terms["soft"] > 0.01
    assert all(value.isfinite().all() for value in grads.values())
    assert any(value.abs().max() > 0 for value in grads.values())


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_mean_over_labelled_rows_is_the_same_however_a_step_is_cut(
    tasks: dict[str, Any], tmp_path: Path, world: int, accumulation: int
) -> None:
    for kind in ("single_label", "token"):
        data = made(tasks, kind, tmp_path / kind, **HALF).data
        rows = np.arange(11)
        values = torch.arange(float(len(data)))
        total = 0.0
        for rank in range(world):
            for batch in micro_batches(data, rows, accumulation=accumulation, rank=rank, world=world):
                per_row = values[batch.example]
                if kind == "token":
                    per_row = per_row[:, None] * (batch.labels != -100)
                total += batch.mean_of_labelled(per_row).item() / world
        labelled = rows[data.labelled[rows]]
        weights = data.label_counts[labelled] if kind == "token" else np.ones(len(labelled))
        assert total == pytest.approx(np.average(labelled, weights=weights), rel=1e-5)


@pytest.mark.parametrize(
    "name",
    often(
        [name for name in FEATURES if "layerwise" not in name and "=" not in name and name != "ad-kd"],
        {"ics", "cka-ilg", "rkd", "minilm", "ckd"}.__contains__,
    ),
)
def test_features_of_rows_without_a_label_are_learned_too(setting: Setting, tmp_path: Path, name: str) -> None:
    changes = {**EXACT, **FEATURES[name]}
    whole = build(setting.recipe(tmp_path / "a", **changes))
    half = build(setting.recipe(tmp_path / "b", **changes, **HALF))
    half.module.load_state_dict(whole.module.state_dict())
    all_terms, terms = (steps(parts, np.arange(16), 1)[0] for parts in (whole, half))
    assert terms.keys() == all_terms.keys()
    # ics and dkd take the teacher's classes where labels are hidden
    same = {term for term in terms if term not in ("hard", "feature", "tckd")}
    assert {term: terms[term] for term in same} == pytest.approx({term: all_terms[term] for term in same}, rel=1e-5)
    if name != "tinybert":  # whose first stage reads no labels
        assert terms["hard"] != all_terms["hard"]


def test_the_class_of_a_row_without_a_label_is_the_teachers_answer(setting: Setting, tmp_path: Path) -> None:
    half = build(setting.recipe(tmp_path / "half", **EXACT, **FEATURES["ics"], **HALF))
    whole = build(setting.recipe(tmp_path / "whole", **EXACT, **FEATURES["ics"]))
    rows, teacher = np.arange(16), half.live_teacher()
    answers = teacher.outputs(collate(half.data, rows)).logits.argmax(-1).numpy()
    labelled = half.data.labelled[rows]
    whole.data.labels[rows] = np.where(labelled, whole.data.labels[rows], answers)  # as if they were labels
    whole.module.load_state_dict(half.module.state_dict())
    found = [steps(parts, rows, 1)[0]["feature"] for parts in (half, whole)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    ics = get_method("ics")
    assert not ics.takes_unlabelled(ics.Options(name="ics", alpha_soft=0.0), SingleLabel())
