"""How far hidden states are apart, unit by unit, in units of how much the teacher's vary."""

from __future__ import annotations

from collections.abc import Iterable

import torch

# Of a layer's mean square deviation: a unit that varies by less than a hundredth of its layer counts as if it did so.
LEAST = 1e-4


def deviations(parts: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The deviation of each unit of some layers over all real tokens, [layers, H] in float32; 1 where nothing varies.

    Args:
        parts: hidden states [layers, B, L, H] and mask [B, L], batch by batch.
    """
    count, sums = 0, torch.zeros((), dtype=torch.float64)
    for hidden, mask in parts:
        real = hidden[:, mask > 0].double()
        count += real.shape[1]
        sums = sums + torch.stack([real.sum(1), real.square().sum(1)])
    mean, square = sums / count
    variance = (square - mean.square()).clamp_min(0)
    least = LEAST * variance.mean(1, keepdim=True)
    return torch.where(least > 0, variance.clamp_min(least), 1.0).sqrt().float()


def scaled_error(student: torch.Tensor, teacher: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Mean over units of ((student - teacher) / deviation)^2: of each token, [B, L].

    Args:
        student, teacher: [B, L, H]; no gradient flows into the teacher. deviation: [H].
    """
    return ((student - teacher.detach()) / deviation).square().mean(-1)
