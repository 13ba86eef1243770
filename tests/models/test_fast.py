"""The fast levers against what they replace: values, gradients, distributions; and models that they leave alone."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from kdbert.heads.single_label import SingleLabel
from kdbert.models.fast import ATTENTION
from kdbert.models.fast.attention import attention, register_attention
from kdbert.models.fast.capture import captured
from kdbert.models.fast.dropout import FastDropout, draw_keep, use_fast_dropout
from kdbert.models.fast.first_token import first_token_only, use_first_token
from kdbert.models.fast.layer import use_packed_layers, weights_cast_once
from kdbert.models.fast.packing import COUNTS, Packing, packed, use_packing
from kdbert.models.fast.used_rows import UsedRows, training_used_rows
from kdbert.models.way import Asked, decide

SIZES = {"vocab_size": 50, "max_position_embeddings": 40, "num_labels": 3}
BERT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, **SIZES}
register_attention()


def model_of(kind: str, function: str = "eager") -> Any:
    """A small classifier of an architecture, the same weights every time."""
    torch.manual_seed(3)
    made = {
        "bert": lambda: AutoModelForSequenceClassification.from_config(
            BertConfig(**BERT), attn_implementation=function
        ),
        "roberta": lambda: RobertaForSequenceClassification._from_config(
            RobertaConfig(**BERT, pad_token_id=1), attn_implementation=function
        ),
        "electra": lambda: ElectraForSequenceClassification._from_config(
            ElectraConfig(**BERT, embedding_size=16), attn_implementation=function
        ),
        "distilbert": lambda: DistilBertForSequenceClassification._from_config(
            DistilBertConfig(dim=24, n_layers=3, n_heads=4, hidden_dim=48, **SIZES), attn_implementation=function
        ),
    }[kind]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


IDS = torch.randint(5, 50, (4, 9), generator=torch.Generator().manual_seed(1))
MASK = torch.ones(4, 9, dtype=torch.int64)
MASK[0, 5:], MASK[2, 8:] = 0, 0


def gradients_of(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of every parameter."""
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerance: float) -> None:
    """Same names, values within a tolerance."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


# Attention ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
def test_attention_is_that_of_torch_in_float64(masked: bool) -> None:
    query, key, value = (torch.randn(2, 3, 7, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.zeros(2, 1, 1, 7, dtype=torch.float64)
    bias[1, ..., 4:] = torch.finfo(torch.float64).min
    bias = bias if masked else None
    found, weights = attention(nn.Module(), query, key, value, bias)
    assert weights is None
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(found)
    mine = torch.autograd.grad(found, (query, key, value), upstream)
    theirs = torch.autograd.grad(expected, (query, key, value), upstream)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.Dropout, FastDropout])
def test_attention_has_the_gradient_of_its_own_dropout(kind: type[nn.Dropout]) -> None:
    layer = nn.Module()
    layer.dropout = kind(0.3)
    query, key, value = (torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)  # the same draws at every call
        return attention(layer, *inputs, None, dropout=0.3)[0]

    assert torch.autograd.gradcheck(loss, (query, key, value))
    plain, _ = attention(nn.Module(), query, key, value, None)
    assert not torch.allclose(loss(query, key, value), plain)
    torch.manual_seed(5)
    shares = (query * 3**-0.5 @ key.transpose(-1, -2)).softmax(-1)
    keep = (
        draw_keep(shares.shape, 0.3, shares.dtype) if kind is FastDropout else F.dropout(torch.ones_like(shares), 0.3)
    )
    torch.testing.assert_close(loss(query, key, value), ((shares * keep) @ value).transpose(1, 2))


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
def test_a_model_gives_the_same_with_it(kind: str) -> None:
    plain, fast = model_of(kind), model_of(kind, ATTENTION)
    assert fast.config._attn_implementation == ATTENTION
    expected, found = (model(IDS, attention_mask=MASK).logits for model in (plain, fast))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert_close(
        gradients_of(fast, found.square().sum()), gradients_of(plain, expected.square().sum()), rtol=1e-4, atol=1e-5
    )


def test_attention_in_bf16_is_near_float32() -> None:
    plain, fast = model_of("bert"), model_of("bert", ATTENTION)
    expected = plain(IDS, attention_mask=MASK).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fast(IDS, attention_mask=MASK).logits.float()
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.03)


# Dropout -----------------------------------------------------------------------------------------------------


@given(rate=st.floats(0, 1), rows=st.integers(0, 70), dtype=st.sampled_from([torch.bfloat16, torch.float32]))
@settings(max_examples=60, deadline=None)
def test_what_dropout_multiplies_with_is_zero_or_one_number(rate: float, rows: int, dtype: torch.dtype) -> None:
    keep = draw_keep(torch.Size((rows, 3)), rate, dtype)
    assert keep.shape == (rows, 3)
    assert keep.dtype == dtype
    levels = round(rate * 2**16)
    scale = torch.tensor(2**16 / (2**16 - levels) if levels < 2**16 else 0.0, dtype=dtype)
    assert set(keep.unique().tolist()) <= {0.0, scale.item()}
    if levels == 0:
        assert (keep == 1).all()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dropout_drops_the_rate_everywhere_alike_and_keeps_the_mean(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dropped = draw_keep(torch.Size((1000, 1000)), rate, dtype) == 0
    bound = 5 * (rate * (1 - rate) / 1e6) ** 0.5 + 2**-16
    assert abs(dropped.double().mean() - rate) < bound
    assert (dropped.double().mean(0) - rate).abs().max() < 5.5 * (rate * (1 - rate) / 1000) ** 0.5
    assert (dropped.double().mean(1) - rate).abs().max() < 5.5 * (rate * (1 - rate) / 1000) ** 0.5
    # Neighbours, and elements that come from the same 64 bits, are independent.
    flat = dropped.flatten().double() - rate
    for gap in (1, 2, 3, 4, 1000):
        assert abs((flat[:-gap] * flat[gap:]).mean()) < 5 * rate * (1 - rate) / 1000
    out = FastDropout(rate).train()(torch.ones(1000, 1000, dtype=dtype)).double().mean()
    assert abs(out - 1) < 5 * (rate / (1 - rate) / 1e6) ** 0.5 + (2e-3 if dtype == torch.bfloat16 else 1e-4)


def test_dropout_is_a_function_of_torchs_seed() -> None:
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append([draw_keep(torch.Size((500,)), 0.3, torch.float32) for _ in range(2)])
    assert torch.equal(torch.stack(draws[0]), torch.stack(draws[1]))
    assert not torch.equal(draws[0][0], draws[0][1])
    assert not torch.equal(draws[0][0], draws[2][0])


def test_dropout_passes_gradients_where_it_kept() -> None:
    values = torch.randn(50, 7, requires_grad=True)
    out = FastDropout(0.4).train()(values)
    (gradient,) = torch.autograd.grad(out.sum(), values)
    torch.testing.assert_close(gradient * values, out)
    assert torch.equal(FastDropout(0.4).eval()(values), values)
    assert torch.equal(FastDropout(0.0).train()(values), values)


def test_every_dropout_of_a_model_is_replaced_and_its_weights_keep_their_names() -> None:
    model = model_of("bert").train()
    names, rates = list(model.state_dict()), [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    use_fast_dropout(model)
    found = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert all(type(module) is FastDropout and module.training for module in found)
    assert [module.p for module in found] == rates
    assert list(model.state_dict()) == names


# Rows of the word embedding ------------------------------------------------------------------------------------


def steps(model: Any, count: int, **options: float) -> list[float]:
    """Train a few steps of AdamW with clipping; the losses."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.01, **{"weight_decay": 0.0, **options}
    )
    losses = []
    for _ in range(count):
        loss = model(IDS, attention_mask=MASK).logits.square().sum()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        losses.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
    return losses


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_training_the_used_rows_gives_the_same_model(kind: str) -> None:
    plain, fast = model_of(kind), model_of(kind)
    before = fast.get_input_embeddings().weight.detach().clone()
    expected = steps(plain.train(False), 8)
    used = np.unique(IDS.numpy())
    with training_used_rows(fast, used):
        assert isinstance(fast.get_input_embeddings(), UsedRows)
        fast.get_input_embeddings().training = True  # dropout stays off, so that both see the same
        found = steps(fast, 8)
        trained = sum(p.numel() for p in fast.parameters() if p.requires_grad)
        assert trained == sum(p.numel() for p in plain.parameters()) - (50 - len(used)) * 24
    assert found == pytest.approx(expected, rel=1e-5)
    assert type(fast.get_input_embeddings()) is nn.Embedding
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert all(parameter.requires_grad for parameter in fast.parameters())
    for (name, value), other in zip(fast.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-6, msg=name)
    weight = fast.get_input_embeddings().weight.detach()
    unused = np.setdiff1d(np.arange(50), used)
    assert torch.equal(weight[unused], before[unused])
    seen = np.unique(IDS[MASK > 0].numpy())
    assert not torch.isclose(weight[seen], before[seen]).all(1).any()


