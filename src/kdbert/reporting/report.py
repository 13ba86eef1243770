"""Runs as one HTML page that needs nothing else: no network, no script, no second file."""

from __future__ import annotations

import itertools
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from kdbert.disk.files import write_text
from kdbert.errors import UserError
from kdbert.reporting import figures
from kdbert.reporting.benchmarks import find_benchmarks
from kdbert.reporting.cells import ResultCell, ResultTable
from kdbert.reporting.collect import Damaged, Run, mapping, number
from kdbert.reporting.compare import compared
from kdbert.reporting.curves import Log, keys_of, mean_curve, read_log, seeds_told
from kdbert.reporting.figures import Point
from kdbert.reporting.formats import html_text, page_style
from kdbert.reporting.predicted import scored_predictions
from kdbert.reporting.table import make_tables
from kdbert.reporting.versus_teacher import (
    MOST_CHARACTERS,
    ExampleTexts,
    class_scores,
    disagreements,
    given_teacher,
    predictions_of_both,
    teacher_of,
)
from kdbert.version import __version__

log = logging.getLogger("kdbert")
GENERATOR = '<meta name="generator" content="kdbert '  # by which a report is recognised
BASELINE = "finetune"  # what the others are compared with by default
MOST_CLASSES = 15
SHADES = 20  # of a heat map
Notes = dict[str, None]  # what could not be shown, and why: sentences, each once


def write_report(path: Path, page: Callable[[], str]) -> None:
    """Write a page, whole or not at all; an older report is replaced, and no other file."""
    if path.is_dir():
        raise UserError(f"--output {str(path)!r} is a folder; name a file, such as {path / 'report.html'}")
    if path.exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            if GENERATOR not in file.read(2000):
                raise UserError(f"{path} exists and is not a kdbert report; choose another --output, or move it away")
    write_text(path, page())


