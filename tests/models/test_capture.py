"""Queries, keys and values as they are captured: those of the model's own weights, for every type that claims it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import often
from kdbert.data.batches import collate
from kdbert.data.encode import Encoded, encode
from kdbert.data.examples import Examples
from kdbert.models.architectures import ARCHITECTURES
from kdbert.models.load import auto_class, load_config, load_tokenizer
from kdbert.models.locate import locate
from kdbert.models.open import open_classifier
from kdbert.models.way import Asked, decide, fit_tokenizer
from kdbert.tasks.spec import TaskSpec
from kdbert.training.forward import run_model
from small_architectures import MORE, PAIR, Variant, make_model, mapped, texts, variant_of

# What several heads share: two keys and values for four queries.
SHARED = {"eurobert, shared keys": Variant("eurobert", {"num_key_value_heads": 2})}
NAMES = [
    name
    for name in [*ARCHITECTURES, *MORE, *SHARED]
    if ARCHITECTURES[(SHARED.get(name) or variant_of(name)).model_type].attention
]
COMMON = {"bert", "roberta, own tokenizer", "xlm-roberta", "distilbert", "electra", "albert, two groups", "modernbert"}
ROTARY = {"modernbert", "nomic_bert", "gte", "jina_embeddings_v3", "eurobert", "ultrabert", "esmc", "esm, rotary"}
PROJECTIONS = {
    "q": ("query", "q_lin", "q_proj"), "k": ("key", "k_lin", "k_proj"), "v": ("value", "v_lin", "v_proj")
}  # fmt: skip


class Opened:
    """A tiny model as kdbert opens it and as the library does, and a padded batch of three texts."""

    def __init__(self, folder: Path, name: str, attention: str = "auto") -> None:
        variant = SHARED.get(name) or variant_of(name)
        head = "sequence" if variant.model_type in mapped("sequence") else "token"
        spec = TaskSpec("texts", "", "single_label" if head == "sequence" else "token", {}, ("accuracy",), PAIR)
        place = locate(str(make_model(folder, variant, head)))
        way = decide(load_config(place), spec.head, name, Asked(attention))
        self.model, _ = open_classifier(place, spec, way, keep_head=True)
        self.depth = self.model.config.num_hidden_layers
        tokenizer = fit_tokenizer(load_tokenizer(place), way, name)
        self.data: Encoded = encode(Examples("dev", list("abc"), texts(5)[2:], None, None), tokenizer, 64)
        self.batch = collate(self.data, np.arange(3))
        self.library = auto_class(spec.head).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")

    def captured(self, batch: Any = None, kinds: str = "qkv") -> Any:
        """What is captured of every layer."""
        layers = dict.fromkeys(range(1, self.depth + 1), kinds)
        return run_model(self.model, batch or self.batch, "fp32", attention=layers).attention

    def alone(self, row: int) -> dict[str, Any]:
        """One text as the library reads it, without padding."""
        length, way = int(self.data.lengths[row]), self.model.way
        given = {
            "input_ids": self.batch.input_ids, "attention_mask": self.batch.attention_mask,
            "token_type_ids": self.batch.token_type_ids,
        }  # fmt: skip
        return {name: given[name][row : row + 1, :length] for name in way.inputs if given[name] is not None}

    def projected(self, row: int) -> tuple[dict[str, list[torch.Tensor]], list[torch.Tensor]]:
        """What the library's own projections give for a text, layer by layer [L, width], and its attention weights."""
        found: dict[str, list[torch.Tensor]] = {kind: [] for kind in PROJECTIONS}
        hooks = []

        def whole(module: Any, arguments: Any, out: torch.Tensor) -> None:
            for kind, part in zip("qkv", out[0].chunk(3, -1), strict=True):
                found[kind].append(part)

        for path, module in self.library.named_modules():
            for kind, names in PROJECTIONS.items():
                if path.rpartition(".")[2] in names:
                    hooks.append(module.register_forward_hook(lambda m, a, out, k=kind: found[k].append(out[0])))
            if path.endswith("Wqkv"):
                hooks.append(module.register_forward_hook(whole))
        seen = self.library(**self.alone(row), output_attentions=True)
        for hook in hooks:
            hook.remove()
        return found, [one[0] for one in seen.attentions]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * max(1.0, float(expected.abs().max())))


