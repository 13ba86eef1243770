"""Dropout on a CPU from 16 random bits per element: torch's own draws one element at a time, some ten times slower."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from kdbert.devices import by_device

_LEVELS = 1 << 16  # a draw is 16 random bits


def draw_keep(shape: torch.Size, rate: float, dtype: torch.dtype) -> torch.Tensor:
    """What dropout multiplies by, on the CPU: 0 with probability `rate`, else 1 / (1 - rate).

    The generator is seeded by one draw of torch's own, so the bits are a function of torch's seed.

    Args:
        rate: rounded to a multiple of 1/65536. The scale fits the rounded rate, so that the mean is kept, up to
            the rounding of the scale to `dtype` (torch's dropout rounds it too).
    """
    threshold = round(rate * _LEVELS)
    if threshold == _LEVELS:
        return torch.zeros(shape, dtype=dtype)
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.SFC64(seed).random_raw(-(-shape.numel() // 4))
    draws = torch.from_numpy(words.view(np.int16))[: shape.numel()].view(shape)
    # In integers and in place: 1 where kept, times the bits of the scale.
    scale = torch.tensor(_LEVELS / (_LEVELS - threshold), dtype=dtype)
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    kept = draws.ge_(threshold - _LEVELS // 2).to(integers)
    return kept.mul_(int(scale.view(integers))).view(dtype)


class FastDropout(nn.Dropout):
    """`torch.nn.Dropout` by `draw_keep` on a CPU; on other devices torch's own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The input; in training with some elements 0 and the others scaled up."""
        if not self.training or self.p == 0:
            return input
        if self.inplace or not by_device(input.device).own_dropout:
            return super().forward(input)
        return input * draw_keep(input.shape, self.p, input.dtype)


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every `nn.Dropout` of a model, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, FastDropout(child.p, child.inplace).train(child.training))
