"""A run that is killed at random times, continued by the same command each time, and compared with one left alone."""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from equal_runs import differences, different_files, half_written

from in_processes import manifest, saved_steps, start


@dataclass(frozen=True)
class Kill:
    """One SIGKILL.

    Attributes:
        run: number of the run that it met.
        seconds: after the start of the process.
        reached: what the run had reached: `start` (nothing saved yet), `step 12` (its newest checkpoint), `end`.
        half_written: what it left under temporary names.
    """

    run: int
    seconds: float
    reached: str
    half_written: list[str]


@dataclass
class Figures:
    """What came of the kills.

    Attributes:
        seconds: how long the run takes that nobody disturbs.
        runs: how many runs were brought to their end.
        skipped: how often a checkpoint was named as damaged and skipped.
        faults: what was not as in the undisturbed run, or ended badly.
    """

    seconds: float
    kills: list[Kill] = field(default_factory=list)
    runs: int = 0
    skipped: int = 0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        steps = sorted(int(kill.reached.split()[1]) for kill in self.kills if kill.reached.startswith("step"))
        reached = [kill.reached for kill in self.kills]
        lines = [
            f"{len(self.kills)} kills of {self.runs} runs; left alone, a run takes {self.seconds:.1f} s",
            f"  {reached.count('start')} before the first checkpoint, {len(steps)} with one, {reached.count('end')} "
            "behind the end",
            f"  newest checkpoint at the kill: {', '.join(map(str, steps))}",
            f"  {sum(bool(kill.half_written) for kill in self.kills)} left something half-written; "
            f"{self.skipped} checkpoints skipped as damaged",
            f"  {self.runs - len({fault.partition(':')[0] for fault in self.faults})} of {self.runs} runs ended equal "
            "to the one left alone, with nothing temporary left",
        ]
        return "\n".join([*lines, *(f"  FAULT: {fault}" for fault in self.faults)])


def kill_runs(
    words_of: Callable[[Path], list[str]],
    root: Path,
    kills: int,
    seed: int,
    tell: Callable[[str], None] = lambda line: None,
) -> Figures:
    """Kill until it has been done `kills` times; every run goes on by the same command until it ends.

    Args:
        words_of: the command whose run folder is the one given, and whose runs folder is `runs` beside it.
        root: a folder that is not there yet.
        seed: of the moments, each uniform between the start of the process and what an undisturbed run takes.
        tell: gets a line for each kill and run.
    """
    draw, output = random.Random(seed), root / "output"
    root.mkdir(parents=True)
    start(["--version"], output).join()  # the process is there from which the others are forked
    expected = root / "alone" / "run"
    begun = time.monotonic()
    process = start(words_of(expected), output)
    process.join()
    assert process.exitcode == 0, output.read_text(encoding="utf-8")
    figures = Figures(time.monotonic() - begun)
    tell(f"left alone, the run takes {figures.seconds:.1f} s")
    while len(figures.kills) < kills:
        run = root / f"killed-{figures.runs}" / "run"
        code = None
        while code is None:
            code = run_or_kill(words_of(run), run, output, figures, kills, draw, tell)
        told = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        found = [f"exit code {code}: {told[-1] if told else ''}"] if code else compare(run, expected)
        tell(f"run {figures.runs}: {'; '.join(found) or 'equal'}")
        figures.faults += [f"run {figures.runs}: {fault}" for fault in found]
        figures.runs += 1
        if not found:
            shutil.rmtree(run.parent)
    return figures


def run_or_kill(
    words: list[str],
    run: Path,
    output: Path,
    figures: Figures,
    kills: int,
    draw: random.Random,
    tell: Callable[[str], None],
) -> int | None:
    """Start the command and kill it after a while, if more kills are wanted.

    Returns:
        Its exit code, if it ended before.
    """
    process = start(words, output)
    begun = time.monotonic()
    try:
        process.join(draw.uniform(0, figures.seconds) if len(figures.kills) < kills else None)
    finally:
        process.kill()
        process.join()
    figures.skipped += len(re.findall(r"skipping checkpoint", output.read_text(encoding="utf-8", errors="replace")))
    if process.exitcode != -signal.SIGKILL:
        return process.exitcode
    figures.kills.append(
        Kill(figures.runs, time.monotonic() - begun, reached(run), half_written(run.parent) if run.exists() else [])
    )
    kill = figures.kills[-1]
    remark = f", half-written: {' '.join(kill.half_written)}" if kill.half_written else ""
    tell(f"kill {len(figures.kills)}: run {kill.run}, after {kill.seconds:.2f} s, at {kill.reached}{remark}")
    return None


def reached(run: Path) -> str:
    """What a run has saved."""
    if (run / "run.json").exists() and manifest(run)["status"] == "finished":
        return "end"
    steps = saved_steps(run)
    return f"step {steps[-1]}" if steps else "start"


def compare(run: Path, expected: Path) -> list[str]:
    """What is not as in the undisturbed run: its own folder, and memory and teacher outputs beside it."""
    places = [run.parent, expected.parent]
    return (
        [f"{name} differs" for name in differences(run, expected)]
        + [f"runs/{name} differs" for name in different_files(*(place / "runs" for place in places))]
        + [f"{name} is left" for name in half_written(run.parent)]
    )
