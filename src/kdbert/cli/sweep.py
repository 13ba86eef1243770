"""`kdbert sweep`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kdbert.cli import flags as f
from kdbert.cli import options as o
from kdbert.errors import UserError

WORDS = "A recipe (YAML) with the keys grid and seeds; and recipe keys that all runs share."
GRID = "Values of a recipe key (or of method, task, teacher, student); all combinations run."


@f.takes(f.STUDENTS_RUN)
def sweep(
    keys: dict[str, Any],
    words: Annotated[o.Strings, typer.Argument(metavar="FILE|KEY=VALUE", help=WORDS)] = None,
    grid: Annotated[o.Strings, typer.Option(metavar="KEY=A,B,…", help=GRID)] = None,
    seeds: Annotated[str | None, typer.Option(help="How many (3: 1, 2, 3), or which (5,7). [1]")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the cores.")] = 1,
    engine: Annotated[
        Literal["local", "slurm"], typer.Option(help="Run here, or as jobs of a Slurm cluster (kdbert[cluster]).")
    ] = "local",
    slurm: Annotated[
        o.Strings, typer.Option(metavar="KEY=VALUE", help="--engine slurm: time=2:00:00, partition=gpu, …")
    ] = None,
    set_: o.Set = None,
    plugin: o.Plugin = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print the commands.")] = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Run a grid of recipes here or on a Slurm cluster.

    kdbert sweep --grid method=finetune,kd --grid task=mrpc,cola --seeds 3

    Finished runs are skipped, so the same command can be started again at any time. Other flags apply to all runs.
    """
    o.start(quiet)
    o.load_plugins(plugin)
    files = [word for word in words or [] if "=" not in word or Path(word).is_file()]
    parameters = _cluster_parameters(engine, slurm or [], jobs)
    if len(files) > 1:
        raise typer.BadParameter(f"may be one file, got {' and '.join(files)}", param_hint="FILE")
    if not (files or grid or seeds):
        raise UserError("nothing to sweep: give --grid or --seeds")
    from kdbert.sweep import run
    from kdbert.sweep.grid import expand

    cells = [
        replace(cell, recipe=o.with_run_paths(cell.recipe))
        for cell in expand(
            config=files[0] if files else None,
            grid=grid or [],
            seeds=seeds,
            flags=keys,
            sets=[*(set_ or []), *(word for word in words or [] if word not in files)],
        )
    ]
    if dry_run:
        from kdbert.sweep.jobs import plan_jobs

        planned = plan_jobs(cells)
        if parameters is None:
            for job in planned:
                print(shlex.join(["kdbert", *job.words]) + (f"  # {job.status}" if job.status else ""))
        else:
            from kdbert.sweep.slurm import scripts

            for script in scripts(planned, parameters):
                print(script)
        missing = sum(job.state == "waiting" for job in planned)
        print(f"{run.sweep_size(planned)}; {missing} to run", file=sys.stderr)
        return
    cluster = None
    if parameters is not None:
        from kdbert.sweep.slurm import slurm_cluster

        cluster = slurm_cluster(parameters)
    result = run.sweep(cells, jobs=jobs, cluster=cluster)
    for path in result.finished if quiet else ():
        print(path)
    if result.failed or result.diverged:
        raise typer.Exit(3)


def _cluster_parameters(engine: str, slurm: list[str], jobs: int) -> dict[str, Any] | None:
    """What --slurm says, with --engine slurm."""
    if engine == "local":
        if slurm:
            raise typer.BadParameter("goes with --engine slurm", param_hint="--slurm")
        return None
    if jobs != 1:
        hint = f"is for --engine local; write --slurm array_parallelism={jobs}"
        raise typer.BadParameter(hint, param_hint="--jobs")
    try:
        from kdbert.sweep.slurm import parse_parameters
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "submitit":
            raise
        raise UserError("--engine slurm needs submitit: pip install 'kdbert[cluster]'") from None
    return parse_parameters(slurm)
