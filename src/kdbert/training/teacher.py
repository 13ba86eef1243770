"""Teacher outputs: computed for each batch, or once for all and replayed by example number."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kdbert.data.batches import Batch
from kdbert.methods import Outputs
from kdbert.training.forward import run_model
from kdbert.training.precision import Precision


class LiveTeacher:
    """A frozen model in eval mode, run on every batch without gradients.

    Args:
        permutation: for each task label, the column of the model's logits.
    """

    def __init__(self, model: Any, permutation: list[int], precision: Precision) -> None:
        self.model = model.eval().requires_grad_(False)
        self.precision = precision
        self.permutation = torch.tensor(permutation, device=next(model.parameters()).device)

    def outputs(self, batch: Batch) -> Outputs:
        """What the teacher says about a batch, labels in the task's order."""
        with torch.no_grad():
            out = run_model(self.model, batch, self.precision)
        return Outputs(logits=out.logits[:, self.permutation])


class StoredTeacher:
    """Logits computed before training, looked up by example number (never by batch)."""

    def __init__(self, logits: np.ndarray, permutation: list[int], device: torch.device) -> None:
        self.logits = torch.from_numpy(np.ascontiguousarray(logits[:, permutation])).to(device)

    def outputs(self, batch: Batch) -> Outputs:
        """What the teacher said about the batch's examples."""
        return Outputs(logits=self.logits[batch.example])


Teacher = LiveTeacher | StoredTeacher
