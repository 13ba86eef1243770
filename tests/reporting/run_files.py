"""Run folders written by hand, in the form that kdbert writes them, for tables of many runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdbert.disk.sealed import sealed
from kdbert.tasks import get_task


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
    same: str | None = None,
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
            "constant_answer": {"dev": {selection: constant}},
            "one_answer": {"dev": same} if same else {},
            "finished": "2026-11-21T15:00:00+0000",
            "model_fingerprint": fingerprint,
        }
    (folder / "run.json").write_text(json.dumps(sealed(content), indent=2), encoding="utf-8")
    (folder / "recipe.yaml").write_text("", encoding="utf-8")
    return folder


def edit(run: Path, **changes: Any) -> Path:
    """Set keys of a run's run.json."""
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(sealed({**content, **changes})), encoding="utf-8")
    return run


def write_log(run: Path, *, terms: Sequence[str] = ("hard", "soft"), steps: int = 30, scale: float = 1.0) -> None:
    """metrics.jsonl of three epochs: losses that fall from `scale`, and dev accuracy, which rises to 0.9."""
    lines: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        loss = scale / step
        lines.append(
            {"step": step, "epoch": 3 * step / steps, "loss": loss, **{f"loss/{name}": loss for name in terms}}
        )
        if step % (steps // 3) == 0:
            epoch = step // (steps // 3)
            lines.append({"step": step, "epoch": float(epoch), "dev/accuracy": 0.6 + 0.1 * epoch})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_cka(run: Path, values: np.ndarray) -> None:
    """diagnostics/cka.csv of [teacher layers, student layers]."""
    (run / "diagnostics").mkdir()
    rows = [["teacher_layer", *(f"student_{i}" for i in range(values.shape[1]))]]
    rows += [[str(i), *(f"{value:.4f}" for value in row)] for i, row in enumerate(values)]
    (run / "diagnostics" / "cka.csv").write_text("".join(",".join(row) + "\n" for row in rows), encoding="utf-8")


def write_predictions(
    run: Path,
    predictions: np.ndarray,
    labels: np.ndarray,
    split: str = "dev",
    scores: np.ndarray | None = None,
) -> None:
    """A predictions file of the task's classes by number, or of scores where the arrays hold floats."""
    words = get_task(json.loads((run / "run.json").read_text(encoding="utf-8"))["recipe"]["task"]["name"]).labels
    lines = []
    for number, (predicted, gold) in enumerate(zip(predictions.tolist(), labels.tolist(), strict=True)):
        logits = [float(i == predicted) for i in range(len(words))] if scores is None else scores[number].tolist()
        row = {"id": str(number), "label": gold, "prediction": predicted, "scores": logits}
        if isinstance(gold, int):
            row |= {"label": words[gold], "prediction": words[predicted]}
        lines.append(json.dumps(row))
    (run / "predictions").mkdir(exist_ok=True)
    (run / "predictions" / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
