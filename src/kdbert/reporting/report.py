"""Runs as one HTML page that needs nothing else: no network, no script, no second file."""

from __future__ import annotations

import csv
import itertools
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from kdbert.disk.files import write_text
from kdbert.errors import UserError
from kdbert.reporting import figures
from kdbert.reporting.answers import Answers, class_scores, disagreements, given_teacher, teacher_of
from kdbert.reporting.benchmarks import find_benchmarks
from kdbert.reporting.cells import Cell, Row
from kdbert.reporting.collect import Run, mapping, number
from kdbert.reporting.curves import Log, keys_of, mean_curve, read_log
from kdbert.reporting.figures import Line, Point
from kdbert.reporting.formats import html_text, page_style
from kdbert.reporting.table import Table, compared, make_table
from kdbert.reporting.texts import MOST_CHARACTERS, Texts
from kdbert.version import __version__

log = logging.getLogger("kdbert")
GENERATOR = '<meta name="generator" content="kdbert '  # by which a report is known
BASELINE = "finetune"  # what the others are compared with where there is such a row and none is named
MOST_CLASSES = 15
SHADES = 20  # of a heat map
Notes = dict[str, None]  # what could not be shown, and why: sentences, each once


def write_report(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    baseline: str | None = None,
    where: Mapping[str, str] | None = None,
    title: str | None = None,
    data_dir: str | None = None,
) -> Path:
    """Write the page of `make_report`, whole or not at all; an older report is replaced, any other file refused.

    Raises:
        UserError: `output` is something else already or cannot be written; what `make_report` raises.
    """
    path = Path(output)
    _check_output(path)
    page = make_report(paths, baseline=baseline, where=where, title=title, data_dir=data_dir)
    try:
        write_text(path, page)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --output") from None
    return path


def _check_output(path: Path) -> None:
    """Refuse to replace what is no report.

    Raises:
        UserError: with what is there.
    """
    if path.is_dir():
        raise UserError(f"--output {str(path)!r} is a folder; name a file, such as {path / 'report.html'}")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            known = GENERATOR in file.read(2000)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; choose another --output") from None
    if not known:
        raise UserError(f"{path} exists and is no report of kdbert's; choose another --output, or move it away")


