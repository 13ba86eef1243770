"""The last layer's output for the first token only, where the head reads nothing else."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import torch

from kdbert.models.fast.capture import capture_without_attention
from kdbert.models.fast.layer import last_layer_forward
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
    packing = current_packing()
    padded = hidden_states if packing is None else packing.unpack(hidden_states)
    if self.first_token_only:
        capture_without_attention(self.attention.self, hidden_states)
        return _first_token(self, padded, *args, **options)
    whole = last_layer_forward(self, hidden_states, *args, **options)
    if self.training:
        return whole
    return torch.cat([_first_token(self, padded, *args, **options), whole[:, 1:]], 1)


def _first_token(self: Any, hidden_states: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """`BertLayer.forward` of the first token, [B, 1, H].

    For one query q, the scores q (x Wk)^T equal (q Wk^T) x^T, and the context p (x Wv) equals (p x) Wv. Computed in
    this order, no other token's key or value is needed.
    """
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
