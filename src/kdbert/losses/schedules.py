"""Numbers of a loss that change over a run, as functions of how far it has come."""

from __future__ import annotations


def epoch_of(progress: float, epochs: int) -> int:
    """The epoch, from 0, in which a run of so many epochs is (`Batch.progress`)."""
    return min(int(progress * epochs + 1e-9), epochs - 1)  # a little more, since k / epochs * epochs may be below k


def annealed(temperature: float, progress: float, epochs: int | None = None) -> float:
    """A temperature that falls linearly to 1 over a run.

    Args:
        epochs: it falls from epoch to epoch, as published, tau + (1 - tau) * e / (epochs - 1); None: in every step.
            With one epoch the published formula is 0 / 0, and tau stays here.
    """
    if epochs is not None:
        progress = epoch_of(progress, epochs) / max(epochs - 1, 1)
    return temperature + (1 - temperature) * progress
