"""Spread, paired test, bootstrap interval: against their definitions and an independent computation."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdbert.metrics import METRICS
from kdbert.reporting.statistics import bootstrap_interval, paired_p_value, summarise

scores = st.dictionaries(st.integers(0, 20), st.floats(0, 1), min_size=1, max_size=8)


@given(scores)
def test_the_summary_is_mean_sample_deviation_and_number(found: dict[int, float]) -> None:
    summary = summarise(found)
    assert summary.n == len(found)
    assert summary.mean == pytest.approx(statistics.mean(found.values()))
    if len(found) == 1:
        assert summary.deviation is None
    else:
        assert summary.deviation == pytest.approx(np.std(list(found.values()), ddof=1))


def test_the_paired_test_pairs_by_seed_and_uses_shared_seeds_only() -> None:
    ours = {3: 0.71, 1: 0.70, 2: 0.74, 9: 0.1}
    theirs = {1: 0.68, 2: 0.69, 3: 0.70, 8: 0.9}
    expected = stats.ttest_rel([0.70, 0.74, 0.71], [0.68, 0.69, 0.70]).pvalue
    assert paired_p_value(ours, theirs) == pytest.approx(expected)
    assert paired_p_value(theirs, ours) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [({1: 0.7}, {1: 0.6}), ({1: 0.7, 2: 0.7}, {3: 0.6, 4: 0.6}), ({1: 0.7, 2: 0.8}, {1: 0.6, 2: 0.7})],
    ids=["one seed", "no shared seed", "equal differences"],
)
def test_where_the_paired_test_is_undefined_there_is_no_p(ours: dict[int, float], theirs: dict[int, float]) -> None:
    assert paired_p_value(ours, theirs) is None


def answers(rng: np.random.Generator, labels: np.ndarray, right: float) -> np.ndarray:
    """Two-class predictions of which about a share `right` is right."""
    return np.where(rng.random(len(labels)) < right, labels, 1 - labels)


def test_the_interval_of_an_accuracy_difference_is_that_of_its_standard_error() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 2000)
    ours, theirs = [answers(rng, labels, 0.8)], [answers(rng, labels, 0.75)]
    low, high = bootstrap_interval(METRICS["accuracy"], labels, ours, theirs)
    per_example = (ours[0] == labels).astype(float) - (theirs[0] == labels)
    error = per_example.std(ddof=1) / np.sqrt(len(labels))
    assert low == pytest.approx(per_example.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(per_example.mean() + 1.96 * error, abs=0.15 * error)


@pytest.mark.parametrize("name", ["matthews_correlation", "accuracy_and_f1", "spearman"])
def test_the_interval_agrees_with_a_plain_loop_over_resamples(name: str) -> None:
    rng = np.random.default_rng(2)
    if name == "spearman":
        labels = rng.normal(size=300)
        ours = [labels + rng.normal(size=300) for _ in range(2)]
        theirs = [labels + 2 * rng.normal(size=300) for _ in range(2)]
    else:
        labels = rng.integers(0, 2, 300)
        ours = [answers(rng, labels, 0.8) for _ in range(2)]
        theirs = [answers(rng, labels, 0.7) for _ in range(2)]
    reference = {  # by their definitions, since the library's functions take a millisecond each
        "matthews_correlation": lambda y, p: np.corrcoef(y, p)[0, 1],
        "accuracy_and_f1": lambda y, p: (np.mean(y == p) + 2 * np.sum(y * p) / np.sum(y + p)) / 2,
        "spearman": lambda y, p: np.corrcoef(stats.rankdata(y), stats.rankdata(p))[0, 1],
    }[name]
    low, high = bootstrap_interval(METRICS[name], labels, ours, theirs)
    drawn = []
    for _ in range(200):
        rows = rng.integers(0, 300, 300)
        mean = [np.mean([reference(labels[rows], one[rows]) for one in side]) for side in (ours, theirs)]
        drawn.append(mean[0] - mean[1])
    width = high - low
    assert low == pytest.approx(np.percentile(drawn, 2.5), abs=0.15 * width)
    assert high == pytest.approx(np.percentile(drawn, 97.5), abs=0.15 * width)


def test_equal_predictions_have_no_difference_and_the_interval_is_the_same_every_time() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 50)
    one, other = [answers(rng, labels, 0.8)], [answers(rng, labels, 0.6)]
    assert bootstrap_interval(METRICS["accuracy"], labels, one, one) == (0.0, 0.0)
    first = bootstrap_interval(METRICS["f1"], labels, one, other)
    assert first == bootstrap_interval(METRICS["f1"], labels, one, other)
