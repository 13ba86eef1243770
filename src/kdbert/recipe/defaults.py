"""What a recipe leaves open is filled: the student's start and depth, the length, the teachers still to be made."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from kdbert.data.data_file import form_of
from kdbert.data.files import log_once
from kdbert.errors import UserError
from kdbert.methods import get_method
from kdbert.models.load import load_config
from kdbert.models.locate import QUICKSTART_MODEL, locate, run_facts
from kdbert.recipe import Recipe
from kdbert.recipe.sections import MemorySection, StudentSection, TaskSection, TeacherTraining, TrainSection
from kdbert.tasks import CORPUS, CUSTOM, TaskSpec, get_task
from kdbert.tasks.corpus import corpus_task
from kdbert.tasks.own import custom_task, no_dev
from kdbert.tasks.spec import DATA_DIR

log = logging.getLogger("kdbert")
# Keys of a training that say how things are computed: a teacher made on the way follows its student in them.
HOW_COMPUTED = (
    "eval_batch_size", "precision", "bucketing", "attention", "fast_dropout", "used_rows", "first_token", "packing",
    "fused_layers", "logging_steps", "checkpoint_steps",
)  # fmt: skip
PAPER_MODEL = "bert-base-uncased"  # what the published systems start from


def task_of(task: TaskSection) -> TaskSpec:
    """The task of a recipe, made from the person's files for `custom`."""
    if task.name == CORPUS:
        assert task.train_file is not None
        return corpus_task(task.train_file, task.kind)
    if task.name != CUSTOM:
        return get_task(task.name).measured_by(task.metrics)
    assert task.train_file is not None
    own = custom_task(
        task.train_file, task.dev_file, task.test_file, text_columns=task.text_columns, label_column=task.label_column,
        kind=task.kind, label_separator=task.label_separator, dev_share=task.dev_share, dev_seed=task.dev_seed,
        split_names=task.split_names, known_labels=task.labels,
    )  # fmt: skip
    return own.measured_by(task.metrics)


def missing_teachers(recipe: Recipe) -> int:
    """How many teachers have to be made: none, or as many as the method reads at least, if the recipe names none."""
    method = get_method(recipe.method.name)
    least, most = method.needs(recipe.method, None).teachers
    named = len(recipe.teachers)
    wanted = f"{least} teacher{'s' if least != 1 else ''}" + (" or more" if most is None else "")
    if least and most is not None and named > most:
        several = "; multi-kd takes several" if most == 1 else ""
        raise UserError(f"method {method.name!r} takes {wanted}, the recipe names {named}{several}")
    if named < least and recipe.task.name == CORPUS and recipe.task.kind == "encoder":
        raise UserError(f"method {method.name!r} learns from a model as it is: name it with --teacher, such as a BERT")
    if 0 < named < least:
        one = "; kd takes one" if named == 1 else ""
        raise UserError(f"method {method.name!r} takes {wanted}, the recipe names {named}: add another --teacher{one}")
    return 0 if named else least


def base_model(recipe: Recipe) -> str:
    """The pretrained model that a teacher, and by default a student, starts from."""
    if recipe.teacher_training is not None and recipe.teacher_training.model is not None:
        return recipe.teacher_training.model
    return QUICKSTART_MODEL if recipe.task.name == "quickstart" else PAPER_MODEL


def base_config(recipe: Recipe) -> Any:
    """Configuration of `base_model`; where a default cannot be read, the error says how to choose another."""
    model = base_model(recipe)
    try:
        return load_config(locate(model))
    except UserError as error:
        named = recipe.teacher_training is not None and recipe.teacher_training.model is not None
        if named or model != PAPER_MODEL:
            raise
        raise UserError(f"{error}; name another model than this default with --teacher-model FOLDER") from None


def teacher_recipes(recipe: Recipe) -> list[Recipe]:
    """The fine-tuning runs that make the recipe's missing teachers; several differ in their seeds."""
    training = recipe.teacher_training or TeacherTraining()
    return [
        recipe.model_copy(
            update={
                "task": _labelled(recipe.task),
                "teachers": [],
                "teacher_training": None,
                "student": recipe.student.model_copy(
                    update={"model": base_model(recipe), "layers": None, "init": "first"}
                ),
                "method": get_method("finetune").Options(name="finetune"),
                "memory": None,
                "train": _teacher_train(recipe, training),
                "seed": training.seed + number,
                "output": recipe.output.model_copy(update={"dir": None, "diagnose": False}),
            }
        )
        for number in range(missing_teachers(recipe))
    ]


