"""Models timed in turn, each in a process of its own; then what they answer, and files of what was found."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from kdbert.benchmark.progress import Progress, opened
from kdbert.benchmark.worker import ENGINES, Text
from kdbert.data.encode import encode
from kdbert.data.examples import Examples
from kdbert.disk.files import atomic_write, sha256, write_json, write_text
from kdbert.errors import KdbertError, UserError, near_miss
from kdbert.export import FORMATS, MODEL, OnnxModel, agreement, export_model, read_about
from kdbert.models.locate import locate
from kdbert.runs.answers import SavedModel, saved_model
from kdbert.runs.environment import cores, environment
from kdbert.runs.folder import RunFolder
from kdbert.tasks import TaskSpec
from kdbert.training.forward import check_runs, predict
from kdbert.training.precision import make_accelerator
from kdbert.version import __version__

log = logging.getLogger("kdbert")
LEAST_CALLS = 100
LARGEST_BATCH, MOST_THREADS = 65_536, 1024  # more is a slip of the keyboard, and would take all memory
WARM_UP, EACH_TURN = 10, 2  # calls that are not counted: at first, and whenever it is an engine's turn again
PARTS = ("total", "tokenisation", "model")


@dataclass
class Contender:
    """One engine: a model and what runs it.

    Attributes:
        name: for tables.
        saved: the model and its task; of an export, the model that it was made of.
        backend: `torch`, `pipeline`, `onnx` or `onnx-int8`.
        folder: what the engine opens.
        seconds: (batch size, part) -> seconds of each counted call.
    """

    name: str
    saved: SavedModel
    backend: str
    folder: str
    parameters: int | None = None
    memory_mib: float = 0.0
    load_seconds: float = 0.0
    seconds: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)
    agreement: float | None = None

    def timed(self) -> dict[str, Any]:
        """What its process gave so far, for JSON."""
        return {
            "parameters": self.parameters,
            "memory_mib": self.memory_mib,
            "load_seconds": self.load_seconds,
            "seconds": [[size, part, seconds] for (size, part), seconds in self.seconds.items()],
        }

    def take(self, timed: Mapping[str, Any]) -> None:
        """Fill in what `timed` gave."""
        self.parameters, self.memory_mib = timed["parameters"], timed["memory_mib"]
        self.load_seconds = timed["load_seconds"]
        self.seconds = {(size, part): list(seconds) for size, part, seconds in timed["seconds"]}

    @property
    def size_mib(self) -> float | None:
        """Weights on disk; None for a model of the Hub."""
        folder = Path(self.folder)
        files = [file for file in folder.glob("*") if file.suffix in (".safetensors", ".bin", ".onnx")]
        return sum(file.stat().st_size for file in files) / 2**20 if files else None


@dataclass(frozen=True)
class Benchmark:
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
) -> Benchmark:
    """Time models on the texts of a task's split, and score what they answer, all on the CPU.

    Each engine is a process of its own. In each round it is every engine's turn once per batch size, in an order that
    moves on from round to round; an engine that waits does not compute. Calls before the counted ones warm it up.
    A call goes from texts to logits (of a pipeline, to labels); all engines get the same texts in the same order.

    Args:
        models: run folders, model folders, Hub ids, or folders that `kdbert export` wrote.
        task: by default the runs' own; all models answer the same.
        split: by default test where it has labels, else dev.
        backends: of models that are no export: `torch`, `pipeline`, `onnx`, `onnx-int8`; a run's missing export is
            made first.
        threads: of each engine; by default, as many as this process may use.
        calls: counted calls of each engine and batch size, at least 100.
        rounds: how many turns they are spread over.
        teacher: whose answers agreement is measured with; by default the first run's teacher.
        output_dir: a new or empty folder, or one with the same benchmark stopped half-way, which is continued; by
            default `benchmark/<task>-<time>` below `runs_dir`, or the one of these that was stopped half-way.

    Raises:
        UserError: no such model, models of several tasks, an unknown backend, a folder that holds something.
        KdbertError: an engine failed.
    """
    threads = cores() if threads is None else threads
    if not 1 <= threads <= MOST_THREADS:
        raise UserError(f"--threads {threads}: expected 1 to {MOST_THREADS}")
    if calls < LEAST_CALLS:
        raise UserError(f"--calls {calls} are too few to say how long one takes; give {LEAST_CALLS} or more")
    if not 1 <= rounds <= calls:
        raise UserError(f"--rounds {rounds}: expected 1 to {calls}, the number of calls")
    for size in batch_sizes:
        if not 1 <= size <= LARGEST_BATCH:
            raise UserError(f"--batch-size {size}: expected 1 to {LARGEST_BATCH}")
    for backend in backends:
        if backend not in ENGINES:
            raise UserError(
                f"--backend {backend!r} is unknown{near_miss(backend, ENGINES)}; expected {', '.join(ENGINES)}"
            )
    asked: dict[str, Any] = {"task": task, "data_dir": data_dir, "max_length": max_length}
    contenders = _contenders(models, backends, asked)
    spec = contenders[0].saved.spec
    scored = split or _scored_split(spec)
    _check_own_data([one.saved for one in contenders], scored)
    examples = contenders[0].saved.examples(scored)
    if examples.labels is None:
        raise UserError(f"{examples.split} of task {spec.name!r} has no labels to score by; choose another --split")
    master = _teacher(teacher, contenders)
    settings: dict[str, Any] = {
        "threads": threads, "calls": calls, "rounds": rounds, "warmup": WARM_UP, "batch_sizes": list(batch_sizes),
    }  # fmt: skip
    facts = environment()
    identity = _identity(contenders, examples, master, settings, facts)
    with opened(output_dir, runs_dir, spec.name, identity) as progress:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            _time(contenders, examples, batch_sizes, progress, threads=threads, calls=calls, rounds=rounds)
            _score(contenders, examples, master, threads)
            facts["threads"] = torch.get_num_threads()
        finally:
            torch.set_num_threads(before)
        content = _content(contenders, examples, master, {**settings, "continued_after": progress.continued}, facts)
        _write(progress.path, content)
    return Benchmark(progress.path, content)


def _content(
    contenders: Sequence[Contender],
    examples: Examples,
    teacher: SavedModel | None,
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """benchmark.json."""
    spec = contenders[0].saved.spec
    return {
        "kdbert": __version__,
        "task": spec.name,
        "split": examples.split,
        "examples": len(examples),
        "metric": spec.metrics[0],
        "environment": machine,
        "settings": settings,
        "engines": [
            _facts(one, settings["batch_sizes"], None if teacher is None else teacher.given) for one in contenders
        ],
    }


def _contenders(models: Sequence[str], backends: Sequence[str], asked: Mapping[str, Any]) -> list[Contender]:
    """Every model with every backend; an export with its own.

    Raises:
        UserError: a model that is not there, or models of several tasks.
    """
    found: list[Contender] = []
    saved: dict[str, SavedModel] = {}
    formats, sources = {}, {}
    for given in dict.fromkeys(models):
        about = read_about(Path(given))
        sources[given] = given
        if about is not None:
            above = Path(given).absolute().parent.parent
            sources[given] = str(above) if (above / "run.json").exists() else str(about["model"])
            formats[given] = str(about["format"])
    # A model folder says nothing of its task: it is that of the runs beside it.
    runs = [given for given in sources if locate(sources[given]).run is not None]
    first = saved_model(sources[runs[0]], **asked) if runs else None
    for given, source in sources.items():
        like = first if given not in runs and asked["task"] is None else None
        saved[given] = saved_model(source, **asked, like=like)
        saved[given].check()
        _ = saved[given].tokenizer  # refuses one that is damaged, before a worker stumbles over it
        if given in formats:
            found.append(Contender("", saved[given], formats[given], given))
    tasks = {one.spec.name: given for given, one in saved.items()}
    if len(tasks) > 1:
        told = ", ".join(f"{name} ({given})" for name, given in tasks.items())
        raise UserError(f"these models are of several tasks: {told}; benchmark them apart, or name one with --task")
    for backend in set(backends) & set(FORMATS):
        for given, one in saved.items():
            if given not in formats and one.place.run is None:
                raise UserError(
                    f"{given!r} is no run folder; export it first (`kdbert export {given} --format {backend} --task "
                    f"{one.spec.name} --output-dir DIR`), and name DIR here"
                )
    for given, one in saved.items():
        for backend in backends if given not in formats else ():
            folder = one.place.source if backend not in FORMATS else str(export_model(given, backend, **asked).path)
            found.append(Contender("", one, backend, folder))
    for one in saved.values() if "pipeline" in backends else ():
        if not one.way.padding or one.tokenizer.pad_token_id is None:
            raise UserError(
                f"a pipeline pads its texts, and {one.given!r} has no padding token or answers otherwise with padding; "
                "leave out --backend pipeline"
            )
    order = {given: number for number, given in enumerate(saved)}
    found.sort(key=lambda one: order.get(one.folder, order.get(one.saved.given, 0)))
    names = _names({one.saved.given: one.saved for one in found})
    for contender in found:
        contender.name = names[contender.saved.given]
    return found


def _check_own_data(models: Sequence[SavedModel], split: str) -> None:
    """Refuse runs of own data that read other columns, labels or another file of the split than the first.

    Raises:
        UserError: with two that differ.
    """
    first = models[0]
    for one in models:
        if (
            one.spec.own is not None
            and first.spec.own is not None
            and one.spec.own.scored_on(split) != (first.spec.own.scored_on(split))
        ):
            raise UserError(
                f"{first.given} and {one.given} are runs on different data of yours (the columns or the {split} file "
                "differ); benchmark them apart"
            )


def _names(models: Mapping[str, SavedModel]) -> dict[str, str]:
    """A short name for each model, or what the person wrote where that would not tell two apart."""
    short = {}
    for given, saved in models.items():
        short[given] = given
        if saved.place.run is not None:
            manifest = RunFolder(saved.place.run).manifest()
            recipe = manifest["recipe"]
            short[given] = f"{recipe['method']['name']}, {manifest['layers']} layers, seed {recipe['seed']}"
    names = list(short.values())
    return {given: name if names.count(name) == 1 else given for given, name in short.items()}


def _scored_split(spec: TaskSpec) -> str:
    """Test where it has labels, else dev (the first of them)."""
    test = spec.splits.get("test")
    return "test" if test is not None and test.labelled else spec.split_names("dev")[0]


def _teacher(named: str | None, contenders: Sequence[Contender]) -> SavedModel | None:
    """Whose answers the others' are compared with.

    Raises:
        UserError: the one that the person named is no such model, or one of another task.
    """
    if named is not None:
        found = saved_model(named, like=contenders[0].saved)
        if found.trained is not None and found.trained.task.name != found.spec.name:
            raise UserError(f"--teacher {named!r} is a model of {found.trained.task.name}, not of {found.spec.name}")
        found.check()
        return found
    for one in contenders:
        run = one.saved.place.run
        facts = RunFolder(run).manifest() if run is not None else {"recipe": {"teachers": []}}
        known = facts.get("fingerprints", {}).get("teacher0")  # by its content, from whatever folder this is asked
        same = next((other.saved for other in contenders if known == other.saved.place.fingerprint()), None)
        if same is not None:
            return same
        for teacher in facts["recipe"]["teachers"][:1]:
            try:
                found = saved_model(teacher["model"], labels=teacher.get("labels"), like=one.saved)
                found.check()
                if known not in (None, found.place.fingerprint()):
                    raise UserError(f"{teacher['model']!r} is not the model that taught {one.saved.given!r}")
            except UserError as error:
                log.warning("agreement with the teacher is left out (name it with --teacher): %s", error)
                return None
            return found
    return None


def _identity(
    contenders: Sequence[Contender],
    examples: Examples,
    teacher: SavedModel | None,
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """What decides a benchmark: one that was stopped is continued if it was of the same."""
    return {
        "engines": [
            {
                "model": one.saved.given,
                "backend": one.backend,
                "weights": sha256(Path(one.folder) / MODEL)
                if one.backend in FORMATS
                else one.saved.place.fingerprint(),
                "max_length": one.saved.max_length,
            }
            for one in contenders
        ],
        "teacher": None if teacher is None else teacher.place.fingerprint(),
        "examples": f"{examples.split} {examples.fingerprint()}",
        "settings": settings,
        "machine": {key: machine[key] for key in ("processor", "cores", "python", "versions")},
    }


class Worker:
    """The process of one engine."""

    def __init__(self, contender: Contender, threads: int) -> None:
        self.contender = contender
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
        environment["RAYON_NUM_THREADS"] = str(threads)
        self.errors = tempfile.TemporaryFile("w+", errors="replace")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kdbert.benchmark.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment,
        )  # fmt: skip

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order and wait for its answer.

        Raises:
            KdbertError: the engine failed.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        reply = json.loads(line) if line else {"error": self._last_words()}
        if "error" in reply:
            raise KdbertError(f"{self.contender.name} ({self.contender.backend}): {reply['error']}")
        return dict(reply)

    def _last_words(self) -> str:
        """How the process ended by itself, and the last line that it wrote of it."""
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its process ended (exit code {code})" + (f": {last}" if last else "")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.errors.close()


def _time(
    contenders: Sequence[Contender],
    examples: Examples,
    batch_sizes: Sequence[int],
    progress: Progress,
    *,
    threads: int,
    calls: int,
    rounds: int,
) -> None:
    """Fill in `seconds`, memory and parameters of each; what was timed before is taken from `progress`, and each round
    kept there.
    """
    for one, known in zip(contenders, progress.engines, strict=False):
        one.take(known)
    done = progress.rounds
    if done < rounds:
        _time_rounds(contenders, examples, batch_sizes, progress, threads=threads, calls=calls, rounds=rounds)
    parameters = {one.saved.given: one.parameters for one in contenders if one.parameters is not None}
    for one in contenders:  # an ONNX file does not say which of its numbers are parameters
        one.parameters = one.parameters or parameters.get(one.saved.given) or _parameters(one.saved)


def _time_rounds(
    contenders: Sequence[Contender],
    examples: Examples,
    batch_sizes: Sequence[int],
    progress: Progress,
    *,
    threads: int,
    calls: int,
    rounds: int,
) -> None:
    """Time the rounds that are left."""
    texts, done = _texts(examples), progress.rounds
    turns = [len(part) for part in np.array_split(np.arange(calls), rounds)]
    with ExitStack() as stack:
        workers = []
        for one in contenders:
            worker = Worker(one, threads)
            stack.callback(worker.close)
            reply = worker.ask(
                do="load", backend=one.backend, folder=one.folder, kind=one.saved.spec.kind,
                max_length=one.saved.max_length, threads=threads, pair=examples.text_b is not None,
                inputs=one.saved.way.inputs, padding=one.saved.way.padding,
            )  # fmt: skip
            one.parameters = reply["parameters"]
            one.load_seconds = one.load_seconds or reply["load_seconds"]
            workers.append(worker)
        bar = stack.enter_context(
            tqdm(
                total=rounds * len(workers),
                initial=done * len(workers),
                desc="benchmark",
                unit="turn",
                leave=False,
                disable=not log.isEnabledFor(logging.INFO),
                mininterval=0.5 if sys.stderr.isatty() else 30.0,
            )
        )
        streams = {size: _calls(texts, size) for size in batch_sizes}
        for number, counted in enumerate(turns):
            orders = {}
            for size, stream in streams.items():
                warm = [next(stream) for _ in range(EACH_TURN if number else WARM_UP)]
                orders[size] = warm, [next(stream) for _ in range(counted)]
            if number < done:  # the texts of the rounds to come are those of a benchmark that nobody stopped
                continue
            if number == done > 0:  # the processes are new and cold
                orders = {
                    size: (list(islice(_calls(texts, size), WARM_UP)), told) for size, (_, told) in orders.items()
                }
            shift = number % len(workers)
            for worker in workers[shift:] + workers[:shift]:
                for size, (warm, counted_calls) in orders.items():
                    worker.ask(do="time", calls=warm)
                    reply = worker.ask(do="time", calls=counted_calls)
                    for part in PARTS:
                        worker.contender.seconds.setdefault((size, part), []).extend(reply[part])
                    worker.contender.memory_mib = max(worker.contender.memory_mib, reply["peak_mib"])
                bar.update()
            progress.save(number + 1, [one.timed() for one in contenders])


def _parameters(saved: SavedModel) -> int:
    """Number of a model's parameters."""
    return sum(parameter.numel() for parameter in saved.network().parameters())


