"""`kdbert benchmark`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdbert.cli import options as o


def benchmark(
    models: Annotated[list[str], typer.Argument(help="Runs, model folders, Hub ids or exports.")],
    task: o.RunsTask = None,
    data_dir: o.DataDir = None,
    split: Annotated[str | None, typer.Option(help="Split of the texts. [test if labelled, else dev]")] = None,
    backend: Annotated[str, typer.Option(help="torch, pipeline, onnx, onnx-int8, or several: torch,onnx.")] = "torch",
    batch_size: Annotated[str, typer.Option(help="Texts per call, or several sizes: 1,32.")] = "1,32",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each engine. [all cores]")] = None,
    calls: Annotated[int, typer.Option(help="Timed calls per engine and batch size, 100 or more.")] = 100,
    rounds: Annotated[int, typer.Option(help="Rounds over which the calls are spread.")] = 5,
    teacher: Annotated[str | None, typer.Option(help="Measure agreement with it. [the first run's teacher]")] = None,
    max_length: o.MaxLength = None,
    output_dir: Annotated[str | None, typer.Option(help="A new folder. [RUNS_DIR/benchmark/<task>-<time>]")] = None,
    runs_dir: o.RunsDir = "runs",
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Compare size, speed, memory and quality of models.

    kdbert benchmark 5d1f0c2a-seed1 @last --backend torch,onnx-int8

    Models are timed in turn on the CPU, each in its own process.
    """
    o.start(quiet)
    sizes = []
    for text in o.split_list(batch_size) or []:
        if not text.isdigit():
            raise typer.BadParameter(f"{text!r} is not a number of texts", param_hint="--batch-size")
        sizes.append(int(text))
    backends = o.split_list(backend) or []
    if not sizes or not backends:
        raise typer.BadParameter("is empty", param_hint="--batch-size" if not sizes else "--backend")
    from kdbert.benchmark.measure import benchmark as measure

    models = [o.run_path(model, runs_dir) for model in models]
    teacher = o.run_path(teacher, runs_dir) if teacher else None
    found = measure(
        models, task=task, data_dir=data_dir, split=split, backends=backends, batch_sizes=sizes, threads=threads,
        calls=calls, rounds=rounds, teacher=teacher, max_length=max_length, output_dir=output_dir, runs_dir=runs_dir,
    )  # fmt: skip
    if not quiet:
        from kdbert.reporting.summary import benchmark_table, print_table

        print_table(benchmark_table(found.content))
        print("benchmark: ", end="")
    print(found.path)
