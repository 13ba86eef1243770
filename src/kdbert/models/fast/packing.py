"""Packing: between embeddings and head, only real tokens are computed, no padding."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from kdbert.derivatives import once_differentiable
from kdbert.devices import by_device


@dataclass(frozen=True)
class Texts:
    """Texts of one length, whose tokens are next to each other inside `packed`."""

    start: int  # place of the first token
    count: int  # of texts
    length: int  # of each in tokens


class Packing:
    """Which tokens of a padded batch are computed, and in which order: the real ones, and a few of padding.

    Shorter texts come first. So that matrix products have few different shapes, each of which is compiled once and
    kept, padding fills the number of tokens up to a multiple of 16 (64 from 1,024 tokens on), and texts of one length
    are taken 1, 2, 4, 8, … at a time. A batch without padding stays as it is.

    Args:
        mask: [B, L], 0 at padding.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        self.shape = mask.shape
        self.index: torch.Tensor | None = None
        real = mask > 0
        lengths, order = real.sum(1).sort(stable=True)
        found, counts = lengths.unique_consecutive(return_counts=True)
        self.texts: list[Texts] = []
        self.real = 0  # tokens, the first ones of all
        for length, count in zip(found.tolist(), counts.tolist(), strict=True):
            while count:
                some = 1 << (count.bit_length() - 1)
                self.texts.append(Texts(self.real, some, length))
                self.real += some * length
                count -= some
        if self.real < mask.numel():
            rows, columns = real[order].nonzero(as_tuple=True)
            multiple = 16 if self.real < 1024 else 64
            spare = torch.nonzero(~real.reshape(-1))[: -self.real % multiple, 0]
            self.index = torch.cat([order[rows] * mask.shape[1] + columns, spare])

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """[B, L, ...] -> [1, T, ...]."""
        rows = padded.flatten(0, 1)
        return (rows if self.index is None else _Take.apply(rows, self.index))[None]

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """[1, T, ...] -> [B, L, ...], 0 at tokens that were not computed."""
        rows = packed[0]
        return (rows if self.index is None else _Put.apply(rows, self.index, self.shape.numel())).unflatten(
            0, self.shape
        )


class _Take(torch.autograd.Function):
    """Selected rows, each at most once, so that no gradients have to be summed."""

    @staticmethod
    def forward(context: Any, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(index)
        context.count = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (index,), (gradient,) = context.saved_tensors, gradients
        return gradient.new_zeros(context.count, *gradient.shape[1:]).index_copy_(0, index, gradient), None


class _Put(torch.autograd.Function):
    """The inverse: the rows at their places among `count`, 0 elsewhere."""

    @staticmethod
    def forward(context: Any, rows: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
        context.save_for_backward(index)
        return rows.new_zeros(count, *rows.shape[1:]).index_copy_(0, index, rows)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (index,), (gradient,) = context.saved_tensors, gradients
        return gradient.index_select(0, index), None, None


_packing: ContextVar[Packing | None] = ContextVar("packing", default=None)


def current_packing() -> Packing | None:
    """The packing of the batch that is computed now, inside `packed`."""
    return _packing.get()


def use_packing(model: Any) -> None:
    """Prepare a model that is built like BERT and uses kdbert's attention for `packed`; then `use_packed_layers`."""
    model.can_pack = True
    embeddings = model.base_model.embeddings
    embeddings.forward = types.MethodType(_embeddings_forward, embeddings)


@contextlib.contextmanager
def packed(model: Any, mask: torch.Tensor) -> Iterator[Packing | None]:
    """Inside, a model prepared by `use_packing` computes only real tokens between embeddings and head.

    Its hidden states are then [1, T, H], except those of the last layer: `Packing.unpack` pads them again.

    Args:
        mask: [B, L] of the batch.

    Yields:
        None if nothing is packed: another model or device.
    """
    packing = Packing(mask) if by_device(mask.device).packing and getattr(model, "can_pack", False) else None
    token = _packing.set(packing)
    try:
        yield packing
    finally:
        _packing.reset(token)


def _embeddings_forward(
    self: Any,
    input_ids: torch.Tensor | None = None,
    token_type_ids: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    past_key_values_length: int = 0,
) -> torch.Tensor:
    """Replaces the embeddings' `forward`: -> [B, L, E], or [1, T, E] inside `packed`."""
    packing = _packing.get()
    if packing is not None and input_ids is not None:
        if position_ids is None:
            numbered = getattr(self, "create_position_ids_from_input_ids", None)  # of RoBERTa and its kin
            counted = self.position_ids[:, : input_ids.shape[1]]
            position_ids = counted if numbered is None else numbered(input_ids, self.padding_idx)
        position_ids = packing.pack(position_ids.expand(input_ids.shape))
        token_type_ids = None if token_type_ids is None else packing.pack(token_type_ids)
        input_ids = packing.pack(input_ids)
    found: torch.Tensor = type(self).forward(
        self, input_ids, token_type_ids, position_ids, inputs_embeds, past_key_values_length
    )
    return found
