"""The `evaluate` wrapper loads offline from its path and gives kdbert's own numbers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import kdbert.metrics
from kdbert.metrics import score


@pytest.mark.parametrize("name", ["accuracy_and_f1", "cohen_kappa", "pearson_and_spearman", "r2"])
def test_wrapper_equals_function(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    random = np.random.default_rng(3)
    if name.startswith("pearson") or name == "r2":
        predictions, labels = random.normal(size=(2, 50)).astype(np.float32)
    else:
        predictions, labels = random.integers(0, 2, size=(2, 50))
    metric = evaluate.load(
        str(Path(kdbert.metrics.__file__).with_name("evaluate_metric.py")), name, cache_dir=str(tmp_path)
    )
    result = metric.compute(predictions=predictions, references=labels)
    assert result == {name: pytest.approx(score([name], predictions, labels)[name], abs=1e-6)}
