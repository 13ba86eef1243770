"""Metrics: their exact names, their values against scikit-learn, scipy and the definitions."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbert.metrics import METRICS, score
from kdbert.metrics.grouped import GROUPED
from kdbert.tasks import get_task, task_names

CLASSES = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 3), min_size=n, max_size=n).map(np.array)] * 2)
)
BINARY = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 1), min_size=n, max_size=n).map(np.array)] * 2)
)
SCORE = st.integers(-500, 500).map(lambda i: i / 100) | st.floats(-5, 5, width=32, allow_subnormal=False)
SCORES = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[st.lists(SCORE, min_size=n, max_size=n).map(lambda x: np.array(x, dtype=np.float32))] * 2)
)


def value(name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    """One metric; a warning of bad arithmetic is as good as an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        return METRICS[name](predictions, labels)


def test_names_are_exact() -> None:
    assert set(METRICS) == {
        "accuracy", "f1", "macro_f1", "weighted_f1", "accuracy_and_f1", "matthews_correlation",
        "relation_f1", "relation_precision", "relation_recall",
        "pearson", "spearman", "pearson_and_spearman", "in_scope_accuracy", "out_of_scope_recall",
    }  # fmt: skip
    assert set(GROUPED) == {
        *(f"{what}_{part}" for what in ("document", "entity", "macro_token") for part in ("f1", "precision", "recall")),
        *(f"{new}{name}" for new in ("", "new_") for name in ("masked_accuracy", "mlm_loss", "pseudo_perplexity")),
        "distillation_loss",
    }
    assert all(METRICS[name].__name__ == name for name in METRICS)


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("cola", ("matthews_correlation", "accuracy")),
        ("sst2", ("accuracy",)),
        ("mrpc", ("accuracy_and_f1", "accuracy", "f1")),
        ("stsb", ("pearson_and_spearman", "pearson", "spearman")),
        ("qqp", ("accuracy_and_f1", "accuracy", "f1")),
        ("mnli", ("accuracy",)),
        ("qnli", ("accuracy",)),
        ("rte", ("accuracy",)),
        ("wnli", ("accuracy",)),
        ("ax", ("matthews_correlation",)),
        ("clinc150", ("accuracy", "in_scope_accuracy", "out_of_scope_recall")),
        ("quickstart", ("accuracy", "macro_f1")),
        ("massive", ("accuracy", "macro_f1", "weighted_f1")),
        ("emotion", ("accuracy", "macro_f1", "weighted_f1")),
        ("hateval", ("macro_f1", "f1", "accuracy")),
        ("pubmedqa", ("accuracy", "macro_f1")),
        ("gad", ("relation_f1", "relation_precision", "relation_recall")),
        ("hoc", ("document_f1", "document_precision", "document_recall")),
        ("ncbi-disease", ("entity_f1", "entity_precision", "entity_recall")),
        ("ebm-pico", ("macro_token_f1", "macro_token_precision", "macro_token_recall")),
    ],
)
def test_tasks_report_the_official_metrics(task: str, metrics: tuple[str, ...]) -> None:
    assert get_task(task).metrics == metrics


def test_every_task_names_metrics_that_exist() -> None:
    assert all(name in METRICS or name in GROUPED for task in task_names() for name in get_task(task).metrics)


@settings(max_examples=50, deadline=None)
@given(CLASSES)
def test_class_metrics_equal_scikit_learn(pair: tuple[np.ndarray, np.ndarray]) -> None:
    predictions, labels = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "accuracy": sklearn.metrics.accuracy_score(labels, predictions),
            "macro_f1": sklearn.metrics.f1_score(labels, predictions, average="macro", zero_division=0),
            "weighted_f1": sklearn.metrics.f1_score(labels, predictions, average="weighted", zero_division=0),
            **{
                f"relation_{name}": function(labels, predictions, labels=[1, 2, 3], average="micro", zero_division=0)
                for name, function in (
                    ("f1", sklearn.metrics.f1_score),
                    ("precision", sklearn.metrics.precision_score),
                    ("recall", sklearn.metrics.recall_score),
                )
            },
            "matthews_correlation": sklearn.metrics.matthews_corrcoef(labels, predictions),
        }
        found = score(tuple(expected), predictions, labels)
    assert found == pytest.approx(expected, abs=1e-12)
    assert all(type(number) is float for number in found.values())


@settings(max_examples=50, deadline=None)
@given(BINARY)
def test_two_class_metrics_equal_their_definitions(pair: tuple[np.ndarray, np.ndarray]) -> None:
    predictions, labels = pair
    tp, tn = int(np.sum((predictions == 1) & (labels == 1))), int(np.sum((predictions == 0) & (labels == 0)))
    fp, fn = int(np.sum((predictions == 1) & (labels == 0))), int(np.sum((predictions == 0) & (labels == 1)))
    f1 = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0
    accuracy = (tp + tn) / len(labels)
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    mcc = (tp * tn - fp * fn) / root if root else 0.0
    assert value("f1", predictions, labels) == pytest.approx(f1)
    assert value("accuracy", predictions, labels) == pytest.approx(accuracy)
    assert value("accuracy_and_f1", predictions, labels) == pytest.approx((accuracy + f1) / 2)
    assert value("matthews_correlation", predictions, labels) == pytest.approx(mcc, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(SCORES)
def test_correlations_equal_scipy_and_are_never_nan(pair: tuple[np.ndarray, np.ndarray]) -> None:
    predictions, labels = pair
    found = score(("pearson", "spearman", "pearson_and_spearman"), predictions, labels)
    assert all(math.isfinite(number) and abs(number) <= 1 + 1e-9 for number in found.values())
    assert found["pearson_and_spearman"] == pytest.approx((found["pearson"] + found["spearman"]) / 2)
    constant = len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0
    if constant:
        assert found == {"pearson": 0, "spearman": 0, "pearson_and_spearman": 0}
    else:
        assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(predictions, labels).statistic)
        ranked = np.corrcoef(scipy.stats.rankdata(predictions), scipy.stats.rankdata(labels))[0, 1]
        assert found["spearman"] == pytest.approx(ranked)
        if min(np.ptp(predictions), np.ptp(labels)) > 1e-3:  # below, the reference itself loses its digits
            expected = scipy.stats.pearsonr(predictions.astype(np.float64), labels.astype(np.float64)).statistic
            assert found["pearson"] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["matthews_correlation", "pearson", "spearman", "pearson_and_spearman", "f1"])
@pytest.mark.parametrize("constant", ["predictions", "labels", "both"])
def test_a_constant_gives_zero_not_nan(name: str, constant: str) -> None:
    varied, same = np.array([0, 1, 0, 1, 1]), np.zeros(5, dtype=np.int64)
    predictions = varied if constant == "labels" else same
    labels = varied if constant == "predictions" else same
    assert value(name, predictions, labels) == 0.0


def test_clinc_metrics_part_the_queries_by_scope() -> None:
    labels = np.array([3, 3, 7, 150, 150, 150, 150])
    predictions = np.array([3, 150, 7, 150, 2, 150, 150])
    assert value("in_scope_accuracy", predictions, labels) == pytest.approx(2 / 3)
    assert value("out_of_scope_recall", predictions, labels) == pytest.approx(3 / 4)
    assert value("accuracy", predictions, labels) == pytest.approx(5 / 7)
    inside = np.array([1, 2])
    assert value("out_of_scope_recall", inside, inside) == 0.0
    assert value("in_scope_accuracy", np.array([150]), np.array([150])) == 0.0
