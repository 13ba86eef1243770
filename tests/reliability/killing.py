"""A run that is killed, at random times or at each change of the disk, continued by the same command, and compared with
one left alone.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equal_runs import differences, different_files, half_written

from in_processes import manifest, processes, run_command, saved_steps, start


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


# ---- kills at every change of the disk, one after the other

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")  # audit events; os.replace is one of the first


def run_to_change(number: int | None, root: Path, words: list[str], output: Path) -> None:
    """Body of a process that runs the command and dies (SIGKILL) when it is about to change the disk for the so-manyth
    time: to make, rename or remove something below `root`, or to flush a file.

    Args:
        number: from 1 on; None: it lives, and each change is told in a line of `output`.calls.
    """
    count = 0
    calls = os.open(f"{output}.calls", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def change(what: str, path: str) -> None:
        nonlocal count
        count += 1
        os.write(calls, f"{what} {Path(path).name}\n".encode())
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        # The last argument is a folder's descriptor, or -1; with one, shutil.rmtree is at work.
        if event in CHANGES and (arguments[-1] != -1 or str(arguments[0]).startswith(str(root))):
            change(event, str(arguments[0]))

    flush = os.fsync

    def fsync(descriptor: int) -> None:
        change("os.fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    os.fsync = fsync
    sys.addaudithook(audited)
    run_command(words, output)


def die_at_changes(
    words_of: Callable[[Path], list[str]],
    root: Path,
    choose: Callable[[list[str]], list[int]] = lambda calls: list(range(1, len(calls) + 1)),
    tell: Callable[[str], None] = lambda line: None,
) -> Figures:
    """A run for each chosen change of the disk, killed right before it, continued by the same command, compared.

    Args:
        words_of: see `kill_runs`. root: see there. tell: see there.
        choose: of the changes in an undisturbed run (`os.rename .state.json.tmp`) those to die before, from 1 on.
    """
    output = root / "output"
    root.mkdir(parents=True)

    def ended(run: Path, number: int | None) -> int | None:
        process = processes.Process(target=run_to_change, args=(number, root, words_of(run), output))
        process.start()
        process.join()
        return process.exitcode

    expected = root / "alone" / "run"
    begun = time.monotonic()
    assert ended(expected, None) == 0, output.read_text(encoding="utf-8")
    figures = Figures(time.monotonic() - begun)
    calls = Path(f"{output}.calls").read_text(encoding="utf-8").splitlines()
    for number in choose(calls):
        run = root / f"killed-{number}" / "run"
        begun = time.monotonic()
        found = []
        if ended(run, number) != -signal.SIGKILL:
            found.append("was not killed")
        last = Path(f"{output}.calls").read_text(encoding="utf-8").splitlines()[-1]
        litter = half_written(run.parent)
        figures.kills.append(Kill(figures.runs, time.monotonic() - begun, reached(run), litter))
        code = ended(run, None)
        told = output.read_text(encoding="utf-8", errors="replace")
        figures.skipped += told.count("skipping checkpoint")
        found += [f"exit code {code}: {told.strip().splitlines()[-1:]}"] if code else compare(run, expected)
        tell(f"change {number} of {len(calls)} ({last}), at {figures.kills[-1].reached}: {'; '.join(found) or 'equal'}")
        figures.faults += [f"run {figures.runs}: before change {number} ({last}): {fault}" for fault in found]
        figures.runs += 1
        if not found:
            shutil.rmtree(run.parent)
    return figures
