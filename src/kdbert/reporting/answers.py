"""A student's answers beside its teacher's: class by class, and the examples on which they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdbert.metrics.grouped import OUTSIDE, f1, recall
from kdbert.reporting.collect import Predictions, Run, read_run, read_scores, scored_predictions

# How many examples of each group are shown at most.
SHOWN = {
    "teacher right, student wrong": 10,
    "student right, teacher wrong": 5,
    "both wrong, and different": 5,
}
FURTHEST = "scores furthest apart"  # of a task without right and wrong
MOST_SCORES = sum(SHOWN.values())


def teacher_of(student: Run, runs: Sequence[Run]) -> Run | None:
    """The run that made a student's first teacher: among `runs` by what its model is known by, else where the recipe
    says, if that has the same content.

    None where it is no finished run on this disk.
    """
    if not student.teachers:
        return None
    content = student.teachers[0]
    for run in runs:
        if run.status == "finished" and run.facts.get("model_fingerprint") == content:
            return run
    place = Path(given_teacher(student))
    for folder in (place, place.parent):  # a run folder, or its model/
        try:
            run = read_run(folder)
        except ValueError:
            continue
        if run.status == "finished" and run.task == student.task and run.facts.get("model_fingerprint") == content:
            return run
    return None


def given_teacher(student: Run) -> str:
    """A student's first teacher as its recipe names it."""
    return next((str(one["model"]) for one in student.told["teachers"]), student.teachers[0])


@dataclass(frozen=True)
class Pair:
    """Predictions of a student and of its teacher on the same examples."""

    student: Predictions
    teacher: Predictions


