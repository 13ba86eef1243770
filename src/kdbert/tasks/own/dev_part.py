"""A dev split taken from the training file: a share of every kind of label, decided by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from kdbert.errors import UserError


class Row(NamedTuple):
    """A row of the training file: its text(s), and its label as a class, some classes or tags, or a score."""

    text: str
    label: str | float | tuple[str, ...]


def dev_rows(rows: Iterable[Row], share: float, seed: int, where: str) -> np.ndarray:
    """bool [N]: the rows that are the dev split, see `taken`.

    Raises:
        UserError: no row would be chosen.
    """
    found = taken(rows, share, seed)
    if not found.any() or found.all():
        raise UserError(
            f"{where}: {len(found)} rows with a label, equal texts together, are too few for --dev-share {share:g}"
        )
    return found


def taken(rows: Iterable[Row], share: float, seed: int, last: bool = False) -> np.ndarray:
    """bool [N]: a share of the rows.

    Rows are sorted by label (a score by its value, classes or tags as a set), those of one label by a hash of seed and
    text; then every 1/share-th is taken, so that each label has its share. Rows with the same text stay together, and
    the only text of a label is not taken unless `last`. So the choice depends on content and seed, not on the order of
    rows.
    """
    digests: list[int] = []
    numbers: list[int] = []
    scores: list[float] = []
    keys: dict[str, int] = {}  # label -> its number
    key = str(seed).encode()
    for row in rows:
        digest = hashlib.blake2b(row.text.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
        digests.append(int.from_bytes(digest, "big"))
        if isinstance(row.label, float):
            scores.append(row.label)
            continue
        label = row.label if isinstance(row.label, str) else "\0".join(sorted(set(row.label)))
        numbers.append(keys.setdefault(label, len(keys)))
    _, first, group = np.unique(np.array(digests, dtype=np.uint64), return_index=True, return_inverse=True)
    if scores:
        order = np.argsort(np.array(scores)[first], kind="stable")  # the groups are in the order of their hashes
    else:
        rank = np.argsort(np.argsort(np.array(list(keys))))  # by name, not by first occurrence
        kind = rank[np.array(numbers)][first]
        order = np.argsort(kind, kind="stable")
        order = order if last else order[np.bincount(kind)[kind[order]] > 1]
    start = int.from_bytes(hashlib.blake2b(b"start", digest_size=4, key=key).digest(), "big") / 2**32
    place = np.floor(np.arange(len(order) + 1) * share + start)
    chosen = np.zeros(len(first), dtype=bool)
    chosen[order[place[1:] > place[:-1]]] = True
    found: np.ndarray = chosen[group]
    return found
