"""The task that a person's files are, and its splits."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdbert.data.data_file import DataFile, cell_text, open_data_file, saved_splits
from kdbert.data.examples import RawExample
from kdbert.data.files import log_once
from kdbert.data.hub_data import local_data
from kdbert.data.labels import NO_LABEL, label_text, number
from kdbert.errors import UserError, near_miss
from kdbert.metrics.grouped import mark_entities
from kdbert.tasks.own.columns import LABEL_COLUMNS, Columns, NoLabels, infer_columns
from kdbert.tasks.own.dev_part import Row, dev_rows
from kdbert.tasks.own.forms import cut, read_label, read_words
from kdbert.tasks.own.labels import Labels, infer_labels, tags_of
from kdbert.tasks.spec import Own, Split, TaskSpec

log = logging.getLogger("kdbert")

SPLITS = ("train", "dev", "test")
_QUOTED = re.compile(r'".*"".*"')  # as csv writers do it: in quotes, with doubled quotes inside
# The metrics of a kind; the first selects. Tags of entities, and tags that stand for themselves, are both `token`.
METRICS = {
    "single_label": ("accuracy", "macro_f1"),
    "multi_label": ("micro_f1", "macro_f1"),
    "regression": ("pearson_and_spearman", "pearson", "spearman"),
    "entities": ("entity_f1", "entity_precision", "entity_recall"),
    "token": ("accuracy", "macro_f1"),
}


def custom_task(
    train_file: str,
    dev_file: str | None = None,
    test_file: str | None = None,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | Sequence[str] | None = None,
    kind: str | None = None,
    label_separator: str | None = None,
    dev_share: float | None = None,
    dev_seed: int = 1,
    split_names: Sequence[str] | None = None,
    known_labels: Sequence[str] | None = None,
) -> TaskSpec:
    """A task made of a person's files; its classes are the labels of the training file.

    A training file in which no row has a label is read as the dev file is, if something else says what is labelled:
    `known_labels`, or the kind `regression`.

    Args:
        train_file: a data file (`open_data_file`) or a dataset of the Hub (`local_data`); one with several splits may
            hold the dev and test split.
        label_column: several for classes that each have a column of 0 and 1.
        kind: `single-label`, `multi-label`, `regression` or `token`; None: it is inferred.
        label_separator: between the classes of a text, such as `|`.
        dev_share: take so large a part of the training file as the dev split; `dev_seed` decides which rows.
        split_names: what the training, dev and test split are called in a saved dataset.
        known_labels: the classes or tags in order; None: those of the training file.

    Raises:
        NoLabels: the training file has none, and nothing else says what they are.
        UserError: a faulty file; columns, labels or splits that cannot be told.
    """
    names = dict(zip(SPLITS, split_names or (), strict=False))
    places = _places({"train": train_file, "dev": dev_file, "test": test_file}, names, dev_share)
    words = kind == "token"
    train = open_data_file(places["train"], names.get("train", "train"), words=words)
    named = (label_column,) if isinstance(label_column, str) else label_column
    if named is not None and (
        whole := next((one for one in (", ".join(named), ",".join(named)) if one in train.columns), None)
    ):
        named = (whole,)  # a column with a comma in its name

    def read(table: DataFile) -> tuple[Columns, Labels]:
        columns = infer_columns(table, text_columns, named, None if kind is None else words)
        return columns, infer_labels(table, columns, kind, label_separator, known_labels or ())

    try:
        columns, labels = read(train)
    except NoLabels as error:
        if known_labels is None and kind != "regression":
            raise
        if dev_share is not None:
            raise UserError(f"{error}, so --dev-share finds none; name a dev file with --dev-file") from None
        if "dev" not in places:
            raise no_dev(places["train"]) from None
        columns, labels = read(open_data_file(places["dev"], names.get("dev", "dev"), words=words))
        rows = sum(1 for _ in train.rows())
        labels = labels._replace(rows=rows, missing=rows)
    _refuse_no_header(train, columns.label, named, labels)
    in_use = {*columns.text, *columns.label}
    own = Own(
        columns.text, columns.label, labels.form, label_separator, dev_share, dev_seed if dev_share else 1, names,
        unread=tuple(name or "(without a name)" for name in train.columns if name not in in_use),
    )  # fmt: skip
    _tell_columns(train, own, labels)
    splits = {"train": own_split(train, own, "train", labels.names)}
    if dev_share is not None:
        splits |= _in_two(train, own, splits["train"], labels)
    for name, path in places.items():
        if name not in splits:
            table = open_data_file(path, names.get(name, name), words=words)
            splits[name] = own_split(table, own, name, labels.names)
    return own_task(own, labels.kind, labels.names, splits, places["train"])


def _places(files: Mapping[str, str | None], names: Mapping[str, str], dev_share: float | None) -> dict[str, Path]:
    """Split -> its file. Splits that no file is named for are looked for in the training file, a saved dataset."""
    found = {name: local_data(file) for name, file in files.items() if file is not None}
    train, dev = found["train"], found.get("dev")
    there = saved_splits(train)
    if names and not there:
        raise UserError(f"--split-names goes with a saved dataset that has several splits, and {train} is none")
    if dev is not None and dev_share is not None:
        raise UserError("--dev-share takes the dev split from the training file; omit it, or --dev-file")
    if dev is not None and train.resolve() == dev.resolve() and not train.is_dir():
        raise UserError(
            f"--train-file and --dev-file are the same file ({train}); give a dev file of its own, or --dev-share 0.1"
        )
    for name, called in (("dev", ("validation", "dev")), ("test", ("test",))):
        wanted = (names[name],) if name in names else called
        if name not in found and set(wanted) & set(there) and not (name == "dev" and dev_share is not None):
            found[name] = train
    return found


def no_dev(train_file: str | Path) -> UserError:
    """What is said of own data without a dev split, where one is needed."""
    there = saved_splits(Path(train_file))
    has = f" ({train_file} has the splits {', '.join(there)}; --split-names says which is which)" if there else ""
    return UserError(f"task 'custom' needs --dev-file, or --dev-share 0.1 to take a part of the training file{has}")


def _refuse_no_header(table: DataFile, label: Sequence[str], named: Sequence[str] | None, labels: Labels) -> None:
    """Refuse a file whose first line looks like a row, not like names of columns."""
    name = label_text(label[0]) or ""
    by_place = named is None and labels.form != "tags" and label[0].lower() not in LABEL_COLUMNS
    if by_place and (name in labels.names or number(name) is not None):
        raise UserError(
            f"{table.path}: the first line looks like a row ({', '.join(table.columns)}); write a header such as text, "
            "label in front of it; or, if this is the header, name its columns with --text-columns and --label-column"
        )
    if named is not None and labels.form == "one" and name in labels.names:
        log.warning(
            "%s: column %r has the name of a label; if the first line is a row, write a header in front of it",
            table.path, label[0],
        )  # fmt: skip


def _tell_columns(table: DataFile, own: Own, labels: Labels) -> None:
    """Say what is read of a training file and how, with its first row."""
    place, first = next(table.rows())
    label = read_label(first, own, f"{table.path}, {place}", labels.names)
    if own.form == "tags":
        texts = [cut(" ".join(read_words(first, own.text[0], str(table.path))))]
        shown = cut(" ".join(label or ()))
    else:
        texts = ["(missing)" if (text := first.get(name)) is None else repr(cut(str(text))) for name in own.text]
        shown = str(label) if isinstance(label, str) else ", ".join(label or ()) or "(none)"
    source = f"label from {', '.join(map(repr, own.label))}"
    if labels.missing:
        source += f" ({labels.missing} rows have none)"
    if labels.missing == labels.rows:
        label = None
        source = "no row has a label; what it would be is read of the dev file"
    left = f"; not read: {', '.join(own.unread)}" if own.unread else ""
    log_once(
        f"{table.path}: {labels.rows} rows; text from {' + '.join(own.text)}; {source}: {labels.told}{left}; the first "
        f"row: {' + '.join(texts)} -> {'no label' if label is None else shown}"
    )


# ---- splits


def own_split(table: DataFile, own: Own, name: str, known: Sequence[str]) -> Split:
    """A file of own data as a split; a training or test file may have no labels.

    Args:
        known: the classes of the training file.
    """
    if own.form == "tags" and not {*own.text, *own.label} <= {*table.columns}:
        with contextlib.suppress(UserError):  # CoNLL and lists call these columns by other names
            found = infer_columns(table, words=True)
            own = replace(own, text=found.text, label=found.label)
    labelled = _labelled(table, own)
    absent = [column for column in own.label if column not in table.columns]
    if absent:
        other = [column for column in table.columns if column not in own.text and column.lower() in LABEL_COLUMNS]
        if labelled or other or near_miss(absent[0].lower(), [column.lower() for column in table.columns]):
            table.require(own.label)  # the labels may be there under another name
    elif not labelled and NO_LABEL in known and name != "train":
        log_once(f"{table.path}: every label is {NO_LABEL} or missing, so it counts as a file without labels")
    table.require([*own.text, *own.label] if labelled or name == "dev" else own.text)
    if not labelled and name == "dev":
        raise UserError(f"{table.path}: column {own.label[0]!r} has no labels (all are missing or {NO_LABEL})")
    return Split((), lambda path: own_rows(table, own, labelled, known), labelled, place=table.path)


def _labelled(table: DataFile, own: Own) -> bool:
    """Whether some row has a label."""
    for _, record in table.rows():
        for name in own.label:
            value = record.get(name)
            if isinstance(value, (list, tuple)) or label_text(value) not in (None, NO_LABEL):
                return True
    return False


def own_rows(table: DataFile, own: Own, labelled: bool, known: Sequence[str] = ()) -> Iterator[RawExample]:
    """The rows of a table as examples; `known` are the classes of the training file."""
    empty = quoted = 0
    tabbed, names = ".tsv" in table.path.suffixes and own.form != "tags", frozenset(known)
    for count, (place, record) in enumerate(table.rows()):
        where = f"{table.path}, {place}"
        if own.form == "tags":
            words = read_words(record, own.text[0], where)
            empty += not words
            tags = tags_of(record, own, where) if labelled else None
            yield RawExample(str(count), " ".join(words), None, tags, place, words)
            continue
        cells = [cell_text(record, column, where) for column in own.text]
        empty += not all(cell.strip() for cell in cells)
        quoted += tabbed and any(map(_QUOTED.fullmatch, cells))
        if table.broken:
            _refuse_swallowed(record, names, where)
        label = read_label(record, own, where, known) if labelled else None
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


def _refuse_swallowed(record: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse a field of several lines if one of them has a label among its cells: it is probably a row."""
    for cell in record.values():
        for line in cell.split("\n") if "\n" in cell else ():
            parts = line.replace('"', "").split(",")
            if len(parts) > 1 and any(part in known for part in parts):
                raise UserError(
                    f"{where}: a quoted field holds several lines, and one looks like a row ({cut(line)}): is a quote "
                    "not closed? (if it is one text, write the file as .jsonl)"
                )


