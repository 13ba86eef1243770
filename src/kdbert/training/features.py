"""A teacher's features for `kdbert.centroids`: hidden states of one layer, from what is stored or from the teacher."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from kdbert.centroids.algorithm import FeatureBatch, Features
from kdbert.data.batches import evaluation_batches, micro_batches
from kdbert.data.encode import Encoded
from kdbert.training.forward import run_model
from kdbert.training.loggers import progress_bar
from kdbert.training.precision import Precision

log = logging.getLogger("kdbert")


def stored_features(hidden: np.ndarray, data: Encoded, batch_size: int) -> Features:
    """Features read from hidden states of every token of a split, float32 [tokens, H]; zero at padding."""

    def read() -> Iterator[FeatureBatch]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a map is read-only, and nobody writes to it
            tokens = torch.from_numpy(hidden)
        for rows in progress_bar(evaluation_batches(data.lengths, batch_size), "memory", "batch", True, leave=False):
            index, real = data.tokens(rows, int(data.lengths[rows].max()))
            found = tokens[torch.from_numpy(index.reshape(-1))].view(*index.shape, hidden.shape[1])
            yield FeatureBatch(torch.from_numpy(rows), (found * torch.from_numpy(real).unsqueeze(-1)).flatten(1))

    return read


def live_features(
    model: Callable[[], Any],
    layer: int,
    data: Encoded,
    *,
    length: int | None,
    batch_size: int,
    precision: Precision,
    device: torch.device,
) -> Features:
    """Features from the teacher, which runs over the split in every pass.

    Args:
        model: opens the teacher.
        length: as published: examples in the order of the file, padded to so many tokens, and padding counts. None:
            zero at padding.
        batch_size: examples per forward pass.
    """
    log.info("memory: the teacher runs in every pass")

    def read() -> Iterator[FeatureBatch]:
        network = model().eval()
        batches = evaluation_batches(data.lengths, batch_size)
        if length is not None:
            batches = np.array_split(np.arange(len(data)), -(-len(data) // batch_size))
        for rows in progress_bar(batches, "memory", "batch", True, leave=False):
            (batch,) = micro_batches(data, rows, length=length)
            batch = batch.to(device)
            with torch.no_grad():
                found = run_model(network, batch, precision, (layer,)).hidden[layer]
                if length is None:
                    found = found * batch.attention_mask.unsqueeze(-1)
            yield FeatureBatch(torch.from_numpy(rows), found.flatten(1).cpu())

    return read
