"""`kdbert distill`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kdbert.cli import flags as f
from kdbert.cli import options as o


@f.takes(f.STUDENTS_RUN, f.SEED, f.OUTPUT_DIR)
def distill(
    keys: dict[str, Any],
    baseline: Annotated[
        bool | None,
        typer.Option("--baseline/--no-baseline", help="Also train the student without a teacher. [on for quickstart]"),
    ] = None,
    config: o.Config = None,
    set_: o.Set = None,
    more: o.More = None,
    plugin: o.Plugin = None,
    push_to_hub: o.PushToHub = None,
    dry_run: o.DryRun = False,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Train a small student from a teacher.

    kdbert distill --task rte --method kd --teacher @last --student-layers 3

    A missing teacher is fine-tuned first; a missing memory is built. Both are reused by later runs.
    """
    o.start(quiet)
    o.check_push(push_to_hub)
    o.load_plugins(plugin)
    recipe = o.build_recipe(config, keys, set_, more)
    from kdbert.runs import checks, commands

    checks.check_read(recipe, keys)
    if dry_run:
        from kdbert.cli.dry_run import print_plan

        print_plan(recipe, baseline=commands.wants_baseline(recipe, baseline), quiet=quiet)
        return
    result = commands.distill(recipe, overwrite=overwrite, baseline=baseline)
    taught_by = result.manifest["teachers"]
    rows = [o.row_of(f"teacher {i}" if len(taught_by) > 1 else "teacher", one) for i, one in enumerate(taught_by, 1)]
    without = result.baseline
    if without is not None:
        rows.append(o.row_of("baseline (no teacher)", without.manifest))
    variant = "" if recipe.method.variant == "corrected" else f", {recipe.method.variant}"
    rows.append(o.row_of(f"student ({recipe.method.name}{variant})", result.manifest))
    title = f"{recipe.task.name}: {recipe.method.name}, seed {recipe.seed}"
    note = "no baseline yet: the same command with --baseline also trains this student without a teacher"
    if recipe.task.kind == "encoder":
        note = "a general student: fine-tune it with `kdbert distill --task TASK --student @last`"
    elif not taught_by or without is not None:
        note = ""
    o.print_results(title, rows, result, quiet, note=note)
    o.push(result.path / "model", push_to_hub)
