"""Prediction files: one row per example, and the upload format of GLUE."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from kdbert.data.examples import Examples
from kdbert.runs import write_text
from kdbert.tasks import TaskSpec


def predicted(spec: TaskSpec, logits: np.ndarray) -> np.ndarray:
    """Class numbers [N], or scores [N] for regression."""
    return logits[:, 0] if spec.kind == "regression" else logits.argmax(axis=1)


def write_predictions(path: Path, spec: TaskSpec, examples: Examples, logits: np.ndarray) -> None:
    """JSON lines with id, label, prediction and scores (logits in the order of the task's labels)."""
    classes = predicted(spec, logits)
    lines = []
    for number, identity in enumerate(examples.ids):
        value = float(classes[number]) if spec.kind == "regression" else spec.labels[classes[number]]
        label = None
        if examples.labels is not None:
            gold = examples.labels[number]
            label = float(gold) if spec.kind == "regression" else spec.labels[gold]
        scores = [round(float(score), 6) for score in logits[number]]
        lines.append(
            json.dumps({"id": identity, "label": label, "prediction": value, "scores": scores}, ensure_ascii=False)
        )
    write_text(path, "\n".join(lines) + "\n")


def write_submission(path: Path, spec: TaskSpec, logits: np.ndarray) -> None:
    """The file that gluebenchmark.com takes: header `index<TAB>prediction`, label words, scores from 0 to 5.

    Scores of STS-B are limited to its range and written with three decimals.
    """
    classes = predicted(spec, logits)
    if spec.kind == "regression":
        words = [f"{min(max(float(score), 0.0), 5.0):.3f}" for score in classes]
    else:
        words = [spec.labels[number] for number in classes]
    rows = [f"{index}\t{word}" for index, word in enumerate(words)]
    write_text(path, "\n".join(["index\tprediction", *rows]) + "\n")
