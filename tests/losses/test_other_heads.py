"""Losses of heads that no published code distils: any number of classes, tags of words (docs/quirks.md, 1)."""

from __future__ import annotations

import math

import pytest
import torch

from kdbert.data.batches import Batch
from kdbert.heads import MultiLabel, Tokens
from kdbert.losses.hard import binary_cross_entropy
from kdbert.losses.hinton import bernoulli_loss
from kdbert.methods import Context, Models, Outputs, Shape, get_method


def kl(p: float, q: float) -> float:
    """Of two coins."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def logit(p: float) -> float:
    """The logit of a probability."""
    return math.log(p / (1 - p))


def test_any_number_of_classes_by_hand() -> None:
    student = torch.tensor([[logit(0.5), logit(0.2)], [logit(0.9), logit(0.1)]], dtype=torch.float64)
    teacher = torch.tensor([[logit(0.75), logit(0.2)], [logit(0.5), logit(0.3)]], dtype=torch.float64)
    labels = torch.tensor([[True, False], [False, False]])
    hard = [-(math.log(0.5) + math.log(0.8)) / 2, -(math.log(0.1) + math.log(0.9)) / 2]
    torch.testing.assert_close(binary_cross_entropy(student, labels), torch.tensor(hard, dtype=torch.float64))
    soft = [kl(0.75, 0.5) / 2, (kl(0.5, 0.9) + kl(0.3, 0.1)) / 2]
    torch.testing.assert_close(bernoulli_loss(student, teacher, 1.0), torch.tensor(soft, dtype=torch.float64))
    tau = 4.0
    hot = bernoulli_loss(student * tau, teacher * tau, tau)
    torch.testing.assert_close(hot, tau**2 * torch.tensor(soft, dtype=torch.float64))


def test_large_logits_of_classes_stay_finite() -> None:
    student = torch.tensor([[300.0, -300.0]], requires_grad=True)
    loss = bernoulli_loss(student, torch.tensor([[-300.0, -300.0]]), 1.0)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def terms(
    method: str, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, count: int
) -> dict[str, float]:
    """The terms of a batch of which `count` tokens have a label."""
    kind = get_method(method)
    made = kind(kind.Options.model_validate({"name": method, "temperature": 2.0}))
    rows, length = labels.shape
    ids = torch.zeros(rows, length, dtype=torch.int64)
    batch = Batch(ids, ids + 1, None, labels, torch.arange(rows), torch.ones(rows), 1 / rows, label_scale=1 / count)
    made.prepare(Context(Models(Shape(1, 1), (Shape(1, 1),)), Tokens(), rows))
    found = made(Outputs(student, mask=ids + 1), [Outputs(teacher, mask=ids + 1)], batch)
    return {name: value.item() for name, value in found.terms.items()}


@pytest.mark.parametrize("method", ["kd", "multi-kd"])
def test_tags_by_hand_and_only_where_there_is_one(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([[-100, 2, -100, 0], [-100, 1, -100, -100]])
    places = [(0, 1, 2), (0, 3, 0), (1, 1, 1)]
    hard = -sum(student[i, j].log_softmax(0)[k].item() for i, j, k in places) / 3
    soft = 0.0
    for i, j, _ in places:
        p, q = (teacher[i, j] / 2).softmax(0), (student[i, j] / 2).softmax(0)
        soft += 4 * (p * (p / q).log()).sum().item() / 3
    found = terms(method, student, teacher, labels, 3)
    assert [found["hard"], list(found.values())[1]] == pytest.approx([hard, soft])
    student[labels == -100] = 7.0  # what the head says elsewhere changes nothing
    teacher[labels == -100] = -3.0
    assert terms(method, student, teacher, labels, 3) == pytest.approx(found)


def test_a_batch_without_any_tag_has_no_loss() -> None:
    labels = torch.full((2, 3), -100)
    found = terms("kd", torch.randn(2, 3, 4), torch.randn(2, 3, 4), labels, 1)
    assert found == {"hard": 0.0, "soft": 0.0}


def test_examples_are_of_one_class_where_their_sets_of_classes_are_equal() -> None:
    sets = torch.tensor([[i >> bit & 1 for bit in range(10)] for i in range(1024)]).bool()
    classes = MultiLabel().example_classes(sets)
    assert len(classes.unique()) == 1024
    assert torch.equal(MultiLabel().example_classes(sets.clone()), classes)
    assert len(MultiLabel().example_classes(torch.eye(60).bool()).unique()) == 60
