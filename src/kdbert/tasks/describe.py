"""What to know of a task's data before training on it: labels, lengths, empty texts, duplicates, leakage.

Texts are shown only where examples are asked for. Of a split that was read, 24 bytes a row are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from kdbert.data.encode import encode
from kdbert.data.examples import Examples
from kdbert.data.labels import clear
from kdbert.metrics.grouped import OUTSIDE, entity_counts, mark_entities
from kdbert.tasks.origins import missing_files
from kdbert.tasks.spec import TaskSpec

SHOWN = 12  # classes that are told
IDS = 5  # of rows that repeat others
_AT_A_TIME = 10_000  # rows whose tokens are in RAM
_NO_LABEL = 0  # in place of a label's digest
_WHOLE = 1_000_000  # tokens: nothing is longer


class Rows(NamedTuple):
    """What a split's rows are known by: digests, uint64 [N]. `plain` is of texts case-folded and with single spaces."""

    exact: np.ndarray
    plain: np.ndarray
    labels: np.ndarray | None


class Repeats(NamedTuple):
    """How many rows have the texts of an earlier one, and of these another label than the first that has them."""

    rows: int
    relabelled: int | None  # None where there are no labels


def described(
    spec: TaskSpec, data_dir: str | None, tokenizer: Any, unit: str, limit: int, examples: int
) -> Iterator[str]:
    """A task and its splits, line by line.

    Args:
        tokenizer: what counts lengths, and `unit` what it counts; None: words.
        limit: tokens beyond which a row is cut.
        examples: how many rows of each split are shown.
    """
    yield f"{spec.name}: {spec.title}"
    yield f"kind: {spec.kind}, {spec.head.answers}"
    yield f"metrics: {', '.join(spec.metrics)} (selection by {spec.metrics[0]})"
    if "f1" in spec.metrics:
        yield f"f1: of class {spec.labels[1]}"
    yield f"length: {spec.max_length} tokens"
    if spec.own is None:
        yield f"source: {spec.source}"
        yield f"licence: {spec.licence}"
    else:
        yield f"columns: text from {' + '.join(spec.own.text)}; label from {', '.join(spec.own.label)}" + (
            f"; not read: {', '.join(spec.own.unread)}" if spec.own.unread else ""
        )
    if spec.folder:
        yield from (f"not fetched: {wanted}" for wanted in missing_files(spec, data_dir) if wanted.by_hand)
    if spec.warning:
        yield f"warning: {spec.warning}"
    before: dict[str, Rows] = {}
    occurs: dict[str, np.ndarray] = {}  # split -> bool [C]
    for split in spec.splits:
        path = spec.path(split, data_dir)
        if path is None:
            yield f"{split}: {looked_for(spec, split, data_dir)}"
            continue
        part = spec.load(split, data_dir)
        share = ""
        if spec.own is not None and spec.own.dev_share is not None and split == "dev":
            share = f" (--dev-share {spec.own.dev_share:g}, seed {spec.own.dev_seed}; equal texts stay together)"
        yield f"{split}: {len(part)} rows in {path}{share}"
        if (counts := class_counts(spec, part)) is not None:
            occurs[split] = counts > 0
        if part.labelled is not None:
            yield f"  no label: {_share(int((~part.labelled).sum()), len(part))}"
        yield from _labels(spec, part.with_label, counts)
        yield f"  {_lengths(part, tokenizer, unit, limit)}"
        yield f"  empty texts: {_share(sum(not all(map(str.strip, row)) for row in _texts(part)), len(part))}"
        rows = rows_of(spec, part)
        yield f"  duplicates: {_repeats(part, rows)}"
        for name, its in before.items():
            yield f"  also in {name}: {_repeats(part, rows, its)}"
        before[split] = rows
        for number in range(min(examples, len(part))):
            yield f"  {_example(spec, part, number)}"
        del part  # before the next is read
    yield from _missing(spec.labels, occurs)


def looked_for(spec: TaskSpec, split: str, data_dir: str | None) -> str:
    """Which file of a split is not there, and where it was looked for."""
    root = spec.root(data_dir)
    folders = [str(root / spec.folder), str(root)]
    return f"no file {spec.splits[split].files[0]} (plain or .gz) in {' or '.join(dict.fromkeys(folders))}"


def _texts(part: Examples) -> Iterator[tuple[str, ...]]:
    """The one or two texts of each row."""
    return zip(part.text_a, strict=True) if part.text_b is None else zip(part.text_a, part.text_b, strict=True)