def _teacher_train(recipe: Recipe, training: TeacherTraining) -> TrainSection:
    """The task's own defaults, what `teacher_training` says, and of the student's settings how things are computed."""
    defaults = {} if recipe.task.name == CUSTOM else get_task(recipe.task.name, recipe.task.kind).defaults
    student = recipe.train
    return TrainSection(
        **{key.removeprefix("train."): value for key, value in defaults.items() if key.startswith("train.")}
        | training.model_dump(include={"epochs", "learning_rate", "batch_size"})
        | student.model_dump(include=set(HOW_COMPUTED))
        | {"accumulation": min(student.accumulation, training.batch_size)}
    )


def stage_recipes(recipe: Recipe) -> list[Recipe]:
    """The recipes of a method's stages in their order, each trained as `stages` says; of any other method one recipe.

    Where `method.stage` names a stage, and on plain text, that is one, too.
    """
    method = get_method(recipe.method.name)
    if recipe.stages and not method.stages:
        log_once(f"method {method.name} has one stage; stages is not used")
    unused = [name for name in recipe.stages if recipe.stage not in (None, name)]
    if method.stages and unused:
        log_once(f"stages.{unused[0]} is not used: method.stage={recipe.stage} is run alone")
    names = [recipe.stage] if recipe.stage is not None else method.stages[: 1 if recipe.task.name == CORPUS else None]
    found = []
    for name in names:
        own = recipe.stages[name].model_dump(exclude_none=True) if name in recipe.stages else {}
        part: dict[str, Any] = {"method": recipe.method.model_copy(update={"stage": name})}
        if name != names[-1]:  # dev says nothing of it: its head has learned nothing
            own |= {"selection": "last", "patience": None}
            part["output"] = recipe.output.model_copy(update={"dir": None, "diagnose": False})
        part["train"] = recipe.train.model_copy(update=own)
        found.append(recipe.model_copy(update={**part, "stages": {}}))
    return found or [recipe.model_copy(update={"stages": {}})]


def stage_before(recipe: Recipe) -> Path | None:
    """The run of the first stage that the student of a second one starts from."""
    stages = get_method(recipe.method.name).stages
    run = locate(str(recipe.student.model)).run if recipe.stage in stages[1:] else None
    if run is None:
        return None
    told = run_facts(run).get("recipe", {})
    made = (told.get("task", {}).get("name"), told["method"].get("name"), told["method"].get("stage"))
    return run if made == (recipe.task.name, recipe.method.name, stages[0]) else None


def baseline_recipe(recipe: Recipe) -> Recipe:
    """The same student without distillation: same data order, epochs, schedule and rate.

    Of a method with two stages it starts from what the first one starts from, and is trained as the second.
    """
    before = stage_before(recipe)
    student = recipe.student
    if before is not None:
        student = StudentSection.model_validate(run_facts(before)["recipe"]["student"])
    return recipe.model_copy(
        update={
            "task": _labelled(recipe.task),
            "teachers": [],
            "teacher_training": None,
            "student": student,
            "method": get_method("finetune").Options(name="finetune"),
            "memory": None,
            # It reads no teacher, and rows with a label only.
            "train": recipe.train.model_copy(update={"cache_precision": "fp32", "unlabelled_share": None}),
            "output": recipe.output.model_copy(update={"dir": None, "diagnose": False}),
        }
    )


def labels_alone(recipe: Recipe) -> bool:
    """Whether a method learns from labels alone: it reads no teacher. Then rows without a label are left out."""
    return get_method(recipe.method.name).needs(recipe.method, None).teachers == (0, 0)


def _labelled(task: TaskSection) -> TaskSection:
    """The task without the file of rows that have no label."""
    named = task.text_columns if task.name == CUSTOM else None  # else they are that file's
    return task.model_copy(update={"unlabelled_file": None, "text_columns": named})


def _of_labels(recipe: Recipe) -> Recipe:
    """The recipe without what has no meaning for a method that learns from labels alone."""
    task, train = recipe.task, recipe.train
    if not labels_alone(recipe) or (task.unlabelled_file is None and train.unlabelled_share is None):
        return recipe
    log_once(f"method {recipe.method.name} learns from labels alone: rows without a label are left out")
    train = train.model_copy(update={"unlabelled_share": None})
    return recipe.model_copy(update={"task": _labelled(task), "train": train})


