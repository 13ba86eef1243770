"""A student is a model with some of its encoder layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from kdbert.errors import UserError
from kdbert.models.layers import matched_layer


def kept_layers(depth: int, count: int | None, init: Literal["first", "last", "even"] | Sequence[int]) -> list[int]:
    """Which layers (numbered from 1) a student keeps of a model with `depth` layers.

    `even` takes floor(l * depth / count + 1/2) for l = 1..count (DESIGN.md section 5), so it always
    ends with the last layer.

    Raises:
        UserError: more layers than there are.
    """
    picks: list[int]
    if not isinstance(init, str):
        picks = list(init)
    else:
        size = depth if count is None else count
        if init == "first":
            picks = list(range(1, size + 1))
        elif init == "last":
            picks = list(range(depth - size + 1, depth + 1))
        else:
            picks = [matched_layer(layer, depth, size) for layer in range(1, size + 1)]
    if not picks or max(picks) > depth or min(picks) < 1 or len(set(picks)) != len(picks):
        wanted = f"{count} of them" if isinstance(init, str) else f"layers {', '.join(map(str, picks))}"
        raise UserError(f"the model has {depth} layers, so a student cannot keep {wanted}")
    return picks


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set every dropout rate of a model; its saved configuration keeps the published rates."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
