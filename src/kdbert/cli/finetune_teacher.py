"""`kdbert finetune-teacher`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdbert.cli import options as o


def finetune_teacher(
    task: o.Task = None,
    model: Annotated[
        str | None, typer.Option(help="Model folder or Hub id to fine-tune. [quickstart: its own]")
    ] = None,
    data_dir: o.DataDir = None,
    max_length: o.MaxLength = None,
    corpus: o.Corpus = None,
    tokenizer: o.Tokenizer = None,
    train_file: o.TrainFile = None,
    dev_file: o.DevFile = None,
    test_file: o.TestFile = None,
    text_columns: o.TextColumns = None,
    label_column: o.LabelColumn = None,
    kind: o.Kind = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    learning_rate: o.LearningRate = None,
    precision: o.Precision = None,
    bucketing: o.Bucketing = None,
    batch_sampler: o.BatchSampler = None,
    seed: o.Seed = None,
    config: o.Config = None,
    set_: o.Set = None,
    more: o.More = None,
    runs_dir: o.RunsDir = None,
    output_dir: o.OutputDir = None,
    tracker: o.Tracker = None,
    push_to_hub: o.PushToHub = None,
    dry_run: o.DryRun = False,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Fine-tune an encoder on a task: a teacher, or a baseline without one.

    kdbert finetune-teacher --task rte --model bert-base-uncased --data-dir glue_data
    """
    o.start(quiet)
    o.check_push(push_to_hub)
    recipe = o.build_recipe(
        config,
        {
            "method.name": "finetune",
            "task.name": task,
            "student.model": model,
            **o.run_flags(locals()),
        },
        set_,
        more,
    )
    from kdbert.runs.commands import finetune

    if dry_run:
        from kdbert.cli.dry_run import print_plan

        print_plan(recipe, "model")
        return
    result = finetune(recipe, overwrite=overwrite)
    o.print_results(f"{recipe.task.name}: finetune, seed {recipe.seed}", [o.row_of("model", result)], result, quiet)
    o.push(result.path / "model", push_to_hub)
