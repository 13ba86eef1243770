"""Queries, keys and values of chosen layers, taken in the forward pass where the library calls its attention function.

Every type whose line in `kdbert.models.architectures` says `attention` calls that function once a layer, in order.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch

from kdbert.models.fast.packing import current_packing


class _Capture:
    """What is wanted of a forward pass, and what has been found so far."""

    def __init__(self, kinds: Mapping[int, str]) -> None:
        self.kinds = kinds
        self.found: dict[int, dict[str, torch.Tensor]] = {}
        self.layer = 0  # the last one that was seen

    @property
    def wants_next(self) -> bool:
        """Whether something of the next layer is wanted."""
        return self.layer + 1 in self.kinds

    def see(self, states: Callable[[str], torch.Tensor]) -> None:
        """The next layer's states [B, heads, L, units], by kind; of those that are not wanted none are made."""
        self.layer += 1
        if self.layer in self.kinds:
            self.found[self.layer] = {kind: _padded(states(kind)) for kind in self.kinds[self.layer]}


_capture: ContextVar[_Capture | None] = ContextVar("capture", default=None)


@contextlib.contextmanager
def captured(model: Any, kinds: Mapping[int, str]) -> Iterator[dict[int, dict[str, torch.Tensor]]]:
    """Inside, a forward pass of the model also hands out what its attention reads.

    Args:
        kinds: layer, from 1 -> which of q, k, v are wanted.

    Yields:
        layer -> kind -> [B, heads, L, units], filled by the pass, with gradients where it has them. Queries and keys
        are those that the scores q k^T / sqrt(units) are made of: of a model with rotary positions, the rotated ones.
        Where several heads share a key, each has a copy. Values at padding are arbitrary.
    """
    capture = _Capture(kinds)
    if not kinds:
        yield capture.found
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = model.config._attn_implementation
    usual = ALL_ATTENTION_FUNCTIONS.get(name)  # of `eager` there is none: each file of models has its own

    def capturing(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **options: Any
    ) -> Any:
        scaling, units = options.get("scaling"), query.shape[-1]
        in_scores = 1.0 if scaling is None else scaling * math.sqrt(units)  # ESM scales its queries beforehand
        states = {"q": query if math.isclose(in_scores, 1) else query * in_scores, "k": key, "v": value}
        capture.see(lambda kind: _of_each_head(states[kind], query.shape[1]))
        compute = usual or sys.modules[type(module).__module__].eager_attention_forward
        return compute(module, query, key, value, *args, **options)

    ALL_ATTENTION_FUNCTIONS[name] = capturing
    token = _capture.set(capture)
    try:
        yield capture.found
    finally:
        _capture.reset(token)
        del ALL_ATTENTION_FUNCTIONS[name]


def current_capture() -> _Capture | None:
    """What is wanted of the forward pass that runs now, for a layer that does without the attention function."""
    return _capture.get()


def capture_without_attention(own: Any, hidden_states: torch.Tensor) -> None:
    """For a layer like BERT's that makes no states itself (`first_token`): what is wanted is projected.

    Args:
        own: its self-attention. hidden_states: [B, L, H], or [1, T, H] inside `packed`.
    """
    capture, units = _capture.get(), own.attention_head_size
    if capture is not None:
        projections = {"q": own.query, "k": own.key, "v": own.value}
        capture.see(lambda kind: projections[kind](hidden_states).unflatten(-1, (-1, units)).transpose(1, 2))


def _of_each_head(states: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, shared heads, L, units] -> [B, heads, L, units]."""
    return states if states.shape[1] == heads else states.repeat_interleave(heads // states.shape[1], 1)


def _padded(states: torch.Tensor) -> torch.Tensor:
    """[1, heads, T, units] inside `packed` -> [B, heads, L, units]."""
    packing = current_packing()
    return states if packing is None else packing.unpack(states.transpose(1, 2)).transpose(1, 2)
