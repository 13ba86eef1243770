"""Prediction files: one row per example, and the upload format of GLUE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdbert.data.examples import Examples
from kdbert.disk.files import write_text
from kdbert.metrics import one_answer
from kdbert.tasks import TaskSpec

# Of a text: loss (nats, summed), right answers and number of hidden pieces that the teacher knows; then of new ones.
HIDDEN = ("loss", "right", "hidden", "new_loss", "new_right", "new_hidden")


def predicted(spec: TaskSpec, logits: np.ndarray) -> np.ndarray:
    """Class numbers [N], of words [W]; which classes, bool [N, C] (probability above a half); or scores [N]."""
    if spec.kind == "regression":
        return logits[:, 0]
    return logits > 0 if spec.kind == "multi_label" else logits.argmax(axis=1)


def same_answer(spec: TaskSpec, logits: np.ndarray) -> str | None:
    """The answer that a model gives to every example (or word) of a split, in words; None where it gives several.

    Args:
        logits: in the order of the task's labels.
    """
    answers = predicted(spec, logits)
    return told_answer(answers[0], spec.labels) if one_answer(answers) else None


def told_answer(answer: Any, labels: Sequence[str]) -> str:
    """One answer, in the forms of `kdbert.metrics.score`, in a person's words: a class, several, a tag, or a score."""
    if not labels:
        return f"{float(answer):.4g}"
    if np.ndim(answer):
        return ", ".join(name for name, there in zip(labels, answer, strict=True) if there) or "none of the classes"
    return labels[int(answer)]


def write_predictions(path: Path, spec: TaskSpec, examples: Examples, logits: np.ndarray) -> None:
    """JSON lines with id, label, prediction and scores (logits in the order of the task's labels).

    Label and prediction are a class, a list of classes, a list of tags (with a list of scores each), or a score.
    """
    answers = predicted(spec, logits)
    ends = np.arange(1, len(examples) + 1) if examples.words is None else examples.word_offsets[1:]
    lines = []
    start = 0
    for identity, end in zip(examples.ids, ends.tolist(), strict=True):
        row = slice(start, end) if spec.kind == "token" else start
        record = {
            "id": identity,
            "label": None if examples.labels is None else _words(spec, examples.labels[row]),
            "prediction": _words(spec, answers[row]),
            "scores": np.round(logits[row].astype(np.float64), 6).tolist(),
        }
        lines.append(json.dumps(record, ensure_ascii=False))
        start = end
    write_text(path, "\n".join(lines) + "\n")


def write_hidden(path: Path, sums: np.ndarray) -> None:
    """JSON lines of plain text: its number, and how its hidden pieces were answered (`HIDDEN`)."""
    rows = np.round(np.asarray(sums, dtype=np.float64), 6).tolist()
    lines = [
        json.dumps({"id": str(number), "label": None, "prediction": dict(zip(HIDDEN, row, strict=True))})
        for number, row in enumerate(rows)
    ]
    write_text(path, "\n".join(lines) + "\n")


def _words(spec: TaskSpec, answer: Any) -> Any:
    """An answer as it stands in a file: the names of classes, or a score."""
    if spec.kind == "regression":
        return float(answer)
    if spec.kind == "single_label":
        return spec.labels[answer]
    return [spec.labels[number] for number in (answer if spec.kind == "token" else np.flatnonzero(answer))]


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
