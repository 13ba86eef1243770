"""Tables of any format as named columns: csv, tsv, json lines, parquet, a saved dataset."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbert.data.files import read_lines
from kdbert.errors import UserError


@dataclass(frozen=True)
class Table:
    """A file opened for reading: its columns and its rows as (place, column -> value)."""

    path: Path
    columns: tuple[str, ...]
    rows: list[tuple[str, Mapping[str, Any]]]


def read_table(path: Path, split: str | None = None) -> Table:
    """Read any supported file or folder.

    Args:
        path: `.csv`, `.tsv`, `.json`/`.jsonl` (one object a line), each plain or `.gz`; `.parquet`;
            or a folder written by `datasets.save_to_disk`.
        split: which split of a saved DatasetDict to read.

    Raises:
        UserError: missing, of another kind, empty, or faulty (with the line).
    """
    if path.is_dir():
        return _read_saved_dataset(path, split)
    if not path.exists():
        raise UserError(f"no file {str(path)!r}: check the path")
    suffix = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if suffix in (".csv", ".tsv"):
        table = _read_delimited(path, "\t" if suffix == ".tsv" else ",")
    elif suffix in (".json", ".jsonl"):
        table = _read_json_lines(path)
    elif suffix == ".parquet":
        table = _read_parquet(path)
    else:
        raise UserError(
            f"{path}: cannot tell its format; expected .csv, .tsv, .jsonl, .json (plain or .gz), .parquet "
            "or a folder written by datasets.save_to_disk"
        )
    if not table.rows:
        raise UserError(f"{path} has no examples (only a header?)")
    return table


def _read_delimited(path: Path, delimiter: str) -> Table:
    lines = read_lines(path)
    reader = csv.reader((line + "\n" for _, line in lines), delimiter=delimiter, strict=True)
    header: tuple[str, ...] | None = None
    rows: list[tuple[str, Mapping[str, Any]]] = []
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
                rows.append((f"line {start}", dict(zip(header, cells, strict=True))))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {start}: {error} (is a quote not closed, or the file truncated?)") from None
    return Table(path, header or (), rows)


def _read_json_lines(path: Path) -> Table:
    columns: dict[str, None] = {}
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise UserError(f"{path}, line {number}: not a JSON object on one line (is the file truncated?)") from None
        if not isinstance(value, dict):
            raise UserError(f'{path}, line {number}: expected a JSON object such as {{"text": …, "label": …}}')
        columns.update(dict.fromkeys(value))
        rows.append((f"line {number}", value))
    return Table(path, tuple(columns), rows)


def _read_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None
    names = _class_names((table.schema.metadata or {}).get(b"huggingface"))
    return _table_of_records(path, tuple(table.column_names), table.to_pylist(), names)


def _read_saved_dataset(path: Path, split: str | None) -> Table:
    import datasets
    import pyarrow

    try:
        data = datasets.load_from_disk(str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: a folder, but not one written by datasets.save_to_disk") from None
    except (pyarrow.ArrowInvalid, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: the saved dataset is damaged ({str(error).splitlines()[0]})") from None
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
        records = data.to_list()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: the saved dataset is damaged ({str(error).splitlines()[0]})") from None
    table = _table_of_records(path, tuple(data.column_names), records, names)
    if not table.rows:
        raise UserError(f"{path} has no examples")
    return table


def _class_names(metadata: bytes | None) -> dict[str, tuple[str, ...]]:
    """Names of the classes that a parquet file written by `datasets` stores as numbers."""
    if metadata is None:
        return {}
    features = json.loads(metadata).get("info", {}).get("features", {})
    return {
        column: tuple(feature["names"])
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


def _table_of_records(
    path: Path, columns: tuple[str, ...], records: list[dict[str, Any]], names: Mapping[str, tuple[str, ...]]
) -> Table:
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for number, record in enumerate(records):
        for column, classes in names.items():
            value = record.get(column)
            if isinstance(value, int):  # -1 marks "no label" in published data sets
                record[column] = classes[value] if 0 <= value < len(classes) else None
        rows.append((f"row {number}", record))
    return Table(path, columns, rows)
