"""What the training commands do, as functions: `finetune`, `train_memory`, `distill`. Each follows its plan."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from kdbert.disk.files import atomic_write, sha256
from kdbert.errors import UserError
from kdbert.recipe import Recipe
from kdbert.runs.centroids import CentroidsJob
from kdbert.runs.checks import check, check_rows, check_teachers
from kdbert.runs.execute import execute, execute_centroids, execute_on_the_way, finished
from kdbert.runs.folder import RunResult
from kdbert.runs.inputs import Inputs
from kdbert.runs.job import Job, Role
from kdbert.runs.plan import AnyJob, Goal, plan
from kdbert.runs.run import baseline_of


def finetune(recipe: Recipe, *, overwrite: bool = False) -> RunResult:
    """Fine-tune `student.model` on a task, without a teacher; at once, if the run was finished before.

    Args:
        recipe: its method must be `finetune`.
        overwrite: move an existing run of the same folder aside and train again.

    Raises:
        UserError, Diverged, Interrupted: see `kdbert.errors`.
    """
    return _train(recipe, "model", False, overwrite)


def distill(recipe: Recipe, *, overwrite: bool = False, baseline: bool | None = None) -> RunResult:
    """Train a student by the recipe's method; what it needs and nobody gave (teachers, centroids) is made first.

    A method with two stages makes a run of each.

    Args:
        overwrite: move an existing run of the same folder aside and train again (teacher and first stage stay).
        baseline: also train the same student without a teacher (None: on the quickstart task only).

    Returns:
        The student's result, with `.baseline` if that run exists; at once, if the run was finished before.

    Raises:
        UserError, Diverged, Interrupted: see `kdbert.errors`.
    """
    return _train(recipe, "student", wants_baseline(recipe, baseline), overwrite)


def wants_baseline(recipe: Recipe, asked: bool | None) -> bool:
    """Whether `distill` also trains the baseline: as asked, else on the quickstart task only."""
    return recipe.task.name == "quickstart" if asked is None else asked


def _train(recipe: Recipe, goal: Goal, baseline: bool, overwrite: bool) -> RunResult:
    """Do the jobs that lead to a model, in their order."""
    inputs = Inputs()
    jobs = plan(recipe, goal, baseline=baseline, inputs=inputs)
    wanted = _goal(jobs)
    result = None if overwrite or wanted.waits else finished(wanted)
    if result is None:
        _prepare(jobs)
        while wanted.waits:
            jobs = plan(recipe, goal, baseline=baseline, inputs=inputs)  # which now knows what was made
            wanted = _goal(jobs)
            check_teachers(wanted)
            for stage in _of_role(jobs, "stage"):
                if not stage.finished:
                    execute_on_the_way(stage)
    # Missing centroids are made in the student's run, which has the teacher open.
    without = [execute(job) for job in _of_role(jobs, "baseline")]
    result = result or execute(wanted, overwrite=overwrite)
    return replace(result, baseline=without[0] if without else baseline_of(wanted))


def _goal(jobs: list[AnyJob]) -> Job:
    assert isinstance(jobs[-1], Job)
    return jobs[-1]


def _of_role(jobs: list[AnyJob], role: Role) -> list[Job]:
    """Jobs on the way to the goal."""
    return [job for job in jobs[:-1] if isinstance(job, Job) and job.role == role]


def _prepare(jobs: list[AnyJob]) -> None:
    """Refuse what cannot work before anything is trained, then train the teachers that come before the goal."""
    teachers = _of_role(jobs, "teacher")
    for job in [*(one for one in (*teachers, *_of_role(jobs, "stage")) if not one.finished), jobs[-1]]:
        check(job)
    for job in _of_role(jobs, "baseline"):
        if not job.finished:
            check_rows(job)
    for job in teachers:
        execute_on_the_way(job)


def train_memory(recipe: Recipe, *, layer: int | None = None, output: str | None = None) -> Path:
    """Cluster the features of a teacher's layer into centroids; returns their file, which may have been there.

    Args:
        recipe: task, teacher (one is fine-tuned first if none is named) and the section `memory`; its method and
            student say nothing here.
        layer: the teacher's layer, by default the last but one.
        output: copy the file there.
    """
    target = Path(output) if output is not None else None
    if target is not None:
        if target.is_dir() or target.suffix != ".safetensors":
            raise UserError(f"--output {output!r}: expected the name of a file that ends in .safetensors")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {target.parent}: {error.strerror}; choose another --output") from None
    inputs = Inputs()
    jobs = plan(recipe, "centroids", layer=layer, inputs=inputs)
    _prepare(jobs)
    wanted = plan(recipe, "centroids", layer=layer, inputs=inputs)[-1] if len(jobs) > 1 else jobs[-1]
    assert isinstance(wanted, CentroidsJob)
    path = execute_centroids(wanted)
    if target is None or target.absolute() == path.absolute():
        return path
    if target.exists() and sha256(target) != sha256(path):
        raise UserError(f"--output {output!r} is another file already; choose another name")
    try:
        atomic_write(target, lambda temporary: shutil.copyfile(path, temporary))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; the memory is in {path}") from None
    return target
