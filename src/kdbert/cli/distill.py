"""`kdbert distill`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdbert.cli import options as o


def distill(
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="Objective; `kdbert methods` lists them. [kd]")
    ] = None,
    task: o.Task = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="Run folder, model folder or Hub id; repeat it for several. [fine-tuned first]"),
    ] = None,
    teacher_labels: o.TeacherLabels = None,
    teacher_model: o.TeacherModel = None,
    student: Annotated[
        str | None, typer.Option(help="Model folder or Hub id. [the teacher's pretrained model, cut]")
    ] = None,
    student_config: Annotated[
        str | None, typer.Option(help="A config.json: the student is drawn at random by it.")
    ] = None,
    student_layers: Annotated[
        int | None, typer.Option(help="Encoder layers that the student keeps. [half; with --student all]")
    ] = None,
    student_init: Annotated[str | None, typer.Option(help="Which layers: first, last, even, or 1,3,5. [first]")] = None,
    variant: Annotated[
        str | None, typer.Option(help="corrected, or original: the published code with its quirks.")
    ] = None,
    layer_map: Annotated[
        str | None, typer.Option(help="teacher:student layers to compare, 2:1,4:2. [the method's]")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="For cka-g, cka-ilg: a file of `kdbert train-memory`. [made on the way]")
    ] = None,
    baseline: Annotated[
        bool | None,
        typer.Option("--baseline/--no-baseline", help="Also train the student without a teacher. [on for quickstart]"),
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
    teacher_cache: Annotated[
        str | None, typer.Option(metavar="on|off", help="One teacher pass before training, kept on the disk. [on]")
    ] = None,
    no_teacher_cache: Annotated[
        bool, typer.Option("--no-teacher-cache", help="The same as --teacher-cache off.")
    ] = False,
    seed: o.Seed = None,
    config: o.Config = None,
    set_: o.Set = None,
    more: o.More = None,
    runs_dir: o.RunsDir = None,
    output_dir: o.OutputDir = None,
    tracker: o.Tracker = None,
    diagnose: Annotated[
        bool | None,
        typer.Option("--diagnose", help="Log how alike both models are inside; draw a heat map of their layers."),
    ] = None,
    plugin: o.Plugin = None,
    push_to_hub: o.PushToHub = None,
    dry_run: o.DryRun = False,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Distil a teacher into a smaller student; what is missing is made first, what is there is reused.

    kdbert distill --task rte --method kd --teacher runs/rte/finetune/… --student-layers 3
    """
    o.start(quiet)
    o.check_push(push_to_hub)
    o.load_plugins(plugin)
    recipe = o.build_recipe(
        config,
        {
            "method.name": method,
            "method.variant": variant,
            "task.name": task,
            "teachers": o.teachers(teacher, teacher_labels, teacher_model),
            "teacher_training.model": teacher_model,
            "student.model": o.student_model(student, student_config),
            "student.layers": student_layers,
            "student.init": student_init,
            "method.layer_map": layer_map,
            "memory.file": memory,
            "train.teacher_cache": False if no_teacher_cache else teacher_cache,
            "output.diagnose": diagnose,
            **o.run_flags(locals()),
        },
        set_,
        more,
    )
    if dry_run:
        from kdbert.cli.dry_run import print_plan

        print_plan(recipe)
        return
    from kdbert.runs import commands

    result = commands.distill(recipe, overwrite=overwrite, baseline=baseline)
    taught_by = result.manifest["teachers"]
    rows = [o.teacher_row(facts, i if len(taught_by) > 1 else None) for i, facts in enumerate(taught_by, 1)]
    if result.baseline is not None:
        rows.append(o.row_of("baseline (no teacher)", result.baseline))
    variant = "" if recipe.method.variant == "corrected" else f", {recipe.method.variant}"
    rows.append(o.row_of(f"student ({recipe.method.name}{variant})", result))
    o.print_results(f"{recipe.task.name}: {recipe.method.name}, seed {recipe.seed}, n = 1 run", rows, result, quiet)
    o.push(result.path / "model", push_to_hub)
