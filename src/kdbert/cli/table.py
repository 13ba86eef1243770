"""`kdbert table`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdbert.cli import options as o


def table(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders, or folders above them. [runs]")] = None,
    rows: Annotated[str, typer.Option(metavar="KEY,…", help="Recipe keys; also student, teacher, layers.")] = "method",
    columns: Annotated[str, typer.Option(metavar="KEY,…", help="Recipe keys, as for --rows.")] = "task",
    format_: Annotated[str, typer.Option("--format", "-f", help="markdown, latex (booktabs) or csv.")] = "markdown",
    where: o.Where = None,
    metric: Annotated[str | None, typer.Option(help="Metric. [the one by which the task's runs are compared]")] = None,
    split: Annotated[str | None, typer.Option(help="Split. [test where it has labels, else dev]")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Value of the first row key; adds differences, paired test and interval.")
    ] = None,
    paper: Annotated[
        list[str] | None, typer.Option(help="Published numbers below ours: ics, bert-and-friends, clinc, linkbert.")
    ] = None,
    percent: Annotated[bool, typer.Option("--percent", help="Scores times 100, two decimals.")] = False,
    debug: o.Debug = False,
) -> None:
    """Many runs as a table: mean, spread and number of seeds; nothing but seeds is pooled.

    kdbert table runs --rows method --columns task --baseline finetune --format latex
    """
    from kdbert.errors import UserError, near_miss
    from kdbert.reporting.formats import FORMATS
    from kdbert.reporting.table import make_tables

    o.start(quiet=False)
    if format_ not in FORMATS:
        raise UserError(f"--format {format_!r} is unknown{near_miss(format_, FORMATS)}; expected {', '.join(FORMATS)}")
    made = make_tables(
        runs or [Path("runs")],
        rows=o.split_list(rows) or [],
        columns=o.split_list(columns) or [],
        where=o.where_of(where),
        metric=metric,
        split=split,
        baseline=baseline,
        papers=paper or [],
        together=format_ == "csv",
    )
    try:
        print(FORMATS[format_](made, percent), end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write the table: {error.strerror}") from None