def make_report(
    paths: Iterable[str | Path],
    *,
    baseline: str | None = None,
    where: Mapping[str, str] | None = None,
    title: str | None = None,
    data_dir: str | None = None,
    now: datetime | None = None,
) -> str:
    """The page. The same runs give the same page, apart from the time in it.

    Args:
        paths, where: which runs, see `kdbert.reporting.table.make_tables`.
        baseline: method that the others are compared with; by default `finetune`, where there is one.
        title: heading; by default the names of the tasks.
        data_dir: folder with the tasks' files, for the texts of examples; else what the runs' recipes say.
        now: the time in the page.
    """
    paths = list(paths)
    tables = make_tables(paths, where=where, baseline=baseline)
    students = {row.labels[0] for table in tables for row in table.rows if not row.teacher}
    if baseline is None and BASELINE in students and len(students) > 1:
        tables = [compared(table, BASELINE) for table in tables]
    page = _Page(tables, data_dir)
    parts = {name: getattr(page, name)() for name in ("curves", "heat_maps", "classes", "examples")}
    for note in (note for part in parts.values() for note in part["notes"]):
        log.info("%s", note)
    environment = Environment(
        loader=PackageLoader("kdbert.reporting", "."), undefined=StrictUndefined, autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["score"] = lambda value: "-" if value is None else page_style.number(value)
    environment.filters["told"] = lambda value, form="{:.1f}": "-" if value is None else form.format(value)
    environment.filters["shade"] = lambda value: round(SHADES * min(max(value, 0), 1))
    environment.filters["breakable"] = lambda name: escape(name).replace("_", Markup("_<wbr>"))
    text = environment.get_template("report.html.jinja").render(
        title=title or f"kdbert: {', '.join(page.tasks)}",
        version=__version__,
        made=(now or datetime.now(timezone.utc)).strftime("%Y-%m-%d %H:%M UTC"),
        colors=[(variable, color, figures.DARK[color]) for color, variable in figures.VARIABLES.items()],
        shades=_shades(),
        statuses=[run.status for run in page.runs],
        broken=tables[0].broken,
        tasks=page.tasks,
        summary=Markup(html_text(tables)),
        speed=page.speed(paths),
        **parts,
        most={"classes": MOST_CLASSES, "characters": MOST_CHARACTERS},
        experiments=page.experiments(),
        environments=page.environments,
    )
    # Names of files and folders may hold characters that a page may not.
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", text)


def _shades() -> list[tuple[str, str]]:
    """Background and text colour of each shade of a heat map, those of cka.png."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colors = colormaps["viridis"]
    return [(to_hex(colors(i / SHADES)), "#000" if i > 0.6 * SHADES else "#fff") for i in range(SHADES + 1)]


@dataclass(frozen=True)
class _Member:
    """A row of a table on one task, with its finished runs by seed."""

    name: str
    series: int  # its number among the table's rows, which gives it its colour
    cell: ResultCell
    runs: list[Run]
    logs: list[Log]


class _Page:
    """The parts of the page as plain data for its template."""

    def __init__(self, tables: Sequence[ResultTable], data_dir: str | None) -> None:
        self.runs = [run for table in tables for run in table.runs]
        self.data_dir = data_dir
        self.tasks = [column for table in tables for column in table.columns if column not in table.averages]
        self.students: dict[str, list[_Member]] = defaultdict(list)
        self.teachers: dict[str, list[_Member]] = defaultdict(list)
        for table in tables:
            for series, row in enumerate(sorted(table.rows, key=lambda row: row.teacher)):
                members = self.teachers if row.teacher else self.students
                for task in self.tasks:
                    cell = row.cells.get(task)
                    if cell is not None and cell.runs:
                        members[task].append(_Member(row.name, series, cell, [*cell.runs.values()], []))
        self.environments: dict[str, int] = {}  # text -> number of runs
        self._predictions = cache(scored_predictions)
        self._prefixes = (f"f{number}" for number in itertools.count(1))  # of the ids of each figure

    def draw(self, figure: Any, label: str) -> Markup:
        return Markup(figures.svg(figure, label=label, prefix=next(self._prefixes)))

    # ---- quality over latency

    def speed(self, paths: Sequence[str | Path]) -> dict[str, Any]:
        """Figures and tables of benchmark.json files; where there is none, quality over parameters."""
        found, broken = find_benchmarks(paths)
        for path, why in broken.items():
            log.warning("skipped %s: %s", path, why)
        measured = []
        for file in found:
            points = [engine.point for engine in file.engines]
            measured.append((file, self._quality(points, figures.LATENCY, file.split, file.metric, file.task)))
        sized = []
        for task in self.tasks if not found else ():
            members = [*self.teachers[task], *self.students[task]]
            points = [
                Point(member.name, parameters / 1e6, summary.mean, number(member.runs[0].facts.get("size_mib")))
                for member in members
                if (parameters := number(member.runs[0].facts.get("parameters"))) is not None
                and (summary := member.cell.summary) is not None
            ]
            if points:
                cell = members[0].cell
                sized.append(self._quality(points, figures.PARAMETERS, cell.split, cell.metric, task))
        return {"measured": measured, "broken": broken, "sized": sized}

    def _quality(self, points: Sequence[Point], cost: str, split: str, metric: str, task: str) -> Markup:
        figure = figures.quality_over(points, cost, metric=metric, split=split, task=task)
        return self.draw(figure, f"{metric} over {cost}, {len(points)} models on {task}")

    # ---- curves

    def curves(self) -> dict[str, Any]:
        """Learning curves and loss terms of each task."""
        notes: Notes = {}
        tasks = []
        for task in self.tasks:
            for member in self.students[task]:
                for run in member.runs:
                    try:
                        member.logs.append(read_log(run))
                    except Damaged as error:
                        notes[f"no curve of {run.path}: {error}"] = None
            members = [member for member in self.students[task] if member.logs]
            if members:
                tasks.append(self._curves_of(task, members))
        return {"tasks": tasks, "notes": notes}

    def _curves_of(self, task: str, members: Sequence[_Member]) -> dict[str, Any]:
        """The metric on dev, with the level of a single teacher, the whole training loss, and each term of it."""
        metric = members[0].cell.metric
        split = next((name for name in members[0].runs[0].metrics if name.startswith("dev")), "dev")
        scores = [run.metrics.get(split, {}).get(metric) for member in self.teachers[task] for run in member.runs]
        level = [score for score in scores if score is not None]
        names = {f"{split}/{metric}": f"{split} {metric}", "loss": "training loss"}
        for key in keys_of([log for member in members for log in member.logs], "loss/"):
            names[key] = f"{key.removeprefix('loss/')} (loss term)"
        drawn = []
        for place, (key, name) in enumerate(names.items()):
            found = (mean_curve(member.logs, key, member.series, band=place < 2) for member in members)
            curves = [curve for curve in found if curve is not None]
            reference = level[0] if place == 0 and len(level) == 1 else None
            if curves:
                figure = figures.lines(curves, x_label="epoch", y_label=name, reference=reference)
                drawn.append(self.draw(figure, f"{name} over epochs on {task}"))
        legend = [{"name": one.name, "seeds": seeds_told(one.logs), **_key(one.series)} for one in members]
        return {"task": task, "legend": legend, "figures": drawn, "teacher": len(level) == 1}

    # ---- layers

    def heat_maps(self) -> dict[str, Any]:
        """The mean over seeds of the runs' diagnostics/cka.csv."""
        notes: Notes = {}
        maps = []
        file = "diagnostics/cka.csv"
        for task, member in ((one, member) for one in self.tasks for member in self.students[one]):
            found = []
            for run in member.runs:
                if (run.path / file).exists() or file in mapping(run.facts.get("files")):
                    try:
                        found.append(_read_cka(run.read(file)))
                    except ValueError as error:
                        notes[f"{run.path / file} is damaged ({error})"] = None
            if len({values.shape for values in found}) > 1:
                notes[f"no heat map of {member.name} on {task}: its runs have other layers"] = None
            elif found:
                maps.append({"task": task, "name": member.name, "n": len(found), "rows": np.mean(found, 0).tolist()})
        return {"maps": maps, "notes": notes}

    # ---- teacher and student

    def classes(self) -> dict[str, Any]:
        """F1 and recall of classes, students minus teacher: one table per task and teacher."""
        notes: Notes = {}
        self._taught = {task: self._by_teacher(task, notes) for task in self.tasks}
        found = [
            self._class_table(task, teacher, members, notes)
            for task, taught in self._taught.items()
            for teacher, members in taught
        ]
        return {"tables": [table for table in found if table is not None], "notes": notes}

    def _by_teacher(self, task: str, notes: Notes) -> list[tuple[Run, list[_Member]]]:
        """Teachers of a task with their students; a student without one goes with the only teacher of the task."""
        found: dict[Path, tuple[Run, list[_Member]]] = {}
        alone = []
        for member in self.students[task]:
            run = member.runs[0]
            if not run.teachers:
                alone.append(member)
                continue
            teacher = teacher_of(run, self.runs)
            if teacher is None:
                notes[f"{member.name} on {task}: its teacher {given_teacher(run)} is not a run found here"] = None
                continue
            found.setdefault(teacher.path.absolute(), (teacher, []))[1].append(member)
        if len(found) == 1:
            ((_, members),) = found.values()
            members[:0] = alone
        return [*found.values()]

    def _class_table(self, task: str, teacher: Run, members: Sequence[_Member], notes: Notes) -> dict[str, Any] | None:
        columns = []
        taught = None
        for member in members:
            apart, split = [], member.cell.split
            for run in member.runs:
                try:
                    both = predictions_of_both(run, teacher, split, member.cell.metric, self._predictions)
                    own, taught = map(class_scores, both)
                except Damaged as error:
                    notes[f"{member.name} on {task}: {error}"] = None
                    continue
                apart.append((own.f1 - taught.f1, own.recall - taught.recall))
            if apart:
                columns.append((member, len(apart), np.mean(apart, axis=0)))
        if taught is None or not columns:
            return None
        occurs = taught.count > 0
        apart_f1 = np.stack([difference[0] for _, _, difference in columns])
        largest = np.where(occurs, np.abs(apart_f1).max(axis=0), -1)
        chosen = [i for i in np.argsort(-largest, kind="stable")[:MOST_CLASSES].tolist() if occurs[i]]
        chosen.sort(key=lambda i: float(apart_f1[:, i].mean()))
        scale = max((float(largest[i]) for i in chosen), default=0.0) or 1.0
        rows = []
        for i in chosen:
            students = [(f1[i], recall[i], round(50 * abs(float(f1[i])) / scale)) for _, _, (f1, recall) in columns]
            rows.append((taught.names[i], students, taught.f1[i], taught.recall[i], int(taught.count[i])))
        return {
            "task": task, "split": members[0].cell.split, "teacher": str(teacher.path), "total": int(occurs.sum()),
            "columns": [(member.name, n) for member, n, _ in columns], "rows": rows,
        }  # fmt: skip

    def examples(self) -> dict[str, Any]:
        """Examples on which the first seed of each row and its teacher disagree; after `classes`."""
        notes: Notes = {}
        tasks = []
        for task in self.tasks:
            made = []
            texts: dict[str, ExampleTexts] = {}
            for teacher, member in ((teacher, one) for teacher, members in self._taught[task] for one in members):
                run, split = member.runs[0], member.cell.split
                if not run.teachers:
                    continue
                try:
                    own, taught = predictions_of_both(run, teacher, split, member.cell.metric, self._predictions)
                    groups = disagreements(own, taught, run, teacher, split)
                except Damaged as error:
                    notes[f"{member.name} on {task}: {error}"] = None
                    continue
                if split not in texts:
                    texts[split] = ExampleTexts(run, split, self.data_dir)
                made.append(
                    {"name": member.name, "run": run, "split": split, "total": len(own.ids), "groups": groups,
                     "texts": texts[split]}
                )  # fmt: skip
            warning = next((text.warning for text in texts.values() if text.warning), "")
            faults = [text.fault for text in texts.values() if text.fault]
            if made:
                tasks.append({"task": task, "warning": warning, "faults": faults, "members": made})
        return {"tasks": tasks, "notes": notes}

    # ---- every run

    def experiments(self) -> list[dict[str, Any]]:
        """Runs that differ only in their seed, with their recipe; `environments` has where they ran."""
        groups: dict[str, list[Run]] = defaultdict(list)
        for run in sorted(self.runs, key=lambda run: (self.tasks.index(run.task), run.method)):
            recipe = {key: value for key, value in run.facts["recipe"].items() if key != "seed"}
            groups[_yaml(recipe)].append(run)
        return [self._experiment(recipe, sorted(runs, key=lambda run: run.seed)) for recipe, runs in groups.items()]

    def _experiment(self, recipe: str, runs: list[Run]) -> dict[str, Any]:
        columns = dict.fromkeys((split, name) for run in runs for split in run.metrics for name in run.metrics[split])
        return {
            "recipe": recipe,
            "columns": [*columns],
            "runs": [
                {
                    "run": run,
                    "scores": [run.metrics.get(split, {}).get(name) for split, name in columns],
                    "facts": _cost(run.facts),
                    "environment": self._environment(run),
                    "message": str(run.facts.get("message") or ""),
                    "same": mapping(run.facts.get("one_answer")),
                    "command": _command(mapping(run.facts.get("environment")).get("command")),
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
        self.environments[text] = self.environments.get(text, 0) + 1
        return [*self.environments].index(text) + 1


def _read_cka(text: str) -> np.ndarray:
    """The numbers of a cka.csv, [teacher layers, student layers]; ValueError if it is damaged."""
    rows = [line.split(",")[1:] for line in text.splitlines()[1:]]
    values = np.array(rows, dtype=np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError("not a table of numbers")
    return values


def _key(series: int) -> dict[str, str]:
    """Colour and dashes of a line as the page's legend draws them."""
    color, dash = figures.look(series)
    return {"color": figures.VARIABLES[color], "dash": " ".join(map(str, dash[1])) if dash != "solid" else "none"}


def _cost(facts: Mapping[str, Any]) -> dict[str, str]:
    """What a run cost, as the page writes it; "-" where run.json does not say it."""
    timings = mapping(facts.get("timings"))
    forms: dict[str, tuple[Any, Callable[[float], str]]] = {
        "layers": (facts.get("layers"), "{:g}".format),
        "parameters": (facts.get("parameters"), lambda value: f"{value / 1e6:.2f} M"),
        "size": (facts.get("size_mib"), "{:.1f} MiB".format),
        "steps": (facts.get("steps_done", facts.get("steps")), "{:g}".format),
        "training": (timings.get("train_seconds"), "{:.0f} s".format),
        "in all": (timings.get("total_seconds"), "{:.0f} s".format),
        "examples/s": (timings.get("examples_per_second"), "{:.0f}".format),
    }
    told = {name: "-" if (found := number(value)) is None else form(found) for name, (value, form) in forms.items()}
    return told | {name: str(facts.get(name, "-")) for name in ("device", "precision", "threads")}


def _command(words: Any) -> str:
    return " ".join(map(str, words)) if isinstance(words, list) else ""


def _yaml(tree: Any) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)
