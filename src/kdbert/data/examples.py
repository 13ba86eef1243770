"""Rows of a data set, and the examples made of them once their labels are known."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdbert.errors import UserError, near_miss


class Row(NamedTuple):
    """One example as it stands in a file. `place` is where, for messages ("line 12")."""

    id: str
    text_a: str
    text_b: str | None
    label: str | None
    place: str


@dataclass(frozen=True)
class Examples:
    """A split in memory.

    Attributes:
        split: its name, such as `dev_matched`.
        ids: one name per example, used in prediction files.
        text_a, text_b: the sentences; `text_b` is None for single-sentence tasks.
        labels: int64 class numbers, float32 scores, or None for an unlabelled split.
    """

    split: str
    ids: list[str]
    text_a: list[str]
    text_b: list[str] | None
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)

    def head(self, count: int | None) -> Examples:
        """The first `count` examples in file order (all of them for None)."""
        if count is None or count >= len(self):
            return self
        text_b = None if self.text_b is None else self.text_b[:count]
        labels = None if self.labels is None else self.labels[:count]
        return Examples(self.split, self.ids[:count], self.text_a[:count], text_b, labels)

    def fingerprint(self) -> str:
        """16 hex digits that change when any text or label does."""
        digest = hashlib.sha256()
        for part in (self.text_a, self.text_b or []):
            for text in part:
                digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
            digest.update(b"\1")
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()[:16]


def examples_of(
    rows: Iterable[Row], *, path: Path, split: str, label_names: Sequence[str] | None, labelled: bool
) -> Examples:
    """Turn rows into examples, checking every label against the label space.

    Args:
        label_names: the classes in order; None for regression, whose labels are finite numbers.
        labelled: whether the split carries labels; if it does, each row must have one.

    Raises:
        UserError: no rows, a missing label, a label outside the label space, a score that is no
            number; each with the file and line.
    """
    ids: list[str] = []
    text_a: list[str] = []
    text_b: list[str] = []
    labels: list[float] = []
    index = {name: number for number, name in enumerate(label_names or ())}
    pair = False
    for row in rows:
        ids.append(row.id)
        text_a.append(row.text_a)
        if row.text_b is not None:
            pair = True
            text_b.append(row.text_b)
        if labelled:
            labels.append(_label_value(row, index if label_names is not None else None, path))
    if not ids:
        raise UserError(f"{path} has no examples (only a header?)")
    values = None
    if labelled:
        values = np.array(labels, dtype=np.int64 if label_names is not None else np.float32)
    return Examples(split, ids, text_a, text_b if pair else None, values)


def _label_value(row: Row, index: dict[str, int] | None, path: Path) -> float:
    where = f"{path}, {row.place}"
    if row.label is None or row.label == "":
        raise UserError(f"{where}: the label is missing")
    if index is not None:
        if row.label not in index:
            known = ", ".join(list(index)[:8]) + (", …" if len(index) > 8 else "")
            raise UserError(
                f"{where}: label {row.label!r} is not one of the task's labels ({known}){near_miss(row.label, index)}"
            )
        return index[row.label]
    try:
        value = float(row.label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: score {row.label!r} is not a finite number")
    return value
