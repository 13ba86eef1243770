"""A student's answers against its teacher's: class by class, and the examples on which they disagree."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdbert.data.examples import Examples
from kdbert.errors import UserError
from kdbert.metrics.grouped import OUTSIDE, f1, recall
from kdbert.reporting.collect import Damaged, Run, read_run
from kdbert.reporting.predicted import Predictions, read_scores, task_of_run

# How many examples of each group are shown at most.
SHOWN = {
    "teacher right, student wrong": 10,
    "student right, teacher wrong": 5,
    "both wrong, and different": 5,
}
FURTHEST = "scores furthest apart"  # of a task without right and wrong
MOST_SCORES = sum(SHOWN.values())
MOST_CHARACTERS = 300  # of a shown text
AROUND = 12  # words shown before and after those that are tagged differently
Pieces = list[tuple[str, bool]]  # a text, and whether each part of it is marked


def teacher_of(student: Run, runs: Sequence[Run]) -> Run | None:
    """The finished run with the content of a student's first teacher: one of `runs`, or where the recipe says."""
    if not student.teachers:
        return None
    content = student.teachers[0]
    for run in runs:
        if run.status == "finished" and run.content == content:
            return run
    place = Path(given_teacher(student))
    for folder in (place, place.parent):  # a run folder, or its model/
        try:
            run = read_run(folder)
        except Damaged:
            continue
        if run.status == "finished" and run.task == student.task and run.content == content:
            return run
    return None


def given_teacher(student: Run) -> str:
    """A student's first teacher as its recipe names it."""
    return next((str(one["model"]) for one in student.told["teachers"]), student.teachers[0])


def predictions_of_both(
    student: Run, teacher: Run, split: str, metric: str, predictions: Callable[..., Predictions]
) -> tuple[Predictions, Predictions]:
    """What `predictions` gives for both runs; `Damaged` if that is nothing, or not of the same examples."""
    own, taught = (predictions(run, split, metric) for run in (student, teacher))
    if not own.same_examples(taught):
        raise Damaged(f"the examples or classes of {student.path} and {teacher.path} differ")
    return own, taught


# ---- class by class


@dataclass(frozen=True)
class ClassScores:
    """F1 and recall of every class that occurs: [classes]; `count` is how often it is the right answer."""

    names: tuple[str, ...]
    count: np.ndarray
    f1: np.ndarray
    recall: np.ndarray


def class_scores(found: Predictions) -> ClassScores:
    """F1 and recall of each class (of tags: by word, all but O); `Damaged` if the task has none."""
    names = found.head.classes
    if not names:
        raise Damaged("the task has no classes")
    answers, labels = (_of_classes(values, len(names)) for values in (found.answers, found.labels))
    kept = [number for number, name in enumerate(names) if not found.head.of_words or name != OUTSIDE]
    counts = np.stack([(answers & labels).sum(0), answers.sum(0), labels.sum(0)], axis=-1)[kept]
    return ClassScores(tuple(names[number] for number in kept), counts[:, 2], f1(counts), recall(counts))


def _of_classes(values: np.ndarray, size: int) -> np.ndarray:
    """Class numbers [N], or whether each class is there [N, C], as the latter."""
    return values if values.ndim == 2 else np.eye(size, dtype=bool)[values]


# ---- examples


@dataclass(frozen=True)
class Disagreement:
    """An example that student and teacher answer differently; answers are one for each word of a tagged text."""

    id: str
    label: list[str]
    teacher: list[str]
    student: list[str]
    words: list[int]  # numbers of those that are tagged differently
    gap: float  # between the two probabilities of the teacher's answer (scores: between the scores)


@dataclass(frozen=True)
class DisagreementGroup:
    """The examples of a kind of disagreement: how many there are, and those that are shown."""

    name: str
    count: int
    examples: list[Disagreement]


