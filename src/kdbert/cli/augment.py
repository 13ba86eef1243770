"""`kdbert augment`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kdbert.cli import flags as f
from kdbert.cli import options as o


@f.takes(f.TASK)
def augment(
    keys: dict[str, Any],
    model: Annotated[str, typer.Option(help="A masked-LM: run, folder or Hub id.")],
    output: Annotated[str, typer.Option("--output", "-o", help="JSON lines: the texts, and which row each is of.")],
    vectors: Annotated[str | None, typer.Option(help="Word vectors (GloVe), for words of several pieces.")] = None,
    per_example: Annotated[int, typer.Option(min=1, help="New texts of each example, at most.")] = 20,
    candidates: Annotated[int, typer.Option(min=1, help="Words to choose from in each place.")] = 15,
    threshold: Annotated[float, typer.Option(min=0.001, max=1, help="Share of the words to replace.")] = 0.4,
    seed: Annotated[int, typer.Option(min=0, help="Decides what is replaced, and by what.")] = 1,
    precision: o.Precision = "auto",
    overwrite: o.ReplaceFile = False,
    runs_dir: o.RunsDir = "runs",
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Make new texts for a task, without labels.

    kdbert augment --task rte --model bert-base-uncased -o rte-new.jsonl

    Words of the training texts are replaced by others that a masked-LM finds probable there, as for TinyBERT.
    """
    o.start(quiet)
    model = o.run_path(model, runs_dir)
    from kdbert.augmentation import augment as make
    from kdbert.recipe import Recipe

    counts = make(
        Recipe.build(flags=keys).task, model, output, vectors=vectors, per_example=per_example, candidates=candidates,
        threshold=threshold, seed=seed, precision=precision, overwrite=overwrite,
    )  # fmt: skip
    if quiet:
        print(output)
        return
    print(f"new texts: {counts['texts']:,} of {counts['examples']:,} examples")
    print(f"left out: {counts['repeated']:,} that were there already, {counts['held']:,} that dev or test has")
    print(f"file: {output}")
