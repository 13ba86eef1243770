"""Stopping a run whose numbers are not finite any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from kdbert.errors import Diverged, few
from kdbert.training.checkpoint import newest_checkpoint


class FiniteWatch:
    """Remembers, on the device, the first step at which each number was not finite.

    Args:
        ids: name of each example (None: its number).
    """

    def __init__(self, device: torch.device, ids: Sequence[str] | None = None) -> None:
        self.device = device
        self.ids = ids
        self.first: dict[str, torch.Tensor] = {}
        self.rows: dict[int, np.ndarray] = {}  # of the steps since the last check

    def see(self, step: int, values: Mapping[str, torch.Tensor], rows: np.ndarray) -> None:
        """Note this step's numbers, and the examples that they are of, without waiting for the device."""
        self.rows[step] = rows
        never = torch.full((len(values),), -1, dtype=torch.int64, device=self.device)
        first = torch.stack([self.first.get(name, never[0]) for name in values])
        bad = ~torch.isfinite(torch.stack([value.detach().float() for value in values.values()]))
        self.first.update(zip(values, first.masked_fill(bad & (first < 0), step), strict=True))

    def check(self, checkpoints: Path) -> None:
        """Raise if any number was not finite.

        Raises:
            Diverged: with the step, the term, the examples, and the last good checkpoint.
        """
        steps = torch.stack(list(self.first.values())).tolist() if self.first else []
        bad = [(step, order) for order, step in enumerate(steps) if step >= 0]
        if not bad:
            self.rows.clear()
            return
        step, order = min(bad)
        term = list(self.first)[order]
        examples = [self.ids[row] if self.ids is not None else str(row) for row in self.rows[step].tolist()]
        shown, newest = few(examples, ", see run.json"), newest_checkpoint(checkpoints)
        what = "the gradient" if term == "gradient" else f"the loss term {term}"
        raise Diverged(
            f"diverged at step {step}: {what} is not finite in the batch of examples {shown}; "
            + (f"the last good checkpoint is {newest.path}" if newest else "no checkpoint had been saved")
            + "; try a lower train.learning_rate or some train.warmup",
            {"step": step, "term": term, "examples": examples},
        )
