"""The closing table of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SummaryRow:
    """One model in the table: quality on one split, size. None is shown as a dash."""

    name: str
    metrics: Mapping[str, Mapping[str, float]]
    layers: int | None = None
    parameters: int | None = None
    size_mib: float | None = None


def summary_table(title: str, rows: Sequence[SummaryRow]) -> Any:
    """A rich table with every metric of every split that some row has."""
    from rich import box
    from rich.table import Table

    columns: dict[tuple[str, str], None] = {}
    for row in rows:
        for split, values in row.metrics.items():
            columns.update({(split, name): None for name in values})
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for split, name in columns:
        table.add_column(f"{split}\n{name.replace('_', ' ')}", justify="right")
    sized = any(row.parameters is not None for row in rows)
    for name in ("layers", "parameters", "size") if sized else ():
        table.add_column(name, justify="right")
    for row in rows:
        scores = [row.metrics.get(split, {}).get(name) for split, name in columns]
        size = (
            "-" if row.layers is None else str(row.layers),
            "-" if row.parameters is None else f"{row.parameters / 1e6:.2f} M",
            "-" if row.size_mib is None else f"{row.size_mib:.1f} MiB",
        )
        table.add_row(
            row.name, *("-" if score is None else f"{score:.4f}" for score in scores), *(size if sized else ())
        )
    return table
