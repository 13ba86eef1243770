"""`distilbert-mlm` gives the published terms, total and gradients; the loss of spans is made of kdbert's losses
(docs/quirks.md, 14.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from golden_cases import Case, Values, batch_of, formed, golden

from kdbert.heads import MaskedLM
from kdbert.losses.hard import cross_entropy
from kdbert.losses.hinton import soft_label_loss
from kdbert.methods import Context, MaskedLMOutputs, Models, Shape, get_method

TERMS = ("ce", "mlm", "cos", "mse")


@golden("distilbert")
def test_terms_total_and_gradients_are_the_originals(case: Case) -> Iterator[Values]:
    if case.entry["variant"] == "squad":
        yield from spans(case)
        return
    inputs, hyper = case.inputs, case.hyper
    kind = get_method("distilbert-mlm")
    options = case.options(*(f"alpha_{name}" for name in TERMS), "temperature")
    options["hidden_only"] = hyper["restrict_ce_to_mask"]
    method = kind(kind.Options.model_validate({"name": kind.name, "variant": "original", **options}))
    width = inputs["student_hidden_last"].shape[-1]
    method.prepare(Context(Models(Shape(2, width), (Shape(3, width),)), MaskedLM(), batch_size=1))

    hidden, logits = inputs["student_hidden_last"].requires_grad_(), inputs["student_logits"].requires_grad_()
    mask = inputs["attention_mask"]
    batch = batch_of(inputs["lm_labels"], mask.shape[1], mask)
    batch.known = mask.bool()
    batch.known_scale = batch.token_scale
    batch.label_scale = 1 / max(1, int((inputs["lm_labels"] != -100).sum()))

    def head(values: torch.Tensor) -> Any:
        return lambda positions, columns=None: values.flatten(0, 1)[positions, :columns]

    teacher = MaskedLMOutputs(head(inputs["teacher_logits"]), mask=mask, hidden={3: inputs["teacher_hidden_last"]})
    terms = method(MaskedLMOutputs(head(logits), mask=mask, hidden={2: hidden}), [teacher], batch)
    terms.total.backward()
    assert set(terms.terms) == {name for name in TERMS if hyper[f"alpha_{name}"]}
    yield formed(terms, {f"{name}_loss": name for name in TERMS})
    yield {
        "total_loss": terms.total,
        "grad_student_logits": logits.grad,
        "grad_student_hidden_last": hidden.grad,
    }


def spans(case: Case) -> Iterator[Values]:
    """Means over the starts and ends of answers."""
    inputs, hyper = case.inputs, case.hyper
    sides = [inputs[f"student_{side}_logits"].requires_grad_() for side in ("start", "end")]
    teachers = [inputs[f"teacher_{side}_logits"] for side in ("start", "end")]
    places = [inputs[f"{side}_positions"] for side in ("start", "end")]
    soft = [soft_label_loss(*pair, hyper["temperature"]).mean() for pair in zip(sides, teachers, strict=True)]
    hard = [cross_entropy(*pair).mean() for pair in zip(sides, places, strict=True)]
    losses = sum(soft) / 2, sum(hard) / 2
    total = hyper["alpha_ce"] * losses[0] + hyper["alpha_squad"] * losses[1]
    total.backward()
    yield {"ce_loss": losses[0], "hard_loss": losses[1], "total_loss": total}
    yield {"grad_student_start_logits": sides[0].grad, "grad_student_end_logits": sides[1].grad}
