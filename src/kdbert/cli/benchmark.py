"""`kdbert benchmark`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdbert.cli import options as o


def benchmark(
    models: Annotated[list[str], typer.Argument(help="Run folders, model folders, Hub ids, exported folders.")],
    task: Annotated[str | None, typer.Option(help="Task. [the runs' own]")] = None,
    data_dir: o.RunsDataDir = None,
    split: Annotated[str | None, typer.Option(help="Whose texts. [test where it has labels, else dev]")] = None,
    backend: Annotated[str, typer.Option(help="torch, pipeline, onnx, onnx-int8; several with commas.")] = "torch",
    batch_size: Annotated[str, typer.Option(help="Texts per call; several with commas.")] = "1,32",
    threads: Annotated[int | None, typer.Option(min=1, help="Of each engine. [all that there are]")] = None,
    calls: Annotated[int, typer.Option(help="Counted calls per engine and batch size, 100 or more.")] = 100,
    rounds: Annotated[int, typer.Option(help="Turns that the calls are spread over.")] = 5,
    teacher: Annotated[str | None, typer.Option(help="Agree with whom? [the first run's teacher]")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Tokens per example. [each run's]")] = None,
    output_dir: Annotated[str | None, typer.Option(help="A new folder. [RUNS_DIR/benchmark/<task>-<time>]")] = None,
    runs_dir: Annotated[str, typer.Option(help="Root of the run folders.")] = "runs",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the folder.")] = False,
    debug: o.Debug = False,
) -> None:
    """Size, memory, latency, throughput and quality of models, timed in turn on the CPU, each in its own process.

    kdbert benchmark runs/clinc150/kd/… runs/clinc150/finetune/… --backend torch,onnx-int8 --data-dir data
    """
    o.start(quiet)
    sizes = []
    for text in o.split_list(batch_size) or []:
        if not text.isdigit():
            raise typer.BadParameter(f"{text!r} is no number of texts", param_hint="--batch-size")
        sizes.append(int(text))
    backends = o.split_list(backend) or []
    if not sizes or not backends:
        raise typer.BadParameter("is empty", param_hint="--batch-size" if not sizes else "--backend")
    from kdbert.benchmark.measure import benchmark as measure

    found = measure(
        models, task=task, data_dir=data_dir, split=split, backends=backends, batch_sizes=sizes, threads=threads,
        calls=calls, rounds=rounds, teacher=teacher, max_length=max_length, output_dir=output_dir, runs_dir=runs_dir,
    )  # fmt: skip
    if not quiet:
        from kdbert.reporting.summary import benchmark_table, print_table

        print_table(benchmark_table(found.content))
        print("benchmark: ", end="")
    print(found.path)
