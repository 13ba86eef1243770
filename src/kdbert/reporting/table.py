"""Runs as a table: rows and columns by recipe keys, seeds pooled and nothing else."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdbert.errors import UserError, near_miss
from kdbert.metrics import LOWER_IS_BETTER
from kdbert.reporting.cells import Cell, Row
from kdbert.reporting.collect import Run, collect, reference
from kdbert.reporting.compare import with_differences
from kdbert.reporting.published import SOURCES, PublishedRow, published_rows
from kdbert.tasks.blurb import GROUPS

log = logging.getLogger("kdbert")
ALIASES = {"method": "method.name", "task": "task.name"}
FACTS = ("student", "teacher", "layers", "precision")  # keys that are no recipe keys
AVERAGE = "average"
BLURB = "BLURB"  # the mean over BLURB's groups of tasks
TOLD = 5  # lines of one kind on stderr


@dataclass(frozen=True)
class Constant:
    """Rows of a column that are no better than a constant answer, and what that reaches."""

    column: str
    value: float
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Everything that a format writes.

    Attributes:
        keys: headings of the leading columns.
        columns: labels in order; the last may be `AVERAGE`, `BLURB`.
        headings: column label -> "split metric" where all its cells share it, else "".
        best: (row number, column label) of the best means among rows that can be compared.
        constants: rows that do not beat a constant answer.
        notes: further sentences below the table.
        runs: every run that is counted in it, teachers too.
    """

    keys: tuple[str, ...]
    columns: tuple[str, ...]
    headings: Mapping[str, str]
    rows: tuple[Row, ...]
    best: frozenset[tuple[int, str]]
    published: tuple[PublishedRow, ...] = ()
    constants: tuple[Constant, ...] = ()
    notes: tuple[str, ...] = ()
    baseline: str | None = None
    broken: Mapping[Path, str] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()


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
        where: key -> value, as the table writes it, or several with commas; other runs are left out, but for the
            teachers of those that stay.
        metric: instead of each task's selection metric.
        split: instead of test where it has labels, else dev.
        baseline: value of the first row key whose rows the others are compared with.
        papers: whose published numbers stand below (see `kdbert.reporting.published`).

    Raises:
        UserError: no run, an unknown key, metric, split, baseline or paper.
    """
    if not rows or not columns:
        raise UserError("--rows and --columns need a key each, such as method and task")
    by_task = tuple(columns) == ("task",)
    if papers and not by_task:
        raise UserError("--paper sets published numbers below columns of tasks; use it with --columns task")
    if baseline is not None and rows[0] in ("task", "task.name"):
        raise UserError("--baseline compares rows of one task; use --rows method --columns task")
    runs, broken = collect(paths)
    for path, why in broken.items():
        log.warning("skipped %s: %s", path, why)
    for key in (*rows, *columns, *(where or {})):
        _check_key(key, runs)
    runs, teaching = _chosen(runs, where or {})
    runs, notes = _without_copies(runs)
    if metric is not None:
        known = {name for run in runs for values in run.metrics.values() for name in values}
        _check_known("metric", metric, known)
    if split is not None:
        known = {name for run in runs for name in run.metrics}
        _check_known("split", split, known | {name.partition("_")[0] for name in known})

    groups: dict[tuple[bool, tuple[str, ...]], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    extra = _differing_keys(runs, teaching, rows, columns)
    if extra:
        log.warning("rows are split by %s, in which runs differ", ", ".join(extra))
    alike = _alike(runs, extra)
    for run in runs:
        labels = tuple(text_of(run, key) for key in rows) + tuple(_told_apart(run, key, alike) for key in extra)
        column = ", ".join(text_of(run, key) for key in columns)
        groups[run.path in teaching, labels][column].append(run)
    ordered = sorted({column for row in groups.values() for column in row}, key=_column_order)
    in_order = sorted(groups.items(), key=lambda item: (not item[0][0], *map(_sort_key, item[0][1])))
    made = [
        Row(
            _mark_teacher(labels, row) if teacher else labels,
            {column: _cell(found, metric, split) for column, found in row.items()},
            teacher,
        )
        for (teacher, labels), row in in_order
    ]
    names, ends = _taught_by(runs)
    both = [
        ", ".join(row.labels)
        for row in made
        if not row.teacher
        and any(_is_named(run, names, ends) for one in row.cells.values() for run in one.runs.values())
    ]
    if both:
        notes.append(f"runs of these rows also teach others: {'; '.join(both)}")
    constants = _constants(made)
    notes += _remarks(made, ordered, metric, split)
    if by_task and len(ordered) > 1:
        tasks = list(ordered)
        means = {AVERAGE: [[task] for task in tasks]}
        groups_there = [group for group in ([t for t in tasks if t in names] for names in GROUPS.values()) if group]
        all_of_blurb = all(any(task in names for names in GROUPS.values()) for task in tasks)
        if metric is None and all_of_blurb and len(groups_there) > 1:
            blurb = BLURB if len(groups_there) == len(GROUPS) else f"{BLURB} (partial)"
            means[blurb] = groups_there
            notes.append(_blurb_note(tasks))
        for name, parts in means.items():
            made = [replace(row, cells={**row.cells, name: _average(row, parts)}) for row in made]
            ordered.append(name)
    headings = {column: _heading(made, column) for column in ordered}
    if AVERAGE in headings:
        headings[AVERAGE] = f"mean of {len(tasks)} figures"
    for name in headings:
        if name.startswith(BLURB):
            headings[name] = f"mean of {len(groups_there)} groups"
    published = [row for paper in papers for row in published_rows(paper, _wanted(made, ordered))]
    table = Table(
        keys=(*rows, *extra),
        columns=tuple(ordered),
        headings=headings,
        rows=tuple(made),
        best=_best(made, ordered),
        published=tuple(published),
        constants=tuple(constants),
        notes=(*notes, *(SOURCES[paper] for paper in papers)),
        broken=broken,
        runs=tuple(runs),
    )
    return table if baseline is None else compared(table, baseline)


def compared(table: Table, baseline: str) -> Table:
    """The table with the differences of its rows to those whose first key has the value `baseline`.

    Raises:
        UserError: no row has it.
    """
    rows, notes = with_differences(table.rows, table.keys, lambda label: _is_one_of(label, baseline), baseline)
    return replace(table, rows=tuple(rows), notes=(*table.notes, *notes), baseline=baseline)


def text_of(run: Run, key: str) -> str:
    """A key's value in a run, as the table writes it; "-" where the run has no such key."""
    if key == "student":
        layers, init = run.told.get("student.layers"), run.told.get("student.init")
        kept = "-".join(map(str, init)) if isinstance(init, list) else f"{init} {layers}"
        name = Path(str(run.told.get("student.model"))).name
        return name if layers is None else f"{name}, {kept}"
    if key in ("teacher", "teachers"):
        return ", ".join(Path(str(one["model"])).name for one in run.told["teachers"]) or "-"
    value = run.facts.get(key) if key in FACTS else run.told.get(ALIASES.get(key, key))
    if value is None:
        return "-"
    if key.startswith("data."):
        return f"#{value[:4]}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_key(key: str, runs: Sequence[Run]) -> None:
    known = {*FACTS, *ALIASES, *(name for run in runs for name in run.told)}
    if key not in known:
        raise UserError(f"no run has the key {key!r}{near_miss(key, known)}; expected one of a recipe, such as method")


