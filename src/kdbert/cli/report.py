"""`kdbert report`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from kdbert.cli import options as o


def report(
    runs: o.Runs = None,
    output: Annotated[str, typer.Option("--output", "-o", help="The page; an older one is replaced.")] = "report.html",
    baseline: Annotated[str | None, typer.Option(help="Method to compare with. [finetune, if there is one]")] = None,
    where: o.Where = None,
    title: Annotated[str | None, typer.Option(help="Heading. [the tasks]")] = None,
    data_dir: o.DataDir = None,
    runs_dir: o.RunsDir = "runs",
    debug: o.Debug = False,
) -> None:
    """Show runs as one HTML page.

    kdbert report runs -o report.html

    The page is one file and needs no network. It has the table, curves, layers, classes, examples and recipes.
    """
    o.start()
    from kdbert.reporting.report import make_report, write_report

    paths, wanted = [o.run_path(run, runs_dir) for run in runs or [runs_dir]], o.where_of(where)
    page = partial(make_report, paths, baseline=baseline, where=wanted, title=title, data_dir=data_dir)
    write_report(Path(output), page)
    print(output)
