"""Task metrics: plain functions over scikit-learn and scipy, under their exact names.

Each takes `predictions` and `labels` (1-D arrays: class numbers, or scores for regression) and
returns a float. A mean of two metrics has a name that says so; "f1" is never anything but F1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

CLINC150_OUT_OF_SCOPE = 150  # class number of "oos": the last of the 151


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of equal class numbers."""
    return float(np.mean(np.asarray(predictions) == np.asarray(labels)))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1 in a two-class task (0 when neither predicted nor present)."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, pos_label=1, average="binary", zero_division=0))


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Unweighted mean of the F1 of every class that occurs in labels or predictions."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def accuracy_and_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """(accuracy + F1) / 2, GLUE's figure for MRPC and QQP."""
    return (accuracy(predictions, labels) + f1(predictions, labels)) / 2


def matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews correlation coefficient, GLUE's figure for CoLA and AX (0 for a constant prediction)."""
    from sklearn.metrics import matthews_corrcoef

    if _constant(predictions) or _constant(labels):
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson correlation; 0 where predictions or labels are constant (it is undefined there)."""
    from scipy.stats import pearsonr

    if _constant(predictions) or _constant(labels):
        return 0.0
    return float(pearsonr(np.asarray(predictions, np.float64), np.asarray(labels, np.float64))[0])


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Spearman rank correlation; 0 where predictions or labels are constant (it is undefined there)."""
    from scipy.stats import spearmanr

    if _constant(predictions) or _constant(labels):
        return 0.0
    return float(spearmanr(np.asarray(predictions, np.float64), np.asarray(labels, np.float64))[0])


def pearson_and_spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """(Pearson + Spearman) / 2, GLUE's figure for STS-B."""
    return (pearson(predictions, labels) + spearman(predictions, labels)) / 2


def in_scope_accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """CLINC150: accuracy over the queries whose intent is one of the 150 (class numbers 0 to 149)."""
    inside = np.asarray(labels) != CLINC150_OUT_OF_SCOPE
    return accuracy(np.asarray(predictions)[inside], np.asarray(labels)[inside]) if inside.any() else 0.0


def out_of_scope_recall(predictions: np.ndarray, labels: np.ndarray) -> float:
    """CLINC150: share of the out-of-scope queries (class number 150) that are recognised as such."""
    outside = np.asarray(labels) == CLINC150_OUT_OF_SCOPE
    return accuracy(np.asarray(predictions)[outside], np.asarray(labels)[outside]) if outside.any() else 0.0


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    function.__name__: function
    for function in (
        accuracy, f1, macro_f1, accuracy_and_f1, matthews_correlation,
        pearson, spearman, pearson_and_spearman, in_scope_accuracy, out_of_scope_recall,
    )
}  # fmt: skip


def score(names: tuple[str, ...], predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The named metrics of one split, in the order given."""
    return {name: METRICS[name](predictions, labels) for name in names}


def majority_score(names: tuple[str, ...], train_labels: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What predicting the commonest training class (regression: the mean score) for every example gives."""
    train_labels = np.asarray(train_labels)
    if train_labels.dtype.kind == "f":
        constant = train_labels.mean()
    else:
        constant = np.bincount(train_labels).argmax()
    return score(names, np.full(len(labels), constant), labels)


def _constant(values: np.ndarray) -> bool:
    return len(values) < 2 or bool(np.all(np.asarray(values) == np.asarray(values)[0]))
