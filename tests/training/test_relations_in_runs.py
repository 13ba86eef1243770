"""`minilm` and `tinybert` as commands: on plain text and on a task, stage after stage, from a store and without one."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import WORDS, make_bert
from in_processes import manifest
from kdbert.training.step import forward_backward
from small_architectures import make_model, variant_of
from small_models import make_distilbert
from small_run import Setting, assert_same_gradients, build, changed, gradients, logged


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of 1 to 40 words."""
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_text("\n".join(" ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for _ in range(200)))
    return file


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher wider than its students, with as many heads."""
    return make_bert(tmp_path_factory.mktemp("wide") / "bert", hidden=48, seed=1)


def words(text: Path, method: str, teacher: Path, *more: object) -> list[Any]:
    """General distillation to two layers."""
    return [
        "distill", "--corpus", text, "--method", method, "--teacher", teacher, "--student-layers", 2, "--max-length",
        32, "--epochs", 3, "train.batch_tokens=256", "train.logging_steps=1", "train.learning_rate=1e-3", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "more", "terms"),
    [
        ("minilm", [], {"relation.qq": 1 / 3, "relation.kk": 1 / 3, "relation.vv": 1 / 3}),
        ("minilm", ["method.relations=qk,vv", "--layer-map", "3:2"], {"relation.qk": 0.5, "relation.vv": 0.5}),
        ("minilm", ["--variant", "original"], {"relation.qq": 1, "relation.kk": 1, "relation.vv": 1}),
        ("tinybert", [], {"attention": 1, "hidden": 1}),
        ("tinybert", ["--variant", "original", "method.teacher_dropout=true"], {"attention": 1, "hidden": 1}),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_a_general_student_comes_nearer_to_its_teacher(
    text: Path, tiny_bert: Path, wide: Path, kdbert: Callable[..., Any], tmp_path: Path, method: str, more: list[str],
    terms: dict[str, float],
) -> None:  # fmt: skip
    done = kdbert(*words(text, method, wide, "--student", tiny_bert, *more, "--output-dir", tmp_path / "run"))
    assert done.code == 0, done.err
    lines = list(logged(tmp_path / "run").values())
    for line in lines:
        assert line["loss"] == pytest.approx(
            sum(line[f"loss/{name}"] * share for name, share in terms.items()), rel=1e-4
        )
    assert lines[-1]["loss"] < (1 if "teacher_dropout" in str(more) else 0.95) * lines[0]["loss"]
    facts = manifest(tmp_path / "run")
    assert 0 < facts["metrics"]["dev"]["distillation_loss"] < 2 * lines[0]["loss"]
    assert (tmp_path / "run" / "method.safetensors").exists() == (method == "tinybert")


def test_the_second_stage_starts_from_the_student_of_the_first(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    stage = {"method.name": "tinybert", "method.stage": "intermediate"}
    first = setting.words(tmp_path / "first", **stage, max_steps=10)
    done = kdbert(*first)
    assert done.code == 0, done.err
    assert "method.stage=prediction" in done.err  # what to do next: the head is not trained yet
    assert set(logged(tmp_path / "first")[10]) >= {"loss/attention", "loss/hidden", "attention/4-2", "hidden/0-0"}
    second = setting.words(
        tmp_path / "second",
        **{"method.name": "tinybert", "method.stage": "prediction", "student.model": str(tmp_path / "first"),
           "student.layers": None},
    )  # fmt: skip
    done = kdbert(*second)
    assert done.code == 0, done.err
    line = logged(tmp_path / "second")[1]
    assert line["loss"] == pytest.approx(line["loss/soft"])
    assert line["loss/hard"] > 0  # logged, without a weight
    assert manifest(tmp_path / "second")["layers"] == 2


def test_the_teachers_dropout_is_on_in_training_alone(text: Path, wide: Path, tmp_path: Path) -> None:
    from kdbert.recipe import Recipe
    from kdbert.recipe.defaults import resolve_distill

    keys = {
        "task.name": "corpus", "task.train_file": str(text), "task.max_length": 32, "method.name": "tinybert",
        "method.variant": "original", "teachers": [{"model": str(wide)}], "student.layers": 2,
        "train.batch_tokens": 256, "train.precision": "fp32", "output.runs_dir": str(tmp_path),
    }  # fmt: skip
    plain = build(resolve_distill(Recipe.build(flags=keys)))
    drops = build(changed(plain.recipe, {"method.teacher_dropout": True}))
    values = []
    for parts in (plain, drops):
        (teacher,) = parts.run.ready_teachers()
        scores = [parts.run._answers(parts.module.student, "dev").scores for _ in range(2)]
        assert scores[0] == scores[1]  # of dev there is none, and afterwards it is on again
        for seed in (1, 2):
            parts.module.train()
            terms = forward_backward(
                parts.module, parts.data, torch.arange(9).numpy(), [teacher], parts.accelerator, accumulation=1,
                seed=seed, step=0, length=32,
            )  # fmt: skip
            gradients(parts.module)
            values.append(terms.total.item())
    assert values[0] == values[1]  # general distillation has no dropout in the student
    assert len({*values}) == 3


def test_what_is_kept_of_the_teacher_in_half_precision_is_nearly_the_same(setting: Setting, tmp_path: Path) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        parts = build(
            setting.recipe(
                tmp_path / precision, dropout=0.0, precision="fp32", cache_precision=precision,
                **{"method.name": "minilm"},
            )
        )  # fmt: skip
        teachers = parts.run.ready_teachers()
        parts.module.train()
        terms = forward_backward(
            parts.module,
            parts.data,
            torch.arange(16).numpy(),
            teachers,
            parts.accelerator,
            accumulation=1,
            seed=1,
            step=0,
        )
        found[precision] = terms, gradients(parts.module)
    for name, value in found["fp32"][0].terms.items():
        assert found["bf16"][0].terms[name].item() == pytest.approx(value.item(), rel=0.02), name
    key = "relation.vv"
    assert found["bf16"][0].terms[key] != found["fp32"][0].terms[key]
    sizes = {path.name: path.stat().st_size for path in tmp_path.rglob("attention.4.q*.safetensors")}
    assert sizes["attention.4.q.bf16.safetensors"] == pytest.approx(sizes["attention.4.q.safetensors"] / 2, rel=0.05)


def test_what_is_too_large_to_keep_is_computed_at_every_step_with_its_size_in_the_log(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdbert.training.frozen_teacher.KEPT_SHARE", 0.0)
    for name, gib in (("stored", 1), ("live", 1e-4)):
        ended = kdbert(
            *setting.words(
                tmp_path / name / "run", max_steps=3, dropout=0.0, precision="fp32", cache_gib=gib,
                **{"method.name": "tinybert"},
            )
        )  # fmt: skip
        assert ended.code == 0, ended.err
        assert ("runs at every step, since its queries, keys" in ended.err) == (name == "live"), ended.err
        kept = {path.name for path in (tmp_path / name).rglob(".teacher-outputs/*/*.safetensors")}
        assert any(one.startswith(("attention", "hidden")) for one in kept) == (name == "stored")
    lines = [logged(tmp_path / name / "run") for name in ("stored", "live")]
    for step, line in lines[0].items():
        assert lines[1][step]["loss"] == pytest.approx(line["loss"], rel=1e-4)


def test_a_distilbert_learns_from_a_bert_and_a_bert_from_a_distilbert(setting: Setting, tmp_path: Path) -> None:
    other = make_distilbert(tmp_path / "distilbert", hidden=48)
    for number, (one, keys) in enumerate(
        (
            (setting, {"student.model": str(other)}),
            (replace(setting, teacher=other), {}),
            (setting, {"attention": "sdpa"}),
        )
    ):
        recipe = one.recipe(tmp_path / str(number) / "run", precision="fp32", **keys, **{"method.name": "minilm"})
        parts = build(recipe)
        parts.module.train()
        terms = parts.module(*_batch(parts))
        terms.total.backward()
        assert all(value.isfinite() for value in terms.terms.values())
        assert sum(value.item() for name, value in terms.terms.items() if name.startswith("relation")) > 1e-4


def _batch(parts: Any) -> Any:
    from kdbert.data.batches import collate

    batch = collate(parts.data, torch.arange(8).numpy())
    return batch, [parts.live_teacher().outputs(batch)]


def test_own_kernel_packing_and_first_token_change_no_gradient(setting: Setting, tmp_path: Path) -> None:
    for method in ("minilm", "tinybert"):
        found = []
        for name, keys in (
            ("fast", {}), ("plain", {"packing": False, "attention": "eager", "first_token": False, "used_rows": False})
        ):  # fmt: skip
            recipe = setting.recipe(
                tmp_path / method / name, dropout=0.0, precision="fp32", **keys, **{"method.name": method}
            )
            parts = build(recipe)
            parts.module.double()
            parts.run.teachers[0].network.double()
            parts.module.train()
            terms = parts.module(*_batch(parts))
            terms.total.backward()
            found.append((terms.total.item(), gradients(parts.module)))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
        assert_same_gradients(found[0][1], found[1][1], rtol=1e-6, floor=1e-9)


def test_what_makes_no_sense_is_refused_in_one_sentence(
    setting: Setting, text: Path, tiny_bert: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    deberta = make_model(tmp_path / "deberta", variant_of("deberta-v2"), "sequence")
    four = make_model(tmp_path / "four", variant_of("bert"), "sequence")
    end = ("--runs-dir", tmp_path / "runs")

    def task(**keys: Any) -> list[Any]:
        return setting.words(tmp_path / "run", **{"method.name": "tinybert", **keys})

    for command, told in (
        (words(text, "minilm", deberta, *end), "deberta-v2"),
        (words(text, "tinybert", tiny_bert, "method.stage=prediction", *end), "tinybert"),
        (words(text, "minilm", tiny_bert, "method.beta=0", *end), "minilm"),
        (words(text, "minilm", tiny_bert, "method.relation_heads=7", *end), "method.relation_heads"),
        (words(text, "minilm", tiny_bert, "--layer-map", "0:1", *end), "--layer-map"),
        (words(text, "tinybert", tiny_bert, "--variant", "original", "--student-layers", "3", *end), "--layer-map"),
        (task(**{"student.model": str(four)}), "heads"),
        (task(**{"method.variant": "original", "student.layers": 3}), "--layer-map"),
    ):
        for dry in ([], ["--dry-run"]):
            done = kdbert(*command, *dry)
            assert (done.code, "Traceback" in done.err) == (2, False), (command, done.err)
            assert told in done.err, (command, done.err)
    soft = tmp_path / "soft.jsonl"
    soft.write_text('{"id": "0", "logits": {"negative": 0, "positive": 1}}\n')
    given = task()
    given[given.index("--teacher") + 1] = soft
    done = kdbert(*given)
    assert (done.code, "answers only" in done.err) == (2, True), done.err


def test_what_the_method_owns_is_saved_beside_the_model(
    text: Path, wide: Path, tiny_bert: Path, tmp_path: Path, kdbert: Any
) -> None:
    done = kdbert(
        *words(text, "tinybert", wide, "--student", tiny_bert, "train.max_steps=2", "--output-dir", tmp_path / "run")
    )
    assert done.code == 0, done.err
    own = load_file(tmp_path / "run" / "method.safetensors")
    assert {name: tuple(value.shape) for name, value in own.items() if "weight" in name} == {
        f"projections.{number}.weight": (48, 32) for number in range(3)
    }
    assert not [name for name in load_file(tmp_path / "run/model/model.safetensors") if "projection" in name]
