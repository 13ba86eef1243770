"""`pkd`, `rkd`, `dist`, `dkd`, `sinkd`, and standardised logits are the published ones (docs/quirks.md, 9)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from golden_cases import Case, Values, batch_of, formed, golden, method_for, run_method

from kdbert.heads import SingleLabel
from kdbert.losses.hinton import standardised
from kdbert.losses.patience import patience_loss
from kdbert.methods import Context, LossTerms, Method, Models, Outputs, Shape, get_method
from kdbert.methods.kd import HardAndSoftOptions, kd_terms


def prepared(name: str, epochs: int = 1, **options: Any) -> Method:
    """A method that reads answers, in `variant original`."""
    chosen = get_method(name)
    method = chosen(chosen.Options.model_validate({"name": name, "variant": "original", **options}))
    method.prepare(Context(Models(Shape(2, 1), (Shape(2, 1),)), SingleLabel(), batch_size=1, epochs=epochs))
    return method


def answers(method: Method, case: Case, progress: float = 0.0) -> tuple[LossTerms, torch.Tensor]:
    """Terms of one batch, and the student's logits, which have the gradient of the total."""
    batch = replace(batch_of(case.inputs["labels"], 1), progress=progress)
    student = case.inputs["student_logits"].clone().requires_grad_()
    sides = (Outputs(logits, mask=batch.attention_mask) for logits in (student, case.inputs["teacher_logits"]))
    own, other = sides
    terms = method(own, [other], batch)
    terms.total.backward()
    return terms, student


def sums(terms: LossTerms, student: torch.Tensor) -> Values:
    """The total and its gradient."""
    return {"total_loss": terms.total, "grad_student_logits": student.grad}


@golden("pkd")
def test_pkd_is_the_original(case: Case) -> Iterator[Values]:
    inputs, hyper = case.inputs, case.hyper
    options = case.options("alpha", "beta", "temperature")
    options |= {"normalise": hyper["normalize_patience"], "layer_map": hyper["layer_pairs"]}
    inputs.setdefault("teacher_logits", torch.zeros_like(inputs["student_logits"]))  # of a case without a teacher
    method = method_for("pkd", options, inputs, 1)
    terms, values = run_method(method, inputs)
    yield formed(terms, {"ce_loss": "hard", "kd_loss": "soft" if hyper["alpha_soft"] else "no teacher"})
    total, beta = values.pop("total_loss"), hyper["beta"]
    yield values | {"total_loss_half": total if beta else None}
    if not beta:
        yield {"total_loss": total}
        return
    own, other = (
        torch.stack([inputs[f"{side}_hidden"][pair[number]][:, 0] for pair in hyper["layer_pairs"]])
        for number, side in ((1, "student"), (0, "teacher"))
    )
    patience = patience_loss(own, other, hyper["normalize_patience"]).mean() / own.shape[-1]
    rest = sum(terms.weights[name] * terms.terms[name] for name in ("hard", "soft"))
    yield {"patience_loss": patience, "patience_loss_half": patience.half(), "total_loss": rest + beta * patience}


@golden("rkd")
def test_rkd_is_the_original(case: Case) -> Iterator[Values]:
    flat = "teacher_states" in case.inputs
    kind = "states" if flat else "embedding"
    student, teacher = (case.inputs[f"{side}_{kind}"] for side in ("student", "teacher"))
    if not flat:  # the embedding is what stands for an example: as its first token
        student, teacher = student[:, None], teacher[:, None]
    options = case.options("distance_weight", "angle_weight") | {"alpha": 1.0, "features": "flat" if flat else "cls"}
    nothing = torch.zeros(len(student), 2, dtype=student.dtype)
    inputs = {
        "student_hidden": torch.stack([student, student]), "teacher_hidden": torch.stack([teacher, teacher]),
        "student_logits": nothing, "teacher_logits": nothing, "labels": nothing[:, 0].long(),
    }  # fmt: skip
    if flat:
        inputs["attention_mask"] = case.inputs["attention_mask"]
    terms, values = run_method(method_for("rkd", options, inputs, len(student)), inputs)
    yield formed(terms, {"distance_loss": "distance", "angle_loss": "angle"})
    gradient = values["grad_student_hidden"][-1]
    yield {
        "total_loss": sum(terms.weights[name] * terms.terms[name] for name in terms.terms if name != "hard"),
        f"grad_student_{kind}": gradient if flat else gradient[:, 0],
    }