def _in_two(table: DataFile, own: Own, whole: Split, labels: Labels) -> dict[str, Split]:
    """The training file as a training and a dev split."""
    assert own.dev_share is not None
    chosen = chosen_rows(whole.read(table.path), own, labels.kind, str(table.path))
    together = "the scores spread alike" if labels.kind == "regression" else "as much of each label as far as possible"
    log_once(
        f"{table.path}: {chosen.sum()} of {len(chosen) - labels.missing} rows are the dev split (--dev-share "
        f"{own.dev_share:g}, seed {own.dev_seed}; {together}; equal texts stay together)"
    )
    return {name: part_of(whole, lambda: chosen, name) for name in ("train", "dev")}


def chosen_rows(rows: Iterator[RawExample], own: Own, kind: str, where: str) -> np.ndarray:
    """bool [N]: the rows of a training file that are its dev split; all of them have a label."""
    assert own.dev_share is not None

    labelled: list[bool] = []

    def with_labels() -> Iterator[Row]:
        for row in rows:
            labelled.append(row.label is not None)
            if row.label is not None:
                label = float(str(row.label)) if kind == "regression" else row.label
                yield Row("\0".join(filter(None, row[1:3])), label)

    dev = dev_rows(with_labels(), own.dev_share, own.dev_seed, where)
    found = np.array(labelled)
    found[found] = dev
    return found