def _check_known(what: str, word: str, known: set[str]) -> None:
    if word not in known:
        there = f" (there are: {', '.join(sorted(known))})" if known else " (no run is finished)"
        raise UserError(f"no run has the {what} {word!r}{near_miss(word, known)}{there}")


def _chosen(runs: Sequence[Run], where: Mapping[str, str]) -> tuple[list[Run], set[Path]]:
    """The runs with the wanted values, and their teachers; and the paths of those that stand among the teachers.

    Raises:
        UserError: there is none.
    """
    fitting = [run for run in runs if all(_is_one_of(text_of(run, key), value) for key, value in where.items())]
    if not fitting:
        raise UserError(f"no run has {' and '.join(f'{key}={value}' for key, value in where.items())}")
    paths = {run.path for run in fitting}
    names, ends = _taught_by(fitting)
    chosen = [run for run in runs if run.path in paths or _is_named(run, names, ends)]
    teaching = _teaching(runs) | {run.path for run in chosen if run.path not in paths}
    return chosen, teaching


def _taught_by(runs: Iterable[Run]) -> tuple[set[str], set[tuple[str, ...]]]:
    """What the runs' teachers are known by: contents, and ends of paths (runs made before contents were kept)."""
    names: set[str] = set()
    ends: set[tuple[str, ...]] = set()
    for run in runs:
        names.update(run.teachers)
        ends.update(Path(str(one["model"])).parts[-3:] for one in run.told["teachers"])
    return names, ends


