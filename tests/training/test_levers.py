"""Every lever on its own against the plain way: what is faster must give the same curve and the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import often
from kdbert.models.fast.dropout import FastDropout
from kdbert.models.fast.used_rows import UsedRows
from kdbert.training.loop import trained_rows
from kdbert.training.step import forward_backward
from small_run import STEPS_PER_EPOCH, Setting, build, logged

PLAIN = {
    "attention": "eager", "fast_dropout": False, "used_rows": False, "first_token": False, "teacher_cache": False,
    "packing": False, "fused_layers": False,
}  # fmt: skip


def curve(run: Path) -> np.ndarray:
    """The logged losses in the order of the steps."""
    lines = logged(run)
    return np.array([lines[step]["loss"] for step in sorted(lines)])


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The finished student."""
    found: dict[str, torch.Tensor] = load_file(run / "model" / "model.safetensors")
    return found


@pytest.fixture(scope="module")
def plain(setting: Setting, kdbert: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """156 steps without dropout, in float32, with every lever off."""
    run = tmp_path_factory.mktemp("plain") / "run"
    done = kdbert(*setting.words(run, dropout=0.0, precision="fp32", epochs=12, learning_rate=2e-4, **PLAIN))
    assert done.code == 0, done.err
    assert len(curve(run)) == 12 * STEPS_PER_EPOCH
    return run


@pytest.mark.parametrize(
    "on",
    [
        *(
            pytest.param(on, marks=pytest.mark.long)
            for on in (
                {"attention": "kdbert"}, {"attention": "sdpa"}, {"used_rows": True}, {"first_token": True},
                {"teacher_cache": True}, {"attention": "kdbert", "packing": True},
                {"attention": "kdbert", "packing": True, "fused_layers": True},
            )
        ),
        dict.fromkeys(PLAIN, True) | {"attention": "auto"},
    ],
    ids=lambda on: "all" if len(on) == len(PLAIN) else list(on)[-1],
)  # fmt: skip
@pytest.mark.long
def test_without_dropout_a_lever_gives_the_plain_curve_over_156_steps(
    on: dict[str, Any], plain: Path, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    keys = {"dropout": 0.0, "precision": "fp32", "epochs": 12, "learning_rate": 2e-4, **PLAIN, **on}
    done = kdbert(*setting.words(run, **keys))
    assert done.code == 0, done.err
    expected = curve(plain)
    assert expected[-20:].mean() < 0.9 * expected[:20].mean()  # something was learnt, so the curve can differ
    np.testing.assert_allclose(curve(run), expected, rtol=1e-3)
    np.testing.assert_allclose(curve(run)[:20], expected[:20], rtol=2e-5)
    assert set(weights(run)) == set(weights(plain))
    for name, value in weights(plain).items():
        assert (weights(run)[name] - value).norm() <= 2e-3 * value.norm() + 1e-4, name


@pytest.mark.parametrize(
    "method",
    often(
        [
            "kd",
            "ics",
            "cka-i",
            "cka-l",
            "cka-g",
            "cka-ilg",
            "pkd",
            "rkd",
            "minilm",
            "tinybert",
            "mgskd",
            "dist",
            "sinkd",
        ],
        {"kd", "ics", "cka-ilg", "pkd", "minilm"}.__contains__,
    ),
)
def test_every_objective_has_the_same_loss_with_and_without_the_levers(
    method: str, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    keys = {"dropout": 0.0, "precision": "fp32", "max_steps": 6, "method.name": method, "student.layers": 3}
    keys |= {"memory.centroids": 6} if method in ("cka-g", "cka-ilg") else {}
    for name, more in (("fast", {}), ("plain", PLAIN)):
        done = kdbert(*setting.words(tmp_path / name, **keys, **more))
        assert done.code == 0, done.err
    fast, plain = logged(tmp_path / "fast"), logged(tmp_path / "plain")
    assert [key for key in fast[1] if key.startswith("loss/")] == [key for key in plain[1] if key.startswith("loss/")]
    for step, line in plain.items():
        for key in (key for key in line if key.startswith(("loss", "grad_norm"))):
            assert fast[step][key] == pytest.approx(line[key], rel=2e-4), (step, key)


@pytest.mark.long
def test_a_bf16_run_with_the_levers_stays_near_the_plain_one(
    plain: Path, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = kdbert(*setting.words(run, dropout=0.0, precision="bf16", epochs=12, learning_rate=2e-4))
    assert done.code == 0, done.err
    expected = curve(plain).reshape(12, STEPS_PER_EPOCH).mean(1)
    np.testing.assert_allclose(curve(run).reshape(12, STEPS_PER_EPOCH).mean(1), expected, rtol=0.03)


def test_with_weight_decay_the_unused_rows_shrink_as_they_always_did(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    keys = {"weight_decay": 0.5, "schedule": "constant", "max_steps": 5}
    for name, used in (("on", True), ("off", False)):
        done = kdbert(*setting.words(tmp_path / name, used_rows=used, **keys))
        assert done.code == 0, done.err
    on, off = weights(tmp_path / "on"), weights(tmp_path / "off")
    assert all(torch.equal(on[name], value) for name, value in off.items())
    name = "bert.embeddings.word_embeddings.weight"
    parts = build(setting.recipe(tmp_path / "start"))
    start = parts.module.student.state_dict()[name]
    unused = np.setdiff1d(np.arange(len(start)), parts.data.input_ids)[1:]  # not padding
    assert len(unused) > 3
    torch.testing.assert_close(on[name][unused], start[unused] * (1 - 1e-3 * 0.5) ** 5, rtol=1e-5, atol=1e-7)


def test_words_that_only_dev_has_keep_their_pretrained_vectors(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    done = kdbert(*setting.words(tmp_path / "run", max_steps=5))
    assert done.code == 0, done.err
    parts = build(setting.recipe(tmp_path / "start"))
    name = "bert.embeddings.word_embeddings.weight"
    start, found = parts.module.student.state_dict()[name], weights(tmp_path / "run")[name]
    unused = np.setdiff1d(np.arange(len(start)), parts.data.input_ids)
    assert torch.equal(found[unused], start[unused])
    assert not torch.equal(found, start)


def test_a_teacher_made_on_the_way_is_computed_like_its_student(setting: Setting, tmp_path: Path) -> None:
    from kdbert.recipe.defaults import teacher_recipes

    recipe = setting.recipe(tmp_path / "run", **PLAIN).model_copy(update={"teachers": []})
    (teacher,) = teacher_recipes(recipe)
    assert {key: getattr(teacher.train, key) for key in PLAIN if key != "teacher_cache"} == {
        key: value for key, value in PLAIN.items() if key != "teacher_cache"
    }


@pytest.mark.parametrize("on", [True, False])
def test_the_levers_are_in_the_model_that_is_trained(on: bool, setting: Setting, tmp_path: Path) -> None:
    keys = {} if on else {**PLAIN, "teacher_cache": True}
    parts = build(setting.recipe(tmp_path / "run", **keys))
    student, data = parts.run.student, parts.data
    dropouts = {type(module) for module in student.modules() if isinstance(module, torch.nn.Dropout)}
    assert dropouts == {FastDropout if on else torch.nn.Dropout}
    assert student.config._attn_implementation == ("kdbert" if on else "eager")
    lengths: list[int] = []
    student.base_model.encoder.layer[-1].register_forward_hook(lambda layer, given, out: lengths.append(out.shape[1]))
    seen: list[torch.Size] = []
    with trained_rows(parts.recipe.train, data, parts.module):
        rows = student.get_input_embeddings()
        assert isinstance(rows, UsedRows) == on
        rows.register_forward_hook(lambda layer, given, out: seen.append(out.shape))
        parts.module.train()
        forward_backward(
            parts.module,
            data,
            np.arange(8),
            [parts.stored_teacher()],
            parts.accelerator,
            accumulation=1,
            seed=1,
            step=0,
        )
        assert len(rows.weight.grad) == (len(np.unique(data.input_ids)) + 1 if on else student.config.vocab_size)
    longest = int(data.lengths[:8].max())
    assert lengths == [1 if on else longest]
    assert len(seen) == 1
