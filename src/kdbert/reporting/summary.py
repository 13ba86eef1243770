"""The closing table of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdbert.metrics import better

WIDTH = 120  # of a table that goes to a file


@dataclass(frozen=True)
class SummaryRow:
    """One model in the table: quality on each split, size. None is shown as a dash."""

    name: str
    metrics: Mapping[str, Mapping[str, float]]
    layers: int | None = None
    parameters: int | None = None
    size_mib: float | None = None
    same: Mapping[str, str] = field(default_factory=dict)  # by split: the answer to every example, where there is one


def remarks(rows: Sequence[SummaryRow], constant: Mapping[str, Mapping[str, float]], selection: str) -> list[str]:
    """Sentences about models that show nothing learned: one answer to everything, or no better than a constant one.

    Args:
        selection: the metric by which models are compared.
    """
    found = []
    for row in rows:
        found += [f"{row.name}: one answer to every example of {split}: {same}" for split, same in row.same.items()]
        for split, values in row.metrics.items():
            reached, floor = values.get(selection), constant.get(split, {}).get(selection)
            if split in row.same or reached is None or floor is None or better(selection, reached, floor):
                continue
            scores = f"{selection} {reached:.4f}, that of the constant answer {floor:.4f}"
            found.append(f"{row.name}: no better than one answer to every example of {split} ({scores})")
    return found


def print_table(*tables: Any) -> None:
    """Print the first of some rich tables that fits the terminal, else the last; in a file, however wide it is."""
    from rich.console import Console

    room = Console(width=None if sys.stdout.isatty() else WIDTH).width
    widths = [Console(width=10_000).measure(table).maximum for table in tables]
    number = next((number for number, width in enumerate(widths) if width <= room), len(tables) - 1)
    Console(width=max(room, widths[number])).print(tables[number])


def _table(title: str) -> Any:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)


def _told(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def summary_tables(title: str, rows: Sequence[SummaryRow]) -> tuple[Any, Any]:
    """A rich table with every metric of every split that some row has; and the same with models side by side."""
    scored = dict.fromkeys((split, name) for row in rows for split, values in row.metrics.items() for name in values)
    columns = {
        f"{split}\n{name.replace('_', ' ')}": [_told(row.metrics.get(split, {}).get(name), "{:.4f}") for row in rows]
        for split, name in scored
    }
    if any(row.parameters is not None for row in rows):
        columns["layers"] = [_told(row.layers, "{}") for row in rows]
        columns["parameters"] = [_told(row.parameters and row.parameters / 1e6, "{:.2f} M") for row in rows]
        columns["size"] = [_told(row.size_mib, "{:.1f} MiB") for row in rows]
    wide, tall = _table(title), _table(title)
    wide.add_column("")
    for heading in columns:
        wide.add_column(heading, justify="right", no_wrap="\n" in heading)
    tall.add_column("")
    for number, row in enumerate(rows):
        wide.add_row(row.name, *(cells[number] for cells in columns.values()))
        tall.add_column(row.name, justify="right", no_wrap=True)
    for heading, cells in columns.items():
        tall.add_row(heading.replace("\n", " "), *cells)
    return wide, tall


def benchmark_table(content: Mapping[str, Any]) -> Any:
    """A rich table of benchmark.json: one row an engine."""
    settings, metric = content["settings"], content["metric"]
    table = _table(
        f"{content['task']}: {content['examples']} texts of {content['split']}, threads: {settings['threads']}, "
        f"{settings['calls']} calls; tokenisation included"
    )
    for name in ("", "backend"):
        table.add_column(name)
    for name in ("parameters", "size", "peak\nmemory"):
        table.add_column(name, justify="right")
    for size in settings["batch_sizes"]:
        table.add_column(f"batch {size}\np50 (p95) ms", justify="right")
        table.add_column("texts\na second", justify="right")
    table.add_column(metric.replace("_", " "), justify="right")
    with_teacher = any(engine["agreement"] is not None for engine in content["engines"])
    if with_teacher:
        table.add_column("agrees with\nthe teacher", justify="right")
    for engine in content["engines"]:
        row = [
            engine["name"], engine["backend"], f"{engine['parameters'] / 1e6:.2f} M",
            _told(engine["size_mib"], "{:.1f} MiB"), f"{engine['memory_mib']:.0f} MiB",
        ]  # fmt: skip
        for batch in engine["batches"]:
            total = batch["total_ms"]
            row += [f"{total['p50']:.2f} ({total['p95']:.2f})", f"{batch['examples_per_second']:.0f}"]
        row.append(f"{engine['quality'][metric]:.4f}")
        if with_teacher:
            row.append(_told(engine["agreement"], "{:.4f}"))
        table.add_row(*row)
    return table
