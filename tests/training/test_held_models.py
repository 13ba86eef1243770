"""Methods that work with the models themselves: theseus, which mixes layers, and reptile, whose teacher learns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from conftest import Finished, make_bert
from in_processes import manifest
from kdbert import UserError
from kdbert.data.batches import collate
from kdbert.methods import OwnStep
from kdbert.models.architectures import ARCHITECTURES
from kdbert.recipe import Recipe
from kdbert.training.forward import run_model
from kdbert.training.loop import build_optimizer
from kdbert.training.step import forward_backward
from small_architectures import make_model, variant_of
from small_models import make_distilbert, make_roberta
from small_run import (
    BATCH,
    HELD,
    Parts,
    Setting,
    assert_same_gradients,
    build,
    gradients,
    logged,
    make_teacher,
    predictions,
    ragged_rows,
    run_recipe,
)

EXACT = {"dropout": 0.0, "precision": "fp32"}
THESEUS, REPTILE = HELD["theseus"], {key: value for key, value in HELD["reptile"].items() if key != "student.model"}
BOTH = pytest.mark.parametrize("keys", [THESEUS, REPTILE], ids=["theseus", "reptile"])
OWN = [name for name, one in ARCHITECTURES.items() if one.own_attention]


def backward(parts: Parts, rows: np.ndarray, accumulation: int, step: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one global batch."""
    parts.module.train()
    terms = forward_backward(
        parts.module, parts.data, rows, parts.run.ready_teachers(), parts.accelerator, accumulation=accumulation,
        seed=1, step=step,
    )  # fmt: skip
    return terms.total.item(), gradients(parts.module)


@BOTH
def test_neither_padding_nor_accumulation_changes_a_loss_or_gradient(
    keys: dict[str, Any], setting: Setting, tmp_path: Path
) -> None:
    parts = build(setting.recipe(tmp_path / "run", **EXACT, **keys))
    rows = ragged_rows(parts)
    loss, expected = backward(parts, rows, 1)
    for accumulation in (2, 4):
        other, actual = backward(parts, rows, accumulation)
        assert other == pytest.approx(loss, rel=1e-5)
        assert_same_gradients(actual, expected, rtol=1e-4)
    teachers, found = parts.run.ready_teachers(), []
    for length in (None, int(parts.data.lengths[rows].max()) + 1, 64):
        batch = collate(parts.data, rows, length)
        parts.module(batch, [teacher.outputs(batch) for teacher in teachers]).total.backward()
        found.append(gradients(parts.module))
    for actual in found[1:]:
        assert_same_gradients(actual, found[0], rtol=1e-4)


@BOTH
def test_weights_of_classes_change_the_hard_term_and_no_other(
    keys: dict[str, Any], setting: Setting, tmp_path: Path
) -> None:
    found = []
    for number, weights in enumerate((None, {"negative": 0.25, "positive": 3})):
        parts = build(setting.recipe(tmp_path / str(number), **EXACT, **keys, class_weights=weights))
        batch = collate(parts.data, np.arange(8))
        teachers = parts.run.ready_teachers()
        parts.module.train()
        found.append(parts.module(batch, [teacher.outputs(batch) for teacher in teachers]).terms)
    assert {name for name, value in found[0].items() if not torch.equal(value, found[1][name])} == {"hard"}


# ---- theseus


