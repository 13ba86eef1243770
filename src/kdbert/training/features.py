"""A teacher's features for `kdbert.centroids`: hidden states of one layer, from what is stored or from the teacher."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from kdbert.centroids.algorithm import FeatureBatch, Features
from kdbert.data.batches import evaluation_batches, micro_batches
from kdbert.data.encode import Encoded
from kdbert.training.forward import run_model
from kdbert.training.precision import Precision

log = logging.getLogger("kdbert")


def stored_features(hidden: np.ndarray, data: Encoded, batch_size: int) -> Features:
    """Features read from hidden states of every token of a split, float32 [tokens, H]; zero at padding."""

    def read() -> Iterator[FeatureBatch]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a map is read-only, and nobody writes to it
            tokens = torch.from_numpy(hidden)
        for rows in _shown(evaluation_batches(data.lengths, batch_size)):
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
        in_order = np.array_split(np.arange(len(data)), -(-len(data) // batch_size))
        for rows in _shown(in_order if length is not None else evaluation_batches(data.lengths, batch_size)):
            (batch,) = micro_batches(data, rows, length=length)
            with torch.no_grad():
                found = run_model(network, batch.to(device), precision, (layer,)).hidden[layer]
                if length is None:
                    found = found * batch.attention_mask.to(device).unsqueeze(-1)
            yield FeatureBatch(torch.from_numpy(rows), found.flatten(1).cpu())

    return read


def _shown(batches: Sequence[np.ndarray]) -> Iterable[np.ndarray]:
    """The batches of a pass, with a progress bar."""
    return tqdm(
        batches, desc="memory", unit="batch", leave=False, disable=not log.isEnabledFor(logging.INFO),
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
    )  # fmt: skip
