"""Readers that several families of tasks share: a file -> rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from kdbert.data.data_file import cell_text, open_data_file
from kdbert.data.examples import RawExample
from kdbert.data.files import find_file, read_lines
from kdbert.errors import UserError

log = logging.getLogger("kdbert")
Reader = Callable[[Path], Iterator[RawExample]]


@dataclass(frozen=True)
class Columns:
    """0-based columns of a TSV file. `label` -1 is the last one; `id` None counts rows."""

    a: int
    b: int | None = None
    label: int | None = None
    id: int | None = None
    header: bool = True
    skip_malformed: bool = False


def read_tsv(path: Path, columns: Columns) -> Iterator[RawExample]:
    """Rows of a tab-separated file without quoting (a quote is a character like any other).

    A row with fewer columns than its header is skipped where the originals skip it (QQP), and
    refused with its line otherwise.
    """
    width = 1 + max(columns.a, columns.b or 0, columns.label or 0, columns.id or 0)
    skipped = 0
    for number, line in read_lines(path):
        if number == 1 and columns.header:
            width = max(width, line.count("\t") + 1)
            continue
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) < width:
            if columns.skip_malformed:
                skipped += 1
                continue
            raise UserError(
                f"{path}, line {number}: {len(cells)} columns where {width} were expected (is the file truncated?)"
            )
        # The originals name MRPC's and SST-2's first example 1 (the header is 0) and CoLA's 0.
        identity = cells[columns.id] if columns.id is not None else str(number - 1)
        text_b = None if columns.b is None else cells[columns.b]
        label = None if columns.label is None else cells[columns.label]
        yield RawExample(identity, cells[columns.a], text_b, label, f"line {number}")
    if skipped:
        log.warning("%s: skipped %d malformed rows, as the original readers do", path, skipped)


def read_columns(
    path: Path, text: tuple[str, ...], label: str = "label", names: Mapping[str, str] | None = None, id: str = "id"
) -> Iterator[RawExample]:
    """Rows of a csv, json lines or parquet file by the names of their columns.

    Args:
        text: one or two columns.
        names: label in the file -> class, where they differ.
        id: column of the examples' names; without it they are numbered from 0.
    """
    table = open_data_file(path)
    table.require((*text, label))
    for number, (place, record) in enumerate(table.rows()):
        cells = [cell_text(record, name, f"{path}, {place}") for name in text]
        word = None if record.get(label) is None else str(record[label])
        if names is not None and word is not None:
            word = names.get(word, word)
        yield RawExample(str(record.get(id, number)), cells[0], cells[1] if len(cells) > 1 else None, word, place)


def read_multi_label(path: Path, text: str, labels: tuple[str, ...]) -> Iterator[RawExample]:
    """Rows of a json lines file whose `label` is a list of 0 and 1, one for each class."""
    for number, (place, record) in enumerate(open_data_file(path).rows()):
        cell, marks = cell_text(record, text, f"{path}, {place}"), record.get("label")
        if not isinstance(marks, list) or len(marks) != len(labels) or any(mark not in (0, 1) for mark in marks):
            raise UserError(f"{path}, {place}: the label must be a list of {len(labels)} numbers 0 or 1")
        chosen = tuple(name for name, mark in zip(labels, marks, strict=True) if mark)
        yield RawExample(str(record.get("id", number)), cell, None, chosen, place)


def read_tagged(path: Path) -> Iterator[RawExample]:
    """Rows of a json lines file with `tokens` and `ner_tags`."""
    for number, (place, record) in enumerate(open_data_file(path).rows()):
        words, tags = _strings(record.get("tokens")), _strings(record.get("ner_tags"))
        if words is None or tags is None:
            raise UserError(f'{path}, {place}: expected {{"tokens": ["…"], "ner_tags": ["…"]}}')
        if not words:
            raise UserError(f"{path}, {place}: there are no tokens")
        yield RawExample(str(record.get("id", number)), " ".join(words), None, tags, place, words)


def _strings(value: Any) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) and all(isinstance(one, str) for one in value) else None


def read_beside(path: Path, labels: tuple[str, ...]) -> Iterator[RawExample]:
    """Rows of a file `…_text.txt`, one text a line, beside a file `…_labels.txt`, one class number a line."""
    other = find_file(path.parent, (path.name.removesuffix(".gz").replace("_text", "_labels"),))
    if other is None:
        raise UserError(f"{path} has no file of labels beside it")
    texts, numbers = list(read_lines(path)), list(read_lines(other))
    if len(texts) != len(numbers):
        raise UserError(f"{path} has {len(texts)} lines, {other} has {len(numbers)}: is one of them truncated?")
    known = {str(number): name for number, name in enumerate(labels)}
    for (line, text), (_, number) in zip(texts, numbers, strict=True):
        word = number.strip()
        if word and word not in known:
            raise UserError(f"{other}, line {line}: {word!r} is not a class number (0 to {len(labels) - 1})")
        yield RawExample(str(line - 1), text, None, known.get(word), f"line {line}")


def label_file(name: str) -> tuple[str, ...]:
    """Class names from a file of this package, one a line."""
    return tuple(resources.files("kdbert.tasks").joinpath(name).read_text(encoding="utf-8").split())