def _texts(examples: Examples) -> list[Text]:
    """What an engine is asked, in an order that is the same for all."""
    texts: list[Text]
    if examples.words is not None:
        texts = [list(words) for words in examples.words]
    elif examples.text_b is not None:
        texts = [list(both) for both in zip(examples.text_a, examples.text_b, strict=True)]
    else:
        texts = list(examples.text_a)
    return [texts[number] for number in np.random.default_rng(0).permutation(len(texts))]


def _calls(texts: Sequence[Text], size: int) -> Iterator[list[Text]]:
    """Batches of texts without end, from the first text on again after the last."""
    position = 0
    while True:
        yield [texts[(position + number) % len(texts)] for number in range(size)]
        position += size


def _score(contenders: Sequence[Contender], examples: Examples, teacher: SavedModel | None, threads: int) -> None:
    """Fill in `quality` and `agreement` of each: its own answers to the whole split."""
    settings: dict[str, Any] = {"batch_size": 32, "precision": "fp32", "accelerator": make_accelerator()}
    device = settings["accelerator"].device
    answers: dict[str, np.ndarray] = {}

    def answer(saved: SavedModel, export: str | None = None) -> np.ndarray:
        key = export or str(saved.place.source)
        if key not in answers:
            data = encode(examples, saved.tokenizer, saved.max_length)
            if export is None:
                model: Any = saved.network().to(device)
                check_runs(model, data, saved.given)
            else:
                model = OnnxModel(Path(export), saved.way, threads)
            logits = predict(model, data, **settings, told=f"{saved.given} on {examples.split}", ids=examples.ids)
            answers[key] = saved.spec.head.label_logits(logits, data, saved.columns)
        return answers[key]

    for one in contenders:
        logits = answer(one.saved, one.folder if one.backend in FORMATS else None)
        one.quality = one.saved.spec.score(logits, examples)
        if teacher is not None:
            spec = one.saved.spec
            one.agreement = agreement(spec.kind, spec.head.predicted(answer(teacher)), spec.head.predicted(logits))


