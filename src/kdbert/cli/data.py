"""`kdbert data`: tasks, their files, and whether these are what they should be."""

from __future__ import annotations

from typing import Annotated

import typer

from kdbert.cli import options as o

app = typer.Typer(help="List tasks, describe one, check its files.", invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_tasks()


@app.command("list")
def list_tasks(data_dir: o.DataDir = None) -> None:
    """Every task: kind, classes, selection metric, and whether its files are at hand."""
    from kdbert.tasks import get_task, task_names

    print(f"{'task':<12} {'kind':<13} {'classes':>7}  {'selected by':<22} {'files':<14} title")
    for name in task_names():
        spec = get_task(name)
        there = [split for split in spec.splits if spec.path(split, data_dir) is not None]
        files = "all" if len(there) == len(spec.splits) else ", ".join(there) or "none"
        classes = str(len(spec.labels)) if spec.labels else "-"
        print(f"{name:<12} {spec.kind:<13} {classes:>7}  {spec.metrics[0]:<22} {files:<14} {spec.title}")
    print("custom       your own csv, tsv, jsonl, parquet or saved dataset: --train-file, --dev-file")


@app.command("describe")
def describe(
    task: Annotated[str, typer.Argument(help="Task.")],
    data_dir: o.DataDir = None,
) -> None:
    """Origin, licence, splits, rows and label distribution of a task."""
    from kdbert.tasks import CUSTOM, get_task

    if task.lower() == CUSTOM:
        print(
            "custom: your own files; to see what is made of them: "
            "kdbert distill --task custom --train-file a.csv --dev-file b.csv --dry-run"
        )
        return
    spec = get_task(task)
    print(f"{spec.name}: {spec.title}")
    print(f"kind: {spec.kind}" + (f", {len(spec.labels)} classes" if spec.labels else ", one score"))
    print(f"metrics: {', '.join(spec.metrics)} (selection by {spec.metrics[0]})")
    print(f"length: {spec.max_length} tokens\nsource: {spec.source}\nlicence: {spec.licence}")
    for split, where in spec.splits.items():
        path = spec.path(split, data_dir)
        if path is None:
            name = f"{spec.folder}/{where.files[0]}".lstrip("/")
            print(f"{split}: no file {name} (plain or .gz) below {data_dir or spec.data_dir}")
            continue
        examples = spec.load(split, data_dir)
        print(f"{split}: {len(examples)} rows in {path}")
        if examples.labels is None:
            print("  no labels")
        elif not spec.labels:
            low, high, mean = examples.labels.min(), examples.labels.max(), examples.labels.mean()
            print(f"  scores {low:.2f} to {high:.2f}, mean {mean:.3f}")
        else:
            counts = [(int((examples.labels == i).sum()), label) for i, label in enumerate(spec.labels)]
            shown = ", ".join(f"{label} {count}" for count, label in counts[:12])
            print(f"  {shown}" + (f", … ({len(counts)} classes)" if len(counts) > 12 else ""))


@app.command("verify")
def verify(
    task: Annotated[str, typer.Argument(help="Task.")],
    data_dir: o.DataDir = None,
) -> None:
    """Read every file of a task, check each row, and compare the row counts with the published ones."""
    from kdbert.errors import UserError
    from kdbert.tasks import get_task

    spec = get_task(task)
    problems = 0
    for split in spec.splits:
        path = spec.path(split, data_dir)
        if path is None:
            print(f"{split}: missing")
            problems += 1
            continue
        rows = len(spec.load(split, data_dir))
        expected = spec.rows.get(split)
        verdict = "as published" if rows == expected else f"published: {expected}" if expected else "no published count"
        problems += expected is not None and rows != expected
        print(f"{split}: {rows} rows, {verdict} ({path})")
    if problems:
        raise UserError(
            f"{problems} of {len(spec.splits)} splits of {spec.name!r} are missing or have another number of rows"
        )
