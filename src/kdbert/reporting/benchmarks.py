"""benchmark.json, which `kdbert benchmark` writes: how fast models are, for a figure and a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbert.disk.sealed import parse_json
from kdbert.reporting.collect import Damaged, number
from kdbert.reporting.figures import Point

FILE = "benchmark.json"


@dataclass(frozen=True)
class Engine:
    """A measured model: its point in the figure, and what the table says besides (None: not known)."""

    point: Point
    parameters: float | None
    p95: float | None  # of the time of one call, ms
    rate: float | None  # texts per second with the largest batch
    memory: float | None  # MiB
    agreement: float | None  # share of examples with its teacher's answer


@dataclass(frozen=True)
class BenchmarkFile:
    """One benchmark.json."""

    path: Path
    task: str
    split: str
    metric: str
    batch_size: int  # of the calls whose latency is shown: the smallest
    largest: int  # batch size
    engines: tuple[Engine, ...]
    processor: str  # "": not known
    threads: float | None


def find_benchmarks(paths: Iterable[str | Path]) -> tuple[list[BenchmarkFile], dict[Path, str]]:
    """Every benchmark.json at or below the given folders, and the damaged ones with what is wrong."""
    found: dict[Path, BenchmarkFile] = {}
    broken: dict[Path, str] = {}
    for root in paths:
        for folder, inside, files in os.walk(root):
            inside[:] = sorted(name for name in inside if not name.startswith("."))
            path = Path(folder) / FILE
            if FILE not in files or path.absolute() in found or path in broken:
                continue
            try:
                found[path.absolute()] = read_benchmark(path)
            except Damaged as error:
                broken[path] = str(error)
    return list(found.values()), broken


def read_benchmark(path: Path) -> BenchmarkFile:
    """One file; `Damaged` says what is wrong with it."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        metric = str(content["metric"])
        sizes = [int(batch["batch_size"]) for engine in content["engines"] for batch in engine["batches"]]
        smallest, largest = min(sizes), max(sizes)
        engines = tuple(_engine(engine, metric, smallest, largest) for engine in content["engines"])
        processor = str(content.get("environment", {}).get("processor", ""))
        threads = number(content.get("settings", {}).get("threads"))
        task, split = str(content["task"]), str(content["split"])
        return BenchmarkFile(path, task, split, metric, smallest, largest, engines, processor, threads)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Damaged(f"{FILE} is damaged ({type(error).__name__}: {error})") from None


def _engine(engine: Mapping[str, Any], metric: str, smallest: int, largest: int) -> Engine:
    batches = {int(batch["batch_size"]): batch for batch in engine["batches"]}
    latency, quality = number(batches[smallest]["total_ms"]["p50"]), number(engine["quality"][metric])
    if latency is None or quality is None:
        raise ValueError("a latency or a quality is not a number")
    return Engine(
        Point(str(engine["name"]), latency, quality, number(engine.get("size_mib")), str(engine.get("backend", ""))),
        number(engine.get("parameters")),
        number(batches[smallest]["total_ms"].get("p95")),
        number(batches.get(largest, {}).get("examples_per_second")),
        number(engine.get("memory_mib")),
        number(engine.get("agreement")),
    )
