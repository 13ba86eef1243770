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
class Setting:
    """What a layer computes with, besides parameters."""

    cast: list[torch.Tensor]  # see `_weights`
    packing: Packing
    heads: int
    units: int  # of a head
    epsilons: tuple[float, float]  # of its two layer norms
    rates: tuple[float, float, float]  # of dropout: attention weights, behind attention, at the end
    fast_dropout: bool

    def keep(self, like: torch.Tensor, rate: float) -> torch.Tensor | None:
        """What dropout multiplies by; None without dropout."""
        if not rate:
            return None
        return draw_keep(like.shape, rate, like.dtype) if self.fast_dropout else F.dropout(torch.ones_like(like), rate)


def setting_of(layer: Any, rows: torch.Tensor, packing: Packing) -> tuple[Setting, list[torch.Tensor]]:
    """What a layer computes with on such rows, and its parameters: weight and bias of query, key, value, the three
    other linear layers, the two layer norms.
    """
    own, first, last = layer.attention.self, layer.attention.output, layer.output
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else rows.dtype
    linear = (own.query, own.key, own.value, first.dense, layer.intermediate.dense, last.dense)
    setting = Setting(
        _weights(linear, id(layer), dtype), packing, own.num_attention_heads, own.attention_head_size,
        (first.LayerNorm.eps, last.LayerNorm.eps),
        (own.dropout.p, first.dropout.p, last.dropout.p) if layer.training else (0.0, 0.0, 0.0),
        isinstance(own.dropout, FastDropout),
    )  # fmt: skip
    return setting, [one for part in (*linear, first.LayerNorm, last.LayerNorm) for one in (part.weight, part.bias)]


