"""How far a student's first tokens are from a teacher's (Patient KD, Sun et al. 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def patience_loss(student: torch.Tensor, teacher: torch.Tensor, normalise: bool) -> torch.Tensor:
    """Squared distance of each example's first tokens, the mean over layers: [B].

    Args:
        student, teacher: [layers, B, H]; no gradient flows into the teacher.
        normalise: compare directions, so that a distance is 2 - 2 cos.
    """
    teacher = teacher.detach()
    if normalise:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return (student - teacher).square().sum(-1).mean(0)


def rounded(patience: torch.Tensor, weight: float) -> torch.Tensor:
    """The published loss times `weight` in float16, divided by `weight` again: the loss is rounded, then the product.

    The gradient is that of the loss itself (docs/quirks.md, P2).
    """
    product = (patience.detach().half() * weight).to(patience.dtype)
    return patience + (product / weight - patience).detach()