def make_report(
    paths: Iterable[str | Path],
    *,
    baseline: str | None = None,
    where: Mapping[str, str] | None = None,
    title: str | None = None,
    data_dir: str | None = None,
    now: datetime | None = None,
) -> str:
    """The page. The same runs give the same page, but for the time that stands in it.

    Args:
        paths: run folders, or folders above them.
        baseline: method that the others are compared with; by default `finetune`, where there is one.
        where: key -> value; other runs are left out, see `kdbert.reporting.table.make_table`.
        title: heading; by default the names of the tasks.
        data_dir: folder with the tasks' files, for the texts of examples; else what the runs' recipes say.
        now: the time that is told.

    Raises:
        UserError: no run, an unknown key or baseline.
    """
    paths = list(paths)
    table = make_table(paths, where=where, baseline=baseline)
    students = {row.labels[0] for row in table.rows if not row.teacher}
    if baseline is None and BASELINE in students and len(students) > 1:
        table = compared(table, BASELINE)
    page = _Page(table, data_dir)
    parts = {
        "speed": page.speed(paths),
        "curves": page.curves(),
        "heat_maps": page.heat_maps(),
        "classes": page.classes(),
        "examples": page.examples(),
    }
    for part in parts.values():
        for note in part.get("notes", ()):
            log.info("%s", note)
    environment = Environment(
        loader=PackageLoader("kdbert.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = page_style.number
    environment.filters["breakable"] = lambda name: escape(name).replace("_", Markup("_<wbr>"))
    text = environment.get_template("report.html.jinja").render(
        title=title or f"kdbert: {', '.join(page.tasks)}",
        version=__version__,
        made=(now or datetime.now(timezone.utc)).strftime("%Y-%m-%d %H:%M UTC"),
        light=[(variable, color) for color, variable in figures.VARIABLES.items()],
        dark=[(variable, figures.DARK[color]) for color, variable in figures.VARIABLES.items()],
        shades=_shades(),
        counts=_counts(table.runs),
        broken=table.broken,
        tasks=page.tasks,
        summary=Markup(html_text(table)),
        **parts,
        most={"classes": MOST_CLASSES, "characters": MOST_CHARACTERS},
        experiments=page.experiments(),
        environments=page.environments,
    )
    # Names of files and folders may hold what no page may.
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", text)


def _counts(runs: Sequence[Run]) -> dict[str, int]:
    """How many runs there are, by how they ended."""
    counts = {"runs": len(runs), "finished": 0, "diverged": 0, "unfinished": 0}
    for run in runs:
        counts[run.status if run.status in counts else "unfinished"] += 1
    return counts


def _shades() -> list[tuple[str, str]]:
    """Background and text colour of each shade of a heat map, those of cka.png."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colors = colormaps["viridis"]
    return [(to_hex(colors(i / SHADES)), "#000" if i > 0.6 * SHADES else "#fff") for i in range(SHADES + 1)]


@dataclass(frozen=True)
class _Member:
    """A row of the table on one task.

    Attributes:
        series: its number among the students' rows, which gives it its colour; -1 for teachers.
        runs: the finished ones, by seed.
    """

    name: str
    series: int
    row: Row
    cell: Cell

    @property
    def runs(self) -> list[Run]:
        return list(self.cell.runs.values())


class _Page:
    """The parts of the page as plain data for its template."""

    def __init__(self, table: Table, data_dir: str | None) -> None:
        self.table = table
        self.data_dir = data_dir
        self.tasks = list(dict.fromkeys(run.task for run in table.runs))
        self.tasks = [task for task in table.columns if task in self.tasks]
        self.answers = Answers()
        self.environments: list[dict[str, Any]] = []
        self._prefix = itertools.count(1)
        series = itertools.count()
        self.rows = [(_name(row, table), -1 if row.teacher else next(series), row) for row in table.rows]
        self._taught: dict[str, dict[Path, tuple[Run, list[_Member]]]] = {}

    def members(self, task: str, *, teachers: bool = False) -> list[_Member]:
        """The rows that have finished runs on a task: students, or teachers."""
        return [
            _Member(name, series, row, row.cells[task])
            for name, series, row in self.rows
            if row.teacher == teachers and task in row.cells and row.cells[task].runs
        ]

    def draw(self, figure: Any, label: str) -> Markup:
        """A figure with ids of its own on this page."""
        return Markup(figures.svg(figure, label=label, prefix=f"f{next(self._prefix)}"))

    # ---- quality over latency

    def speed(self, paths: Sequence[str | Path]) -> dict[str, Any]:
        """Figures and tables of benchmark.json files; where there is none, quality over parameters."""
        found, broken = find_benchmarks(paths)
        for path, why in broken.items():
            log.warning("skipped %s: %s", path, why)
        measured = [
            {
                "file": benchmark,
                "figure": self.draw(
                    figures.quality_over_latency(
                        [engine.point for engine in benchmark.engines],
                        metric=benchmark.metric, split=benchmark.split, task=benchmark.task,
                    ),
                    f"{benchmark.metric} over latency of {len(benchmark.engines)} models on {benchmark.task}",
                ),
            }
            for benchmark in found
        ]  # fmt: skip
        sized = [] if measured else [figure for task in self.tasks if (figure := self._quality_over_size(task))]
        return {"measured": measured, "broken": broken, "sized": sized}

    def _quality_over_size(self, task: str) -> Markup | None:
        points = []
        members = [*self.members(task, teachers=True), *self.members(task)]
        for member in members:
            facts, summary = member.runs[0].facts, member.cell.summary
            parameters, size = number(facts.get("parameters")), number(facts.get("size_mib"))
            if parameters is not None and summary is not None:
                points.append((parameters / 1e6, Point(member.name, 0.0, summary.mean, size)))
        if not points:
            return None
        cell = members[0].cell
        figure = figures.quality_over_parameters(points, metric=cell.metric, split=cell.split, task=task)
        return self.draw(figure, f"{cell.metric} over number of parameters on {task}")

    # ---- curves

    def curves(self) -> dict[str, Any]:
        """Learning curves and loss terms of each task."""
        notes: Notes = {}
        tasks = []
        for task in self.tasks:
            members = self.members(task)
            logs = {member.series: self._logs(member, notes) for member in members}
            if not any(logs.values()):
                continue
            tasks.append(
                {
                    "task": task,
                    "legend": [
                        {"name": member.name, "n": len(logs[member.series]), **_key(member.series)}
                        for member in members
                        if logs[member.series]
                    ],
                    "learning": self._learning(task, members, logs),
                    "terms": self._terms(task, members, logs),
                }
            )
        return {"tasks": tasks, "notes": notes}

    def _logs(self, member: _Member, notes: Notes) -> list[Log]:
        found: list[Log] = []
        for run in member.runs:
            try:
                found.append(read_log(run))
            except ValueError as error:
                notes[f"no curve of {run.path}: {error}"] = None
        return found

    def _learning(self, task: str, members: Sequence[_Member], logs: Mapping[int, list[Log]]) -> dict[str, Any]:
        """The metric on dev, with the teacher's level, and the whole training loss."""
        metric = members[0].cell.metric
        split = next((name for name in members[0].runs[0].metrics if name.startswith("dev")), "dev")
        level = [
            run.metrics[split][metric]
            for member in self.members(task, teachers=True)
            for run in member.runs
            if metric in run.metrics.get(split, {})
        ]
        drawn = []
        for key, y_label, reference in (
            (f"{split}/{metric}", f"{split} {metric}", level[0] if len(level) == 1 else None),
            ("loss", "training loss", None),
        ):
            curves = self._lines(members, logs, key, band=True)
            if curves:
                figure = figures.lines(curves, x_label="epoch", y_label=y_label, reference=reference)
                drawn.append(self.draw(figure, f"{y_label} over epochs on {task}"))
        return {"figures": drawn, "teacher": len(level) == 1}

    def _terms(self, task: str, members: Sequence[_Member], logs: Mapping[int, list[Log]]) -> list[Markup]:
        """One figure per term of the loss."""
        every = [log for member in members for log in logs[member.series]]
        drawn = []
        for key in keys_of(every, "loss/"):
            curves = self._lines(members, logs, key, band=False)
            if curves:
                name = key.removeprefix("loss/")
                figure = figures.lines(curves, x_label="epoch", y_label=f"{name} (loss term)")
                drawn.append(self.draw(figure, f"loss term {name} over epochs on {task}"))
        return drawn

    def _lines(self, members: Sequence[_Member], logs: Mapping[int, list[Log]], key: str, *, band: bool) -> list[Line]:
        found = (mean_curve(logs[member.series], key, member.series, band=band) for member in members)
        return [line for line in found if line is not None]

    # ---- layers

    def heat_maps(self) -> dict[str, Any]:
        """The mean over seeds of the runs' diagnostics/cka.csv."""
        notes: Notes = {}
        maps = []
        for task in self.tasks:
            for member in self.members(task):
                found = []
                for run in member.runs:
                    path = run.path / "diagnostics" / "cka.csv"
                    if path.exists() or "diagnostics/cka.csv" in mapping(run.facts.get("files")):
                        try:
                            found.append(_read_cka(run.read("diagnostics/cka.csv")))
                        except ValueError as error:
                            notes[f"{path} is damaged ({error})"] = None
                if len({values.shape for values in found}) > 1:
                    notes[f"no heat map of {member.name} on {task}: its runs have other layers"] = None
                elif found:
                    rows = [
                        [{"text": f"{value:.2f}", "shade": round(SHADES * min(max(value, 0), 1))} for value in row]
                        for row in np.mean(found, axis=0)
                    ]
                    maps.append({"task": task, "name": member.name, "n": len(found), "rows": rows})
        return {"maps": maps, "notes": notes}

    # ---- teacher and student

    def classes(self) -> dict[str, Any]:
        """F1 and recall of classes, students less teacher: one table per task and teacher."""
        notes: Notes = {}
        tables = []
        for task in self.tasks:
            self._taught[task] = self._by_teacher(task, notes)
            for teacher, members in self._taught[task].values():
                made = self._class_table(task, teacher, members, notes)
                if made is not None:
                    tables.append(made)
        return {"tables": tables, "notes": notes}

    def _by_teacher(self, task: str, notes: Notes) -> dict[Path, tuple[Run, list[_Member]]]:
        """Teachers of a task with their students; a student without one stands with the only teacher of the task."""
        found: dict[Path, tuple[Run, list[_Member]]] = {}
        alone = []
        for member in self.members(task):
            run = member.runs[0]
            if not run.teachers:
                alone.append(member)
                continue
            teacher = teacher_of(run, self.table.runs)
            if teacher is None:
                notes[f"{member.name} on {task}: its teacher {given_teacher(run)} is no run found here"] = None
                continue
            found.setdefault(teacher.path.absolute(), (teacher, []))[1].append(member)
        if len(found) == 1:
            ((_, members),) = found.values()
            members[:0] = alone
        return found

    def _class_table(self, task: str, teacher: Run, members: Sequence[_Member], notes: Notes) -> dict[str, Any] | None:
        columns = []
        taught = None
        for member in members:
            apart = []
            for run in member.runs:
                try:
                    pair = self.answers.pair(run, teacher, member.cell.split, member.cell.metric)
                    own, taught = class_scores(pair.student), class_scores(pair.teacher)
                except ValueError as error:
                    notes[f"{member.name} on {task}: {error}"] = None
                    continue
                apart.append((own.f1 - taught.f1, own.recall - taught.recall))
            if apart:
                columns.append((member, len(apart), np.mean(apart, axis=0)))
        if taught is None or not columns:
            return None
        there = taught.count > 0
        f1 = np.stack([difference[0] for _, _, difference in columns])
        largest = np.where(there, np.abs(f1).max(axis=0), -1)
        chosen = [i for i in np.argsort(-largest, kind="stable")[:MOST_CLASSES].tolist() if there[i]]
        chosen.sort(key=lambda i: float(f1[:, i].mean()))
        scale = max((float(largest[i]) for i in chosen), default=0.0) or 1.0
        rows = [
            {
                "name": taught.names[i],
                "count": int(taught.count[i]),
                "f1": taught.f1[i],
                "recall": taught.recall[i],
                "students": [
                    {"f1": d[0][i], "recall": d[1][i], "width": round(50 * abs(float(d[0][i])) / scale)}
                    for _, _, d in columns
                ],
            }
            for i in chosen
        ]
        return {
            "task": task,
            "split": members[0].cell.split,
            "teacher": str(teacher.path),
            "columns": [{"name": member.name, "n": n} for member, n, _ in columns],
            "total": int(there.sum()),
            "rows": rows,
        }

    def examples(self) -> dict[str, Any]:
        """Examples on which the first seed of each row and its teacher disagree; after `classes`."""
        notes: Notes = {}
        tasks = []
        for task in self.tasks:
            made = []
            texts: dict[str, Texts] = {}
            for teacher, members in self._taught[task].values():
                for member in members:
                    run, split = member.runs[0], member.cell.split
                    if not run.teachers:
                        continue
                    try:
                        pair = self.answers.pair(run, teacher, split, member.cell.metric)
                        groups = disagreements(pair, run, teacher, split)
                    except ValueError as error:
                        notes[f"{member.name} on {task}: {error}"] = None
                        continue
                    if split not in texts:
                        texts[split] = Texts(run, split, self.data_dir)
                    shown = [
                        {
                            "name": group.name,
                            "count": group.count,
                            "examples": [{"of": one, "parts": texts[split].parts(one)} for one in group.examples],
                        }
                        for group in groups
                    ]
                    several = len(run.teachers) if len(run.teachers) > 1 else 0
                    made.append(
                        {"name": member.name, "seed": run.seed, "total": len(pair.student.ids), "groups": shown,
                         "split": split, "kind": pair.student.kind, "teachers": several}
                    )  # fmt: skip
            warning = next((text.warning for text in texts.values() if text.warning), "")
            faults = [text.fault for text in texts.values() if text.fault]
            if made:
                tasks.append({"task": task, "warning": warning, "faults": faults, "members": made})
        return {"tasks": tasks, "notes": notes}

    # ---- every run

    def experiments(self) -> list[dict[str, Any]]:
        """Runs that differ in their seed alone, with their recipe; `environments` has where they ran."""
        groups: dict[str, list[Run]] = defaultdict(list)
        for run in sorted(self.table.runs, key=lambda run: (self.tasks.index(run.task), run.told["method.name"])):
            recipe = {key: value for key, value in run.facts["recipe"].items() if key != "seed"}
            groups[_yaml(recipe)].append(run)
        return [self._experiment(recipe, sorted(runs, key=lambda run: run.seed)) for recipe, runs in groups.items()]

    def _experiment(self, recipe: str, runs: list[Run]) -> dict[str, Any]:
        columns = list(
            dict.fromkeys((split, name) for run in runs for split in run.metrics for name in run.metrics[split])
        )
        return {
            "task": runs[0].task,
            "method": runs[0].told["method.name"],
            "recipe": recipe,
            "columns": columns,
            "runs": [
                {
                    "run": run,
                    "scores": [run.metrics.get(split, {}).get(name) for split, name in columns],
                    "facts": _told_facts(run.facts),
                    "environment": self._environment(run),
                    "message": str(run.facts.get("message") or ""),
                    "same": mapping(run.facts.get("one_answer")),
                    "command": " ".join(map(str, _list(mapping(run.facts.get("environment")).get("command")))),
                }
                for run in runs
            ],
        }

    def _environment(self, run: Run) -> int | None:
        """The number of a run's environment among those that differ, from 1."""
        found = {key: value for key, value in mapping(run.facts.get("environment")).items() if key != "command"}
        if not found:
            return None
        text = _yaml(found)
        for place, known in enumerate(self.environments, start=1):
            if known["text"] == text:
                known["runs"] += 1
                return place
        self.environments.append({"text": text, "runs": 1})
        return len(self.environments)


def _name(row: Row, table: Table) -> str:
    """What a row is called in figures: its first label, and of the others those by which it differs from rows that
    have the same.
    """
    alike = [other for other in table.rows if other.teacher == row.teacher and other.labels[0] == row.labels[0]]
    parts = [
        f"{table.keys[i].rpartition('.')[2]} {row.labels[i]}"
        for i in range(1, len(row.labels))
        if row.labels[i] != "-" and len({other.labels[i] for other in alike}) > 1
    ]
    return ", ".join([row.labels[0], *parts])


def _read_cka(text: str) -> np.ndarray:
    """The numbers of a cka.csv: [teacher layers, student layers].

    Raises:
        ValueError: it is damaged.
    """
    try:
        rows = list(csv.reader(text.splitlines()))
        values = np.array([[float(value) for value in row[1:]] for row in rows[1:]], dtype=np.float64)
    except (ValueError, csv.Error) as error:
        raise ValueError(str(error)) from None
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError("no table of numbers")
    return values


def _key(series: int) -> dict[str, str]:
    """Colour and dashes of a line as the page's legend draws them."""
    color, dash = figures.look(series)
    return {"color": figures.VARIABLES[color], "dash": " ".join(map(str, dash[1])) if dash != "solid" else "none"}


def _told_facts(facts: Mapping[str, Any]) -> dict[str, str]:
    """Cost of a run, as the page writes it; "-" where run.json does not say it."""
    timings = mapping(facts.get("timings"))
    forms: dict[str, tuple[Any, Callable[[float], str]]] = {
        "layers": (facts.get("layers"), lambda value: f"{value:g}"),
        "parameters": (facts.get("parameters"), lambda value: f"{value / 1e6:.2f} M"),
        "size": (facts.get("size_mib"), lambda value: f"{value:.1f} MiB"),
        "steps": (facts.get("steps_done", facts.get("steps")), lambda value: f"{value:g}"),
        "training": (timings.get("train_seconds"), lambda value: f"{value:.0f} s"),
        "in all": (timings.get("total_seconds"), lambda value: f"{value:.0f} s"),
        "examples/s": (timings.get("examples_per_second"), lambda value: f"{value:.0f}"),
    }
    told = {}
    for name, (value, form) in forms.items():
        found = number(value)
        told[name] = "-" if found is None else form(found)
    return told | {name: str(facts.get(name, "-")) for name in ("device", "precision", "threads")}


def _yaml(tree: Any) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
