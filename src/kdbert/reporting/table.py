"""Runs as a table: rows and columns by recipe keys, seeds pooled and nothing else, differences to a baseline."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdbert.errors import UserError, near_miss
from kdbert.metrics import METRICS
from kdbert.reporting.collect import Predictions, Run, collect, read_predictions
from kdbert.reporting.published import SOURCES, PublishedRow, published_rows
from kdbert.reporting.statistics import Summary, bootstrap_interval, paired_p_value, summarise

log = logging.getLogger("kdbert")
ALIASES = {"method": "method.name", "task": "task.name"}
FACTS = ("student", "teacher", "layers", "precision")  # keys that are no recipe keys
AVERAGE = "average"


@dataclass(frozen=True)
class Cell:
    """One row and column.

    Attributes:
        split, metric: what the scores are.
        scores: seed -> score of the finished runs.
        diverged, unfinished: number of runs that have no score.
        dev_chose: whether dev chose the weights of some of the runs.
    """

    split: str = ""
    metric: str = ""
    scores: Mapping[int, float] = field(default_factory=dict)
    diverged: int = 0
    unfinished: int = 0
    dev_chose: bool = False
    runs: Mapping[int, Run] = field(default_factory=dict)

    @property
    def summary(self) -> Summary | None:
        """Mean, spread and n; None without a finished run."""
        return summarise(self.scores) if self.scores else None


@dataclass(frozen=True)
class Difference:
    """A cell against the baseline's cell of the same column, over the seeds that both have.

    Attributes:
        summary: of the differences.
        p: of a paired t-test over seeds; None where it is undefined.
        interval: 95 % bootstrap interval over examples; None where predictions are missing or do not fit.
    """

    summary: Summary
    p: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        labels: one text per leading column.
        cells: column label -> cell; a missing one has no run.
        teacher: its models teach other rows' students, so it takes no part in the comparison.
        differences: column label -> difference to the baseline's row.
        baseline: labels of that row; None for a baseline's own row.
    """

    labels: tuple[str, ...]
    cells: Mapping[str, Cell]
    teacher: bool = False
    differences: Mapping[str, Difference] = field(default_factory=dict)
    baseline: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Table:
    """Everything that a format writes.

    Attributes:
        keys: headings of the leading columns.
        columns: labels in order; the last may be `AVERAGE`.
        headings: column label -> "split metric" where all its cells share it, else "".
        best: (row number, column label) of the best means among rows that can be compared.
        notes: sentences below the table.
    """

    keys: tuple[str, ...]
    columns: tuple[str, ...]
    headings: Mapping[str, str]
    rows: tuple[Row, ...]
    best: frozenset[tuple[int, str]]
    published: tuple[PublishedRow, ...] = ()
    notes: tuple[str, ...] = ()
    baseline: str | None = None
    broken: Mapping[Path, str] = field(default_factory=dict)


