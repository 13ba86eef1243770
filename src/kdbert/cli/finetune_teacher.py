"""`kdbert finetune-teacher`."""

from __future__ import annotations

from typing import Any

from kdbert.cli import flags as f
from kdbert.cli import options as o


@f.takes(f.MODEL, f.TASK, f.CORPUS, f.TOKENIZER, f.TRAINING, f.SEED, f.RUNS_DIR, f.OUTPUT_DIR, f.TRACKER)
def finetune_teacher(
    keys: dict[str, Any],
    config: o.Config = None,
    set_: o.Set = None,
    more: o.More = None,
    push_to_hub: o.PushToHub = None,
    dry_run: o.DryRun = False,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Fine-tune an encoder: a teacher, or a baseline.

    kdbert finetune-teacher --task rte --model bert-base-uncased
    """
    o.start(quiet)
    o.check_push(push_to_hub)
    recipe = o.build_recipe(config, {"method.name": "finetune", **keys}, set_, more)
    from kdbert.runs.commands import finetune

    if dry_run:
        from kdbert.cli.dry_run import print_plan

        print_plan(recipe, "model", quiet=quiet)
        return
    result = finetune(recipe, overwrite=overwrite)
    rows = [o.row_of("model", result.manifest)]
    o.print_results(f"{recipe.task.name}: finetune, seed {recipe.seed}", rows, result, quiet)
    o.push(result.path / "model", push_to_hub)
