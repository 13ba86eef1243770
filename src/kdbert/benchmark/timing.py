"""Engines timed in turn, each in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kdbert.benchmark.contenders import Contender
from kdbert.benchmark.progress import TimedRounds
from kdbert.benchmark.worker import EngineSettings, Text
from kdbert.data.examples import Examples
from kdbert.errors import KdbertError

log = logging.getLogger("kdbert")
WARM_UP, EACH_TURN = 10, 2  # calls that are not counted: at first, and whenever it is an engine's turn again
PARTS = ("total", "tokenisation", "model")


@dataclass(frozen=True)
class Settings:
    """How engines are timed."""

    threads: int  # of each engine
    calls: int  # that are counted, of each engine and batch size
    rounds: int  # turns that they are spread over
    batch_sizes: tuple[int, ...]


class EngineProcess:
    """The process of one engine."""

    def __init__(self, contender: Contender, threads: int, pair: bool) -> None:
        self.contender = contender
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
        environment["RAYON_NUM_THREADS"] = str(threads)
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kdbert.benchmark.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment,
        )  # fmt: skip
        saved, head = contender.saved, contender.saved.spec.head
        settings = EngineSettings(
            contender.backend, str(Path(contender.folder)), head.auto_class, head.pipeline, head.of_words,
            saved.max_length, threads, pair, saved.way.inputs, saved.way.padding,
        )  # fmt: skip
        self.loaded = self.ask(load=asdict(settings))

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order and wait for its answer; KdbertError if the engine fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        reply: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in reply:
            raise KdbertError(f"{self.contender.name} ({self.contender.backend}): {reply['error']}")
        return reply

    def _last_words(self) -> str:
        """How the process ended by itself, and the last line that it wrote of it."""
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its process ended (exit code {code})" + (f": {last}" if last else "")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._errors.close()


def time_rounds(models: Sequence[Contender], examples: Examples, progress: TimedRounds, settings: Settings) -> None:
    """Fill in what was `timed` of each model; `progress` has the rounds that were timed before, and keeps each.

    That is parameters, load_seconds, memory_mib, and the seconds of each counted call by batch size and part ("1
    total"). In each round it is every engine's turn once per batch size, in an order that moves on from round to round.
    All engines get the same texts in the same order.
    """
    for one, known in zip(models, progress.engines, strict=False):
        one.timed = known
    done = progress.rounds
    if done == settings.rounds:
        return
    texts = _texts(examples)
    turns = [len(part) for part in np.array_split(np.arange(settings.calls), settings.rounds)]
    with ExitStack() as stack:
        processes = []
        for one in models:
            process = EngineProcess(one, settings.threads, examples.text_b is not None)
            stack.callback(process.close)
            one.timed = one.timed or {**process.loaded, "memory_mib": 0.0, "seconds": {}}
            processes.append(process)
        bar = stack.enter_context(
            tqdm(
                total=settings.rounds * len(models), initial=done * len(models), desc="benchmark", unit="turn",
                leave=False, disable=not log.isEnabledFor(logging.INFO),
                mininterval=0.5 if sys.stderr.isatty() else 30.0,
            )
        )  # fmt: skip
        streams = {size: _calls(texts, size) for size in settings.batch_sizes}
        for number, counted in enumerate(turns):
            # Also of the rounds that are done: the next ones get the texts that they would have got without a stop.
            orders = {
                size: (list(islice(stream, EACH_TURN if number else WARM_UP)), list(islice(stream, counted)))
                for size, stream in streams.items()
            }
            if number < done:
                continue
            if number == done > 0:  # the processes are new and cold
                first = {size: list(islice(_calls(texts, size), WARM_UP)) for size in orders}
                orders = {size: (first[size], told) for size, (_, told) in orders.items()}
            shift = number % len(processes)
            for process in processes[shift:] + processes[:shift]:
                for size, (warm, told) in orders.items():
                    process.ask(calls=warm)
                    reply = process.ask(calls=told)
                    timed = process.contender.timed
                    for part in PARTS:
                        timed["seconds"].setdefault(f"{size} {part}", []).extend(reply[part])
                    timed["memory_mib"] = max(timed["memory_mib"], reply["peak_mib"])
                bar.update()
            progress.rounds, progress.engines = number + 1, [one.timed for one in models]
            progress.save()


def _texts(examples: Examples) -> list[Text]:
    """What an engine is asked, in an order that is the same for all."""
    texts: list[Text] = list(examples.text_a)
    if examples.words is not None:
        texts = [list(words) for words in examples.words]
    elif examples.text_b is not None:
        texts = [list(both) for both in zip(examples.text_a, examples.text_b, strict=True)]
    return [texts[number] for number in np.random.default_rng(0).permutation(len(texts))]


def _calls(texts: Sequence[Text], size: int) -> Iterator[list[Text]]:
    """Batches of texts without end, from the first text on again after the last."""
    endless = cycle(texts)
    while True:
        yield list(islice(endless, size))


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Mean, sample standard deviation, median and 95th percentile (linear between calls), in milliseconds."""
    values = 1000 * np.asarray(seconds)
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)),
        "p50": float(np.percentile(values, 50)),
        "p95": float(np.percentile(values, 95)),
    }
