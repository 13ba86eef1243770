"""Relations among points: parts of a computation, degenerate points, precision."""

from __future__ import annotations

import pytest
import torch

from kdbert.losses.parts import BOUND, by_parts
from kdbert.losses.points import Triples, angle_errors, attended, distance_errors, unit


def test_parts_give_the_numbers_and_gradients_of_the_whole_and_hold_few_rows_at_a_time() -> None:
    sizes = []

    def compute(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return (rows @ weight * others).tanh().sum(1)

    values = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    others = torch.randn(7, 4, dtype=torch.float64)
    found = []
    for each in (1, BOUND // 3):
        result = by_parts(compute, values, others, each=each)
        found.append((result, *torch.autograd.grad(result.square().sum(), (values, weight))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert sizes[:4] == [7, 3, 3, 1]
    assert max(sizes[1:]) == 3  # also when they are computed again


def points(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random ones in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_point_that_is_nearly_the_centre_makes_no_angle_and_no_gradient() -> None:
    own, other = points(1, 4, 6), points(1, 4, 5, seed=1)
    everyone = torch.ones(1, 4)
    triples = Triples.of_all(everyone > 0)
    assert angle_errors(own, other, everyone, triples, error="l2")[:, 1].tolist() == [6] * 4  # ordered pairs of 3
    own[0, 1] = own[0, 0] + 1e-3 * own[0, 0]
    own.requires_grad_()
    found = angle_errors(own, other, everyone, triples, error="l2")
    assert found[:, 1].tolist() == [2, 2, 6, 6]  # at 0 and 1 two ends are left, at the others all
    (gradient,) = torch.autograd.grad(found[:, 0].sum(), own)
    assert gradient.abs().max() < 100
    exact = angle_errors(own, other, everyone, triples, error="l2", exact=True)
    (gradient,) = torch.autograd.grad(exact[:, 0].sum(), own)
    assert gradient.abs().max() > 100


def test_a_zero_vector_has_no_direction_and_no_gradient() -> None:
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    found = unit(vectors)
    found.sum().backward()
    assert found.tolist() == [[0, 0], [pytest.approx(0.6), pytest.approx(0.8)]]
    assert vectors.grad is not None
    assert vectors.grad[0].tolist() == [0, 0]


def test_in_float32_common_parts_of_all_points_cost_no_digits() -> None:
    """The hidden states of a text have much in common."""
    own, other = points(3, 8, 16) + 30, points(3, 8, 12, seed=1) - 30
    mask = torch.ones(3, 8)
    triples = Triples.of_all(mask > 0)
    exact, rounded = (
        angle_errors(own.to(dtype), other.to(dtype), mask, triples, error="l2")
        for dtype in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-4, atol=1e-5)
    how = {"distance": "squared", "error": "l2", "normalize": True}
    exact, rounded = (
        distance_errors(own.to(dtype), other.to(dtype), mask > 0, **how) for dtype in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("centres", "ends"), [(3, 2), (50, 50)])
def test_what_is_attended_to_is_real_and_no_token_attends_to_itself(centres: int, ends: int) -> None:
    mask = (torch.arange(6)[None, :] < torch.tensor([6, 1, 3])[:, None]).long()
    found = attended(100 * points(3, 6, 8), mask, 2, centres, ends)
    assert found.ends.shape == (3 * min(centres, 6), min(ends, 6))
    counted = found.valid & (found.ends != found.centre[:, None])
    assert counted.any()
    real = mask[found.group[:, None], found.ends] * mask[found.group, found.centre][:, None]
    assert (real[counted] == 1).all()
    for row in range(len(found.group)):
        chosen = found.ends[row][counted[row]].tolist()
        assert len(set(chosen)) == len(chosen)


def test_a_model_has_no_errors_against_itself() -> None:
    own, mask = points(2, 5, 8), torch.ones(2, 5)
    assert angle_errors(own, own, mask, Triples.of_all(mask > 0), error="l2")[:, 0].abs().max() < 1e-20
    assert distance_errors(own, own, mask > 0).abs().max() < 1e-12
