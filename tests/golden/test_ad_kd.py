"""`ad-kd` gives the published attributions and loss, with gradients of both orders (docs/quirks.md, 14.4)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from golden_cases import Case, Values, batch_of, golden

from kdbert.heads import Regression, SingleLabel
from kdbert.methods import Context, Models, Outputs, Shape, get_method
from kdbert.training.teacher import outputs_for

ERRORS = {"L2": "l2", "L1": "l1", "smoothL1": "smooth_l1"}


@golden("ad_kd")
def test_ad_kd_is_the_original(case: Case) -> Iterator[Values]:
    inputs, hyper = case.inputs, case.hyper
    mask, head = inputs["attention_mask"], Regression() if hyper["regression"] else SingleLabel()
    kind = get_method("ad-kd")
    given = {"name": "ad-kd", "variant": "original", **case.options("alpha", "top_k", "norm", "temperature", "views")}
    given |= {"error": ERRORS[hyper["loss_func"]], "anneal": "anneal_epochs" in hyper}
    given["beta"] = hyper["saliency_weight"] or 1.0  # what has no weight is not formed
    method = kind(kind.Options.model_validate(given))
    shapes = [Shape(1, inputs[f"{side}_embedding"].shape[-1]) for side in ("teacher", "student")]
    models = Models(student=shapes[1], teachers=(shapes[0],))
    epochs = hyper.get("anneal_epochs", 1)
    method.prepare(Context(models, head, batch_size=len(mask), epochs=epochs))

    def seen(side: str) -> Outputs:
        """The model of the cases: the mean over real tokens of tanh(embedding), times a matrix."""
        embedding = inputs[f"{side}_embedding"].requires_grad_()
        weight = inputs[f"{side}_weight"].requires_grad_(side == "student")
        each = torch.tanh(embedding) * mask[:, :, None]
        return Outputs(each.sum(1) / mask.sum(1, keepdim=True) @ weight, mask=mask, hidden={0: embedding})

    batch = batch_of(inputs["labels"], mask.shape[1], mask)
    batch.progress = hyper.get("anneal_epoch", 0) / epochs
    student = seen("student")
    teacher = outputs_for(method, method.needs(method.options, models), seen("teacher"), batch)
    (attribution,) = teacher.reduced.values()
    yield {"teacher_attribution": attribution.movedim(-1, 0), "student_logits": student.logits}
    yield {"student_attribution": method._attributions(student, batch).movedim(-1, 0)}
    terms = method(student, [teacher], batch)
    names = {"ce_loss": "hard", "kd_loss": "soft", "saliency_loss": "attribution"}
    yield {name: terms.terms[term] for name, term in names.items()}
    terms.weights["attribution"] = hyper["saliency_weight"]
    leaves = inputs["student_embedding"], inputs["student_weight"]
    for prefix, loss in (("grad", terms.total), ("grad_saliency", terms.terms["attribution"])):
        gradients = torch.autograd.grad(loss, leaves, retain_graph=True)
        yield dict(zip((f"{prefix}_student_embedding", f"{prefix}_student_weight"), gradients, strict=True))
    yield {"total_loss": terms.total}
