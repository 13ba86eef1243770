"""`kdbert train-memory`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdbert.cli import options as o


def train_memory(
    task: o.Task = None,
    teacher: Annotated[
        str | None, typer.Option(help="Run folder, model folder or Hub id. [one is fine-tuned first]")
    ] = None,
    teacher_labels: o.TeacherLabels = None,
    teacher_model: o.TeacherModel = None,
    centroids: Annotated[int | None, typer.Option(help="Number of clusters. [100; 300 for mnli and qqp]")] = None,
    layer: Annotated[int | None, typer.Option(help="The teacher's layer. [the last but one]")] = None,
    algorithm: Annotated[
        str | None, typer.Option(help="kmeans, or legacy: the published procedure, padding included. [kmeans]")
    ] = None,
    passes: Annotated[int | None, typer.Option(help="Passes over the examples, at most. [20; legacy 3]")] = None,
    memory_seed: Annotated[int | None, typer.Option("--seed", help="Seed of the first centroids. [1]")] = None,
    output: Annotated[
        str | None, typer.Option(help="The file. [where distill looks: runs/<task>/memory/…safetensors]")
    ] = None,
    data_dir: o.DataDir = None,
    max_length: o.MaxLength = None,
    train_file: o.TrainFile = None,
    dev_file: o.DevFile = None,
    test_file: o.TestFile = None,
    text_columns: o.TextColumns = None,
    label_column: o.LabelColumn = None,
    kind: o.Kind = None,
    precision: o.Precision = None,
    config: o.Config = None,
    set_: o.Set = None,
    more: o.More = None,
    runs_dir: o.RunsDir = None,
    dry_run: o.DryRun = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the file.")] = False,
    debug: o.Debug = False,
) -> None:
    """Cluster a teacher's features into the memory that cka-g and cka-ilg read; reused if it is there.

    kdbert train-memory --task rte --teacher runs/rte/finetune/… --centroids 100
    """
    o.start(quiet)
    flags = {
        "task.name": task,
        "teachers": o.teachers([teacher] if teacher else None, teacher_labels, teacher_model),
        "teacher_training.model": teacher_model,
        "memory.centroids": centroids,
        "memory.algorithm": algorithm,
        "memory.passes": passes,
        "memory.seed": memory_seed,
        "task.data_dir": data_dir,
        "task.max_length": max_length,
        "task.train_file": train_file,
        "task.dev_file": dev_file,
        "task.test_file": test_file,
        "task.text_columns": o.split_list(text_columns),
        "task.label_column": label_column,
        "task.kind": kind,
        "train.precision": precision,
        "output.runs_dir": runs_dir,
    }
    recipe = o.build_recipe(config, {"method.name": "cka-g", **flags}, set_, more)
    if dry_run:
        from kdbert.cli.dry_run import print_plan

        print_plan(recipe, "centroids", layer)
        return
    from kdbert.runs import commands

    path = commands.train_memory(recipe, layer=layer, output=output)
    if o.main_process():
        print(path if quiet else f"memory: {path}")
