"""Your own classification or regression data: csv, tsv, json lines, parquet, a saved dataset.

Columns and labels are inferred from names and content, and shown before they are used. Anything ambiguous is refused
with a question.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdbert.data.data_file import DataFile, cell_text, open_data_file
from kdbert.data.examples import RawExample
from kdbert.data.files import log_once
from kdbert.data.labels import NO_LABEL, alike, label_text, no_class, number
from kdbert.errors import UserError, near_miss
from kdbert.tasks.spec import Own, Split, TaskSpec

log = logging.getLogger("kdbert")

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
_QUOTED = re.compile(r'".*"".*"')  # as csv writers do it: in quotes, with doubled quotes inside
_SHOWN = 60  # characters of a text in a message


def infer_columns(
    table: DataFile, text_columns: list[str] | None, label_column: str | None
) -> tuple[tuple[str, ...], str]:
    """The text column(s) and the label column, as named by the person or inferred.

    The label is the column `label`, else the only one of `LABEL_COLUMNS`, else the second of two columns. The text is
    the only other column that holds text, or the two that do if their names are one of `TEXT_PAIRS`. A column holds
    text if some cell is a text and not a number, date or truth value; a column of `ABOUT` only if some cell has several
    words, and a column like `label_text` never.
    """
    table.require([*(text_columns or []), *([label_column] if label_column else [])])
    if text_columns and not len(set(text_columns)) == len(text_columns) <= 2:
        raise UserError(f"--text-columns takes one or two different columns, not {', '.join(text_columns)}")
    label = label_column or _label_column(table, text_columns)
    if text_columns:
        if label in text_columns:
            raise UserError(f"{table.path}: column {label!r} is the label, so it cannot be a text column too")
        return tuple(text_columns), label
    rest = [name for name in table.columns if name != label]
    text, lower = _text_like(table, rest), [name.lower() for name in rest]
    for names in TEXT_PAIRS:
        if all(lower.count(name) == 1 for name in names):
            pair = tuple(rest[lower.index(name)] for name in names)
            if set(text) <= set(pair):
                return pair, label
            break
    if len(text or rest) == 1:
        return tuple(text or rest), label
    shown = f"{', '.join(text)} all hold text" if text else f"columns: {', '.join(table.columns)}"
    raise UserError(
        f"{table.path}: cannot tell the text columns ({shown}); name the one or two to be read with --text-columns"
    )


def _label_column(table: DataFile, text_columns: list[str] | None) -> str:
    """The label column by its name, or the second of two."""
    known = [name for name in table.columns if name.lower() in LABEL_COLUMNS and name not in (text_columns or [])]
    known = [name for name in known if name.lower() == "label"] or known
    if not known and text_columns is None and len(table.columns) == 2:
        known = [name for name in table.columns[1:] if name.lower() not in TEXT_COLUMNS]
    if len(known) == 1:
        return known[0]
    shown = f"{', '.join(known)} may be it" if known else f"columns: {', '.join(table.columns)}"
    raise UserError(
        f"{table.path}: cannot tell the label column ({shown}); name it with --label-column, or write a header line if "
        "the file has none"
    )


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


def own_rows(table: DataFile, own: Own, labelled: bool, known: Collection[str] = ()) -> Iterator[RawExample]:
    """The rows of a table as examples; `known` are the labels of the training file."""
    empty = quoted = 0
    tabbed = ".tsv" in table.path.suffixes
    for count, (place, record) in enumerate(table.rows()):
        where = f"{table.path}, {place}"
        cells = [cell_text(record, column, where) for column in own.text]
        empty += not all(cell.strip() for cell in cells)
        quoted += tabbed and any(map(_QUOTED.fullmatch, cells))
        if table.broken:
            _refuse_swallowed(record, known, where)
        label = _label(record.get(own.label), where) if labelled else None
        yield RawExample(str(count), cells[0], cells[1] if len(cells) > 1 else None, label, place)
    if table.broken:
        log_once(f"{table.path}: {table.broken} of the rows have a quoted field with line breaks")
    if empty:
        log_once(f"{table.path}: {empty} of the rows have an empty text", logging.WARNING)
    if quoted:
        log_once(
            f"{table.path}: {quoted} of the texts look quoted as in csv, but in .tsv a quote is a character; "
            "write the file without quoting, or as .csv",
            logging.WARNING,
        )


def _label(value: Any, where: str) -> str | None:
    """A cell of the label column as a label."""
    what = no_class(value)
    if what is not None:
        raise UserError(
            f"{where}: the label {_cut(str(value))} looks like {what}; own data of that form is not read yet, only one "
            "class or one score for each row"
        )
    return label_text(value)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _refuse_swallowed(record: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse a field of several lines if one of them has a label among its cells: it is probably a row."""
    for cell in record.values():
        for line in cell.split("\n") if "\n" in cell else ():
            parts = line.replace('"', "").split(",")
            if len(parts) > 1 and any(part in known for part in parts):
                raise UserError(
                    f"{where}: a quoted field holds several lines, and one looks like a row ({_cut(line)}): is a quote "
                    "not closed? (if it is one text, write the file as .jsonl)"
                )


