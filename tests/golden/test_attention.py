"""`minilm` and `tinybert` give the numbers of the published code, values and gradients (docs/quirks.md, 12, 13)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from golden_cases import Case, Values, batch_of, formed, golden

from kdbert.heads import Encoder, Head, Regression, SingleLabel
from kdbert.losses.attention import padded_relation_loss, scores, split_heads
from kdbert.methods import Context, HiddenStates, Method, Models, Outputs, Shape, get_method

KINDS = {"query": "q", "key": "k", "value": "v"}
SIDES = ("teacher", "student")


def prepared(name: str, options: dict[str, Any], models: Models, head: Head) -> Method:
    """The method in `variant original`, as a run prepares it."""
    chosen = get_method(name)
    method = chosen(chosen.Options.model_validate({"name": name, "variant": "original", **options}))
    method.prepare(Context(models, head, batch_size=1))
    return method.double()


@golden("minilmv2", "minilm")
def test_relations_are_the_originals(case: Case) -> Iterator[Values]:
    if case.entry["variant"] == "port_padded":
        yield from the_port(case)
        return
    inputs, weights = case.inputs, case.hyper["relations"]
    states = {side: inputs[f"{side}_states"].requires_grad_(side == "student") for side in SIDES}
    projections: dict[str, torch.Tensor] = {}
    parameters = {
        name: value.requires_grad_() for name, value in inputs.items() if name.startswith("student_") and "_" in name
    }
    for side in SIDES:
        for kind in KINDS:
            weight, bias = (inputs[f"{side}_{kind}_{part}"] for part in ("weight", "bias"))
            projections[f"{side}_{kind}"] = states[side] @ weight.T + bias
            if side == "student":
                projections[f"{side}_{kind}"].retain_grad()
    shapes = [Shape(1, states[side].shape[-1], 1, states[side].shape[-1]) for side in SIDES]
    seen = [
        HiddenStates(
            mask=inputs["attention_mask"],
            attention={1: {short: projections[f"{side}_{kind}"].unsqueeze(1) for kind, short in KINDS.items()}},
        )
        for side in SIDES
    ]
    options = {
        "relations": list(weights), "relation_weights": list(weights.values()),
        "relation_heads": case.hyper["relation_heads"],
    }  # fmt: skip
    method = prepared("minilm", options, Models(shapes[1], (shapes[0],)), Encoder())
    terms = method(seen[1], seen[:1], batch_of(torch.zeros(len(states["student"])), states["student"].shape[1]))
    terms.total.backward()
    yield {"total_loss": terms.total}
    alone = prepared("minilm", {**options, "relation_weights": None}, Models(shapes[1], (shapes[0],)), Encoder())
    every = alone(seen[1], seen[:1], batch_of(torch.zeros(len(states["student"])), 1))
    yield formed(every, {f"loss_{name}": f"relation.{name}" for name in weights})
    yield {f"grad_student_{kind}": projections[f"student_{kind}"].grad for kind in KINDS}
    yield {f"grad_{name}": torch.zeros_like(one) if one.grad is None else one.grad for name, one in parameters.items()}


def the_port(case: Case) -> Iterator[Values]:
    """Scores and values are given, not queries and keys."""
    inputs, least = case.inputs, case.hyper["clamp"]
    attention, value = (inputs[f"student_{name}"].requires_grad_() for name in ("attention", "value"))
    first = padded_relation_loss(attention, inputs["teacher_attention"], inputs["attention_mask"], least).mean()
    theirs = inputs["teacher_value"]
    second = padded_relation_loss(scores((value, value)), scores((theirs, theirs)), None, least).mean()
    (first + second).backward()
    yield {"attention_loss": first, "value_loss": second, "total_loss": first + second}
    yield {"grad_student_attention": attention.grad, "grad_student_value": value.grad}


@golden("tinybert")
def test_both_stages_are_the_originals(case: Case) -> Iterator[Values]:
    if case.entry["variant"].startswith("prediction"):
        yield from second_stage(case)
        return
    inputs, hyper = case.inputs, case.hyper
    heads, mask = hyper["heads"], inputs["attention_mask"]
    hidden = inputs["student_hidden"].requires_grad_()
    shapes = [Shape(len(inputs[f"{side}_hidden"]) - 1, inputs[f"{side}_hidden"].shape[-1], heads, 1) for side in SIDES]
    layers = [(a, b) for a, b in hyper["hidden_pairs"] if a]
    assert layers == [tuple(pair) for pair in hyper["attention_pairs"]]
    method: Any = prepared("tinybert", {"layer_map": layers}, Models(shapes[1], (shapes[0],)), Encoder())
    (projection,) = method.projections
    with torch.no_grad():
        projection.weight.copy_(inputs["projection_weight"])
        projection.bias.copy_(inputs["projection_bias"])
    of_scores = "student_attention" in inputs
    given = {
        name: value.requires_grad_(name.startswith("student"))
        for name, value in inputs.items()
        if name.endswith(("_attention", "_query", "_key"))
    }
    if of_scores:  # as queries of which the keys are the unit vectors, so that their products are these scores
        length = mask.shape[1]
        units = torch.eye(length, dtype=torch.float64).expand(len(mask), heads, length, length)
        attention = {
            side: {
                layer: {"q": one * length**0.5, "k": units} for layer, one in enumerate(given[f"{side}_attention"], 1)
            }
            for side in SIDES
        }
    else:
        attention = {
            side: {
                layer: {
                    short: split_heads(given[f"{side}_{kind}"][layer - 1].unsqueeze(1), heads)
                    for kind, short in (("query", "q"), ("key", "k"))
                }
                for layer in range(1, len(given[f"{side}_query"]) + 1)
            }
            for side in SIDES
        }
    seen = [
        HiddenStates(mask=mask, hidden=dict(enumerate(states)), attention=attention[side])
        for side, states in zip(SIDES, (inputs["teacher_hidden"], hidden), strict=True)
    ]
    terms = method(seen[1], seen[:1], batch_of(torch.zeros(len(mask)), mask.shape[1]))
    terms.total.backward()
    yield {"attention_loss": terms.terms["attention"], "hidden_loss": terms.terms["hidden"], "total_loss": terms.total}
    yield {
        f"{name}_losses": torch.stack([value for key, value in terms.monitors.items() if key.startswith(f"{name}/")])
        for name in ("attention", "hidden")
    }
    yield {"grad_student_hidden": hidden.grad, "grad_projection_weight": projection.weight.grad}
    yield {"grad_projection_bias": projection.bias.grad}
    yield {f"grad_{name}": value.grad for name, value in given.items()}


def second_stage(case: Case) -> Iterator[Values]:
    inputs, hyper = case.inputs, case.hyper
    leaves = {
        name: value.requires_grad_() for name, value in inputs.items() if name.startswith(("student_", "classifier_"))
    }
    if "student_pooled" in inputs:  # its head has a ReLU, which the library's has not
        logits = inputs["student_pooled"].relu() @ inputs["classifier_weight"].T + inputs["classifier_bias"]
    else:
        logits = inputs["student_logits"]
    head = Regression() if hyper["regression"] else SingleLabel()
    options = {"stage": "prediction", "temperature": hyper["temperature"]}
    method = prepared("tinybert", options, Models(Shape(1, 1), (Shape(1, 1),)), head)
    batch = batch_of(inputs["labels"], 1)
    teacher = Outputs(inputs["teacher_logits"], mask=batch.attention_mask)
    terms = method(Outputs(logits, mask=batch.attention_mask), [teacher], batch)
    terms.total.backward()
    yield {"total_loss": terms.total, "student_logits": logits}
    yield {f"grad_{name}": value.grad for name, value in leaves.items()}
