"""Intra-class nearest neighbours among a batch's teacher representations (ICS; docs/quirks.md, section 2)."""

from __future__ import annotations

import torch


def pairwise_mean_square(
    student: torch.Tensor, teacher: torch.Tensor, student_mask: torch.Tensor, teacher_mask: torch.Tensor
) -> torch.Tensor:
    """Mean squared difference of every student sequence and every teacher sequence.

    The mean goes over the positions that are real in either one (the other side counts as zero there) and
    over H. With masks of ones it is the published (1/(S H)) sum_{s,h} (T[j] - S[i])^2.

    From [B, S, H] and [G, S, H], and masks with 1 for real positions, which come first; the result is [B, G].
    """
    teacher = teacher.detach()
    width = student.shape[-1]
    student = (student * student_mask.to(student.dtype).unsqueeze(-1)).flatten(1)
    teacher = (teacher * teacher_mask.to(teacher.dtype).unsqueeze(-1)).flatten(1)
    own, other = torch.linalg.vecdot(student, student), torch.linalg.vecdot(teacher, teacher)
    squares = own[:, None] - 2 * (student @ teacher.T) + other[None, :]
    positions = torch.maximum(student_mask.sum(1)[:, None], teacher_mask.sum(1)[None, :])
    return squares.clamp(min=0) / (positions.clamp(min=1) * width)


def nearest(distances: torch.Tensor, candidates: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The nearest candidates of each row, bool [B, G], at most `count` [B]; the lower number wins a tie.

    Among `candidates`, bool [B, G], by their distances [B, G]. No gradient flows through the choice.
    """
    with torch.no_grad():
        order = distances.masked_fill(~candidates, torch.inf).argsort(dim=1, stable=True)
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        return candidates & (rank < count[:, None])


def shrinking_count(candidates: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """k_i = min(k, |J_1|, ..., |J_i|), int [B]: the published k shrinks along the batch (docs/quirks.md, I1).

    From the candidates J, bool [B, G], and k at the start of the batch, an int scalar.
    """
    return torch.cat([limit.reshape(1), candidates.sum(1)]).cummin(0).values[1:]


def intra_class_cosine(features: torch.Tensor, same_class: torch.Tensor) -> torch.Tensor:
    """Mean cosine of each sample [B, D] with the samples of its class, itself included (the published MICS, BSC)."""
    norm = features.norm(dim=1)
    cosine = features @ features.T / (norm[:, None] * norm[None, :] + 1e-8)
    return ((cosine * same_class).sum(1) / same_class.sum(1)).mean()
