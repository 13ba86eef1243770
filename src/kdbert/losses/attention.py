"""Relations among the tokens of a text: the scores of attention (TinyBERT), and softmax of such scores (MiniLM).

Queries, keys and values are [B, heads, L, units], of padded texts.
"""

from __future__ import annotations

from typing import Any

import torch

from kdbert.derivatives import once_differentiable
from kdbert.devices import by_device

Related = tuple[torch.Tensor, torch.Tensor]  # whose scores first second^T are taken: queries and keys, or values twice
# Added to scores of padded keys: finite, so that the difference of two of them is 0 and not NaN.
PADDED = -1e30
PUBLISHED_PADDED = -10_000.0  # what published code adds, BERT's first one among it


class _Divergence(torch.autograd.Function):
    """KL(teacher's relation || student's), the mean over queries and heads of each text.

    On a CPU one text at a time, without its padding: then all scores of a text lie in the cache, and the gradient is
    made of them at once, so that none are stored.
    """

    @staticmethod
    def forward(context: Any, first: torch.Tensor, second: torch.Tensor, teacher: Related, mask: Any) -> torch.Tensor:
        padded = torch.where(mask > 0, 0.0, PADDED)
        real = mask.to(first.dtype)
        weights = (real / (real.sum(1, keepdim=True) * first.shape[1]))[:, None, :, None]
        scaling, gradients = first.shape[-1] ** -0.5, (torch.zeros_like(first), torch.zeros_like(second))
        found = []
        for rows, tokens in _parts(mask):
            place = rows, slice(None), tokens
            theirs = scores((teacher[0][place], teacher[1][place]), padded[rows, tokens])
            ours, weight = scores((first[place], second[place]), padded[rows, tokens]), weights[place]
            share = torch.softmax(theirs, -1)  # much faster than the exponential of its logarithm
            divergence = torch.log_softmax(theirs, -1).sub_(torch.log_softmax(ours, -1)).mul_(share)
            found.append((divergence.sum(-1, keepdim=True) * weight).sum((1, 2, 3)))
            difference = torch.softmax(ours, -1).sub_(share).mul_(weight * scaling)
            gradients[0][place] = torch.matmul(difference, second[place])
            gradients[1][place] = torch.matmul(difference.transpose(-1, -2), first[place])
        context.save_for_backward(*gradients)
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        first, second = (one * gradients[0][:, None, None, None] for one in context.saved_tensors)
        return first, second, None, None


def _parts(mask: torch.Tensor) -> list[tuple[slice, slice]]:
    """Rows and tokens that are computed together: all, or on a CPU each text from its first real token to its last."""
    rows, length = mask.shape
    if not by_device(mask.device).text_by_text:
        return [(slice(0, rows), slice(0, length))]
    real = mask.numpy() > 0
    spans = zip(real.argmax(1).tolist(), (length - real[:, ::-1].argmax(1)).tolist(), strict=True)
    return [(slice(row, row + 1), slice(*span)) for row, span in enumerate(spans)]


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
    ours, theirs = ((split_heads(side[0], heads), split_heads(side[1], heads)) for side in (student, teacher))
    found: torch.Tensor = _Divergence.apply(*ours, (theirs[0].detach(), theirs[1].detach()), mask)
    return found


def padded_relation_loss(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None, least: float = 1e-7
) -> torch.Tensor:
    """The same of scores [B, heads, L, L] as a published port has it (docs/quirks.md, ML3): padded queries count.

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
    """Squared difference of scores [B, heads, L, L] of each text [B], as published (docs/quirks.md, TB3, TB4).

    Padded keys, and scores of -100 or less, are 0; padded queries count, and the mean is over all of heads x L x L.
    """
    padded = torch.where(mask > 0, 0.0, PUBLISHED_PADDED).to(student.dtype)[:, None, None]
    ours, theirs = (torch.where(side + padded <= -100, 0.0, side) for side in (student, teacher.detach()))
    return (ours - theirs).square().mean((1, 2, 3))
