"""Data files as rows of named columns: csv, tsv, json lines, parquet, a saved dataset, CoNLL."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdbert.data.conll import sentences
from kdbert.data.files import read_lines
from kdbert.disk.sealed import TWICE, parse_json
from kdbert.errors import UserError, near_miss

Record = tuple[str, Mapping[str, Any]]
# What Arrow and `datasets` raise of damaged bytes, besides Arrow's own errors.
FAULTS = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
FORMS = {".csv": "csv", ".tsv": "tsv", ".json": "jsonl", ".jsonl": "jsonl", ".parquet": "parquet", ".txt": "txt"}
FORMS |= dict.fromkeys((".conll", ".conll2003", ".iob", ".iob2", ".bio", ".bioes", ".ner"), "conll")
_LONGEST_FIELD = 2**31 - 1
_MOST_COLUMNS = 10_000
_AT_A_TIME = 1000  # rows of a parquet file or saved dataset that are Python objects at once
_NO_HEADER = {
    "\0": "the names hold zero bytes (UTF-16? convert it with `iconv -f utf-16le -t utf-8`)",
    "\r": "lines end in lone carriage returns; convert them, for example with `tr '\\r' '\\n'`",
}


@dataclass(frozen=True)
class DataFile:
    """A file opened for reading: its columns, and its rows as (place, column -> value).

    Rows are read from the file whenever they are asked for, so that a large one is never held as Python objects.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Record]]
    broken: int = 0  # rows of a csv file that have a quoted field with line breaks

    def require(self, names: Iterable[str]) -> None:
        """Refuse a table without one of these columns."""
        for name in names:
            if name not in self.columns:
                listed, close = ", ".join(self.columns), near_miss(name, self.columns)
                raise UserError(f"{self.path} has no column {name!r}{close} (it has: {listed})")


def open_data_file(path: Path, split: str | None = None, *, words: bool = False) -> DataFile:
    """Open any supported file or folder, and read through it once to check it.

    In `.tsv` a line is a row and a quote an ordinary character, as in GLUE's files. `.csv` follows RFC 4180: a quoted
    field may have commas, line breaks and doubled quotes; in a field that does not begin with a quote, a quote is an
    ordinary character. Every row has as many columns as the header. Blank lines at the end are ignored.

    Args:
        path: `.csv`, `.tsv`, `.json`/`.jsonl` (one object a line), `.conll` (`kdbert.data.conll`), each plain or
            `.gz`; `.parquet`; or a folder written by `datasets.save_to_disk`.
        split: which split of a saved DatasetDict to read.
        words: it holds tagged words (see `form_of`).

    Raises:
        UserError: missing, of an unknown format, empty, or faulty (with the line).
    """
    if not path.exists():
        raise UserError(f"no file {str(path)!r}: check the path")
    form = form_of(path, words)
    if form is None or form == "txt":
        raise UserError(
            f"{path}: cannot tell its format; expected .csv, .tsv, .jsonl, .json, .conll (plain or .gz), .parquet or a "
            "folder written by datasets.save_to_disk (plain text: --corpus; a tagged word on each line: --kind token)"
        )
    read = partial(rows_of, path, form, split)
    columns: dict[str, None] = {}
    count = broken = 0
    for _, record in read():
        columns.update(dict.fromkeys(record))
        count += 1
        broken += form == "csv" and any("\n" in cell for cell in record.values())
    if not count:
        raise UserError(f"{path} has no examples" + (" (only a header?)" if path.is_file() else ""))
    return DataFile(path, tuple(columns), read, broken)


def form_of(path: Path, words: bool = False) -> str | None:
    """How a file is read, by its name: csv, tsv, jsonl, parquet, conll, txt, or saved (a folder); None if unknown.

    Tagged words (`words`) often lie in files called `.txt`, `.tsv` or anything: these are `conll` unless it is a table.
    """
    suffix = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    form = "saved" if path.is_dir() else FORMS.get(suffix)
    if words and (form in (None, "txt") or (form == "tsv" and _has_blocks(path))):
        return "conll"
    return form


def _has_blocks(path: Path) -> bool:
    """Whether a blank line comes before another line."""
    blank = False
    for _, line in read_lines(path):
        if blank and line.strip():
            return True
        blank = blank or not line.strip()
    return False