class Answers:
    """Predictions of runs, each file read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, str, str], Predictions | str] = {}

    def pair(self, student: Run, teacher: Run, split: str, metric: str) -> Pair:
        """The predictions that gave both runs' scores.

        Raises:
            ValueError: they are missing or damaged, or not of the same examples and classes.
        """
        own, taught = self._of(student, split, metric), self._of(teacher, split, metric)
        same = own.ids == taught.ids and own.kind == taught.kind and own.classes == taught.classes
        if not same or not np.array_equal(own.labels, taught.labels):
            raise ValueError(f"the examples or classes of {student.path} and {teacher.path} differ")
        return Pair(own, taught)

    def _of(self, run: Run, split: str, metric: str) -> Predictions:
        key = run.path, split, metric
        if key not in self._known:
            try:
                if metric not in run.metrics.get(split, {}):
                    raise ValueError(f"run.json has no {split} {metric}")
                self._known[key] = scored_predictions(run, split, metric)
            except ValueError as error:
                self._known[key] = f"{run.path}: {error}"
        found = self._known[key]
        if isinstance(found, str):
            raise ValueError(found)
        return found


# ---- class by class


@dataclass(frozen=True)
class ClassScores:
    """F1 and recall of every class that occurs: [classes]; `count` is how often it is the right answer."""

    names: tuple[str, ...]
    count: np.ndarray
    f1: np.ndarray
    recall: np.ndarray


def class_scores(found: Predictions) -> ClassScores:
    """F1 and recall of each class (of tags: by word, all but O).

    Raises:
        ValueError: the task has no classes.
    """
    if not found.classes:
        raise ValueError("the task has no classes")
    if found.kind == "multi_label":
        right, predicted, there = (
            values.sum(0) for values in (found.predictions & found.labels, found.predictions, found.labels)
        )
    else:
        size = len(found.classes)
        right, predicted, there = (
            np.bincount(values, minlength=size)
            for values in (found.labels[found.predictions == found.labels], found.predictions, found.labels)
        )
    counts = np.stack([right, predicted, there], axis=-1)
    kept = [number for number, name in enumerate(found.classes) if found.kind != "token" or name != OUTSIDE]
    counts = counts[kept]
    return ClassScores(tuple(found.classes[number] for number in kept), counts[:, 2], f1(counts), recall(counts))


# ---- examples


@dataclass(frozen=True)
class Example:
    """An example that student and teacher answer differently.

    Attributes:
        id: as in the predictions file.
        label, teacher, student: answers as words, one per differing word for tags, else one.
        words: the numbers of these words; empty unless each word has a tag.
        gap: how far apart the two probabilities of the teacher's answer lie (scores: the two scores).
    """

    id: str
    label: tuple[str, ...]
    teacher: tuple[str, ...]
    student: tuple[str, ...]
    words: tuple[int, ...]
    gap: float


@dataclass(frozen=True)
class Group:
    """The examples of a kind of disagreement: how many there are, and those that are shown."""

    name: str
    count: int
    examples: tuple[Example, ...]


def disagreements(pair: Pair, student: Run, teacher: Run, split: str) -> list[Group]:
    """The examples on which they disagree, by who is right; in each group the widest gap first, then by id.

    The gap is the difference of the two models' probabilities of the teacher's answer (of a class or tag that they
    answer differently the largest); for scores that of the scores.

    Raises:
        ValueError: the task has no answers to compare (plain text), or scores are damaged.
    """
    own, taught = pair.student, pair.teacher
    if own.kind == "masked_lm":
        raise ValueError("plain text has no answers to compare")
    if own.kind == "regression":
        gaps = np.abs(own.predictions - taught.predictions)
        order = np.argsort(-gaps, kind="stable")[:MOST_SCORES]
        shown = [_scored(pair, i, float(gaps[i])) for i in order.tolist()]
        return [Group(FURTHEST, len(own.ids), tuple(shown))]
    differ = own.predictions != taught.predictions
    sides = {"student": own.predictions != own.labels, "teacher": taught.predictions != own.labels}  # who is wrong
    if own.kind == "token":
        differ, sides["student"], sides["teacher"] = (
            _any_word(marks, own) for marks in (differ, sides["student"], sides["teacher"])
        )
    elif own.kind == "multi_label":
        differ, sides["student"], sides["teacher"] = (
            marks.any(1) for marks in (differ, sides["student"], sides["teacher"])
        )
    of_both = sides["teacher"] & sides["student"]
    kinds = (~sides["teacher"] & sides["student"], sides["teacher"] & ~sides["student"], of_both)
    members = {name: np.flatnonzero(differ & kind) for name, kind in zip(SHOWN, kinds, strict=True)}
    wanted = {own.ids[i] for rows in members.values() for i in rows}
    logits = [read_scores(run, split, wanted) for run in (student, teacher)]
    groups = []
    for name, rows in members.items():
        examples = [_example(pair, i, logits[0].get(own.ids[i]), logits[1].get(own.ids[i])) for i in rows.tolist()]
        examples.sort(key=lambda example: -example.gap)  # stable: equal gaps stay in the order of ids
        groups.append(Group(name, len(examples), tuple(examples[: SHOWN[name]])))
    return groups


def _scored(pair: Pair, i: int, gap: float) -> Example:
    """An example of a task of scores."""
    told = [
        (f"{float(one[i]):.2f}",) for one in (pair.student.labels, pair.teacher.predictions, pair.student.predictions)
    ]
    return Example(pair.student.ids[i], told[0], told[1], told[2], (), gap)


def _any_word(marks: np.ndarray, of: Predictions) -> np.ndarray:
    """Whether any word of a sentence is marked."""
    assert of.groups is not None
    return np.bincount(of.groups[marks], minlength=len(of.ids)) > 0


def _example(pair: Pair, i: int, own: np.ndarray | None, taught: np.ndarray | None) -> Example:
    """One disagreement, from the numbers of its answers and both sides' logits."""
    names, kind = pair.student.classes, pair.student.kind
    answers = pair.student.labels, pair.teacher.predictions, pair.student.predictions
    if kind == "token":
        assert pair.student.groups is not None
        rows = np.flatnonzero(pair.student.groups == i)
        label, teacher, student = (one[rows] for one in answers)
        words = np.flatnonzero(teacher != student)
        told = [tuple(names[tag] for tag in one[words]) for one in (label, teacher, student)]
        gap = _gap(own, taught, teacher, student, (len(rows), len(names)))
        return Example(pair.student.ids[i], told[0], told[1], told[2], tuple(words.tolist()), gap)
    label, teacher, student = (one[i] for one in answers)
    if kind == "multi_label":
        words_of = [
            (", ".join(name for name, there in zip(names, one, strict=True) if there) or "none",)
            for one in (label, teacher, student)
        ]
    else:
        words_of = [(names[one],) for one in (label, teacher, student)]
    gap = _gap(own, taught, teacher, student, (len(names),))
    return Example(pair.student.ids[i], words_of[0], words_of[1], words_of[2], (), gap)


def _gap(
    own: np.ndarray | None, taught: np.ndarray | None, teacher: np.ndarray, student: np.ndarray, shape: tuple[int, ...]
) -> float:
    """How far the probabilities of the teacher's answer lie apart; 0 where logits are damaged."""
    from scipy.special import expit, softmax

    if own is None or taught is None or own.shape != shape or taught.shape != shape:
        return 0.0
    if teacher.dtype == bool:
        return float(np.abs(expit(own) - expit(taught))[teacher != student].max())
    apart = np.abs(softmax(own, axis=-1) - softmax(taught, axis=-1))
    if len(shape) == 1:
        return float(apart[teacher])
    return float(apart[np.arange(len(teacher)), teacher][teacher != student].max())
