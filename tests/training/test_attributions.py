"""`ad-kd` differentiates the student twice: the derivatives are right, the teacher's attributions are kept, and what
cannot be differentiated is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from conftest import make_bert
from kdbert.data.batches import Batch, collate
from kdbert.errors import UserError
from kdbert.heads import MultiLabel, Regression, SingleLabel
from kdbert.methods import Context, Method, Models, Outputs, Shape, get_method
from kdbert.training.teacher import quantities
from small_architectures import PAIR, make_model, variant_of
from small_models import make_distilbert
from small_run import BATCH, FEATURES, Parts, Setting, build, gradients, logged

EXACT = {"dropout": 0.0, "precision": "fp32"}
MODELS = Models(student=Shape(1, 6), teachers=(Shape(1, 6),))


def adkd(head: Any = SingleLabel(), **options: Any) -> Method:
    """The method, prepared."""
    kind = get_method("ad-kd")
    method = kind(kind.Options.model_validate({"name": "ad-kd", **options}))
    method.prepare(Context(MODELS, head, batch_size=4, epochs=3))
    return method


@pytest.fixture(scope="module")
def parts(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A run without dropout; models in float64."""
    found = build(setting.recipe(tmp_path_factory.mktemp("run"), **EXACT, **FEATURES["ad-kd of classes"]))
    found.module.double()
    found.run.teachers[0].network.double()
    return found


def test_the_gradient_of_the_attributions_is_that_of_differences(parts: Parts) -> None:
    """Of every weight of the student, along one direction, of second order and of first."""
    batch, teacher = collate(parts.data, np.arange(BATCH)), parts.live_teacher()
    taught = [teacher.outputs(batch)]
    parts.module.train()

    def term() -> torch.Tensor:
        return parts.module(batch, taught).terms["attribution"]

    term().backward()
    found = gradients(parts.module)
    trained = {name: weight for name, weight in parts.module.named_parameters() if name in found}
    assert {"student.bert.embeddings.word_embeddings.weight", "student.classifier.weight"} <= trained.keys()
    for pick in ("embeddings", "layer.0", "layer.2", "classifier"):
        names = [name for name in trained if pick in name]
        generator = torch.Generator().manual_seed(len(pick))
        ways = {name: torch.randn(trained[name].shape, dtype=torch.float64, generator=generator) for name in names}
        expected = sum(float((found[name] * way).sum()) for name, way in ways.items())
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                for name, way in ways.items():
                    trained[name] += sign * 1e-6 * way
            ends.append(term().item())
            with torch.no_grad():
                for name, way in ways.items():
                    trained[name] -= sign * 1e-6 * way
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(expected, rel=1e-4, abs=1e-8), pick


def seen(side: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor) -> Outputs:
    """A model: the mean over real tokens of tanh(embedding), times a matrix."""
    each = torch.tanh(side) * mask[:, :, None]
    return Outputs(each.sum(1) / mask.sum(1, keepdim=True) @ weight, mask=mask, hidden={0: side})


def batch_of(labels: torch.Tensor, mask: torch.Tensor) -> Any:
    """A whole step."""
    count = len(labels)
    scales = {"scale": 1 / count, "token_scale": 1 / int(mask.sum())}
    return Batch(mask, mask, None, labels, torch.arange(count), torch.ones(count), **scales)


