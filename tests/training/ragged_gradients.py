"""One forward and backward pass of the ragged global batch; started by torchrun, or called for one process.

python ragged_gradients.py RECIPE.yaml OUT.safetensors
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

ACCUMULATIONS = (1, 2)


def all_gradients(recipe: Recipe) -> dict[str, torch.Tensor]:
    """`<accumulation>|<parameter>` -> gradient, and `<accumulation>|<term>` -> value, of the whole batch."""
    parts = build(recipe)
    assert parts.accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
    wrapped = parts.accelerator.prepare_model(parts.module)
    teacher = parts.stored_teacher()
    parts.module.train()
    found: dict[str, torch.Tensor] = {}
    for accumulation in ACCUMULATIONS:
        terms = forward_backward(
            wrapped,
            parts.data,
            ragged_rows(parts),
            [teacher],
            parts.accelerator,
            accumulation=accumulation,
            seed=1,
            step=0,
        )
        numbers = logged_terms(terms, parts.accelerator)
        found.update({f"{accumulation}|{name}": torch.tensor(value) for name, value in numbers.items()})
        found.update({f"{accumulation}|{name}": value for name, value in gradients(parts.module).items()})
    return found


if __name__ == "__main__":
    result = all_gradients(Recipe.load(sys.argv[1]))
    if torch.distributed.get_rank() == 0:
        save_file(result, sys.argv[2])
    torch.distributed.barrier()  # a process that leaves early may abort the other's connection
    torch.distributed.destroy_process_group()