def make_table(
    paths: Iterable[str | Path],
    *,
    rows: Sequence[str] = ("method",),
    columns: Sequence[str] = ("task",),
    where: Mapping[str, str] | None = None,
    metric: str | None = None,
    split: str | None = None,
    baseline: str | None = None,
    papers: Sequence[str] = (),
) -> Table:
    """Read runs and arrange them.

    Only seeds are pooled. Where runs of one row and column differ in more than the seed, the row is split by what
    differs, and the table says so.

    Args:
        paths: run folders, or folders above them.
        rows, columns: recipe keys (`method` and `task` for short), or student, teacher, layers, precision.
        where: key -> value, as the table writes it, or several with commas; other runs are left out.
        metric: instead of each task's selection metric.
        split: instead of test where it has labels, else dev.
        baseline: value of the first row key whose rows the others are compared with.
        papers: whose published numbers stand below (see `kdbert.reporting.published`).

    Raises:
        UserError: no run, an unknown key, metric, split, baseline or paper.
    """
    runs, broken = collect(paths)
    for path, why in broken.items():
        log.warning("skipped %s: %s", path, why)
    teaching = _teaching(runs)
    runs, notes = _without_copies(runs)
    if not rows or not columns:
        raise UserError("--rows and --columns need a key each, such as method and task")
    for key in (*rows, *columns, *(where or {})):
        _check_key(key, runs)
    runs = [run for run in runs if all(_is_one_of(text_of(run, key), value) for key, value in (where or {}).items())]
    if not runs:
        raise UserError(f"no run has {', '.join(f'{key}={value}' for key, value in (where or {}).items())}")

    groups: dict[tuple[bool, tuple[str, ...]], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    extra = _differing_keys(runs, teaching, rows, columns)
    if extra:
        log.warning("rows are split by %s, in which runs differ", ", ".join(extra))
    keys = (*rows, *extra)
    alike = _alike(runs, extra)
    for run in runs:
        labels = tuple(text_of(run, key) for key in rows) + tuple(_told_apart(run, key, alike) for key in extra)
        column = ", ".join(text_of(run, key) for key in columns)
        groups[run.path in teaching, labels][column].append(run)
    ordered = sorted({column for row in groups.values() for column in row}, key=_task_order)
    made = [
        Row(_mark_teacher(labels, row) if teacher else labels, _cells(row, metric, split), teacher)
        for (teacher, labels), row in sorted(
            groups.items(), key=lambda item: (not item[0][0], *map(_sort_key, item[0][1]))
        )
    ]
    if not any(cell.scores for row in made for cell in row.cells.values()):
        notes.append("no run is finished yet")
    if metric is not None and not any(cell.metric == metric for row in made for cell in row.cells.values()):
        known = sorted({name for run in runs for values in run.metrics.values() for name in values})
        raise UserError(f"no run has the metric {metric!r}{near_miss(metric, known)} (there are: {', '.join(known)})")
    if split is not None and not any(cell.scores for row in made for cell in row.cells.values()):
        known = sorted({name for run in runs for name in run.metrics})
        raise UserError(f"no run has the split {split!r} (there are: {', '.join(known)})")
    by_task = tuple(columns) == ("task",)
    if by_task and len(ordered) > 1:
        made = [replace(row, cells={**row.cells, AVERAGE: _average(row, ordered)}) for row in made]
        ordered.append(AVERAGE)
    if baseline is not None:
        made = _with_differences(made, keys, baseline, notes)
    notes += _no_better_than_constant(made) + _made_differently(made)
    notes += [SOURCES[paper] for paper in papers if paper in SOURCES]
    headings = {column: _heading(made, column) for column in ordered}
    return Table(
        keys=keys,
        columns=tuple(ordered),
        headings=headings,
        rows=tuple(made),
        best=_best(made, ordered),
        published=tuple(_published(papers, made, ordered, by_task)),
        notes=tuple(notes),
        baseline=baseline,
        broken=broken,
    )


def text_of(run: Run, key: str) -> str:
    """A key's value in a run, as the table writes it; "-" where the run has no such key."""
    if key == "student":
        layers, init = run.told.get("student.layers"), run.told.get("student.init")
        name = Path(str(run.told.get("student.model"))).name
        return (
            name
            if layers is None
            else f"{name}, {'-'.join(map(str, init)) if isinstance(init, list) else init} {layers}"
        )
    if key in ("teacher", "teachers"):
        return ", ".join(Path(str(one["model"])).name for one in run.told.get("teachers", [])) or "-"
    value = run.facts.get(key) if key in FACTS else run.told.get(ALIASES.get(key, key))
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_one_of(text: str, wanted: str) -> bool:
    """Whether a value is the wanted one, or one of the wanted ones; numbers by value (2e-4 is 0.0002)."""
    return any(_sort_key(text) == _sort_key(part.strip()) for part in (wanted, *wanted.split(",")))


def _check_key(key: str, runs: Sequence[Run]) -> None:
    known = {*FACTS, *ALIASES, *(name for run in runs for name in run.told)}
    if key not in known:
        raise UserError(f"no run has the key {key!r}{near_miss(key, known)}; rows and columns are recipe keys")


def _teaching(runs: Sequence[Run]) -> set[Path]:
    """The runs whose models teach others: known by content, or (kdbert 0.1.0's first runs) by the end of the path."""
    contents = {name for run in runs for name in run.teachers}
    ends = {Path(str(one["model"])).parts[-3:] for run in runs for one in run.told.get("teachers", [])}
    return {
        run.path
        for run in runs
        if run.facts.get("model_fingerprint") in contents or run.path.absolute().parts[-3:] in ends
    }


def _without_copies(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Of runs with the same recipe and seed, the one that finished last; else a seed would count twice."""
    kept: dict[str, Run] = {}
    copies = 0
    for run in sorted(runs, key=lambda run: (run.status == "finished", str(run.facts.get("finished", "")))):
        same = f"{sorted(run.identity.items(), key=lambda item: item[0])!r} {run.seed}"
        if same in kept:
            log.warning("left out %s: %s has the same recipe and seed", kept[same].path, run.path)
            copies += 1
        kept[same] = run
    order = {run.path: number for number, run in enumerate(runs)}
    notes = [f"{copies} run folder{'s' * (copies > 1)} left out: the same recipe and seed as another"] if copies else []
    return sorted(kept.values(), key=lambda run: order[run.path]), notes


def _differing_keys(
    runs: Sequence[Run], teaching: set[Path], rows: Sequence[str], columns: Sequence[str]
) -> tuple[str, ...]:
    """Recipe keys, besides the seed, that differ among runs of one row and column."""
    shared: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        shared[run.path in teaching, tuple(text_of(run, key) for key in (*rows, *columns))].append(run)
    found: dict[str, None] = {}
    for group in shared.values():
        for key in dict.fromkeys(key for run in group for key in run.identity):
            if len({repr(run.identity.get(key)) for run in group}) > 1:
                found[key] = None
    short = {full: alias for alias, full in ALIASES.items()}
    return tuple(short.get(key, key) for key in found)


def _alike(runs: Sequence[Run], keys: Sequence[str]) -> dict[tuple[str, str], set[str]]:
    """(key, text) -> the different values that the table would write the same way: one path, other content."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in runs:
        for key in keys:
            found[key, text_of(run, key)].add(repr(run.identity.get(ALIASES.get(key, key))))
    return found


def _told_apart(run: Run, key: str, alike: Mapping[tuple[str, str], set[str]]) -> str:
    """`text_of`, with some digits of the content where others of the same name have another content."""
    text = text_of(run, key)
    if len(alike[key, text]) == 1:
        return text
    return f"{text} #{hashlib.sha256(repr(run.identity.get(ALIASES.get(key, key))).encode()).hexdigest()[:4]}"


def _mark_teacher(labels: tuple[str, ...], row: Mapping[str, Sequence[Run]]) -> tuple[str, ...]:
    layers = {run.facts["layers"] for runs in row.values() for run in runs if "layers" in run.facts}
    depth = f", {layers.pop()} layers" if len(layers) == 1 else ""
    return (f"{labels[0]} (teacher{depth})", *labels[1:])


def _cells(row: Mapping[str, Sequence[Run]], metric: str | None, split: str | None) -> dict[str, Cell]:
    return {column: _cell(runs, metric, split) for column, runs in row.items()}


def _cell(runs: Sequence[Run], metric: str | None, split: str | None) -> Cell:
    finished = sorted((run for run in runs if run.status == "finished"), key=lambda run: run.seed)
    chosen_split, chosen = "", ""
    scores: dict[int, float] = {}
    kept: dict[int, Run] = {}
    for run in finished:
        place = _split_of(run, split)
        name = metric or run.selection
        if place is None or name not in run.metrics[place]:
            continue
        chosen_split, chosen = place, name
        scores[run.seed] = float(run.metrics[place][name])
        kept[run.seed] = run
    return Cell(
        split=chosen_split,
        metric=chosen,
        scores=scores,
        diverged=sum(run.status == "diverged" for run in runs),
        unfinished=sum(run.status not in ("finished", "diverged") for run in runs),
        dev_chose=chosen_split.startswith("dev") and any(run.dev_chose for run in kept.values()),
        runs=kept,
    )


def _split_of(run: Run, asked: str | None) -> str | None:
    """The split that is reported: the one asked for, else test where it has labels, else the first dev split."""
    if asked is None:
        return "test" if "test" in run.metrics else next(iter(run.metrics))
    if asked in run.metrics:
        return asked
    return next((name for name in run.metrics if name.startswith(f"{asked}_")), None)  # dev: dev_matched


def _no_better_than_constant(rows: Sequence[Row]) -> list[str]:
    """A sentence for every column in which rows do not beat a constant answer (run.json's `majority`)."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        for column, cell in row.cells.items():
            constants = [
                value
                for run in cell.runs.values()
                if (value := run.facts.get("majority", {}).get(cell.split, {}).get(cell.metric)) is not None
            ]
            if constants and cell.summary is not None and cell.summary.mean <= max(constants):
                found[column, f"{max(constants):.4f}"].append(", ".join(row.labels))
    return [
        f"{column}: no better than the constant answer, which has {value}: {'; '.join(labels)}"
        for (column, value), labels in found.items()
    ]


def _made_differently(rows: Sequence[Row]) -> list[str]:
    """A sentence for every cell whose runs were computed in different ways that no recipe key says."""
    found = []
    for row in rows:
        for column, cell in row.cells.items():
            for fact in ("precision", "device"):
                values = sorted({str(run.facts[fact]) for run in cell.runs.values() if fact in run.facts})
                if len(values) > 1:
                    found.append(f"{', '.join(row.labels)}, {column}: the runs' {fact} was {' and '.join(values)}")
    return found


def _average(row: Row, columns: Sequence[str]) -> Cell:
    """The mean over all columns, seed by seed; no score where a column has none of the seed."""
    cells = [row.cells.get(column, Cell()) for column in columns]
    seeds = sorted(set.intersection(*(set(cell.scores) for cell in cells)))
    return Cell(
        metric="mean",
        scores={seed: float(np.mean([cell.scores[seed] for cell in cells])) for seed in seeds},
    )


def _with_differences(rows: list[Row], keys: Sequence[str], baseline: str, notes: list[str]) -> list[Row]:
    """Each row against the baseline row that agrees with it in the other keys."""
    candidates = [row for row in rows if not row.teacher and row.labels[0] == baseline]
    if not candidates:
        known = sorted({row.labels[0] for row in rows if not row.teacher})
        raise UserError(
            f"no row has {keys[0]} = {baseline!r} for --baseline{near_miss(baseline, known)} (rows: {', '.join(known)})"
        )
    made = []
    for row in rows:
        if row.teacher or row.labels[0] == baseline:
            made.append(row)
            continue
        fitting = [
            other
            for other in candidates
            if all(a == b or "-" in (a, b) for a, b in zip(row.labels[1:], other.labels[1:], strict=True))
        ]
        if len(fitting) != 1:
            notes.append(
                f"{', '.join(row.labels)}: no difference, for {len(fitting) or 'no'} rows of {baseline} fit it"
            )
            made.append(row)
            continue
        differences = {}
        for column, cell in row.cells.items():
            found = _difference(cell, fitting[0].cells.get(column, Cell()), notes)
            if found is not None:
                differences[column] = found
        made.append(replace(row, differences=differences, baseline=fitting[0].labels))
    return made


def _difference(cell: Cell, other: Cell, notes: list[str]) -> Difference | None:
    seeds = sorted(cell.scores.keys() & other.scores.keys())
    if not seeds or (cell.split, cell.metric) != (other.split, other.metric):
        return None
    interval = None
    if cell.runs:  # an average over tasks has no examples of its own
        try:
            interval = _interval(cell, other, seeds)
        except ValueError as error:
            notes.append(f"no interval: {error}")
            log.warning("no bootstrap interval: %s", error)
    return Difference(
        summary=summarise({seed: cell.scores[seed] - other.scores[seed] for seed in seeds}),
        p=paired_p_value(cell.scores, other.scores),
        interval=interval,
    )


def _interval(cell: Cell, other: Cell, seeds: Sequence[int]) -> tuple[float, float]:
    """Bootstrap interval over examples of two cells' difference.

    Raises:
        ValueError: predictions are missing, damaged, or of different examples.
    """
    ours = [_checked_predictions(cell, seed) for seed in seeds]
    theirs = [_checked_predictions(other, seed) for seed in seeds]
    first = ours[0]
    if any(one.ids != first.ids or not np.array_equal(one.labels, first.labels) for one in (*ours, *theirs)):
        raise ValueError(f"{cell.runs[seeds[0]].path}: the runs that are compared predict different examples")
    return bootstrap_interval(
        METRICS[cell.metric], first.labels, [one.predictions for one in ours], [one.predictions for one in theirs]
    )


def _checked_predictions(cell: Cell, seed: int) -> Predictions:
    """A run's predictions, if they give the score that run.json has.

    Raises:
        ValueError: they do not, or cannot be read.
    """
    run = cell.runs[seed]
    try:
        found = read_predictions(run, cell.split)
        score = float(METRICS[cell.metric](found.predictions, found.labels))
    except ValueError as error:
        raise ValueError(f"{run.path}: {error}") from None
    if abs(score - cell.scores[seed]) > 1e-6:
        raise ValueError(
            f"{run.path}: predictions/{cell.split}.jsonl gives {score:.6f}, run.json says {cell.scores[seed]:.6f}"
        )
    return found


def _heading(rows: Sequence[Row], column: str) -> str:
    found = {(cell.split, cell.metric) for row in rows if (cell := row.cells.get(column)) is not None and cell.scores}
    if column == AVERAGE:
        return ""
    return " ".join(found.pop()) if len(found) == 1 else ""


def _best(rows: Sequence[Row], columns: Sequence[str]) -> frozenset[tuple[int, str]]:
    """The best means among cells that are measured alike; teachers and lone cells take no part."""
    rivals: dict[tuple[str, str, str], list[tuple[float, int, str]]] = defaultdict(list)
    for number, row in enumerate(rows):
        for column in columns:
            cell = row.cells.get(column)
            if row.teacher or cell is None or cell.summary is None:
                continue
            tasks = {run.task for run in cell.runs.values()}
            group = (AVERAGE if column == AVERAGE else ",".join(sorted(tasks)), cell.split, cell.metric)
            rivals[group].append((cell.summary.mean, number, column))
    return frozenset(
        (number, column)
        for group in rivals.values()
        if len(group) > 1
        for value, number, column in group
        if value == max(group)[0]
    )


def _published(papers: Sequence[str], rows: Sequence[Row], columns: Sequence[str], by_task: bool) -> list[PublishedRow]:
    if papers and not by_task:
        raise UserError("--paper sets published numbers below columns of tasks; use it with --columns task")
    found: list[PublishedRow] = []
    for paper in papers:
        wanted = {}
        for column in columns:
            measured = {
                (cell.split, cell.metric) for row in rows if (cell := row.cells.get(column)) is not None and cell.scores
            }
            wanted[column] = (column, *(measured.pop() if len(measured) == 1 else ("", "")))
        found += published_rows(paper, wanted)
    return found


def _task_order(column: str) -> tuple[int, Any]:
    from kdbert.tasks import task_names

    first = column.partition(", ")[0]
    known = {name: number for number, name in enumerate(task_names())}
    return known.get(first, len(known)), _sort_key(column)


def _sort_key(text: str) -> tuple[bool, float, str]:
    """Numbers by value, before words."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text
