"""kdbert's metrics for the `evaluate` library, loaded offline from this file's path.

>>> import evaluate, kdbert.metrics.evaluate_metric as script
>>> evaluate.load(script.__file__, "accuracy_and_f1").compute(predictions=[0, 1], references=[0, 1])

The metrics are those of `kdbert.metrics.TABLE` that read class numbers or scores.
Nothing else in kdbert imports `evaluate`.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from kdbert.metrics import TABLE

NAMES = {
    name: metric
    for name, metric in TABLE.items()
    if metric.reads == "answers" and {"single_label", "regression"} & {*metric.heads}
}


class KdbertMetric(evaluate.Metric):
    """One metric of `kdbert.metrics`, chosen by the configuration name."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in NAMES:
            raise KeyError(f"choose one of {', '.join(NAMES)}")
        metric = NAMES[self.config_name]
        kind = datasets.Value("float32" if "regression" in metric.heads else "int64")
        return evaluate.MetricInfo(
            description=metric.meaning,
            citation="",
            inputs_description="predictions and references: class numbers, or scores",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        value: Any = NAMES[self.config_name].value
        return {self.config_name: value(np.asarray(predictions), np.asarray(references))}
