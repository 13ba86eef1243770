"""Relations among points (tokens, texts, the layers of a token), compared between two models of any widths.

Points come in groups, [G, N, H]: the tokens of each text, a batch's texts in each part of their units, a token in each
layer. The teacher's side is a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from kdbert.losses.attention import PADDED, scores, text_parts
from kdbert.losses.parts import by_parts

Distance = Literal["cosine", "squared"]
Error = Literal["l2", "l1", "smooth_l1"]
# Of the size of two points: below it, their squared distance counts as none (they are less than a hundredth apart).
NEAR = 1e-4


def error_of(student: torch.Tensor, teacher: torch.Tensor, kind: Error) -> torch.Tensor:
    """The square, the absolute value, or the smooth L1 (threshold 1) of each difference."""
    if kind == "l2":
        return (student - teacher).square()
    if kind == "l1":
        return (student - teacher).abs()
    return F.smooth_l1_loss(student, teacher, reduction="none")


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors [..., H] of length 1; a zero vector stays, and has no gradient."""
    squares = vectors.square().sum(-1, keepdim=True)
    there = squares > 0
    return vectors * torch.where(there, torch.where(there, squares, 1.0).rsqrt(), 0.0)


def centred(points: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Points [G, N, H] without the mean of their group (of those in mask [G, N]), through which no gradient flows.

    It changes neither distances nor angles, and where points are close to each other it saves digits.
    """
    weight = mask.to(points.dtype).unsqueeze(-1)
    mean = (points * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
    return points - mean.detach()


# ---- pairs


def in_heads(points: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, N, H] -> [B, heads, N, H / heads]."""
    return points.unflatten(-1, (heads, -1)).transpose(1, 2)


def distances(points: torch.Tensor, kind: Distance, there: torch.Tensor, normalize: bool) -> torch.Tensor:
    """Of every two points of a group, [G, N, N]: cosines, or squared distances.

    Args:
        there: bool [G, N, N], the pairs that count.
        normalize: divide squared distances by their mean over the pairs that count (and are not 0).
    """
    if kind == "cosine":
        one = unit(points)
        return one @ one.mT
    points = centred(points, there.any(-1))
    squares = points.square().sum(-1)
    found = (squares[:, :, None] + squares[:, None, :] - 2 * points @ points.mT).clamp(min=1e-12)
    found = found.masked_fill(~there, 0.0)
    if not normalize:
        return found
    return found / (found.sum((1, 2)) / there.sum((1, 2)).clamp(min=1)).clamp(min=1e-12)[:, None, None]


def distance_errors(
    student: torch.Tensor,
    teacher: torch.Tensor,
    valid: torch.Tensor,
    *,
    distance: Distance = "cosine",
    error: Error | Literal["kl"] = "kl",
    normalize: bool = False,
) -> torch.Tensor:
    """How each point's distances to the others of its group differ between the models, summed over the others: [G, N].

    `kl` compares the softmax over the others, KL(teacher || student), in nats. A point without another has 0.

    Args:
        student, teacher: [G, N, H], of any widths. valid: bool [G, N], which points count.
    """

    def compute(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        there = (
            valid[:, :, None] & valid[:, None, :] & ~torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
        )
        own, other = (distances(side, distance, there, normalize) for side in (student, teacher))
        if error == "kl":
            lowest = torch.finfo(own.dtype).min
            own, other = (side.masked_fill(~there, lowest).log_softmax(-1) for side in (own, other))
            # As both sum to 1, this is the sum of p (log p - log q), whose addends cancel where they are alike.
            gap = (other - own).masked_fill(~there, 0.0)
            found = other.exp() * (gap + torch.expm1(-gap))
        else:
            found = error_of(own, other, error)
        return found.masked_fill(~there, 0.0).sum(-1)

    return by_parts(
        compute, student, teacher.detach(), valid, each=valid.shape[1] * max(valid.shape[1], student.shape[2])
    )


# ---- triples


@dataclass(frozen=True)
class Triples:
    """Which angles are looked at: at a centre, between every two of its ends. n centres, each with J ends.

    Attributes:
        group: int64 [n], the centre's group. centre: int64 [n], its number there. ends: int64 [n, J], of the ends.
        valid: bool [n, J], which ends count.
        distinct: leave out an end that is the centre, and angles between an end and itself.
    """

    group: torch.Tensor
    centre: torch.Tensor
    ends: torch.Tensor
    valid: torch.Tensor
    distinct: bool = True

    @classmethod
    def of_all(cls, valid: torch.Tensor, distinct: bool = True) -> Triples:
        """Every point of each group as a centre, with all points of the group as its ends: n = G N, J = N.

        Args:
            valid: bool [G, N], which points count as ends.
        """
        groups, count = valid.shape
        numbers = torch.arange(groups * count, device=valid.device)
        group, centre = numbers // count, numbers % count
        return cls(
            group, centre, torch.arange(count, device=valid.device).expand(len(group), -1), valid[group], distinct
        )


@torch.no_grad()
def attended(teacher: torch.Tensor, mask: torch.Tensor, heads: int, centres: int, ends: int) -> Triples:
    """The tokens of each text that its tokens attend to most, and those that each of these attends to most. (MGSKD)

    Attention is a softmax over the real tokens of x_i x_j / sqrt(H / heads), summed over the parts of [B, L, H]. n is B
    times `centres` (or L, if that is less), J is `ends` (or L).
    """
    batch, length = mask.shape
    parts, padded = in_heads(teacher, heads), torch.where(mask > 0, 0.0, PADDED)
    attention = teacher.new_zeros(batch, length, length)
    for rows, tokens in text_parts(mask, heads):
        some = parts[:, :, tokens].index_select(0, rows).flatten(0, 1)
        found = scores((some, some), padded[rows, tokens].repeat_interleave(heads, 0)).softmax(-1)
        attention[rows, tokens, tokens] = found.unflatten(0, (-1, heads)).sum(1)
    received = (attention * mask[:, :, None]).sum(1)
    centre = received.topk(min(centres, length)).indices
    itself = torch.eye(length, dtype=torch.bool, device=mask.device)
    end = attention.masked_fill(itself, 0.0).topk(min(ends, length)).indices
    ends_of = end.gather(1, centre[:, :, None].expand(-1, -1, end.shape[-1])).flatten(0, 1)
    group = torch.arange(batch, device=mask.device).repeat_interleave(centre.shape[1])
    centre = centre.flatten()
    valid = (mask[group[:, None], ends_of] > 0) & (mask[group, centre] > 0)[:, None]
    return Triples(group, centre, ends_of, valid)


def angle_errors(
    student: torch.Tensor,
    teacher: torch.Tensor,
    mask: torch.Tensor,
    triples: Triples,
    *,
    error: Error,
    exact: bool = False,
) -> torch.Tensor:
    """How angles differ between the models, at each centre: the sum of the errors, and how many count, [n, 2].

    The angle at i between j and k is the cosine of (e_j - e_i, e_k - e_i). It is made of inner products of points, so
    that no difference of every pair of vectors is formed.

    Args:
        student, teacher: [G, N, H], of any widths. mask: [G, N], real points.
        exact: as published, an end at the very place of the centre makes angles of 0, which are compared like others
            (and are not counted where it is so in the student). Else ends that are `NEAR` to the centre in either model
            are left out.
    """
    sides = [centred(side, mask) for side in (student, teacher.detach())]
    products = [side @ side.mT for side in sides]

    def compute(group: torch.Tensor, centre: torch.Tensor, ends: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        (own, own_apart), (other, other_apart) = (_angles(side, group, centre, ends, exact) for side in products)
        counted = valid[:, :, None] & valid[:, None, :]
        if triples.distinct:
            there = ends != centre[:, None]
            counted = counted & (there[:, :, None] & there[:, None, :]) & (ends[:, :, None] != ends[:, None, :])
        apart = own_apart if exact else own_apart & other_apart
        whole = counted & (apart[:, :, None] & apart[:, None, :])
        summed = error_of(own, other, error).masked_fill(~(counted if exact else whole), 0.0).sum((1, 2))
        return torch.stack([summed, whole.sum((1, 2)).to(summed.dtype)], 1)

    rows = triples.group, triples.centre, triples.ends, triples.valid
    return by_parts(compute, *rows, each=triples.ends.shape[1] ** 2)


def _angles(
    products: torch.Tensor, group: torch.Tensor, centre: torch.Tensor, ends: torch.Tensor, exact: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines at each centre between every two ends, [n, J, J], and which ends are apart from it, [n, J]."""
    among = products[group[:, None, None], ends[:, :, None], ends[:, None, :]]
    middle = products[group, centre, centre][:, None]
    to_middle = products[group[:, None], centre[:, None], ends]
    squares = products[group[:, None], ends, ends]
    distance = squares + middle - 2 * to_middle
    least = 10 * torch.finfo(products.dtype).eps if exact else NEAR
    apart = distance > least * (squares + middle)
    inverse = torch.where(apart, torch.where(apart, distance, 1.0).rsqrt(), 0.0)
    whole = among - to_middle[:, :, None] - to_middle[:, None, :] + middle[:, :, None]
    return whole * inverse[:, :, None] * inverse[:, None, :], apart
