"""Distances and cosines to centroids against one pair at a time, and where a root or a quotient could break."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbert.losses.centroids import relation_loss, relations

few = settings(max_examples=40, deadline=None)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random features in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@few
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(1, 4))
def test_relations_are_those_of_each_pair_extended_by_zeros(
    rows: int, clusters: int, length: int, missing: int, width: int
) -> None:
    features, centroids = draw(rows, length, width), draw(clusters, length + missing, width, seed=1)
    distances, cosines = relations(features, centroids)
    assert distances.shape == cosines.shape == (rows, clusters)
    whole = F.pad(features, (0, 0, 0, missing)).flatten(1)
    for row in range(rows):
        for number in range(clusters):
            one, other = whole[row], centroids[number].flatten()
            assert distances[row, number].item() == pytest.approx(float((one - other).norm()))
            cosine = float(one @ other / (one.norm() * other.norm()))
            assert cosines[row, number].item() == pytest.approx(cosine, abs=1e-12)
    assert (distances >= 0).all()
    assert (cosines.abs() <= 1 + 1e-12).all()


def test_relations_by_hand() -> None:
    features = torch.tensor([[[3.0, 0.0]]])  # one token of two units
    centroids = torch.tensor([[[0.0, 4.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    distances, cosines = relations(features, centroids)
    assert distances.tolist() == [pytest.approx([5, 4, 3])]
    assert cosines.tolist() == [pytest.approx([0, 3 / 5, 0])]  # that with an all-zero centroid is 0
    distances, _ = relations(features, centroids, epsilon=11.0)
    assert distances.tolist() == [pytest.approx([6, 27**0.5, 20**0.5])]


def test_zeros_behind_the_tokens_change_nothing() -> None:
    features, centroids = draw(3, 4, 5), draw(6, 20, 5, seed=1)
    plain = relations(features, centroids)
    for extra in (1, 16):
        padded = relations(F.pad(features, (0, 0, 0, extra)), centroids)
        for found, expected in zip(padded, plain, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_relation_loss_by_hand_and_no_gradient_reaches_the_teacher() -> None:
    student = torch.tensor([[1.0, 2.0], [0.0, 5.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 4.0], [0.0, 2.0]], requires_grad=True)
    loss = relation_loss(student, teacher)
    assert loss.tolist() == [pytest.approx(5 / 2), pytest.approx(9 / 2)]
    loss.sum().backward()
    assert student.grad is not None
    assert student.grad.tolist() == [[1, -2], [0, 3]]
    assert teacher.grad is None


def test_gradcheck_of_features_and_centroids() -> None:
    features, centroids = draw(2, 2, 3).requires_grad_(), draw(3, 4, 3, seed=1).requires_grad_()
    targets = draw(2, 3, seed=2).abs()
    assert torch.autograd.gradcheck(relations, (features, centroids))
    assert torch.autograd.gradcheck(
        lambda x, c: sum(relation_loss(side, targets).sum() for side in relations(x, c)), (features, centroids)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", ["on a centroid", "zero", "both zero", "one centroid", "equal centroids"])
def test_no_nan_where_something_is_zero(dtype: torch.dtype, place: str) -> None:
    features, centroids = draw(3, 4, 5).to(dtype), draw(6, 4, 5, seed=1).to(dtype)
    if place == "on a centroid":
        features[1] = centroids[2]
    elif place == "zero":
        features[1] = 0
        centroids[3] = 0
    elif place == "both zero":
        features, centroids = torch.zeros_like(features), torch.zeros_like(centroids)
    elif place == "one centroid":
        features, centroids = centroids[:1].clone(), centroids[:1].clone()
    else:
        centroids = centroids[:1].repeat(6, 1, 1)
    features.requires_grad_()
    centroids.requires_grad_()
    distances, cosines = relations(features, centroids)
    (relation_loss(distances, distances + 1).sum() + relation_loss(cosines, cosines + 1).sum()).backward()
    for value in (distances, cosines, features.grad, centroids.grad):
        assert value is not None
        assert torch.isfinite(value).all()
    rounding = 4 * torch.finfo(dtype).eps ** 0.5 * float(centroids.detach().flatten(1).norm(dim=1).max())
    if place == "on a centroid":
        assert distances[1, 2].item() <= rounding
        assert cosines[1, 2].item() == pytest.approx(1, abs=1e-5)
    if place == "both zero":
        assert distances.abs().max() == cosines.abs().max() == 0
        assert features.grad is not None
        assert features.grad.abs().max() == 0


BF16_TOLERANCE = 0.01  # bfloat16 keeps 8 bits


def test_features_rounded_to_bf16_give_nearly_the_same() -> None:
    features, centroids = draw(5, 10, 16).float(), draw(7, 12, 16, seed=1).float()
    exact, rounded = relations(features, centroids), relations(features.bfloat16().float(), centroids)
    assert not torch.equal(exact[0], rounded[0])
    torch.testing.assert_close(rounded[0], exact[0], rtol=BF16_TOLERANCE, atol=0)
    torch.testing.assert_close(rounded[1], exact[1], rtol=0, atol=BF16_TOLERANCE)
