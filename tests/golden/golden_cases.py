"""Reading and comparing golden cases (cases/README.md), and running a method on one as training does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdbert.data.batches import Batch
from kdbert.heads import Regression, SingleLabel
from kdbert.methods import Context, LossTerms, Method, Models, Outputs, Shape, get_method
from kdbert.training.teacher import outputs_for

OURS = Path(__file__).parent / "cases"
GOLDEN = Path(os.environ.get("KDBERT_GOLDEN_DIR") or OURS)
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))["cases"]
COMPARED: dict[str, str] = {}  # family -> the test that compares its cases

Values = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Inputs of a published function, and what it gave.

    Attributes:
        entry: its line of the manifest, with `hyper`, `rtol`, `atol`.
    """

    entry: dict[str, Any]
    inputs: Values
    expected: Values

    @classmethod
    def load(cls, entry: dict[str, Any]) -> Case:
        """Read the case's file. Floats become float64, integers int64; a JSON file has tables as they are."""
        path = GOLDEN / entry["file"]
        if path.suffix == ".json":
            found = json.loads(path.read_text(encoding="utf-8"))["cases"]
            rows = {f"{table['task']} {split}": rows for table in found for split, rows in table["expected"].items()}
            return cls(entry, {table["task"]: table for table in found}, rows)
        with np.load(path, allow_pickle=False) as arrays:
            inputs = {name: as_tensor(arrays[f"in.{name}"]) for name in entry["inputs"]}
            return cls(entry, inputs, {name: as_tensor(arrays[f"out.{name}"]) for name in entry["expected"]})

    @property
    def family(self) -> str:
        """The published function that it is of."""
        return self.entry["method"]

    @property
    def hyper(self) -> dict[str, Any]:
        """All hyper-parameters."""
        return self.entry["hyper"]

    def options(self, *names: str) -> dict[str, Any]:
        """Those of these hyper-parameters that the case has."""
        return {name: self.hyper[name] for name in names if name in self.hyper}

    def compare(self, values: Values) -> None:
        """Fail where a value is not the expected one."""
        for name, value in values.items():
            if name not in self.expected or value is None:
                continue
            if not isinstance(value, torch.Tensor):
                assert value == self.expected[name], name
                continue
            torch.testing.assert_close(
                value.detach(), self.expected[name], rtol=self.entry.get(f"rtol_{name}", self.entry["rtol"]),
                atol=self.entry["atol"], check_dtype=False, msg=lambda m, n=name: f"{n}: {m}",
            )  # fmt: skip


def golden(*families: str) -> Callable[[Callable[[Case], Iterator[Values]]], Callable[[dict[str, Any]], None]]:
    """Make a test of a function that computes the cases of some families.

    The function yields our values by the names of the expected ones, once or several times. None: it is not computed (a
    term without weight is not formed; a random draw is given). Every expected value must have been yielded.
    """

    def make(compute: Callable[[Case], Iterator[Values]]) -> Callable[[dict[str, Any]], None]:
        COMPARED.update(dict.fromkeys(families, compute.__name__))
        entries = [pytest.param(entry, id=entry["id"]) for entry in MANIFEST if entry["method"] in families]

        @pytest.mark.parametrize("entry", entries)
        def test(entry: dict[str, Any]) -> None:
            case = Case.load(entry)
            seen: Values = {}
            for values in compute(case):
                case.compare(values)
                seen |= values
            assert case.expected.keys() <= seen.keys(), "values that nobody computes"
            assert any(value is not None for value in seen.values())

        return test

    return make


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Floats as float64, integers as int64."""
    return torch.from_numpy(np.asarray(array, dtype=np.float64 if array.dtype.kind == "f" else np.int64))


def formed(terms: LossTerms, names: dict[str, str]) -> Values:
    """Terms by the names of expected values; None for a term that was not formed, which must have no weight."""
    assert all(term in terms.terms or not terms.weights.get(term, 0) for term in names.values())
    return {name: terms.terms.get(term) for name, term in names.items()}


def batch_of(labels: torch.Tensor, length: int, mask: torch.Tensor | None = None) -> Batch:
    """A batch of one process that is a whole step; without a mask there is no padding."""
    count = len(labels)
    mask = torch.ones(count, length, dtype=torch.int64) if mask is None else mask
    return Batch(
        input_ids=torch.zeros(count, length, dtype=torch.int64),
        attention_mask=mask,
        token_type_ids=None,
        labels=labels,
        example=torch.arange(count),
        valid=torch.ones(count),
        scale=1 / count,
        token_scale=1 / int(mask.sum()),
    )


def method_for(name: str, options: dict[str, Any], inputs: Values, batch_size: int) -> Method:
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


def run_method(method: Method, inputs: Values) -> tuple[LossTerms, Values]:
    """Terms of one batch; total and gradients of the student's logits and hidden states, as the cases name them."""
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
        batch_of(inputs["labels"], student_hidden.shape[2], mask),
    )
    terms.total.backward()
    gradient = torch.zeros_like(student_hidden) if student_hidden.grad is None else student_hidden.grad
    return terms, {
        "total_loss": terms.total,
        "grad_student_logits": student_logits.grad,
        "grad_student_hidden": gradient,
    }
