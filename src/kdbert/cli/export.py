"""`kdbert export`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdbert.cli import options as o


def export(
    model: o.Model,
    format_: Annotated[str, typer.Option("--format", "-f", help="onnx or onnx-int8.")] = "onnx",
    task: o.RunsTask = None,
    data_dir: o.DataDir = None,
    output_dir: Annotated[str | None, typer.Option(help="A folder. [export/<format> in the run folder]")] = None,
    labels: o.Labels = None,
    max_length: o.MaxLength = None,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Share of dev on which export and model must agree.")
    ] = 0.95,
    max_drop: Annotated[float, typer.Option(min=0, help="How much the task's metric on dev may drop.")] = 0.02,
    runs_dir: o.RunsDir = "runs",
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Save a model as ONNX and check it on dev.

    kdbert export @last --format onnx-int8

    What it writes runs without kdbert and without torch.
    """
    o.start(quiet)
    model = o.run_path(model, runs_dir)
    from kdbert.export import export_model

    made = export_model(
        model, format_, task=task, data_dir=data_dir, output_dir=output_dir, labels=o.split_list(labels),
        max_length=max_length, min_agreement=min_agreement, max_drop=max_drop, overwrite=overwrite,
    )  # fmt: skip
    if not quiet:
        for split, found in made.about["checks"].items():
            metric = found.get("metric")
            scores = f"{metric} {found['export'][metric]:.4f} (model {found['model'][metric]:.4f}), " if metric else ""
            print(
                f"{split} ({found['examples']} examples): {scores}agreement {found['agreement']:.4f}, "
                f"largest difference of a logit {found['largest_difference']:.2g}"
            )
        for split in made.about["unchecked"]:
            print(f"{split}: not checked, its file was not at hand")
        print(f"{made.about['format']}, {made.about['size_mib']:.1f} MiB: ", end="")
    print(made.path)
