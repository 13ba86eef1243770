"""metrics.jsonl of runs as curves over epochs: the mean over seeds, and how far the seeds lie apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kdbert.disk.sealed import parse_json
from kdbert.reporting.collect import Run, number
from kdbert.reporting.figures import Curve

MOST = 60  # points of a curve; of more, means of consecutive ones are drawn
Log = Sequence[Mapping[str, Any]]


def read_log(run: Run) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, in their order; a line that is cut or not a record is left out."""
    records = []
    for line in run.json_lines("metrics.jsonl", errors="replace"):
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and number(record.get("step")) is not None:
            records.append(record)
    return records


def keys_of(logs: Iterable[Log], prefix: str) -> list[str]:
    """The names of numbers that begin with `prefix`, in the order of their first record."""
    return list(dict.fromkeys(key for log in logs for record in log for key in record if key.startswith(prefix)))


def mean_curve(logs: Sequence[Log], key: str, series: int, *, band: bool = False) -> Curve | None:
    """A number over epochs: at each step the mean over the seeds that logged it there, and how many these are.

    Args:
        logs: one per seed. None is returned where none of them has the number.
        band: also the lowest and the highest seed, where there are several.
    """
    at: dict[float, list[tuple[float, float]]] = defaultdict(list)
    for log in logs:
        for record in log:
            step, value = number(record.get("step")), number(record.get(key))
            if step is not None and value is not None:
                at[step].append((number(record.get("epoch")) or step, value))
    if not at:
        return None
    points = [np.array(found) for _, found in sorted(at.items())]  # [seeds, 2] each
    columns = np.array([(*some.mean(0), some[:, 1].min(), some[:, 1].max()) for some in points])
    n = np.array([len(some) for some in points])
    if len(columns) > MOST:
        columns = np.array([part.mean(axis=0) for part in np.array_split(columns, MOST)])
        n = np.array([part.min() for part in np.array_split(n, MOST)])
    x, mean, low, high = columns.T.tolist()
    return Curve(x, mean, series, n.tolist(), *((low, high) if band and len(logs) > 1 else ()))


def seeds_told(logs: Sequence[Log]) -> str:
    """How many seeds there are, and how many are left where some stopped early: "3 seeds; 2 after epoch 4"."""
    ends = sorted(max((number(record.get("epoch")) or 0.0 for record in log), default=0.0) for log in logs)
    left = {round(end, 1): sum(other > end for other in ends) for end in ends}
    parts = [f"{count} after epoch {end:g}" for end, count in left.items() if count]
    return "; ".join([f"{len(logs)} seed{'s' * (len(logs) != 1)}", *parts])
