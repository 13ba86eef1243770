"""Rows against a baseline: paired over seeds, resampled over examples."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kdbert.errors import UserError, near_miss
from kdbert.metrics import METRICS
from kdbert.metrics.grouped import GROUPED
from kdbert.reporting.cells import Cell, Difference, Row
from kdbert.reporting.collect import Predictions, scored_predictions
from kdbert.reporting.statistics import bootstrap_interval, paired_p_value, summarise

log = logging.getLogger("kdbert")


def with_differences(
    rows: Sequence[Row], keys: Sequence[str], is_baseline: Callable[[str], bool], baseline: str
) -> tuple[list[Row], list[str]]:
    """Each row with its differences to the baseline row that agrees with it in the other keys; and notes.

    Args:
        keys: the leading columns; the baseline is a value of the first.
        is_baseline: whether a label of the first column is the baseline.
        baseline: how the person wrote it.

    Raises:
        UserError: no row is the baseline.
    """
    candidates = [row for row in rows if not row.teacher and is_baseline(row.labels[0])]
    if not candidates:
        known = sorted({row.labels[0] for row in rows if not row.teacher})
        raise UserError(
            f"--baseline {baseline!r} is no {keys[0]} of these runs{near_miss(baseline, known)} "
            f"(there are: {', '.join(known)})"
        )
    notes = []
    predictions = _Predictions()
    made = []
    for row in tqdm(rows, desc="comparing", unit="row", leave=False, disable=not sys.stderr.isatty()):
        if row.teacher or row in candidates:
            made.append(row)
            continue
        fitting = _fitting(row, candidates)
        if len(fitting) != 1:
            notes.append(f"no difference for {', '.join(row.labels)}: {len(fitting) or 'no'} rows of {baseline} fit it")
            made.append(row)
            continue
        differences = {}
        for column, cell in row.cells.items():
            found = _difference(cell, fitting[0].cells.get(column, Cell()), predictions)
            if found is not None:
                differences[column] = found
        made.append(replace(row, differences=differences, baseline=fitting[0].labels))
    if predictions.faults:
        number = len(predictions.faults)
        notes.append(f"no interval where predictions are missing or do not fit ({number} fault{'s' * (number > 1)})")
    return made, notes


def _fitting(row: Row, candidates: Sequence[Row]) -> list[Row]:
    """The baseline rows that agree in all other keys; if none does, those that agree in the keys that they have."""
    same = [other for other in candidates if other.labels[1:] == row.labels[1:]]
    return same or [
        other
        for other in candidates
        if all(a == b or "-" in (a, b) for a, b in zip(row.labels[1:], other.labels[1:], strict=True))
    ]


def _difference(cell: Cell, other: Cell, predictions: _Predictions) -> Difference | None:
    seeds = sorted(cell.scores.keys() & other.scores.keys())
    if not seeds or (cell.split, cell.metric) != (other.split, other.metric):
        return None
    interval = None
    if cell.runs:  # an average over tasks has no examples of its own
        ours, theirs = ([predictions.of(one, seed) for seed in seeds] for one in (cell, other))
        interval = _interval(cell, ours, theirs, predictions)
    return Difference(
        summary=summarise({seed: cell.scores[seed] - other.scores[seed] for seed in seeds}),
        p=paired_p_value(cell.scores, other.scores),
        interval=interval,
    )


def _interval(
    cell: Cell, ours: list[Predictions | None], theirs: list[Predictions | None], predictions: _Predictions
) -> tuple[float, float] | None:
    found = [one for one in (*ours, *theirs) if one is not None]
    if len(found) < len(ours) + len(theirs):
        return None
    first = found[0]
    if any(one.ids != first.ids or not np.array_equal(one.labels, first.labels) for one in found):
        predictions.fault(next(iter(cell.runs.values())).path, "its examples are not those of the baseline's runs")
        return None
    metric: Callable[[np.ndarray, np.ndarray], Any]
    if cell.metric in GROUPED:  # documents or sentences are drawn anew, and their counts added up
        grouped, groups = GROUPED[cell.metric], first.groups
        assert groups is not None
        rows = [grouped.counts(one.predictions, one.labels, groups, one.classes) for one in found]
        units = np.zeros(len(rows[0]))

        def metric(counts: np.ndarray, drawn: np.ndarray) -> Any:
            return grouped.value(counts.sum(drawn.ndim - 1))
    else:
        metric, units, rows = METRICS[cell.metric], first.labels, [one.predictions for one in found]
    return bootstrap_interval(metric, units, rows[: len(ours)], rows[len(ours) :])


class _Predictions:
    """Predictions of runs, each file read once; those that do not give the run's score are a fault."""

    def __init__(self) -> None:
        self.known: dict[tuple[Path, str, str], Predictions | None] = {}
        self.faults: dict[Path, str] = {}

    def of(self, cell: Cell, seed: int) -> Predictions | None:
        """A run's predictions; None where they are missing, damaged or not those of its score."""
        run = cell.runs[seed]
        key = run.path, cell.split, cell.metric
        if key not in self.known:
            self.known[key] = None
            try:
                self.known[key] = scored_predictions(run, cell.split, cell.metric)
            except ValueError as error:
                self.fault(run.path, str(error))
        return self.known[key]

    def fault(self, path: Path, what: str) -> None:
        """Say once what is wrong with a run's predictions."""
        if path not in self.faults:
            self.faults[path] = what
            log.warning("no bootstrap interval: %s: %s", path, what)
