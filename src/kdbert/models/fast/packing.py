"""Packing: between embeddings and head, only real tokens are computed, no padding."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch

from kdbert.derivatives import once_differentiable
from kdbert.devices import by_device


class Packing:
    """Which tokens of a padded batch are computed: the real ones, and a few of padding.

    Args:
        mask: [B, L], 0 at padding. Padding fills the number of tokens up to a multiple of 16 (64 from 1,024 tokens
            on), so that matrix products have few different shapes, each of which is compiled once.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        self.shape = mask.shape
        real = mask.reshape(-1) > 0
        count = int(real.sum())
        multiple = 16 if count < 1024 else 64
        spare = torch.nonzero(~real)[: -count % multiple, 0]
        self.index = torch.cat([torch.nonzero(real)[:, 0], spare])

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """[B, L, ...] -> [1, T, ...]."""
        return _Take.apply(padded.flatten(0, 1), self.index)[None]

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """[1, T, ...] -> [B, L, ...], 0 at tokens that were not computed."""
        return _Put.apply(packed[0], self.index, self.shape.numel()).unflatten(0, self.shape)


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
    """Prepare a model that is built like BERT and uses kdbert's attention for `packed`."""
    model.can_pack = True
    embeddings, layer = model.base_model.embeddings, model.base_model.encoder.layer[-1]
    embeddings.forward = types.MethodType(_embeddings_forward, embeddings)
    layer.forward = types.MethodType(last_layer_forward, layer)


@contextlib.contextmanager
def packed(model: Any, mask: torch.Tensor, on: bool = True) -> Iterator[Packing | None]:
    """Inside, a model prepared by `use_packing` computes only real tokens between embeddings and head.

    Its hidden states are then [1, T, H], except those of the last layer: `Packing.unpack` pads them again.

    Args:
        mask: [B, L] of the batch.
        on: False changes nothing.

    Yields:
        None if nothing is packed: another model or device, or no padding to skip.
    """
    packing = Packing(mask) if on and by_device(mask.device).packing and getattr(model, "can_pack", False) else None
    if packing is not None and len(packing.index) == mask.numel():
        packing = None
    token = _packing.set(packing)
    try:
        yield packing
    finally:
        _packing.reset(token)


def _embeddings_forward(self: Any, *args: Any, **options: Any) -> torch.Tensor:
    """Replaces the embeddings' `forward`: -> [B, L, E], or [1, T, E] inside `packed`."""
    found: torch.Tensor = type(self).forward(self, *args, **options)
    packing = _packing.get()
    return found if packing is None else packing.pack(found)


def last_layer_forward(self: Any, hidden_states: torch.Tensor, *args: Any, **options: Any) -> Any:
    """Replaces the last layer's `forward`: [B, L, H], or [1, T, H] inside `packed`, -> [B, L, H]."""
    found = type(self).forward(self, hidden_states, *args, **options)
    packing = _packing.get()
    return found if packing is None else packing.unpack(found)
