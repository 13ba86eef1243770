"""Examples as they are in a file, and the examples of a split in RAM, with their labels as an array."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, compress, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdbert.errors import UserError


class RawExample(NamedTuple):
    """One example as it is in a file. `place` is where, for messages ("line 12").

    `label` is a class name, a score as written, the names of several classes, or the tag of each of `words`.
    """

    id: str
    text_a: str
    text_b: str | None
    label: str | tuple[str, ...] | None
    place: str
    words: tuple[str, ...] | None = None


class PackedStrings(Sequence[str]):
    """Many strings in one block of RAM: 8 bytes more than their UTF-8 for each, where an object takes 50 more."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Add a string."""
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = range(len(self))[place]
        return self._bytes[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        """Whether the other sequence has the same strings."""
        if isinstance(other, str) or not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == its for one, its in zip(self, other, strict=True))


@dataclass(frozen=True)
class Examples:
    """A split in RAM.

    Attributes:
        split: its name, such as `dev_matched`.
        ids: one name per example, used in prediction files.
        text_a, text_b: the sentences; `text_b` is None for single-sentence tasks.
        labels: int64 [N] class numbers, bool [N, C] sets of classes, float32 [N] scores, int64 [words] tags of all
            words in order; None for a split without labels.
        words: the words of each example, where each has a tag.
        labelled: bool [N], which examples of a training split have a label; `labels` is 0 for the others, which means
            nothing. None: all have one (or none, where `labels` is None).
    """

    split: str
    ids: Sequence[str]
    text_a: Sequence[str]
    text_b: Sequence[str] | None
    labels: np.ndarray | None
    words: list[tuple[str, ...]] | None = None
    labelled: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def word_offsets(self) -> np.ndarray:
        """int64 [N + 1]; the words of example i are `word_offsets[i]:word_offsets[i + 1]`."""
        return np.concatenate([[0], np.cumsum([len(words) for words in self.words or ()], dtype=np.int64)])

    def texts(self, number: int) -> tuple[str, ...]:
        """The one or two texts of an example."""
        first = self.text_a[number]
        return (first,) if self.text_b is None else (first, self.text_b[number])

    def first(self, count: int | None) -> Examples:
        """The first `count` examples in file order (all of them for None)."""
        if count is None or count >= len(self):
            return self
        rows = count if self.words is None else int(self.word_offsets[count])
        return replace(
            self,
            ids=PackedStrings(islice(self.ids, count)),
            text_a=PackedStrings(islice(self.text_a, count)),
            text_b=None if self.text_b is None else PackedStrings(islice(self.text_b, count)),
            labels=None if self.labels is None else self.labels[:rows],
            words=None if self.words is None else self.words[:count],
            labelled=None if self.labelled is None else some_lack(self.labelled[:count]),
        )

    @property
    def with_label(self) -> Examples:
        """The examples that have a label."""
        if self.labelled is None:
            return self
        assert self.labels is not None
        kept = self.labelled
        return replace(
            self,
            ids=PackedStrings(compress(self.ids, kept)),
            text_a=PackedStrings(compress(self.text_a, kept)),
            text_b=None if self.text_b is None else PackedStrings(compress(self.text_b, kept)),
            labels=self.labels[self.of_labels(kept)],
            words=None if self.words is None else [*compress(self.words, kept)],
            labelled=None,
        )

    def of_labels(self, chosen: np.ndarray) -> np.ndarray:
        """bool, for each label whether its example is one of `chosen`, bool [N]: the same but where words have tags."""
        return chosen if self.words is None else np.repeat(chosen, np.diff(self.word_offsets))

    def followed_by(self, others: Examples) -> Examples:
        """These examples and then others of the same task."""
        assert self.labels is not None
        assert others.labels is not None
        both = [np.ones(len(one), dtype=bool) if one.labelled is None else one.labelled for one in (self, others)]
        pair = self.text_b is not None and others.text_b is not None
        return replace(
            self,
            ids=PackedStrings(chain(self.ids, others.ids)),
            text_a=PackedStrings(chain(self.text_a, others.text_a)),
            text_b=PackedStrings(chain(self.text_b or (), others.text_b or ())) if pair else None,
            labels=np.concatenate([self.labels, others.labels]),
            words=None if self.words is None else [*self.words, *(others.words or ())],
            labelled=some_lack(np.concatenate(both)),
        )

    def fingerprint(self) -> str:
        """16 hex digits that change when any text or label does."""
        digest = hashlib.sha256()
        texts = [self.text_a, self.text_b or [], *(self.words or [])]
        for part in texts:
            for text in part:
                digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
            digest.update(b"\1")
        for values in (self.labels, self.labelled):
            if values is not None:
                digest.update(values.tobytes())
        return digest.hexdigest()[:16]


def some_lack(labelled: np.ndarray) -> np.ndarray | None:
    """Which examples have a label, bool [N], as `Examples.labelled` has it: None if all do."""
    return None if labelled.all() else labelled


def examples_of(
    rows: Iterable[RawExample],
    *,
    path: Path,
    split: str,
    read_label: Callable[[str | tuple[str, ...], Sequence[str] | None, str], list[Any]] | None,
    label_type: type[np.generic] = np.int64,
    no_label: Callable[[Sequence[str] | None], list[Any]] | None = None,
) -> Examples:
    """Turn rows into examples, checking every label.

    Args:
        read_label: `Head.read_label`. None: the split has no labels.
        label_type: type of the labels in an array.
        no_label: `Head.no_label`, if a row may lack a label (None: each must have one).
    """
    ids, text_a, text_b = PackedStrings(), PackedStrings(), PackedStrings()
    words: list[tuple[str, ...]] = []
    labels: list[Any] = []
    labelled = array("b")
    pair = False
    for row in rows:
        for text in (row.text_a, row.text_b, *(row.words or ())):
            try:
                (text or "").encode("utf-8")
            except UnicodeEncodeError:  # half of a surrogate pair, which JSON can express
                raise UserError(f"{path}, {row.place}: the text has half a character (a lone surrogate)") from None
        ids.append(row.id)
        text_a.append(row.text_a)
        if row.text_b is not None:
            pair = True
            text_b.append(row.text_b)
        if row.words is not None:
            words.append(row.words)
        if read_label is not None:
            where = f"{path}, {row.place}"
            missing = row.label is None or row.label == ""
            if row.label is not None and not missing:
                labels.extend(read_label(row.label, row.words, where))
            elif no_label is not None:
                labels.extend(no_label(row.words))
            else:
                raise UserError(f"{where}: the label is missing")
            labelled.append(not missing)
    if not ids:
        raise UserError(f"{path} has no examples (only a header?)")
    if read_label is None:
        return Examples(split, ids, text_a, text_b if pair else None, None, words or None)
    values, mask = np.array(labels, dtype=label_type), some_lack(np.array(labelled, dtype=bool))
    return Examples(split, ids, text_a, text_b if pair else None, values, words or None, mask)
