"""`kd` gives the numbers of every published Hinton implementation, values and gradients (METHODS.md section 1)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdbert.data.batches import Batch
from kdbert.methods import Outputs, get_method

FAMILIES = ("hinton",)
GOLDEN = Path(os.environ.get("KDBERT_GOLDEN_DIR", Path(__file__).parents[2].parent / "shared" / "golden"))


def cases() -> list[dict[str, Any]]:
    """The manifest's cases of this family; none where the manifest is not there."""
    manifest = GOLDEN / "manifest.json"
    if not manifest.is_file():
        return []
    found = json.loads(manifest.read_text(encoding="utf-8"))["cases"]
    return [case for case in found if case["method"] in FAMILIES]


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Floats as float64, integers as int64."""
    return torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in cases()])
def test_terms_total_and_gradient_are_the_originals(case: dict[str, Any]) -> None:
    with np.load(GOLDEN / case["file"], allow_pickle=False) as arrays:
        inputs = {name: as_tensor(arrays[f"in.{name}"]) for name in case["inputs"]}
        expected = {name: as_tensor(arrays[f"out.{name}"]) for name in case["expected"]}
    hyper = case["hyper"]
    assert hyper.get("n_teachers", 1) == 1
    assert hyper.get("alpha_weights", "ce") == "ce"
    student = inputs["student_logits"].requires_grad_()
    count = len(student)
    batch = Batch(
        input_ids=torch.zeros(count, 1, dtype=torch.int64),
        attention_mask=torch.ones(count, 1, dtype=torch.int64),
        token_type_ids=None,
        labels=inputs["labels"],
        example=torch.arange(count),
        valid=torch.ones(count),
        scale=1 / count,
    )
    kd = get_method("kd")
    options = kd.Options.model_validate(
        {"name": "kd", "variant": "original", "alpha": hyper["alpha"], "temperature": hyper["temperature"]}
    )

    terms = kd(options)(Outputs(student), [Outputs(inputs["teacher_logits"])], batch)
    terms.total.backward()

    # With alpha 1 the soft term has no weight, so it is not formed (and no teacher would be run).
    assert set(terms.terms) == ({"hard"} if hyper["alpha"] == 1 else {"hard", "soft"})
    compared = {"total_loss": terms.total, "grad_student_logits": student.grad, "ce_loss": terms.terms["hard"]}
    if "soft" in terms.terms:
        compared["kd_loss"] = terms.terms["soft"]
    for name, value in expected.items():
        if name == "kd_loss" and name not in compared:
            continue
        torch.testing.assert_close(
            compared[name], value, rtol=case["rtol"], atol=case["atol"], msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_family_has_cases(golden_dir: Path) -> None:
    assert golden_dir.resolve() == GOLDEN.resolve()
    assert cases()