@pytest.mark.parametrize("levers", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("model_type", OWN)
def test_with_all_blocks_of_the_teacher_the_mixed_model_is_the_teacher(
    model_type: str, levers: bool, setting: Setting, tmp_path: Path
) -> None:
    teacher = make_model(tmp_path / "teacher", variant_of(model_type), "sequence", ("negative", "positive"))
    keys = {**THESEUS, "packing": levers, "first_token": levers}
    parts = build(replace(setting, teacher=teacher).recipe(tmp_path / "run", **EXACT, **keys))
    method, student = parts.module.method, parts.run.student
    batch = collate(parts.data, np.arange(8))
    expected = parts.live_teacher().outputs(batch).logits
    student.eval()
    alone = run_model(student, batch, "fp32").logits
    for draws, wanted in (([False, False], expected), ([True, True], alone)):
        method._draws[:] = draws
        student.train()
        torch.testing.assert_close(run_model(student, batch, "fp32").logits, wanted, rtol=1e-4, atol=1e-5)
        student.eval()  # in which the student is always alone
        assert torch.equal(run_model(student, batch, "fp32").logits, alone)
    assert (expected - alone).abs().max() > 1e-3


def test_draws_are_of_seed_and_step_and_the_rate_grows_to_one(setting: Setting, tmp_path: Path) -> None:
    parts = build(setting.recipe(tmp_path / "run", **EXACT, **THESEUS))
    method, batch = parts.module.method, collate(parts.data, np.arange(4))
    seen = {}
    for seed in (1, 2):
        for step in range(40):
            batch.seed, batch.step, batch.progress = seed, step, step / 40
            method.before_forward(batch)
            seen[seed, step] = list(method._draws)
            method.before_forward(batch)
            assert seen[seed, step] == method._draws
    assert [seen[1, step] for step in range(40)] != [seen[2, step] for step in range(40)]
    assert all(all(seen[1, step]) for step in range(24, 40))  # full_at is 0.6
    assert 10 < sum(sum(seen[seed, step]) for seed in (1, 2) for step in range(24)) < 96


@pytest.mark.parametrize("variant", ["corrected", "original"])
def test_a_run_of_theseus(variant: str, setting: Setting, kdbert: Callable[..., Finished], tmp_path: Path) -> None:
    run, before = tmp_path / "run", (setting.teacher / "model.safetensors").read_bytes()
    ended = kdbert(*setting.words(run, **THESEUS, max_steps=10, **{"method.variant": variant}))
    assert ended.code == 0, ended.err
    assert (setting.teacher / "model.safetensors").read_bytes() == before
    facts, start, found = manifest(run), load_file(setting.teacher / "model.safetensors"), load_file(
        run / "model" / "model.safetensors"
    )  # fmt: skip
    assert facts["layers"] == 2
    assert facts["recipe"]["student"]["model"] == str(setting.teacher)
    moved = {name for name, value in found.items() if not torch.equal(value, start[name])}
    layers = {name for name in found if ".layer." in name}
    head = {name for name in found if name.startswith("classifier") or "pooler" in name}
    assert moved - layers == (head if variant == "corrected" else set())
    assert len(moved & layers) > len(layers) - 4  # but for biases of keys, whose gradient is 0
    lines = logged(run)
    rates = [line["theseus/rate"] for line in lines.values()]
    assert rates[0] == pytest.approx(0.3)
    assert rates[-1] == pytest.approx(1.0 if variant == "corrected" else 0.3 + 9 * 0.0006)
    assert {line["theseus/replaced"] for line in lines.values()} <= {0.0, 0.5, 1.0}


def test_original_clips_by_the_norm_of_all_parameters(setting: Setting, tmp_path: Path) -> None:
    parts = build(setting.recipe(tmp_path / "run", **EXACT, **THESEUS, **{"method.variant": "original"}))
    _, found = backward(parts, np.arange(BATCH), 1)
    assert any(name.startswith("method.predecessors.") and value.any() for name, value in found.items())
    assert any("embeddings" in name for name in found)
    trained = {
        id(p) for group in build_optimizer(parts.module, parts.recipe.train).param_groups for p in group["params"]
    }
    names = {name for name, p in parts.module.named_parameters() if id(p) in trained}
    assert names == {name for name in found if name.startswith("student.") and ".layer." in name}
    kept = [name for name in parts.module.weights() if name.startswith("method.")]
    assert len(kept) == sum(1 for _ in parts.module.method.parameters())


def test_a_theseus_student_is_cut_from_a_teacher_made_on_the_way(
    setting: Setting, kdbert: Callable[..., Finished], tmp_path: Path
) -> None:
    keys = {**THESEUS, "max_steps": 2, "teacher_training.model": str(setting.student), "teacher_training.epochs": 1}
    words = [
        word for word in setting.words(tmp_path / "run", **keys) if word not in ("--teacher", str(setting.teacher))
    ]
    ended = kdbert(*words)
    assert ended.code == 0, ended.err
    facts = manifest(tmp_path / "run")
    assert facts["recipe"]["student"]["model"] == facts["teachers"][0]["model"] != str(setting.student)


def refused(setting: Setting, folder: Path, **keys: Any) -> str:
    """Why a run is refused."""
    with pytest.raises(UserError) as caught:
        run_recipe(setting.recipe(folder / "run", **keys))
    assert not (folder / "run").exists()
    return str(caught.value)


@BOTH
def test_what_cannot_work_is_refused_before_training(keys: dict[str, Any], setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "soft.jsonl").write_text('{"id": "0", "probabilities": {"negative": 0.5, "positive": 0.5}}\n')
    own = keys if keys is REPTILE else {**keys, "student.model": str(setting.student)}
    assert "soft.jsonl" in refused(replace(setting, teacher=tmp_path / "soft.jsonl"), tmp_path, **own)
    assert "fp16" in refused(setting, tmp_path, **keys, precision="fp16")
    for other in (make_distilbert(tmp_path / "distilbert"), make_roberta(tmp_path / "roberta")):
        refused(setting, tmp_path, **{**keys, "student.model": str(other)})
    albert = make_model(tmp_path / "albert", variant_of("albert"), "sequence", ("negative", "positive"))
    both = {**keys, "student.model": str(albert), "student.layers": None}
    assert "albert" in refused(replace(setting, teacher=albert), tmp_path, **both)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({**THESEUS, "student.layers": 3}, "--student-layers 1 or 2"),
        ({**THESEUS, "student.model": "tiny"}, "--student"),
        ({**REPTILE, "method.layer_map": "0:0,4:2"}, "--layer-map"),
    ],
)
def test_layers_that_do_not_fit_are_refused(keys: dict[str, Any], told: str, setting: Setting, tmp_path: Path) -> None:
    if keys["student.model" if "student.model" in keys else "method.name"] == "tiny":
        keys = {**keys, "student.model": str(setting.student)}
    assert told in refused(setting, tmp_path, **keys)


