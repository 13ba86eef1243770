"""Which labels a training file has, and how they are written. What can be read in two ways is refused with a question.

A kind is named as a person types it: `single-label`, `multi-label`, `regression`, `token`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kdbert.data.data_file import DataFile
from kdbert.data.labels import NO_LABEL, alike, class_number, clear, label_text, listed, number
from kdbert.errors import UserError
from kdbert.metrics.grouped import mark_entities
from kdbert.tasks.own.columns import Columns, NoLabels
from kdbert.tasks.own.forms import cut, one_label, read_label, read_words
from kdbert.tasks.own.tags import scheme_of
from kdbert.tasks.spec import LabelForm, Own

_SIGNS = "|;,"


class Labels(NamedTuple):
    """The labels of a training file.

    Attributes:
        names: the classes or tags in order; none of scores.
        kind: of the task, as `TaskSpec` has it.
        rows: of the file. missing: those without a label.
        told: how they are read, for a person.
    """

    names: tuple[str, ...]
    kind: str
    form: LabelForm
    rows: int
    missing: int
    told: str


def infer_labels(
    table: DataFile, columns: Columns, kind: str | None, separator: str | None, names: Sequence[str] = ()
) -> Labels:
    """The labels of a table.

    Args:
        kind: as a person typed it; None: it is inferred.
        separator: between the classes of a text.
        names: the classes or tags in order, where something else than the table says them.

    Raises:
        NoLabels: no row has one.
        UserError: a label that does not fit the others, the kind, or `names`; labels that can be read in two ways.
    """
    if columns.words:
        return _tags(table, columns, names)
    if len(columns.label) > 1:
        own = Own(columns.text, columns.label, "columns")
        _refuse_kind(kind, "multi-label", f"several label columns ({', '.join(columns.label)})")
        return _several(table, own, columns.label, kind, names)
    if separator is not None:
        if not separator:
            raise UserError("--label-separator is empty; name the sign between two classes, such as '|'")
        _refuse_kind(kind, "multi-label", "--label-separator")
        return _several(table, Own(columns.text, columns.label, "separated", separator), None, kind, names)
    lists = _lists(table, columns.label[0])
    if lists is None:
        return _one(table, columns.label[0], kind, names)
    if kind == "single-label" and all(len(listed(r.get(columns.label[0])) or [0]) == 1 for _, r in table.rows()):
        return _one(table, columns.label[0], kind, names)
    _refuse_kind(kind, "multi-label", f"lists in column {columns.label[0]!r}")
    numbers = tuple(map(str, range(lists))) if lists else None
    if lists and names:
        if len(names) != lists:
            raise UserError(f"task.labels names {len(names)} classes, but the lists of {table.path} have {lists} marks")
        numbers = tuple(names)
    return _several(table, Own(columns.text, columns.label, "marks" if lists else "list"), numbers, kind, names)


def _refuse_kind(kind: str | None, right: str, because: str) -> None:
    if kind not in (None, right):
        raise UserError(f"--kind {kind} cannot be read from {because}, which is {right}")


def _lists(table: DataFile, column: str) -> int | None:
    """None if the labels are no lists; the length of lists of 0 and 1, one for each class; 0 of other lists."""
    plain = ""  # the place of a label that is no list
    marks = two = True  # whether all are numbers; whether all are 0 or 1
    lengths: set[int] = set()
    same = False  # whether some list has a number twice, so that its numbers are no classes
    tags = True  # whether there may be a tag for each word of a text
    first = ""
    for place, record in table.rows():
        value = record.get(column)
        items = listed(value)
        where = f"{table.path}, {place}"
        if items is None:
            plain = plain or (where if label_text(value) is not None else "")
            continue
        first = first or where
        if plain:
            break
        if soft := next((item for item in items if isinstance(item, float) and not item.is_integer()), None):
            one_label(list(items), where)  # refuses soft labels in its own words
            raise UserError(f"{where}: the label {cut(str(value))} has {soft}, which is no class")
        numbers = [label_text(item) for item in items if not isinstance(item, str)]
        marks = marks and len(numbers) == len(items) > 1
        two = two and set(numbers) <= {"0", "1", "true", "false"}
        lengths.add(len(items))
        same = same or len(set(numbers)) < len(numbers)
        texts = [record.get(name) for name in table.columns if name != column]
        tags = tags and any(isinstance(text, str) and len(text.split()) == len(items) for text in texts)
        tags = tags and all(isinstance(item, str) and re.fullmatch(r"O|[BIESLU]-\S+", item) for item in items)
    if not first:
        return None
    if plain:
        raise UserError(
            f"{table.path}: column {column!r} has lists ({first}) and other labels ({plain}); write all alike"
        )
    if tags:
        raise UserError(
            f"{table.path}: column {column!r} may hold the tags of words or the classes of a text; say --kind token or "
            "--kind multi-label"
        )
    if not marks or len(lengths) > 1:
        return 0
    if not (same or two):
        return 0
    if not same:  # lists of two, each [0, 1] or [1, 0]
        raise UserError(
            f"{table.path}: column {column!r} has lists of 0 and 1 that can be read in two ways (a mark for each "
            "class, or the numbers of classes); write the names of the classes"
        )
    return lengths.pop()


def _several(
    table: DataFile, own: Own, by_form: Sequence[str] | None, kind: str | None, names: Sequence[str] = ()
) -> Labels:
    """Labels of any number of classes; `by_form` are the classes in order where the form says them."""
    where = f"{table.path}: column {own.label[0]!r}"
    found: dict[str, str] = {}  # class -> where it is first
    rows = missing = none = most = several = 0
    for place, record in table.rows():
        here = f"{table.path}, {place}"
        label = read_label(record, own, here, by_form or ())
        rows += 1
        if label is None:
            missing += 1
            continue
        none, most = none + (not label), max(most, len(label))
        several += len(label) > 1
        for name in label:
            found.setdefault(name, here)
    if missing == rows:
        raise NoLabels(f"{where} has no labels (all are missing)")
    _refuse_others(found, names or by_form or found)
    if not found and not names:
        raise UserError(f"{where}: no row has a class")
    classes = tuple(names or by_form or sorted(found))
    if len(classes) < 2:
        raise UserError(f"{where} has one class only ({classes[0]!r}); two or more are needed")
    if (
        kind is None
        and not names
        and own.form in ("list", "separated")
        and len(classes) > max(2, (rows - missing) // 2)
    ):
        raise UserError(
            f"{where} has {len(classes)} different classes in {rows - missing} rows; if that is right, say --kind "
            "multi-label; if another column is the label, name it with --label-column"
        )
    _refuse_alike(classes, where)
    told = f"any of {len(classes)} classes ({_shown(classes)}); {none} rows with none, at most {most} in one"
    if not (none or several) and own.form == "list":
        told += "; every row has one: if there can be no more, say --kind single-label"
    never = [name for name in classes if name not in found]
    told += f"; never: {_shown(never)}" * bool(never)
    return Labels(classes, "multi_label", own.form, rows, missing, told)


def _refuse_others(found: Mapping[str, str], names: Collection[str]) -> None:
    """Refuse a label that is not one of `names`; `found`: label -> where it is."""
    numbers = {name: number for number, name in enumerate(names)}
    for name, where in found.items():
        class_number(name, numbers, where)


def _tags(table: DataFile, columns: Columns, names: Sequence[str]) -> Labels:
    """Tags of words."""
    own, rows, missing = Own(columns.text, columns.label, "tags"), 0, 0
    found: dict[str, str] = {}

    def sentences() -> Iterator[tuple[str, ...]]:
        nonlocal rows, missing
        for place, record in table.rows():
            rows += 1
            here = f"{table.path}, {place}"
            tags = tags_of(record, own, here)
            if tags is None:
                missing += 1
                continue
            found.update({tag: here for tag in tags if tag not in found})
            yield tags

    scheme = scheme_of(sentences(), str(table.path))
    if missing == rows:
        raise NoLabels(f"{table.path}: column {columns.label[0]!r} has no tags (all are missing)")
    if names:
        _refuse_others(found, names)
        return Labels(tuple(names), "token", "tags", rows, missing, scheme.told())
    if all(number(tag) is not None for tag in scheme.labels):
        raise UserError(
            f"{table.path}: the tags in {columns.label[0]!r} are numbers, and nothing says what they mean; write their "
            "names (a saved Hugging Face dataset has them in its features)"
        )
    if len(scheme.labels) < 2:
        cure = f"; --label-column takes another column ({', '.join(table.columns)})" * (len(table.columns) > 2)
        raise UserError(f"{table.path}: every word has the tag {scheme.labels[0]!r}; two or more are needed{cure}")
    return Labels(scheme.labels, "token", "tags", rows, missing, scheme.told())


def tags_of(record: Any, own: Own, where: str) -> tuple[str, ...] | None:
    """The tags of a row, as many as it has words; None where they are missing."""
    tags, words = read_label(record, own, where), read_words(record, own.text[0], where)
    if tags is None:
        return None
    if len(tags) != len(words):
        raise UserError(f"{where}: {len(words)} words, but {len(tags)} tags")
    return tuple(tags)


def _one(table: DataFile, column: str, kind: str | None, given: Sequence[str] = ()) -> Labels:
    """One class or score for each row. Without a kind it is a score if all are numbers and some are not whole."""
    where, missing, rows = f"{table.path}: column {column!r}", 0, 0
    found: dict[str, str] = {}  # label -> where it is first
    for place, record in table.rows():
        here = f"{table.path}, {place}"
        name = one_label(record.get(column), here)
        rows += 1
        if name is None:
            missing += 1
        else:
            found.setdefault(name, here)
    words = [name for name in found if number(name) is None]
    endless = next((name for name in words if re.fullmatch(r"[+-]?inf(inity)?", name, re.IGNORECASE)), None)
    if kind is None and endless and len(words) < len(found):
        raise UserError(
            f"{found[endless]}: label {endless!r} is no finite number; if it is a class, say --kind single-label"
        )
    if kind == "regression" and words:
        raise UserError(
            f"{found[words[0]]}: label {words[0]!r} is not a number such as 2.5 (with a point), so --kind regression "
            "cannot read it"
        )
    names = sorted(found)
    if names == [] or (names == [NO_LABEL] and NO_LABEL not in given):
        raise NoLabels(f"{where} has no labels (all are missing or {NO_LABEL})")
    if kind in ("multi-label", "token"):
        raise UserError(
            f"{where} has one label for each row; for --kind multi-label write lists, or name what separates the "
            "classes with --label-separator"
        )
    if given:
        _refuse_others(found, given)
        return Labels(tuple(given), "single_label", "one", rows, missing, f"{len(given)} classes ({_shown(given)})")
    for sign in _SIGNS if kind is None else ():
        parted = {name: [part.strip() for part in name.split(sign)] for name in names if sign in name}
        known = next((name for name, parts in parted.items() if all(part in found for part in parts)), None)
        # Many names that share their parts are combinations of a few classes.
        few = len({part for parts in parted.values() for part in parts}) < len(parted)
        name = known or (next(iter(parted)) if few else None)
        if name is not None:
            raise UserError(
                f"{where} has labels such as {name!r}; if these are several classes, say --label-separator {sign!r}; "
                "if each is one class, say --kind single-label"
            )
    if kind is None and any("-" in name for name in names) and mark_entities(names):
        raise UserError(
            f"{where} has labels such as {names[0]!r}, which look like tags of words; write each sentence as a row of "
            "two lists, or the file as CoNLL, and say --kind token (or --kind single-label, if each is a class)"
        )
    if len(names) < 2:
        raise UserError(f"{where} has one label only ({names[0]!r}); two or more are needed")
    whole = not words and all(float(name).is_integer() for name in names)
    if kind == "regression" or (kind is None and not words and not whole):
        return Labels((), "regression", "one", rows, missing, "scores (regression)")
    if kind is None and len(names) > max(2, (rows - missing) // 2):
        scores = "" if words else "; if the labels are scores, say --kind regression"
        if 0 < len(words) <= len(names) // 5:
            scores = f"; if the labels are scores, {words[0]!r} is no number"
        raise UserError(
            f"{where} has {len(names)} different labels in {rows - missing} rows; if each is a class, say --kind "
            f"single-label; if another column is the label, name it with --label-column{scores}"
        )
    _refuse_alike(names, where)
    told = f"{len(names)} classes ({_shown(names)})"
    told += "; if these numbers are scores, say --kind regression" * (whole and len(names) > 2)
    told += f"; if {NO_LABEL} says that there is no label, leave these cells empty" * (whole and NO_LABEL in names)
    return Labels(tuple(names), "single_label", "one", rows, missing, told)


def _refuse_alike(names: Sequence[str], where: str) -> None:
    if same := alike(names):
        raise UserError(f"{where} has the labels {same[0]!r} and {same[1]!r}, which count as one; write them alike")


def _shown(names: Sequence[str]) -> str:
    return f"{', '.join(map(clear, names[:8]))}{', …' * (len(names) > 8)}"
