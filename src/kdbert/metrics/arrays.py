"""Metrics of answers that a thousand resamples need at once.

Each takes `predictions` and `labels` (class numbers, or scores for regression) of shape [..., N] and gives the
metric over the last axis: a float for [N], an array for more. A mean of two metrics has a name that says so; "f1" is
never anything but F1. The values are those of scikit-learn and scipy (tested); where these are undefined, 0. Metrics
of documents, entities and words are in `grouped`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kdbert.metrics import grouped

CLINC150_OUT_OF_SCOPE = 150  # class number of "oos": the last of the 151
POSITIVE = 1  # the class that `f1` is of
NO_RELATION = 0  # the class that the metrics of relations leave out


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> Any:
    """Share of equal class numbers."""
    return _plain(np.mean(np.asarray(predictions) == np.asarray(labels), axis=-1))


def f1(predictions: np.ndarray, labels: np.ndarray) -> Any:
    """F1 of class 1 in a two-class task (0 when neither predicted nor present)."""
    return _plain(_f1_of(np.asarray(predictions) == POSITIVE, np.asarray(labels) == POSITIVE)[0])


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> Any:
    """Unweighted mean of the F1 of every class that occurs in labels or predictions."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    total: Any = 0.0
    classes: Any = 0
    for number in np.union1d(predictions, labels):
        value, occurs = _f1_of(predictions == number, labels == number)
        total, classes = total + value, classes + occurs
    return _plain(total / classes)


def weighted_f1(predictions: np.ndarray, labels: np.ndarray) -> Any:
    """Mean of the F1 of every class, weighted with its share of the labels."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    total: Any = 0.0
    for number in np.unique(labels):
        there = labels == number
        total = total + _f1_of(predictions == number, there)[0] * there.mean(axis=-1)
    return _plain(total)


def relation_f1(predictions: np.ndarray, labels: np.ndarray) -> Any:
    """F1 over all classes but class 0, "no relation": BLURB's figure for ChemProt, DDI and GAD."""
    return _plain(grouped.f1(_relations(predictions, labels)))


def relation_precision(predictions: np.ndarray, labels: np.ndarray) -> Any:
    """Share of the predicted relations (classes but 0) that are right."""
    return _plain(grouped.precision(_relations(predictions, labels)))


def relation_recall(predictions: np.ndarray, labels: np.ndarray) -> Any:
    """Share of the relations (classes but 0) that are found."""
    return _plain(grouped.recall(_relations(predictions, labels)))


def accuracy_and_f1(predictions: np.ndarray, labels: np.ndarray) -> Any:
    """(accuracy + F1) / 2, GLUE's figure for MRPC and QQP."""
    return (accuracy(predictions, labels) + f1(predictions, labels)) / 2


def matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> Any:
    """Matthews correlation coefficient, GLUE's figure for CoLA and AX (0 for a constant prediction).

    Of any number of classes: Gorodkin (2004), Comparing two K-category assignments by a K-category correlation
    coefficient, equation 8.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    rows = float(labels.shape[-1])
    both = rows * (predictions == labels).sum(axis=-1)
    predicted: Any = rows**2
    present: Any = rows**2
    for number in np.union1d(predictions, labels):
        p, t = (predictions == number).sum(axis=-1), (labels == number).sum(axis=-1)
        both, predicted, present = both - p * t, predicted - p * p, present - t * t
    return _plain(grouped.ratio(both, np.sqrt(predicted * present)))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> Any:
    """Pearson correlation; 0 where predictions or labels are constant (it is undefined there)."""
    x, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    varied = (np.ptp(x, axis=-1) > 0) & (np.ptp(y, axis=-1) > 0)
    x, y = x - x.mean(axis=-1, keepdims=True), y - y.mean(axis=-1, keepdims=True)
    norm = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return _plain(np.where(varied, grouped.ratio((x * y).sum(axis=-1), norm), 0.0))


def spearman(predictions: np.ndarray, labels: np.ndarray) -> Any:
    """Spearman rank correlation; 0 where predictions or labels are constant (it is undefined there)."""
    from scipy.stats import rankdata

    return pearson(rankdata(predictions, axis=-1), rankdata(labels, axis=-1))


def pearson_and_spearman(predictions: np.ndarray, labels: np.ndarray) -> Any:
    """(Pearson + Spearman) / 2, GLUE's figure for STS-B."""
    return (pearson(predictions, labels) + spearman(predictions, labels)) / 2


def in_scope_accuracy(predictions: np.ndarray, labels: np.ndarray) -> Any:
    """CLINC150: accuracy over the queries whose intent is one of the 150 (class numbers 0 to 149)."""
    return _accuracy_where(np.asarray(labels) != CLINC150_OUT_OF_SCOPE, predictions, labels)


def out_of_scope_recall(predictions: np.ndarray, labels: np.ndarray) -> Any:
    """CLINC150: share of the out-of-scope queries (class number 150) that are recognised as such."""
    return _accuracy_where(np.asarray(labels) == CLINC150_OUT_OF_SCOPE, predictions, labels)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    function.__name__: function
    for function in (
        accuracy, f1, macro_f1, weighted_f1, accuracy_and_f1, matthews_correlation,
        relation_f1, relation_precision, relation_recall,
        pearson, spearman, pearson_and_spearman, in_scope_accuracy, out_of_scope_recall,
    )
}  # fmt: skip


def _relations(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts of relations found rightly, predicted, and there: [..., 3]."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    found, there = predictions != NO_RELATION, labels != NO_RELATION
    return np.stack([(found & (predictions == labels)).sum(-1), found.sum(-1), there.sum(-1)], -1)


def _accuracy_where(counted: np.ndarray, predictions: np.ndarray, labels: np.ndarray) -> Any:
    right = (np.asarray(predictions) == np.asarray(labels)) & counted
    return _plain(grouped.ratio(right.sum(axis=-1), counted.sum(axis=-1)))


def _f1_of(predicted: np.ndarray, present: np.ndarray) -> tuple[Any, Any]:
    """F1 of one class from two masks, and whether the class occurs at all."""
    both = (predicted & present).sum(axis=-1)
    either = predicted.sum(axis=-1) + present.sum(axis=-1)
    return grouped.ratio(2.0 * both, either), either > 0


def _plain(value: Any) -> Any:
    """A float where there is one number."""
    return float(value) if np.ndim(value) == 0 else value
