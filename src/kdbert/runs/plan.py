"""From a recipe to the jobs that a command takes: teachers, first stage, baseline, centroids, student.

All training commands, `--dry-run` and `sweep` use this list; `kdbert.runs.execute` does one job.
"""

from __future__ import annotations

from typing import Literal

from kdbert.errors import UserError
from kdbert.methods import get_method
from kdbert.models.locate import locate
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import (
    base_config,
    baseline_recipe,
    resolve_centroids,
    resolve_distill,
    resolve_finetune,
    stage_recipes,
    teacher_recipes,
)
from kdbert.recipe.sections import MemorySection, StudentSection, TeacherSection
from kdbert.runs.centroids import CentroidsJob
from kdbert.runs.inputs import Inputs
from kdbert.runs.job import Job
from kdbert.training.frozen_teacher import KnownTeacher

AnyJob = Job | CentroidsJob
Goal = Literal["model", "student", "centroids"]


def plan(
    recipe: Recipe,
    goal: Goal = "student",
    *,
    baseline: bool = False,
    layer: int | None = None,
    inputs: Inputs | None = None,
) -> list[AnyJob]:
    """The jobs that lead to a goal, in their order; the last one is the goal itself. Finished ones are in it too.

    Nothing is trained and no weights are opened. A job says what it `reads` and `writes`; where its teachers, or the
    stage before it, are still to be made, it `waits` and its folder is not known yet.

    Args:
        goal: a model without a teacher, a student, or the centroids of a teacher's features.
        baseline: with the student, the same student without a teacher.
        layer: of the centroids; None: the teacher's last but one.
        inputs: what was read already.
    """
    inputs = inputs or Inputs()
    *before, recipe = stage_recipes(recipe)
    if goal == "model":
        return [Job("teacher", resolve_finetune(recipe), inputs)]
    if goal == "centroids":
        recipe = _of_centroids(recipe)
    teachers = [Job("teacher", resolve_finetune(wanted), inputs) for wanted in teacher_recipes(recipe)]
    to_come: list[KnownTeacher] = []
    if all(job.finished for job in teachers):
        named = recipe.teachers or [TeacherSection(model=str(job.folder.path), labels=None) for job in teachers]
        before = [one.model_copy(update={"teachers": named}) for one in before]
        recipe = recipe.model_copy(update={"teachers": named})
    else:
        base_config(recipe)  # refuses a default that cannot be fetched
        to_come = [KnownTeacher(job.place, made=False) for job in teachers]
    if goal == "centroids":
        return [*teachers, _centroids(recipe, to_come, layer, inputs)]
    stages = [Job("stage", resolve_distill(one), inputs, to_come=to_come) for one in before]
    for stage in stages:
        recipe = recipe.model_copy(update={"student": _after(stage)})
    waits = not all(stage.finished for stage in stages)
    student = Job("student", resolve_distill(recipe), inputs, to_come=to_come, waits=waits)
    jobs: list[AnyJob] = [*teachers, *stages]
    if baseline and student.recipe.task.kind == "encoder":
        raise UserError(f"--baseline: a student of method {recipe.method.name!r} learns from nothing but its teacher")
    if baseline and recipe.method.name != "finetune":
        jobs.append(Job("baseline", baseline_recipe(student.recipe), inputs, waits=student.waits))
    if student.centroids is not None and student.centroids.section.file is None:
        jobs.append(student.centroids)
    return [*jobs, student]


def _after(stage: Job) -> StudentSection:
    """What the next stage starts from: the stage's student, or as long as it is not made what is as large."""
    student = stage.recipe.student
    if not stage.finished:
        return student
    made = {"model": str(stage.folder.path), "tokenizer": None, "layers": None, "init": "first"}
    return student.model_copy(update=made)


def _of_centroids(recipe: Recipe) -> Recipe:
    """The recipe as that of a run which reads the centroids."""
    section = recipe.memory or MemorySection()
    if section.file is not None:
        raise UserError("memory.file already names a memory; unset it to build one")
    if section.train == "never":
        raise UserError("memory.train=never forbids what train-memory does; unset it")
    variant = "original" if section.algorithm == "legacy" else "corrected"
    options = get_method("cka-g").Options(name="cka-g", variant=variant)
    return recipe.model_copy(update={"method": options, "memory": section})


def _centroids(recipe: Recipe, to_come: list[KnownTeacher], layer: int | None, inputs: Inputs) -> CentroidsJob:
    """The job of `train-memory`."""
    named = [KnownTeacher(locate(teacher.model), teacher.labels) for teacher in recipe.teachers]
    (teacher,) = named or to_come
    last_but_one = max(teacher.shape.layers - 1, 0)
    return CentroidsJob(resolve_centroids(recipe), inputs, teacher, lambda: last_but_one if layer is None else layer)