class _Labels(NamedTuple):
    """The labels of a training file."""

    names: list[str]  # the distinct ones, sorted
    kind: str
    rows: int
    told: str  # how they are read, for a person


def _labels(table: DataFile, column: str, kind: str | None) -> _Labels:
    """The labels in a column. Without a kind it is regression if all are numbers and some are not whole."""
    where, missing, rows = f"{table.path}: column {column!r}", "", 0
    found: dict[str, str] = {}  # label -> where it is first
    for place, record in table.rows():
        here = f"{table.path}, {place}"
        name = _label(record.get(column), here)
        rows += 1
        if name is None:
            missing = missing or here
        else:
            found.setdefault(name, here)
    words = [name for name in found if number(name) is None]
    if kind == "regression" and words:
        raise UserError(
            f"{found[words[0]]}: label {words[0]!r} is not a number such as 2.5 (with a point), so --kind regression "
            "cannot read it"
        )
    names = sorted(found)
    if names in ([], [NO_LABEL]):
        raise UserError(f"{where} has no labels (all are missing or {NO_LABEL})")
    if missing:
        raise UserError(f"{missing}: the label is missing")
    if len(names) < 2:
        raise UserError(f"{where} has one label only ({names[0]!r}); two or more are needed")
    whole = not words and all(float(name).is_integer() for name in names)
    if kind == "regression" or (kind is None and not words and not whole):
        return _Labels(names, "regression", rows, "scores (regression)")
    if kind is None and len(names) > max(2, rows // 2):
        scores = "" if words else "; if the labels are scores, say --kind regression"
        if 0 < len(words) <= len(names) // 5:
            scores = f"; if the labels are scores, {words[0]!r} is no number"
        raise UserError(
            f"{where} has {len(names)} different labels in {rows} rows; if each is a class, say --kind single-label; "
            f"if another column is the label, name it with --label-column{scores}"
        )
    if same := alike(names):
        raise UserError(f"{where} has the labels {same[0]!r} and {same[1]!r}, which count as one; write them alike")
    for name in names if kind is None else ():
        parts = re.split(r"\s*[,;|]\s*", name)
        if len(parts) > 1 and all(part in found for part in parts):
            raise UserError(
                f"{where} has labels such as {name!r}, which look like several classes; own data of that form is not "
                "read yet (--kind single-label takes each as one class)"
            )
    told = f"{len(names)} classes ({', '.join(names[:8])}{', …' * (len(names) > 8)})"
    told += "; if these numbers are scores, say --kind regression" * (whole and len(names) > 2)
    return _Labels(names, "single_label", rows, told)


def custom_task(
    train_file: str,
    dev_file: str,
    test_file: str | None = None,
    text_columns: list[str] | None = None,
    label_column: str | None = None,
    kind: str | None = None,
) -> TaskSpec:
    """A task made of a person's files; its classes are the labels of the training file.

    The kind is `single-label` or `regression`, and inferred from the labels by default.
    """
    files = {"dev": dev_file} | ({"test": test_file} if test_file is not None else {})
    if Path(train_file).resolve() == Path(dev_file).resolve() and not Path(train_file).is_dir():
        raise UserError(f"--train-file and --dev-file are the same file ({train_file}); give a dev file of its own")
    train = open_data_file(Path(train_file), "train")
    text, label = infer_columns(train, text_columns, label_column)
    labels = _labels(train, label, kind)
    name = label_text(label) or ""
    by_place = label_column is None and label.lower() not in LABEL_COLUMNS
    if by_place and (name in labels.names or number(name) is not None):
        raise UserError(
            f"{train_file}: the first line looks like a row ({', '.join(train.columns)}); write a header such as text, "
            "label in front of it; or, if this is the header, name its columns with --text-columns and --label-column"
        )
    if label_column is not None and name in labels.names:
        log.warning(
            "%s: column %r has the name of a label; if the first line is a row, write a header in front of it",
            train_file, label,
        )  # fmt: skip
    own = Own(text, label)
    _tell_columns(train, own, labels)
    splits = {"train": own_split(train, own, "train", labels.names)}
    for name, file in files.items():
        splits[name] = own_split(open_data_file(Path(file), name), own, name, labels.names)
    return own_task(own, labels.kind, labels.names, splits, Path(train_file))


def own_split(table: DataFile, own: Own, name: str, known: Collection[str]) -> Split:
    """A file of own data as a split; a test file may have no labels. `known` are those of the training file."""
    known = frozenset(known)
    labelled = name == "train" or any(
        label_text(record.get(own.label)) not in (None, NO_LABEL) for _, record in table.rows()
    )
    if own.label not in table.columns:
        other = [column for column in table.columns if column not in own.text and column.lower() in LABEL_COLUMNS]
        if other or near_miss(own.label.lower(), [column.lower() for column in table.columns]):
            table.require([own.label])  # the labels may be there under another name
    elif not labelled and NO_LABEL in known:
        log_once(f"{table.path}: every label is {NO_LABEL} or missing, so it counts as a file without labels")
    table.require([*own.text, own.label] if labelled or name != "test" else list(own.text))
    if not labelled and name != "test":
        raise UserError(f"{table.path}: column {own.label!r} has no labels (all are missing or {NO_LABEL})")
    return Split((), lambda path: own_rows(table, own, labelled, known), labelled, place=table.path)


def own_task(own: Own, kind: str, labels: Collection[str], splits: Mapping[str, Split], source: Path) -> TaskSpec:
    """The task of own data. `source` is the training file."""
    classes = kind == "single_label"
    return TaskSpec(
        name="custom",
        title=f"custom data ({source.name})",
        kind=kind,
        labels=tuple(labels) if classes else (),
        metrics=("accuracy", "macro_f1") if classes else ("pearson_and_spearman", "pearson", "spearman"),
        splits=splits,
        pair=len(own.text) == 2,
        source=str(source),
        own=own,
    )


def _tell_columns(table: DataFile, own: Own, labels: _Labels) -> None:
    """Say what is read of a training file and how, with its first row."""
    left = [name or "(without a name)" for name in table.columns if name not in (*own.text, own.label)]
    _, first = next(table.rows())
    texts = ["(missing)" if (text := first.get(name)) is None else repr(_cut(str(text))) for name in own.text]
    log_once(
        f"{table.path}: {labels.rows} rows; text from {' + '.join(own.text)}; label from {own.label!r}: "
        f"{labels.told}" + (f"; not read: {', '.join(left)}" if left else "")
        + f"; the first row: {' + '.join(texts)} -> {label_text(first.get(own.label))}"
    )  # fmt: skip