def _facts(one: Contender, batch_sizes: Sequence[int], teacher: str | None) -> dict[str, Any]:
    """An engine as it stands in benchmark.json."""
    return {
        "name": one.name,
        "model": one.saved.given,
        "backend": one.backend,
        "parameters": one.parameters,
        "size_mib": one.size_mib,
        "memory_mib": one.memory_mib,
        "load_seconds": one.load_seconds,
        "max_length": one.saved.max_length,
        "quality": one.quality,
        "agreement": one.agreement,
        "teacher": teacher,
        "batches": [
            {
                "batch_size": size,
                "calls": len(one.seconds[size, "total"]),
                **{
                    f"{part}_ms": milliseconds(one.seconds[size, part]) if one.seconds[size, part] else None
                    for part in PARTS
                },
                "examples_per_second": size * len(one.seconds[size, "total"]) / sum(one.seconds[size, "total"]),
            }
            for size in batch_sizes
        ],
    }


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Mean, sample standard deviation, median and 95th percentile (linear between calls), in milliseconds."""
    values = 1000 * np.asarray(seconds)
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)),
        "p50": float(np.percentile(values, 50)),
        "p95": float(np.percentile(values, 95)),
    }


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    """benchmark.json, benchmark.csv and benchmark.png."""
    from kdbert.reporting.figures import LATENCY, Point, quality_over

    write_json(folder / "benchmark.json", content)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    statistics = ("mean", "sd", "p50", "p95")
    writer.writerow([
        "name", "model", "backend", "parameters", "size_mib", "memory_mib", "task", "split", "metric", "quality",
        "agreement", "batch_size", "calls", *(f"{part}_ms_{name}" for part in PARTS for name in statistics),
        "examples_per_second",
    ])  # fmt: skip
    metric = content["metric"]
    for engine in content["engines"]:
        for batch in engine["batches"]:
            times = [(batch[f"{part}_ms"] or {}).get(name, "") for part in PARTS for name in statistics]
            writer.writerow([
                engine["name"], engine["model"], engine["backend"], engine["parameters"], engine["size_mib"],
                engine["memory_mib"], content["task"], content["split"], metric, engine["quality"][metric],
                "" if engine["agreement"] is None else engine["agreement"], batch["batch_size"], batch["calls"],
                *times, batch["examples_per_second"],
            ])  # fmt: skip
    write_text(folder / "benchmark.csv", out.getvalue())
    points = [
        Point(
            engine["name"],
            engine["batches"][0]["total_ms"]["p50"],
            engine["quality"][metric],
            engine["size_mib"] or 0.0,
            engine["backend"],
        )
        for engine in content["engines"]
    ]
    figure = quality_over(points, LATENCY, metric=metric, split=content["split"], task=content["task"])
    atomic_write(folder / "benchmark.png", lambda temporary: figure.savefig(temporary, format="png", dpi=200))
