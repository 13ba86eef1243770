"""`ve-kd` gives the published terms, total and gradients, and masks the same tokens (docs/quirks.md, 5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from golden_cases import Case, Values, as_tensor, batch_of, formed, golden

from kdbert.data.masking import Masking
from kdbert.heads import MaskedLM
from kdbert.methods import Context, MaskedLMOutputs, Models, Shape, get_method

TERMS = ("ce", "mse", "cos", "mlm")


@golden("vekd")
def test_terms_total_and_gradients_are_the_originals(case: Case) -> Iterator[Values]:
    inputs, hyper = case.inputs, case.hyper
    kind = get_method("ve-kd")
    options = case.options(*(f"alpha_{name}" for name in TERMS), "temperature") | {"tolerance": hyper["alpha_to"]}
    method = kind(kind.Options.model_validate({"name": "ve-kd", "variant": "original", **options})).double()
    widths = hyper["hidden_teacher"], hyper["hidden_student"]
    method.prepare(Context(Models(Shape(2, widths[1]), (Shape(3, widths[0]),)), MaskedLM(), batch_size=1))
    method.double()
    if "dense_weight" in inputs:
        weights = {"projection.weight": inputs["dense_weight"], "projection.bias": inputs["dense_bias"]}
        method.load_state_dict(weights)
        assert not any(parameter.requires_grad for parameter in method.parameters())

    hidden = inputs["student_hidden_last"].requires_grad_()
    logits = inputs["student_logits"].requires_grad_()
    batch = batch_of(inputs["lm_labels"], inputs["lm_labels"].shape[1])
    batch.known = (inputs["attention_mask"] * inputs["token_mask"]).bool()
    batch.known_count = int(batch.known.sum())
    batch.known_scale = 1 / batch.known_count
    batch.label_scale = 1 / int((inputs["lm_labels"] != -100).sum())

    def head(values: torch.Tensor) -> Any:
        return lambda positions, columns=None: values.flatten(0, 1)[positions, :columns]

    terms = method(
        MaskedLMOutputs(head(logits), mask=batch.attention_mask, hidden={2: hidden}),
        [
            MaskedLMOutputs(
                head(inputs["teacher_logits"]),
                mask=batch.attention_mask,
                hidden={3: inputs["teacher_hidden_last"]},
            )
        ],
        batch,
    )
    terms.total.backward()

    assert set(terms.terms) == {name for name in TERMS if hyper[f"alpha_{name}"]}
    yield formed(terms, {"loss_mlm": "mlm", **{f"loss_{name}_after_tolerance": name for name in TERMS[:3]}})
    yield {
        "total_loss": terms.total,
        "n_selected": torch.tensor(float(batch.known_count)),
        "grad_student_logits": logits.grad,
        "grad_student_hidden_last": torch.zeros_like(hidden) if hidden.grad is None else hidden.grad,
    }


@golden("vekd_collator")
def test_the_same_tokens_are_masked(case: Case) -> Iterator[Values]:
    masking = Masking(case.hyper["mask_token_id"], np.zeros(0, bool), None, case.hyper["base_vocab"])
    ids = case.inputs["input_ids"].numpy()
    chosen = masking.with_new(ids, case.inputs["bernoulli_draw"].numpy() == 1)
    names = ("input_ids", "labels", "token_mask")
    yield dict(zip(names, map(as_tensor, masking.hide(ids, chosen)), strict=True))
