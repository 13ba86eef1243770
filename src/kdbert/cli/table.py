"""`kdbert table`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdbert.cli import options as o
from kdbert.reporting.published import SOURCES


def table(
    runs: o.Runs = None,
    rows: Annotated[str, typer.Option(metavar="KEY,…", help="Recipe keys; also student, teacher, layers.")] = "method",
    columns: Annotated[str, typer.Option(metavar="KEY,…", help="Recipe keys, as for --rows.")] = "task",
    format_: Annotated[str, typer.Option("--format", "-f", help="markdown, latex (booktabs) or csv.")] = "markdown",
    where: o.Where = None,
    metric: Annotated[str | None, typer.Option(help="Metric. [the task's first]")] = None,
    split: Annotated[str | None, typer.Option(help="Split. [test if it has labels, else dev]")] = None,
    baseline: Annotated[str | None, typer.Option(help="Row to compare with: adds differences, intervals, p.")] = None,
    paper: Annotated[o.Strings, typer.Option(help=f"Published numbers: {', '.join(SOURCES)}.")] = None,
    percent: Annotated[bool, typer.Option("--percent", help="Scores times 100, two decimals.")] = False,
    runs_dir: o.RunsDir = "runs",
    debug: o.Debug = False,
) -> None:
    """Show runs as a table: Markdown, LaTeX or CSV.

    kdbert table runs --baseline finetune --format latex

    A cell is a mean over seeds with its spread and number of seeds. Only the
    last column, "average", is a mean over tasks.
    """
    from kdbert.errors import UserError, near_miss
    from kdbert.reporting.formats import FORMATS
    from kdbert.reporting.table import make_tables

    o.start()
    if format_ not in FORMATS:
        raise UserError(f"--format {format_!r} is unknown{near_miss(format_, FORMATS)}; expected {', '.join(FORMATS)}")
    made = make_tables(
        [o.run_path(run, runs_dir) for run in runs or [runs_dir]], where=o.where_of(where), metric=metric, split=split,
        rows=o.split_list(rows) or [], columns=o.split_list(columns) or [], baseline=baseline, papers=paper or [],
        together=format_ == "csv",
    )  # fmt: skip
    if len(made) > 1:
        o.log.warning("one table per task; for one table, name these keys in --rows")
    try:
        print(FORMATS[format_](made, percent), end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write the table: {error.strerror}") from None
