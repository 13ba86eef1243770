"""`kdbert predict`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from kdbert.cli import options as o
from kdbert.errors import UserError

log = logging.getLogger("kdbert")
STANDARD_INPUT = Path("/dev/stdin")


def predict(
    model: o.Model,
    file: Annotated[
        str,
        typer.Argument(help="csv, tsv, jsonl, parquet, conll, txt (a text per line), a saved dataset; -: stdin."),
    ] = "-",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON lines. [standard output]")] = None,
    scores: Annotated[str | None, typer.Option(help="Also write logits or probabilities, by label.")] = None,
    keep_columns: Annotated[bool, typer.Option("--keep-columns", help="Also write the columns of the file.")] = False,
    text_columns: Annotated[str | None, typer.Option(help="The column(s) of the text: premise,hypothesis.")] = None,
    format: Annotated[str | None, typer.Option(help="csv, tsv, jsonl, txt or conll. [by the name; stdin: txt]")] = None,
    task: o.RunsTask = None,
    labels: o.Labels = None,
    max_length: o.MaxLength = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per batch.")] = 64,
    precision: o.AsScored = "auto",
    overwrite: o.ReplaceFile = False,
    runs_dir: o.RunsDir = "runs",
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Label new texts with a finished model.

    kdbert predict @last new.csv -o labels.jsonl
    cat texts.txt | kdbert predict @last --scores probabilities

    One JSON object per text, in the order of the input: its label, labels, score or tags.
    """
    o.start(quiet)
    if format not in (None, "csv", "tsv", "jsonl", "txt", "conll"):
        raise UserError(f"--format {format!r}: expected csv, tsv, jsonl, txt or conll")
    if format == "conll" and file == "-":
        raise UserError("--format conll: such a file is read twice, which standard input cannot be; name the file")
    if output is not None and output.exists() and not overwrite:
        raise UserError(f"{output} is there already: choose another --output, or pass --overwrite to replace it")
    path = STANDARD_INPUT if file == "-" else Path(file)
    if file == "-" and sys.stdin.isatty():
        raise UserError("name a file of texts, or send texts to standard input")
    if file != "-" and not path.exists():
        raise UserError(f"no file {file!r}: check the path")
    if not o.main_process():
        return
    model = o.run_path(model, runs_dir)
    from kdbert.data.data_file import form_of, rows_of
    from kdbert.disk.files import atomic_write
    from kdbert.runs.predict import Predictor

    form = format or ("txt" if file == "-" else form_of(path))
    if form is None:
        raise UserError(f"{file}: its name does not tell its format; add --format csv, tsv, jsonl, txt or conll")
    predictor = Predictor.of(
        model, task, scores=scores, labels=o.split_list(labels), max_length=max_length, batch_size=batch_size,
        precision=precision,
    )  # fmt: skip
    source = "standard input" if file == "-" else file

    def lines() -> Iterator[str]:
        texts = predictor.read(rows_of(path, form), source, o.split_list(text_columns))
        for record, row in predictor.rows(texts, source):
            if keep_columns and (both := row.keys() & record.keys()):
                raise UserError(f"{source} has a column {min(both)!r}, as the answer has: omit --keep-columns")
            yield json.dumps({**record, **row} if keep_columns else row, ensure_ascii=False, default=str) + "\n"

    if output is None:
        for line in lines():
            sys.stdout.write(line)
    else:

        def write(temporary: Path) -> None:
            with open(temporary, "w", encoding="utf-8") as stream:
                stream.writelines(lines())

        atomic_write(output, write)
        print(output if quiet else f"predictions: {output}")
    if predictor.cut:
        log.warning("%s: %d of the texts were cut to %d tokens", source, predictor.cut, predictor.saved.max_length)
    if predictor.empty:
        log.warning("%s: %d of the texts are empty", source, predictor.empty)
