"""`mgskd` and `ckd` give the numbers of the published losses, values and gradients (docs/quirks.md, 14.2, 14.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from golden_cases import MANIFEST, Case, Values, formed, golden, method_for, run_method

from kdbert.methods import Method

KINDS = {"cos": "cosine", "l2": "squared", "kldiv": "kl", "l2loss": "l2", "l1loss": "l1", "smoothl1": "smooth_l1"}


def made(name: str, options: dict[str, Any], inputs: Values) -> Method:
    """The method; a case without labels gets some, which nothing reads."""
    inputs.setdefault("labels", torch.zeros(inputs["student_hidden"].shape[1], dtype=torch.int64))
    for side in ("teacher", "student"):
        inputs.setdefault(f"{side}_logits", torch.zeros(len(inputs["labels"]), 2, dtype=torch.float64))
    return method_for(name, options, inputs, len(inputs["labels"]))


@golden("mgskd")
def test_mgskd_is_the_original(case: Case) -> Iterator[Values]:
    hyper = case.hyper
    options = case.options("relation_heads", "sample_weight", "token_weight") | {
        "centres": hyper["k1"], "ends": hyper["k2"], "token_layers": hyper["M"], "layer_map": hyper["layer_pairs"],
    }  # fmt: skip
    terms, values = run_method(made("mgskd", options, case.inputs), case.inputs)
    assert values.pop("grad_student_logits").abs().max() == 0  # relations alone
    yield values
    yield formed(terms, {"sample_loss": "sample"} | ({"token_loss": "token"} if hyper["M"] else {}))
    yield {} if hyper["M"] else {"token_loss": None}


@golden("ckd")
def test_ckd_is_the_original(case: Case) -> Iterator[Values]:
    hyper = case.hyper
    names = {
        "WR_Dist": "word_distance",
        "WR_Angle": "word_angle",
        "LTR_Dist": "layer_distance",
        "LTR_Angle": "layer_angle",
    }
    weights = dict.fromkeys(names.values(), 0.0)
    if "term" in hyper:  # one of them alone, of layers that are pairs already
        kind = hyper["term"].removesuffix("_window")
        options = {
            **weights, names[kind]: 1.0, "window": hyper.get("window"), "normalize": hyper.get("normalize", False),
            "distance": KINDS[hyper.get("distance", "cos")],
            "distance_error" if kind.endswith("Dist") else "angle_error": KINDS[hyper["lossfunc"]],
            "layer_map": [[number, number] for number in range(len(case.inputs["student_hidden"]))],
        }  # fmt: skip
        terms, values = run_method(made("ckd", options, case.inputs), case.inputs)
        yield {"loss": terms.terms[names[kind]], "grad_student_hidden": values["grad_student_hidden"]}
        return
    published = {
        "word_distance": "wrdist_w",
        "word_angle": "wrangle_w",
        "layer_distance": "ltrdist_w",
        "layer_angle": "ltrangle_w",
    }
    weights = {name: hyper[key] for name, key in published.items()}
    if hyper["lossfunc_d"] is None:  # then there are no distances
        weights |= {"word_distance": 0.0, "layer_distance": 0.0}
    options = weights | case.options("temperature", "window") | {"layer_map": hyper["layer_pairs"]}
    terms, values = run_method(made("ckd", options, case.inputs), case.inputs)
    assert terms.weights["hard"] == 0
    yield values
    terms_of = {
        "kd_loss": "soft", "wr_dist_loss": "word_distance", "wr_angle_loss": "word_angle",
        "ltr_dist_loss": "layer_distance", "ltr_angle_loss": "layer_angle",
    }  # fmt: skip
    yield formed(terms, {name: term for name, term in terms_of.items() if name in case.expected})


ANGLES = [pytest.param(entry, id=entry["id"]) for entry in MANIFEST if entry["method"] == "rkd"]


@pytest.mark.parametrize("entry", ANGLES)
def test_with_one_part_the_relations_among_texts_are_the_angles_of_rkd(entry: dict[str, Any]) -> None:
    case = Case.load(entry)
    if "student_states" in case.inputs:
        return  # of flattened texts
    sides = [case.inputs[f"{side}_embedding"][None, :, None] for side in ("teacher", "student")]  # texts of one token
    inputs = dict(zip(("teacher_hidden", "student_hidden"), sides, strict=True))
    options = {"relation_heads": 1, "token_layers": 0, "layer_map": [[0, 0]], "sample_weight": 1.0}
    terms, _ = run_method(made("mgskd", options, inputs), inputs)
    case.compare({"angle_loss": terms.terms["sample"]})
