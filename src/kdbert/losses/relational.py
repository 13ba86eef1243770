"""Distances and angles among the rows of a batch (Relational KD, Park et al. 2019; docs/quirks.md, 9.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

LEAST = 1e-4  # of the mean distance: nearer rows count as equal, since where they lie is rounding


class Relations(NamedTuple):
    """Of rows [n, D]: the vector from row i to row j, [n, n, D], and its length, [n, n].

    Lengths come from the vectors, since |a|^2 - 2ab + |b|^2 cancels: in float32, rows that are equal would be apart.
    """

    vectors: torch.Tensor
    distances: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor) -> Relations:
        """Of the rows of a batch. A distance of 0 has no gradient."""
        vectors = rows[None] - rows[:, None]
        return cls(vectors, torch.linalg.vector_norm(vectors, dim=-1))


def published_distance_loss(student: Relations, teacher: Relations) -> torch.Tensor:
    """Mean over all n^2 pairs, those of a row with itself too, of h(psi_S - psi_T); NaN of one row.

    psi: distance / mean distance, where equal rows are 1e-6 apart; h: smooth L1.
    """
    off = ~torch.eye(len(student.distances), dtype=torch.bool, device=student.distances.device)
    sides = [torch.where(off, one.distances.clamp(min=1e-6), 0.0) for one in (student, teacher)]
    own, other = (side / (side.sum() / off.sum()) for side in sides)
    return F.smooth_l1_loss(own, other)


def published_angle_loss(student: Relations, teacher: Relations) -> torch.Tensor:
    """Mean over all n^3 triples, degenerate ones too, of h(cos_S - cos_T) at the first row; h: smooth L1."""
    own, other = (_cosines(F.normalize(one.vectors, dim=-1)) for one in (student, teacher))
    return F.smooth_l1_loss(own, other)


def distance_loss(student: Relations, teacher: Relations) -> torch.Tensor:
    """`published_distance_loss` of the pairs of rows that are apart in both models; 0 if there are none."""
    apart = _apart(student, teacher)
    count = apart.sum().clamp(min=1)
    own, other = (
        one.distances / torch.where(apart.any(), (one.distances * apart).sum() / count, 1.0)
        for one in (student, teacher)
    )
    return (F.smooth_l1_loss(own, other, reduction="none") * apart).sum() / count


def angle_loss(student: Relations, teacher: Relations) -> torch.Tensor:
    """`published_angle_loss` of the triples of rows that are all apart in both models; 0 if there are none."""
    apart = _apart(student, teacher)
    own, other = (
        _cosines(one.vectors / torch.where(apart, one.distances, 1.0)[..., None]) for one in (student, teacher)
    )
    triples = apart[:, :, None] & apart[:, None, :] & apart
    found = F.smooth_l1_loss(own, other, reduction="none")
    return torch.where(triples, found, 0.0).sum() / triples.sum().clamp(min=1)


def _cosines(directions: torch.Tensor) -> torch.Tensor:
    """[i, j, k]: of the angle at row i between rows j and k."""
    return torch.einsum("ijd,ikd->ijk", directions, directions)


def _apart(student: Relations, teacher: Relations) -> torch.Tensor:
    """Which two rows are not equal, in neither model: bool [n, n]."""
    found = torch.ones_like(student.distances, dtype=torch.bool)
    for one in (student, teacher):
        count = max(len(found) * (len(found) - 1), 1)
        found &= one.distances.detach() > LEAST * one.distances.detach().sum() / count
    return found
