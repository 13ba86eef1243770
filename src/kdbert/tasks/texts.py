"""Texts without labels, from a file of any form: for `kdbert predict`, and as training rows without a label."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from kdbert.data.corpus import corpus_files, read_texts
from kdbert.data.data_file import Record, cell_text, form_of, rows_of
from kdbert.data.examples import RawExample
from kdbert.errors import UserError, near_miss
from kdbert.tasks.own.columns import TEXT_COLUMNS, TEXT_PAIRS, WORD_COLUMNS
from kdbert.tasks.own.forms import read_words
from kdbert.tasks.spec import TaskSpec

log = logging.getLogger("kdbert")
_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")  # of a folder that `datasets` wrote
CURE = "name the text with --text-columns"


def text_rows(
    records: Iterator[Record], source: str, spec: TaskSpec, named: Sequence[str] | None, cure: str = CURE
) -> Iterator[tuple[RawExample, Mapping[str, Any]]]:
    """The rows of a file as examples of a task without labels, each with its columns.

    Args:
        source: what messages call the file.
        named: the columns of the texts, see `text_columns`.

    Raises:
        UserError: no rows, columns that cannot be told, a row without a text.
    """
    first = next(records, None)
    if first is None:
        raise UserError(f"{source} has no texts")
    columns = text_columns(spec, source, tuple(first[1]), named, cure)
    if len(first[1]) > 1:
        log.info("%s: text from %s", source, " + ".join(columns))
    for number, (place, record) in enumerate(chain([first], records)):
        where = f"{source}, {place}"
        missing = next((name for name in columns if name not in record), None)
        if missing is not None:
            raise UserError(f"{where}: there is no {missing!r}")
        if spec.head.of_words:
            yield of_words(read_words(record, columns[0], where), number, place), record
        else:
            yield of_texts([cell_text(record, name, where) for name in columns], number, place), record


def text_columns(
    spec: TaskSpec, source: str, there: tuple[str, ...], named: Sequence[str] | None, cure: str = CURE
) -> tuple[str, ...]:
    """The columns that hold the texts: those named, the only one, those of the task's own data, or known names.

    Args:
        cure: what to do where they are not there or cannot be told.

    Raises:
        UserError: they cannot be told; pairs where the task takes one text, or the other way round.
    """
    names = tuple(named or (spec.own.text if spec.own is not None else ()))
    if named is None and len(there) == 1:
        if spec.pair:
            called = f" ({' and '.join(names)})" if names else ""
            raise UserError(f"{source} has one column, and task {spec.name!r} takes pairs of texts{called}")
        return there
    if names and len(names) != 1 + spec.pair:
        raise UserError(f"task {spec.name!r} takes {1 + spec.pair} column(s) of text, not {', '.join(names)}")
    absent = next((name for name in names if name not in there), None)
    if absent is not None:
        raise UserError(
            f"{source} has no column {absent!r}{near_miss(absent, there)} (it has: {', '.join(there)}); {cure}"
        )
    if names:
        return names
    found = _known(spec, there)
    if found:
        return found
    which = "two columns hold the texts" if spec.pair else "column holds the text"
    raise UserError(f"{source}: cannot tell which {which} (columns: {', '.join(there)}); {cure}")


def _known(spec: TaskSpec, there: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of the text(s) by the names that people give them; () if that is not clear."""
    lower = [name.lower() for name in there]
    known: list[tuple[str, ...]] = [*TEXT_PAIRS] if spec.pair else [(name,) for name in TEXT_COLUMNS]
    if spec.head.of_words:
        known = [(name,) for name in (*WORD_COLUMNS, *TEXT_COLUMNS)]
    found = [names for names in known if all(lower.count(name) == 1 for name in names)]
    clear = len(found) == 1 or (found and spec.head.of_words)
    return tuple(there[lower.index(name)] for name in found[0]) if clear else ()


def of_texts(texts: Sequence[str], number: int, place: str) -> RawExample:
    """One or two texts as an example without a label."""
    return RawExample(str(number), texts[0], texts[1] if len(texts) > 1 else None, None, place)


def of_words(words: Sequence[str], number: int, place: str) -> RawExample:
    """Words as an example without tags."""
    return RawExample(str(number), " ".join(words), None, None, place, tuple(words))


def is_empty(row: RawExample) -> bool:
    """Whether a text of the example is empty."""
    return not row.text_a.strip() or (row.text_b is not None and not row.text_b.strip())


def records_of(path: Path) -> Iterator[Record]:
    """The rows of any file that holds texts: a table, CoNLL, a text on each line, or a folder of such text files.

    Raises:
        UserError: missing, empty, faulty, or of a format that its name does not tell.
    """
    if not path.exists():
        raise UserError(f"no file {str(path)!r}: check the path")
    if path.is_dir() and not any((path / name).is_file() for name in _SAVED):
        corpus_files(str(path))  # refuses a folder without text
        return ((f"text {number}", {"text": text}) for number, text in enumerate(read_texts(str(path)), 1))
    form = form_of(path)
    if form is None:
        raise UserError(
            f"{path}: cannot tell its format; expected .csv, .tsv, .jsonl, .json, .conll, .txt (plain or .gz), "
            ".parquet, a folder written by datasets.save_to_disk, or a folder of text files"
        )
    return rows_of(path, form)