def test_other_widths_and_sizes_are_refused_by_reptile(setting: Setting, tmp_path: Path) -> None:
    wide = make_teacher(tmp_path / "wide", hidden=48)
    assert "48 and 32" in refused(replace(setting, teacher=wide), tmp_path, **REPTILE)
    longer = make_bert(tmp_path / "longer", positions=80)
    assert "size" in refused(setting, tmp_path, **{**REPTILE, "student.model": str(longer)})


# ---- reptile


@pytest.fixture
def reptile(setting: Setting, tmp_path: Path) -> Parts:
    """The parts of a run by reptile."""
    return build(setting.recipe(tmp_path / "run", **EXACT, **REPTILE, weight_decay=0.1))


def test_the_teachers_step_is_the_published_one(reptile: Parts) -> None:
    """A copy of the student, a new AdamW, a step; the teacher's gradient is the difference to it, clipped to 1."""
    module, method, rows = reptile.module, reptile.module.method, np.arange(BATCH)
    optimizer = build_optimizer(module, reptile.recipe.train)
    own = method.own_optimizer(optimizer)
    assert own is not None
    for group in optimizer.param_groups:  # as a schedule leaves it in the middle of a run
        group["initial_lr"], group["lr"] = 1e-3, 5e-4
    student, teacher = reptile.run.student, method.teacher

    fast, slow = copy.deepcopy(module), copy.deepcopy(teacher)
    live = reptile.run.ready_teachers()

    def compute(module: Any) -> None:
        module.train()
        forward_backward(module, reptile.data, rows, live, reptile.accelerator, accumulation=1, seed=1, step=0)

    compute(fast)
    build_optimizer(fast, reptile.recipe.train).step()
    theirs = dict(fast.student.named_parameters())
    for name, parameter in slow.named_parameters():
        parts = name.split(".layer.")
        if len(parts) == 2:  # layers 2 and 4 of the teacher follow 1 and 2 of the student
            number, rest = parts[1].split(".", 1)
            name = f"{parts[0]}.layer.{int(number) // 2}.{rest}" if int(number) % 2 else ""
        if name:
            parameter.grad = parameter.detach() - theirs[name].detach()
    trained = [p for p in slow.parameters() if p.grad is not None]
    nn.utils.clip_grad_norm_(trained, 1.0)
    decay = [{"params": [p for p in trained if (p.ndim > 1) == wide], "weight_decay": 0.1 * wide} for wide in (1, 0)]
    torch.optim.AdamW(decay, lr=1e-3 / 2).step()

    before = {name: value.clone() for name, value in student.state_dict().items()}
    method.before_step(OwnStep(optimizer, own, lambda: compute(module), 1.0))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    for name, value in slow.named_parameters():
        torch.testing.assert_close(dict(teacher.named_parameters())[name], value, rtol=1e-5, atol=1e-6)
    assert not method.teacher.training
    assert student.training


