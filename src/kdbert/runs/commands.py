"""What the training commands do, as functions: `finetune`, `train_memory`, `distill`, `sweep`."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from kdbert.disk.files import atomic_write, sha256
from kdbert.errors import RunBusy, UserError
from kdbert.methods import get_method
from kdbert.models.load import load_config
from kdbert.models.locate import locate
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import (
    baseline_recipe,
    missing_teachers,
    resolve_distill,
    resolve_finetune,
    teacher_recipes,
    with_teachers,
)
from kdbert.recipe.sections import MemorySection
from kdbert.runs.execute import Job as TrainingJob
from kdbert.runs.execute import run_recipe
from kdbert.runs.folder import RunResult
from kdbert.runs.plan import Plan, student_before_teacher


def finetune(recipe: Recipe, *, overwrite: bool = False) -> RunResult:
    """Fine-tune a whole model on a task, without a teacher.

    Args:
        recipe: its method must be `finetune`; `student.model` is what is fine-tuned.
        overwrite: move an existing run of the same folder aside and train again.

    Returns:
        The result; at once, if the run was finished before.

    Raises:
        UserError, Diverged, Interrupted: see `kdbert.errors`.
    """
    recipe = resolve_finetune(recipe)
    return run_recipe(recipe, overwrite=overwrite)


def distill(recipe: Recipe, *, overwrite: bool = False, baseline: bool | None = None) -> RunResult:
    """Train a student by the recipe's method; what it needs and nobody gave (teachers, a memory) is made first.

    Args:
        recipe: what to do; see `kdbert.recipe.Recipe`.
        overwrite: move an existing run of the same folder aside and train again (the teacher stays).
        baseline: also train the same student without a teacher (None: on the quickstart task only).

    Returns:
        The student's result, with `.baseline` if there is one; at once, if the run was finished before.

    Raises:
        UserError, Diverged, Interrupted: see `kdbert.errors`.
    """
    if missing_teachers(recipe):
        student_before_teacher(recipe)
        recipe = with_teachers(recipe, [_make_teacher(wanted).path for wanted in teacher_recipes(recipe)])
    recipe = resolve_distill(recipe)
    student = Plan(recipe)
    if student.folder.manifest().get("status") != "finished":
        student.check()  # before a baseline is trained
    without = None
    if baseline or (baseline is None and recipe.task.name == "quickstart"):
        without = run_recipe(baseline_recipe(recipe)) if recipe.method.name != "finetune" else None
    return replace(run_recipe(recipe, overwrite=overwrite), baseline=without)


def train_memory(recipe: Recipe, *, layer: int | None = None, output: str | None = None) -> Path:
    """Cluster the features of a teacher's layer into a memory, or find the one that is there.

    Args:
        recipe: task, teacher (one is fine-tuned first if none is named) and the section `memory`; its method and
            student say nothing here.
        layer: the teacher's layer, by default the last but one.
        output: copy the file there.

    Returns:
        The file.

    Raises:
        UserError: more centroids than examples, no such layer, `output` is another file, …
    """
    recipe = memory_recipe(recipe)
    target = Path(output) if output is not None else None
    if target is not None:
        if target.is_dir() or target.suffix != ".safetensors":
            raise UserError(f"--output {output!r}: expected the name of a file that ends in .safetensors")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {target.parent}: {error.strerror}; choose another --output") from None
    if missing_teachers(recipe):
        recipe = with_teachers(recipe, [_make_teacher(wanted).path for wanted in teacher_recipes(recipe)])
    job = TrainingJob(memory_plan(recipe, layer))
    assert job.teachers.centroids is not None
    path = job.teachers.centroids_path
    if target is None or target.absolute() == path.absolute():
        return path
    if target.exists() and sha256(target) != sha256(path):
        raise UserError(f"--output {output!r} is another file already; choose another name")
    try:
        atomic_write(target, lambda temporary: shutil.copyfile(path, temporary))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; the memory is in {path}") from None
    return target


def memory_recipe(recipe: Recipe) -> Recipe:
    """The recipe of a run that reads the memory to be made.

    Raises:
        UserError: it names a memory, or forbids to make one.
    """
    section = recipe.memory or MemorySection()
    if section.file is not None:
        raise UserError("memory.file names a memory that is there; leave it away to make one")
    if section.train == "never":
        raise UserError("memory.train=never forbids what train-memory is for; leave it away")
    variant = "original" if section.algorithm == "legacy" else "corrected"
    options = get_method("cka-g").Options.model_validate({"variant": variant})
    return recipe.model_copy(update={"method": options, "memory": section})


def memory_plan(recipe: Recipe, layer: int | None) -> Plan:
    """The plan of what `memory_recipe` gave, checked; its teacher is there.

    Raises:
        UserError: no such layer, more centroids than examples, whatever a run would refuse.
    """
    (teacher,) = recipe.teachers
    depth = load_config(locate(teacher.model)).num_hidden_layers
    layer = max(depth - 1, 0) if layer is None else layer
    if not 0 <= layer <= depth:
        raise UserError(f"--layer {layer}: teacher {teacher.model!r} has layers 0 (embeddings) to {depth}")
    # The teacher itself stands in for the student: the memory knows nothing of students.
    options = recipe.method.model_copy(update={"layer_map": [(layer, 1)]})
    student = recipe.student.model_copy(update={"model": teacher.model, "layers": None, "init": "first"})
    plan = Plan(resolve_distill(recipe.model_copy(update={"method": options, "student": student})))
    plan.check()
    return plan


def _make_teacher(wanted: Recipe) -> RunResult:
    """Fine-tune a missing teacher; if another process is at it, wait for that one's."""
    while True:
        try:
            return finetune(wanted)
        except RunBusy:
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the other processes of this run cannot wait along
                raise
            Plan(resolve_finetune(wanted)).folder.wait()


def finished_run(recipe: Recipe) -> Path | None:
    """The folder of a fine-tuning run if it is finished, without starting it."""
    folder = Plan(resolve_finetune(recipe)).folder
    return folder.path if folder.manifest().get("status") == "finished" else None
