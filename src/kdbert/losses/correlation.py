"""Pearson's correlation as a loss sees it (DIST, Huang et al. 2022; docs/quirks.md, 9.3)."""

from __future__ import annotations

import torch

EPSILON = 1e-8  # added to the product of the norms, as published
CONSTANT = 1e-5  # deviations of so much of the values themselves are rounding


def correlation(
    first: torch.Tensor, second: torch.Tensor, dim: int, counted: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """rho of the values along a dimension, and where both of them vary.

    Args:
        first, second: of one shape.
        counted: bool, of a shape that fits: which of the values count. None: all.

    Returns:
        rho = sum(ab) / (|a||b| + 1e-8) of the centred values, which is 0 where one of them is constant; and whether
        neither is, beyond rounding.
    """
    if counted is None:
        counted = torch.ones_like(first, dtype=torch.bool)
    count = counted.sum(dim, keepdim=True).clamp(min=1)
    centred, varies = [], []
    for values in (first, second):
        values = torch.where(counted, values, 0.0)
        centred.append(torch.where(counted, values - values.sum(dim, keepdim=True) / count, 0.0))
        size, spread = (torch.linalg.vector_norm(one.detach(), dim=dim) for one in (values, centred[-1]))
        varies.append(spread > CONSTANT * size)
    norms = [torch.linalg.vector_norm(one, dim=dim) for one in centred]
    rho = (centred[0] * centred[1]).sum(dim) / (norms[0] * norms[1] + EPSILON)
    return rho, varies[0] & varies[1]
