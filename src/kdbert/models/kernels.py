"""What makes a Hugging Face model train faster on a CPU and computes the same, put in from outside.

Five pieces, each with a plain twin and a recipe key that chooses between them:

| piece | twin | key | equal |
| --- | --- | --- | --- |
| `attention`, known to the library as `kdbert` | its `eager` and `sdpa` | `train.attention` | to rounding |
| `FastDropout` | `torch.nn.Dropout` | `train.fast_dropout` | in distribution, not in draws |
| `UsedRows` | `torch.nn.Embedding` | `train.used_rows` | exactly, without weight decay |
| `first_token_only` | the whole last layer | `train.first_token` | to rounding; other dropout draws |
| `packed` | padded batches | `train.packing` | to rounding; other dropout draws |
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from kdbert.derivatives import once_differentiable
from kdbert.models.architectures import ARCHITECTURES

ATTENTION = "kdbert"
_LEVELS = 1 << 15  # a draw is 15 random bits


def draw_keep(shape: torch.Size, rate: float, dtype: torch.dtype) -> torch.Tensor:
    """What dropout multiplies with: 0 with probability `rate`, else 1 / (1 - rate), on the CPU.

    The bits come from a generator that is seeded by one draw of torch's own, so they are a function of
    torch's seed. torch's own dropout takes its bits one element at a time: some ten times as long.

    Args:
        rate: rounded to a multiple of 1/32768, to which the scale belongs, so the mean is that of
            the input, up to the rounding of the scale to `dtype` (which torch's dropout has too).
    """
    threshold = round(rate * _LEVELS)
    if threshold == _LEVELS:
        return torch.zeros(shape, dtype=dtype)
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.SFC64(seed).random_raw(-(-shape.numel() // 4))
    bits = torch.from_numpy(words.view(np.int16))[: shape.numel()].view(shape)
    # All in integers and in place: draw - (levels - threshold) is negative, and its sign spread over all bits is -1,
    # where the element stays; what is left of the scale's own bits is the scale or 0.
    bits.bitwise_and_(_LEVELS - 1).add_(threshold - _LEVELS).bitwise_right_shift_(15)
    scale = torch.tensor(_LEVELS / (_LEVELS - threshold), dtype=dtype)
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    return bits.to(integers).bitwise_and_(scale.view(integers)).view(dtype)


class FastDropout(nn.Dropout):
    """`torch.nn.Dropout` by `draw_keep` on a CPU; on other devices it is the library's own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The input, some elements 0 and the others scaled up, in training only."""
        if not self.training or self.p == 0:
            return input
        if input.device.type != "cpu" or self.inplace:
            return super().forward(input)
        return input * draw_keep(input.shape, self.p, input.dtype)


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every `nn.Dropout` of a model, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, FastDropout(child.p, child.inplace).train(child.training))


class _Attention(torch.autograd.Function):
    """softmax(query key^T + bias), dropout, times value; keeps what the backward pass needs, and no more."""

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
            fast = fast and shares.device.type == "cpu"
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
    """Scaled dot-product attention in the form that transformers' attention interface asks for.

    Args:
        query, key, value: [B, heads, L, units]; [1, heads, T, units] within `packed`.
        attention_mask: added to the scores, broadcast to [B, heads, L, L], or None.
        module: the layer; where its `dropout` is a `FastDropout`, the weights' draws are of that kind too.
        dropout: of the attention weights; 0 outside training.

    Returns:
        [B, L, heads, units] ([1, T, heads, units]), and None for the attention weights.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    fast = isinstance(getattr(module, "dropout", None), FastDropout)
    packing = _packing.get()
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


class UsedRows(nn.Module):
    """A word embedding of which only the rows that the training data uses are trained.

    The gradient of every other row is 0 at every step, and AdamW without weight decay leaves such a row as it is; so
    the result is the same, and gradients, moments and the clipping norm are of a few thousand rows instead of 30,522.

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
        """The rows of these token ids; in training every id must be one that is used."""
        if not self.training:
            found: torch.Tensor = self.whole(input)
            return found
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
    """Within it, a model's word embedding trains the used rows only; afterwards the model is as it was, trained.

    A model whose embedding is shared with another layer (a masked-LM head) or is no plain `nn.Embedding` is left alone.
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


class Packing:
    """Which tokens of a padded batch are computed: the real ones, and a few of padding.

    Args:
        mask: [B, L], 0 at padding. Tokens of padding make the number a multiple of 16 (64 from 1,024 tokens on), so
            that matrix products have few different shapes, each of which is compiled once.
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
        found: torch.Tensor = _Take.apply(padded.flatten(0, 1), self.index)
        return found[None]

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """[1, T, ...] -> [B, L, ...], 0 at what is not computed."""
        found: torch.Tensor = _Put.apply(packed[0], self.index, self.shape.numel())
        return found.unflatten(0, self.shape)


