"""The last layer's output for the first token only, where the head reads nothing else."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import torch

from kdbert.derivatives import once_differentiable
from kdbert.models.fast.capture import capture_without_attention
from kdbert.models.fast.layer import (
    Setting,
    behind_attention,
    behind_attention_backward,
    for_linear,
    last_layer_forward,
    product_added,
    setting_of,
)
from kdbert.models.fast.packing import current_packing


def use_first_token(model: Any) -> None:
    """Prepare the last layer of a classifier built like BERT for `first_token_only`; after any `use_packed_layers`."""
    layer = model.base_model.encoder.layer[-1]
    layer.first_token_only = False
    layer.forward = types.MethodType(_forward, layer)


@contextlib.contextmanager
def first_token_only(model: Any, on: bool) -> Iterator[None]:
    """Inside, the last layer of a model prepared by `use_first_token` computes the first token only.

    Each of the layer's six matrices is multiplied by one token instead of all.
    """
    layers = getattr(getattr(model.base_model, "encoder", None), "layer", None)
    if not on or not layers or not hasattr(layers[-1], "first_token_only"):
        yield
        return
    layers[-1].first_token_only = True
    try:
        yield
    finally:
        layers[-1].first_token_only = False


def _forward(self: Any, hidden_states: torch.Tensor, *args: Any, **options: Any) -> Any:
    """Replaces the last `BertLayer.forward`: -> [B, L, H], or [B, 1, H] inside `first_token_only`.

    In eval mode the first token is computed the same way in both, so that a model's logits have the same bits whether
    or not the other tokens are read.
    """
    compute = _packed_first_token if _is_fused(self) else _first_token
    if self.first_token_only:
        capture_without_attention(self.attention.self, hidden_states)
        return compute(self, hidden_states, *args, **options)
    whole = last_layer_forward(self, hidden_states, *args, **options)
    if self.training:
        return whole
    return torch.cat([compute(self, hidden_states, *args, **options), whole[:, 1:]], 1)


def _is_fused(self: Any) -> bool:
    """Whether the layer is computed as one function now."""
    return current_packing() is not None and getattr(self, "fused", False)


def _first_token(self: Any, hidden_states: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """`BertLayer.forward` of the first token, [B, 1, H].

    For one query q, the scores q (x Wk)^T equal (q Wk^T) x^T, and the context p (x Wv) equals (p x) Wv. Computed in
    this order, no other token's key or value is needed.
    """
    packing = current_packing()
    if packing is not None:
        hidden_states = packing.unpack(hidden_states)
    own = self.attention.self
    mask = args[0] if args else options.get("attention_mask")
    first = hidden_states[:, :1]
    per_head = (own.num_attention_heads, own.attention_head_size)
    query = own.query(first).view(-1, *per_head) * own.scaling
    states = hidden_states.to(query.dtype)
    keys, values = (part.weight.view(*per_head, -1) for part in (own.key, own.value))
    asked = torch.matmul(query.transpose(0, 1), keys).transpose(0, 1)  # [B, heads, H]
    scores = torch.matmul(asked, states.transpose(1, 2))
    scores = scores + (query * own.key.bias.view(per_head)).sum(-1, keepdim=True)
    if mask is not None:
        mask = mask[:, :, 0]
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    shares = own.dropout(torch.softmax(scores, -1))
    context = torch.matmul(shares.to(query.dtype), states)  # [B, heads, H]
    attended = torch.matmul(context.transpose(0, 1), values.transpose(1, 2)).transpose(0, 1)
    attended = attended + shares.sum(-1, keepdim=True) * own.value.bias.view(per_head)
    output = self.attention.output(attended.reshape(len(first), 1, -1), first)
    return self.feed_forward_chunk(output)


def _packed_first_token(self: Any, hidden_states: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """The same of packed rows [1, T, H], as one autograd function: [B, 1, H]."""
    packing = current_packing()
    assert packing is not None
    setting, parameters = setting_of(self, hidden_states, packing)
    with torch.autocast("cpu", enabled=False):
        found: torch.Tensor = _FirstToken.apply(hidden_states[0], setting, *parameters)
    return found[:, None]


class _FirstToken(torch.autograd.Function):
    """Rows [T, H] -> the first token of each text behind the layer [B, H], as `_first_token` computes it.

    A key's bias adds one number to all scores of a query, which changes no share; so it is left out.
    """

    @staticmethod
    def forward(context: Any, rows: torch.Tensor, setting: Setting, *parameters: torch.Tensor) -> torch.Tensor:
        packing, heads, (joined, joined_bias, *_) = setting.packing, setting.heads, setting.cast
        ask, key, value = joined.chunk(3)
        ask_bias, _, value_bias = joined_bias.chunk(3)
        narrow = joined.new_empty(packing.count + 1, joined.shape[1])  # behind all tokens, a row for padding
        narrow[:-1] = rows
        narrow[-1] = 0
        tokens, inverse = packing.side_by_side()
        states = narrow.index_select(0, tokens.reshape(-1)).view(*tokens.shape, -1)  # [B, L, H]
        first, narrow_first = rows.index_select(0, packing.first), narrow.index_select(0, packing.first)
        query = _by_head(torch.addmm(ask_bias, narrow_first, ask.t()) * setting.units**-0.5, heads)
        asked = torch.bmm(query, key.unflatten(0, (heads, -1))).transpose(0, 1).contiguous()  # [B, heads, H]
        shares = torch.bmm(asked, states.mT)
        shares.masked_fill_((tokens == packing.count)[:, None], torch.finfo(shares.dtype).min)
        shares = torch.softmax(shares, -1)
        keep = setting.keep(shares, setting.rates[0])
        dropped = shares if keep is None else shares * keep
        read = torch.bmm(dropped, states).transpose(0, 1).contiguous()  # [heads, B, H]
        left = dropped.sum(-1).t().unsqueeze(-1)  # [heads, B, 1], of each query's shares, which dropout changes
        mixed = torch.baddbmm(
            left * value_bias.view(heads, 1, -1), read, value.unflatten(0, (heads, -1)).transpose(1, 2)
        )
        mixed = mixed.transpose(0, 1).flatten(1)
        output, behind = behind_attention(first, mixed, setting, parameters[-4:])
        context.setting = setting
        context.save_for_backward(
            *setting.cast, *parameters[-4:], inverse, states, narrow_first, query, asked, shares, keep, dropped, read,
            left, *behind,
        )  # fmt: skip
        return output

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved, setting, wanted = context.saved_tensors, context.setting, context.needs_input_grad[2:]
        cast, norms = saved[:8], saved[8:12]
        inverse, states, narrow_first, query, asked, shares, keep, dropped, read, left, *behind = saved[12:]
        packing, heads = setting.packing, setting.heads
        ask, key, value = cast[0].chunk(3)
        value_bias = cast[1].chunk(3)[2]
        for_first, for_attended, for_behind = behind_attention_backward(gradients[0], behind, cast, norms, wanted[6:])
        for_mixed = _by_head(for_attended @ cast[2], heads)
        for_read = torch.bmm(for_mixed, value.unflatten(0, (heads, -1))).transpose(0, 1).contiguous()  # [B, heads, H]
        for_left = torch.bmm(for_mixed, value_bias.view(heads, -1, 1)).transpose(0, 1)  # [B, heads, 1]
        for_shares = torch.baddbmm(for_left, for_read, states.mT)
        if keep is not None:
            for_shares *= keep
        for_scores = torch._softmax_backward_data(for_shares, shares, -1, shares.dtype)
        for_asked = torch.bmm(for_scores, states).transpose(0, 1)  # [heads, B, H]
        for_query = torch.bmm(for_asked, key.unflatten(0, (heads, -1)).transpose(1, 2)) * setting.units**-0.5
        for_query = for_query.transpose(0, 1).flatten(1)
        for_rows = None
        if context.needs_input_grad[0]:
            for_states = torch.bmm(for_scores.mT, asked).baddbmm_(dropped.mT, for_read).flatten(0, 1)
            for_rows = for_states.index_select(0, inverse).to(gradients[0].dtype)
            for_rows[packing.real :] = 0
            for_rows.index_add_(0, packing.first, product_added(for_first, for_query, ask))
        for_ask = for_linear(for_query, narrow_first, wanted[0:2])
        for_key = torch.bmm(query.transpose(1, 2), for_asked).flatten(0, 1) if wanted[2] else None
        for_value = torch.bmm(for_mixed.transpose(1, 2), read).flatten(0, 1) if wanted[4] else None
        for_value_bias = (for_mixed * left).sum(1).flatten() if wanted[5] else None
        key_bias = torch.zeros_like(value_bias) if wanted[3] else None
        return for_rows, None, *for_ask, for_key, key_bias, for_value, for_value_bias, *for_behind


def _by_head(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, heads * units] -> [heads, B, units]."""
    return rows.unflatten(1, (heads, -1)).transpose(0, 1)
