"""One label as a file has it: a class or a score, several classes in one of four forms, or a tag for each word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdbert.data.labels import label_text, listed, no_class
from kdbert.errors import UserError
from kdbert.tasks.spec import Own

_SHOWN = 60  # characters of a text in a message
_MARKS = {"0": False, "1": True, "false": False, "true": True}
_CURES = {
    "several": "write them as a JSON list of names in .jsonl, or say what separates them with --label-separator",
    "tags": "say --kind token",
    "soft": "a label is one class, a list of classes, or one score",
}


def cut(text: str) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def read_label(
    record: Mapping[str, Any], own: Own, where: str, known: Sequence[str] = ()
) -> str | tuple[str, ...] | None:
    """The label of a row: a class or a score as text, the names of its classes, or the tags of its words.

    Args:
        where: file and place, for messages.
        known: the classes in order.

    Returns:
        None where it is missing.

    Raises:
        UserError: it is not of the form `own.form`.
    """
    if own.form == "columns":
        return _of_columns(record, own.label, where)
    value = record.get(own.label[0])
    if own.form == "one":
        return one_label(value, where)
    if own.form == "separated":
        return _separated(value, own.separator, where)
    items = None if _missing(value) else listed(value)
    if own.form == "tags" and items is None and isinstance(value, str):
        items = value.split()
    if items is None:
        if _missing(value):
            return None
        raise UserError(f"{where}: the label {cut(str(value))!r} is no list, as others are")
    if own.form == "marks":
        return marked(items, known, where)
    return names_of(items, where, twice=own.form == "tags")


def read_words(record: Mapping[str, Any], column: str, where: str) -> tuple[str, ...]:
    """The words of a row: a list of texts, or one text that is split at white space."""
    value = record.get(column)
    words = listed(value) if value is not None else None
    if words is None and isinstance(value, str):
        words = value.split()
    if words is None or not all(isinstance(word, str) for word in words):
        raise UserError(f"{where}: column {column!r} holds no list of words")
    return tuple(words)


def one_label(value: Any, where: str) -> str | None:
    """A class or a score as text; of a list of one, what is in it."""
    items = listed(value)
    value = items[0] if items is not None and len(items) == 1 else value
    what = no_class(value)
    if what is not None:
        cure = next((cure for word, cure in _CURES.items() if what.startswith(word)), _CURES["soft"])
        raise UserError(f"{where}: the label {cut(str(value))} looks like {what}; {cure}")
    return label_text(value)


def names_of(items: Sequence[Any], where: str, *, twice: bool = False) -> tuple[str, ...]:
    """The names in a list; `twice`: one may occur more than once."""
    if any(isinstance(item, (list, dict)) for item in items):
        raise UserError(
            f"{where}: the label is a list of lists or objects, not of names (if these are spans of characters: kdbert "
            "reads words with a tag each, as two lists or as CoNLL)"
        )
    names = [label_text(item) for item in items]
    if None in names:
        raise UserError(f"{where}: a name in the label {cut(str(list(items)))} is missing")
    found = tuple(str(name) for name in names)
    if not twice and (again := next((name for name in found if found.count(name) > 1), None)):
        raise UserError(f"{where}: the label names {again!r} twice")
    return found


def marked(items: Sequence[Any], known: Sequence[str], where: str) -> tuple[str, ...]:
    """The classes with a 1, of a list that has a 0 or 1 for each of them."""
    marks = [_MARKS.get(label_text(item) or "") for item in items]
    if len(marks) != len(known) or None in marks:
        raise UserError(
            f"{where}: the label {cut(str(list(items)))} must be a list of {len(known)} numbers, each 0 or 1"
        )
    return tuple(name for name, mark in zip(known, marks, strict=True) if mark)


def _separated(value: Any, separator: str | None, where: str) -> tuple[str, ...] | None:
    """The names in a text; none in an empty one."""
    if value is None or (isinstance(value, float) and _missing(value)):
        return None
    if listed(value) is not None or isinstance(value, dict):
        raise UserError(f"{where}: the label {cut(str(value))} is no text to be separated; omit --label-separator")
    parts = str(value).split(None if separator is None or separator.isspace() else separator)
    return names_of([part for part in parts if part.strip()], where)


def _of_columns(record: Mapping[str, Any], columns: Sequence[str], where: str) -> tuple[str, ...] | None:
    """The names of the columns with a 1, where each holds 0 or 1."""
    if all(_missing(record.get(name)) for name in columns):
        return None
    for name in columns:
        if (label_text(record.get(name)) or "") not in _MARKS:
            shown = "nothing" if _missing(record.get(name)) else cut(str(record.get(name)))
            raise UserError(f"{where}: column {name!r} holds {shown}, not 0 or 1")
    return tuple(name for name in columns if _MARKS[str(label_text(record[name]))])


def _missing(value: Any) -> bool:
    return not isinstance(value, (list, tuple, dict)) and label_text(value) is None
