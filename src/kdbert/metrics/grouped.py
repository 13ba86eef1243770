"""Metrics of groups: of documents made of sentences, and of the entities and words of sentences.

Each is made of counts that add up over groups, so that a resample of documents or sentences needs no second look at
the predictions. The counts are [..., 3]: correct, predicted, in the labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TAG = re.compile(r"([BIESLU])(?:-(.+))?")  # of a word of an entity: a letter and a kind
OUTSIDE = "O"  # the tag of a word that belongs to no entity


@dataclass(frozen=True)
class Grouped:
    """A metric of groups.

    Attributes:
        counts: (predictions, labels, group of each row, class names) -> [groups, ..., 3].
        value: counts summed over groups, [..., 3] -> the metric.
    """

    counts: Callable[[np.ndarray, np.ndarray, np.ndarray, Sequence[str]], np.ndarray]
    value: Callable[[np.ndarray], Any]


def document_counts(
    predictions: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: Sequence[str]
) -> np.ndarray:
    """Classes of each document, which has those of all its sentences (LinkBERT's `eval_hoc`).

    Args:
        predictions, labels: bool [N, C]. groups: [N], number of each sentence's document.
    """
    both = []
    for values in (predictions, labels):
        found = np.zeros((int(groups.max()) + 1, values.shape[1]), dtype=bool)
        np.logical_or.at(found, groups, values.astype(bool))
        both.append(found)
    found, there = both
    return np.stack([(found & there).sum(1), found.sum(1), there.sum(1)], -1)


def entity_counts(
    predictions: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: Sequence[str]
) -> np.ndarray:
    """Entities of each sentence: right where first word, last word and kind are (seqeval, default mode).

    An entity begins at each B and S, and at an I or E that does not continue one (`continues`). L and U of the scheme
    BILOU are read as E and S.

    Args:
        predictions, labels: tag numbers of all words, [W]. groups: [W], number of each word's sentence, ascending.
        classes: the tags: O, or a letter of B, I, E, S, L, U alone or with a kind, B-KIND.
    """
    size = int(groups.max()) + 1
    found, there = (_entities(tags, groups, classes) for tags in (predictions, labels))
    right = np.intersect1d(found, there)
    first_word = len(groups) * len(classes)
    return np.stack([np.bincount(groups[some // first_word], minlength=size) for some in (right, found, there)], -1)


def _entities(tags: np.ndarray, groups: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """One number for each entity: (first word * W + last word) * number of classes + kind."""
    kinds = sorted({name.partition("-")[2] for name in classes})
    letters = [name[0] for name in classes]
    kind = np.array([kinds.index(name.partition("-")[2]) for name in classes])[tags]
    follows = np.array([[continues(before, letter) for letter in letters] for before in letters])
    first = np.ones(len(tags), dtype=bool)
    first[1:] = groups[1:] != groups[:-1]
    inside = follows[np.roll(tags, 1), tags] & (np.roll(kind, 1) == kind) & ~first
    starts = (np.array(letters) != OUTSIDE)[tags] & ~inside
    begin = np.flatnonzero(starts)
    # The last word of an entity is the one before the next that is not inside one.
    ends = np.flatnonzero(np.append(~inside, True))
    last = ends[np.searchsorted(ends, begin, side="right")] - 1
    return (begin * len(tags) + last) * len(classes) + kind[begin]


def mark_entities(tags: Collection[str]) -> bool:
    """Whether all of these tags are `O`, or a letter of B, I, E, S, L, U alone or with a kind."""
    fit = all(tag == OUTSIDE or TAG.fullmatch(tag) for tag in tags)
    return fit and (OUTSIDE in tags or all("-" in tag for tag in tags))


def continues(before: str, letter: str) -> bool:
    """Whether a tag with this letter continues the entity of the tag before it, if both have the same kind."""
    return letter in "IEL" and before in "BI"


def token_counts(predictions: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Words of each tag but O, [sentences, tags, 3]. Arguments as in `entity_counts`."""
    size = int(groups.max()) + 1
    found = [
        np.stack([np.bincount(groups[rows], minlength=size) for rows in (p & t, p, t)], -1)
        for p, t in (
            (predictions == number, labels == number) for number, name in enumerate(classes) if name != OUTSIDE
        )
    ]
    return np.stack(found, 1)


def f1(counts: np.ndarray) -> Any:
    """Harmonic mean of precision and recall; 0 if nothing is predicted and nothing is in the labels."""
    return ratio(2 * counts[..., 0], counts[..., 1] + counts[..., 2])


def precision(counts: np.ndarray) -> Any:
    """Share of the predicted that is correct; 0 if nothing is predicted."""
    return ratio(counts[..., 0], counts[..., 1])


def recall(counts: np.ndarray) -> Any:
    """Share of the labels that is found; 0 if there are none."""
    return ratio(counts[..., 0], counts[..., 2])


def mean_of(value: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    """The unweighted mean over kinds that are predicted or there."""

    def mean(counts: np.ndarray) -> Any:
        occurs = counts[..., 1:].sum(-1) > 0
        return ratio((value(counts) * occurs).sum(-1), occurs.sum(-1))

    return mean


def ratio(above: Any, below: Any) -> Any:
    """above / below, 0 where below is 0."""
    below = np.asarray(below, dtype=np.float64)
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below != 0)


def _mean_loss(counts: np.ndarray) -> Any:
    return ratio(counts[..., 0], counts[..., 2])


# BLURB's: HoC by abstract (LinkBERT's utils_hoc), named entities (seqeval), EBM PICO by word (macro).
GROUPED: dict[str, Grouped] = {
    f"{name}_{part}": Grouped(counts, wrap(value))
    for name, counts, wrap in (
        ("document", document_counts, lambda value: value),
        ("entity", entity_counts, lambda value: value),
        ("macro_token", token_counts, mean_of),
    )
    for part, value in (("f1", f1), ("precision", precision), ("recall", recall))
}
# Of plain text: shares of the hidden pieces that are answered rightly, their mean loss (nats), and exp of that. A row
# of predictions is loss, right answers and number of a text's hidden pieces, then the same of its new ones (`HIDDEN`).
GROUPED |= {
    f"{prefix}{name}": Grouped(counts, value)
    for prefix, counts in (("", lambda sums, *_: sums[:, :3]), ("new_", lambda sums, *_: sums[:, 3:]))
    for name, value in (
        ("masked_accuracy", lambda counts: ratio(counts[..., 1], counts[..., 2])),
        ("mlm_loss", _mean_loss),
        ("pseudo_perplexity", lambda counts: np.exp(_mean_loss(counts))),
    )
}
# Of plain text that an encoder learns to read: a row of predictions is a text's loss as a sum, and what divides it.
GROUPED["distillation_loss"] = Grouped(lambda sums, *_: sums, lambda counts: ratio(counts[..., 0], counts[..., 1]))
