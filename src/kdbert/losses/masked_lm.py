"""Losses over the vocabulary and over hidden states of tokens, for masked-LMs (docs/quirks.md, section 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def logits_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared difference of the logits [n, V] of each token, summed over the vocabulary (so it grows with that)."""
    return ((student - teacher.detach()) ** 2).sum(-1)


def cosine_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - cosine of the hidden states [n, H] of each token, from 0 (the same direction) to 2."""
    return 1 - F.cosine_similarity(student, teacher.detach(), dim=-1)


def direction_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - cosine of hidden states [..., H], as DistilBERT publishes it: 1e-12 is added to each squared norm.

    So a zero vector has cosine 0, with a gradient of up to 1e6. (`torch.nn.CosineEmbeddingLoss`.)
    """
    teacher, tiny = teacher.detach(), 1e-12
    squares = (student.square().sum(-1) + tiny) * (teacher.square().sum(-1) + tiny)
    return 1 - (student * teacher).sum(-1) / squares.sqrt()


def beyond(value: torch.Tensor, over_all: torch.Tensor, tolerance: float, share: float = 1.0) -> torch.Tensor:
    """The part of a loss above a tolerance: share * max(over_all - tolerance, 0), in the form of `value`.

    At or below the tolerance it is exactly 0, and so is its gradient.

    Args:
        value: this process's part of the loss, such that its mean over processes is share * `over_all`.
        over_all: the loss over all processes, without gradient, which decides whether it is above.
        tolerance: 0 or more; with 0 the value is returned as it is.
        share: of this micro-batch in the step.
    """
    if not tolerance:
        return value
    return (value - tolerance * share) * (over_all > tolerance).to(value.dtype)
