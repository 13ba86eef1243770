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

# Texts at once: few numbers, since the compiled products of each size are kept (docs/speed.md).
COUNTS = (1, 2, 4, 8, 12, 16)


@dataclass(frozen=True)
class Texts:
    """Texts of about one length: attention pads them to one, and works on all of them at once.

    Attributes:
        start: place of the first slot among those of all texts, padding included.
        count: one of `COUNTS`; the last ones may be nobody's.
        length: slots of each text, a multiple of 8.
        padding: [count, 1, 1, length], True at slots without a token; None: there are none.
    """

    start: int
    count: int
    length: int
    padding: torch.Tensor | None


class Packing:
    """Which tokens of a padded batch are computed, and in which order: the real ones, and a few of padding.

    Shorter texts come first. So that matrix products have few different shapes, each of which is compiled once and
    kept, padding fills the number of tokens up to a multiple of 16 (64 from 1,024 tokens on). A batch without padding
    stays as it is.

    Args:
        mask: [B, L], 0 at padding.

    Attributes:
        real: how many tokens are real, the first ones of all.
        lengths: int64 [B], real tokens of each text. first: int64 [B], the token that it begins with.
        texts: for attention, all texts, a few of like length at a time.
        places: how many slots these have.
        count: T, how many tokens are computed.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        self.shape = mask.shape
        self.index: torch.Tensor | None = None
        is_real = mask > 0
        self.lengths = is_real.sum(1)
        lengths, order = self.lengths.sort(stable=True)
        self.real = int(lengths.sum())
        self.first = torch.empty_like(order)
        self.first[order] = lengths.cumsum(0) - lengths
        if self.real < mask.numel():
            rows, columns = is_real[order].nonzero(as_tuple=True)
            multiple = 16 if self.real < 1024 else 64
            spare = torch.nonzero(~is_real.reshape(-1))[: -self.real % multiple, 0]
            self.index = torch.cat([order[rows] * mask.shape[1] + columns, spare])
        self.texts = _alike(lengths)
        self.places = sum(texts.count * texts.length for texts in self.texts)
        self.count = mask.numel() if self.index is None else len(self.index)
        self._orders: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """[B, L, ...] -> [1, T, ...]."""
        rows = padded.flatten(0, 1)
        return (rows if self.index is None else _Take.apply(rows, self.index))[None]

    def by_head(self, parts: int, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The order of tokens' `parts` (such as query, key and value) in attention: text by text, of each head.

        Returns:
            For each group of texts [parts, count, heads, length], group behind group, the row of [T + 1, parts, heads]
            that lies there; row T, which is nobody's, at slots without a token: int64 [places * parts * heads]. And the
            inverse, int64 [T * parts * heads].
        """
        if (parts, heads) not in self._orders:
            order, token = [], 0
            offsets = torch.arange(parts)[:, None, None, None] * heads + torch.arange(heads)[:, None]
            for texts in self.texts:
                tokens = torch.full((texts.count, 1, texts.length), self.count)
                filled = torch.ones_like(tokens) > 0 if texts.padding is None else ~texts.padding[:, 0]
                number = int(filled.sum())
                tokens[filled] = torch.arange(token, token + number)
                order.append((tokens * (parts * heads) + offsets).reshape(-1))
                token += number
            found = torch.cat(order)
            inverse = found.new_zeros((self.count + 1) * parts * heads)
            inverse[found] = torch.arange(len(found))
            self._orders[parts, heads] = found, inverse[: -parts * heads]
        return self._orders[parts, heads]

    def side_by_side(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All texts padded to one length L, a multiple of 16 (few lengths, see `COUNTS`).

        Returns:
            The token at each place, T at padding: int64 [B, L]. And the inverse, each token's place: int64 [T].
        """
        places = torch.arange(-(-int(self.lengths.max()) // 16) * 16)
        tokens = torch.where(places < self.lengths[:, None], self.first[:, None] + places, self.count)
        inverse = tokens.new_zeros(self.count + 1)
        inverse[tokens.reshape(-1)] = torch.arange(tokens.numel())
        return tokens, inverse[:-1]

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """[1, T, ...] -> [B, L, ...], 0 at tokens that were not computed."""
        rows = packed[0]
        return (rows if self.index is None else _Put.apply(rows, self.index, self.shape.numel())).unflatten(
            0, self.shape
        )


def _alike(lengths: torch.Tensor) -> list[Texts]:
    """Texts in groups of like length; lengths ascend."""
    groups: list[list[int]] = []
    for length in lengths.tolist():
        if not groups or len(groups[-1]) == COUNTS[-1] or length > 1.25 * groups[-1][0] + 8:
            groups.append([])
        groups[-1].append(length)
    found, start = [], 0
    for group in groups:
        width = -(-group[-1] // 8) * 8
        count = next(count for count in COUNTS if count >= len(group))
        filled = torch.tensor(group + [0] * (count - len(group)))
        padding = torch.arange(width) >= filled[:, None]
        found.append(Texts(start, count, width, padding[:, None, None] if int(filled.min()) < width else None))
        start += count * width
    return found


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
