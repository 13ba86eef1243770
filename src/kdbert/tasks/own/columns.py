"""Which columns of a table hold the texts, and which the label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from kdbert.data.data_file import DataFile
from kdbert.data.labels import label_text, number
from kdbert.errors import UserError, near_miss

WORD_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("tags", "ner_tags", "ner", "labels", "label")
LABEL_COLUMNS = ("label", "labels", "intent", "class", "category", "target", "gold_label", "score", "y")
TEXT_PAIRS = (
    ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"), ("sent1", "sent2"),
    ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"), ("text_1", "text_2"),
    ("text_a", "text_b"), ("text", "text_pair"), ("#1 string", "#2 string"), ("question", "sentence"),
    ("question", "context"), ("question", "passage"), ("question", "answer"), ("query", "passage"),
    ("query", "document"), ("claim", "evidence"),
)  # fmt: skip
TEXT_COLUMNS = ("text", "sentence", "utterance", "utt", "query", "question", "tweet", "review", "content")
# Columns with these names (a number may follow), or named like `tweet_id` and `pairID`, hold no text unless some cell
# has several words.
ABOUT = (
    "idx", "index", "guid", "uid", "uuid", "split", "subset", "fold", "partition", "dataset", "source", "genre",
    "domain", "filename", "file", "url", "link", "date", "year", "time", "timestamp", "created_at", "lang", "language",
    "author", "user", "username", "annotator",
)  # fmt: skip
_ID = re.compile(r"(?:.*[^a-zA-Z]|)[iI][dD]\d*|.*[a-z]I[dD]")
_LABEL = re.compile(r"(^|_)labels?(_|$)")  # another form of the label, such as `label_text`
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]\d{1,2}:\d{2}\S*)?|\d{1,2}:\d{2}(:\d{2})?")


class NoLabels(UserError):
    """A training file in which no row has a label."""


class Columns(NamedTuple):
    """What is read of a table.

    Attributes:
        text: one or two columns of text; of tagged words the column of the words.
        label: one column, or several that each hold 0 or 1 for one class.
        words: whether each word has a tag.
    """

    text: tuple[str, ...]
    label: tuple[str, ...]
    words: bool


def infer_columns(
    table: DataFile, text: Sequence[str] | None = None, label: Sequence[str] | None = None, words: bool | None = None
) -> Columns:
    """The columns of texts and label, as named by the person or inferred.

    The label is the column `label`, else the only one of `LABEL_COLUMNS`, else the second of two columns. The text is
    the only other column that holds text, or the two that do if their names are one of `TEXT_PAIRS`. A column holds
    text if some cell is a text and not a number, date or truth value; a column of `ABOUT` only if some cell has several
    words, and a column like `label_text` never.

    Args:
        text, label: named columns.
        words: whether each word has a tag; None: if the text's column (named, or one of `WORD_COLUMNS`) holds lists of
            words, and the label's lists too.

    Raises:
        NoLabels: there is no column of labels.
        UserError: columns that cannot be told.
    """
    table.require(text or ())
    if label is not None and not set(label) & set(table.columns):
        listed = ", ".join(table.columns)
        raise NoLabels(
            f"{table.path} has no column {label[0]!r}{near_miss(label[0], table.columns)} (it has: {listed})"
        )
    table.require(label or ())
    for flag, names, most in (("--text-columns", text, 2), ("--label-column", label, len(label or ()))):
        if names is not None and not len(set(names)) == len(names) <= most:
            takes = "one or two different columns" if most == 2 else "different columns"
            raise UserError(f"{flag} takes {takes}, not {', '.join(names)}")
    if words or (words is None and _has_tags(table, text, label)):
        return _of_words(table, text, label)
    chosen = tuple(label) if label else (_label_column(table, text),)
    if both := set(text or ()) & set(chosen):
        raise UserError(f"{table.path}: column {min(both)!r} is the label, so it cannot be a text column too")
    return Columns(tuple(text) if text else _text_columns(table, chosen), chosen, False)


def _text_columns(table: DataFile, label: tuple[str, ...]) -> tuple[str, ...]:
    """The one or two columns of text, by content and names."""
    rest = [name for name in table.columns if name not in label]
    text, lower = _text_like(table, rest), [name.lower() for name in rest]
    for names in TEXT_PAIRS:
        if all(lower.count(name) == 1 for name in names):
            pair = tuple(rest[lower.index(name)] for name in names)
            if set(text) <= set(pair):
                return pair
            break
    if len(text or rest) == 1:
        return tuple(text or rest)
    shown = f"{', '.join(text)} all hold text" if text else f"columns: {', '.join(table.columns)}"
    raise UserError(
        f"{table.path}: cannot tell the text columns ({shown}); name the one or two to be read with --text-columns"
    )


def _has_tags(table: DataFile, text: Sequence[str] | None, label: Sequence[str] | None) -> bool:
    """Whether the columns named, or those that are called so, hold lists of words and lists of tags."""
    words = text or [name for name in table.columns if name.lower() in WORD_COLUMNS]
    tags = label or [name for name in table.columns if name.lower() in TAG_COLUMNS]
    first = _first(table, words[0]) if len(words) == 1 else None
    is_words = isinstance(first, list) and all(isinstance(one, str) for one in first)
    return is_words and any(isinstance(_first(table, name), list) for name in tags)


def _first(table: DataFile, column: str) -> Any:
    """The first cell of a column that is not missing; None if all are."""
    cells = (record.get(column) for _, record in table.rows())
    return next((cell for cell in cells if cell is not None), None)


def _of_words(table: DataFile, text: Sequence[str] | None, label: Sequence[str] | None) -> Columns:
    """The columns of words and tags."""
    if text is not None and len(text) != 1:
        raise UserError(f"--text-columns: tagged words are in one column, not in {', '.join(text)}")
    if label is not None and len(label) != 1:
        raise UserError(f"--label-column: the tags of the words are in one column, not in {', '.join(label)}")
    chosen = []
    for flag, named, names, what in (
        ("--text-columns", text, (*WORD_COLUMNS, *TEXT_COLUMNS), "words"),
        ("--label-column", label, TAG_COLUMNS, "tags"),
    ):
        there = [name for name in table.columns if name not in (*(text or ()), *(label or ()))]
        first = next((name for known in names for name in there if name.lower() == known), None)
        if named is None and first is None:
            raise (UserError if what == "words" else NoLabels)(
                f"{table.path}: cannot tell the column of the {what} (columns: {', '.join(table.columns)}); name it "
                f"with {flag}"
            )
        chosen.append(named[0] if named is not None else first)
    words, tags = chosen
    if words == tags:
        raise UserError(f"{table.path}: column {words!r} cannot hold the words and their tags")
    return Columns((str(words),), (str(tags),), True)


def _label_column(table: DataFile, text_columns: Sequence[str] | None) -> str:
    """The label column by its name, or the second of two."""
    known = [name for name in table.columns if name.lower() in LABEL_COLUMNS and name not in (text_columns or [])]
    known = [name for name in known if name.lower() == "label"] or known
    if not known and text_columns is None and len(table.columns) == 2:
        known = [name for name in table.columns[1:] if name.lower() not in TEXT_COLUMNS]
    if len(known) == 1:
        return known[0]
    shown = f"{', '.join(known)} may be it" if known else f"columns: {', '.join(table.columns)}"
    marks = [] if known else _marks(table, text_columns)
    header = ", or write a header line if the file has none" if {".csv", ".tsv"} & {*table.path.suffixes} else ""
    cure = f"name it with --label-column{header}"
    if len(marks) == 1:
        cure = f"if it is {marks[0]!r}, which holds 0 and 1, say --label-column {marks[0]}"
    elif marks:
        cure = f"if each of these is a class, say --label-column {','.join(marks)}; if one is the label, name it alone"
    none = NoLabels if not (known or marks) else UserError
    raise none(f"{table.path}: cannot tell the label column ({shown}); {cure}")


def _marks(table: DataFile, text_columns: Sequence[str] | None) -> list[str]:
    """The columns in which every cell is 0 or 1, true or false, and both occur."""
    seen: dict[str, set[str | None]] = {name: set() for name in table.columns if name not in (text_columns or ())}
    for _, record in table.rows():
        for name in list(seen):
            cell = record.get(name)
            seen[name].add(label_text(cell) if not isinstance(cell, (list, dict)) else None)
            if not seen[name] <= {"0", "1", "true", "false"}:
                del seen[name]
    return [name for name, values in seen.items() if len(values) == 2]


def _text_like(table: DataFile, names: list[str]) -> list[str]:
    """The columns that hold text."""
    found = {name for name in names if name.lower() in TEXT_COLUMNS}
    left = {}  # column -> how many words a text must have there
    for name in names:
        if name not in found and not _LABEL.search(name.lower()):
            about = not name or name.lower().rstrip("_0123456789") in ABOUT or _ID.fullmatch(name)
            left[name] = 2 if about else 1
    for _, record in table.rows():
        if not left:
            break
        found.update(name for name, words in left.items() if _is_text(record.get(name), words))
        left = {name: words for name, words in left.items() if name not in found}
    return [name for name in names if name in found]


def _is_text(cell: Any, words: int) -> bool:
    """Whether a cell is a text of at least so many words, and not a number, date or truth value."""
    text = cell.strip() if isinstance(cell, str) else ""
    if len(text.split(None, 1)) < words or not any(letter.isalnum() for letter in text):
        return False
    return number(text) is None and text.lower() not in ("true", "false", "nan") and not _DATE.fullmatch(text)
