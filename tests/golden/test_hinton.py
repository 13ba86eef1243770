"""`kd` and `multi-kd` give the numbers of every published implementation, with gradients (docs/quirks.md, 1, 4)."""

from __future__ import annotations

from collections.abc import Iterator

from golden_cases import Case, Values, batch_of, formed, golden

from kdbert.heads import Regression, SingleLabel
from kdbert.methods import Context, Models, Outputs, Shape, get_method


@golden("hinton", "multi_teacher")
def test_terms_total_and_gradient_are_the_originals(case: Case) -> Iterator[Values]:
    inputs, hyper = case.inputs, case.hyper
    assert hyper.get("alpha_weights", "ce") == "ce"
    method = get_method("multi-kd" if case.family == "multi_teacher" else "kd")
    given = {"name": method.name, "variant": "original", **case.options("alpha", "temperature")}
    options = method.Options.model_validate(given)
    batch = batch_of(inputs["labels"], 1)
    mask = batch.attention_mask
    teachers = [Outputs(inputs[name], mask=mask) for name in sorted(inputs) if name.startswith("teacher_logits")]
    assert len(teachers) == hyper.get("n_teachers", 1)
    student = inputs["student_logits"].requires_grad_()

    made = method(options)
    head = Regression() if inputs["labels"].is_floating_point() else SingleLabel()
    made.prepare(Context(Models(Shape(1, 1), (Shape(1, 1),) * len(teachers)), head, batch_size=1))
    terms = made(Outputs(student, mask=mask), teachers, batch)
    terms.total.backward()

    soft = [term for name, term in terms.terms.items() if name.startswith("soft")]
    # With alpha 1 the soft term has no weight, so it is not formed (and no teacher would be run).
    assert len(soft) == (0 if hyper["alpha"] == 1 else len(teachers))
    yield formed(terms, {"ce_loss": "hard"})
    yield {
        "total_loss": terms.total,
        "grad_student_logits": student.grad,
        "kd_loss": sum(soft) if soft else None,
    }
