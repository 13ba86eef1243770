"""An encoder layer as one autograd function, for models that are built like BERT.

Inside `packed` the rows are a batch's real tokens. Only attention looks at whole texts: a few of like length at a time,
padded to one length (a step has so many small operations that fewer, larger ones are faster, though they compute more).
One product gives queries, keys and values; dropout and addition are one step; products add the gradients that meet.

Under autocast products, GELU and attention are in its type; additions, layer norms and what comes out are in the type
of the input, float32.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kdbert.derivatives import once_differentiable
from kdbert.models.fast.capture import current_capture
from kdbert.models.fast.dropout import FastDropout, draw_keep
from kdbert.models.fast.packing import Packing, current_packing


def use_packed_layers(model: Any, fused: bool) -> None:
    """Prepare the layers of a model for `packed`; after `use_packing`.

    Args:
        fused: each is computed as one autograd function. The model's activation must be `gelu`.
    """
    layers = model.base_model.encoder.layer
    for layer in layers:
        layer.fused = fused
        layer.forward = types.MethodType(layer_forward, layer)
    layers[-1].forward = types.MethodType(last_layer_forward, layers[-1])


def layer_forward(self: Any, hidden_states: torch.Tensor, *args: Any, **options: Any) -> Any:
    """Replaces a layer's `forward`: [B, L, H] -> [B, L, H], or [1, T, H] -> [1, T, H] inside `packed`."""
    packing = current_packing()
    if packing is None or not getattr(self, "fused", False):
        return type(self).forward(self, hidden_states, *args, **options)
    return _compute(self, hidden_states, packing)


def last_layer_forward(self: Any, hidden_states: torch.Tensor, *args: Any, **options: Any) -> Any:
    """Replaces the last layer's `forward`: [B, L, H], or [1, T, H] inside `packed`, -> [B, L, H]."""
    found = layer_forward(self, hidden_states, *args, **options)
    packing = current_packing()
    return found if packing is None else packing.unpack(found)


_cast: ContextVar[dict[tuple[int, torch.dtype], list[torch.Tensor]] | None] = ContextVar("cast", default=None)


@contextlib.contextmanager
def weights_cast_once() -> Iterator[None]:
    """Inside, as long as no gradients are asked for, no weight may change: each layer's are cast and joined once."""
    token = _cast.set({})
    try:
        yield
    finally:
        _cast.reset(token)


