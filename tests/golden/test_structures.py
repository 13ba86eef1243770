"""`ics` and the CKA methods give the numbers of the published scripts, values and gradients (docs/quirks.md, 2, 3)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from golden_cases import Case, Values, formed, golden, method_for, run_method

from kdbert.losses.cka import centered_gram, cka, cka_loss, hsic
from kdbert.losses.neighbors import intra_class_cosine
from kdbert.losses.similarity import compare_cosines, compare_distances, patience


@golden("ics_knn")
def test_ics_is_the_original(case: Case) -> Iterator[Values]:
    if case.entry["variant"] == "hatespeech":
        yield from with_a_shrunken_k(case)
        return
    inputs, hyper = case.inputs, case.hyper
    options = case.options("alpha", "beta", "temperature") | {"neighbors": hyper["k"]}
    method = method_for("ics", options, inputs, len(inputs["labels"]))
    terms, values = run_method(method, inputs)
    yield formed(terms, {"ce_loss": "hard", "kd_loss": "soft", "feature_loss": "feature"})
    yield values
    gradient = values["grad_student_hidden"][-1]
    yield {"grad_feature_last_hidden": gradient / hyper["beta"] if hyper["beta"] else None}
    same = inputs["labels"][:, None] == inputs["labels"][None, :]
    yield {"intra_class_cosine": intra_class_cosine(inputs["student_hidden"][-1].flatten(1), same)}


def with_a_shrunken_k(case: Case) -> Iterator[Values]:
    """The hate speech script keeps its k from batch to batch (quirk I2)."""
    hyper = case.hyper
    options = case.options("alpha_ce", "alpha_soft", "temperature")
    options |= {"beta": hyper["alpha_mse"], "neighbors": hyper["k"], "k_state": "run"}
    parts = [
        {name.removeprefix(f"b{number}."): v for name, v in case.inputs.items() if name.startswith(f"b{number}.")}
        for number in range(hyper["n_batches"])
    ]
    method = method_for("ics", options, parts[0], len(parts[0]["labels"]))
    for number, part in enumerate(parts):
        before = method.k.clone()
        _, values = run_method(method, part)
        values |= {"k_in": before, "k_out": method.k}
        yield {f"b{number}.{name}": value for name, value in values.items()}
    assert "k" in method.state_dict()  # so it goes into checkpoints


@golden("cka_i", "cka_l")
def test_one_structure_is_the_original(case: Case) -> Iterator[Values]:
    hyper = case.hyper
    options = case.options("alpha", "beta", "temperature") | {"layerwise": hyper["do_layerwise"]}
    if case.family == "cka_i":
        options["internal"] = hyper["internal"]
    name = case.family.replace("_", "-")
    terms, values = run_method(method_for(name, options, case.inputs, hyper["per_gpu_train_batch_size"]), case.inputs)
    term = "intra" if options.get("internal") else "local"
    yield formed(terms, {"ce_loss": "hard", "kd_loss": "soft", "cka_loss": term})
    yield values


@golden("cka_g", "cka_ilg")
def test_the_global_structure_is_the_original(case: Case) -> Iterator[Values]:
    inputs, hyper = case.inputs, case.hyper
    options = case.options("alpha", "beta", "gamma", "sigma", "epsilon", "temperature")
    if case.family == "cka_ilg":
        options["layerwise"] = hyper["do_layerwise"]
    rows = hyper["per_gpu_train_batch_size"]
    method = method_for(case.family.replace("_", "-"), options, inputs, rows)
    if method.centroids is not None:
        start = inputs["student_memory"].view_as(method.centroids.student)
        method.centroids.student = torch.nn.Parameter(start.clone())
    terms, values = run_method(method, inputs)
    names = {
        "ce_loss": "hard", "kd_loss": "soft", "dist_loss": "distance", "cos_loss": "cosine",
        "memory_cka_loss": "memory_cka", "intra_loss": "intra", "local_loss": "local",
    }  # fmt: skip
    yield formed(terms, names)
    if method.centroids is None:
        yield {"global_loss": None, "grad_student_memory": torch.zeros_like(inputs["student_memory"])}
    else:
        share = hyper["gamma"] if case.family == "cka_g" else hyper["beta"]
        parts = (share, "distance"), (1 - share, "cosine"), (1, "memory_cka")
        yield {
            "global_loss": sum(weight * terms.terms[term] for weight, term in parts if weight),
            "grad_student_memory": method.centroids.student.grad.view_as(inputs["student_memory"]),
        }
    yield values
    if hyper.get("sigma") == 0:  # then it is `cka-il`
        options = {name: option for name, option in options.items() if name not in ("beta", "sigma")}
        yield run_method(method_for("cka-il", options, inputs, rows), inputs)[1]


@golden("cka_core")
def test_cka_is_the_original(case: Case) -> Iterator[Values]:
    student = case.inputs["student"].requires_grad_()
    first, second = centered_gram(case.inputs["teacher"]), centered_gram(student)
    loss = cka_loss(cka(first, second))
    loss.backward()
    yield {"hsic": hsic(first, second), "loss": loss, "grad_student": student.grad}


@golden("fsd_monitors")
def test_monitors_are_the_originals(case: Case) -> Iterator[Values]:
    teacher, student = case.inputs["teacher_hidden"], case.inputs["student_hidden"]
    rows = case.hyper["per_gpu_train_batch_size"]

    def flat(hidden: torch.Tensor) -> torch.Tensor:
        return hidden.reshape(rows, -1)

    pairs = [(flat(teacher[a]), flat(student[b])) for a, b in ((2, 1), (4, 2), (6, 3), (8, 4), (10, 5))]
    half = patience(pairs, half=True)
    assert half.dtype == torch.float16
    yield {
        "pkd_half": half.double(),
        "inter_dist": compare_distances(flat(teacher[11]), flat(student[5])),
        "inter_cos": compare_cosines(flat(teacher[11]), flat(student[5])),
        "intra_dist": compare_distances(teacher[11], student[5]),
        "intra_cos": compare_cosines(teacher[11], student[5]),
    }