def _compute(layer: Any, hidden_states: torch.Tensor, packing: Packing) -> torch.Tensor:
    """The layer's output [1, T, H]; hands out queries, keys and values where they are wanted."""
    setting, parameters = setting_of(layer, hidden_states, packing)
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

    def __init__(self, setting: Setting) -> None:
        self.packing, self.heads, self.units = setting.packing, setting.heads, setting.units

    def by_head(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [T + 1, parts * heads * units], the last of which lies at padding -> a row that `groups` takes apart."""
        parts = rows.shape[1] // (self.heads * self.units)
        order, _ = self.packing.by_head(parts, self.heads)
        return rows.view(-1, self.units).index_select(0, order).view(-1)

    def groups(self, row: torch.Tensor) -> list[torch.Tensor]:
        """Views: [parts, count * heads, length, units] of each group."""
        parts = row.numel() // (self.packing.places * self.heads * self.units)
        found, width = [], parts * self.heads * self.units
        for texts in self.packing.texts:
            own = row[texts.start * width : (texts.start + texts.count * texts.length) * width]
            found.append(own.view(parts, texts.count * self.heads, texts.length, self.units))
        return found

    def by_token(self, row: torch.Tensor) -> torch.Tensor:
        """The inverse of `by_head`: [T, parts * heads * units], 0 at padding."""
        parts = row.numel() // (self.packing.places * self.heads * self.units)
        _, inverse = self.packing.by_head(parts, self.heads)
        found = row.view(-1, self.units).index_select(0, inverse).view(self.packing.count, -1)
        found[self.packing.real :] = 0
        return found

    def weights(self, row: torch.Tensor) -> list[torch.Tensor]:
        """Views of a row of attention weights: [count * heads, length, length] of each group."""
        each = zip(row.split(self.sizes), self.packing.texts, strict=True)
        return [part.view(-1, texts.length, texts.length) for part, texts in each]

    @property
    def sizes(self) -> list[int]:
        """How many attention weights each group has."""
        return [texts.count * self.heads * texts.length**2 for texts in self.packing.texts]

    def forward(
        self, states: torch.Tensor, setting: Setting
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Of queries, keys and values [T + 1, 3 H], the last row 0: the result [T, H]; the three by head; the attention
        weights, what dropout multiplies them by (None), and what that gives.
        """
        by_head = self.by_head(states)
        shares = states.new_empty(sum(self.sizes))
        for (query, key, _), share, texts in zip(
            self.groups(by_head), self.weights(shares), self.packing.texts, strict=True
        ):
            torch.baddbmm(share, query, key.transpose(1, 2), beta=0, alpha=self.units**-0.5, out=share)
            if texts.padding is not None:
                share.unflatten(0, (texts.count, -1)).masked_fill_(texts.padding, torch.finfo(share.dtype).min)
            torch.softmax(share, -1, out=share)
        keep = setting.keep(shares, setting.rates[0])
        dropped = shares if keep is None else shares * keep
        mixed = states.new_empty(self.packing.places * self.heads * self.units)
        for (_, _, value), share, (into,) in zip(
            self.groups(by_head), self.weights(dropped), self.groups(mixed), strict=True
        ):
            torch.bmm(share, value, out=into)
        return self.by_token(mixed), by_head, shares, keep, dropped

    def backward(
        self,
        gradient: torch.Tensor,
        by_head: torch.Tensor,
        shares: torch.Tensor,
        keep: torch.Tensor | None,
        dropped: torch.Tensor,
    ) -> torch.Tensor:
        """The gradient of the states [T, 3 H], by that of its result [T + 1, H], the last row 0."""
        upstream = self.groups(self.by_head(gradient))
        for_shares = torch.empty_like(shares)
        for (up,), (_, _, value), into in zip(upstream, self.groups(by_head), self.weights(for_shares), strict=True):
            torch.bmm(up, value.transpose(1, 2), out=into)
        if keep is not None:
            for_shares *= keep
        found = torch.empty_like(by_head)
        each = zip(
            upstream, self.groups(by_head), self.weights(shares), self.weights(dropped), self.weights(for_shares),
            self.groups(found), strict=True,
        )  # fmt: skip
        for (up,), (query, key, _), share, drop, for_share, (for_query, for_key, for_value) in each:
            for_scores = torch._softmax_backward_data(for_share, share, -1, share.dtype)
            scale = self.units**-0.5
            torch.baddbmm(for_query, for_scores, key, beta=0, alpha=scale, out=for_query)
            torch.baddbmm(for_key, for_scores.transpose(1, 2), query, beta=0, alpha=scale, out=for_key)
            torch.bmm(drop.transpose(1, 2), up, out=for_value)
        return self.by_token(found)


def behind_attention(
    rows: torch.Tensor, mixed: torch.Tensor, setting: Setting, norms: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """The rest of a layer, and what its backward pass needs.

    Args:
        rows: the layer's input [N, H]. mixed: attention's result [N, H].
        norms: weight and bias of the two layer norms.
    """
    _, _, out, out_bias, up, up_bias, down, down_bias = setting.cast
    gain_1, shift_1, gain_2, shift_2 = norms
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
    return output, [mixed, keep_1, sum_1, *norm_1, narrow_middle, before, inner, keep_2, sum_2, *norm_2]


def behind_attention_backward(
    gradient: torch.Tensor,
    saved: Sequence[torch.Tensor],
    cast: Sequence[torch.Tensor],
    norms: Sequence[torch.Tensor],
    wanted: Sequence[bool],
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor | None]]:
    """The gradients of `rows`, and of attention's result times its matrix, by that of the output.

    Args:
        saved: see `behind_attention`. cast: `Setting.cast`, out of the saved tensors, which notices a weight that was
            changed since.
        wanted: which of the ten parameters' gradients, the third result, are computed; the others are None.
    """
    mixed, keep_1, sum_1, mean_1, scale_1, narrow_middle, before, inner, keep_2, sum_2, mean_2, scale_2 = saved
    _, _, out, _, up, _, down, _ = cast
    gain_1, shift_1, gain_2, shift_2 = norms
    for_sum, *for_norm_2 = torch.ops.aten.native_layer_norm_backward(
        gradient.contiguous(), sum_2, gain_2.shape, mean_2, scale_2, gain_2, shift_2, (True, *wanted[8:10])
    )
    for_fed = kept(for_sum, keep_2, down.dtype)
    for_down = for_linear(for_fed, inner, wanted[4:6])
    for_before = torch.ops.aten.gelu_backward(for_fed @ down, before)
    for_up = for_linear(for_before, narrow_middle, wanted[2:4])
    for_sum, *for_norm_1 = torch.ops.aten.native_layer_norm_backward(
        product_added(for_sum, for_before, up), sum_1, gain_1.shape, mean_1, scale_1, gain_1, shift_1,
        (True, *wanted[6:8]),
    )  # fmt: skip
    for_attended = kept(for_sum, keep_1, out.dtype)
    for_out = for_linear(for_attended, mixed, wanted[0:2])
    return for_sum, for_attended, [*for_out, *for_up, *for_down, *for_norm_1, *for_norm_2]


class _Layer(torch.autograd.Function):
    """Rows [T, H] -> rows [T, H]; and, if wanted, queries, keys and values [T, 3 H], else None."""

    @staticmethod
    def forward(
        context: Any, rows: torch.Tensor, setting: Setting, wanted: bool, *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        joined, joined_bias = setting.cast[:2]
        narrow = rows.to(joined.dtype)
        states = _with_padding(narrow, joined)
        torch.addmm(joined_bias, narrow, joined.t(), out=states[:-1])
        attention = _Attention(setting)
        mixed, *of_attention = attention.forward(states, setting)
        output, behind = behind_attention(rows, mixed, setting, parameters[-4:])
        context.set_materialize_grads(False)
        context.attention = attention
        context.save_for_backward(*setting.cast, *parameters[-4:], narrow, *of_attention, *behind)
        return output, states[:-1] if wanted else None

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        saved = context.saved_tensors
        cast, norms, (narrow, by_head, shares, keep, dropped, *behind) = saved[:8], saved[8:12], saved[12:]
        joined, out = cast[0], cast[2]
        wanted = context.needs_input_grad[3:]
        for_output, for_states = gradients
        for_parameters: list[torch.Tensor | None] = [None] * 10  # of those behind attention
        for_rows: torch.Tensor | None = None
        if for_output is not None:  # else only queries, keys and values are read
            for_rows, for_attended, for_parameters = behind_attention_backward(
                for_output, behind, cast, norms, wanted[6:]
            )
            for_mixed = _with_padding(for_attended, out.t())
            torch.mm(for_attended, out, out=for_mixed[:-1])
            through = context.attention.backward(for_mixed, by_head, shares, keep, dropped)
            for_states = through if for_states is None else through.add_(for_states)
        if for_states is None:
            return (None,) * len(context.needs_input_grad)
        for_weight, for_bias = for_linear(for_states, narrow, (any(wanted[0:6:2]), any(wanted[1:6:2])))
        weights = (None,) * 3 if for_weight is None else for_weight.chunk(3)
        biases = (None,) * 3 if for_bias is None else for_bias.chunk(3)
        for_rows = product_added(for_rows, for_states, joined) if context.needs_input_grad[0] else None
        each = [one for pair in zip(weights, biases, strict=True) for one in pair]
        return for_rows, None, None, *each, *for_parameters


def _with_padding(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Room for rows [T, I] times a matrix [O, I] transposed, and behind it a row of 0, for padding: [T + 1, O]."""
    found = rows.new_empty(len(rows) + 1, len(matrix))
    found[-1] = 0
    return found


def _dropped_and_added(rows: torch.Tensor, part: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """rows + part * keep, in the type of the rows."""
    if keep is None:
        return rows + part
    return torch.addcmul(rows, part, keep) if rows.dtype == part.dtype else rows + part * keep


def kept(gradient: torch.Tensor, keep: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """gradient * keep, in the type of the products."""
    narrow = gradient.to(dtype)
    return narrow if keep is None else narrow * keep


def product_added(rows: torch.Tensor | None, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """rows + first @ second, in the type of the rows."""
    if rows is None:
        return first @ second
    return torch.addmm(rows, first, second) if rows.dtype == first.dtype else rows + first @ second


def for_linear(
    gradient: torch.Tensor, rows: torch.Tensor, wanted: Sequence[bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of a linear layer's weight and bias."""
    return gradient.t() @ rows if wanted[0] else None, gradient.sum(0) if wanted[1] else None
