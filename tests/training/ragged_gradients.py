"""Forward and backward of the ragged global batch by several recipes; started by torchrun, or called for one process.

python ragged_gradients.py OUT.safetensors RECIPE.yaml ...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))  # pytest does this for the tests

from kdbert.recipe import Recipe
from kdbert.training.loop import forward_backward, logged_terms
from small_run import build, gradients, ragged_rows


def all_gradients(recipe: Recipe) -> dict[str, torch.Tensor]:
    """`<rows>|<accumulation>|<parameter>` -> gradient, and with a term's name -> value, of the whole batch.

    `stored|<quantity>` is what is kept of the teacher.

    In float64 with a live teacher where features are compared (see test_feature_runs.py), else in float32 with a
    stored one. The batch is the ragged one of 11 rows, and a single row of it, so that one of two processes has none.
    """
    parts = build(recipe)
    assert parts.accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.method.name != "kd":
        parts.module.double()
        parts.job.teachers.models[0].double()
    wrapped = parts.accelerator.prepare_model(parts.module)
    teacher = parts.stored_teacher() if recipe.method.name == "kd" else parts.live_teacher()
    parts.module.train()
    found = {f"stored|{name}": value for name, value in parts.stored_teacher().values.items()}
    ragged = ragged_rows(parts)
    for rows, accumulation in ((ragged, 1), (ragged, 2), (ragged[:1], 1)):
        terms = forward_backward(
            wrapped,
            parts.data,
            rows,
            [teacher],
            parts.accelerator,
            accumulation=accumulation,
            seed=1,
            step=0,
        )
        numbers = logged_terms(terms, parts.accelerator)
        prefix = f"{len(rows)} rows|{accumulation}|"
        found.update({prefix + name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()})
        found.update({prefix + name: value for name, value in gradients(parts.module).items()})
    return found


if __name__ == "__main__":
    result: dict[str, torch.Tensor] = {}
    for path in map(Path, sys.argv[2:]):
        result.update({f"{path.stem}|{name}": value for name, value in all_gradients(Recipe.load(path)).items()})
    if torch.distributed.get_rank() == 0:
        save_file(result, sys.argv[1])
    torch.distributed.barrier()  # a process that leaves early may abort the other's connection
    torch.distributed.destroy_process_group()