def _share(count: int, total: int, what: str = "row") -> str:
    """`3 rows (0.6 %)`, or `none`."""
    share = 100 * count / total
    percent = f"{share:.1f}" if share >= 0.05 else "under 0.1"
    return f"{count} {what}{'s' * (count != 1)} ({percent} %)" if count else "none"


# ---- labels


def class_counts(spec: TaskSpec, part: Examples) -> np.ndarray | None:
    """How many rows (or words) have each class, int64 [C]; None of scores, and of a split without labels."""
    if part.labels is None or not spec.labels:
        return None
    part = part.with_label
    assert part.labels is not None
    sets = part.labels.ndim == 2
    counts: np.ndarray = part.labels.sum(0) if sets else np.bincount(part.labels, minlength=len(spec.labels))
    return counts


def _labels(spec: TaskSpec, part: Examples, counts: np.ndarray | None) -> Iterator[str]:
    labels = part.labels
    if labels is None:
        yield "  no labels"
        return
    if counts is None:
        told = f"{labels.min():.4g} to {labels.max():.4g}, mean {labels.mean(dtype=np.float64):.3f}"
        yield f"  scores: {told}, {len(np.unique(labels))} distinct values"
        return
    commonest = int(counts.argmax())
    every = range(len(counts)) if len(counts) <= SHOWN else np.argsort(-counts, kind="stable")[:SHOWN]
    told = ", ".join(f"{clear(spec.labels[number])} {counts[number]}" for number in every)
    if len(counts) > SHOWN:
        fewest, most = counts.min(), counts.max()
        told += f", … ({len(counts)} classes, {most if most == fewest else f'{fewest} to {most}'} each)"
    told += f"; commonest {clear(spec.labels[commonest])} ({100 * counts[commonest] / len(labels):.1f} %)"
    yield f"  {'tags' if spec.head.of_words else 'labels'}: {told}"
    if labels.ndim == 2:
        sizes = labels.sum(1)
        none, one = int((sizes == 0).sum()), int((sizes == 1).sum())
        told = f"none {none}, one {one}, more {len(sizes) - none - one}; mean {sizes.mean():.2f}, most {sizes.max()}"
        yield f"  classes of a row: {told}"
    if spec.document is not None:
        yield f"  documents: {len({spec.document(name) for name in part.ids})}"
    if spec.head.of_words:
        found = entities(spec, part)
        yield f"  words: {len(labels)}" + ("" if found is None else f"; entities: {_kinds(found)}")


def entities(spec: TaskSpec, part: Examples) -> dict[str, np.ndarray] | None:
    """Kind -> how many entities of it each sentence has, int64 [N]; None if the tags do not mark entities."""
    tags, groups = spec.labels, spec.label_groups(part.ids, part.words)
    # Where nothing continues an entity (EBM PICO), each word is a case of its own.
    if part.labels is None or groups is None or not mark_entities(tags) or not any(name[0] in "IEL" for name in tags):
        return None
    found = {}
    for kind in sorted({name.partition("-")[2] for name in tags if name != OUTSIDE}):
        only = [name if name.partition("-")[2] == kind else OUTSIDE for name in tags]
        found[kind] = entity_counts(part.labels, part.labels, groups, only)[:, 2]
    return found


def _kinds(found: Mapping[str, np.ndarray]) -> str:
    each = np.sum(list(found.values()), axis=0)
    kinds = ", ".join(f"{kind} {counts.sum()}" for kind, counts in found.items() if kind)
    told = f"{each.sum()} ({kinds})" if kinds else str(each.sum())
    return f"{told}; without any: {_share(int((each == 0).sum()), len(each), 'sentence')}"


def _missing(classes: Sequence[str], occurs: Mapping[str, np.ndarray]) -> Iterator[str]:
    """The classes that occur in one split and not in another."""
    some = [
        f"{clear(name)} (only in {', '.join(split for split, there in occurs.items() if there[number])})"
        for number, name in enumerate(classes)
        if len({bool(there[number]) for there in occurs.values()}) == 2
    ]
    if some:
        more = f", … ({len(some)} labels)" if len(some) > SHOWN else ""
        yield f"labels not in every split: {', '.join(some[:SHOWN])}{more}"


# ---- lengths


def _lengths(part: Examples, tokenizer: Any, unit: str, limit: int) -> str:
    """Percentiles of the lengths, and what is cut; in words if there is no tokenizer."""
    found, cut = lengths(part, tokenizer, limit)
    middle, most, nearly = np.percentile(found, [50, 90, 99])
    told = f"{unit}: median {middle:.0f}, 90 % up to {most:.0f}, 99 % up to {nearly:.0f}, longest {found.max()}"
    if tokenizer is None:
        return told
    told += f"; longer than {limit}: {_share(int((found > limit).sum()), len(found))}"
    return told + (f"; cut off: {_share(cut, int(part.word_offsets[-1]), 'word')}" if part.words else "")