def resolve_finetune(recipe: Recipe) -> Recipe:
    """Fill what a fine-tuning recipe leaves open."""
    if recipe.method.name != "finetune":
        raise UserError(
            f"fine-tuning has method 'finetune', the recipe says {recipe.method.name!r}; use distill for that"
        )
    recipe = _of_labels(recipe)
    model = recipe.student.model or (QUICKSTART_MODEL if recipe.task.name == "quickstart" else None)
    if model is None:
        raise UserError("which model is fine-tuned? name a folder or Hub id with --model, such as bert-base-uncased")
    return recipe.model_copy(
        update={
            "task": _with_length(recipe),
            "teachers": [],
            "teacher_training": None,
            "student": _cut(recipe.student.model_copy(update={"model": model})),
        }
    )


def resolve_distill(recipe: Recipe) -> Recipe:
    """Fill what a distillation recipe leaves open: the student's start, its depth, the length.

    Without `student.model` the student is cut from the pretrained model that the teacher started
    from, as the published systems do (on plain text from the teacher itself), and keeps half of its layers.
    """
    recipe = _of_labels(recipe)
    student = recipe.student
    if student.model is None:
        model, layers = base_model(recipe), student.layers
        taught_by = [teacher.model for teacher in recipe.teachers if not teacher.soft]
        if recipe.teachers and not taught_by and get_method(recipe.method.name).starts_from_teacher:
            raise UserError(
                f"method {recipe.method.name!r} cuts its student from its teacher's model, and "
                f"{recipe.teachers[0].model} is a file of soft labels; use kd"
            )
        if recipe.teachers and not taught_by and recipe.teacher_training is None and model == PAPER_MODEL:
            raise UserError(
                f"{recipe.teachers[0].model} is a file of soft labels, so there is no model to cut a student from: "
                "name one with --student, such as bert-base-uncased"
            )
        if taught_by:
            model = taught_by[0]
            # A masked-LM hands on its head, too.
            if recipe.task.name != CORPUS and not get_method(recipe.method.name).starts_from_teacher:
                model = locate(model).base() or model
        if layers is None and isinstance(student.init, str):
            config = load_config(locate(model)) if taught_by else base_config(recipe)
            layers = max(1, config.num_hidden_layers // 2)
        student = student.model_copy(update={"model": model, "layers": layers})
    student = _cut(student)
    teachers = recipe.teachers
    if labels_alone(recipe) and teachers:
        log.warning("method %s reads no teacher; --teacher only says what the student is cut from", recipe.method.name)
        teachers = []
    return recipe.model_copy(
        update={
            "task": _with_length(recipe),
            "teachers": teachers,
            "teacher_training": None,
            "student": student,
            "memory": _memory_section(recipe),
        }
    )


def _memory_section(recipe: Recipe) -> MemorySection | None:
    """How the memory is made, every key with its value; None for a method that reads none."""
    if not get_method(recipe.method.name).needs(recipe.method, None).reads_centroids:
        if recipe.memory is not None and recipe.memory.file is not None:
            log.warning("method %s reads no memory; memory.file is not used", recipe.method.name)
        return None
    section = recipe.memory or MemorySection()
    return section if section.file is not None else _filled(section, recipe)


def resolve_centroids(recipe: Recipe) -> Recipe:
    """Fill what the recipe of `train-memory` leaves open: the length, and how the centroids are made."""
    section = _filled(recipe.memory or MemorySection(), recipe)
    return recipe.model_copy(update={"task": _with_length(recipe), "memory": section})


def _filled(section: MemorySection, recipe: Recipe) -> MemorySection:
    algorithm = section.algorithm or ("legacy" if recipe.method.variant == "original" else "kmeans")
    return section.model_copy(
        update={
            "centroids": section.centroids or (300 if recipe.task.name in ("mnli", "qqp") else 100),
            "algorithm": algorithm,
            "passes": section.passes or (3 if algorithm == "legacy" else 20),
        }
    )


def _cut(student: StudentSection) -> StudentSection:
    """The number of layers, where `init` lists them."""
    if isinstance(student.init, list):
        return student.model_copy(update={"layers": len(student.init)})
    if student.init != "first" and student.layers is None:
        raise UserError(f"student.init {student.init!r} keeps some layers; say how many with --student-layers")
    return student


def _with_length(recipe: Recipe) -> Any:
    """The task with its length, and with the folder of its files if KDBERT_DATA_DIR names it."""
    task = recipe.task
    of_file = form_of(Path(task.train_file)) not in (None, "saved") if task.train_file is not None else False
    if task.name == CUSTOM and of_file and task.dev_file is None and task.dev_share is None:
        raise no_dev(str(task.train_file))  # before any model is looked for
    spec = None if task.name == CUSTOM else get_task(task.name, task.kind)
    length = task.max_length or (spec or TaskSpec).max_length
    folder = task.data_dir or (os.environ.get(DATA_DIR) if spec and spec.folder else None)
    return task.model_copy(update={"max_length": length, "data_dir": folder})
