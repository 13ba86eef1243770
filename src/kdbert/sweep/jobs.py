"""What a sweep has to run: one job per cell, one per teacher that cells need and nobody named, one per first stage."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from kdbert.disk.lock import FileLock
from kdbert.errors import UserError
from kdbert.models.locate import short_name
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import resolve_distill, stage_recipes
from kdbert.runs.checks import check, check_finished
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
    """One run of a sweep. A process of its own makes it."""

    name: str  # for people
    recipe: Recipe  # as written
    job: Job  # its plan; where teachers or a stage were missing, `folder` plans again once they are made
    # The runs of this sweep that come before it: those that make its teachers, and the first of its two stages.
    before: list[SweepJob] = field(default_factory=list)
    state: State = "waiting"  # as far as this sweep knows
    message: str = ""  # why it failed or diverged, in one line
    since: float = math.inf  # a failure written after this time is another sweep's and counts; an older one is retried
    status: str = ""  # what its run.json said at the last look
    seconds: float = 0.0  # how long its process ran in this sweep
    made_here: bool = False  # whether this sweep started it

    @property
    def command(self) -> Literal["distill", "finetune-teacher"]:
        """The command that makes it."""
        return "finetune-teacher" if self.job.role == "teacher" else "distill"

    @property
    def cell(self) -> bool:
        """Whether it is what was asked for, and not made on the way to that."""
        return self.job.role == "student"

    @property
    def words(self) -> list[str]:
        """The words after `kdbert` that make this run."""
        return command_of(self.recipe, self.command)

    @cached_property
    def key(self) -> str:
        """Equal for cells that are one run (one spells out a default), before and after what comes before is made."""
        job = self.job
        if job.role == "teacher":
            return str(job.folder.path.absolute())
        if self.before:
            job = Job("student", resolve_distill(stage_recipes(self.recipe)[-1]), job.inputs)  # as if it were missing
        identity = identity_of(job.recipe, job.fingerprints)
        return json.dumps([identity, [one.key for one in self.before]], sort_keys=True)

    @property
    def folder(self) -> RunFolder:
        """Its run folder, whose name is final once what comes before is made."""
        if self.job.waits:
            job = plan(self.recipe)[-1]
            assert isinstance(job, Job)
            self.job = replace(job, role=self.job.role)
        return self.job.folder

    def look(self) -> None:
        """Set `state` and `message` by what comes before and its run folder; if it is still to be made they stay."""
        missing = [one for one in self.before if one.state != "finished"]
        for one in missing:
            if one.state in DONE:
                self.state, self.message = "failed", f"its {one.job.role} has {one.state}"
        if missing:
            return
        try:
            folder, self.status = self.folder, "damaged"
            manifest = folder.manifest()
            self.status = str(manifest.get("status", ""))
            if self.status == "finished":
                check_finished(self.job)
        except UserError as error:
            self.state, self.message = "failed", str(error)
            return
        for state in ("finished", "diverged", "failed"):
            if self.status == state and (state != "failed" or folder.manifest_path.stat().st_mtime > self.since):
                self.state, self.message = state, str(manifest.get("message", ""))

    @property
    def claim(self) -> FileLock:
        """The lock of the one sweep process that may start this job."""
        return FileLock(self._file("claims", "lock"))

    @property
    def log(self) -> Path:
        """The output of its process."""
        return self._file("logs", "log")

    @property
    def root(self) -> Path:
        """The folder of all runs."""
        return Path(self.recipe.output.runs_dir)

    def _file(self, folder: str, suffix: str) -> Path:
        name = "--".join(self.job.folder.path.parts[-3:])
        return self.root / ".sweep" / folder / f"{name}.{suffix}"

    @property
    def group(self) -> tuple[Any, ...]:
        """Jobs of one group take about as long."""
        return self.recipe.task.name, self.recipe.method.name, self.recipe.student.layers, self.recipe.train.epochs


def plan_jobs(cells: list[Cell]) -> list[SweepJob]:
    """Teachers, first stages, cells; their state says which are done. The problems of all cells are refused at once."""
    for root in {Path(cell.recipe.output.runs_dir) for cell in cells}:
        if root.exists() and not root.is_dir():
            raise UserError(f"cannot write runs to {root}: it is a file; choose another --runs-dir")
    inputs = Inputs()
    teachers: dict[Path, SweepJob] = {}
    stages: dict[str, SweepJob] = {}
    runs: dict[str, SweepJob] = {}
    checked: set[str] = set()
    problems: dict[str, str] = {}
    for cell in cells:
        try:
            planned = plan(cell.recipe, inputs=inputs)
            job = planned[-1]
            assert isinstance(job, Job)
            taught_by = [_teacher(one, teachers) for one in planned[:-1] if one.role == "teacher"]
            first = [_stage(one, cell, taught_by, stages) for one in planned[:-1] if one.role == "stage"]
            run = SweepJob(cell.name, cell.recipe, job, [*taught_by, *first])
            if run.key in runs:
                log.info("cell %s is the same run as %s", cell.name, runs[run.key].name)
                continue
            run.look()
            for one in planned if run.state == "waiting" else ():
                # Seeds and settings of the training change nothing that is checked.
                parts = {"task", "teachers", "student", "method", "memory", "output"}
                same = one.role + one.recipe.model_dump_json(include=parts)
                if same not in checked and not (isinstance(one, Job) and one.finished):
                    check(one)
                    checked.add(same)
            runs[run.key] = run
        except UserError as error:
            problems.setdefault(str(error), cell.name)
    if problems:
        raise UserError("; ".join(f"cell {name}: {problem}" for problem, name in problems.items()))
    return [*teachers.values(), *stages.values(), *runs.values()]


def _stage(job: AnyJob, cell: Cell, taught_by: list[SweepJob], known: dict[str, SweepJob]) -> SweepJob:
    """The run that is the first stage of a cell; cells share it."""
    assert isinstance(job, Job)
    first = SweepJob(f"first stage of {cell.name}", stage_recipes(cell.recipe)[0], job, taught_by)
    if first.key not in known:
        known[first.key] = first
        first.look()
    return known[first.key]


def _teacher(job: AnyJob, known: dict[Path, SweepJob]) -> SweepJob:
    """The run that makes a teacher; cells share it."""
    assert isinstance(job, Job)
    path, recipe = job.folder.path, job.recipe
    if path not in known:
        name = f"teacher of {recipe.task.name}: {short_name(str(recipe.student.model))}, seed {recipe.seed}"
        known[path] = SweepJob(name, recipe, job)
        known[path].look()
    return known[path]


def note_time(jobs: Iterable[SweepJob]) -> None:
    """Let failures count that are written from now on, by the clock of the runs' file system (another machine's time
    may differ).
    """
    waiting = list(jobs)
    for root in {job.root for job in waiting}:
        lock = FileLock(root / ".sweep" / f"clock-{time.time_ns()}")
        try:
            lock.acquire()
            if not lock.taken():
                raise UserError(f"the file system of {root} has no locks (flock), so no run can be claimed there")
            now = lock.path.stat().st_mtime
            lock.release()
        except OSError as error:
            raise UserError(f"cannot claim runs in {root}: {error.strerror}; choose another --runs-dir") from None
        for job in waiting:
            job.since = now if job.root == root else job.since
