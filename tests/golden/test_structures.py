"""`ics` and the CKA methods give the numbers of the published scripts, values and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import arrays, cases, compare, method_for, must_have, run_method

from kdbert.losses.cka import centered_gram, cka, cka_loss, hsic
from kdbert.losses.neighbors import intra_class_cosine
from kdbert.losses.structure import compare_cosines, compare_distances, patience

FAMILIES = ("ics_knn", "cka_core", "cka_i", "cka_l", "cka_g", "cka_ilg", "fsd_monitors")


def check_terms(case: dict[str, Any], terms: Any, names: dict[str, str], expected: dict[str, torch.Tensor]) -> None:
    """Compare the terms that were formed; those that were not must have no weight in the case."""
    formed = {name: terms.terms[term] for name, term in names.items() if term in terms.terms}
    compare(case, formed, expected)
    for name, term in names.items():
        assert name in formed or name not in expected or terms.weights.get(term, 0) == 0


@pytest.mark.parametrize("case", [case for case in cases("ics_knn") if case.values[0]["variant"] != "hatespeech"])
def test_ics_is_the_original(case: dict[str, Any]) -> None:
    inputs, expected = arrays(case)
    hyper = case["hyper"]
    options = {key: hyper[key] for key in ("alpha", "beta", "temperature")} | {"neighbors": hyper["k"]}
    method = method_for("ics", options, inputs, len(inputs["labels"]))
    terms, logits, hidden = run_method(method, inputs)
    check_terms(case, terms, {"ce_loss": "hard", "kd_loss": "soft", "feature_loss": "feature"}, expected)
    compare(
        case,
        {
            "total_loss": terms.total,
            "grad_student_logits": logits.grad,
            "grad_student_hidden": hidden.grad,
            "grad_feature_last_hidden": hidden.grad[-1] / hyper["beta"] if hyper["beta"] else torch.zeros(0),
        },
        expected if hyper["beta"] else {k: v for k, v in expected.items() if k != "grad_feature_last_hidden"},
    )
    labels = inputs["labels"]
    cosine = intra_class_cosine(inputs["student_hidden"][-1].flatten(1), labels[:, None] == labels[None, :])
    compare(case, {"intra_class_cosine": cosine}, expected)


@pytest.mark.parametrize("case", [case for case in cases("ics_knn") if case.values[0]["variant"] == "hatespeech"])
def test_ics_of_the_hate_speech_script_keeps_its_shrunken_k(case: dict[str, Any]) -> None:
    inputs, expected = arrays(case)
    hyper = case["hyper"]
    options = {key: hyper[key] for key in ("alpha_ce", "alpha_soft", "alpha_mse", "temperature")}
    options |= {"neighbors": hyper["k"], "k_state": "run"}
    parts = [
        {name.removeprefix(f"b{number}."): value for name, value in inputs.items() if name.startswith(f"b{number}.")}
        for number in range(hyper["n_batches"])
    ]
    method = method_for("ics", options, parts[0], len(parts[0]["labels"]))
    for number, part in enumerate(parts):
        before = method.k.clone()
        terms, logits, hidden = run_method(method, part)
        found = {
            "total_loss": terms.total, "grad_student_logits": logits.grad, "grad_student_hidden": hidden.grad,
            "k_in": before, "k_out": method.k,
        }  # fmt: skip
        compare(case, {f"b{number}.{name}": value for name, value in found.items()}, expected)
    assert "k" in method.state_dict()  # so it goes into checkpoints


@pytest.mark.parametrize("case", cases("cka_i", "cka_l"))
def test_one_structure_is_the_original(case: dict[str, Any]) -> None:
    inputs, expected = arrays(case)
    hyper = case["hyper"]
    options = {key: hyper[key] for key in ("alpha", "beta", "temperature")} | {"layerwise": hyper["do_layerwise"]}
    if case["method"] == "cka_i":
        options["internal"] = hyper["internal"]
    method = method_for(case["method"].replace("_", "-"), options, inputs, hyper["per_gpu_train_batch_size"])
    terms, logits, hidden = run_method(method, inputs)
    term = "intra" if case["method"] == "cka_i" and hyper["internal"] else "local"
    check_terms(case, terms, {"ce_loss": "hard", "kd_loss": "soft", "cka_loss": term}, expected)
    compare(
        case,
        {"total_loss": terms.total, "grad_student_logits": logits.grad, "grad_student_hidden": hidden.grad},
        expected,
    )


@pytest.mark.parametrize("case", cases("cka_g", "cka_ilg"))
def test_the_global_structure_is_the_original(case: dict[str, Any]) -> None:
    inputs, expected = arrays(case)
    hyper = case["hyper"]
    names = ("alpha", "beta", "gamma", "sigma", "epsilon", "temperature")
    options = {name: hyper[name] for name in names if name in hyper}
    if case["method"] == "cka_ilg":
        options["layerwise"] = hyper["do_layerwise"]
    method = method_for(case["method"].replace("_", "-"), options, inputs, hyper["per_gpu_train_batch_size"])
    if method.centroids is not None:
        start = inputs["student_memory"].view_as(method.centroids.student)
        method.centroids.student = torch.nn.Parameter(start.clone())
    terms, logits, hidden = run_method(method, inputs)
    names = {
        "ce_loss": "hard", "kd_loss": "soft", "dist_loss": "distance", "cos_loss": "cosine",
        "memory_cka_loss": "memory_cka", "intra_loss": "intra", "local_loss": "local",
    }  # fmt: skip
    check_terms(case, terms, names, expected)
    share = hyper["gamma"] if case["method"] == "cka_g" else hyper["beta"]
    found = {
        "total_loss": terms.total,
        "grad_student_logits": logits.grad,
        "grad_student_hidden": hidden.grad,
        "grad_student_memory": torch.zeros_like(inputs["student_memory"]),
    }
    if method.centroids is not None:
        found["grad_student_memory"] = method.centroids.student.grad.view_as(inputs["student_memory"])
        zero = torch.zeros((), dtype=torch.float64)
        found["global_loss"] = (
            share * terms.terms.get("distance", zero)
            + (1 - share) * terms.terms.get("cosine", zero)
            + terms.terms["memory_cka"]
        )
    compare(case, found, expected)


def test_cka_il_is_cka_ilg_with_sigma_0() -> None:
    for parameter in cases("cka_ilg"):
        case = parameter.values[0]
        if case["hyper"]["sigma"] != 0:
            continue
        inputs, expected = arrays(case)
        hyper = case["hyper"]
        options = {name: hyper[name] for name in ("alpha", "gamma", "epsilon", "temperature")}
        options["layerwise"] = hyper["do_layerwise"]
        terms, logits, hidden = run_method(
            method_for("cka-il", options, inputs, hyper["per_gpu_train_batch_size"]), inputs
        )
        compare(
            case,
            {"total_loss": terms.total, "grad_student_logits": logits.grad, "grad_student_hidden": hidden.grad},
            expected,
        )


@pytest.mark.parametrize("case", cases("cka_core"))
def test_cka_is_the_original(case: dict[str, Any]) -> None:
    inputs, expected = arrays(case)
    student = inputs["student"].requires_grad_()
    first, second = centered_gram(inputs["teacher"]), centered_gram(student)
    loss = cka_loss(cka(first, second))
    loss.backward()
    compare(case, {"hsic": hsic(first, second), "loss": loss, "grad_student": student.grad}, expected)


@pytest.mark.parametrize("case", cases("fsd_monitors"))
def test_monitors_are_the_originals(case: dict[str, Any]) -> None:
    inputs, expected = arrays(case)
    teacher, student = inputs["teacher_hidden"], inputs["student_hidden"]
    rows = case["hyper"]["per_gpu_train_batch_size"]

    def flat(hidden: torch.Tensor) -> torch.Tensor:
        return hidden.reshape(rows, -1)

    pairs = [(flat(teacher[a]), flat(student[b])) for a, b in ((2, 1), (4, 2), (6, 3), (8, 4), (10, 5))]
    half = patience(pairs, half=True)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), expected["pkd_half"], rtol=case["rtol_pkd_half"], atol=0)
    compare(
        case,
        {
            "inter_dist": compare_distances(flat(teacher[11]), flat(student[5])),
            "inter_cos": compare_cosines(flat(teacher[11]), flat(student[5])),
            "intra_dist": compare_distances(teacher[11], student[5]),
            "intra_cos": compare_cosines(teacher[11], student[5]),
        },
        expected,
    )


def test_the_families_have_cases(golden_dir: Path) -> None:
    must_have(golden_dir, *FAMILIES)
