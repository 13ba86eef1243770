"""Task metrics under their exact names: `table` lists them all, `arrays` and `grouped` have kdbert's own."""

from __future__ import annotations

from kdbert.metrics.arrays import CLINC150_OUT_OF_SCOPE, METRICS, NO_RELATION, POSITIVE, pearson
from kdbert.metrics.table import LOWER_IS_BETTER, TABLE, Metric, better, chosen, our_name, score

__all__ = [
    "CLINC150_OUT_OF_SCOPE", "LOWER_IS_BETTER", "METRICS", "NO_RELATION", "POSITIVE", "TABLE", "Metric", "better",
    "chosen", "our_name", "pearson", "score",
]  # fmt: skip
