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
AT_ONCE = 1 << 20  # scores of a part of the texts: 4 MiB, which caches hold
PUBLISHED_PADDED = -10_000.0  # what published code adds, BERT's first one among it


class _OfScores(torch.autograd.Function):
    """What `compare` says of both models' scores, as a weighted sum over the queries and heads of each text [B].

    On a CPU a few texts of like length at a time, without most of their padding: then their scores lie in the cache,
    and the gradient is made of them at once, so that none are stored.

    Args:
        second: None: the same as `first`. The teacher's second likewise.
        weights: of queries, [B, L]; 0 for padded ones.
        compare: the student's and the teacher's scores [G, L, L], of G texts and heads, which it may overwrite ->
            a number for each query [G, L], and its gradient by the student's scores. Padded keys have the same huge
            negative score on both sides; padded queries need numbers, but any will do.
    """

    @staticmethod
    def forward(
        context: Any,
        first: torch.Tensor,
        second: torch.Tensor | None,
        teacher: tuple[torch.Tensor, torch.Tensor | None],
        mask: torch.Tensor,
        weights: torch.Tensor,
        compare: Compare,
    ) -> torch.Tensor:
        heads, scaling = first.shape[1], first.shape[-1] ** -0.5
        padded = torch.where(mask > 0, 0.0, PADDED)
        gradients = [torch.zeros_like(side) for side in (first, second) if side is not None]
        found = first.new_empty(len(first))
        for rows, tokens in text_parts(mask, heads):
            query, key = _part(first, second, rows, tokens)
            bias = padded[rows, tokens].repeat_interleave(heads, 0)
            theirs = scores(_part(*teacher, rows, tokens), bias)
            values, by_score = compare(scores((query, key), bias), theirs)
            weight = weights[rows, tokens].repeat_interleave(heads, 0)
            found[rows] = (values * weight).unflatten(0, (-1, heads)).sum((1, 2))
            weight = (weight * scaling).unsqueeze(-1)
            by_query, by_key = torch.bmm(by_score, key).mul_(weight), torch.bmm(by_score.mT, query * weight)
            parts = [by_query.add_(by_key)] if second is None else [by_query, by_key]
            for gradient, part in zip(gradients, parts, strict=True):
                gradient[:, :, tokens].index_copy_(0, rows, part.unflatten(0, (-1, heads)))
        context.save_for_backward(*gradients)
        return found

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        first, *second = (one * gradients[0][:, None, None, None] for one in context.saved_tensors)
        return first, second[0] if second else None, None, None, None, None


def _part(
    first: torch.Tensor, second: torch.Tensor | None, rows: torch.Tensor, tokens: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Some texts and tokens of both, [texts heads, tokens, units]."""
    own = first[:, :, tokens].index_select(0, rows).flatten(0, 1)
    return own, own if second is None else second[:, :, tokens].index_select(0, rows).flatten(0, 1)


def _divergence(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(softmax of theirs || softmax of ours), and its gradient."""
    share, own = torch.softmax(theirs, -1), torch.softmax(ours, -1)
    partition = _log_partition(ours, own) - _log_partition(theirs, share)
    return theirs.sub_(ours).mul_(share).sum(-1).add_(partition), own.sub_(share)


def _log_partition(scores: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Logarithm of the sum of exponentials of each row, whose softmax is known: of any element, score - log(share).

    Taken from the diagonal, if no share of a real token there is so small that its logarithm is rounded much: that is
    no pass over all elements.
    """
    if by_device(scores.device).few_texts:
        own, share = (side.diagonal(dim1=-2, dim2=-1).clone() for side in (scores, shares))
        share.masked_fill_(own < PADDED / 2, 1.0)
        if share.numpy().min() > 1e-6:
            return own.sub_(share.log_())
    return scores.logsumexp(-1)


def _squares(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared differences."""
    difference = ours.sub_(theirs)
    return torch.linalg.vector_norm(difference, dim=-1).square(), difference.mul_(2)


def text_parts(mask: torch.Tensor, heads: int) -> list[tuple[torch.Tensor, slice]]:
    """Texts and tokens whose scores are computed together: all, or on a CPU a few texts of like length.

    Args:
        mask: [B, L]. heads: scores of every two tokens.

    Returns:
        Numbers of texts, and the tokens from the first real one of them to the last.
    """
    count, length = mask.shape
    if not by_device(mask.device).few_texts:
        return [(torch.arange(count, device=mask.device), slice(0, length))]
    real = mask.numpy() > 0
    first, last = real.argmax(1), length - real[:, ::-1].argmax(1)
    lengths, parts = last - first, list[list[int]]()
    for row in lengths.argsort(kind="stable").tolist():
        if not parts or (len(parts[-1]) + 1) * heads * lengths[row] ** 2 > AT_ONCE:
            parts.append([])
        parts[-1].append(row)
    return [(torch.tensor(part), slice(int(first[part].min()), int(last[part].max()))) for part in parts]


def split_heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """The same numbers of each token in another number of heads: [B, heads, L, units]."""
    if states.shape[1] == heads:
        return states
    return states.transpose(1, 2).flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)


def scores(related: Related, bias: torch.Tensor | None = None) -> torch.Tensor:
    """first second^T / sqrt(units): [..., L, L] of [..., L, units]; of [G, L, units] also + bias [G, L] of the keys."""
    first, second = related
    if bias is None:
        return torch.matmul(first * first.shape[-1] ** -0.5, second.mT)
    return torch.baddbmm(bias.to(first.dtype).unsqueeze(1), first, second.mT, alpha=first.shape[-1] ** -0.5)


def relation_loss(student: Related, teacher: Related, mask: torch.Tensor, heads: int) -> torch.Tensor:
    """KL(teacher's relation || student's) of each text [B]: the mean over its real tokens and relation heads.

    A relation is softmax(first second^T / sqrt(units)) over the real tokens (MiniLMv2, section 3.1). The states of both
    models are cut into `heads` relation heads, whatever heads they have.
    """
    ours, theirs = (_cut(side, heads) for side in (student, teacher))
    real = mask.to(ours[0].dtype)
    return _of_scores(ours, theirs, mask, real / (real.sum(1, keepdim=True) * heads), _divergence)


def _cut(states: Related, heads: int) -> Related:
    """`split_heads` of both, which stay the same if they are."""
    first = split_heads(states[0], heads)
    return first, first if states[1] is states[0] else split_heads(states[1], heads)


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
    """`_OfScores`; no gradient reaches the teacher."""
    first, second = student[0], None if student[1] is student[0] else student[1]
    theirs = teacher[0].detach(), None if teacher[1] is teacher[0] else teacher[1].detach()
    found: torch.Tensor = _OfScores.apply(first, second, theirs, mask, weights, compare)
    return found


def padded_score_error(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared difference of scores [B, heads, L, L] of each text [B], as published (docs/quirks.md, TB3, TB4).

    Padded keys, and scores of -100 or less, are 0; padded queries count, and the mean is over all of heads x L x L.
    """
    padded = torch.where(mask > 0, 0.0, PUBLISHED_PADDED).to(student.dtype)[:, None, None]
    ours, theirs = (torch.where(side + padded <= -100, 0.0, side) for side in (student, teacher.detach()))
    return (ours - theirs).square().mean((1, 2, 3))
