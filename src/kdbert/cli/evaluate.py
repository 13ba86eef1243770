"""`kdbert evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdbert.cli import options as o


def evaluate(
    model: o.Model,
    task: o.RunsTask = None,
    corpus: Annotated[str | None, typer.Option(help="Plain text to score a masked-LM on: a file or a folder.")] = None,
    split: Annotated[str | None, typer.Option(help="dev, test, or one split such as dev_matched. [dev]")] = None,
    test_file: Annotated[
        str | None, typer.Option(help="A run on your own data: another file with the same columns.")
    ] = None,
    data_dir: o.DataDir = None,
    output_dir: Annotated[
        str | None, typer.Option(help="Folder for the predictions. [the run's; for other data predictions/]")
    ] = None,
    labels: o.Labels = None,
    metrics: Annotated[str | None, typer.Option(help="Metrics of docs/metrics.md: a,b. [the run's]")] = None,
    max_length: o.MaxLength = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per batch.")] = 64,
    precision: o.AsScored = "auto",
    runs_dir: o.RunsDir = "runs",
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Score a saved model and write its predictions.

    kdbert evaluate @last --split test
    kdbert evaluate @last --test-file new.csv

    For a GLUE test split it also writes the file that gluebenchmark.com takes.
    """
    o.start(quiet)
    model = o.run_path(model, runs_dir)
    from kdbert.runs.evaluate import evaluate as evaluate_model

    found = evaluate_model(
        model, task, corpus=corpus, split=split, test_file=test_file, data_dir=data_dir, output_dir=output_dir,
        labels=o.split_list(labels), metrics=o.split_list(metrics), max_length=max_length, batch_size=batch_size,
        precision=precision,
    )  # fmt: skip
    if not o.main_process():
        return
    from kdbert.reporting.summary import SummaryRow

    if not found.metrics and not quiet:
        which = f"the {split} split" if test_file is None else test_file
        print(f"{found.task}: {which} has no labels, so there are predictions but no scores")
    row = SummaryRow("model", found.metrics, same=found.same)
    o.print_scores(found.task, [row], found.constant, found.selection, quiet)
    for file in found.files:
        print(file if quiet else f"predictions: {file}")
