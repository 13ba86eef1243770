"""kdbert's metrics for the `evaluate` library, loaded offline from this file's path.

>>> import evaluate, kdbert.metrics.evaluate_metric as script
>>> evaluate.load(script.__file__, "accuracy_and_f1").compute(predictions=[0, 1], references=[0, 1])

Nothing else in kdbert imports `evaluate`.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from kdbert.metrics import METRICS

SCORES = ("pearson", "spearman", "pearson_and_spearman")


class KdbertMetric(evaluate.Metric):
    """One metric of `kdbert.metrics`, chosen by the configuration name."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in METRICS:
            raise KeyError(f"choose one of {', '.join(METRICS)}")
        kind = datasets.Value("float32" if self.config_name in SCORES else "int64")
        return evaluate.MetricInfo(
            description=METRICS[self.config_name].__doc__ or "",
            citation="",
            inputs_description="predictions and references: class numbers, or scores",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {self.config_name: METRICS[self.config_name](np.asarray(predictions), np.asarray(references))}
