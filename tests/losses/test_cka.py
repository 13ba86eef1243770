"""Linear CKA against the textbook (Kornblith et al. 2019), its invariances, and what it does where nothing varies."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbert.losses.cka import centered_gram, cka, cka_loss, defined_cka, hsic

few = settings(max_examples=50, deadline=None)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random features in float64, with a mean that is not zero."""
    return 1.5 + torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain_cka(first: torch.Tensor, second: torch.Tensor) -> float:
    """|Y'X|_F^2 / (|X'X|_F |Y'Y|_F) of features whose columns are centred: the form without Gram matrices."""
    x, y = first - first.mean(0), second - second.mean(0)
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def of(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """CKA as published."""
    return cka(centered_gram(first), centered_gram(second))


def guarded(
    first: torch.Tensor, second: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """CKA values, which are defined, and the loss, as `corrected` computes them."""
    values, defined = defined_cka(centered_gram(first, mask), centered_gram(second, mask))
    return values, defined, cka_loss(values, defined)


@pytest.mark.parametrize("shape", [(6, 4), (3, 5, 4)], ids=["samples", "tokens of each sample"])
def test_the_gram_matrix_is_centred_on_both_sides(shape: tuple[int, ...]) -> None:
    features = draw(*shape)
    count = shape[-2]
    centring = torch.eye(count, dtype=torch.float64) - torch.full((count, count), 1 / count, dtype=torch.float64)
    expected = centring @ features @ features.mT @ centring
    torch.testing.assert_close(centered_gram(features), expected)
    torch.testing.assert_close(centered_gram(features, torch.ones(shape[:-1])), expected)


def test_hsic_is_the_sum_of_products_and_divided_for_samples_only() -> None:
    first, second = draw(5, 5), draw(5, 5, seed=1)
    total = sum(float(first[i, j] * second[i, j]) for i in range(5) for j in range(5))
    assert hsic(first, second).item() == pytest.approx(total / 24)
    one, other = draw(2, 5, 5), draw(2, 5, 5, seed=1)
    for sample in range(2):
        total = sum(float(one[sample, i, j] * other[sample, i, j]) for i in range(5) for j in range(5))
        assert hsic(one, other)[sample].item() == pytest.approx(total)


def test_cka_by_hand() -> None:
    # With one feature it is the squared correlation: (0, 1, 2) with (0, 1, 1) has 3/4, with (0, 1, 0) none.
    line, step, hill = (torch.tensor(values).double()[:, None] for values in ([0, 1, 2], [0, 1, 1], [0, 1, 0]))
    assert of(line, step).item() == pytest.approx(0.75)
    assert of(line, hill).item() == pytest.approx(0, abs=1e-12)
    assert cka_loss(of(line, step)).item() == pytest.approx(-math.log(0.75 + 1e-8))
    assert cka_loss(of(line, hill)).item() == pytest.approx(-math.log(1e-8))


@few
@given(st.integers(3, 8), st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_cka_is_that_of_the_textbook_and_between_0_and_1(rows: int, width: int, other: int, seed: int) -> None:
    first, second = draw(rows, width, seed=seed), draw(rows, other, seed=seed + 1)
    assert of(first, second).item() == pytest.approx(plain_cka(first, second), rel=1e-9, abs=1e-9)
    assert -1e-12 <= of(first, second).item() <= 1 + 1e-12
    assert of(first, first).item() == pytest.approx(1)
    assert of(second, first).item() == pytest.approx(of(first, second).item(), rel=1e-9, abs=1e-12)
    values, defined, _ = guarded(first, second, torch.ones(rows))
    assert bool(defined)
    assert values.item() == pytest.approx(plain_cka(first, second), rel=1e-9, abs=1e-9)


def test_tokens_are_compared_within_each_sample() -> None:
    first, second = draw(4, 6, 3), draw(4, 6, 5, seed=1)
    found = of(first, second)
    assert found.tolist() == pytest.approx([plain_cka(first[i], second[i]) for i in range(4)])
    mean = float(found.mean())
    assert cka_loss(found).item() == pytest.approx(-math.log(mean + 1e-8))  # the mean is inside the logarithm


def test_cka_does_not_see_rotation_scale_or_shift() -> None:
    features, other = draw(7, 4), draw(7, 5, seed=2)
    rotation, _ = torch.linalg.qr(draw(4, 4, seed=1))
    assert of(features, features @ rotation).item() == pytest.approx(1)
    for changed in (features @ rotation, 1e3 * features, -0.01 * features, features + draw(4, seed=3)):
        assert of(changed, other).item() == pytest.approx(of(features, other).item())
    stretched = features * torch.tensor([1.0, 10, 100, 1000])  # any other linear map it does see
    assert abs(of(stretched, other).item() - of(features, other).item()) > 1e-3


def ragged(*lengths: int) -> torch.Tensor:
    """A mask of so many real positions each."""
    return (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).long()


def test_masked_tokens_are_left_out() -> None:
    mask = ragged(6, 3, 2, 5)
    first, second = draw(4, 6, 3), draw(4, 6, 5, seed=1)
    values, defined, loss = guarded(first, second, mask)
    expected = [plain_cka(first[i, :n], second[i, :n]) for i, n in enumerate(mask.sum(1).tolist())]
    assert defined.all()
    assert values.tolist() == pytest.approx(expected)
    assert loss.item() == pytest.approx(-math.log(sum(expected) / 4 + 1e-8))


@pytest.mark.parametrize("extra", [1, 16])
@pytest.mark.parametrize("garbage", [0.0, 1e3], ids=["zeros", "garbage"])
def test_values_at_padding_change_nothing(extra: int, garbage: float) -> None:
    mask = ragged(6, 3, 2, 1)
    features = [draw(4, 6, 3), draw(4, 6, 5, seed=1)]
    more = torch.cat([mask, mask.new_zeros(4, extra)], 1)
    found = []
    for length, masked in ((6, mask), (6 + extra, more)):
        sides = []
        for number, side in enumerate(features):
            wide = garbage * draw(4, length, side.shape[-1], seed=9 + number) if length > 6 else side.clone()
            if length > 6:
                wide[:, :6] = torch.where(mask[..., None] > 0, side, wide[:, :6])
            sides.append(wide.requires_grad_())
        _, _, loss = guarded(sides[0], sides[1], masked)
        loss.backward()
        for side in sides:
            assert side.grad is not None
            assert side.grad[masked == 0].abs().max() == 0
        found.append((loss.detach(), *(side.grad[:, :6] for side in sides if side.grad is not None)))
    for plain, padded in zip(*found, strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.0, 1e-4, 0.1, 3.7, 1e4])
@pytest.mark.parametrize("which", ["first", "second", "both"])
def test_constant_features_give_no_loss_and_no_nan(dtype: torch.dtype, constant: float, which: str) -> None:
    varied, flat = draw(7, 5).to(dtype), torch.full((7, 5), constant, dtype=dtype) * torch.arange(1, 6)
    sides = [flat if which in (name, "both") else varied for name in ("first", "second")]
    for unsqueezed in (False, True):  # samples of a batch, and the tokens of a single sample
        first, second = ((side[None] if unsqueezed else side).clone().requires_grad_() for side in sides)
        values, defined, loss = guarded(first, second, torch.ones(first.shape[:-1]))
        assert not defined.any()
        assert values.abs().max() == 0
        assert loss.item() == pytest.approx(0, abs=1e-7)
        loss.backward()
        for side in (first, second):
            assert side.grad is not None
            assert side.grad.abs().max() == 0


@pytest.mark.parametrize("lengths", [(1,), (0,), (1, 0, 1)], ids=["one token", "all padding", "several such"])
def test_samples_without_two_tokens_give_no_loss_and_no_nan(lengths: tuple[int, ...]) -> None:
    mask = torch.cat([ragged(*lengths), torch.zeros(len(lengths), 2)], 1)
    first = draw(len(lengths), mask.shape[1], 3).requires_grad_()
    second = draw(len(lengths), mask.shape[1], 4, seed=1).requires_grad_()
    _, defined, loss = guarded(first, second, mask)
    loss.backward()
    assert not defined.any()
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert first.grad is not None
    assert first.grad.abs().max() == 0


def test_one_sample_of_a_batch_gives_no_loss_and_no_nan() -> None:
    first, second = draw(1, 5).requires_grad_(), draw(1, 4, seed=1)
    _, defined, loss = guarded(first, second, torch.ones(1))
    loss.backward()
    assert not defined
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert first.grad is not None
    assert first.grad.abs().max() == 0


def test_degenerate_samples_leave_the_mean_of_the_others_alone() -> None:
    mask = ragged(6, 1, 4, 5)
    first, second = draw(4, 6, 3), draw(4, 6, 5, seed=1)
    first[3] = 2.5
    first.requires_grad_()
    values, defined, loss = guarded(first, second, mask)
    loss.backward()
    assert defined.tolist() == [True, False, True, False]
    good = [plain_cka(first[i, :n].detach(), second[i, :n]) for i, n in ((0, 6), (2, 4))]
    assert values.tolist() == pytest.approx([good[0], 0, good[1], 0])
    assert loss.item() == pytest.approx(-math.log(sum(good) / 2 + 1e-8))
    assert first.grad is not None
    assert torch.isfinite(first.grad).all()
    assert first.grad[[1, 3]].abs().max() == 0
    assert first.grad[[0, 2]].abs().amax((1, 2)).min() > 0


def test_features_that_hardly_vary_are_finite() -> None:
    for size in (1e-7, 1e-6, 1e-5, 1e-4):
        first = (3 + size * draw(2, 9, 5, seed=1)).float().requires_grad_()
        _, _, loss = guarded(first, draw(2, 9, 4).float(), torch.ones(2, 9))
        loss.backward()
        assert torch.isfinite(loss)
        assert first.grad is not None
        assert torch.isfinite(first.grad).all()


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3)], ids=["samples", "tokens of each sample"])
def test_gradcheck(shape: tuple[int, ...]) -> None:
    student, teacher = draw(*shape).requires_grad_(), draw(*shape, seed=1)
    mask = torch.ones(shape[:-1])
    if len(shape) == 3:
        mask[1, 3:] = 0
    assert torch.autograd.gradcheck(lambda x: cka_loss(of(x, teacher)), (student,))
    assert torch.autograd.gradcheck(lambda x: guarded(x, teacher, mask)[2], (student,))


BF16_TOLERANCE = 5e-3  # bfloat16 keeps 8 bits: each feature is off by up to 0.4 %, in either direction


def test_features_rounded_to_bf16_give_nearly_the_same() -> None:
    for shape in ((16, 40), (8, 20, 32)):
        first = draw(*shape).float()
        second = first @ draw(shape[-1], shape[-1], seed=1).float() / shape[-1] + draw(*shape, seed=2).float()
        exact = of(first, second)
        rounded = of(first.bfloat16().float(), second.bfloat16().float())
        assert not torch.equal(exact, rounded)
        torch.testing.assert_close(rounded, exact, rtol=BF16_TOLERANCE, atol=0)