@golden("dist")
def test_dist_is_the_original(case: Case) -> Iterator[Values]:
    options = case.options("beta", "gamma", "temperature", "hard_weight")
    terms, student = answers(prepared("dist", **options), case)
    yield formed(terms, {"ce_loss": "hard", "inter_loss": "inter", "intra_loss": "intra"})
    yield sums(terms, student)
    yield {"kd_loss": sum(terms.weights[name] * terms.terms[name] for name in terms.terms if name != "hard")}


def decoupled(case: Case) -> Iterator[Values]:
    """`dkd`, of a run of as many epochs as the published ones have."""
    hyper, epochs = case.hyper, 240
    options = case.options("alpha_d", "beta_d", "temperature") | {"hard_weight": hyper["ce_weight"]}
    options |= {"warmup": hyper["warmup"] / epochs, "standardise_logits": hyper["standardise"]}
    terms, student = answers(prepared("dkd", epochs, **options), case, (hyper["epoch"] - 1) / epochs)
    yield formed(terms, {"ce_loss": "hard", "tckd_loss": "tckd", "nckd_loss": "nckd"})
    yield sums(terms, student)
    weights = {"tckd": hyper["alpha_d"], "nckd": hyper["beta_d"]}
    yield {"kd_loss": sum(weight * terms.terms[name] for name, weight in weights.items() if weight)}


@golden("dkd")
def test_dkd_is_the_original(case: Case) -> Iterator[Values]:
    yield from decoupled(case)


@golden("logit_std")
def test_standardised_logits_are_the_original(case: Case) -> Iterator[Values]:
    if case.entry["variant"] == "dkd":
        yield from decoupled(case)
        return
    options = HardAndSoftOptions(
        name="kd", variant="original", temperature=case.hyper["temperature"], standardise_logits=True
    )
    batch = batch_of(case.inputs["labels"], 1)
    student = case.inputs["student_logits"].requires_grad_()
    sides = [Outputs(logits, mask=batch.attention_mask) for logits in (student, case.inputs["teacher_logits"])]
    weights = case.hyper["ce_weight"], case.hyper["kd_weight"]
    terms = kd_terms(SingleLabel(), options, *sides, batch, weights)
    terms.total.backward()
    yield formed(terms, {"ce_loss": "hard", "kd_loss": "soft"})
    yield sums(terms, student)
    yield {f"{side}_standardised": standardised(case.inputs[f"{side}_logits"]) for side in ("student", "teacher")}


@golden("sinkd")
def test_sinkd_is_the_original(case: Case) -> Iterator[Values]:
    hyper = case.hyper
    epochs = hyper.get("anneal_epochs", 1)
    progress = hyper.get("anneal_epoch", 0) / epochs
    options = case.options("alpha", "beta", "temperature", "sinkhorn_temperature") | {"anneal": "anneal_epoch" in hyper}
    terms, student = answers(prepared("sinkd", epochs, **options), case, progress)
    yield formed(terms, {"ce_loss": "hard", "kd_loss": "soft"})
    yield sums(terms, student)
    alone, other = answers(prepared("sinkd", alpha=1.0, beta=1.0), case)
    (hard,) = torch.autograd.grad(torch.nn.functional.cross_entropy(other, case.inputs["labels"]), other)
    yield {"sinkhorn_loss": alone.terms["sinkhorn"], "grad_sinkhorn_student_logits": other.grad - hard}
