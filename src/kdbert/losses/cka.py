"""Linear CKA between representations (Kornblith et al. 2019, arXiv:1905.00414, equations 2 and 3)."""

from __future__ import annotations

import torch

EPSILON = 1e-8  # inside the logarithm of the published loss
TINY = 1e-30  # under it a root's gradient leaves float32


def centered_gram(features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """H X X^T H with H = I - 11^T/n: inner products [..., n, n] of the rows after their mean is subtracted.

    Args:
        features: [..., n, d]: the tokens of a sample, or the samples of a batch.
        mask: [..., n], 0 for rows that do not count: their products are 0, and the mean is that of the others. With a
            mask, features that do not vary (beyond rounding) become exactly 0, so that no quotient of rounding errors
            follows.
    """
    if mask is None:
        return _inner_products(features - features.mean(-2, keepdim=True))
    weight = mask.to(features.dtype)
    count = weight.sum(-1)
    mean = weight.unsqueeze(-2) @ features / count.clamp(min=1)[..., None, None]
    centered = features - mean
    gram = _inner_products(centered) * (weight.unsqueeze(-1) * weight.unsqueeze(-2))
    with torch.no_grad():
        limit = (100 * torch.finfo(features.dtype).eps) ** 2
        spread = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        varies = spread > limit * (spread + count * mean.square().sum((-1, -2)))
    return torch.where(varies[..., None, None], gram, 0.0)


def _inner_products(rows: torch.Tensor) -> torch.Tensor:
    """X X^T. Of a few long rows, its gradient (G + G^T) X is one matrix product here; of a plain `X @ X.T`, two."""
    if rows.ndim > 2:  # the tokens of each sample: the products are small, and another addition costs more
        return rows @ rows.transpose(-1, -2)
    products = rows @ rows.detach().transpose(-1, -2)
    return products.transpose(-1, -2) + (products - products.detach())  # the second part is 0, with a gradient


def hsic(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Sum of the products of two centred Gram matrices: a scalar of [n, n] (samples of a batch), divided by n^2 - 1 as
    published; or [B] of [B, n, n] (tokens of each sample).
    """
    product = (first * second).sum((-1, -2))
    return product if first.ndim == 3 else product / max(first.shape[-1] ** 2 - 1, 1)


def cka(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """|HSIC(X, Y)| / sqrt(HSIC(X, X) HSIC(Y, Y)) of centred Gram matrices, in 0..1; NaN where one of them is 0."""
    return hsic(first, second).abs() / (hsic(first, first).sqrt() * hsic(second, second).sqrt())


def defined_cka(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`cka`, with 0 in place of NaN and no NaN in the gradient either; and where there was anything to compare."""
    own, other = hsic(first, first), hsic(second, second)
    defined = (own > TINY) & (other > TINY)
    norm = torch.where(defined, own, 1.0).sqrt() * torch.where(defined, other, 1.0).sqrt()
    return torch.where(defined, hsic(first, second).abs() / norm, 0.0), defined


def cka_loss(values: torch.Tensor, defined: torch.Tensor | None = None) -> torch.Tensor:
    """-log(mean of the CKA values + 1e-8): the mean is inside the logarithm (docs/quirks.md, F19).

    `defined` says which of the values (a scalar, or [B]) count; if none does, the loss is 0.
    """
    if defined is None:
        return -(values.mean() + EPSILON).log()
    count = defined.sum()
    mean = torch.where(defined, values, 0.0).sum() / count.clamp(min=1)
    return -(torch.where(count > 0, mean, 1.0 - EPSILON) + EPSILON).log()
