"""Runs as tables: rows and columns by recipe keys; only seeds are pooled."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kdbert.errors import UserError, few, near_miss
from kdbert.metrics import LOWER_IS_BETTER
from kdbert.reporting.cells import ResultCell, ResultRow, ResultTable
from kdbert.reporting.collect import Damaged, Run, collect, mapping, number, read_run
from kdbert.reporting.labels import ALIASES, FACTS, Labels, differing, is_one_of, parts_of, sort_key, telling, text_of
from kdbert.reporting.published import SOURCES, published_rows
from kdbert.tasks.blurb import GROUPS

log = logging.getLogger("kdbert")
AVERAGE = "average"
BLURB = "BLURB"  # the mean over BLURB's groups of tasks
SHOWN = 5  # lines of one kind on stderr
ENDED = ("finished", "diverged")


@dataclass(frozen=True)
class _Question:
    """What a table is asked for, see `make_tables`."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    metric: str | None
    split: str | None
    papers: tuple[str, ...]

    @property
    def by_task(self) -> bool:
        return self.columns == ("task",)


def make_tables(
    paths: Iterable[str | Path],
    *,
    rows: Sequence[str] = ("method",),
    columns: Sequence[str] = ("task",),
    where: Mapping[str, str] | None = None,
    metric: str | None = None,
    split: str | None = None,
    baseline: str | None = None,
    papers: Sequence[str] = (),
    together: bool = False,
) -> list[ResultTable]:
    """Read runs and arrange them.

    Only seeds are pooled. Where runs of one row and column differ in more than the seed, the row is split by the keys
    that differ. If then not every row has runs on every task, each task gets a table of its own, with its own keys.

    Args:
        paths: run folders, or folders above them.
        rows, columns: recipe keys (`method` and `task` for short), or student, teacher, layers, precision.
        where: key -> value, as the table writes it, or several with commas; other runs are left out, but for the
            teachers of those that stay.
        metric: instead of each task's selection metric.
        split: instead of test where it has labels, else dev.
        baseline: value of the first row key; the other rows are compared with its rows.
        papers: whose published numbers are shown below (see `kdbert.reporting.published`).
        together: always one table.
    """
    asked = _Question(tuple(rows), tuple(columns), metric, split, tuple(papers))
    if not rows or not columns:
        raise UserError("--rows and --columns need a key each, such as method and task")
    if papers and not asked.by_task:
        raise UserError("--paper shows published numbers below columns of tasks; use it with --columns task")
    if baseline is not None and rows[0] in ("task", "task.name"):
        raise UserError("--baseline compares rows of one task; use --rows method --columns task")
    runs, broken = collect(paths)
    for path, why in broken.items():
        log.warning("skipped %s: %s", path, why)
    _check_words(asked, where or {}, runs)
    runs, starts = _without_starts(runs)
    runs, teaching = _chosen(runs, where or {})
    runs, notes = _without_copies(runs)
    notes += _notes_on_starts(runs, starts)
    parts = [runs] if together or not asked.by_task else _by_task(runs, teaching, asked.rows)
    tables = [_arranged(part, teaching, asked, notes) for part in parts]
    extra = dict.fromkeys(key for table in tables for key in table.keys[len(rows) :])
    if extra:
        log.warning("rows are split by %s, in which runs differ", ", ".join(extra))
    tables = [replace(table, broken=broken) for table in tables]
    if baseline is None:
        return tables
    known = sorted({row.labels[0] for table in tables for row in table.rows if not row.teacher})
    if not any(is_one_of(label, baseline) for label in known):
        there = f"{near_miss(baseline, known)} (they have: {', '.join(known)})"
        raise UserError(f"--baseline {baseline!r}: these runs have no such {rows[0]}{there}")
    from kdbert.reporting.compare import compared  # reading predictions takes torch, which a table does not

    return [compared(table, baseline) for table in tables]


def _check_words(asked: _Question, where: Mapping[str, str], runs: Sequence[Run]) -> None:
    keys = {*FACTS, *ALIASES, "student", *(name for run in runs for name in run.told)}
    for key in (*asked.rows, *asked.columns, *where):
        if key not in keys:
            raise UserError(f"no run has the key {key!r}{near_miss(key, keys)} (expected a recipe key, such as method)")
    metrics = {name for run in runs for values in run.metrics.values() for name in values}
    splits = {word for run in runs for name in run.metrics for word in (name, name.partition("_")[0])}
    for what, word, known in (("metric", asked.metric, metrics), ("split", asked.split, splits)):
        if word is not None and word not in known:
            there = f" (they have: {', '.join(sorted(known))})" if known else " (no run is finished)"
            raise UserError(f"no run has the {what} {word!r}{near_miss(word, known)}{there}")


