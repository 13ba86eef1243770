"""`kdbert expand-vocab`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdbert.cli import options as o


def expand_vocab(
    tokenizer: Annotated[str, typer.Option(help="The WordPiece tokenizer to expand: run, folder or Hub id.")],
    out: Annotated[str, typer.Option(help="Folder for the expanded tokenizer.")],
    corpus: Annotated[str | None, typer.Option(help="Text to learn pieces from: a file, or a folder of them.")] = None,
    pieces: Annotated[str | None, typer.Option(help="A list of pieces, one per line, to use instead.")] = None,
    add: Annotated[int | None, typer.Option(min=1, help="New pieces, at most. [30000]")] = None,
    min_count: Annotated[int | None, typer.Option(min=1, help="Least count of a new piece in the corpus. [5]")] = None,
    min_gain: Annotated[
        float | None, typer.Option(min=0, help="Stop when a tenth of --add gains less log-likelihood: 0.01. [never]")
    ] = None,
    runs_dir: o.RunsDir = "runs",
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Add the words of a domain to a tokenizer.

    kdbert expand-vocab --tokenizer bert-base-uncased --corpus a.txt --out vocab

    New WordPiece pieces are learned from plain text; the old pieces keep their ids.
    """
    o.start(quiet)
    tokenizer = o.run_path(tokenizer, runs_dir)
    from kdbert.expansion import HELD
    from kdbert.expansion import expand_vocab as expand

    report = expand(tokenizer, out, corpus=corpus, pieces=pieces, add=add, min_count=min_count, min_gain=min_gain)
    if not quiet:
        before, new = report["base_pieces"], report["new_pieces"]
        print(f"pieces: {before} + {new} = {before + new} ({report['continuing']} of the new ones continue a word)")
        for reason, count in report["dropped"].items():
            print(f"left out: {count} ({reason})")
        words = report["words"]
        if words is not None:
            part = f"of held-out text ({HELD})" if words["held_out"] else "of the same text (none was held out)"
            print(f"{words['words']} words {part}: before -> after")
            for key, told in (
                ("pieces_per_word", "pieces per word"), ("words_of_one_piece", "words of one piece"),
                ("unknown", "unknown words"),
            ):  # fmt: skip
                print(f"  {told}: {words['before'][key]:.4f} -> {words['after'][key]:.4f}")
            became = words["became_one_piece"]
            listed = ", ".join(f"{word} ({often})" for word, often in became["commonest"].items())
            print(f"words of the text learned from that became one piece: {became['words']}, the commonest: {listed}")
        print("tokenizer: ", end="")
    print(out)
