"""Tables of any format as named columns: csv, tsv, json lines, parquet, a saved dataset."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdbert.data.files import read_lines
from kdbert.errors import UserError
from kdbert.seal import parse_json

Record = tuple[str, Mapping[str, Any]]
# What Arrow and `datasets` raise, besides Arrow's own, where bytes are not as they should be.
FAULTS = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
_AT_A_TIME = 1000  # rows of a parquet file or saved dataset that are Python objects at once


@dataclass(frozen=True)
class Table:
    """A file opened for reading: its columns, and its rows as (place, column -> value).

    Rows are read from the file whenever they are asked for, so that a large one is never held as Python objects.
    """

    path: Path
    columns: tuple[str, ...]
    read: Callable[[], Iterator[Record]]

    @property
    def rows(self) -> Iterator[Record]:
        """The rows in their order."""
        return self.read()


def read_table(path: Path, split: str | None = None) -> Table:
    """Open any supported file or folder, and read through it once to check it.

    Args:
        path: `.csv`, `.tsv`, `.json`/`.jsonl` (one object a line), each plain or `.gz`; `.parquet`;
            or a folder written by `datasets.save_to_disk`.
        split: which split of a saved DatasetDict to read.

    Raises:
        UserError: missing, of another kind, empty, or faulty (with the line).
    """
    if not path.exists():
        raise UserError(f"no file {str(path)!r}: check the path")
    suffix = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if path.is_dir():
        read = partial(_saved_dataset, path, split)
    elif suffix in (".csv", ".tsv"):
        read = partial(_delimited, path, "\t" if suffix == ".tsv" else ",")
    elif suffix in (".json", ".jsonl"):
        read = partial(_json_lines, path)
    elif suffix == ".parquet":
        read = partial(_parquet, path)
    else:
        raise UserError(
            f"{path}: cannot tell its format; expected .csv, .tsv, .jsonl, .json (plain or .gz), .parquet "
            "or a folder written by datasets.save_to_disk"
        )
    columns: dict[str, None] = {}
    count = 0
    for _, record in read():
        columns.update(dict.fromkeys(record))
        count += 1
    if not count:
        raise UserError(f"{path} has no examples" + (" (only a header?)" if path.is_file() else ""))
    return Table(path, tuple(columns), read)


def _delimited(path: Path, delimiter: str) -> Iterator[Record]:
    lines = read_lines(path)
    reader = csv.reader((line + "\n" for _, line in lines), delimiter=delimiter, strict=True)
    header: tuple[str, ...] | None = None
    start = 1  # a quoted cell may span lines; an error names the line on which its row starts
    try:
        for cells in reader:
            if header is None:
                header = tuple(name.strip() for name in cells)
                if len(set(header)) != len(header):
                    raise UserError(f"{path}, line 1: a column name stands twice ({', '.join(header)})")
            elif cells:
                if len(cells) != len(header):
                    raise UserError(
                        f"{path}, line {start}: {len(cells)} columns where the header has {len(header)} "
                        "(is the file truncated, or a comma not quoted?)"
                    )
                yield f"line {start}", dict(zip(header, cells, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {start}: {error} (is a quote not closed, or the file truncated?)") from None


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError:
            raise UserError(f"{path}, line {number}: not a JSON object on one line (is the file truncated?)") from None
        if not isinstance(value, dict):
            raise UserError(f'{path}, line {number}: expected a JSON object such as {{"text": …, "label": …}}')
        yield f"line {number}", value


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = _class_names((file.schema_arrow.metadata or {}).get(b"huggingface"))
            yield from _records((batch.to_pylist() for batch in file.iter_batches(_AT_A_TIME)), names)
    except (pyarrow.ArrowException, *FAULTS) as error:
        raise UserError(f"{path}: not a readable parquet file ({first_line(error)})") from None


def _saved_dataset(path: Path, split: str | None) -> Iterator[Record]:
    import datasets
    import pyarrow

    try:
        data = datasets.load_from_disk(str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: a folder, but not one written by datasets.save_to_disk") from None
    except (pyarrow.ArrowException, *FAULTS) as error:
        raise UserError(f"{path}: the saved dataset is damaged ({first_line(error)})") from None
    if isinstance(data, datasets.DatasetDict):
        name = {"dev": "validation"}.get(split or "train", split or "train")
        if name not in data and (split or "train") in data:
            name = split or "train"
        if name not in data:
            raise UserError(f"{path} has no split {name!r} (it has: {', '.join(data)})")
        data = data[name]
    names = {
        column: tuple(feature.names)
        for column, feature in data.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    try:
        yield from _records((batch.to_pylist() for batch in data.with_format("arrow").iter(_AT_A_TIME)), names)
    except (pyarrow.ArrowException, *FAULTS) as error:
        raise UserError(f"{path}: the saved dataset is damaged ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or at least of what class it is."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _class_names(metadata: bytes | None) -> dict[str, tuple[str, ...]]:
    """Names of the classes that a parquet file written by `datasets` stores as numbers.

    Raises:
        ValueError: what it noted cannot be read.
    """
    if metadata is None:
        return {}
    try:
        features = parse_json(metadata).get("info", {}).get("features", {})
        return {
            column: tuple(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("what `datasets` has noted in it of its columns is damaged") from None


def _records(batches: Iterator[list[dict[str, Any]]], names: Mapping[str, tuple[str, ...]]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for record in batch:
            for column, classes in names.items():
                value = record.get(column)
                if isinstance(value, int):  # -1 marks "no label" in published data sets
                    record[column] = classes[value] if 0 <= value < len(classes) else None
            yield f"row {number}", record
            number += 1
