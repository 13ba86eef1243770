"""`kdbert benchmark`: models are timed in turn, then scored; benchmark.json, .csv and .png say what was found."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kdbert.benchmark.contenders import Contender, check_own_data, contenders, teacher_of
from kdbert.benchmark.progress import opened
from kdbert.benchmark.timing import PARTS, WARM_UP, Settings, milliseconds, time_rounds
from kdbert.benchmark.worker import ENGINES
from kdbert.data.examples import Examples
from kdbert.disk.files import atomic_write, write_json, write_text
from kdbert.errors import UserError, near_miss
from kdbert.export import OnnxModel, answers
from kdbert.runs.answers import Answers, SavedModel
from kdbert.runs.environment import cores, environment
from kdbert.version import __version__

LEAST_CALLS = 100
LARGEST_BATCH, MOST_THREADS = 65_536, 1024  # more is a typing error, and would take all memory
STATISTICS = ("mean", "sd", "p50", "p95")


class Measured(NamedTuple):
    """What was found: the folder with the files, and the content of benchmark.json."""

    path: Path
    content: Mapping[str, Any]


def benchmark(
    models: Sequence[str],
    *,
    task: str | None = None,
    data_dir: str | None = None,
    split: str | None = None,
    backends: Sequence[str] = ("torch",),
    batch_sizes: Sequence[int] = (1, 32),
    threads: int | None = None,
    calls: int = LEAST_CALLS,
    rounds: int = 5,
    teacher: str | None = None,
    max_length: int | None = None,
    output_dir: str | None = None,
    runs_dir: str = "runs",
) -> Measured:
    """Time models on the texts of a task's split, and score what they answer, all on the CPU.

    Each engine is a process of its own, see `time_rounds`; one that waits does not compute. Calls before the counted
    ones warm it up. A call goes from texts to logits (of a pipeline, to labels).

    Args:
        models: run folders, model folders, Hub ids, or folders that `kdbert export` wrote.
        split: by default test where it has labels, else dev.
        backends: of models that are not exports: `torch`, `pipeline`, `onnx`, `onnx-int8`; a run's missing export is
            made first.
        threads, calls, rounds: see `Settings`; by default, as many threads as this process may use.
        teacher: whose answers agreement is measured with; by default the first run's teacher.
        output_dir: a new or empty folder, or one with the same benchmark stopped half-way, which is continued; by
            default `benchmark/<task>-<time>` below `runs_dir`, or the one of these that was stopped half-way.
    """
    settings = Settings(cores() if threads is None else threads, calls, rounds, tuple(batch_sizes))
    _check(settings, backends)
    models_there = contenders(models, backends, {"task": task, "data_dir": data_dir, "max_length": max_length})
    spec = models_there[0].saved.spec
    test = spec.splits.get("test")
    scored = split or ("test" if test is not None and test.labelled else spec.split_names("dev")[0])
    check_own_data(models_there, scored)
    examples = models_there[0].saved.examples(scored)
    if examples.labels is None:
        raise UserError(f"{examples.split} of task {spec.name!r} has no labels to score by; choose another --split")
    master = teacher_of(teacher, models_there)
    told = {**asdict(settings), "warmup": WARM_UP}
    machine = environment()
    with opened(output_dir, runs_dir, spec.name, _identity(models_there, examples, master, told, machine)) as progress:
        before = torch.get_num_threads()
        torch.set_num_threads(settings.threads)
        try:
            time_rounds(models_there, examples, progress, settings)
            _score(models_there, examples, master, settings.threads)
            machine["threads"] = torch.get_num_threads()
        finally:
            torch.set_num_threads(before)
        content = {
            "kdbert": __version__,
            "task": spec.name,
            "split": examples.split,
            "examples": len(examples),
            "metric": spec.metrics[0],
            "environment": machine,
            "settings": {**told, "continued_after": progress.continued},
            "engines": [_facts(one, settings.batch_sizes, master.given if master else None) for one in models_there],
        }
        _write(progress.path, content)
    return Measured(progress.path, content)


def _check(settings: Settings, backends: Sequence[str]) -> None:
    if not 1 <= settings.threads <= MOST_THREADS:
        raise UserError(f"--threads {settings.threads}: expected 1 to {MOST_THREADS}")
    if settings.calls < LEAST_CALLS:
        raise UserError(f"--calls {settings.calls} is too few to measure a latency; give {LEAST_CALLS} or more")
    if not 1 <= settings.rounds <= settings.calls:
        raise UserError(f"--rounds {settings.rounds}: expected 1 to {settings.calls}, the number of calls")
    for size in settings.batch_sizes:
        if not 1 <= size <= LARGEST_BATCH:
            raise UserError(f"--batch-size {size}: expected 1 to {LARGEST_BATCH}")
    for name in backends:
        if name not in ENGINES:
            raise UserError(f"--backend {name!r} is unknown{near_miss(name, ENGINES)}; expected {', '.join(ENGINES)}")


def _identity(
    models: Sequence[Contender],
    examples: Examples,
    teacher: SavedModel | None,
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """What decides a benchmark: one that was stopped is continued if it was of the same."""
    engines = []
    for one in models:
        known = {"model": one.saved.given, "backend": one.backend, "weights": one.weights}
        engines.append({**known, "max_length": one.saved.max_length})
    return {
        "engines": engines,
        "teacher": None if teacher is None else teacher.place.fingerprint(),
        "examples": f"{examples.split} {examples.fingerprint()}",
        "settings": settings,
        "machine": {key: machine[key] for key in ("processor", "cores", "python", "versions")},
    }


def _score(models: Sequence[Contender], examples: Examples, teacher: SavedModel | None, threads: int) -> None:
    """Fill in quality and agreement by each engine's own answers to the whole split; and parameters of an export."""
    known: dict[str, Answers] = {}

    def answers_of(saved: SavedModel, export: str | None = None) -> Answers:
        key = export or str(saved.place.source)
        if key not in known:
            model = saved.network() if export is None else OnnxModel(Path(export), saved.way, threads)
            known[key] = answers(saved, model, examples)
        return known[key]

    parameters = {one.saved.given: n for one in models if (n := one.timed["parameters"]) is not None}
    for one in models:
        own = answers_of(one.saved, one.folder if one.exported else None)
        one.quality = own.scores
        if teacher is not None:
            one.agreement = answers_of(teacher).agreement(own)
        if one.saved.given not in parameters:  # an ONNX file does not say which of its numbers are parameters
            parameters[one.saved.given] = sum(parameter.numel() for parameter in one.saved.network().parameters())
        one.parameters = parameters[one.saved.given]


