"""What a sweep has to run: one job per cell, and one per teacher that cells need and nobody named."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from kdbert.disk.lock import FileLock
from kdbert.errors import UserError
from kdbert.methods import Models, Shape, get_method, plugins, source_of
from kdbert.models.locate import short_name
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import missing_teachers, resolve_distill, resolve_finetune, teacher_recipes, with_teachers
from kdbert.runs.folder import RunFolder, identity_of
from kdbert.runs.plan import Plan, student_before_teacher
from kdbert.sweep.commands import command_of
from kdbert.sweep.grid import Cell

log = logging.getLogger("kdbert")
State = Literal["waiting", "running", "finished", "diverged", "failed", "interrupted"]
DONE: tuple[State, ...] = ("finished", "diverged", "failed", "interrupted")


@dataclass(eq=False)
class Job:
    """One run, made by one process.

    Attributes:
        name: for people.
        recipe: as written; `folder` resolves it.
        teachers: the jobs that make its teachers, if they have to be made.
        state: as this sweep knows it.
        message: why it failed, in one line.
        seconds: how long its process ran in this sweep.
        made_here: whether this sweep has started it.
    """

    name: str
    recipe: Recipe
    command: Literal["distill", "finetune-teacher"]
    teachers: list[Job] = field(default_factory=list)
    state: State = "waiting"
    message: str = ""
    seconds: float = 0.0
    made_here: bool = False

    @property
    def words(self) -> list[str]:
        """The words after `kdbert` that make this run."""
        return [*command_of(self.recipe, self.command), *_plugin_words(self.recipe)]

    @cached_property
    def key(self) -> str:
        """Equal for jobs that make one run, though written differently (an unused key, a default spelled out)."""
        if self.command == "finetune-teacher":
            return str(self.folder.path.absolute())
        resolved = resolve_distill(self.recipe)
        identity = identity_of(resolved, Plan(resolved).fingerprints)
        return json.dumps([identity, [teacher.key for teacher in self.teachers]], sort_keys=True)

    @cached_property
    def plan(self) -> Plan:
        """The resolved run; known once its teacher is there."""
        if self.command == "finetune-teacher":
            return Plan(resolve_finetune(self.recipe))
        recipe = self.recipe
        if self.teachers:
            recipe = with_teachers(recipe, [teacher.folder.path for teacher in self.teachers])
        return Plan(resolve_distill(recipe))

    @property
    def folder(self) -> RunFolder:
        """Its run folder; known once its teacher is there."""
        return self.plan.folder

    @property
    def status(self) -> str:
        """What the run folder says now; "" where there is no run, or its teacher is still to come."""
        if any(teacher.state != "finished" for teacher in self.teachers):
            return ""
        try:
            return str(self.folder.manifest().get("status", ""))
        except UserError:
            return "damaged"

    def look(self, since: float | None = None) -> None:
        """Take over what the run folder says.

        Args:
            since: a failure that was written down after this time is another sweep's at the same cell, and
                counts; an older one is tried again.

        Raises:
            UserError: the folder is not known, since the recipe's models cannot be read.
        """
        folder = self.folder
        try:
            manifest = folder.manifest()
            status = manifest.get("status")
            if status == "finished":
                self.plan.check_data(manifest)
        except UserError as error:
            self.state, self.message = "failed", str(error)
            return
        if status in ("finished", "diverged"):
            self.state = status
            self.message = str(manifest.get("message", ""))
        elif status == "failed" and since is not None and folder.manifest_path.stat().st_mtime > since:
            self.state, self.message = "failed", str(manifest.get("message", ""))

    @property
    def claim(self) -> FileLock:
        """The lock by which one sweep process has this job, and no other; its name is the run folder's."""
        return FileLock(self._beside("claims", "lock"))

    @property
    def log(self) -> Path:
        """Where the process's output goes."""
        return self._beside("logs", "log")

    def _beside(self, folder: str, suffix: str) -> Path:
        name = "--".join(self.folder.path.parts[-3:])
        return Path(self.recipe.output.runs_dir) / ".sweep" / folder / f"{name}.{suffix}"

    @property
    def group(self) -> tuple[Any, ...]:
        """Jobs that take about as long."""
        return self.recipe.task.name, self.recipe.method.name, self.recipe.student.layers, self.recipe.train.epochs


