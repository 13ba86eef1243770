"""Training rows without a label: of a file of texts, and those whose labels are hidden."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from kdbert.data.examples import Examples, RawExample, examples_of, some_lack
from kdbert.data.files import log_once
from kdbert.data.hub_data import local_data
from kdbert.errors import UserError
from kdbert.tasks.own.dev_part import Row, taken
from kdbert.tasks.spec import TaskSpec
from kdbert.tasks.texts import CURE, is_empty, records_of, text_rows

ID = "unlabelled-"  # how the name of a row of such a file begins; its number follows


def unlabelled_examples(given: str, spec: TaskSpec, named: Sequence[str] | None) -> Examples:
    """The texts of a file as training rows of a task, none of which has a label.

    Texts that are empty or missing are left out.

    Args:
        given: a path (`records_of`), or a dataset of the Hub.
        named: the columns of the texts; of own data they are those of the training file.

    Raises:
        UserError: no file, no texts, texts of another form than the task's.
    """
    path = local_data(given)
    cure = CURE
    if spec.own is not None:
        cure = f"call {'both texts' if spec.pair else 'the text'} as in the training file"
    empty = 0

    def rows() -> Iterator[RawExample]:
        nonlocal empty
        records = ((place, {k: "" if v is None else v for k, v in one.items()}) for place, one in records_of(path))
        first = next(records, None)
        there = {} if first is None else first[1]
        # Columns that are called otherwise than in the training file may have a name that everybody knows.
        known = spec.own is not None and len(there) > 1 and not set(spec.own.text) <= set(there)
        form, names = (replace(spec, own=None), None) if known else (spec, named if spec.own is None else None)
        for row, _ in text_rows(chain([first] if first else [], records), str(path), form, names, cure):
            if is_empty(row):
                empty += 1
            else:
                yield row._replace(id=f"{ID}{row.id}")

    kept = rows()
    first = next(kept, None)
    if first is None:
        raise UserError(f"{path} has no texts: all {empty} are empty")
    found = examples_of(chain([first], kept), path=path, split="unlabelled", read_label=None)
    if empty:
        log_once(f"{path}: {empty} empty texts are left out", logging.WARNING)
    return without_labels(found, spec)


def without_labels(part: Examples, spec: TaskSpec) -> Examples:
    """The same texts as training rows of which none has a label."""
    head = spec.head
    rows: Sequence[Sequence[str] | None] = part.words or [None] * len(part)
    labels: list[Any] = [value for words in rows for value in head.no_label(words)]
    return replace(part, labels=np.array(labels, dtype=head.label_type), labelled=np.zeros(len(part), dtype=bool))


def hide_labels(part: Examples, spec: TaskSpec, share: float, seed: int) -> Examples:
    """The same training rows; of the labels only this share is left, of each label alike.

    Which ones is decided as for a dev split, by `seed` (`kdbert.tasks.own.dev_part`); so of a label that few rows have
    none may be left.

    Raises:
        UserError: so few rows that each would lose its label.
    """
    assert part.labels is not None
    there = np.ones(len(part), dtype=bool) if part.labelled is None else part.labelled
    if share == 1 or not there.any():
        return part
    kept = np.zeros(len(part), dtype=bool)
    if share:
        kept[there] = taken(_rows(part.with_label, spec), share, seed, last=True)
        if not kept.any():
            raise UserError(f"task.labelled_share={share:g}: of {there.sum()} labels that leaves none; give more, or 0")
    labels = part.labels.copy()
    labels[part.of_labels(~kept)] = 0
    return replace(part, labels=labels, labelled=some_lack(kept))


def _rows(part: Examples, spec: TaskSpec) -> Iterator[Row]:
    assert part.labels is not None
    seconds = [""] * len(part) if part.text_b is None else part.text_b
    for first, second, place in zip(part.text_a, seconds, spec.head.places(part), strict=True):
        label = spec.head.written(part.labels[place])
        yield Row("\0".join(filter(None, (first, second))), tuple(label) if isinstance(label, list) else label)
