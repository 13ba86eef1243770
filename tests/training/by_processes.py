"""What test_processes.py compares between one process and two: gradients of a ragged batch, and whole runs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from kdbert.recipe import Recipe
from kdbert.training.loop import logged_terms
from kdbert.training.step import forward_backward
from small_run import build, gradients, ragged_rows, run_recipe


def all_gradients(recipe: Recipe) -> dict[str, torch.Tensor]:
    """`<rows>|<accumulation>|<parameter>` -> gradient, and with a term's name -> value, of the whole batch.

    `stored|<quantity>` is what is kept of the first teacher.

    With `kd` in float32 with a stored teacher; with the others in float64 with live ones (see test_feature_runs.py).
    The batch is the ragged one of the first epoch, and a single row of it, so that one of two processes has none.
    """
    parts = build(recipe)
    assert parts.accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
    stored, models = recipe.method.name == "kd", [teacher.network for teacher in parts.run.teachers]
    if not stored:
        for model in (parts.module, *(models[number] for number in range(len(recipe.teachers)))):
            model.double()
    wrapped = parts.accelerator.prepare_model(parts.module)
    teachers = [parts.live_teacher(number) for number in range(len(recipe.teachers))]
    parts.module.train()
    found = {}
    if recipe.teachers and recipe.task.name != "corpus":
        kept = parts.stored_teacher()
        found = {f"stored|{name}": value for name, value in kept.kept.items()}
        teachers = [kept] if stored else teachers
    ragged = ragged_rows(parts)
    for rows, accumulation in ((ragged, 1), (ragged, 2), (ragged[:1], 1)):
        terms = forward_backward(
            wrapped,
            parts.data,
            rows,
            teachers,
            parts.accelerator,
            accumulation=accumulation,
            seed=1,
            step=0,
        )
        numbers = logged_terms(terms, parts.accelerator)
        prefix = f"{'one' if len(rows) == 1 else 'ragged'}|{accumulation}|"
        found.update({prefix + name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()})
        found.update({prefix + name: value for name, value in gradients(parts.module).items()})
    return found


def compare(found: Path, recipes: list[Path], runs: list[Path]) -> None:
    """Body of one of two processes: write the gradients of recipes, and run further ones."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    result: dict[str, torch.Tensor] = {}
    for path in recipes:
        result.update({f"{path.stem}|{name}": value for name, value in all_gradients(Recipe.build(path)).items()})
    for path in runs:
        run_recipe(Recipe.build(path))
    if torch.distributed.get_rank() == 0:
        save_file(result, found)
    torch.distributed.barrier()  # a process that leaves early may abort the other's connection
    torch.distributed.destroy_process_group()