class _Take(torch.autograd.Function):
    """Some rows, each once (so that the gradient needs no adding up)."""

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
    """Rows put into so many, 0 elsewhere."""

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


@contextlib.contextmanager
def packed(model: Any, mask: torch.Tensor, on: bool = True) -> Iterator[Packing | None]:
    """Within it, a model prepared by `use_packing` computes between embeddings and head the real tokens only.

    Its hidden states, but for the last layer's, are [1, T, H] then: `Packing.unpack` pads them again.

    Args:
        mask: [B, L] of the batch. on: False changes nothing.

    Yields:
        None, where nothing is packed: another model or device, or no padding to leave out.
    """
    there = on and mask.device.type == "cpu" and getattr(model, "can_pack", False)
    packing = Packing(mask) if there and model.config._attn_implementation == ATTENTION else None
    if packing is not None and len(packing.index) == mask.numel():
        packing = None
    token = _packing.set(packing)
    try:
        yield packing
    finally:
        _packing.reset(token)


def built_as_bert(config: Any) -> bool:
    """Whether embeddings and layers are built as BERT's, and read in both directions."""
    known = ARCHITECTURES.get(config.model_type)
    return known is not None and known.own_layers and not config.is_decoder


def use_packing(model: Any) -> None:
    """Prepare a classifier for `packed`; models built otherwise than BERT are left alone."""
    if built_as_bert(model.config):
        model.can_pack = True
        embeddings, layer = model.base_model.embeddings, model.base_model.encoder.layer[-1]
        embeddings.forward = types.MethodType(_embeddings_forward, embeddings)
        layer.forward = types.MethodType(_layer_forward, layer)


def _embeddings_forward(self: Any, *args: Any, **options: Any) -> torch.Tensor:
    """In place of the embeddings' `forward`: [B, L] -> [B, L, E], or [1, T, E] within `packed`."""
    found: torch.Tensor = type(self).forward(self, *args, **options)
    packing = _packing.get()
    return found if packing is None else packing.pack(found)


def use_late_head(model: Any, pieces: int | None = None) -> None:
    """Let a masked-LM's `logits` be what its last matrix, `get_output_embeddings()`, is applied to: [B, L, H].

    Whoever reads logits applies it where they are read, to the columns that are read.

    Args:
        pieces: logits that mean something (a vocabulary may be filled up with rows that no piece has); None: all.
    """
    decoder = model.get_output_embeddings()
    decoder.forward = types.MethodType(lambda self, features: features, decoder)
    model.late_pieces = decoder.out_features if pieces is None else min(pieces, decoder.out_features)


def use_first_token(model: Any) -> None:
    """Prepare a classifier's last layer for `first_token_only`.

    Models built otherwise than BERT are left alone, and so are those whose head reads every token.
    """
    tokens = type(model).__name__.endswith(("ForTokenClassification", "ForMaskedLM"))
    if built_as_bert(model.config) and not tokens:
        layer = model.base_model.encoder.layer[-1]
        layer.first_token_only = False
        layer.forward = types.MethodType(_layer_forward, layer)


@contextlib.contextmanager
def first_token_only(model: Any, on: bool) -> Iterator[None]:
    """Within it, the last layer of a model prepared by `use_first_token` computes its output for the first token only.

    That is all that the head reads: each of the layer's six matrices is multiplied with one token instead of all.
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


def _layer_forward(self: Any, hidden_states: torch.Tensor, *args: Any, **options: Any) -> Any:
    """In place of the last `BertLayer.forward`: [B, L, H] -> [B, L, H], or [B, 1, H] within `first_token_only`.

    Within `packed` what comes in is [1, T, H].

    In eval mode the first token is computed the same way in both, so that a model's logits have the same bits whether
    the other tokens are read or not.
    """
    packing, prepared = _packing.get(), hasattr(self, "first_token_only")
    padded = hidden_states if packing is None else packing.unpack(hidden_states)
    if prepared and self.first_token_only:
        return _first_token(self, padded, *args, **options)
    whole = type(self).forward(self, hidden_states, *args, **options)
    whole = whole if packing is None else packing.unpack(whole)
    if self.training or not prepared:
        return whole
    return torch.cat([_first_token(self, padded, *args, **options), whole[:, 1:]], 1)


def _first_token(self: Any, hidden_states: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """`BertLayer.forward` of the first token, [B, 1, H].

    For one query q, its scores q (x Wk)^T are (q Wk^T) x^T, and its context p (x Wv) is (p x) Wv: with the brackets so,
    no other token's key or value is made.
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
    found: torch.Tensor = self.feed_forward_chunk(output)
    return found