def _weights(linear: Sequence[nn.Linear], key: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Weights and biases of query, key and value joined, then those of the other linear layers, in one type."""
    kept = None if torch.is_grad_enabled() else _cast.get()
    if kept is not None and (key, dtype) in kept:
        return kept[key, dtype]
    parts = [(layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)) for layer in linear]
    found = [torch.cat(part) for part in zip(*parts[:3], strict=True)] + [one for part in parts[3:] for one in part]
    if kept is not None:
        kept[key, dtype] = found
    return found


@dataclass(frozen=True)
class _Setting:
    """What a layer computes with, besides parameters."""

    cast: list[torch.Tensor]  # see `_weights`
    packing: Packing
    heads: int
    epsilons: tuple[float, float]  # of its two layer norms
    rates: tuple[float, float, float]  # of dropout: attention weights, behind attention, at the end
    fast_dropout: bool

    def keep(self, like: torch.Tensor, rate: float) -> torch.Tensor | None:
        """What dropout multiplies by; None without dropout."""
        if not rate:
            return None
        return draw_keep(like.shape, rate, like.dtype) if self.fast_dropout else F.dropout(torch.ones_like(like), rate)


def _compute(layer: Any, hidden_states: torch.Tensor, packing: Packing) -> torch.Tensor:
    """The layer's output [1, T, H]; hands out queries, keys and values where they are wanted."""
    own, first, last = layer.attention.self, layer.attention.output, layer.output
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden_states.dtype
    linear = (own.query, own.key, own.value, first.dense, layer.intermediate.dense, last.dense)
    setting = _Setting(
        _weights(linear, id(layer), dtype), packing, own.num_attention_heads,
        (first.LayerNorm.eps, last.LayerNorm.eps),
        (own.dropout.p, first.dropout.p, last.dropout.p) if layer.training else (0.0, 0.0, 0.0),
        isinstance(own.dropout, FastDropout),
    )  # fmt: skip
    parameters = [one for part in (*linear, first.LayerNorm, last.LayerNorm) for one in (part.weight, part.bias)]
    capture = current_capture()
    wanted = capture is not None and capture.wants_next
    with torch.autocast("cpu", enabled=False):
        output, states = _Layer.apply(hidden_states[0], setting, wanted, *parameters)
    if capture is not None:
        parts = dict(zip("qkv", () if states is None else states.chunk(3, 1), strict=False))
        capture.see(lambda kind: parts[kind].unflatten(1, (setting.heads, -1)).transpose(0, 1)[None])
    return output[None]


class _Attention:
    """Attention within each text, forward and backward.

    Queries, keys and values lie by head, those of texts of like length together ([3, count * heads, length, units]);
    so do attention weights ([count * heads, length, length]). All groups are in one row, so that what is done alike to
    all is done at once.
    """

    def __init__(self, packing: Packing, heads: int, units: int) -> None:
        self.packing, self.heads, self.units = packing, heads, units

    def by_head(self, slots: torch.Tensor) -> torch.Tensor:
        """[slots, parts * heads * units] -> a row that `groups` takes apart."""
        found = torch.empty_like(slots).view(-1)
        for group, own in zip(self.groups(found), self.slots(slots), strict=True):
            group.view(own.shape).copy_(own)
        return found

    def groups(self, row: torch.Tensor) -> list[torch.Tensor]:
        """Views: [parts, count * heads, length, units] of each group."""
        parts = row.numel() // (self.packing.places * self.heads * self.units)
        found, width = [], parts * self.heads * self.units
        for texts in self.packing.texts:
            own = row[texts.start * width : (texts.start + texts.count * texts.length) * width]
            found.append(own.view(parts, texts.count * self.heads, texts.length, self.units))
        return found

    def slots(self, slots: torch.Tensor) -> list[torch.Tensor]:
        """Views of the same order: [parts, count, heads, length, units] of each group."""
        found = []
        for texts in self.packing.texts:
            own = slots[texts.start : texts.start + texts.count * texts.length]
            found.append(own.view(texts.count, texts.length, -1, self.heads, self.units).permute(2, 0, 3, 1, 4))
        return found

    def by_token(self, row: torch.Tensor, count: int) -> torch.Tensor:
        """The inverse of `by_head`, of `count` tokens: [T, parts * heads * units]."""
        found = row.new_empty(self.packing.places, row.numel() // self.packing.places)
        for group, own in zip(self.groups(row), self.slots(found), strict=True):
            own.copy_(group.view(own.shape))
        return self.packing.gather(found, count)

    def weights(self, row: torch.Tensor) -> list[torch.Tensor]:
        """Views of a row of attention weights: [count * heads, length, length] of each group."""
        each = zip(row.split(self.sizes), self.packing.texts, strict=True)
        return [part.view(-1, texts.length, texts.length) for part, texts in each]

    @property
    def sizes(self) -> list[int]:
        """How many attention weights each group has."""
        return [texts.count * self.heads * texts.length**2 for texts in self.packing.texts]

    def forward(
        self, states: torch.Tensor, setting: _Setting
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Its result [T, H]; queries, keys and values by head; the attention weights, and what dropout multiplies them
        by (None).
        """
        by_head = self.by_head(self.packing.spread(states))
        shares = states.new_empty(sum(self.sizes))
        for (query, key, _), share, texts in zip(
            self.groups(by_head), self.weights(shares), self.packing.texts, strict=True
        ):
            torch.baddbmm(share, query, key.transpose(1, 2), beta=0, alpha=self.units**-0.5, out=share)
            if texts.padding is not None:
                share.unflatten(0, (texts.count, -1)).masked_fill_(texts.padding, torch.finfo(share.dtype).min)
            torch.softmax(share, -1, out=share)
        keep = setting.keep(shares, setting.rates[0])
        dropped = self.weights(shares if keep is None else shares * keep)
        mixed = states.new_empty(self.packing.places * self.heads * self.units)
        for (_, _, value), share, (into,) in zip(self.groups(by_head), dropped, self.groups(mixed), strict=True):
            torch.bmm(share, value, out=into)
        return self.by_token(mixed, len(states)), by_head, shares, keep

    def backward(
        self, gradient: torch.Tensor, by_head: torch.Tensor, shares: torch.Tensor, keep: torch.Tensor | None
    ) -> torch.Tensor:
        """The gradient of the states [T, 3 H], by that of its result."""
        upstream = self.groups(self.by_head(self.packing.spread(gradient)))
        dropped = self.weights(shares if keep is None else shares * keep)
        for_shares = torch.empty_like(shares)
        for (up,), (_, _, value), into in zip(upstream, self.groups(by_head), self.weights(for_shares), strict=True):
            torch.bmm(up, value.transpose(1, 2), out=into)
        if keep is not None:
            for_shares *= keep
        found = torch.empty_like(by_head)
        each = zip(
            upstream, self.groups(by_head), self.weights(shares), dropped, self.weights(for_shares),
            self.groups(found), strict=True,
        )  # fmt: skip
        for (up,), (query, key, _), share, drop, for_share, (for_query, for_key, for_value) in each:
            for_scores = torch._softmax_backward_data(for_share, share, -1, share.dtype)
            scale = self.units**-0.5
            torch.baddbmm(for_query, for_scores, key, beta=0, alpha=scale, out=for_query)
            torch.baddbmm(for_key, for_scores.transpose(1, 2), query, beta=0, alpha=scale, out=for_key)
            torch.bmm(drop.transpose(1, 2), up, out=for_value)
        return self.by_token(found, len(gradient))


class _Layer(torch.autograd.Function):
    """Rows [T, H] -> rows [T, H]; and, if wanted, queries, keys and values [T, 3 H], else None."""

    @staticmethod
    def forward(
        context: Any, rows: torch.Tensor, setting: _Setting, wanted: bool, *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        gain_1, shift_1, gain_2, shift_2 = parameters[-4:]
        joined, joined_bias, out, out_bias, up, up_bias, down, down_bias = setting.cast
        narrow = rows.to(joined.dtype)
        states = torch.addmm(joined_bias, narrow, joined.t())
        attention = _Attention(setting.packing, setting.heads, out.shape[1] // setting.heads)
        mixed, by_head, shares, keep = attention.forward(states, setting)
        attended = torch.addmm(out_bias, mixed, out.t())
        keep_1 = setting.keep(attended, setting.rates[1])
        sum_1 = _dropped_and_added(rows, attended, keep_1)
        middle, *norm_1 = torch.native_layer_norm(sum_1, gain_1.shape, gain_1, shift_1, setting.epsilons[0])
        narrow_middle = middle.to(up.dtype)
        before = torch.addmm(up_bias, narrow_middle, up.t())
        inner = F.gelu(before)
        fed = torch.addmm(down_bias, inner, down.t())
        keep_2 = setting.keep(fed, setting.rates[2])
        sum_2 = _dropped_and_added(middle, fed, keep_2)
        output, *norm_2 = torch.native_layer_norm(sum_2, gain_2.shape, gain_2, shift_2, setting.epsilons[1])
        context.set_materialize_grads(False)
        context.attention = attention
        context.save_for_backward(
            narrow, by_head, joined, out, up, down, shares, keep, mixed, keep_1, sum_1, *norm_1, gain_1, shift_1,
            narrow_middle, before, inner, keep_2, sum_2, *norm_2, gain_2, shift_2,
        )  # fmt: skip
        return output, states if wanted else None

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        (
            narrow, by_head, joined, out, up, down, shares, keep, mixed, keep_1, sum_1, mean_1, scale_1, gain_1,
            shift_1, narrow_middle, before, inner, keep_2, sum_2, mean_2, scale_2, gain_2, shift_2,
        ) = context.saved_tensors  # fmt: skip
        wanted = context.needs_input_grad[3:]
        for_output, for_states = gradients
        behind: list[torch.Tensor | None] = [None] * 10  # gradients of the parameters behind attention
        for_sum: torch.Tensor | None = None
        if for_output is not None:  # else only queries, keys and values are read
            for_sum, *for_norm_2 = torch.ops.aten.native_layer_norm_backward(
                for_output.contiguous(), sum_2, gain_2.shape, mean_2, scale_2, gain_2, shift_2, (True, *wanted[14:16])
            )
            for_fed = _kept(for_sum, keep_2, down.dtype)
            for_down = _for_linear(for_fed, inner, wanted[10:12])
            for_before = torch.ops.aten.gelu_backward(for_fed @ down, before)
            for_up = _for_linear(for_before, narrow_middle, wanted[8:10])
            for_sum, *for_norm_1 = torch.ops.aten.native_layer_norm_backward(
                _product_added(for_sum, for_before, up), sum_1, gain_1.shape, mean_1, scale_1, gain_1, shift_1,
                (True, *wanted[12:14]),
            )  # fmt: skip
            for_attended = _kept(for_sum, keep_1, out.dtype)
            for_out = _for_linear(for_attended, mixed, wanted[6:8])
            through = context.attention.backward(for_attended @ out, by_head, shares, keep)
            for_states = through if for_states is None else through.add_(for_states)
            behind = [*for_out, *for_up, *for_down, *for_norm_1, *for_norm_2]
        if for_states is None:
            return (None,) * len(context.needs_input_grad)
        for_weight, for_bias = _for_linear(for_states, narrow, (any(wanted[0:6:2]), any(wanted[1:6:2])))
        weights = (None,) * 3 if for_weight is None else for_weight.chunk(3)
        biases = (None,) * 3 if for_bias is None else for_bias.chunk(3)
        for_rows = _product_added(for_sum, for_states, joined) if context.needs_input_grad[0] else None
        each = [one for pair in zip(weights, biases, strict=True) for one in pair]
        return for_rows, None, None, *each, *behind


def _dropped_and_added(rows: torch.Tensor, part: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """rows + part * keep, in the type of the rows."""
    if keep is None:
        return rows + part
    return torch.addcmul(rows, part, keep) if rows.dtype == part.dtype else rows + part * keep


def _kept(gradient: torch.Tensor, keep: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """gradient * keep, in the type of the products."""
    narrow = gradient.to(dtype)
    return narrow if keep is None else narrow * keep


def _product_added(rows: torch.Tensor | None, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """rows + first @ second, in the type of the rows."""
    if rows is None:
        return first @ second
    return torch.addmm(rows, first, second) if rows.dtype == first.dtype else rows + first @ second


def _for_linear(
    gradient: torch.Tensor, rows: torch.Tensor, wanted: Sequence[bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of a linear layer's weight and bias."""
    return gradient.t() @ rows if wanted[0] else None, gradient.sum(0) if wanted[1] else None