def disagreements(
    own: Predictions, taught: Predictions, student: Run, teacher: Run, split: str
) -> list[DisagreementGroup]:
    """The examples on which they disagree, by who is right; in each group the widest gap first, then by id.

    The gap is the difference of the two models' probabilities of the teacher's answer (of several classes or tags that
    they answer differently the largest); for scores that of the scores. `Damaged` if there are no answers to compare.

    Args:
        own, taught: predictions of student and teacher.
    """
    if own.head.plain_text:
        raise Damaged("plain text has no answers to compare")
    if not own.head.classes:
        gaps = np.abs(own.answers - taught.answers)
        order = np.argsort(-gaps, kind="stable")[:MOST_SCORES]
        shown = [_disagreement(own, taught, i, float(gaps[i])) for i in order.tolist()]
        return [DisagreementGroup(FURTHEST, len(own.ids), shown)]
    differ, student_wrong, teacher_wrong = (
        _any_row(a != b, own)
        for a, b in ((own.answers, taught.answers), (own.answers, own.labels), (taught.answers, own.labels))
    )
    kinds = (~teacher_wrong & student_wrong, teacher_wrong & ~student_wrong, teacher_wrong & student_wrong)
    members = {name: np.flatnonzero(differ & kind).tolist() for name, kind in zip(SHOWN, kinds, strict=True)}
    wanted = {own.ids[i] for numbers in members.values() for i in numbers}
    logits = [read_scores(run, split, wanted) for run in (student, teacher)]
    groups = []
    for name, numbers in members.items():
        gaps = [_gap(own, taught, i, [one.get(own.ids[i]) for one in logits]) for i in numbers]
        examples = [_disagreement(own, taught, i, gap) for i, gap in zip(numbers, gaps, strict=True)]
        examples.sort(key=lambda example: -example.gap)  # stable: equal gaps stay in the order of ids
        groups.append(DisagreementGroup(name, len(examples), examples[: SHOWN[name]]))
    return groups


def _any_row(marks: np.ndarray, of: Predictions) -> np.ndarray:
    """Whether a row of an example is marked, for each example."""
    rows = marks.any(axis=1) if marks.ndim == 2 else marks
    return np.bincount(of.example_of[rows], minlength=len(of.ids)) > 0


def _disagreement(own: Predictions, taught: Predictions, i: int, gap: float) -> Disagreement:
    rows = np.flatnonzero(own.example_of == i)
    words = np.flatnonzero(taught.answers[rows] != own.answers[rows]).tolist() if own.head.of_words else []
    label, teacher, student = (
        [own.head.in_words(values[row]) for row in (rows[words] if words else rows)]
        for values in (own.labels, taught.answers, own.answers)
    )
    return Disagreement(own.ids[i], label, teacher, student, words, gap)


def _gap(own: Predictions, taught: Predictions, i: int, logits: Sequence[np.ndarray | None]) -> float:
    """How far the two models' probabilities of the teacher's answer lie apart; 0 where logits are damaged."""
    from scipy.special import expit, softmax

    rows = np.flatnonzero(own.example_of == i)
    teacher, student = (_of_classes(one.answers[rows], len(one.head.classes)) for one in (taught, own))
    known = [one.reshape(teacher.shape) for one in logits if one is not None and one.size == teacher.size]
    if len(known) < 2:
        return 0.0
    several = own.answers.ndim == 2
    probabilities = [expit(one) if several else softmax(one, axis=-1) for one in known]
    apart = np.abs(probabilities[0] - probabilities[1]).reshape(teacher.shape)
    differ = teacher != student if several else teacher & ~student
    return float(apart[differ].max())


# ---- texts, which run folders do not hold: from the task's files, if they can be found


class ExampleTexts:
    """The texts of a task's split, if its files are those on which the run was scored."""

    def __init__(self, run: Run, split: str, data_dir: str | None) -> None:
        self.fault = ""  # why there are none
        self.warning = ""  # what a reader should know before texts of this task are shown
        self._examples: Examples | None = None
        self._number: dict[str, int] = {}
        try:
            spec = task_of_run(run, data_dir)
        except UserError as error:
            self.fault = str(error)
            return
        self.warning = spec.warning
        known = run.told.get(f"data.{split}")
        places = [place for place in (data_dir, run.told.get("task.data_dir")) if isinstance(place, str)]
        for place in places or (None,):
            try:
                if known is not None and spec.digest(split, place) not in ("", known):
                    raise UserError(f"the {split} file there is not the one of the runs")
                self._examples, self.fault = spec.load(split, place), ""
            except (UserError, OSError) as error:
                self.fault = self.fault or str(error)
                continue
            self._number = {name: i for i, name in enumerate(self._examples.ids)}
            return

    def parts(self, example: Disagreement) -> list[Pieces]:
        """The sentences of an example; empty where there is no text."""
        i = self._number.get(example.id)
        if self._examples is None or i is None:
            return []
        if self._examples.words is None or not example.words:
            texts = [some[i] for some in (self._examples.text_a, self._examples.text_b) if some is not None]
            return [[(_cut(text), False)] for text in texts]
        words = self._examples.words[i]
        first, last = max(example.words[0] - AROUND, 0), min(example.words[-1] + AROUND + 1, len(words))
        before, after = [("… ", False)] * (first > 0), [("…", False)] * (last < len(words))
        joined = [
            ("".join(f"{words[place]} " for place in places), marked)
            for marked, places in itertools.groupby(range(first, last), key=example.words.__contains__)
        ]
        return [[*before, *joined, *after]]


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
