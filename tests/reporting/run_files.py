"""Run folders written by hand, in the form that kdbert writes them, for tables of many runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def write_run(
    root: Path,
    *,
    task: str = "rte",
    method: str = "kd",
    seed: int = 1,
    score: float = 0.7,
    metrics: dict[str, dict[str, float]] | None = None,
    selection: str = "accuracy",
    status: str = "finished",
    rate: float = 2e-4,
    layers: int | None = 3,
    teacher: str | None = None,
    fingerprint: str | None = None,
    name: str | None = None,
    constant: float = 0.0,
    **told: Any,
) -> Path:
    """One run folder; `told` are further keys of `train` (`selection="best"` as `choose="best"`)."""
    train = {"learning_rate": rate, "epochs": 3, "selection": told.pop("choose", "last"), **told}
    recipe = {
        "task": {"name": task, "data_dir": "glue_data", "max_length": 128},
        "teachers": [{"model": f"runs/{task}/finetune/{teacher}", "labels": None}] if teacher else [],
        "student": {"model": "bert-base-uncased", "layers": layers, "init": "first"},
        "method": {"name": method, "variant": "corrected"},
        "train": train,
        "seed": seed,
        "output": {"runs_dir": str(root)},
    }
    identity = {key: value for key, value in recipe.items() if key != "output"}
    if teacher:
        identity["teachers"] = [{"model": f"content of {teacher}", "labels": None}]
    folder = root / task / method / (name or f"bert-{rate:g}-{layers}-{train['selection']}-seed{seed}")
    folder.mkdir(parents=True)
    content = {"status": status, "message": "", "recipe": recipe, "identity": identity, "layers": layers or 12}
    if status == "finished":
        content |= {
            "metrics": metrics or {"dev": {selection: score}},
            "selection": selection,
            "majority": {"dev": {selection: constant}},
            "finished": "2026-11-21T15:00:00+0000",
            "model_fingerprint": fingerprint,
        }
    (folder / "run.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    (folder / "recipe.yaml").write_text("", encoding="utf-8")
    (folder / "model").mkdir()
    config = {"label2id": {"no": 0, "yes": 1}}
    (folder / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_predictions(run: Path, predictions: np.ndarray, labels: np.ndarray, split: str = "dev") -> None:
    """A predictions file of a two-class task, or of scores where the arrays hold floats."""
    words = ["no", "yes"]
    lines = []
    for number, (predicted, gold) in enumerate(zip(predictions.tolist(), labels.tolist(), strict=True)):
        row = {"id": str(number), "label": gold, "prediction": predicted, "scores": [0.0, 1.0]}
        if isinstance(gold, int):
            row |= {"label": words[gold], "prediction": words[predicted]}
        lines.append(json.dumps(row))
    (run / "predictions").mkdir(exist_ok=True)
    (run / "predictions" / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
