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
from kdbert.methods import plugins
from kdbert.models.locate import short_name
from kdbert.recipe import Recipe
from kdbert.runs.checks import check, check_data_files
from kdbert.runs.folder import RunFolder, identity_of
from kdbert.runs.inputs import Inputs
from kdbert.runs.job import Job
from kdbert.runs.plan import AnyJob, plan
from kdbert.sweep.commands import command_of
from kdbert.sweep.grid import Cell

log = logging.getLogger("kdbert")
State = Literal["waiting", "running", "finished", "diverged", "failed", "interrupted"]
DONE: tuple[State, ...] = ("finished", "diverged", "failed", "interrupted")


@dataclass(eq=False)
class SweepJob:
    """One run of a sweep, made by one process.

    Attributes:
        name: for people.
        recipe: as written.
        job: what it makes, as planned before the sweep; see `planned`.
        teachers: the runs that make its teachers, if they have to be made.
        state: as this sweep knows it.
        message: why it failed, in one line.
        seconds: how long its process ran in this sweep.
        made_here: whether this sweep has started it.
    """

    name: str
    recipe: Recipe
    job: Job
    teachers: list[SweepJob] = field(default_factory=list)
    state: State = "waiting"
    message: str = ""
    seconds: float = 0.0
    made_here: bool = False

    @property
    def command(self) -> Literal["distill", "finetune-teacher"]:
        """The command that makes it."""
        return "finetune-teacher" if self.job.role == "teacher" else "distill"

    @property
    def words(self) -> list[str]:
        """The words after `kdbert` that make this run."""
        return [*command_of(self.recipe, self.command), *_plugin_words(self.recipe)]

    @cached_property
    def key(self) -> str:
        """Equal for runs that are one, though written differently (an unused key, a default spelled out)."""
        if self.command == "finetune-teacher":
            return str(self.folder.path.absolute())
        identity = identity_of(self.job.recipe, self.job.fingerprints)
        return json.dumps([identity, [teacher.key for teacher in self.teachers]], sort_keys=True)

    @property
    def planned(self) -> Job:
        """The job, whose folder is known once its teachers are there."""
        if self.job.waits:
            job = plan(self.recipe)[-1]
            assert isinstance(job, Job)
            self.job = job
        return self.job

    @property
    def folder(self) -> RunFolder:
        """Its run folder; known once its teacher is there."""
        return self.planned.folder

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
                check_data_files(self.planned)
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


def plan_jobs(cells: list[Cell]) -> list[SweepJob]:
    """Teachers first, then the cells; what is already done says so. Everything that can be refused early is.

    Raises:
        UserError: the problems of all cells at once.
    """
    teachers: dict[Path, SweepJob] = {}
    runs: dict[str, SweepJob] = {}
    checked: set[str] = set()
    roots: set[Path] = set()
    problems: dict[str, str] = {}
    inputs: dict[str, Inputs] = {}
    for cell in cells:
        try:
            read = inputs.setdefault(cell.recipe.task.model_dump_json(), Inputs())
            *first, job = plan(cell.recipe, inputs=read)
            assert isinstance(job, Job)
            taught_by = [_teacher(one, teachers) for one in first if isinstance(one, Job)]
            run = SweepJob(cell.name, cell.recipe, job, taught_by)
            if run.key in runs:
                log.info("cell %s is the same run as %s", cell.name, runs[run.key].name)
                continue
            if all(teacher.state == "finished" for teacher in taught_by):
                run.look()
            roots.add(Path(cell.recipe.output.runs_dir))
            if run.state == "waiting":
                _check_once([*first, job], checked)
            runs[run.key] = run
        except UserError as error:
            problems.setdefault(str(error), cell.name)
    for root in roots:
        if root.exists() and not root.is_dir():
            raise UserError(f"cannot write runs to {root}: it is a file; choose another --runs-dir")
    if problems:
        raise UserError("; ".join(f"cell {name}: {problem}" for problem, name in problems.items()))
    return [*teachers.values(), *runs.values()]


def _teacher(job: Job, known: dict[Path, SweepJob]) -> SweepJob:
    """The run that makes a teacher; several cells share it."""
    recipe = job.recipe
    name = f"teacher of {recipe.task.name}: {short_name(str(recipe.student.model))}, seed {recipe.seed}"
    run = known.setdefault(job.folder.path, SweepJob(name, recipe, job))
    if run.job is job:
        run.look()
    return run


def _check_once(jobs: list[AnyJob], checked: set[str]) -> None:
    """Refuse what a run would refuse, once for all cells that differ in seed and training only."""
    for job in jobs:
        same = job.role + job.recipe.model_dump_json(
            include={"task", "teachers", "student", "method", "memory", "output"}
        )
        if same not in checked and not (isinstance(job, Job) and job.finished):
            check(job)
            checked.add(same)


def _plugin_words(recipe: Recipe) -> list[str]:
    """`--plugin FILE`, if the recipe's method comes from one."""
    for file, methods in plugins().items():
        if recipe.method.name in {method.name for method in methods}:
            return ["--plugin", str(file)]
    return []


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
