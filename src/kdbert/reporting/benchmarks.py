"""benchmark.json, which `kdbert benchmark` writes: how fast models are, for a figure and a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbert.disk.sealed import parse_json
from kdbert.reporting.collect import number
from kdbert.reporting.figures import Point

FILE = "benchmark.json"


@dataclass(frozen=True)
class Engine:
    """A measured model: its place in the figure, and what the table says besides (None: not known).

    Attributes:
        p95: of the time of one call, ms.
        rate: texts per second with the largest batch.
        memory: MiB.
        agreement: share of examples with its teacher's answer.
    """

    point: Point
    parameters: float | None
    p95: float | None
    rate: float | None
    memory: float | None
    agreement: float | None


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.json.

    Attributes:
        batch_size: of the calls whose latency is shown: 1, if that was measured.
        largest: the largest batch size.
        environment: the machine, as in run.json.
    """

    path: Path
    task: str
    split: str
    metric: str
    batch_size: int
    largest: int
    engines: tuple[Engine, ...]
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]


def find_benchmarks(paths: Iterable[str | Path]) -> tuple[list[Benchmark], dict[Path, str]]:
    """Every benchmark.json at or below the given folders, and the damaged ones with what is wrong."""
    found: dict[Path, Benchmark] = {}
    broken: dict[Path, str] = {}
    for root in paths:
        for folder, inside, files in os.walk(root):
            inside[:] = sorted(name for name in inside if not name.startswith("."))
            path = Path(folder) / FILE
            if FILE not in files or path.absolute() in found or path in broken:
                continue
            try:
                found[path.absolute()] = read_benchmark(path)
            except ValueError as error:
                broken[path] = str(error)
    return list(found.values()), broken


def read_benchmark(path: Path) -> Benchmark:
    """One file.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        metric = str(content["metric"])
        sizes = [int(batch["batch_size"]) for engine in content["engines"] for batch in engine["batches"]]
        smallest, largest = min(sizes), max(sizes)
        engines = tuple(_engine(engine, metric, smallest, largest) for engine in content["engines"])
        environment, settings = content.get("environment", {}), content.get("settings", {})
        if not isinstance(environment, dict) or not isinstance(settings, dict):
            raise ValueError("environment or settings is no mapping")
        return Benchmark(
            path, str(content["task"]), str(content["split"]), metric, smallest, largest, engines, environment, settings
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{FILE} is damaged ({type(error).__name__}: {error})") from None


def _engine(engine: Mapping[str, Any], metric: str, smallest: int, largest: int) -> Engine:
    batches = {int(batch["batch_size"]): batch for batch in engine["batches"]}
    point = Point(
        name=str(engine["name"]),
        latency_ms=_sure(batches[smallest]["total_ms"]["p50"]),
        quality=_sure(engine["quality"][metric]),
        size_mib=_perhaps(engine.get("size_mib")),
        backend=str(engine.get("backend", "")),
    )
    return Engine(
        point,
        _perhaps(engine.get("parameters")),
        _perhaps(batches[smallest]["total_ms"].get("p95")),
        _perhaps(batches.get(largest, {}).get("examples_per_second")),
        _perhaps(engine.get("memory_mib")),
        _perhaps(engine.get("agreement")),
    )


def _perhaps(value: Any) -> float | None:
    return None if value is None else _sure(value)


def _sure(value: Any) -> float:
    found = number(value)
    if found is None:
        raise ValueError(f"{value!r} is no number")
    return found