def drawn(*shape: int, seed: int) -> torch.Tensor:
    """Random numbers in float64, with a gradient."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


CASES: dict[str, tuple[Any, dict[str, Any], torch.Tensor, int]] = {
    "label": (SingleLabel(), {}, torch.tensor([0, 1, 1]), 1),
    "three classes": (SingleLabel(("a", "b", "c")), {}, torch.tensor([0, 2, 1]), 3),
    "classes": (SingleLabel(), {"views": "classes"}, torch.tensor([0, 3, 1]), 4),
    "label of three": (SingleLabel(), {"views": "label", "norm": 1, "error": "smooth_l1"}, torch.tensor([0, 2, 1]), 1),
    "scores": (Regression(), {"top_k": 4}, torch.tensor([0.5, 2.0, 1.0]), 1),
    "sets of classes": (MultiLabel(), {}, torch.tensor([[True, False], [True, True], [False, False]]), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_attributions_are_differentiable_twice_and_of_the_views_that_are_meant(name: str) -> None:
    head, options, labels, views = CASES[name]
    mask = (torch.arange(5)[None, :] < torch.tensor([5, 1, 3])[:, None]).long()
    outputs = {"scores": 1, "three classes": 3, "label of three": 3, "classes": 4}.get(name, 2)
    method, batch = adkd(head, **options), batch_of(labels, mask)
    embedding, weight = drawn(3, 5, 6, seed=1), drawn(6, outputs, seed=2)
    with torch.no_grad():
        target = torch.rand(3, 5, views, dtype=torch.float64) * mask[:, :, None]

    def loss(embedding: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (method._attributions(seen(embedding, weight, mask), batch) - target).square().sum()

    found = method._attributions(seen(embedding, weight, mask), batch)
    assert found.shape == (3, 5, views)
    assert found[mask == 0].abs().max() == 0
    norm = options.get("norm", 2)
    torch.testing.assert_close(torch.linalg.vector_norm(found, norm, dim=1), torch.ones(3, views, dtype=torch.float64))
    assert torch.autograd.gradcheck(loss, (embedding, weight))
    one_length = torch.ones(3, 5, dtype=torch.int64)  # at padding an attribution is 0, where a norm has a kink

    def whole(embedding: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (
            method._attributions(seen(embedding, weight, one_length), batch_of(labels, one_length))
            .square()
            .square()
            .sum()
        )

    assert torch.autograd.gradgradcheck(whole, (embedding, weight))


def test_with_every_token_real_corrected_is_the_original_and_a_model_is_like_itself() -> None:
    mask, labels = torch.ones(3, 5, dtype=torch.int64), torch.tensor([0, 1, 1])
    batch, own, other = (
        batch_of(labels, mask),
        (drawn(3, 5, 6, seed=1), drawn(6, 2, seed=2)),
        (drawn(3, 5, 6, seed=3), drawn(6, 2, seed=4)),
    )
    found = []
    for variant in ("corrected", "original"):
        method = adkd(variant=variant)
        (quantity,) = method.needs(method.options, MODELS).reduced
        teacher = seen(*other, mask)
        taught = Outputs(
            teacher.logits, mask=mask, reduced={quantity.name: method.attribute("", teacher, batch).detach()}
        )
        found.append(method(seen(*own, mask), [taught], batch).terms["attribution"])
        taught = Outputs(
            teacher.logits, mask=mask, reduced={quantity.name: method.attribute("", seen(*own, mask), batch).detach()}
        )
        assert method(seen(*own, mask), [taught], batch).terms["attribution"] == 0
    torch.testing.assert_close(found[0], found[1])
    assert found[0] > 1e-3


def test_weights_of_classes_and_smoothing_change_no_attribution() -> None:
    mask, labels = torch.ones(3, 5, dtype=torch.int64), torch.tensor([0, 1, 1])
    batch, model = batch_of(labels, mask), seen(drawn(3, 5, 6, seed=1), drawn(6, 2, seed=2), mask)
    plain, weighed = adkd(), adkd(SingleLabel(("a", "b"), class_weights=(0.5, 3.0), label_smoothing=0.3))
    torch.testing.assert_close(plain._attributions(model, batch), weighed._attributions(model, batch))


def test_the_temperature_falls(setting: Setting, kdbert: Callable[..., Any], tmp_path: Path) -> None:
    temperatures = {}
    for variant in ("corrected", "original"):
        keys = {"method.name": "ad-kd", "method.anneal": True, "method.temperature": 3, "method.variant": variant}
        done = kdbert(*setting.words(tmp_path / variant, **keys, epochs=3, **{"task.max_train_examples": 32}))
        assert done.code == 0, done.err
        lines = logged(tmp_path / variant)
        temperatures[variant] = [lines[step]["ad-kd/temperature"] for step in range(1, 7)]
    assert temperatures["original"] == pytest.approx([3, 3, 2, 2, 1, 1])
    assert temperatures["corrected"] == pytest.approx([3 - 2 * step / 6 for step in range(6)])


def test_the_teachers_attributions_are_kept_and_read_again(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    keys = {"method.name": "ad-kd", "max_steps": 2}
    first = kdbert(*setting.words(tmp_path / "a", **keys))
    assert first.code == 0, first.err
    (kept,) = (tmp_path / "runs").rglob("attribution.auto.all.2*.safetensors")
    (values,) = load_file(kept).values()
    assert values.shape[1:] == (1,)  # of each token, one view
    assert (values >= 0).all()
    assert values.max() > 0.1
    again = kdbert(*setting.words(tmp_path / "b", **keys, learning_rate=1e-4))
    assert again.code == 0, again.err
    assert "attribution.auto.all.2" in "".join(line for line in again.err.splitlines() if "read from" in line)
    assert "the library's eager attention" in again.err


def test_attributions_are_of_the_tasks_label_whatever_column_it_has_in_the_teacher() -> None:
    method = adkd(views="label")
    needs = method.needs(method.options, MODELS)
    mask, labels, order = torch.ones(3, 5, dtype=torch.int64), torch.tensor([0, 3, 1]), [2, 0, 3, 1]
    batch, embedding, weight = batch_of(labels, mask), drawn(3, 5, 6, seed=1), drawn(6, 4, seed=2)
    found = [
        quantities(needs, method, seen(embedding, columns, mask), batch, *more)
        for columns, more in ((weight[:, order], ()), (weight, (order,)), (weight, ()))
    ]
    (name,) = (quantity.name for quantity in needs.reduced)
    torch.testing.assert_close(found[0][name], found[1][name])
    assert not torch.allclose(found[0][name], found[2][name])


def test_of_two_classes_both_labels_have_one_attribution() -> None:
    """The gradient of either loss is that of the difference of the logits, times a number."""
    mask = torch.ones(3, 5, dtype=torch.int64)
    model, method = seen(drawn(3, 5, 6, seed=1), drawn(6, 2, seed=2), mask), adkd()
    found = [method._attributions(model, batch_of(torch.full((3,), label), mask)) for label in (0, 1)]
    torch.testing.assert_close(*found)


def test_a_distilbert_teaches_a_bert(setting: Setting, kdbert: Callable[..., Any], tmp_path: Path) -> None:
    own = Setting(setting.train, setting.dev, make_distilbert(tmp_path / "teacher"), setting.student)
    done = kdbert(*own.words(tmp_path / "run", **{"method.name": "ad-kd", "max_steps": 2}))
    assert done.code == 0, done.err
    assert np.isfinite(logged(tmp_path / "run")[2]["loss/attribution"])


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"attention": "sdpa"}, "train.attention=auto"),
        ({"attention": "kdbert"}, "train.attention=auto"),
        ({"student.freeze_embeddings": True}, "student.freeze_embeddings=false"),
        ({"task.labelled_share": 0.5}, "needs the label of every row"),
    ],
    ids=str,
)
def test_what_cannot_be_differentiated_is_refused(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path, keys: dict[str, Any], told: str
) -> None:
    done = kdbert(*setting.words(tmp_path / "run", **{"method.name": "ad-kd"}, **keys))
    assert done.code == 2
    assert told in done.err
    assert not (tmp_path / "run").exists()


def test_rows_without_a_label_are_taken_where_attributions_are_of_all_classes(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    keys = {"method.name": "ad-kd", "method.views": "classes", "task.labelled_share": 0.5, "max_steps": 2}
    done = kdbert(*setting.words(tmp_path / "run", **keys))
    assert done.code == 0, done.err


def test_a_type_whose_second_derivatives_are_unproven_is_refused(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    teacher = make_model(tmp_path / "xlnet", variant_of("xlnet"), "sequence", PAIR)
    own = Setting(setting.train, setting.dev, teacher, setting.student)
    done = kdbert(*own.words(tmp_path / "run", **{"method.name": "ad-kd"}))
    assert done.code == 2
    assert "xlnet" in done.err


def test_scores_have_no_classes() -> None:
    with pytest.raises(UserError, match="views=label"):
        adkd(Regression(), views="classes")


def test_a_narrow_student(setting: Setting, kdbert: Callable[..., Any], tmp_path: Path) -> None:
    own = Setting(setting.train, setting.dev, setting.teacher, make_bert(tmp_path / "narrow", layers=2, hidden=16))
    done = kdbert(*own.words(tmp_path / "run", **{"method.name": "ad-kd", "max_steps": 2}))
    assert done.code == 0, done.err
    assert not (tmp_path / "run" / "method.safetensors").exists()