def rows_of(path: Path, form: str, split: str | None = None) -> Iterator[Record]:
    """The rows of a file in a form that `form_of` names, or in `txt` (each line is the column `text`), as they come."""
    readers: dict[str, Callable[[], Iterator[Record]]] = {
        "csv": partial(_delimited, path, _comma_separated),
        "tsv": partial(_delimited, path, _tab_separated),
        "jsonl": partial(_json_lines, path),
        "txt": partial(_text_lines, path),
        "conll": partial(sentences, path),
        "parquet": partial(_parquet, path),
        "saved": partial(_saved_dataset, path, split),
    }
    return readers[form]()


def _delimited(path: Path, split: Callable[[Path], Iterator[tuple[int, list[str]]]]) -> Iterator[Record]:
    """Records of a file with a header, from (line, cells) of each of its rows."""
    header: tuple[str, ...] | None = None
    blank = 0  # the first blank line behind the last row
    for number, cells in split(path):
        if header is None:
            header = _header(path, cells)
            continue
        if not any(cell.strip() for cell in cells) and (len(cells) != len(header) or cells == [""]):
            blank = blank or number
            continue
        if blank:
            raise UserError(
                f"{path}, line {blank}: a blank line between rows (if each line is a tagged word, say --kind token)"
            )
        if len(cells) != len(header):
            what = "is a comma not quoted"
            if split is _tab_separated:
                what = "is there a tab or a line break in a text, which .csv and .jsonl can hold and .tsv cannot"
            raise UserError(
                f"{path}, line {number}: {len(cells)} columns where the header has {len(header)} ({what}, or is "
                "the file truncated?)"
            )
        yield f"line {number}", dict(zip(header, cells, strict=True))


def _header(path: Path, cells: list[str]) -> tuple[str, ...]:
    """The names of the columns; the first may be empty, as pandas writes its index."""
    where = f"{path}, line 1"
    if len(cells) > _MOST_COLUMNS:
        raise UserError(f"{where}: {len(cells):,} columns; is a line break missing, or is this no table of texts?")
    names = tuple(name.strip() for name in cells)
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice:
        raise UserError(f"{where}: a column name occurs twice ({twice})")
    if names and names[0].lower().startswith("sep="):
        raise UserError(f"{where}: {','.join(cells)!r} is for Excel only; remove this line")
    if "" in names[1:] or names in ((), ("",)):
        column = names.index("", 1) + 1 if names[1:] else 1
        raise UserError(f"{where}: column {column} has no name; write a header with a name for each column")
    odd = next((what for sign, what in _NO_HEADER.items() if sign in "".join(names)), None)
    if odd:
        raise UserError(f"{where}: {odd}")
    if len(names) == 1 and (between := next((sign for sign in "\t;,|" if sign in names[0]), None)):
        raise UserError(
            f"{where}: columns are separated by {between!r}, but .csv needs commas and .tsv needs tabs (pandas: "
            f"read_csv(path, sep={between!r}).to_csv(path, index=False))"
        )
    if any(len(name) > 1 and name[0] == name[-1] == '"' for name in names):
        raise UserError(f"{where}: the names are in quotes, and .tsv has no quoting; write it without, or as .csv")
    return names


def _tab_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each line."""
    for number, line in read_lines(path):
        yield number, line.split("\t")


def _comma_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line on which it starts, cells) of each row."""
    csv.field_size_limit(_LONGEST_FIELD)  # of the process; its own is 131,072 characters
    reader = csv.reader((line + "\n" for _, line in read_lines(path)), strict=True)
    start = 1
    try:
        for cells in reader:
            yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:  # a quote is not closed, or text follows a closed one
        cure = _NO_HEADER["\r"] if "new-line" in str(error) else "is a quote not closed, or the file truncated?"
        raise UserError(f"{path}, line {start}: {error} ({cure})") from None


