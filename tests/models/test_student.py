"""A student keeps the layers it was told to keep, with their weights, and reloads equal."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from conftest import make_bert
from kdbert.errors import UserError
from kdbert.models.student import cut_layers, kept_layers, set_dropout

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
ENCODERS: dict[str, tuple[type, Any, str]] = {
    "bert": (
        transformers.BertForSequenceClassification,
        transformers.BertConfig(num_hidden_layers=6, **SMALL),
        "bert.encoder.layer",
    ),
    "roberta": (
        transformers.RobertaForSequenceClassification,
        transformers.RobertaConfig(num_hidden_layers=6, **SMALL),
        "roberta.encoder.layer",
    ),
    "electra": (
        transformers.ElectraForSequenceClassification,
        transformers.ElectraConfig(num_hidden_layers=6, embedding_size=16, **SMALL),
        "electra.encoder.layer",
    ),
    "distilbert": (
        transformers.DistilBertForSequenceClassification,
        transformers.DistilBertConfig(n_layers=6, vocab_size=50, dim=16, n_heads=2, hidden_dim=32),
        "distilbert.transformer.layer",
    ),
}
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 3, 0, 0]])
MASK = (IDS > 0).long()


@pytest.mark.parametrize(
    ("depth", "count", "init", "kept"),
    [
        (12, 6, "even", [2, 4, 6, 8, 10, 12]),
        (12, 4, "even", [3, 6, 9, 12]),
        (12, 3, "even", [4, 8, 12]),
        (12, 1, "even", [12]),
        (6, 3, "first", [1, 2, 3]),
        (6, 3, "last", [4, 5, 6]),
        (6, 3, "even", [2, 4, 6]),
        (4, 3, "even", [1, 3, 4]),  # floor(l * 4 / 3 + 1/2)
        (6, 4, "even", [2, 3, 5, 6]),
        (6, None, "first", [1, 2, 3, 4, 5, 6]),
        (6, 6, "last", [1, 2, 3, 4, 5, 6]),
        (6, 3, [1, 3, 5], [1, 3, 5]),
        (6, None, [6, 1], [6, 1]),
    ],
)
def test_which_layers_are_kept(depth: int, count: int | None, init: Any, kept: list[int]) -> None:
    assert kept_layers(depth, count, init) == kept


@given(st.integers(1, 48).flatmap(lambda depth: st.tuples(st.just(depth), st.integers(1, depth))))
def test_every_way_keeps_that_many_layers_in_order(sizes: tuple[int, int]) -> None:
    depth, count = sizes
    for init in ("first", "last", "even"):
        kept = kept_layers(depth, count, init)  # type: ignore[arg-type]
        assert len(kept) == count
        assert kept == sorted(set(kept))
        assert kept[0] >= 1
        assert kept[-1] <= depth
        if init != "first":
            assert kept[-1] == depth


@pytest.mark.parametrize(
    ("depth", "count", "init"),
    [(6, 7, "first"), (6, 7, "last"), (6, 7, "even"), (6, None, [1, 9]), (6, None, [0, 1]), (6, None, [])],
)
def test_layers_that_are_not_there_are_refused(depth: int, count: int | None, init: Any) -> None:
    with pytest.raises(UserError, match="has 6 layers"):
        kept_layers(depth, count, init)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("picks", [[1, 2, 3], [2, 4, 6], [6, 1]])
def test_a_cut_model_has_the_chosen_layers_and_reloads_equal(tmp_path: Path, name: str, picks: list[int]) -> None:
    architecture, config, prefix = ENCODERS[name]
    torch.manual_seed(0)
    source = architecture(copy.deepcopy(config)).eval()
    whole = {key: value.clone() for key, value in source.state_dict().items()}
    student = cut_layers(source, picks)
    assert student.config.num_hidden_layers == len(picks)
    cut = student.state_dict()
    for position, number in enumerate(picks):
        before = {
            k.removeprefix(f"{prefix}.{number - 1}."): v
            for k, v in whole.items()
            if k.startswith(f"{prefix}.{number - 1}.")
        }
        after = {
            k.removeprefix(f"{prefix}.{position}."): v for k, v in cut.items() if k.startswith(f"{prefix}.{position}.")
        }
        assert before
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    rest = {key for key in whole if not key.startswith(prefix)}
    assert rest == {key for key in cut if not key.startswith(prefix)}
    assert all(torch.equal(whole[key], cut[key]) for key in rest)
    assert f"{prefix}.{len(picks)}." not in " ".join(cut)

    student.save_pretrained(tmp_path)
    reloaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert reloaded.config.num_hidden_layers == len(picks)
    with torch.no_grad():
        assert torch.equal(reloaded(IDS, attention_mask=MASK).logits, student(IDS, attention_mask=MASK).logits)
        assert len(reloaded(IDS, attention_mask=MASK, output_hidden_states=True).hidden_states) == len(picks) + 1


def test_the_saved_weights_are_no_more_than_the_student(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "source", layers=4)
    model = cut_layers(transformers.AutoModel.from_pretrained(folder), [1, 4])
    model.save_pretrained(tmp_path / "student")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "student" / "model.safetensors")
    assert {key.split(".")[2] for key in after if key.startswith("encoder.layer.")} == {"0", "1"}
    for key, value in after.items():
        assert torch.equal(value, before[key.replace("encoder.layer.1.", "encoder.layer.3.")])


def test_dropout_is_set_everywhere_but_not_in_the_saved_configuration() -> None:
    model = transformers.BertForSequenceClassification(transformers.BertConfig(num_hidden_layers=2, **SMALL))
    set_dropout(model, 0.0)
    model.train()
    with torch.no_grad():
        first, second = (model(IDS, attention_mask=MASK).logits for _ in range(2))
    assert torch.equal(first, second)
    assert model.config.hidden_dropout_prob == 0.1


def test_attention_dropout_is_set_too() -> None:
    config = transformers.BertConfig(
        num_hidden_layers=2, attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0, **SMALL
    )
    for attention in ("eager", "sdpa"):
        model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
        set_dropout(model, 0.0)
        model.train()
        with torch.no_grad():
            first, second = (model(IDS, attention_mask=MASK).logits for _ in range(2))
        assert torch.equal(first, second), attention
