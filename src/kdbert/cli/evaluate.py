"""`kdbert evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdbert.cli import options as o


def evaluate(
    model: Annotated[str, typer.Argument(help="Run folder, model folder or Hub id.")],
    task: Annotated[str | None, typer.Option(help="Task. [the run's own]")] = None,
    corpus: o.Corpus = None,
    split: Annotated[str | None, typer.Option(help="dev, test, or one split's name such as dev_matched. [dev]")] = None,
    test_file: Annotated[
        str | None, typer.Option(help="A run of own data: another file to score or answer, of the same columns.")
    ] = None,
    data_dir: o.RunsDataDir = None,
    output_dir: Annotated[
        str | None, typer.Option(help="Where predictions go. [the run's own; else predictions/TASK/MODEL-…]")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="The model's labels in its order, a,b,c.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens per example. [the run's]")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per batch.")] = 64,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the files written.")] = False,
    debug: o.Debug = False,
) -> None:
    """Score a saved model on a task's split and write its predictions (GLUE upload files for GLUE tests).

    kdbert evaluate runs/rte/kd/… --split test --data-dir glue_data
    kdbert evaluate runs/custom/kd/… --test-file new.csv
    """
    o.start(quiet)
    from kdbert.runs.evaluate import evaluate as evaluate_model

    found = evaluate_model(
        model, task, corpus=corpus, split=split, test_file=test_file, data_dir=data_dir, output_dir=output_dir,
        labels=o.split_list(labels), max_length=max_length, batch_size=batch_size, precision=precision,
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