def _is_named(run: Run, names: set[str], ends: set[tuple[str, ...]]) -> bool:
    content = run.facts.get("model_fingerprint")
    return content in names if content is not None else run.path.absolute().parts[-3:] in ends


def _teaching(runs: Sequence[Run]) -> set[Path]:
    """The runs that are nothing but teachers of others, and the same recipe on other tasks, where students are still to
    come.

    A run that teaches and was made for itself, too, is what it is without its pupils: a student, where it was taught
    itself; a baseline, where it was fine-tuned from what a student of these runs starts from.
    """
    names, ends = _taught_by(runs)
    starts = {_start(run) for run in runs if run.told["teachers"]}
    recipes = {_without_task(run) for run in runs if _is_named(run, names, ends)}
    return {
        run.path
        for run in runs
        if _without_task(run) in recipes and not run.told["teachers"] and _start(run) not in starts
    }


def _start(run: Run) -> str:
    """What a run's model was before it was trained: which one, and which layers of it."""
    return repr(sorted(item for item in run.identity.items() if item[0].startswith("student.")))


def _without_task(run: Run) -> str:
    return repr(sorted(item for item in run.identity.items() if not item[0].startswith(("task.", "data."))))


def _is_one_of(text: str, wanted: str) -> bool:
    """Whether a value is the wanted one, or one of the wanted ones; numbers by value (2e-4 is 0.0002)."""
    return any(_sort_key(text) == _sort_key(part.strip()) for part in (wanted, *wanted.split(",")))