def part_of(whole: Split, chosen: Callable[[], np.ndarray], name: str) -> Split:
    """The training or dev part of a training file; `chosen`: which rows are the dev split."""

    def read(path: Path) -> Iterator[RawExample]:
        for row, dev in zip(whole.read(path), chosen(), strict=True):
            if dev == (name == "dev"):
                yield row

    return Split((), read, True, place=whole.place)


# ---- the task


def own_task(own: Own, kind: str, labels: Collection[str], splits: Mapping[str, Split], source: Path) -> TaskSpec:
    """The task of own data. `source` is the training file."""
    return TaskSpec(
        name="custom",
        title=f"custom data ({source.name})",
        kind=kind,
        labels=tuple(labels),
        metrics=METRICS["entities" if kind == "token" and mark_entities(labels) else kind],
        splits=splits,
        pair=len(own.text) == 2,
        source=str(source),
        own=own,
    )


def saved_split(path: Path, own: Own, name: str, kind: str, labels: Sequence[str]) -> Split:
    """A split of a finished run's task, from its file."""
    words, part = kind == "token", own.dev_share is not None and name in ("train", "dev")
    role = "train" if part else name
    table = open_data_file(path, own.split_names.get(role, role), words=words)
    whole = own_split(table, own, role, labels)
    if not part:
        return whole
    return part_of(whole, partial(chosen_rows, whole.read(path), own, kind, str(path)), name)
