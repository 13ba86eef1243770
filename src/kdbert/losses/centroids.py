"""Where samples are among centroids (FSD, global structure; docs/quirks.md, section 3.3)."""

from __future__ import annotations

import torch

TINY = 1e-12  # F.normalize's


def relations(
    features: torch.Tensor, centroids: torch.Tensor, epsilon: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Euclidean distance and cosine of every sequence and every centroid.

    The shorter of the two counts as extended by zeros, but only the columns that both have are multiplied:
    |x - c|^2 = |x|^2 - 2 x.c + |c|^2, with the whole sequence and the whole centroid in the outer terms.

    From features [B, L, H], zero at padding (or not, as published), and centroids [K, M, H]; `epsilon` is added under
    the root, as one of the published scripts does for the teacher. The cosine with an all-zero centroid is 0, and so is
    the gradient at distance 0. Both results are [B, K].
    """
    shared = min(features.shape[1], centroids.shape[1])
    flat = features.flatten(1)
    product = features[:, :shared].flatten(1) @ centroids[:, :shared].flatten(1).T
    own = torch.linalg.vecdot(flat, flat)
    other = torch.linalg.vecdot(centroids.flatten(1), centroids.flatten(1))
    squares = (own[:, None] - 2 * product + other[None, :]).clamp(min=0) + epsilon
    positive = squares > 0
    distances = torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
    return distances, product / (_norm(own)[:, None] * _norm(other)[None, :])


def _norm(squares: torch.Tensor) -> torch.Tensor:
    """Root of a sum of squares, at least `TINY`; no infinite gradient at 0."""
    return squares.clamp(min=TINY**2).sqrt()


def relation_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over the centroids of the squared difference of two sides' distances or cosines [B, K], of each example."""
    return (student - teacher.detach()).square().mean(1)
