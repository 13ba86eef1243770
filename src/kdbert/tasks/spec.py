"""What a task is: columns, label space, metrics, files. A task is data; its family's reader is code."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdbert.data.corpus import TextSplit
from kdbert.data.examples import Examples, RawExample, examples_of
from kdbert.data.files import find_file, text_digest
from kdbert.errors import UserError
from kdbert.metrics import chosen
from kdbert.metrics.grouped import mark_entities

if TYPE_CHECKING:
    from kdbert.heads import Head

DATA_DIR = "KDBERT_DATA_DIR"  # the environment variable beside --data-dir


@dataclass(frozen=True)
class Split:
    """One split: the file names it may have inside the task's folder, and how to read one of them.

    `place` is the file or folder if a person has named it; then it is not searched for. `beside` are names of further
    files in the same folder that are read with it. `tenths`: the split is these tenths (0 to 9) of a file, for a data
    set without such a split; the tenth of a row is a hash of its id.
    """

    files: tuple[str, ...]
    read: Callable[[Path], Iterator[RawExample]]
    labelled: bool = True
    place: Path | None = None
    beside: tuple[str, ...] = ()
    tenths: frozenset[int] = frozenset()

    def rows(self, path: Path) -> Iterator[RawExample]:
        """The rows of this split in its file `path`."""
        for row in self.read(path):
            if not self.tenths or int(hashlib.sha256(row.id.encode()).hexdigest()[:8], 16) % 10 in self.tenths:
                yield row


LabelForm = Literal["one", "list", "marks", "separated", "columns", "tags"]


@dataclass(frozen=True)
class Own:
    """What is read of a person's own files.

    Attributes:
        text: one or two text columns; of tagged words the column of the words.
        label: the label's column; of form `columns` several.
        form: how a label is written: `one` class or score, a `list` of classes, a list of `marks` (0 or 1 for each
            class), classes in a text, `separated` by `separator`, `columns` of marks, a list of `tags`.
        dev_share: the dev split is this part of the training file; `dev_seed` decides which rows.
        split_names: split -> its name in a saved dataset, where a person named them.
        digests: of a finished run's task, split -> digest of its file.
        unread: the other columns of the training file.
    """

    text: tuple[str, ...]
    label: tuple[str, ...]
    form: LabelForm = "one"
    separator: str | None = None
    dev_share: float | None = None
    dev_seed: int = 1
    split_names: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def trained_on(self) -> tuple[object, ...]:
        """What says which rows of the training file are trained on; () for all of an only split."""
        name, part = self.split_names.get("train"), (self.dev_share, self.dev_seed)
        return (name, part) if name is not None or self.dev_share is not None else ()

    def scored_on(self, split: str) -> tuple[object, ...]:
        """Equal for two runs that are scored on the same examples of a split."""
        part = (self.dev_share, self.dev_seed) if split == "dev" and self.dev_share is not None else None
        return (
            self.text,
            self.label,
            self.form,
            self.separator,
            part,
            self.split_names.get(split),
            self.digests.get(split),
        )


def counts(train: int, dev: int, test: int) -> dict[str, int]:
    """Published numbers of examples; 0 for a split that is not published."""
    return {split: rows for split, rows in (("train", train), ("dev", dev), ("test", test)) if rows}


@dataclass(frozen=True)
class TaskSpec:
    """A registered task.

    Attributes:
        kind: `single_label` (one of `labels`), `multi_label` (any of them), `token` (one for each word),
            `regression` (one score), `masked_lm` or `encoder` (plain text); see `head`.
        splits: split name -> where and how to read it.
        labels: class names in order; empty for regression. Tags of words are `O`, `B`, `I`, or the like of `B-DISEASE`.
        aliases: other names that a model may use for a class (`{"1": ("positive",)}`), so that a published teacher's
            labels are matched by name.
        metrics: names in `kdbert.metrics.TABLE`; the first is the one used for selection.
        groups: the splits that `--split dev` or `--split test` means, if it means several.
        folder: the folder's name below `--data-dir`.
        data_dir: where files are looked for if neither `--data-dir` nor KDBERT_DATA_DIR names a folder.
        defaults: recipe keys that this task sets unless the person does.
        submission: split -> file name of the benchmark's upload format.
        rows: published number of examples of each split.
        document: id of an example -> name of its document, for metrics of documents.
        warning: what a person should know before seeing examples.
        own: what is read of a person's own files.
    """

    name: str
    title: str
    kind: str
    splits: Mapping[str, Split]
    metrics: tuple[str, ...]
    labels: tuple[str, ...] = ()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pair: bool = False
    folder: str = ""
    data_dir: str = "data"
    max_length: int = 128
    defaults: Mapping[str, Any] = field(default_factory=dict)
    submission: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    licence: str = ""
    source: str = ""
    document: Callable[[str], str] | None = None
    warning: str = ""
    own: Own | None = None

    @cached_property
    def head(self) -> Head:
        """What such a task means: losses, answers, scores."""
        from kdbert.heads import head_of  # here, because it imports torch, which a list of tasks does not need

        return head_of(self.kind, self.labels)

    def measured_by(self, names: Sequence[str] | None) -> TaskSpec:
        """The task with these metrics in place of its own (None: with its own); one that does not fit is refused."""
        if names is None:
            return self
        if self.head.plain_text:
            raise UserError("--metrics does not apply to plain text (task 'corpus'), which has metrics of its own")
        groups = ["document"] * (self.document is not None) + ["entity"] * mark_entities(self.labels)
        found = chosen(names, self.name, self.head.takes, self.kind, len(self.labels), groups)
        return replace(self, metrics=found)

    def split_names(self, group: str) -> tuple[str, ...]:
        """The splits that `dev`, `test` or the name of a split means."""
        if group in self.groups:
            return self.groups[group]
        if group in self.splits:
            return (group,)
        known = ", ".join(sorted({*self.splits, *self.groups}))
        raise UserError(f"task {self.name!r} has no split {group!r}; it has: {known}")

    def root(self, data_dir: str | None) -> Path:
        """Where its files are looked for: the folder named, else that of KDBERT_DATA_DIR, else its own default."""
        return Path(data_dir or os.environ.get(DATA_DIR) or self.data_dir)

    def path(self, split: str, data_dir: str | None) -> Path | None:
        """The local file of a split, or None; `data_dir` may be the task's folder or its parent."""
        if self.splits[split].place is not None:
            return self.splits[split].place
        root = self.root(data_dir)
        for folder in (root / self.folder, root) if self.folder else (root,):
            found = find_file(folder, self.splits[split].files)
            if found is not None:
                return found
        return None

    def files(self, split: str, data_dir: str | None) -> list[Path]:
        """The local files of a split: its own, and those that are read with it, as far as they exist."""
        path = self.path(split, data_dir)
        if path is None:
            return []
        others = [find_file(path.parent, (name,)) for name in self.splits[split].beside]
        return [path, *(other for other in others if other is not None)]

    def digest(self, split: str, data_dir: str | None) -> str:
        """A digest of the content of a split's files; "" if they are missing."""
        return "+".join(map(text_digest, self.files(split, data_dir)))

    def load(self, split: str, data_dir: str | None) -> Examples:
        """Read one split from local files; a fault in a file is refused with its line."""
        if split not in self.splits:
            raise UserError(f"task {self.name!r} has no {split} split (it has: {', '.join(self.splits)})")
        path = self.path(split, data_dir)
        if path is None:
            root = self.root(data_dir)
            raise UserError(
                f"task {self.name!r}: no file {self.splits[split].files[0]!r} (plain or .gz) in "
                f"{str(root / self.folder)!r} or {str(root)!r}; put the files there or name their folder with "
                f"--data-dir or {DATA_DIR} (`kdbert data describe " + self.name + "` says where they come from)"
            )
        source = self.splits[split]
        read = self.head.read_label if source.labelled else None
        return examples_of(
            source.rows(path), path=path, split=split, read_label=read, label_type=self.head.label_type,
            no_label=self.head.no_label if self.own is not None and split == "train" else None,
        )  # fmt: skip

    def score(self, logits: np.ndarray, part: Examples | TextSplit) -> dict[str, float]:
        """The task's metrics of a split that has labels (or of plain text), from logits of `Head.label_logits`."""
        groups = self.label_groups(part.ids, part.words)
        return self.head.scores(self.metrics, self.head.predicted(logits), part.labels, groups, logits)

    def constant_answer(self, part: Examples | TextSplit) -> dict[str, float] | None:
        """What the best constant answer reaches on a split; None of a split without labels."""
        return self.head.constant_answer(self.metrics, part.labels, self.label_groups(part.ids, part.words))

    def label_groups(self, ids: Sequence[str], words: Sequence[Sized] | None) -> np.ndarray | None:
        """What a metric counts together: int64, for each label the number of its document or sentence.

        None where each example counts for itself. `words` are those of each example, where words have labels.
        """
        if words is not None:
            return np.repeat(np.arange(len(words)), [len(some) for some in words])
        if self.document is None:
            return None
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(self.document(name), len(numbers)) for name in ids])
