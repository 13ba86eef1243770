"""`kd` and `multi-kd` give the numbers of every published implementation, values and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from golden_cases import arrays, batch_of, cases, compare, must_have

from kdbert.heads import Regression, SingleLabel
from kdbert.methods import Context, Models, Outputs, Shape, get_method

FAMILIES = ("hinton", "multi_teacher")


@pytest.mark.parametrize("case", cases(*FAMILIES))
def test_terms_total_and_gradient_are_the_originals(case: dict[str, Any]) -> None:
    inputs, expected = arrays(case)
    hyper = case["hyper"]
    assert hyper.get("alpha_weights", "ce") == "ce"
    several = case["method"] == "multi_teacher"
    method = get_method("multi-kd" if several else "kd")
    options = method.Options.model_validate(
        {"variant": "original", "alpha": hyper["alpha"], "temperature": hyper["temperature"]}
    )
    batch = batch_of(inputs["labels"], 1)
    teachers = [
        Outputs(inputs[name], mask=batch.attention_mask) for name in sorted(inputs) if name.startswith("teacher_logits")
    ]
    assert len(teachers) == hyper.get("n_teachers", 1)
    student = inputs["student_logits"].requires_grad_()

    made = method(options)
    head = Regression() if inputs["labels"].is_floating_point() else SingleLabel()
    made.prepare(Context(Models(Shape(1, 1), (Shape(1, 1),) * len(teachers)), head, batch_size=1))
    terms = made(Outputs(student, mask=batch.attention_mask), teachers, batch)
    terms.total.backward()

    soft = [term for name, term in terms.terms.items() if name.startswith("soft")]
    # With alpha 1 the soft term has no weight, so it is not formed (and no teacher would be run).
    assert len(soft) == (0 if hyper["alpha"] == 1 else len(teachers))
    compared = {"total_loss": terms.total, "grad_student_logits": student.grad, "ce_loss": terms.terms["hard"]}
    if soft:
        compared["kd_loss"] = sum(soft)
    compare(case, compared, expected)
    assert set(expected) - set(compared) <= ({"kd_loss"} if not soft else set())


def test_the_families_have_cases(golden_dir: Path) -> None:
    must_have(golden_dir, *FAMILIES)