@torch.no_grad()
@pytest.mark.parametrize("name", often(NAMES, {*COMMON, "esm, rotary", *SHARED}.__contains__))
def test_they_are_those_that_the_models_own_weights_give(tmp_path: Path, name: str) -> None:
    """Values, and where no position rotates them queries and keys, are the outputs of the library's projections in its
    own pass over one text; the scores of all are those that its attention weights are made of.
    """
    opened = Opened(tmp_path / "m", name)
    seen = opened.captured()
    assert list(seen) == list(range(1, opened.depth + 1))
    rotated = any(name.startswith(one) for one in ROTARY)
    for row in range(3):
        own, weights = opened.projected(row)
        length = int(opened.data.lengths[row])
        for layer in range(1, opened.depth + 1):
            q, k, v = (seen[layer][kind][row, :, :length] for kind in "qkv")
            assert q.shape == k.shape == v.shape
            for kind, found in (("q", q), ("k", k), ("v", v)):
                if kind == "v" or not rotated:
                    expected = own[kind][layer - 1].unflatten(-1, (-1, q.shape[-1])).transpose(0, 1)
                    close(found, expected.repeat_interleave(len(q) // len(expected), 0))
            scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
            expected = weights[layer - 1]
            close(scores.masked_fill(expected == 0, float("-inf")).softmax(-1), expected)  # a local layer's window


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "roberta, own tokenizer", "xlm-roberta", "electra", "distilbert", "albert"])
def test_they_are_hidden_states_times_weights(tmp_path: Path, name: str) -> None:
    """Written down without a hook: layer l projects hidden state l - 1."""
    opened = Opened(tmp_path / "m", name)
    base = opened.library.base_model
    row, length = 1, int(opened.data.lengths[1])
    states = opened.library(**opened.alone(row), output_hidden_states=True).hidden_states
    seen = opened.captured()
    for layer in range(1, opened.depth + 1):
        if name == "albert":
            own = base.encoder.albert_layer_groups[0].albert_layers[0].attention
        elif name == "distilbert":
            own = base.transformer.layer[layer - 1].attention
        else:
            own = base.encoder.layer[layer - 1].attention.self
        for kind, names in PROJECTIONS.items():
            linear = next(getattr(own, one) for one in names if hasattr(own, one))
            expected = states[layer - 1][0] @ linear.weight.T + linear.bias
            close(seen[layer][kind][row, :, :length], expected.unflatten(-1, (4, -1)).transpose(0, 1))


@torch.no_grad()
def test_of_rotary_positions_they_are_the_rotated_ones(tmp_path: Path) -> None:
    opened = Opened(tmp_path / "m", "modernbert")
    base, row, length = opened.library.base_model, 1, int(opened.data.lengths[1])
    states = opened.library(**opened.alone(row), output_hidden_states=True).hidden_states
    seen = opened.captured()
    for layer, one in enumerate(base.layers, 1):
        normed = one.attn_norm(states[layer - 1])[0]
        theta = base.config.rope_parameters[base.config.layer_types[layer - 1]]["rope_theta"]
        for number, kind in enumerate("qk"):
            plain = (normed @ one.attn.Wqkv.weight.chunk(3)[number].T).unflatten(-1, (4, -1)).transpose(0, 1)
            units = plain.shape[-1]
            angles = torch.arange(length)[:, None] / theta ** (torch.arange(0, units, 2) / units)
            first, second = plain.chunk(2, -1)
            turned = torch.cat(
                [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
            )
            close(seen[layer][kind][row, :, :length], turned)


@pytest.mark.parametrize("name", sorted(COMMON))
def test_packed_or_padded_by_any_function_they_are_the_same_with_the_same_gradients(tmp_path: Path, name: str) -> None:
    found: dict[str, Any] = {}
    fast = ARCHITECTURES[variant_of(name).model_type].own_attention
    for attention in ("auto", "sdpa", "eager"):
        for extra in (0, 3):
            opened = Opened(tmp_path / f"{attention}{extra}", name, attention)
            opened.model.train()
            for module in opened.model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            width = opened.batch.input_ids.shape[1] + extra
            batch = collate(opened.data, np.arange(3), width)
            seen = opened.captured(batch)
            real = batch.attention_mask.bool()
            parts = [part.transpose(1, 2)[real] for one in seen.values() for part in one.values()]
            sum(part.square().mean() for part in parts).backward()
            gradients = [p.grad for p in opened.model.base_model.parameters() if p.grad is not None]
            assert gradients
            if not found:
                found = {"parts": [part.detach() for part in parts], "gradients": gradients}
                assert getattr(opened.model, "can_pack", False) == (fast and name != "distilbert")
                continue
            for key, values in (("parts", parts), ("gradients", gradients)):
                for one, expected in zip(values, found[key], strict=True):
                    close(one.detach(), expected)


def test_only_what_is_asked_for_is_kept_and_the_library_is_left_as_it_was(tmp_path: Path) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = dict(ALL_ATTENTION_FUNCTIONS)
    opened = Opened(tmp_path / "m", "bert")
    plain = run_model(opened.model, opened.batch, "fp32")
    seen = run_model(opened.model, opened.batch, "fp32", attention={2: "qk", opened.depth: "v"})
    assert {layer: set(kinds) for layer, kinds in seen.attention.items()} == {2: {"q", "k"}, opened.depth: {"v"}}
    assert plain.attention == {}
    torch.testing.assert_close(seen.logits, plain.logits)
    half = run_model(opened.model, opened.batch, "bf16", attention={2: "q"}).attention[2]["q"]
    assert half.dtype == torch.float32
    with pytest.raises(TypeError), torch.no_grad():
        run_model(opened.model, opened.batch, "fp32", layers=(1,), attention={1: 3})  # type: ignore[dict-item]
    assert dict(ALL_ATTENTION_FUNCTIONS) == {**before, "kdbert": ALL_ATTENTION_FUNCTIONS["kdbert"]}
