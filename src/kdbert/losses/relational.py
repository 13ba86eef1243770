"""Distances and angles among the rows of a batch (Relational KD, Park et al. 2019; docs/quirks.md, 9.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

LEAST = 1e-4  # of the mean distance: nearer rows count as equal, since where they lie is rounding


def published_relational_losses(student: torch.Tensor, teacher: torch.Tensor) -> dict[str, torch.Tensor]:
    """Terms `distance` and `angle` of rows [n, D] as published; the first is NaN of one row.

    The means go over all n^2 pairs of h(psi_S - psi_T) and all n^3 triples of h(cos_S - cos_T), degenerate ones too.
    psi: distance / mean distance, where equal rows are 1e-6 apart; cos: of the angle at the first row; h: smooth L1.
    """
    found: dict[str, list[torch.Tensor]] = {"distance": [], "angle": []}
    off = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    for rows in (student, teacher.detach()):
        # Lengths of the vectors: |a|^2 - 2ab + |b|^2 cancels, so that in float32 equal rows would be apart.
        vectors = rows[None] - rows[:, None]
        distances = torch.where(off, torch.linalg.vector_norm(vectors, dim=-1).clamp(min=1e-6), 0.0)
        found["distance"].append(distances / (distances.sum() / off.sum()))
        directions = F.normalize(vectors, dim=-1)
        found["angle"].append(torch.einsum("ijd,ikd->ijk", directions, directions))
    return {name: F.smooth_l1_loss(own, other) for name, (own, other) in found.items()}


def relational_losses(student: torch.Tensor, teacher: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same over pairs and triples of rows that are apart, in both models; 0 where there are none.

    It takes n^3 numbers, however long the rows are. Inner products are in float64, in which they may be subtracted.
    """
    grams = [_inner_products(rows) for rows in (student, teacher.detach())]
    squares = [gram.diagonal()[:, None] + gram.diagonal()[None] - 2 * gram for gram in grams]
    with torch.no_grad():
        apart = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
        for square in squares:
            lengths = square.clamp(min=0).sqrt()
            apart &= lengths > LEAST * lengths.sum() / max(len(lengths) * (len(lengths) - 1), 1)
        triples = apart[:, :, None] & apart[:, None, :] & apart
    found: dict[str, list[torch.Tensor]] = {"distance": [], "angle": []}
    for gram, square in zip(grams, squares, strict=True):
        distances = torch.where(apart, square, 1.0).sqrt()
        mean = (distances * apart).sum() / apart.sum().clamp(min=1)
        found["distance"].append(distances / torch.where(apart.any(), mean, 1.0))
        # (j - i)(k - i) = jk - ij - ik + ii
        products = gram - gram[:, :, None] - gram[:, None, :] + gram.diagonal()[:, None, None]
        found["angle"].append(products / (distances[:, :, None] * distances[:, None, :]))
    values = {}
    for name, counted in (("distance", apart), ("angle", triples)):
        own, other = found[name]
        losses = F.smooth_l1_loss(own, other, reduction="none")
        values[name] = (torch.where(counted, losses, 0.0).sum() / counted.sum().clamp(min=1)).to(student.dtype)
    return values


def _inner_products(rows: torch.Tensor) -> torch.Tensor:
    """Of rows [n, D] after their mean is subtracted, [n, n], in float64."""
    centred = rows.double()
    centred = centred - centred.mean(0)
    return centred @ centred.T