def _facts(one: Contender, batch_sizes: Sequence[int], teacher: str | None) -> dict[str, Any]:
    """An engine as it is in benchmark.json."""
    batches = []
    for size in batch_sizes:
        times = {part: one.timed["seconds"][f"{size} {part}"] for part in PARTS}
        batches.append({
            "batch_size": size,
            "calls": len(times["total"]),
            **{f"{part}_ms": milliseconds(values) if values else None for part, values in times.items()},
            "examples_per_second": size * len(times["total"]) / sum(times["total"]),
        })  # fmt: skip
    return {
        "name": one.name,
        "model": one.saved.given,
        "backend": one.backend,
        "parameters": one.parameters,
        "size_mib": one.size_mib,
        "memory_mib": one.timed["memory_mib"],
        "load_seconds": one.timed["load_seconds"],
        "max_length": one.saved.max_length,
        "quality": one.quality,
        "agreement": one.agreement,
        "teacher": teacher,
        "batches": batches,
    }


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    """benchmark.json, benchmark.csv and benchmark.png."""
    from kdbert.reporting.figures import LATENCY, Point, quality_over

    write_json(folder / "benchmark.json", content)
    write_text(folder / "benchmark.csv", _csv(content))
    metric = content["metric"]
    points = []
    for engine in content["engines"]:
        latency, quality = engine["batches"][0]["total_ms"]["p50"], engine["quality"][metric]
        points.append(Point(engine["name"], latency, quality, engine["size_mib"], engine["backend"]))
    figure = quality_over(points, LATENCY, metric=metric, split=content["split"], task=content["task"])
    atomic_write(folder / "benchmark.png", lambda temporary: figure.savefig(temporary, format="png", dpi=200))


def _csv(content: Mapping[str, Any]) -> str:
    """One line for each engine and batch size."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([
        "name", "model", "backend", "parameters", "size_mib", "memory_mib", "task", "split", "metric", "quality",
        "agreement", "batch_size", "calls", *(f"{part}_ms_{name}" for part in PARTS for name in STATISTICS),
        "examples_per_second",
    ])  # fmt: skip
    metric = content["metric"]
    for engine in content["engines"]:
        for batch in engine["batches"]:
            times = [(batch[f"{part}_ms"] or {}).get(name, "") for part in PARTS for name in STATISTICS]
            writer.writerow([
                engine["name"], engine["model"], engine["backend"], engine["parameters"], engine["size_mib"],
                engine["memory_mib"], content["task"], content["split"], metric, engine["quality"][metric],
                "" if engine["agreement"] is None else engine["agreement"], batch["batch_size"], batch["calls"],
                *times, batch["examples_per_second"],
            ])  # fmt: skip
    return out.getvalue()
