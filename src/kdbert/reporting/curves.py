"""metrics.jsonl of runs as curves over epochs: the mean over seeds, and how far the seeds lie apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kdbert.disk.sealed import parse_json
from kdbert.reporting.collect import Run, number
from kdbert.reporting.figures import Line

MOST = 60  # points of a curve; of more, means of consecutive ones are drawn
Log = Sequence[Mapping[str, Any]]


def read_log(run: Run) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, in their order; a line that is cut or no record is left out.

    Raises:
        ValueError: there is no such file, it cannot be read, or is not that of the finished run.
    """
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


def mean_curve(logs: Sequence[Log], key: str, series: int, *, band: bool = False) -> Line | None:
    """A number over epochs: at each step the mean over the seeds that logged it there.

    Args:
        logs: one per seed.
        band: also the lowest and the highest seed, where there are several.

    Returns:
        None where no seed has the number.
    """
    at: dict[float, list[tuple[float, float]]] = defaultdict(list)
    for log in logs:
        for record in log:
            step, value = number(record.get("step")), number(record.get(key))
            if step is not None and value is not None:
                epoch = number(record.get("epoch"))
                at[step].append((step if epoch is None else epoch, value))
    if not at:
        return None
    columns = np.array(
        [
            (np.mean([x for x, _ in found]), np.mean(values), np.min(values), np.max(values))
            for _, found in sorted(at.items())
            for values in [[value for _, value in found]]
        ]
    )
    if len(columns) > MOST:
        columns = np.array([part.mean(axis=0) for part in np.array_split(columns, MOST)])
    x, mean, low, high = columns.T.tolist()
    return Line(x, mean, series, low, high) if band and len(logs) > 1 else Line(x, mean, series)
