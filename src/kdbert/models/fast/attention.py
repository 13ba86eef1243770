"""Attention that stores less for its backward pass than the library's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kdbert.derivatives import once_differentiable
from kdbert.devices import by_device
from kdbert.models.fast import ATTENTION
from kdbert.models.fast.dropout import FastDropout, draw_keep
from kdbert.models.fast.packing import current_packing


class _Attention(torch.autograd.Function):
    """softmax(query key^T + bias), dropout, times value."""

    @staticmethod
    def forward(
        context: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        scaling: float,
        rate: float,
        fast: bool,
    ) -> torch.Tensor:
        scores = torch.matmul(query * scaling, key.transpose(-1, -2))
        if bias is not None:
            scores += bias
        shares = torch.softmax(scores, -1)
        keep = None
        if rate:
            fast = fast and by_device(shares.device).own_dropout
            keep = draw_keep(shares.shape, rate, shares.dtype) if fast else F.dropout(torch.ones_like(shares), rate)
        context.save_for_backward(query, key, value, shares, keep)
        context.scaling = scaling
        return torch.matmul(shares if keep is None else shares * keep, value)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, shares, keep = context.saved_tensors
        (gradient,) = gradients
        dropped = shares if keep is None else shares * keep
        for_value = torch.matmul(dropped.transpose(-1, -2), gradient)
        for_shares = torch.matmul(gradient, value.transpose(-1, -2))
        if keep is not None:
            for_shares *= keep
        for_scores = torch._softmax_backward_data(for_shares, shares, -1, shares.dtype)
        for_query = torch.matmul(for_scores, key).mul_(context.scaling)
        for_key = torch.matmul(for_scores.transpose(-1, -2), query).mul_(context.scaling)
        return for_query, for_key, for_value, None, None, None, None


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention, as a function for transformers' attention interface.

    Args:
        module: the attention layer; if its `dropout` is a `FastDropout`, attention weights are dropped that way too.
        query, key, value: [B, heads, L, units]; [1, heads, T, units] inside `packed`.
        attention_mask: added to the scores, broadcast to [B, heads, L, L]; or None.
        dropout: rate for the attention weights; 0 outside training.

    Returns:
        [B, L, heads, units] ([1, T, heads, units]), and None for the attention weights.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    fast = isinstance(getattr(module, "dropout", None), FastDropout)
    packing = current_packing()
    if packing is not None:
        query, key, value = (packing.unpack(part.transpose(1, 2)).transpose(1, 2) for part in (query, key, value))
    found = _Attention.apply(query, key, value, attention_mask, scaling, dropout, fast).transpose(1, 2)
    return found.contiguous() if packing is None else packing.pack(found), None


def register_attention() -> None:
    """Make `attn_implementation="kdbert"` known to transformers, with the mask of its eager attention."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