def test_evaluation_knows_every_word_and_the_newest_rows() -> None:
    model = model_of("bert").train()
    unknown = torch.full((1, 6), 49)
    used = np.unique(IDS.numpy())[:-1]
    assert 49 not in used
    with training_used_rows(model, used):
        rows = model.get_input_embeddings()
        assert rows.training
        with torch.no_grad():
            rows.weight.add_(1.0)
        newest = model.eval().get_input_embeddings()(torch.from_numpy(used[None, :3]))
        torch.testing.assert_close(newest[0], rows.weight[:3])
        assert torch.isfinite(model(unknown).logits).all()
        model.train()
        assert rows.training
        with torch.no_grad():
            rows.weight.add_(1.0)
    torch.testing.assert_close(model.get_input_embeddings().weight[used], rows.weight.detach())


def test_padding_gets_no_gradient() -> None:
    model = model_of("bert").train()
    ids = IDS.clone()
    ids[MASK == 0] = 0
    with training_used_rows(model, np.unique(ids.numpy())):
        model(ids, attention_mask=MASK).logits.sum().backward()
        rows = model.get_input_embeddings()
        assert (rows.weight.grad[0] == 0).all()
        assert (rows.weight.grad[1:] != 0).any(1).all()


def test_an_embedding_that_another_layer_shares_is_left_alone() -> None:
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**BERT))
    assert model.get_input_embeddings().weight is model.cls.predictions.decoder.weight
    with training_used_rows(model, np.arange(10)):
        assert type(model.get_input_embeddings()) is nn.Embedding