def _without_copies(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Of runs with the same recipe, data and seed, the one that finished last; else a seed would count twice."""
    same: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        same[f"{sorted(run.identity.items())!r} {run.seed}"].append(run)
    left_out: list[str] = []
    differing = 0
    kept = []
    for copies in same.values():
        copies.sort(key=lambda run: (run.status == "finished", str(run.facts.get("finished", "")), str(run.path)))
        chosen = copies[-1]
        kept.append(chosen)
        for other in copies[:-1]:
            disagree = other.status == "finished" and other.metrics != chosen.metrics
            differing += disagree
            scores = ", but OTHER SCORES" if disagree else ""
            left_out.append(f"left out {other.path}: the same recipe and seed as {chosen.path}{scores}")
    _tell(left_out)
    if not left_out:
        return kept, []
    number = len(left_out)
    note = f"{number} run folder{'s' * (number > 1)} left out: the same recipe and seed as another that finished later"
    if differing:
        note += f"; {differing} of them had other scores"
    return kept, [note]


def _tell(lines: Sequence[str]) -> None:
    for line in lines[:TOLD]:
        log.warning("%s", line)
    if len(lines) > TOLD:
        log.warning("… and %d more", len(lines) - TOLD)


def _differing_keys(
    runs: Sequence[Run], teaching: set[Path], rows: Sequence[str], columns: Sequence[str]
) -> tuple[str, ...]:
    """Recipe keys, besides the seed, and data files that differ among runs of one row and column."""
    shared: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        shared[run.path in teaching, tuple(text_of(run, key) for key in (*rows, *columns))].append(run)
    found: dict[str, None] = {}
    for group in shared.values():
        for key in dict.fromkeys(key for run in group for key in run.identity):
            # A file that was not there, or a run made before files were remembered, is no other file.
            values = {repr(run.identity.get(key)) for run in group if key in run.identity or key[:5] != "data."}
            if len(values) > 1:
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
    return f"{text} #{_digits(run.identity.get(ALIASES.get(key, key)))}"


def _digits(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:4]


def _mark_teacher(labels: tuple[str, ...], row: Mapping[str, Sequence[Run]]) -> tuple[str, ...]:
    layers = {run.facts["layers"] for runs in row.values() for run in runs if "layers" in run.facts}
    depth = f", {layers.pop()} layers" if len(layers) == 1 else ""
    return (f"{labels[0]} (teacher{depth})", *labels[1:])


def _cell(runs: Sequence[Run], metric: str | None, split: str | None) -> Cell:
    scores: dict[int, float] = {}
    kept: dict[int, Run] = {}
    chosen_split, chosen = "", ""
    finished = sorted((run for run in runs if run.status == "finished"), key=lambda run: run.seed)
    if split is None and all("test" in run.metrics for run in finished):
        split = "test"
    for run in finished:
        place = _split_of(run, split)
        name = metric or run.selection
        if place is None or name not in run.metrics[place]:
            continue
        chosen_split, chosen = place, name
        scores[run.seed] = float(run.metrics[place][name])
        kept[run.seed] = run
    held = {seed: reference(run, chosen_split, chosen) for seed, run in kept.items()}
    return Cell(
        split=chosen_split,
        metric=chosen,
        scores=scores,
        runs=kept,
        diverged=sum(run.status == "diverged" for run in runs),
        unfinished=sum(run.status not in ("finished", "diverged") for run in runs),
        dev_chose=chosen_split.startswith("dev") and any(run.dev_chose for run in kept.values()),
        constant=max((one.constant for one in held.values() if one.constant is not None), default=None),
        same={seed: one.same for seed, one in held.items() if one.same is not None},
    )


def _split_of(run: Run, asked: str | None) -> str | None:
    """The split that was asked for (dev: dev_matched), else the first dev split."""
    if asked is None:
        return next((name for name in run.metrics if name != "test"), None)
    if asked in run.metrics:
        return asked
    return next((name for name in run.metrics if name.startswith(f"{asked}_")), None)


def _average(row: Row, groups: Sequence[Sequence[str]]) -> Cell:
    """The mean over groups of the mean over their columns, seed by seed; no score where a column lacks the seed."""
    parts = [[row.cells.get(column, Cell()) for column in group] for group in groups]
    cells = [cell for part in parts for cell in part]
    seeds = sorted(set.intersection(*(set(cell.scores) for cell in cells)))

    def mean(number: Callable[[Cell], float]) -> float:
        return float(np.mean([np.mean([number(cell) for cell in part]) for part in parts]))

    def of_seed(seed: int) -> float:
        return mean(lambda cell: cell.scores[seed])

    known = all(cell.constant is not None for cell in cells)
    return Cell(
        split=" and ".join(sorted({cell.split for cell in cells})) if seeds else "",
        metric="mean",
        scores={seed: of_seed(seed) for seed in seeds},
        constant=mean(lambda cell: cell.constant or 0.0) if known and seeds else None,
        same={seed: cell.same[seed] for cell in cells for seed in seeds if seed in cell.same},
    )


def _blurb_note(tasks: Sequence[str]) -> str:
    """What the BLURB score is made of, and what it lacks."""
    missing = [task for names in GROUPS.values() for task in names if task not in tasks]
    lacks = f"; without {', '.join(missing)}, of which there are no runs," if missing else "; without"
    groups = "; ".join(f"{name}: {', '.join(t for t in names if t in tasks)}" for name, names in GROUPS.items()
                       if any(t in tasks for t in names))  # fmt: skip
    return (
        f"BLURB: the mean over groups of tasks ({groups}), seed by seed{lacks} {'and without ' if missing else ''}"
        "sentence similarity (BIOSSES), which is no task of kdbert's"
    )


def _constants(rows: Sequence[Row]) -> list[Constant]:
    """The rows, teachers too, whose mean is no better than a constant answer, column by column."""
    found: dict[tuple[str, float], list[str]] = defaultdict(list)
    for row in rows:
        for column, cell in row.cells.items():
            if not cell.beats_constant and cell.constant is not None:
                found[column, cell.constant].append(", ".join(row.labels))
    return [Constant(column, value, tuple(labels)) for (column, value), labels in found.items()]


def _remarks(rows: Sequence[Row], columns: Sequence[str], metric: str | None, split: str | None) -> list[str]:
    """Sentences about runs that were made differently, and about columns that have nothing to show."""
    notes = []
    for row in rows:
        for column, cell in row.cells.items():
            for fact in ("precision", "device"):
                values = sorted({str(run.facts[fact]) for run in cell.runs.values() if fact in run.facts})
                if len(values) > 1:
                    notes.append(f"{', '.join(row.labels)} on {column}: the runs' {fact} was {' and '.join(values)}")
    for column in columns:
        cells = [row.cells[column] for row in rows if column in row.cells]
        files = {data for cell in cells for data in _data_of(cell)}
        if len(files) > len({data.split()[0] for data in files}):
            notes.append(f"the rows of {column} were made from different files of the task, so they do not compare")
    empty = [column for column in columns if not any(row.cells[column].scores for row in rows if column in row.cells)]
    if (metric or split) and empty:
        notes.append(f"no {' '.join(filter(None, (split, metric)))} on {', '.join(empty)}")
    return notes


def _data_of(cell: Cell) -> set[str]:
    """What the files are known by of which a cell's runs learned, and on which they were scored."""
    keys = ("data.train", f"data.{cell.split}")
    return {f"{key} {run.identity[key]}" for run in cell.runs.values() for key in keys if key in run.identity}


def _heading(rows: Sequence[Row], column: str) -> str:
    found = {(cell.split, cell.metric) for row in rows if (cell := row.cells.get(column)) is not None and cell.scores}
    return " ".join(found.pop()) if len(found) == 1 else ""


def _best(rows: Sequence[Row], columns: Sequence[str]) -> frozenset[tuple[int, str]]:
    """The best means among cells that are measured alike; teachers and lone cells are none, nor is what does not beat
    the constant answer or has runs of one answer to every example.
    """
    rivals: dict[tuple[str, ...], list[tuple[float, int, str]]] = defaultdict(list)
    for number, row in enumerate(rows):
        for column in columns:
            cell = row.cells.get(column)
            if row.teacher or cell is None or cell.summary is None:
                continue
            tasks = {run.task for run in cell.runs.values()} if cell.runs else {AVERAGE}
            group = (*sorted(tasks), cell.split, cell.metric, *sorted(_data_of(cell)))
            mean = -cell.summary.mean if cell.metric in LOWER_IS_BETTER else cell.summary.mean
            rivals[group].append((mean, number, column))
    return frozenset(
        (number, column)
        for group in rivals.values()
        if len(group) > 1
        for value, number, column in group
        if value == max(group)[0] and rows[number].cells[column].may_be_best
    )


def _wanted(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Column -> task, split and metric of our numbers, where it has one of each."""
    wanted = {}
    for column in columns:
        cells = [cell for row in rows if (cell := row.cells.get(column)) is not None and cell.scores]
        measured = {(cell.split, cell.metric) for cell in cells}
        split, metric = measured.pop() if len(measured) == 1 else ("", "")
        wanted[column] = (column, split, metric)
    return wanted


def _column_order(column: str) -> tuple[tuple[int, Any], ...]:
    """Tasks in the order of the registry, numbers by value, words by letter; part by part."""
    from kdbert.tasks import task_names

    known = {name: number for number, name in enumerate(task_names())}
    return tuple((known.get(part, len(known)), _sort_key(part)) for part in column.split(", "))


def _sort_key(text: str) -> tuple[bool, float, str]:
    """Numbers by value, before words."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text