def plan_jobs(cells: list[Cell]) -> list[Job]:
    """Teachers first, then the cells; what is already done says so. Everything that can be refused early is.

    Raises:
        UserError: the problems of all cells at once.
    """
    teachers: dict[Path, Job] = {}
    jobs: dict[str, Job] = {}
    checked: dict[str, None] = {}
    roots: set[Path] = set()
    problems: dict[str, str] = {}
    for cell in cells:
        try:
            taught_by = []
            for recipe in teacher_recipes(cell.recipe):
                name = f"teacher of {recipe.task.name}: {short_name(str(recipe.student.model))}, seed {recipe.seed}"
                job = Job(name, recipe, "finetune-teacher")
                taught_by.append(teachers.setdefault(job.folder.path, job))
                if taught_by[-1] is job:
                    job.look()
            job = Job(cell.name, cell.recipe, "distill", taught_by)
            if job.key in jobs:
                log.info("cell %s is the same run as %s", cell.name, jobs[job.key].name)
                continue
            if all(teacher.state == "finished" for teacher in taught_by):
                job.look()
            roots.add(Path(cell.recipe.output.runs_dir))
            if job.state == "waiting":
                _check(cell.recipe, checked)
            jobs[job.key] = job
        except UserError as error:
            problems.setdefault(str(error), cell.name)
    for root in roots:
        if root.exists() and not root.is_dir():
            raise UserError(f"cannot write runs to {root}: it is a file; choose another --runs-dir")
    if problems:
        raise UserError("; ".join(f"cell {name}: {problem}" for problem, name in problems.items()))
    _share_teacher_passes(list(jobs.values()))
    return [*teachers.values(), *jobs.values()]


def _share_teacher_passes(jobs: list[Job]) -> None:
    """Let whoever runs a teacher first keep what the other methods of the sweep read of it."""
    same: dict[str, list[Job]] = {}
    for job in jobs:
        teachers = [str(teacher.folder.path) for teacher in job.teachers] or [t.model for t in job.recipe.teachers]
        key = [job.recipe.task.model_dump(mode="json"), job.recipe.output.runs_dir, teachers]
        if get_method(job.recipe.method.name).needs(job.recipe.method, None).teachers != (0, 0):
            same.setdefault(json.dumps(key), []).append(job)
    for group in same.values():
        methods = {job.recipe.method.name for job in group if job.state == "waiting" and _reads_by_default(job.recipe)}
        for job in group:
            others = sorted({*job.recipe.train.cache_for, *methods} - {job.recipe.method.name})
            train = job.recipe.train.model_copy(update={"cache_for": others})
            job.recipe = job.recipe.model_copy(update={"train": train})


def _reads_by_default(recipe: Recipe) -> bool:
    """Whether its method is kdbert's own and reads of its teachers what it reads with default options."""
    kind = get_method(recipe.method.name)
    if source_of(kind):
        return False
    models = Models(Shape(3, 1), (Shape(6, 1),) * max(1, len(recipe.teachers)))  # stand for any
    try:
        return kind.needs(recipe.method, models) == kind.needs(kind.Options.model_validate({"name": kind.name}), models)
    except UserError:
        return False


def _plugin_words(recipe: Recipe) -> list[str]:
    """`--plugin FILE`, if the recipe's method comes from one."""
    for file, methods in plugins().items():
        if recipe.method.name in {method.name for method in methods}:
            return ["--plugin", str(file)]
    return []


def _check(recipe: Recipe, checked: dict[str, None]) -> None:
    """Refuse what a run would refuse, once for all cells that differ in seed and training only."""
    same = recipe.model_dump_json(
        include={"task", "teachers", "teacher_training", "student", "method", "memory", "output"}
    )
    if same in checked:
        return
    if missing_teachers(recipe):
        student_before_teacher(recipe)
    else:
        Plan(resolve_distill(recipe)).check()
    checked[same] = None


def now_on(folder: Path) -> float:
    """The time as the file system of `folder` tells it (another machine's clock may differ).

    Raises:
        UserError: the folder cannot be written, or its file system has no locks.
    """
    lock = FileLock(folder / ".sweep" / f"clock-{time.time_ns()}")
    try:
        lock.acquire()
        if not lock.taken():
            raise UserError(f"the file system of {folder} does not keep locks (flock), so no run can be claimed there")
        now = lock.path.stat().st_mtime
        lock.release()
    except OSError as error:
        raise UserError(f"cannot claim runs in {folder}: {error.strerror}; choose another --runs-dir") from None
    return now
