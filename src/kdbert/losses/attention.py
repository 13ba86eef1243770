"""Relations among the tokens of a text: the scores of attention (TinyBERT), and softmax of such scores (MiniLM).

Queries, keys and values are [B, heads, L, units], of padded texts.
"""

from __future__ import annotations

from typing import Any

import torch

from kdbert.derivatives import once_differentiable

Related = tuple[torch.Tensor, torch.Tensor]  # whose scores first second^T are taken: queries and keys, or values twice
# Added to scores of padded keys: finite, so that the difference of two of them is 0 and not NaN.
PADDED = -1e30
PUBLISHED_PADDED = -10_000.0  # what published code adds, BERT's first one among it


class _Divergence(torch.autograd.Function):
    """KL(softmax(teacher) || softmax(student)) over the last dimension; one tensor is stored for the gradient."""

    @staticmethod
    def forward(context: Any, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        share = torch.softmax(teacher, -1)  # four times as fast as the exponential of its logarithm
        value = torch.log_softmax(teacher, -1).sub_(torch.log_softmax(student, -1)).mul_(share).sum(-1)
        context.save_for_backward(torch.softmax(student, -1).sub_(share))
        return value

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (difference,), (gradient,) = context.saved_tensors, gradients
        return difference * gradient.unsqueeze(-1), None


def split_heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """The same numbers of each token in another number of heads: [B, heads, L, units]."""
    if states.shape[1] == heads:
        return states
    return states.transpose(1, 2).flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)


def scores(related: Related, bias: torch.Tensor | None = None) -> torch.Tensor:
    """first second^T / sqrt(units) (+ bias [B, L] of the keys): [B, heads, L, L]."""
    first, second = related
    batch, heads, length, units = first.shape
    if bias is None:
        return torch.matmul(first * units**-0.5, second.transpose(-1, -2))
    found = torch.baddbmm(
        bias.to(first.dtype).repeat_interleave(heads, 0).unsqueeze(1),
        first.reshape(-1, length, units), second.reshape(-1, length, units).transpose(1, 2), alpha=units**-0.5,
    )  # fmt: skip
    return found.unflatten(0, (batch, heads))


def relation_loss(student: Related, teacher: Related, mask: torch.Tensor, heads: int) -> torch.Tensor:
    """KL(teacher's relation || student's) of each text [B]: the mean over its real tokens and relation heads.

    A relation is softmax(first second^T / sqrt(units)) over the real tokens (MiniLMv2, section 3.1). The states of both
    models are cut into `heads` relation heads, whatever heads they have.
    """
    padded = torch.where(mask > 0, 0.0, PADDED)
    ours, theirs = (
        scores((split_heads(side[0], heads), split_heads(side[1], heads)), padded)
        for side in (student, (teacher[0].detach(), teacher[1].detach()))
    )
    of_tokens: torch.Tensor = _Divergence.apply(ours, theirs).mean(1)  # [B, L]
    real = mask.to(of_tokens.dtype)
    return (of_tokens * real).sum(1) / real.sum(1)


def padded_relation_loss(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None, least: float = 1e-7
) -> torch.Tensor:
    """The same of scores [B, heads, L, L] as a published port has it (docs/quirks.md, M3): padded queries count.

    Args:
        mask: [B, L], whose padded keys are left out; None: they count, too.
        least: the student's probabilities are this at least.
    """
    if mask is not None:
        padded = torch.where(mask > 0, 0.0, PUBLISHED_PADDED).to(student.dtype)[:, None, None]
        student, teacher = student + padded, teacher + padded
    share = teacher.detach().softmax(-1)
    log_student = student.softmax(-1).clamp_min(least).log()
    return (torch.special.xlogy(share, share) - share * log_student).sum(-1).mean((1, 2))


def score_error(student: Related, teacher: Related) -> torch.Tensor:
    """Squared difference of attention scores, the mean over heads: of each pair of tokens, [B, L, L]."""
    return (scores(student) - scores((teacher[0].detach(), teacher[1].detach()))).square().mean(1)


def padded_score_error(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared difference of scores [B, heads, L, L] of each text [B], as published (docs/quirks.md, T3, T4).

    Padded keys, and scores of -100 or less, are 0; padded queries count, and the mean is over all of heads x L x L.
    """
    padded = torch.where(mask > 0, 0.0, PUBLISHED_PADDED).to(student.dtype)[:, None, None]
    ours, theirs = (torch.where(side + padded <= -100, 0.0, side) for side in (student, teacher.detach()))
    return (ours - theirs).square().mean((1, 2, 3))
