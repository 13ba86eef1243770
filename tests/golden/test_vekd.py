"""`ve-kd` gives the published terms, total and gradients; what is hidden is what its collator hides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import arrays, as_tensor, batch_of, cases, compare, must_have

from kdbert.data.masking import Masking
from kdbert.heads import MaskedLM
from kdbert.methods import Context, MaskedLMOutputs, Models, Shape, get_method


@pytest.mark.parametrize("case", cases("vekd"))
def test_terms_total_and_gradients_are_the_originals(case: dict[str, Any]) -> None:
    inputs, expected = arrays(case)
    hyper = case["hyper"]
    kind = get_method("ve-kd")
    names = {"alpha_to": "tolerance"}
    options = {
        names.get(key, key): hyper[key]
        for key in ("alpha_ce", "alpha_mse", "alpha_cos", "alpha_mlm", "alpha_to", "temperature")
    }
    method = kind(kind.Options.model_validate({"variant": "original", **options})).double()
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

    compare(
        case,
        {
            "total_loss": terms.total,
            "n_selected": torch.tensor(float(batch.known_count)),
            "grad_student_logits": logits.grad,
            "grad_student_hidden_last": torch.zeros_like(hidden) if hidden.grad is None else hidden.grad,
            **{
                f"loss_{name}_after_tolerance": terms.terms[name]
                for name in ("ce", "mse", "cos")
                if name in terms.terms
            },
            **({"loss_mlm": terms.terms["mlm"]} if "mlm" in terms.terms else {}),
        },
        expected,
    )
    assert set(terms.terms) == {name for name in ("ce", "mse", "cos", "mlm") if hyper[f"alpha_{name}"]}


@pytest.mark.parametrize("case", cases("vekd_collator"))
def test_what_is_hidden_is_what_the_original_hides(case: dict[str, Any]) -> None:
    inputs, expected = arrays(case)
    hyper = case["hyper"]
    masking = Masking(hyper["mask_token_id"], np.zeros(0, bool), None, hyper["base_vocab"])
    ids = inputs["input_ids"].numpy()
    chosen = masking.with_new(ids, inputs["bernoulli_draw"].numpy() == 1)
    names = ("input_ids", "labels", "token_mask")
    compare(case, dict(zip(names, map(as_tensor, masking.hide(ids, chosen)), strict=True)), expected)


def test_the_families_have_cases(golden_dir: Path) -> None:
    must_have(golden_dir, "vekd", "vekd_collator")