def lengths(part: Examples, tokenizer: Any, limit: int) -> tuple[np.ndarray, int]:
    """The length of each row, int64 [N], special tokens included; and how many tagged words are beyond `limit` tokens.

    Without a tokenizer lengths are in words.
    """
    if tokenizer is None:
        return np.array([sum(len(text.split()) for text in row) for row in _texts(part)]), 0
    found, cut = [], 0
    for start in range(0, len(part), _AT_A_TIME):
        stop = start + _AT_A_TIME
        some = replace(
            part,
            ids=part.ids[start:stop],
            text_a=part.text_a[start:stop],
            text_b=None if part.text_b is None else part.text_b[start:stop],
            labels=None,
            labelled=None,
            words=None if part.words is None else part.words[start:stop],
        )
        whole = encode(some, tokenizer, _WHOLE)
        found.append(whole.lengths)
        if whole.word_tokens is not None and whole.lengths.max() > limit:
            kept = encode(some, tokenizer, limit).word_tokens
            assert kept is not None
            cut += int(((whole.word_tokens >= 0) & (kept < 0)).sum())
    return np.concatenate(found), cut


# ---- duplicates


def rows_of(spec: TaskSpec, part: Examples) -> Rows:
    """What the rows of a split are known by."""
    exact, plain = np.empty((2, len(part)), dtype=np.uint64)
    for number, texts in enumerate(_texts(part)):
        exact[number] = _digest(*(text.encode() for text in texts))
        plain[number] = plain_digest(*texts)
    labels = part.labels
    if labels is not None:
        places = spec.head.places(part)
        labels = np.fromiter((_digest(labels[place].tobytes()) for place in places), np.uint64, len(part))
        if part.labelled is not None:
            labels[~part.labelled] = _NO_LABEL
    return Rows(exact, plain, labels)


def plain_digest(*texts: str) -> int:
    """What texts are known by, case and white space aside."""
    return _digest(*(" ".join(text.casefold().split()).encode() for text in texts))


def _digest(*parts: bytes) -> int:
    """8 bytes: that any two of a million rows have the same by chance has a probability of 3e-8."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(digest.digest(), "little")


def repeated(
    rows: np.ndarray, labels: np.ndarray | None, before: tuple[np.ndarray, np.ndarray | None] | None = None
) -> tuple[np.ndarray, Repeats]:
    """Which rows (bool [N]) have the texts of an earlier one, or of one of the split `before` (rows, labels)."""
    others, their_labels = before or (rows, labels)
    known, first = np.unique(others, return_index=True)
    place = np.minimum(np.searchsorted(known, rows), len(known) - 1)
    found, first = known[place] == rows, first[place]
    if before is None:
        found &= first != np.arange(len(rows))
    if labels is None or their_labels is None:
        return found, Repeats(int(found.sum()), None)
    both = (labels != _NO_LABEL) & (their_labels[first] != _NO_LABEL)
    return found, Repeats(int(found.sum()), int((found & both & (labels != their_labels[first])).sum()))


def _repeats(part: Examples, rows: Rows, before: Rows | None = None) -> str:
    """The repeated rows, those with another label, and the ids of the first."""
    _, exact = repeated(rows.exact, rows.labels, before and (before.exact, before.labels))
    which, plain = repeated(rows.plain, rows.labels, before and (before.plain, before.labels))
    if not plain.rows:
        return "none"
    told = _told(exact, len(part))
    if plain != exact:
        told += f"; case and white space aside {_told(plain, len(part))}"
    ids = [part.ids[number] for number in np.flatnonzero(which)[: IDS + 1].tolist()]
    return f"{told}; id {', '.join(ids[:IDS])}{', …' * (len(ids) > IDS)}"


def _told(some: Repeats, total: int) -> str:
    another = f", {some.relabelled or 'none'} with another label" if some.rows and some.relabelled is not None else ""
    return _share(some.rows, total) + another


# ---- examples


def _example(spec: TaskSpec, part: Examples, number: int) -> str:
    """One example on one line."""
    words = None if part.words is None else list(part.words[number])
    shown: dict[str, object] = {"text": part.text_a[number]} if words is None else {"words": words}
    if part.text_b is not None:
        shown["text_b"] = part.text_b[number]
    if part.labels is not None and (part.labelled is None or part.labelled[number]):
        shown["label"] = spec.head.written(part.labels[spec.head.places(part)[number]])
    return json.dumps(shown, ensure_ascii=False)
