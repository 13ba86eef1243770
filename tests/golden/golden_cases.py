"""Reading golden cases, and running a method on one as training does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdbert.data.batches import Batch
from kdbert.heads import Regression, SingleLabel
from kdbert.methods import Context, LossTerms, Method, Models, Outputs, Shape, get_method
from kdbert.training.teacher import outputs_for

OURS = Path(__file__).parents[2].parent / "shared" / "golden"
GOLDEN = Path(os.environ.get("KDBERT_GOLDEN_DIR", OURS))


def cases(*families: str) -> list[Any]:
    """The manifest's cases of some families, as test parameters; none where the manifest is not there."""
    manifest = GOLDEN / "manifest.json"
    if not manifest.is_file():
        return []
    found = json.loads(manifest.read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, id=case["id"]) for case in found if case["method"] in families]


def must_have(golden_dir: Path, *families: str) -> None:
    """Fail if our own set lacks a family; another set may hold any part of them."""
    assert golden_dir.resolve() == GOLDEN.resolve()
    if GOLDEN.resolve() == OURS.resolve():
        assert all(cases(family) for family in families)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Floats as float64, integers as int64."""
    return torch.from_numpy(np.asarray(array, dtype=np.float64 if array.dtype.kind == "f" else np.int64))


def arrays(case: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Inputs and expected values of a case."""
    with np.load(GOLDEN / case["file"], allow_pickle=False) as found:
        inputs = {name: as_tensor(found[f"in.{name}"]) for name in case["inputs"]}
        expected = {name: as_tensor(found[f"out.{name}"]) for name in case["expected"]}
    return inputs, expected


def compare(case: dict[str, Any], actual: dict[str, Any], expected: dict[str, torch.Tensor]) -> None:
    """Every expected value that there is an actual one for; the names that were left out are the caller's affair."""
    for name in expected.keys() & actual.keys():
        torch.testing.assert_close(
            actual[name].detach(), expected[name], rtol=case["rtol"], atol=case["atol"], check_dtype=False,
            msg=lambda m, n=name: f"{n}: {m}",
        )  # fmt: skip


def batch_of(labels: torch.Tensor, length: int) -> Batch:
    """A batch of one process that is a whole step."""
    count = len(labels)
    return Batch(
        input_ids=torch.zeros(count, length, dtype=torch.int64),
        attention_mask=torch.ones(count, length, dtype=torch.int64),
        token_type_ids=None,
        labels=labels,
        example=torch.arange(count),
        valid=torch.ones(count),
        scale=1 / count,
    )


def method_for(name: str, options: dict[str, Any], inputs: dict[str, torch.Tensor], batch_size: int) -> Method:
    """The method in `variant original`, prepared as a run does for models of the case's depths and widths."""
    chosen = get_method(name)
    made = chosen.Options.model_validate({"name": name, "variant": "original", **options})
    shapes = [
        Shape(len(inputs[f"{side}_hidden"]) - 1, inputs[f"{side}_hidden"].shape[-1]) for side in ("teacher", "student")
    ]
    centroids = None
    if "teacher_memory" in inputs:
        _, _, length, width = inputs["teacher_hidden"].shape
        centroids = inputs["teacher_memory"].view(-1, length, width)
    method = chosen(made)
    method.prepare(
        Context(
            models=Models(student=shapes[1], teachers=(shapes[0],)),
            head=Regression() if inputs["labels"].is_floating_point() else SingleLabel(),
            batch_size=batch_size,
            centroids=centroids,
        )
    )
    return method.double()


def run_method(method: Method, inputs: dict[str, torch.Tensor]) -> tuple[LossTerms, torch.Tensor, torch.Tensor]:
    """Terms of one batch, and the student's logits and hidden states with the gradients of the total."""
    student_hidden = inputs["student_hidden"].clone().requires_grad_()
    student_logits = inputs["student_logits"].clone().requires_grad_()
    teacher_hidden = inputs["teacher_hidden"]
    depths = len(student_hidden) - 1, len(teacher_hidden) - 1
    mask = inputs.get("attention_mask", torch.ones(student_hidden.shape[1:3], dtype=torch.int64))
    shapes = [
        Shape(depth, hidden.shape[-1]) for depth, hidden in zip(depths, (student_hidden, teacher_hidden), strict=True)
    ]
    needs = method.needs(method.options, Models(student=shapes[0], teachers=(shapes[1],)))
    seen = Outputs(inputs["teacher_logits"], mask=mask, hidden=dict(enumerate(teacher_hidden)))
    terms = method(
        Outputs(student_logits, mask=mask, hidden={layer: student_hidden[layer] for layer in needs.student_hidden}),
        [outputs_for(method, needs, seen)],
        batch_of(inputs["labels"], student_hidden.shape[2]),
    )
    terms.total.backward()
    if student_hidden.grad is None:
        student_hidden.grad = torch.zeros_like(student_hidden)
    return terms, student_logits, student_hidden
