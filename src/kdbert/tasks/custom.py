"""A person's own classification or regression data: csv, tsv, json lines, parquet, a saved dataset.

Columns and labels are inferred by name, and what was inferred is told before it is used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

from kdbert.data.examples import Kind, Row
from kdbert.data.tables import Table, read_table
from kdbert.errors import UserError, near_miss
from kdbert.tasks.spec import Split, TaskSpec

log = logging.getLogger("kdbert")
_TOLD: set[str] = set()

LABEL_COLUMNS = ("label", "labels", "intent", "class", "category", "target", "gold_label", "score", "y")
TEXT_PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"),
    ("text_a", "text_b"), ("question", "sentence"), ("question", "context"), ("query", "passage"),
)  # fmt: skip
TEXT_COLUMNS = ("text", "sentence", "utterance", "utt", "query", "question", "tweet", "review", "content")
IGNORED = ("id", "idx", "index", "guid", "split")


def infer_columns(
    table: Table, text_columns: list[str] | None, label_column: str | None
) -> tuple[tuple[str, ...], str]:
    """The text column(s) and the label column, as told by the person or inferred by name.

    Raises:
        UserError: a named column is missing, or the columns cannot be told.
    """
    listed = ", ".join(table.columns)
    _require(table, [*(text_columns or []), *([label_column] if label_column else [])])
    if text_columns and len(text_columns) > 2:
        raise UserError(f"--text-columns takes one or two columns, not {len(text_columns)}")
    by_lower = {name.lower(): name for name in table.columns}
    label = label_column or next((by_lower[name] for name in LABEL_COLUMNS if name in by_lower), None)
    if label is None and text_columns is None and len(table.columns) == 2:
        label = table.columns[1]
    if label is None:
        raise UserError(f"{table.path}: cannot tell the label column (columns: {listed}); name it with --label-column")
    if text_columns:
        if label in text_columns:
            raise UserError(f"{table.path}: column {label!r} is the label, so it cannot be a text column too")
        return tuple(text_columns), label
    rest = {lower: name for lower, name in by_lower.items() if name != label and lower not in IGNORED}
    for first, second in TEXT_PAIRS:
        if first in rest and second in rest:
            return (rest[first], rest[second]), label
    for name in TEXT_COLUMNS:
        if name in rest:
            return (rest[name],), label
    if len(rest) == 1:
        return (next(iter(rest.values())),), label
    raise UserError(f"{table.path}: cannot tell the text columns (columns: {listed}); name them with --text-columns")


def _require(table: Table, names: list[str]) -> None:
    """Refuse a table that lacks a column.

    Raises:
        UserError: with the columns that it has.
    """
    for name in names:
        if name not in table.columns:
            listed = ", ".join(table.columns)
            raise UserError(f"{table.path} has no column {name!r}{near_miss(name, table.columns)} (it has: {listed})")


def _rows(table: Table, text: tuple[str, ...], label: str, labelled: bool) -> Iterator[Row]:
    for number, (place, record) in enumerate(table.rows):
        cells = []
        for column in text:
            value = record.get(column)
            if not isinstance(value, str):
                raise UserError(f"{table.path}, {place}: column {column!r} holds no text")
            cells.append(value)
        value = record.get(label) if labelled else None
        yield Row(
            id=str(number),
            text_a=cells[0],
            text_b=cells[1] if len(cells) > 1 else None,
            label=None if value is None else str(value).strip(),
            place=place,
        )


def _kind_of(labels: list[str]) -> Kind:
    """Regression if every label is a number and some number is not whole; else classes."""
    whole = True
    for label in labels:
        try:
            value = float(label)
        except ValueError:
            return "single_label"
        if not math.isfinite(value):
            return "single_label"
        whole = whole and value == int(value)
    return "single_label" if whole else "regression"


def custom_task(
    train_file: str,
    dev_file: str,
    test_file: str | None = None,
    text_columns: list[str] | None = None,
    label_column: str | None = None,
) -> TaskSpec:
    """Make a task of a person's files; the label space is that of the training file.

    Raises:
        UserError: a fault in a file or its columns, fewer than two classes, or the same file given as
            train and dev.
    """
    files = {"train": train_file, "dev": dev_file}
    if test_file is not None:
        files["test"] = test_file
    if Path(train_file).resolve() == Path(dev_file).resolve() and not Path(train_file).is_dir():
        raise UserError(f"--train-file and --dev-file are the same file ({train_file}); give a dev file of its own")
    train = read_table(Path(train_file), "train")
    text, label = infer_columns(train, text_columns, label_column)
    names: set[str] = set()
    rows = 0
    for place, record in train.rows:
        name = "" if (value := record.get(label)) is None else str(value).strip()
        if not name:
            raise UserError(f"{train_file}, {place}: the label is missing")
        names.add(name)
        rows += 1
    found = sorted(names)
    kind = _kind_of(found)
    if kind == "single_label" and len(found) < 2:
        raise UserError(f"{train_file}: column {label!r} has one label only ({found[0]!r}); two or more are needed")
    if kind == "single_label" and len(found) > max(2, rows // 2):
        raise UserError(
            f"{train_file}: column {label!r} has {len(found)} different labels in {rows} rows; "
            "is it the label? name it with --label-column"
        )
    shown = ", ".join(found[:8]) + (", …" if len(found) > 8 else "")
    what = f"{len(found)} classes ({shown})" if kind == "single_label" else "scores (regression)"
    told = f"{train_file}: {rows} rows; text from {' + '.join(text)}; label from {label!r}: {what}"
    if told not in _TOLD:  # a process asks for the task several times
        _TOLD.add(told)
        log.info("%s", told)

    def split(name: str) -> Split:
        table = train if name == "train" else read_table(Path(files[name]), name)
        labelled = name != "test" or label in table.columns
        _require(table, [*text, label] if labelled else list(text))
        return Split((), lambda path: _rows(table, text, label, labelled), labelled, place=Path(files[name]))

    return TaskSpec(
        name="custom",
        title=f"custom data ({Path(train_file).name})",
        kind=kind,
        labels=tuple(found) if kind == "single_label" else (),
        metrics=("accuracy", "macro_f1") if kind == "single_label" else ("pearson_and_spearman", "pearson", "spearman"),
        splits={name: split(name) for name in files},
        pair=len(text) == 2,
        source=train_file,
    )