def test_with_a_teacher_that_stays_reptile_is_kd_bit_for_bit(
    setting: Setting, kdbert: Callable[..., Finished], tmp_path: Path
) -> None:
    """In bits that is kd with a teacher that runs at every step and with all word vectors trained."""
    common = {"teacher_cache": False, "used_rows": False, "max_steps": 8, "weight_decay": 0.1, "accumulation": 2}
    for name, keys in (("kd", {}), ("reptile", {**REPTILE, "method.teacher_learning_rate": 0.0})):
        ended = kdbert(*setting.words(tmp_path / name, **common, **keys))
        assert ended.code == 0, ended.err
    runs = tmp_path / "kd", tmp_path / "reptile"
    weights = [load_file(run / "model" / "model.safetensors") for run in runs]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert logged(runs[0]) == logged(runs[1])
    assert predictions(runs[0]) == predictions(runs[1])


def test_the_teacher_moves_and_is_kept_beside_the_student(
    setting: Setting, kdbert: Callable[..., Finished], tmp_path: Path
) -> None:
    before = (setting.teacher / "model.safetensors").read_bytes()
    ended = kdbert(*setting.words(tmp_path / "run", **REPTILE, max_steps=3, checkpoint_steps=1))
    assert ended.code == 0, ended.err
    assert (setting.teacher / "model.safetensors").read_bytes() == before
    start, found = load_file(setting.teacher / "model.safetensors"), load_file(tmp_path / "run" / "method.safetensors")
    assert {name.removeprefix("teacher.") for name in found} >= set(start)
    moved = {name for name, value in start.items() if not torch.equal(value, found[f"teacher.{name}"])}
    assert {name.split(".layer.")[1][0] for name in moved if ".layer." in name} == {"1", "3"}
    assert {"classifier.weight", "bert.embeddings.word_embeddings.weight"} <= moved


def test_a_teacher_with_its_labels_in_another_order_is_refused(setting: Setting, tmp_path: Path) -> None:
    turned = make_teacher(tmp_path / "turned", labels=("positive", "negative"))
    other = replace(setting, teacher=turned)
    assert "order" in refused(other, tmp_path, **REPTILE)
    run = run_recipe(other.recipe(tmp_path / "run", **THESEUS, max_steps=1))
    assert run.manifest["layers"] == 2


def test_reptile_learns_from_rows_without_a_label(setting: Setting, tmp_path: Path) -> None:
    keys = {"task.labelled_share": 0.5, "max_steps": 2}
    assert run_recipe(setting.recipe(tmp_path / "run", **REPTILE, **keys)).manifest["rows"]["unlabelled"] > 0
    assert "label" in refused(setting, tmp_path / "other", **THESEUS, **keys)


def test_recipes_name_what_is_published(setting: Setting) -> None:
    kinds = {name: Recipe.build(flags={"method.name": name}).method for name in ("theseus", "reptile")}
    assert kinds["reptile"].alpha == 0.5  # type: ignore[attr-defined]
    assert kinds["reptile"].temperature == 5  # type: ignore[attr-defined]