def test_a_failure_inside_leaves_the_model_whole() -> None:
    model = model_of("bert")

    def fail() -> None:
        with training_used_rows(model, np.arange(10)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert type(model.get_input_embeddings()) is nn.Embedding
    assert model.get_input_embeddings().weight.requires_grad


# The last layer for the first token -----------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["eager", "sdpa", ATTENTION])
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_the_first_token_alone_gives_the_same_logits_and_gradients(kind: str, function: str) -> None:
    whole, first = model_of(kind, function), model_of(kind, function)
    use_first_token(first)
    mask = torch.zeros(4, 1, 1, 9).masked_fill(MASK[:, None, None, :] == 0, torch.finfo(torch.float32).min)
    mask = (MASK > 0)[:, None, None, :].expand(4, 1, 9, 9) if function == "sdpa" else mask
    expected = whole(IDS, attention_mask=mask, output_hidden_states=True)
    with first_token_only(first, True):
        found = first(IDS, attention_mask=mask, output_hidden_states=True)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-6)
    assert found.hidden_states[-1].shape == (4, 1, 24)
    torch.testing.assert_close(found.hidden_states[-1][:, 0], expected.hidden_states[-1][:, 0])
    for mine, theirs in zip(found.hidden_states[:-1], expected.hidden_states[:-1], strict=True):
        torch.testing.assert_close(mine, theirs)
    assert_close(
        gradients_of(first, found.logits.square().sum()), gradients_of(whole, expected.logits.square().sum()),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    again = first(IDS, attention_mask=mask, output_hidden_states=True)  # outside, everything is computed
    torch.testing.assert_close(again.hidden_states[-1], expected.hidden_states[-1])


@pytest.mark.parametrize("half", [False, True])
def test_logits_have_the_same_bits_whether_the_last_hidden_states_are_read_or_not(half: bool) -> None:
    model = model_of("bert").eval()
    use_first_token(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        both = model(IDS, attention_mask=MASK, output_hidden_states=True)
        with first_token_only(model, True):
            logits = model(IDS, attention_mask=MASK).logits
        plain = model_of("bert").eval()(IDS, attention_mask=MASK, output_hidden_states=True)
    assert torch.equal(both.logits, logits)
    tolerance = 0.03 if half else 1e-5
    torch.testing.assert_close(both.hidden_states[-1], plain.hidden_states[-1], rtol=tolerance, atol=tolerance)


class Drop(nn.Module):
    """Dropout whose draws are known: the first token's row of a fixed mask."""

    def __init__(self, keep: torch.Tensor) -> None:
        super().__init__()
        self.keep = keep
        self.p = 0.25

    def forward(self, shares: torch.Tensor) -> torch.Tensor:
        return shares * self.keep


@pytest.mark.parametrize("half", [False, True])
def test_the_first_token_drops_attention_weights_as_the_whole_layer_does(half: bool) -> None:
    whole, first = model_of("bert", "eager").train(), model_of("bert").train()
    for model in (whole, first):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for layer in model.base_model.encoder.layer:
            layer.attention.self.key.bias.data.normal_(generator=torch.Generator().manual_seed(1))
            layer.attention.self.value.bias.data.normal_(generator=torch.Generator().manual_seed(2))
    heads = whole.config.num_attention_heads
    keep = (torch.rand(4, heads, 1, 9, generator=torch.Generator().manual_seed(3)) > 0.25) / 0.75
    use_first_token(first)
    first.base_model.encoder.layer[-1].attention.self.dropout = Drop(keep[:, :, 0])

    def dropped(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        return input * keep if p == 0.25 else input

    whole.base_model.encoder.layer[-1].attention.self.dropout.p = 0.25
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "dropout", dropped)
            expected = whole(IDS, attention_mask=MASK).logits.float()
        with first_token_only(first, True):
            found = first(IDS, attention_mask=MASK).logits.float()
    close = {"rtol": 0.03, "atol": 0.03} if half else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found, expected, **close)
    mine, theirs = (gradients_of(model, out.square().sum()) for model, out in ((first, found), (whole, expected)))
    assert_close(mine, theirs, **close)


def test_a_model_without_padding_and_with_a_two_dimensional_mask() -> None:
    whole, first = model_of("bert"), model_of("bert")
    use_first_token(first)
    with first_token_only(first, True):
        for mask in (None, MASK):
            expected = whole(IDS, attention_mask=mask).logits
            torch.testing.assert_close(first(IDS, attention_mask=mask).logits, expected, rtol=1e-5, atol=1e-6)


def test_a_model_that_is_not_prepared_computes_the_whole_layer() -> None:
    model = model_of("distilbert")
    expected = model(IDS, attention_mask=MASK).logits
    with first_token_only(model, True):
        found = model(IDS, attention_mask=MASK, output_hidden_states=True)
    assert found.hidden_states[-1].shape == (4, 9, 24)
    torch.testing.assert_close(found.logits, expected)


def test_a_prepared_model_is_copied_and_saved_as_it_was(tmp_path: Path) -> None:
    model = model_of("bert")
    names = list(model.state_dict())
    use_first_token(model)
    use_fast_dropout(model)
    assert list(model.state_dict()) == names
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.base_model.encoder.layer[-1].output.dense.weight.zero_()
    with first_token_only(copied, True):
        assert not torch.allclose(copied(IDS).logits, model(IDS).logits)  # its own layer, not the first model's
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-6)


