"""Large intermediate tensors, a part at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

BOUND = 1 << 24  # numbers in an intermediate tensor of a part: 64 MiB in float32


def by_parts(compute: Callable[..., torch.Tensor], *rows: torch.Tensor, each: int) -> torch.Tensor:
    """`compute(*rows)`, [n, ...] from tensors [n, ...], so many rows at a time that intermediate tensors stay bounded.

    What a part makes on the way is dropped, and computed again for the gradient. With one part nothing changes.

    Args:
        each: numbers in the largest intermediate tensor of one row.
    """
    count = max(1, BOUND // max(1, each))
    if len(rows[0]) <= count:
        return compute(*rows)
    parts = zip(*(one.split(count) for one in rows), strict=True)
    return torch.cat([checkpoint(compute, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
