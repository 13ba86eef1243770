"""Rows against a baseline: paired over seeds, resampled over examples."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kdbert.metrics import TABLE
from kdbert.metrics.grouped import GROUPED
from kdbert.reporting.cells import Difference, ResultCell, ResultRow, ResultTable
from kdbert.reporting.collect import Damaged, Run
from kdbert.reporting.labels import ALIASES, differing, is_one_of, text_of
from kdbert.reporting.predicted import Predictions, scored_predictions
from kdbert.reporting.statistics import bootstrap_interval, paired_p_value, summarise

log = logging.getLogger("kdbert")
FOR_TEACHERS = ("teachers", "train.teacher_cache", "train.cache_precision")  # mean nothing where no teacher is


def compared(table: ResultTable, baseline: str) -> ResultTable:
    """The table with each row's differences to the row of `baseline`, a value of the first key, with its other keys."""
    candidates = [row for row in table.rows if not row.teacher and is_one_of(row.labels[0], baseline)]
    predictions, faults, without = cache(scored_predictions), dict[Path, str](), set[str]()
    unfit: dict[str, list[str]] = {}
    rows = []
    for row in tqdm(table.rows, desc="comparing", unit="row", leave=False, disable=not sys.stderr.isatty()):
        if row.teacher or row in candidates:
            rows.append(row)
            continue
        fitting = _fitting(row, candidates)
        if len(fitting) != 1:
            unfit.setdefault(f"{len(fitting) or 'no'} rows of {baseline} fit", []).append(row.name)
            rows.append(row)
            continue
        other = fitting[0]
        differences: dict[str, Difference] = {}
        for column, cell in row.cells.items():  # averages last
            theirs = other.cells.get(column, ResultCell())
            if column in table.averages:
                besides = {key: text for one in differences.values() for key, text in one.besides.items()}
            else:
                besides = _besides(table.keys[0], cell, theirs)
            found = _difference(cell, theirs, besides, predictions, faults, without)
            if found is not None:
                differences[column] = found
        rows.append(replace(row, differences=differences, baseline=other.name))
    notes = [f"no difference where {why}: {'; '.join(names)}" for why, names in unfit.items()]
    if without:
        notes.append(f"no interval of {', '.join(sorted(without))} (docs/metrics.md: which metrics have one)")
    if faults:
        count = f"{len(faults)} fault{'s' * (len(faults) > 1)}"
        notes.append(f"no interval where predictions are missing or do not fit ({count})")
    return replace(table, rows=tuple(rows), notes=(*table.notes, *notes), baseline=baseline)


def _fitting(row: ResultRow, candidates: Sequence[ResultRow]) -> list[ResultRow]:
    """The baseline rows that agree in all other keys; if none does, those that agree in the keys that they have."""
    same = [other for other in candidates if other.labels[1:] == row.labels[1:]]
    return same or [
        other
        for other in candidates
        if all(a == b or "-" in (a, b) for a, b in zip(row.labels[1:], other.labels[1:], strict=True))
    ]


def _besides(compared_key: str, cell: ResultCell, other: ResultCell) -> dict[str, str]:
    """The keys in which two cells differ besides the compared one, with both values.

    Left out are keys that a method brings with it, where methods are compared, and those that cannot matter.
    """
    sides: list[Run] = [run for one in (cell, other) for run in [*one.runs.values()][:1]]
    if len(sides) < 2:
        return {}
    named = ALIASES.get(compared_key, compared_key)
    skipped = [named, "teacher_training", "train.used_rows"]
    if sides[0].method != sides[1].method:
        skipped += ["method.", "stage", "memory"]
    if not all(run.teachers for run in sides):
        skipped += FOR_TEACHERS
    if any(run.told.get("train.batch_sampler") != "class-balanced" for run in sides):
        skipped.append("train.examples_per_class")
    found = {}
    for key in differing(sides):
        if not key.startswith(tuple(skipped)) or key == "method.name" != named:
            ours, theirs = (text_of(run, key) for run in sides)
            found[key] = f"{ours}, not {theirs}" if ours != theirs else ""
    return found


def _difference(
    cell: ResultCell,
    other: ResultCell,
    besides: Mapping[str, str],
    predictions: Callable[..., Predictions],
    faults: dict[Path, str],
    without: set[str],
) -> Difference | None:
    """The difference over the seeds that both have; `faults` takes the runs whose predictions cannot be used, and
    `without` the metrics of which no interval is computed.
    """
    seeds = sorted(cell.scores.keys() & other.scores.keys())
    if not seeds or (cell.split, cell.metric) != (other.split, other.metric):
        return None
    found: list[Predictions] = []
    runs = [side.runs[seed] for side in (cell, other) for seed in seeds if side.runs]
    if runs and cell.metric in TABLE and not TABLE[cell.metric].resampled:
        without.add(cell.metric)
        runs = []  # their predictions would be read for nothing
    for run in runs:
        try:
            found.append(predictions(run, cell.split, cell.metric))
            if not found[-1].same_examples(found[0]):
                found.pop()
                raise Damaged(f"{run.path}: its examples are not those of the other runs")
        except Damaged as error:
            if run.path not in faults:
                faults[run.path] = str(error)
                log.warning("no bootstrap interval: %s", error)
    interval = None
    if len(found) == 2 * len(seeds):  # an average over tasks has no examples of its own
        interval = _interval(cell.metric, found[: len(seeds)], found[len(seeds) :])
        if interval is None:
            without.add(cell.metric)
    return Difference(
        summary=summarise({seed: cell.scores[seed] - other.scores[seed] for seed in seeds}),
        p=paired_p_value(cell.scores, other.scores),
        interval=interval,
        besides=besides,
    )


def _interval(name: str, ours: Sequence[Predictions], theirs: Sequence[Predictions]) -> tuple[float, float] | None:
    value = TABLE[name].value
    if value is not None:
        # Sets of classes are not scored a thousand resamples at once, and words are not drawn but sentences.
        if ours[0].labels.ndim > 1 or ours[0].head.of_words:
            return None
        sides = ([one.answers for one in side] for side in (ours, theirs))
        return bootstrap_interval(value, ours[0].labels, *sides)
    grouped, groups = GROUPED[name], ours[0].groups
    assert groups is not None

    def metric(drawn: np.ndarray, labels: np.ndarray) -> Any:
        return grouped.value(drawn.sum(labels.ndim - 1))

    # Documents or sentences are drawn anew, and their counts are added up.
    counts = [
        [grouped.counts(one.answers, one.labels, groups, one.head.classes) for one in side] for side in (ours, theirs)
    ]
    return bootstrap_interval(metric, np.zeros(len(counts[0][0])), *counts)
