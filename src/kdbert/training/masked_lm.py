"""Scoring a masked-LM on plain text."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from kdbert.data.batches import Batch
from kdbert.data.encode import Encoded
from kdbert.data.masking import IGNORE_INDEX
from kdbert.heads.masked_lm import VOCABULARY_CHUNK
from kdbert.losses.hard import cross_entropy
from kdbert.methods import MaskedLMOutputs
from kdbert.training.forward import pass_over
from kdbert.training.precision import Precision


def masked_lm_sums(
    model: Any,
    data: Encoded,
    *,
    batch_size: int,
    precision: Precision,
    accelerator: Accelerator,
    told: str | None = None,
) -> np.ndarray:
    """What `kdbert.metrics.grouped.hidden_counts` adds up: float32 [N, 6], the same on every process.

    Of each text: the loss of its hidden pieces (nats, summed), how many of them are answered rightly, how many there
    are; first of pieces that the teacher's vocabulary has, then of new ones. A model that lacks the new ones, such as
    the teacher itself, has 0 there.

    Raises:
        Diverged: see `pass_over`, which takes `told`.
    """
    assert data.masking is not None
    known = data.masking.known

    def compute(outputs: MaskedLMOutputs, batch: Batch) -> dict[str, torch.Tensor]:
        head, labels = outputs.head, batch.labels
        assert labels is not None
        length, flat = labels.shape[1], labels.reshape(-1)
        found = torch.zeros(len(labels), 6, device=labels.device)
        there = (flat != IGNORE_INDEX) & (flat < head.pieces)
        for positions in there.nonzero()[:, 0].split(VOCABULARY_CHUNK):
            logits, right = head(positions), flat[positions]
            values = torch.stack(
                [cross_entropy(logits, right), (logits.argmax(-1) == right).float(), torch.ones_like(right).float()], 1
            )
            new = (right >= known).float()[:, None]
            both = torch.cat([values * (1 - new), values * new], 1)
            found.index_add_(0, positions // length, both)
        return {"sums": found}

    found = pass_over(
        model, data, compute, {"sums": "example"}, batch_size=batch_size, precision=precision, accelerator=accelerator,
        told=told,
    )["sums"]  # fmt: skip
    assert found is not None
    return found