# Second derivatives ----------------------------------------------------------------------------------------------

TWO = torch.tensor([[1, 1, 1], [1, 0, 0]])  # the mask of a batch with padding


@pytest.mark.parametrize(
    "function",
    [
        lambda rows: attention(nn.Module(), rows[:, None], rows[:, None], rows[:, None], None)[0],
        lambda rows: attention(nn.Module(), rows[:, None], rows[:, None], rows[:, None], additive(TWO).double())[0],
        lambda rows: Packing(TWO).pack(rows),
        lambda rows: Packing(TWO).unpack(Packing(TWO).pack(rows)),
    ],
    ids=["attention", "masked attention", "pack", "unpack"],
)
def test_the_first_derivative_is_right_and_a_second_one_is_refused(function: Any) -> None:
    rows = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (rows,))
    (first,) = torch.autograd.grad(function(rows).square().sum(), rows, create_graph=True)
    penalty = first.square().sum() + rows.square().sum()  # there is a way to `rows` that passes the function by
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(penalty, rows, retain_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        penalty.backward()


# Packing ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.integers(0, 2**31))
def test_packing_moves_every_real_token_there_and_back(lengths: list[int], seed: int) -> None:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    packing, count = Packing(mask), sum(lengths)
    padded = torch.randn(*mask.shape, 3, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    tokens = packing.pack(padded)
    assert count <= tokens.shape[1] < count + (16 if count < 1024 else 64)
    assert tokens.shape[1] == mask.numel() or tokens.shape[1] % 16 == 0
    again = packing.unpack(tokens)
    assert torch.equal(again[mask > 0], padded[mask > 0])
    assert int((again != 0).any(-1).sum()) == tokens.shape[1]
    heads = 2  # of one unit; of three parts
    rows_and_none = torch.cat([tokens[0].detach().repeat_interleave(heads, 1), torch.zeros(1, 3 * heads)])
    order, inverse = packing.by_head(3, heads)
    by_head = rows_and_none.reshape(-1)[order]
    ascending, place = sorted(range(len(lengths)), key=lengths.__getitem__), 0
    for texts in packing.texts:  # a few of like length at a time, each padded with zeros
        assert texts.start == place
        assert texts.count in COUNTS
        assert texts.length % 8 == 0
        own = texts.count if texts.padding is None else int((~texts.padding).any(-1).sum())
        assert own > texts.count // 2
        some, ascending = ascending[:own], ascending[own:]
        place += texts.count * texts.length
        found = by_head[3 * heads * texts.start : 3 * heads * place].view(3, texts.count, heads, texts.length)
        assert torch.equal(found[:, :, 0], found[:, :, 1])
        rows = found[:, :, 0].permute(1, 2, 0)
        assert not rows[own:].any()
        for text, row in zip(some, rows[:own], strict=True):
            assert torch.equal(row[: lengths[text]], padded[text, : lengths[text]])
            assert not row[lengths[text] :].any()
            assert texts.length < 1.25 * lengths[some[0]] + 16
    assert (ascending, place) == ([], packing.places)
    assert torch.equal(by_head[inverse].view(-1, 3 * heads)[:count], rows_and_none[:count])
    upstream = torch.randn_like(padded)
    (gradient,) = torch.autograd.grad(again, padded, upstream)
    assert torch.equal(gradient[mask > 0], upstream[mask > 0])


def additive(mask: torch.Tensor) -> torch.Tensor:
    """The mask that `run_model` hands to kdbert's attention."""
    return torch.zeros(len(mask), 1, 1, mask.shape[1]).masked_fill(
        mask[:, None, None] == 0, torch.finfo(torch.float32).min
    )


def prepared(kind: str, fused: bool, only_first: bool | None = None) -> Any:
    """A model that is packed."""
    model = model_of(kind, ATTENTION)
    use_packing(model)
    use_packed_layers(model, fused)
    if only_first is not None:
        use_first_token(model)
    return model


def without_dropout(model: Any, train: bool) -> Any:
    """The model in training mode, or not, with dropout rates of 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train(train)


LONG_IDS = torch.randint(5, 50, (6, 20), generator=torch.Generator().manual_seed(4))
LENGTHS = {"different": [3, 20, 7, 2, 11, 5], "two alike": [7, 20, 7, 2, 2, 2], "all alike": [20] * 6}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("only_first", [None, False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_a_packed_model_has_the_same_logits_states_and_gradients(
    kind: str, lengths: str, fused: bool, only_first: bool | None, train: bool
) -> None:
    mask = (torch.arange(20) < torch.tensor(LENGTHS[lengths])[:, None]).long()
    ids = torch.where(mask > 0, LONG_IDS, 1 if kind == "roberta" else 0)
    model = without_dropout(prepared(kind, fused, only_first), train)
    padded = without_dropout(model_of(kind, ATTENTION), train)
    kinds = torch.arange(20).expand(6, 20) // 9 if kind == "bert" else None  # two segments, and one beyond both
    given = {"attention_mask": additive(mask), "token_type_ids": None if kinds is None else kinds.clamp(max=1)}
    expected = padded(ids, **given, output_hidden_states=True)
    with first_token_only(model, bool(only_first)), packed(model, mask) as packing:
        found = model(ids, **given, output_hidden_states=True)
    assert packing is not None
    tokens = int(mask.sum())
    assert found.hidden_states[1].shape == (1, tokens if lengths == "all alike" else -(-tokens // 16) * 16, 24)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-6)
    states = [packing.unpack(one) for one in found.hidden_states[:-1]]
    states += [] if only_first else [found.hidden_states[-1]]
    for mine, theirs in zip(states, expected.hidden_states, strict=False):
        torch.testing.assert_close(mine[mask > 0], theirs[mask > 0], rtol=1e-5, atol=1e-6)
    mine, theirs = (gradients_of(one, out.logits.square().sum()) for one, out in ((model, found), (padded, expected)))
    assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    outside = model(ids, **given)
    torch.testing.assert_close(outside.logits, expected.logits, rtol=1e-5, atol=1e-6)


def test_a_batch_without_padding_is_packed_without_copying_and_other_models_are_not() -> None:
    model = prepared("bert", fused=True)
    padded = torch.randn(4, 9, 2)
    with packed(model, torch.ones(4, 9)) as packing:
        assert packing is not None
        tokens = packing.pack(padded)
        assert tokens.data_ptr() == packing.unpack(tokens).data_ptr() == padded.data_ptr()
        assert torch.equal(packing.unpack(tokens), padded)
    for other in (model_of("bert", "eager"), model_of("distilbert"), model_of("bert", ATTENTION)):
        with packed(other, MASK) as packing:
            assert packing is None


# The layer as one function ---------------------------------------------------------------------------------------


def first_layer(dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """A model whose layers are fused, in a type, and what of it is run by hand: the first layer."""
    model = prepared("bert", fused=True).to(dtype)
    return model, model.base_model.encoder.layer[0]


@pytest.mark.parametrize("lengths", [[4, 2, 2, 1], [3, 3]])
def test_a_fused_layer_has_the_gradients_of_what_it_computes_dropout_too(lengths: list[int]) -> None:
    model, layer = first_layer()
    layer.train()
    use_fast_dropout(model)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    some = [layer.attention.self.key.bias, layer.attention.output.LayerNorm.weight, layer.output.dense.bias]
    rows = torch.randn(1, -(-sum(lengths) // 16) * 16 if len(set(lengths)) > 1 else sum(lengths), 24).double()

    def out(rows: torch.Tensor, *unused: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(6)  # the same draws at every call
        with packed(model, mask), captured(model, {1: "qkv"}) as states:
            found = layer(rows)
        return found[:, : sum(lengths)], *(states[1][kind][mask.bool()[:, None].expand(-1, 4, -1)] for kind in "qkv")

    assert torch.autograd.gradcheck(out, (rows.requires_grad_(), *some), fast_mode=True)


@pytest.mark.parametrize("lengths", [[4, 2, 2, 1], [3, 3], [1]])
def test_a_fused_last_layer_has_the_gradients_of_what_it_computes_for_the_first_token(lengths: list[int]) -> None:
    model = prepared("bert", fused=True, only_first=True).double().train()
    use_fast_dropout(model)
    layer = model.base_model.encoder.layer[-1]
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    own = layer.attention.self
    some = [own.query.weight, own.key.weight, own.value.bias, own.query.bias, own.value.weight, layer.output.dense.bias]
    rows = torch.randn(1, -(-sum(lengths) // 16) * 16 if len(set(lengths)) > 1 else sum(lengths), 24).double()

    def out(rows: torch.Tensor, *unused: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(6)  # the same draws at every call
        with packed(model, mask), first_token_only(model, True):
            found: torch.Tensor = layer(rows)
        assert found.shape == (len(lengths), 1, 24)
        return found

    assert torch.autograd.gradcheck(out, (rows.requires_grad_(), *some), fast_mode=True)
    gradients = torch.autograd.grad(out(rows).square().sum(), (rows, own.key.bias))
    assert not gradients[0][0, sum(lengths) :].any()  # of padding
    assert not gradients[1].any()  # it adds the same to all scores of a query


@pytest.mark.parametrize("wanted", ["states", "output", "both"])
def test_a_fused_layer_hands_out_queries_keys_and_values_with_gradients(wanted: str) -> None:
    plain, fused = prepared("bert", False).double(), prepared("bert", True).double()
    found = []
    for model in (plain, fused):
        with packed(model, MASK), captured(model, {1: "qv", 3: "k"}) as states:
            last = model(IDS, attention_mask=additive(MASK).double()).logits
        assert {layer: set(kinds) for layer, kinds in states.items()} == {1: {"q", "v"}, 3: {"k"}}
        real = [one[MASK.bool()[:, None].expand(-1, 4, -1)] for kinds in states.values() for one in kinds.values()]
        loss = sum(one.square().sum() for one in real) if wanted != "output" else 0
        loss = loss + (last.square().sum() if wanted != "states" else 0)
        found.append((real, gradients_of(model, loss)))
    for mine, theirs in zip(found[1][0], found[0][0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    mine, theirs = found[1][1], found[0][1]
    for name in set(mine) - set(theirs):  # of the last layer's queries and values, where its keys alone are read
        assert name.partition("layer.2.attention.self.")[2].startswith(("query", "value"))
        assert not mine.pop(name).any()
    assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backward", [False, True])
def test_a_fused_layer_that_hands_out_states_is_freed_with_them(backward: bool) -> None:
    model = prepared("bert", True)

    def living() -> int:
        gc.collect()
        return sum(type(one).__name__ == "_LayerBackward" for one in gc.get_objects())

    def step() -> int:
        with packed(model, MASK), captured(model, {2: "qkv"}) as states:
            logits = model(IDS, attention_mask=additive(MASK)).logits
        if backward:
            (logits.sum() + states[2]["q"].sum()).backward()
        return living()

    before = living()
    assert step() == before + 3  # of three layers, as long as their outputs are there
    assert living() == before


def test_a_weight_that_is_changed_between_forward_and_backward_is_noticed() -> None:
    model = prepared("bert", True)
    with packed(model, MASK):
        logits = model(IDS, attention_mask=additive(MASK)).logits
    with torch.no_grad():
        model.base_model.encoder.layer[0].output.dense.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_a_fused_layer_drops_as_often_as_the_plain_one() -> None:
    torch.manual_seed(0)
    plain, fused = prepared("bert", False).train(), prepared("bert", True).train()
    for model in (plain, fused):
        use_fast_dropout(model)
    mask = (torch.arange(20) < torch.tensor(LENGTHS["different"])[:, None]).long()
    draws = []
    for model in (plain, fused):
        states = []
        for _ in range(150):
            with torch.no_grad(), packed(model, mask) as packing:
                out = model(LONG_IDS, attention_mask=additive(mask), output_hidden_states=True)
            assert packing is not None
            states.append(packing.unpack(out.hidden_states[2])[mask > 0])
        draws.append(torch.stack(states))
    (mean, deviation), (other, deviations) = ((one.mean(0), one.std(0)) for one in draws)
    error = (deviation.square() + deviations.square()).sqrt() / 150**0.5
    assert float(((mean - other) / error).square().mean()) == pytest.approx(1, abs=0.25)
    assert float((deviations / deviation).log().mean()) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("fast", [False, True])
def test_without_fast_dropout_a_fused_layer_uses_torchs(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared("bert", True).train()
    if fast:
        use_fast_dropout(model)
    calls: list[float] = []
    usual = F.dropout
    monkeypatch.setattr(F, "dropout", lambda values, rate, *more: calls.append(rate) or usual(values, rate, *more))
    with packed(model, MASK):
        model(IDS, attention_mask=additive(MASK))
    assert len([rate for rate in calls if rate == 0.1]) >= (0 if fast else 9)
    assert not (fast and calls)


def test_a_fused_layer_in_bf16_is_near_float32() -> None:
    model, plain = prepared("bert", True), prepared("bert", False)
    found, half = [], []
    for one, autocast in ((plain, False), (plain, True), (model, True)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), packed(one, MASK):
            out = one(IDS, attention_mask=additive(MASK).to(torch.bfloat16 if autocast else torch.float32))
        found.append(out.logits.float())
        half.append(gradients_of(one, out.logits.float().square().sum()))
    usual = (found[1] - found[0]).abs().max()
    assert (found[2] - found[0]).abs().max() < max(3 * usual, 0.03)
    for name, value in half[0].items():
        assert half[2][name].dtype == torch.float32
        if value.norm() > 0.1:
            cosine = F.cosine_similarity(half[2][name].flatten(), value.flatten(), dim=0)
            assert cosine > 0.99, (name, cosine)


def test_weights_are_cast_once_only_where_it_was_said_and_nothing_is_trained() -> None:
    model = prepared("bert", True)

    def logits() -> torch.Tensor:
        with packed(model, MASK):
            return model(IDS, attention_mask=additive(MASK)).logits.detach()

    def change() -> None:
        with torch.no_grad():
            model.base_model.encoder.layer[0].attention.self.query.weight.add_(1.0)

    with torch.no_grad(), weights_cast_once():
        first = logits()
        change()
        assert torch.equal(logits(), first)  # so no weight may change inside
    assert not torch.allclose(logits(), first)
    with weights_cast_once():  # with gradients
        before = logits()
        change()
        assert not torch.allclose(logits(), before)


def test_only_what_is_trained_gets_gradients() -> None:
    model = prepared("bert", True)
    layer = model.base_model.encoder.layer[1]
    for part in (layer.attention.self.key.weight, layer.output.dense.bias, layer.attention.output.LayerNorm.weight):
        part.requires_grad_(False)
    model.base_model.embeddings.requires_grad_(False)
    plain = prepared("bert", False)
    for mine, theirs in zip(plain.parameters(), model.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
    found = []
    for one in (plain, model):
        with packed(one, MASK):
            logits = one(IDS, attention_mask=additive(MASK)).logits
        found.append(gradients_of(one, logits.square().sum()))
    assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_a_fused_layer_cannot_be_differentiated_twice() -> None:
    model, layer = first_layer()
    rows = torch.randn(1, 2, 24, dtype=torch.float64, requires_grad=True)
    with packed(model, torch.ones(1, 2)):
        (first,) = torch.autograd.grad(layer(rows).square().sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


def test_layers_of_another_activation_are_not_fused() -> None:
    head = SingleLabel(3)
    for activation, fused in (("gelu", True), ("relu", False), ("gelu_new", False)):
        way = decide(BertConfig(**BERT, hidden_act=activation), head, "x")
        assert way.packing
        assert way.fused_layers == fused
    assert not decide(BertConfig(**BERT), head, "x", Asked(fused_layers=False)).fused_layers
    assert not decide(BertConfig(**BERT), head, "x", Asked(packing=False)).fused_layers
    assert not decide(BertConfig(**BERT), head, "x", device="cuda").fused_layers
