"""Distances and neighbours of ICS against plain loops, and the loops of the published code (docs/quirks.md, 2)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbert.losses.neighbors import intra_class_cosine, nearest, pairwise_mean_square, shrinking_count

few = settings(max_examples=80, deadline=None)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random features in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mask_of(lengths: list[int], width: int) -> torch.Tensor:
    """Ones at the first so many positions."""
    return (torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]).long()


def loop_distance(student: torch.Tensor, teacher: torch.Tensor, own: int, other: int) -> float:
    """Mean of (t - s)^2 over the positions that are real in either one; the side that is shorter is zero there."""
    width = student.shape[-1]
    total = 0.0
    for position in range(max(own, other)):
        for unit in range(width):
            s = float(student[position, unit]) if position < own else 0.0
            t = float(teacher[position, unit]) if position < other else 0.0
            total += (t - s) ** 2
    return total / (max(own, other) * width)


def test_distances_are_those_of_a_plain_loop() -> None:
    student, teacher = draw(3, 5, 4), draw(4, 5, 4, seed=1)
    own, other = [5, 2, 3], [1, 5, 3, 4]
    found = pairwise_mean_square(student, teacher, mask_of(own, 5), mask_of(other, 5))
    expected = [[loop_distance(student[i], teacher[j], n, m) for j, m in enumerate(other)] for i, n in enumerate(own)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_distances_by_hand() -> None:
    student, teacher = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[1.0, 0.0], [9.0, 9.0]]])
    # Both of length 2: ((0)^2 + 2^2 + 6^2 + 5^2) / 4; teacher of length 1: (0 + 4 + 9 + 16) / 4.
    both = torch.ones(1, 2)
    assert pairwise_mean_square(student, teacher, both, both).item() == pytest.approx(65 / 4)
    assert pairwise_mean_square(student, teacher, both, torch.tensor([[1, 0]])).item() == pytest.approx(29 / 4)
    one = torch.tensor([[1, 0]])
    assert pairwise_mean_square(student, teacher, one, one).item() == pytest.approx(4 / 2)


@pytest.mark.parametrize("extra", [1, 16])
def test_values_at_padding_change_no_distance(extra: int) -> None:
    student, teacher = draw(3, 5, 4), draw(4, 5, 4, seed=1)
    own, other = [5, 2, 3], [1, 5, 3, 4]
    plain = pairwise_mean_square(student, teacher, mask_of(own, 5), mask_of(other, 5))

    def padded(features: torch.Tensor, lengths: list[int], filler: float) -> torch.Tensor:
        wide = filler * draw(len(lengths), 5 + extra, 4, seed=7)
        for row, length in enumerate(lengths):
            wide[row, :length] = features[row, :length]
        return wide

    for filler in (0.0, 1e3):
        masks = mask_of(own, 5 + extra), mask_of(other, 5 + extra)
        found = pairwise_mean_square(padded(student, own, filler), padded(teacher, other, filler), *masks)
        torch.testing.assert_close(found, plain, rtol=1e-12, atol=0)


def test_the_gradient_is_the_published_one_and_none_reaches_the_teacher() -> None:
    student, teacher = draw(3, 5, 4).requires_grad_(), draw(3, 5, 4, seed=1).requires_grad_()
    ones = torch.ones(3, 5)
    pairwise_mean_square(student, teacher, ones, ones).diagonal().sum().backward()
    torch.testing.assert_close(student.grad, (2 / 20 * (student - teacher)).detach())
    assert teacher.grad is None


def test_distances_gradcheck() -> None:
    teacher = draw(3, 4, 2, seed=1)
    masks = mask_of([4, 2], 4), mask_of([3, 4, 1], 4)
    student = draw(2, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pairwise_mean_square(x, teacher, *masks), (student,))


def test_a_student_that_equals_its_teacher_has_distance_0_and_a_finite_gradient() -> None:
    features = (3 + draw(4, 20, 16)).float()
    student, ones = features.clone().requires_grad_(), torch.ones(4, 20)
    found = pairwise_mean_square(student, features, ones, ones).diagonal()
    assert (found >= 0).all()
    assert found.max() < 1e-5 * float(features.square().mean())  # float32
    found.sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


BF16_TOLERANCE = 0.01  # bfloat16 keeps 8 bits, so each difference is off by some 0.4 %


def test_features_rounded_to_bf16_give_nearly_the_same_distances() -> None:
    student, teacher, ones = draw(6, 10, 16).float(), draw(6, 10, 16, seed=1).float(), torch.ones(6, 10)
    exact = pairwise_mean_square(student, teacher, ones, ones)
    rounded = pairwise_mean_square(student.bfloat16().float(), teacher.bfloat16().float(), ones, ones)
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=BF16_TOLERANCE, atol=0)


table = st.integers(1, 6).flatmap(
    lambda rows: st.integers(1, 7).flatmap(
        lambda columns: st.tuples(
            st.lists(st.lists(st.integers(0, 4), min_size=columns, max_size=columns), min_size=rows, max_size=rows),
            st.lists(st.lists(st.booleans(), min_size=columns, max_size=columns), min_size=rows, max_size=rows),
            st.lists(st.integers(0, 9), min_size=rows, max_size=rows),
        )
    )
)


@few
@given(table)
def test_the_nearest_are_those_of_a_sorted_list(given_: tuple[list[list[int]], list[list[bool]], list[int]]) -> None:
    distances, candidates, counts = given_
    found = nearest(torch.tensor(distances).double(), torch.tensor(candidates), torch.tensor(counts))
    for row, (values, allowed, count) in enumerate(zip(distances, candidates, counts, strict=True)):
        ranked = sorted((value, number) for number, value in enumerate(values) if allowed[number])
        assert found[row].nonzero().flatten().tolist() == sorted(number for _, number in ranked[:count])


def published_counts(labels: list[int], k: int) -> list[int]:
    """The loop of the published code: k is a plain local that every smaller class overwrites."""
    found = []
    for label in labels:
        size = sum(other == label for other in labels)
        if size < k:
            k = size
        found.append(k)
    return found


@few
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 6))
def test_the_published_k_shrinks_along_the_batch(labels: list[int], k: int) -> None:
    classes = torch.tensor(labels)
    found = shrinking_count(classes[:, None] == classes[None, :], torch.tensor(k))
    assert found.tolist() == published_counts(labels, k)


def test_intra_class_cosine_is_the_loop_of_its_definition() -> None:
    features, labels = draw(7, 5), [0, 1, 0, 2, 1, 0, 3]
    total = 0.0
    for i, label in enumerate(labels):
        own = [j for j, other in enumerate(labels) if other == label]
        cosines = [float(features[i] @ features[j] / (features[i].norm() * features[j].norm() + 1e-8)) for j in own]
        total += sum(cosines) / len(cosines)
    classes = torch.tensor(labels)
    found = intra_class_cosine(features, classes[:, None] == classes[None, :])
    assert found.item() == pytest.approx(total / 7)
    assert intra_class_cosine(features, torch.eye(7, dtype=torch.bool)).item() == pytest.approx(1, abs=1e-7)
    zero = intra_class_cosine(torch.zeros(3, 5), torch.ones(3, 3, dtype=torch.bool))
    assert math.isfinite(zero.item())
