"""A recipe as the command line that makes its run."""

from __future__ import annotations

import math
from typing import Any

import yaml

from kdbert.disk.sealed import flatten
from kdbert.methods import plugins
from kdbert.recipe import Recipe
from kdbert.recipe.sections import TeacherTraining
from kdbert.tasks import CORPUS, CUSTOM

FLAGS = {"method.name": "--method", "task.name": "--task", "seed": "--seed"}


def command_of(recipe: Recipe, command: str) -> list[str]:
    """The words after `kdbert` that give this recipe: every key that differs from the defaults.

    Args:
        command: `distill` or `finetune-teacher`.
    """
    wanted = _flat(recipe)
    text = recipe.task.train_file if recipe.task.name == CORPUS else None
    if recipe.task.name == CUSTOM:  # it has no defaults of its own
        bare = Recipe.model_validate({"method": recipe.method.name})
    else:
        bare = Recipe.build(
            flags={"task.name": recipe.task.name, "task.train_file": text, "method.name": recipe.method.name}
        )
    defaults = _flat(bare)
    if text is not None:
        del defaults["task.train_file"]
    if recipe.teacher_training is None:  # no teacher is made, so the task's defaults for one do not count
        wanted = {key: value for key, value in wanted.items() if not key.startswith("teacher_training.")}
    words = [command]
    for key, flag in FLAGS.items():
        if command == "distill" or key != "method.name":
            words += [flag, str(wanted[key])]
    words += ["--quiet"] + (["--no-baseline"] if command == "distill" else [])
    for key, value in wanted.items():
        if key not in FLAGS and (key not in defaults or defaults[key] != value):
            words.append(f"{key}={_text(value)}")
    for file, methods in plugins.items():
        if recipe.method.name in {method.name for method in methods}:
            words += ["--plugin", str(file)]
    return words


def _flat(recipe: Recipe) -> dict[str, Any]:
    tree = recipe.model_dump(mode="json")
    tree["stages"] = {name: stage.model_dump(exclude_none=True) for name, stage in recipe.stages.items()}
    if tree["teacher_training"] is None:
        tree["teacher_training"] = TeacherTraining().model_dump(mode="json")
    return flatten(tree)


def _text(value: Any) -> str:
    """The value as YAML on one line."""
    for style in (None, '"'):  # quoted, what cannot be printed is escaped
        text = yaml.safe_dump(
            value, default_style=style, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf
        )
        text = text.removesuffix("\n").removesuffix("\n...")
        if text.isprintable():
            break
    return text
