"""What a table says beyond the mean: spread over seeds, a paired test, an interval over examples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Scores of one configuration over n seeds."""

    mean: float
    deviation: float | None  # of the sample; None for one seed
    n: int


def summarise(scores: Mapping[int, float]) -> Summary:
    """Mean and sample standard deviation of seed -> score."""
    values = list(scores.values())
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired_p_value(scores: Mapping[int, float], baseline: Mapping[int, float]) -> float | None:
    """Two-sided p of a paired t-test over the seeds that both have (scipy's `ttest_rel`).

    None for fewer than two shared seeds, or where all differences are equal (the statistic is undefined).
    """
    from scipy.stats import ttest_rel

    seeds = sorted(scores.keys() & baseline.keys())
    differences = [scores[seed] - baseline[seed] for seed in seeds]
    if len(seeds) < 2 or max(differences) - min(differences) <= 1e-12 * max(1.0, *map(abs, differences)):
        return None
    p = float(ttest_rel([scores[seed] for seed in seeds], [baseline[seed] for seed in seeds]).pvalue)
    return p if math.isfinite(p) else None


def bootstrap_interval(
    metric: Callable[[np.ndarray, np.ndarray], Any],
    labels: np.ndarray,
    predictions: list[np.ndarray],
    baseline: list[np.ndarray],
) -> tuple[float, float]:
    """95 % percentile interval of the mean difference in a metric when the examples are drawn anew.

    Every resample draws the same examples for both sides and all seeds; the seeds themselves stay. So the interval
    says how much the difference depends on the examples at hand, and nothing of the spread over seeds.

    Args:
        metric: of arrays [..., N], see `kdbert.metrics`.
        labels: [N].
        predictions, baseline: one [N] (or [N, ...], what the metric takes) per shared seed, in the same order.
    """
    from scipy.stats import bootstrap

    def difference(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        gold = labels[rows]
        values = [metric(a[rows], gold) - metric(b[rows], gold) for a, b in zip(predictions, baseline, strict=True)]
        return np.mean(values, axis=0)

    rows = np.arange(len(labels))
    values = bootstrap(
        (rows,),
        difference,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // len(rows)),
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(values.low), float(values.high)
