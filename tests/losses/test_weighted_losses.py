"""Weights of classes and label smoothing: what they make of the hard loss, and that no other term knows them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from kdbert.errors import UserError
from kdbert.heads import Head, MaskedLM, MultiLabel, SingleLabel, Tokens
from kdbert.losses.hard import balanced_weights

SINGLE, MULTI, TAGS = SingleLabel(("a", "b", "c")), MultiLabel(("a", "b", "c")), Tokens(("B", "I", "O"))
WEIGHTS = (0.5, 3.0, 0.0)


def logits(*shape: int) -> torch.Tensor:
    """Random logits in float64."""
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


CASES: dict[str, tuple[Head, torch.Tensor, torch.Tensor]] = {
    "one class": (SINGLE, logits(6, 3), torch.tensor([0, 2, 1, 1, 0, 2])),
    "tags": (TAGS, logits(2, 4, 3), torch.tensor([[-100, 2, 0, -100], [1, 1, -100, -100]])),
    "any classes": (MULTI, logits(2, 3), torch.tensor([[True, False, True], [False, False, False]])),
    "hidden words": (MaskedLM(), logits(4, 9), torch.tensor([8, 0, 3, 3])),
}
every_case = pytest.mark.parametrize(("head", "student", "labels"), CASES.values(), ids=CASES)


@every_case
def test_without_them_the_loss_is_torch_s_own_bit_for_bit(
    head: Head, student: torch.Tensor, labels: torch.Tensor
) -> None:
    if head.kind == "multi_label":
        expected = F.binary_cross_entropy_with_logits(student, labels.double(), reduction="none").mean(-1)
    else:
        expected = F.cross_entropy(student.movedim(-1, 1), labels, reduction="none", ignore_index=-100)
    assert torch.equal(head.hard_loss(student, labels), expected)


@pytest.mark.parametrize("name", ["one class", "tags"])
@pytest.mark.parametrize("keys", [{"weight": True}, {"label_smoothing": 0.3}], ids=str)
def test_the_sum_of_losses_is_torch_s(name: str, keys: dict[str, Any]) -> None:
    head, student, labels = CASES[name]
    ours = replace(
        head, class_weights=WEIGHTS if "weight" in keys else (), label_smoothing=keys.get("label_smoothing", 0.0)
    )
    given = {**keys, **({"weight": torch.tensor(WEIGHTS).double()} if "weight" in keys else {})}
    expected = F.cross_entropy(student.movedim(-1, 1), labels, reduction="sum", **given)
    loss = ours.hard_loss(student, labels)
    torch.testing.assert_close(loss.sum(), expected)
    assert loss[labels == -100].abs().sum() == 0


def test_with_both_the_smoothed_loss_has_the_weight_of_the_own_class() -> None:
    head, student, labels = CASES["one class"]
    targets = 0.7 * F.one_hot(labels, 3) + 0.1
    expected = -(targets * student.log_softmax(-1)).sum(-1) * torch.tensor(WEIGHTS)[labels]
    both = replace(head, class_weights=WEIGHTS, label_smoothing=0.3)
    torch.testing.assert_close(both.hard_loss(student, labels), expected)


def test_a_masked_lm_is_smoothed_over_the_whole_vocabulary() -> None:
    head, student, labels = CASES["hidden words"]
    targets = 0.7 * F.one_hot(labels, 9) + 0.3 / 9
    expected = -(targets * student.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(replace(head, label_smoothing=0.3).hard_loss(student, labels), expected)


def test_any_number_of_classes() -> None:
    head, student, labels = CASES["any classes"]
    given = replace(head, class_weights=head.given_weights({"a": 0.5, "b": 3.0, "c": 0.0}))
    expected = F.binary_cross_entropy_with_logits(
        student, labels.double(), pos_weight=torch.tensor(WEIGHTS).double(), reduction="none"
    ).mean(-1)
    torch.testing.assert_close(given.hard_loss(student, labels), expected)
    targets = torch.where(labels, 0.85, 0.15)
    expected = F.binary_cross_entropy_with_logits(student, targets.double(), reduction="none").mean(-1)
    torch.testing.assert_close(replace(head, label_smoothing=0.3).hard_loss(student, labels), expected)
    # By hand: one class of probability 0.8, and its absence at another.
    both = replace(MultiLabel(("a",)), class_weights=((0.5, 2.0),), label_smoothing=0.2)
    found = both.hard_loss(torch.full((2, 1), math.log(4.0), dtype=torch.float64), torch.tensor([[True], [False]]))
    yes, no = -(0.9 * math.log(0.8) + 0.1 * math.log(0.2)), -(0.1 * math.log(0.8) + 0.9 * math.log(0.2))
    assert found.tolist() == pytest.approx([2.0 * yes, 0.5 * no])


@every_case
def test_weights_of_one_are_no_weights(head: Head, student: torch.Tensor, labels: torch.Tensor) -> None:
    if head.classes:
        ones = replace(head, class_weights=head.given_weights(dict.fromkeys(head.classes, 1.0)))
        torch.testing.assert_close(ones.hard_loss(student, labels), head.hard_loss(student, labels))


@every_case
def test_the_loss_has_the_gradient_of_its_values(head: Head, student: torch.Tensor, labels: torch.Tensor) -> None:
    weights = head.given_weights(dict(zip(head.classes, WEIGHTS, strict=False))) if head.classes else ()
    changed = replace(head, class_weights=weights, label_smoothing=0.2)
    assert torch.autograd.gradcheck(lambda z: changed.hard_loss(z, labels), (student.clone().requires_grad_(),))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_balanced_weights_are_scikit_learn_s_and_average_one(classes: list[int]) -> None:
    labels = np.array(classes)
    there = np.unique(labels)
    found = np.array(balanced_weights(labels, 7))
    np.testing.assert_allclose(found[there], compute_class_weight("balanced", classes=there, y=labels))
    np.testing.assert_allclose(found[labels].mean(), 1.0)
    assert (np.delete(found, there) == 1).all()


def test_balanced_weights_of_any_number_of_classes_are_two_each() -> None:
    labels = np.array([[True, False, False], [False, False, True], [False, False, True], [False, False, True]])
    assert MULTI.balanced_weights(labels) == ((4 / 6, 2.0), (1.0, 1.0), (2.0, 4 / 6))
    assert SINGLE.balanced_weights(np.array([0, 0, 0, 1])) == (4 / 6, 2.0, 1.0)


@pytest.mark.parametrize(
    ("given", "told"), [({"a": 1.0, "b": 2.0}, "no weight for c"), ({"a": 1.0, "b": 2.0, "cc": 1.0}, "'cc'")]
)
@pytest.mark.parametrize("head", [SINGLE, MULTI])
def test_every_class_has_a_weight_and_no_other(head: Head, given: dict[str, float], told: str) -> None:
    with pytest.raises(UserError, match=told):
        head.given_weights(given)


def test_weights_are_in_the_order_of_the_classes_and_told_by_class() -> None:
    head = SingleLabel(("1", "0"))
    ordered = replace(head, class_weights=head.given_weights({"0": 2.0, "1": 0.5}))
    assert ordered.class_weights == (0.5, 2.0)
    assert ordered.weights_by_class == {"1": 0.5, "0": 2.0}
    sets = replace(MULTI, class_weights=MULTI.given_weights({"b": 2.0, "a": 3.0, "c": 1.0}))
    assert sets.weights_by_class["b"] == {"without": 1.0, "with": 2.0}
    assert "b 2 " in sets.weights_in_words
    assert MULTI.weights_by_class == SINGLE.weights_by_class == {}
