"""`kdbert report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdbert.cli import options as o


def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders, or folders above them. [runs]")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page; an older report is replaced.")] = Path(
        "report.html"
    ),
    baseline: Annotated[
        str | None, typer.Option(help="Method that the others are compared with. [finetune, where there is one]")
    ] = None,
    where: o.Where = None,
    title: Annotated[str | None, typer.Option(help="Heading. [the tasks]")] = None,
    data_dir: o.RunsDataDir = None,
    debug: o.Debug = False,
) -> None:
    """Many runs as one page (HTML, one file, no network): table, curves, layers, classes, examples, recipes.

    kdbert report runs -o report.html
    """
    o.start(quiet=False)
    from kdbert.reporting.report import write_report

    wanted = o.where_of(where)
    print(write_report(runs or [Path("runs")], output, baseline=baseline, where=wanted, title=title, data_dir=data_dir))
