"""`kdbert export`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdbert.cli import options as o


def export(
    model: Annotated[str, typer.Argument(help="Run folder, model folder or Hub id.")],
    format_: Annotated[str, typer.Option("--format", "-f", help="onnx or onnx-int8.")] = "onnx",
    task: Annotated[str | None, typer.Option(help="Task. [the run's own]")] = None,
    data_dir: o.RunsDataDir = None,
    output_dir: Annotated[str | None, typer.Option(help="Where it goes. [export/<format> in the run folder]")] = None,
    labels: Annotated[str | None, typer.Option(help="The model's labels in its order, a,b,c.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Tokens per example. [the run's]")] = None,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Share of dev that the export must answer as the model does.")
    ] = 0.95,
    max_drop: Annotated[float, typer.Option(min=0, help="How far the task's metric may fall on dev.")] = 0.02,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Move an export of something else aside.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the folder.")] = False,
    debug: o.Debug = False,
) -> None:
    """A trained model as ONNX, checked on the task's dev split; it runs without kdbert and without torch.

    kdbert export runs/clinc150/kd/… --format onnx-int8 --data-dir data
    """
    o.start(quiet)
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