# ---- which runs


def _chosen(runs: Sequence[Run], where: Mapping[str, str]) -> tuple[list[Run], set[Path]]:
    """The runs with the wanted values and their teachers; and the paths of those that are shown as teachers."""
    for key, value in where.items():
        known = {text_of(run, key) for run in runs}
        missing = [part for part in parts_of(value) if not any(is_one_of(text, part) for text in known)]
        if missing and not any(sort_key(text) == sort_key(value) for text in known):
            there = near_miss(missing[0], known) + f" (they have: {few(sorted(known, key=sort_key))})"
            if "=" in missing[0]:
                there = f"; for another key repeat the flag: --where {missing[0]}"
            raise UserError(f"no run has {key}={missing[0]}{there}")
    fitting = [run for run in runs if all(is_one_of(text_of(run, key), value) for key, value in where.items())]
    if not fitting:
        raise UserError(f"no run has {' and '.join(f'{key}={value}' for key, value in where.items())}")
    paths = {run.path for run in fitting}
    taught = _taught_by(fitting)
    chosen = [run for run in runs if run.path in paths or run.content in taught]
    return chosen, _teaching(runs) | {run.path for run in chosen if run.path not in paths}


def _taught_by(runs: Iterable[Run]) -> set[str | None]:
    """What the runs' teachers are known by."""
    return {teacher for run in runs for teacher in run.teachers}


def _without_starts(runs: Sequence[Run]) -> tuple[list[Run], dict[str, Run]]:
    """The runs but for general students that others start from; and these by their content, wherever they lie."""
    general = {str(run.content): run for run in runs if _is_general(run)}
    starts = {}
    for run in runs:
        content, told = str(run.identity.get("student.model")), run.told.get("student.model")
        if content in starts:
            continue
        if content in general:
            starts[content] = general[content]
        elif isinstance(told, str) and (Path(told) / "run.json").is_file():
            with contextlib.suppress(Damaged):
                found = read_run(Path(told))
                starts |= {content: found} if _is_general(found) and found.content == content else {}
    return [run for run in runs if run.content not in starts], starts


def _is_general(run: Run) -> bool:
    return run.told.get("task.kind") == "encoder"


def _teaching(runs: Sequence[Run]) -> set[Path]:
    """The runs that are only teachers of others, and the same recipe on other tasks, whose students may still come.

    A run that teaches and was also made for itself is shown as what it is without its students: a student, if it was
    taught itself; a baseline, if it was fine-tuned from what a student of these runs starts from.
    """
    taught = _taught_by(runs)
    starts = {_start(run) for run in runs if run.teachers}
    recipes = {_without_task(run) for run in runs if run.content in taught}
    return {
        run.path for run in runs if _without_task(run) in recipes and not run.teachers and _start(run) not in starts
    }


def _start(run: Run) -> str:
    """What a run's model was before it was trained: which one, and which layers of it."""
    return repr(sorted(item for item in run.identity.items() if item[0].startswith("student.")))


def _without_task(run: Run) -> str:
    return repr(sorted(item for item in run.identity.items() if not item[0].startswith(("task.", "data."))))


