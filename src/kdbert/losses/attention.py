"""Relations among the tokens of a text: the scores of attention (TinyBERT), and softmax of such scores (MiniLM).

Queries, keys and values are [B, heads, L, units], of padded texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kdbert.derivatives import once_differentiable
from kdbert.devices import by_device

Related = tuple[torch.Tensor, torch.Tensor]  # whose scores first second^T are taken: queries and keys, or values twice
Compare = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
# Added to scores of padded keys: finite, so that the difference of two of them is 0 and not NaN.
PADDED = -1e30
PUBLISHED_PADDED = -10_000.0  # what published code adds, BERT's first one among it


class _OfScores(torch.autograd.Function):
    """What `compare` says of both models' scores, as a weighted sum over the queries and heads of each text [B].

    On a CPU one text at a time, without its padding: then all scores of a text lie in the cache, and the gradient is
    made of them at once, so that none are stored.

    Args:
        weights: of queries, [B, 1, L, 1]; 0 for padded ones.
        compare: the student's and the teacher's scores, which it may overwrite -> a number for each query
            [B, heads, L], and its gradient by the student's scores. Padded keys have the same huge negative score on
            both sides.
    """

    @staticmethod
    def forward(
        context: Any, first: torch.Tensor, second: torch.Tensor, teacher: Related, mask: torch.Tensor,
        weights: torch.Tensor, compare: Compare,
    ) -> torch.Tensor:  # fmt: skip
        padded = torch.where(mask > 0, 0.0, PADDED)
        scaling, gradients = first.shape[-1] ** -0.5, (torch.zeros_like(first), torch.zeros_like(second))
        found = []
        for rows, tokens in text_parts(mask):
            place = rows, slice(None), tokens
            theirs = scores((teacher[0][place], teacher[1][place]), padded[rows, tokens])
            values, by_score = compare(scores((first[place], second[place]), padded[rows, tokens]), theirs)
            weight = weights[place]
            found.append((values * weight[..., 0]).sum((1, 2)))
            by_score.mul_(weight * scaling)
            gradients[0][place] = torch.matmul(by_score, second[place])
            gradients[1][place] = torch.matmul(by_score.transpose(-1, -2), first[place])
        context.save_for_backward(*gradients)
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        first, second = (one * gradients[0][:, None, None, None] for one in context.saved_tensors)
        return first, second, None, None, None, None


def _divergence(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(softmax of theirs || softmax of ours), and its gradient."""
    share, own = torch.softmax(theirs, -1), torch.softmax(ours, -1)
    partition = _log_partition(ours, own) - _log_partition(theirs, share)
    return theirs.sub_(ours).mul_(share).sum(-1).add_(partition), own.sub_(share)


def _log_partition(scores: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Logarithm of the sum of exponentials of each row, whose softmax is known: of any element, score - log(share).

    Taken from the diagonal, where a text has no padding and no share there is so small that its logarithm is rounded
    much: that is no pass over all elements.
    """
    share = shares.diagonal(dim1=-2, dim2=-1)
    if by_device(scores.device).text_by_text and share.numpy().min() > 1e-6:
        return scores.diagonal(dim1=-2, dim2=-1) - share.log()
    return scores.logsumexp(-1)


def _squares(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared differences."""
    difference = ours.sub_(theirs)
    return difference.square().sum(-1), difference.mul_(2)


def text_parts(mask: torch.Tensor) -> list[tuple[slice, slice]]:
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
    real = mask.to(ours[0].dtype)
    return _of_scores(ours, theirs, mask, real / (real.sum(1, keepdim=True) * heads), _divergence)


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


def score_error(student: Related, teacher: Related, mask: torch.Tensor) -> torch.Tensor:
    """Squared difference of attention scores of each text [B]: a mean over heads, a sum over pairs of real tokens."""
    return _of_scores(student, teacher, mask, mask.to(student[0].dtype) / student[0].shape[1], _squares)


def _of_scores(
    student: Related, teacher: Related, mask: torch.Tensor, weights: torch.Tensor, compare: Compare
) -> torch.Tensor:
    """`_OfScores`, with weights [B, L]; no gradient reaches the teacher."""
    theirs = teacher[0].detach(), teacher[1].detach()
    found: torch.Tensor = _OfScores.apply(*student, theirs, mask, weights[:, None, :, None], compare)
    return found


def padded_score_error(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared difference of scores [B, heads, L, L] of each text [B], as published (docs/quirks.md, TB3, TB4).

    Padded keys, and scores of -100 or less, are 0; padded queries count, and the mean is over all of heads x L x L.
    """
    padded = torch.where(mask > 0, 0.0, PUBLISHED_PADDED).to(student.dtype)[:, None, None]
    ours, theirs = (torch.where(side + padded <= -100, 0.0, side) for side in (student, teacher.detach()))
    return (ours - theirs).square().mean((1, 2, 3))
