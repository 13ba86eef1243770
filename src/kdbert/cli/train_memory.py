"""`kdbert train-memory`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kdbert.cli import flags as f
from kdbert.cli import options as o


@f.takes(f.TASK, f.UNLABELLED, f.TEACHER, f.CENTROIDS, f.PRECISION, f.RUNS_DIR)
def train_memory(
    keys: dict[str, Any],
    layer: Annotated[int | None, typer.Option(help="The teacher's layer to cluster. [the last but one]")] = None,
    output: Annotated[
        str | None, typer.Option(help="The file. [where distill looks: runs/<task>/memory/…safetensors]")
    ] = None,
    config: o.Config = None,
    set_: o.Set = None,
    more: o.More = None,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Cluster a teacher's features for cka-g and cka-ilg.

    kdbert train-memory --task rte --teacher @last --centroids 100

    A memory that was built before is reused.
    """
    o.start(quiet)
    recipe = o.build_recipe(config, {"method.name": "cka-g", **keys}, set_, more)
    if dry_run:
        from kdbert.cli.dry_run import print_plan

        print_plan(recipe, "centroids", layer=layer, quiet=quiet)
        return
    from kdbert.runs import commands

    path = commands.train_memory(recipe, layer=layer, output=output)
    if o.main_process():
        print(path if quiet else f"memory: {path}")