def _text_lines(path: Path) -> Iterator[Record]:
    for number, line in read_lines(path):
        yield f"line {number}", {"text": line}


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        if number == 1 and line.lstrip().startswith("["):
            raise UserError(
                f"{path}, line 1: a JSON list, where a JSON object on each line was expected (pandas: "
                "to_json(path, orient='records', lines=True))"
            )
        try:
            value = parse_json(line, once=True)
        except ValueError as error:
            if str(error).startswith(TWICE):
                raise UserError(f"{path}, line {number}: {error}") from None
            raise UserError(f"{path}, line {number}: not a JSON object on one line (is the file truncated?)") from None
        if number == 1 and isinstance(value, dict) and value and all(map(_of_rows, value.values())):
            raise UserError(
                f"{path}, line 1: one JSON object for all rows, where one for each row was expected (pandas: "
                "to_json(path, orient='records', lines=True))"
            )
        if not isinstance(value, dict):
            raise UserError(f'{path}, line {number}: expected a JSON object such as {{"text": …, "label": …}}')
        yield f"line {number}", value


def _of_rows(value: Any) -> bool:
    """Whether a value is all rows, or a column of them: a list of objects, or an object keyed by row numbers."""
    if isinstance(value, dict):
        return bool(value) and list(value) == [str(number) for number in range(len(value))]
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if len(set(columns)) != len(columns):
                raise UserError(f"{path}: a column name occurs twice ({', '.join(columns)})")
            info = parse_json((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))  # as `datasets` writes it
            names = _class_names(info.get("info", {}).get("features", {}))
            yield from _records((batch.to_pylist() for batch in file.iter_batches(_AT_A_TIME)), names)
    except (pyarrow.ArrowException, *FAULTS) as error:
        raise UserError(f"{path}: not a readable parquet file ({first_line(error)})") from None


def saved_splits(path: Path) -> tuple[str, ...]:
    """The splits of a folder written by `DatasetDict.save_to_disk`; none of anything else."""
    listed = path / "dataset_dict.json"
    if not listed.is_file():
        return ()
    try:
        return tuple(map(str, parse_json(listed.read_text(encoding="utf-8"))["splits"]))
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{path}: the saved dataset is damaged (dataset_dict.json)") from None


def _saved_dataset(path: Path, split: str | None) -> Iterator[Record]:
    import datasets
    import pyarrow

    try:
        data = datasets.load_from_disk(str(path))
        if isinstance(data, datasets.DatasetDict):
            wanted = ("validation", "dev") if split == "dev" else (split or "train",)
            name = next((one for one in wanted if one in data), None)
            if name is None and split is None and len(data) == 1:
                (name,) = data
            if name is None:
                raise UserError(
                    f"{path} has no split {wanted[0]!r} (it has: {', '.join(data)}; --split-names says which is which)"
                )
            data = data[name]
        names = _class_names(data.features.to_dict())
        yield from _records((batch.to_pylist() for batch in data.with_format("arrow").iter(_AT_A_TIME)), names)
    except FileNotFoundError:
        raise UserError(f"{path}: a folder, but not one written by datasets.save_to_disk") from None
    except (pyarrow.ArrowException, *FAULTS) as error:
        raise UserError(f"{path}: the saved dataset is damaged ({first_line(error)})") from None


def cell_text(record: Mapping[str, Any], column: str, where: str) -> str:
    """A cell that must hold text; `where` is file and place, for the message."""
    value = record.get(column)
    if isinstance(value, str):
        return value
    what = " but a list" if isinstance(value, list) else ", it is missing (null)" if value is None else ""
    raise UserError(f"{where}: column {column!r} holds no text{what}")


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or the name of its class."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Column -> names of its class numbers, of those that hold such or lists of such."""
    found = {}
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else None
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
            found[column] = tuple(map(str, inner["names"]))
    return found


def _records(batches: Iterator[list[dict[str, Any]]], names: Mapping[str, tuple[str, ...]]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for record in batch:
            for column, classes in names.items():
                record[column] = _named(record.get(column), classes)
            yield f"row {number}", record
            number += 1


def _named(value: Any, classes: tuple[str, ...]) -> Any:
    """Class numbers as names; None for one out of range: -1 marks "no label" in published data sets."""
    if isinstance(value, list):
        return [_named(one, classes) for one in value]
    return (classes[value] if 0 <= value < len(classes) else None) if isinstance(value, int) else value