def _without_copies(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Of runs with the same recipe, data and seed, the one that finished last, so that no seed counts twice; a note."""
    same: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        same[f"{sorted(run.identity.items())!r} {run.seed}"].append(run)
    kept, left_out, differ = [], [], 0
    for copies in same.values():
        copies.sort(key=lambda run: (run.status == "finished", str(run.facts.get("finished", "")), str(run.path)))
        *others, chosen = copies
        kept.append(chosen)
        for other in others:
            disagree = other.status == "finished" and other.metrics != chosen.metrics
            differ += disagree
            scores = ", but OTHER SCORES" if disagree else ""
            left_out.append(f"left out {other.path}: the same recipe and seed as {chosen.path}{scores}")
    for line in left_out[:SHOWN] + [f"… and {len(left_out) - SHOWN} more"] * (len(left_out) > SHOWN):
        log.warning("%s", line)
    folders = f"{len(left_out)} run folder{'s' * (len(left_out) > 1)}"
    note = f"{folders} left out: the same recipe and seed as another that finished later"
    return kept, [note + (f"; {differ} of them had other scores" if differ else "")] if left_out else []


# ---- rows and columns


def _by_task(runs: Sequence[Run], teaching: set[Path], rows: Sequence[str]) -> list[list[Run]]:
    """All runs together; or the runs of each task, where rows are split and some have no runs on some task."""
    keys, labels = _keys_and_labels(runs, teaching, rows, ("task",))
    tasks: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for run in runs:
        if run.path not in teaching:
            tasks[_row_labels(run, keys, rows, labels)].add(run.task)
    if len(keys) == len(rows) or len({frozenset(some) for some in tasks.values()}) < 2:
        return [list(runs)]
    names = sorted({run.task for run in runs}, key=_column_order)
    return [[run for run in runs if run.task == name] for name in names]


def _keys_and_labels(
    runs: Sequence[Run], teaching: set[Path], rows: Sequence[str], columns: Sequence[str]
) -> tuple[tuple[str, ...], Labels]:
    """The keys of rows: those asked for, and those in which ended runs of one row and column differ besides the seed.

    Unfinished runs have nothing to show yet, so they split no row.
    """
    ended = [run for run in runs if run.status in ENDED]
    shared: dict[tuple[bool, tuple[str, ...]], list[Run]] = defaultdict(list)
    for run in ended:
        shared[run.path in teaching, tuple(text_of(run, key) for key in (*rows, *columns))].append(run)
    names = {"method.name": "method", "task.name": "task"}
    extra = dict.fromkeys(names.get(key, key) for group in shared.values() for key in differing(group))
    return (*rows, *extra), Labels(ended, [*extra])


def _row_labels(run: Run, keys: Sequence[str], rows: Sequence[str], labels: Labels) -> tuple[str, ...]:
    return (*(text_of(run, key) for key in rows), *(labels.label(run, key) for key in keys[len(rows) :]))


def _of_one_recipe(runs: Sequence[Run]) -> Sequence[Run]:
    """The ended runs of a cell, and the unfinished ones with their recipe; all, where none has ended."""
    first = next((run for run in runs if run.status in ENDED), None)
    return [run for run in runs if first is None or run.status in ENDED or not differing([first, run])]


def _arranged(runs: Sequence[Run], teaching: set[Path], asked: _Question, notes: Sequence[str]) -> ResultTable:
    keys, labels = _keys_and_labels(runs, teaching, asked.rows, asked.columns)
    groups: dict[tuple[bool, tuple[str, ...]], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        column = ", ".join(text_of(run, key) for key in asked.columns)
        groups[run.path in teaching, _row_labels(run, keys, asked.rows, labels)][column].append(run)
    columns = sorted({column for row in groups.values() for column in row}, key=_column_order)
    in_order = sorted(groups.items(), key=lambda item: (not item[0][0], *map(sort_key, item[0][1])))
    alike: dict[tuple[bool, str], list[tuple[str, ...]]] = defaultdict(list)  # rows that share their first label
    for teacher, words in groups:
        alike[teacher, words[0]].append(words)
    names = {
        (teacher, words): told
        for (teacher, _), some in alike.items()
        for words, told in zip(some, telling(keys[1:], [words[1:] for words in some]), strict=True)
    }
    rows, left_out = [], 0
    for (teacher, words), found in in_order:
        kept = {column: _of_one_recipe(some) for column, some in found.items()}
        left_out += sum(len(some) - len(kept[column]) for column, some in found.items())
        cells = {column: _cell(some, asked.metric, asked.split) for column, some in kept.items()}
        first = _as_teacher(words[0], found) if teacher else words[0]
        rows.append(ResultRow((first, *words[1:]), ", ".join([first, *names[teacher, words]]), cells, teacher))
    if left_out:
        runs_left_out = f"{left_out} unfinished run{'s' * (left_out > 1)} left out"
        notes = [*notes, f"{runs_left_out}: they have other settings than the ended runs of their row"]
    headings = {column: _heading(rows, column) for column in columns}
    wanted = {column: (column, *heading.partition(" ")[::2]) for column, heading in headings.items()}
    published = [row for paper in asked.papers for row in published_rows(paper, wanted)]
    notes = [*notes, *_notes_on_rows(rows, _taught_by(runs)), *_notes_on_columns(rows, columns, asked)]
    averages = {}
    if asked.by_task and len(columns) > 1:
        lower = {cell.metric for row in rows for cell in row.cells.values()} & LOWER_IS_BETTER
        averages = {} if lower else _averages(columns, asked, notes)
        notes += [f"no average over tasks: of {', '.join(sorted(lower))} a lower value is better"] * bool(lower)
    for name, parts in averages.items():
        rows = [replace(row, cells={**row.cells, name: _average(row, parts)}) for row in rows]
        headings[name] = f"mean of {len(parts)} {'figures' if name == AVERAGE else 'groups'}"
    return ResultTable(
        keys=keys,
        columns=(*columns, *averages),
        headings=headings,
        rows=tuple(rows),
        averages=frozenset(averages),
        best=_best(rows, (*columns, *averages)),
        published=tuple(published),
        notes=(*notes, *(SOURCES[paper] for paper in asked.papers)),
        runs=tuple(runs),
    )


def _as_teacher(label: str, row: Mapping[str, Sequence[Run]]) -> str:
    layers = {run.facts["layers"] for runs in row.values() for run in runs if "layers" in run.facts}
    return f"{label} (teacher{f', {layers.pop()} layers' if len(layers) == 1 else ''})"


def _column_order(column: str) -> tuple[tuple[int, tuple[bool, float, str]], ...]:
    """Tasks in the order of the registry, numbers by value, words by letter; part by part."""
    from kdbert.tasks import task_names

    known = {name: number for number, name in enumerate(task_names())}
    return tuple((known.get(part, len(known)), sort_key(part)) for part in column.split(", "))


def _heading(rows: Sequence[ResultRow], column: str) -> str:
    """Split and metric of a column, if all its cells share them."""
    found = {(cell.split, cell.metric) for row in rows if (cell := row.cells.get(column)) and cell.scores}
    return " ".join(found.pop()) if len(found) == 1 else ""


# ---- cells


def _cell(runs: Sequence[Run], metric: str | None, split: str | None) -> ResultCell:
    finished = sorted((run for run in runs if run.status == "finished"), key=lambda run: run.seed)
    if split is None and all("test" in run.metrics for run in finished):
        split = "test"
    kept: dict[int, Run] = {}
    scores: dict[int, float] = {}
    place, name = "", ""
    for run in finished:
        found, wanted = _split_of(run, split), metric or run.selection
        if found is not None and wanted in run.metrics[found]:
            kept[run.seed], place, name = run, found, wanted
            scores[run.seed] = float(run.metrics[found][wanted])
    constants = [value for run in kept.values() if (value := run.constant(place, name)) is not None]
    return ResultCell(
        split=place,
        metric=name,
        scores=scores,
        runs=kept,
        diverged=sum(run.status == "diverged" for run in runs),
        unfinished=sum(run.status not in ENDED for run in runs),
        dev_chose=place.startswith("dev") and any(run.told.get("train.selection") == "best" for run in kept.values()),
        constant=(min if name in LOWER_IS_BETTER else max)(constants, default=None),
        same={seed: same for seed, run in kept.items() if (same := run.same_answer(place)) is not None},
    )


def _split_of(run: Run, asked: str | None) -> str | None:
    """The split that was asked for (dev: dev_matched), else the first dev split."""
    if asked is None:
        return next((name for name in run.metrics if name != "test"), None)
    fitting = (name for name in run.metrics if name == asked or name.startswith(f"{asked}_"))
    return next(fitting, None)


def _averages(tasks: Sequence[str], asked: _Question, notes: list[str]) -> dict[str, list[list[str]]]:
    """Name of each average -> the groups of columns whose means it is the mean of; `notes` takes what to say of it."""
    found = {AVERAGE: [[task] for task in tasks]}
    groups = {name: some for name, members in GROUPS.items() if (some := [task for task in tasks if task in members])}
    if asked.metric is None and len(groups) > 1 and sum(map(len, groups.values())) == len(tasks):
        found[BLURB if len(groups) == len(GROUPS) else f"{BLURB} (partial)"] = list(groups.values())
        missing = [task for members in GROUPS.values() for task in members if task not in tasks]
        lacks = f"; without {', '.join(missing)}, of which there are no runs, and" if missing else ";"
        told = "; ".join(f"{name}: {', '.join(some)}" for name, some in groups.items())
        notes.append(
            f"BLURB: the mean over groups of tasks ({told}), seed by seed{lacks} without sentence similarity "
            "(BIOSSES), which kdbert does not have"
        )
    return found


def _average(row: ResultRow, groups: Sequence[Sequence[str]]) -> ResultCell:
    """The mean over groups of the mean over their columns, seed by seed; no score where a column lacks the seed."""
    parts = [[row.cells.get(column, ResultCell()) for column in group] for group in groups]
    cells = [cell for part in parts for cell in part]
    seeds = sorted(set.intersection(*(set(cell.scores) for cell in cells)))

    def mean(number: Callable[[ResultCell], float]) -> float:
        return float(np.mean([np.mean([number(cell) for cell in part]) for part in parts]))

    known = all(cell.constant is not None for cell in cells)
    return ResultCell(
        split=" and ".join(sorted({cell.split for cell in cells})) if seeds else "",
        metric="mean",
        scores={seed: mean(lambda cell, seed=seed: cell.scores[seed]) for seed in seeds},  # type: ignore[misc]
        constant=mean(lambda cell: cell.constant or 0.0) if known and seeds else None,
        same={seed: cell.same[seed] for cell in cells for seed in seeds if seed in cell.same},
    )


def _best(rows: Sequence[ResultRow], columns: Sequence[str]) -> frozenset[tuple[int, str]]:
    """The best means among cells that are measured alike; not of teachers, of lone cells, of what does not beat the
    constant answer or has runs that give one answer to every example.
    """
    rivals: dict[tuple[str, ...], list[tuple[float, int, str]]] = defaultdict(list)
    for place, row in enumerate(rows):
        for column in columns:
            cell = row.cells.get(column)
            if row.teacher or cell is None or cell.summary is None:
                continue
            tasks = {run.task for run in cell.runs.values()} or {AVERAGE}
            group = (*sorted(tasks), cell.split, cell.metric, *sorted(_data_of(cell)))
            mean = -cell.summary.mean if cell.metric in LOWER_IS_BETTER else cell.summary.mean
            rivals[group].append((mean, place, column))
    return frozenset(
        (place, column)
        for group in rivals.values()
        if len(group) > 1
        for value, place, column in group
        if value == max(group)[0] and (cell := rows[place].cells[column]).beats_constant and not cell.same
    )


def _data_of(cell: ResultCell) -> set[str]:
    """The digests of the files that a cell's runs learned from and were scored on."""
    keys = ("data.train", f"data.{cell.split}")
    return {f"{key} {run.identity[key]}" for run in cell.runs.values() for key in keys if key in run.identity}


# ---- notes


def _notes_on_rows(rows: Sequence[ResultRow], taught: set[str | None]) -> list[str]:
    """Which rows also teach, and whose runs were made differently."""
    both = [
        row.name
        for row in rows
        if not row.teacher and any(run.content in taught for cell in row.cells.values() for run in cell.runs.values())
    ]
    notes = [f"runs of these rows also teach others: {'; '.join(both)}"] if both else []
    for row in rows:
        for column, cell in row.cells.items():
            for fact in ("precision", "device"):
                values = sorted({str(run.facts[fact]) for run in cell.runs.values() if fact in run.facts})
                if len(values) > 1:
                    notes.append(f"{row.name} on {column}: the runs' {fact} was {' and '.join(values)}")
            told = {text for run in cell.runs.values() if (text := _without_label(run))}
            notes += [f"{row.name} on {column}: {text}" for text in sorted(told)]
    return notes


def _notes_on_starts(runs: Sequence[Run], starts: Mapping[str, Run]) -> list[str]:
    """What each general student cost, which is counted once, and how many of the runs start from it."""
    notes = []
    for content, start in starts.items():
        count = sum(run.identity.get("student.model") == content for run in runs)
        seconds = number(mapping(start.facts.get("timings")).get("train_seconds"))
        if count and seconds is not None:
            steps = f"{start.facts.get('steps_done')} steps, {seconds:.0f} s"
            by = f"{start.method} on plain text, {steps}, once"
            runs_start = "run starts" if count == 1 else "runs start"
            notes.append(f"{count} {runs_start} from the general student {start.path.name} ({by})")
    return notes


def _without_label(run: Run) -> str:
    """How many of a run's training rows had no label; "" if all had one."""
    rows = {name: value for name, value in mapping(run.facts.get("rows")).items() if isinstance(value, int)}
    others = rows.get("unlabelled", 0) + rows.get("left_out", 0)
    if not others:
        return ""
    left_out = ", and were left out" * bool(rows.get("left_out"))
    return f"{others} of {others + rows.get('labelled', 0)} training rows have no label{left_out}"


def _notes_on_columns(rows: Sequence[ResultRow], columns: Sequence[str], asked: _Question) -> list[str]:
    """Which columns do not compare, or have nothing to show."""
    notes, empty = [], []
    for column in columns:
        cells = [row.cells[column] for row in rows if column in row.cells]
        files = {data for cell in cells for data in _data_of(cell)}
        if len(files) > len({data.split()[0] for data in files}):
            notes.append(f"the rows of {column} were made from different files of the task, so they do not compare")
        if not any(cell.scores for cell in cells):
            empty.append(column)
    if (asked.metric or asked.split) and empty:
        notes.append(f"no {' '.join(filter(None, (asked.split, asked.metric)))} on {', '.join(empty)}")
    return notes
