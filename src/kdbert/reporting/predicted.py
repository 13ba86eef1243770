"""Predictions of finished runs, read back."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kdbert.disk.sealed import parse_json
from kdbert.errors import UserError
from kdbert.heads import Head, PlainText
from kdbert.metrics import TABLE
from kdbert.reporting.collect import Damaged, Run
from kdbert.runs.saved_task import saved_task
from kdbert.tasks import CUSTOM, TaskSpec, get_task


@dataclass(frozen=True)
class Predictions:
    """A run's answers to a split, sorted by the example's id."""

    head: Head
    ids: list[str]
    answers: np.ndarray  # in the form of `Head.predicted`: one row per example, or per word; labels, too
    labels: np.ndarray
    groups: np.ndarray | None = None  # what a metric counts together, see `kdbert.metrics.score`

    @cached_property
    def example_of(self) -> np.ndarray:
        """int64: for each row the number of its example."""
        return self.groups if self.head.of_words and self.groups is not None else np.arange(len(self.ids))

    def same_examples(self, other: Predictions) -> bool:
        """Whether the other's answers are to the same examples, with the same labels."""
        return self.head == other.head and self.ids == other.ids and np.array_equal(self.labels, other.labels)


def scored_predictions(run: Run, split: str, metric: str) -> Predictions:
    """A run's predictions of a split; `Damaged` if there are none, or they do not give the score in run.json."""
    try:
        return _scored(run, split, metric)
    except Damaged as error:
        raise Damaged(f"{run.path}: {error}") from None


def task_of_run(run: Run, data_dir: str | None = None) -> TaskSpec:
    """The task that a run was trained on."""
    if run.task == CUSTOM:
        return saved_task(run.path, run.facts, data_dir, None)
    return get_task(run.task, run.told.get("task.kind"))


def _scored(run: Run, split: str, metric: str) -> Predictions:
    if metric not in run.metrics.get(split, {}):
        metric = run.selection  # a teacher may have been scored by other metrics than its student
    if metric not in run.metrics.get(split, {}):
        raise Damaged(f"run.json has no {split} {metric}")
    found = read_predictions(run, split)
    try:
        logits = None
        if TABLE[metric].reads == "probabilities":
            known = read_scores(run, split, set(found.ids))
            logits = np.array([known[name] for name in found.ids])
        value = found.head.scores((metric,), found.answers, found.labels, found.groups, logits)[metric]
    except (KeyError, AssertionError, ValueError, IndexError):
        raise Damaged(f"predictions/{split}.jsonl gives no {metric}") from None
    if abs(value - run.metrics[split][metric]) > 1e-6:
        raise Damaged(f"predictions/{split}.jsonl gives {value:.6f}, run.json says {run.metrics[split][metric]:.6f}")
    return found


def read_predictions(run: Run, split: str) -> Predictions:
    """A finished run's predictions of a split."""
    name = f"predictions/{split}.jsonl"
    lines = run.json_lines(name)
    try:
        spec = task_of_run(run)
        head = spec.head
        rows = sorted((_row(line) for line in lines), key=lambda row: str(row["id"]))
        ids = [str(row["id"]) for row in rows]
        if not rows or len(set(ids)) < len(ids):
            raise ValueError("no row, or an id twice")
        if isinstance(head, PlainText):
            sums = np.array([[row["prediction"][part] for part in head.numbers_of] for row in rows], dtype=np.float64)
            return Predictions(head, ids, sums, np.zeros(len(ids)), np.arange(len(ids)))
        answers, labels = (
            np.array([value for row in rows for value in head.read_label(row[part], row["label"], name)])
            for part in ("prediction", "label")
        )
        words = [tuple(row["label"]) for row in rows] if head.of_words else None
        return Predictions(head, ids, answers, labels, spec.label_groups(ids, words))
    except (ValueError, LookupError, TypeError, AttributeError, UserError) as error:
        raise Damaged(f"{name} is damaged ({type(error).__name__}: {error})") from None


def read_scores(run: Run, split: str, ids: Collection[str]) -> dict[str, np.ndarray]:
    """id -> logits of these examples (float64 [classes]; of tags [words, classes]); a damaged line has none."""
    found = {}
    for line in run.json_lines(f"predictions/{split}.jsonl"):
        name = str(_row(line)["id"])
        if name in ids:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                found[name] = np.array(parse_json(line)["scores"], dtype=np.float64)
    return found


def _row(line: str) -> Any:
    """A line of a predictions file without its scores, which may be hundreds and are rarely needed."""
    head, found, _ = line.partition(', "scores": [')  # inside a JSON string its quotes would be escaped
    return parse_json(head + "}" if found else line)
