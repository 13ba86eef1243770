"""Training only the word vectors that the training data uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class UsedRows(nn.Module):
    """A word embedding of which only the rows that the training data uses are trained.

    Every other row has gradient 0 at each step, and AdamW without weight decay leaves such a row unchanged. So the
    result is the same, with gradients, moments and clipping norm over a few thousand rows instead of 30,522.

    Args:
        whole: the embedding; it is brought up to date whenever the module leaves training mode.
        used: numbers of the rows that are trained.
    """

    rows: torch.Tensor  # the numbers of the trained rows
    place: torch.Tensor  # for every token id its trained row, or -1

    def __init__(self, whole: nn.Embedding, used: np.ndarray) -> None:
        super().__init__()
        self.whole = whole.requires_grad_(False)
        rows = torch.from_numpy(np.unique(used)).to(whole.weight.device)
        self.weight = nn.Parameter(whole.weight.detach()[rows].clone())
        place = torch.full((whole.num_embeddings,), -1, dtype=torch.int64, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("place", place, persistent=False)
        padding = -1 if whole.padding_idx is None else int(place[whole.padding_idx])
        self.padding = None if padding < 0 else padding
        self.training = whole.training

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The rows of these token ids; in training every id must be a used one."""
        if not self.training:
            return self.whole(input)
        return F.embedding(self.place[input], self.weight, self.padding)

    def train(self, mode: bool = True) -> UsedRows:
        """As `nn.Module.train`; leaving training mode brings the whole embedding up to date."""
        if self.training and not mode:
            self.update()
        super().train(mode)
        return self

    @torch.no_grad()
    def update(self) -> None:
        """Write the trained rows into the whole embedding."""
        self.whole.weight[self.rows] = self.weight.detach()


@contextlib.contextmanager
def training_used_rows(model: Any, used: np.ndarray) -> Iterator[None]:
    """Inside, a model's word embedding trains the used rows only; afterwards it is an ordinary embedding again.

    Nothing changes if another layer shares the embedding (a masked-LM head), or if it is not a plain `nn.Embedding`.
    """
    whole = model.get_input_embeddings()
    shared = sum(getattr(module, "weight", None) is whole.weight for module in model.modules()) > 1
    if type(whole) is not nn.Embedding or shared or not whole.weight.requires_grad:
        yield
        return
    compact = UsedRows(whole, used)
    model.set_input_embeddings(compact)
    try:
        yield
    finally:
        compact.update()
        model.set_input_embeddings(whole.requires_grad_(True))
