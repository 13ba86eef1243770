"""What a sweep tells while it runs: a line when a job starts or ends, and on a terminal a bar per running job."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from kdbert.sweep.jobs import DONE, SweepJob

log = logging.getLogger("kdbert")
REFRESH_SECONDS = 2.0


class Progress:
    """Lines on stderr; on a terminal also a live view of what runs, with the time that is left."""

    def __init__(self, jobs: list[SweepJob], slots: int) -> None:
        self.jobs = jobs
        self.slots = slots
        self.told = {id(job) for job in jobs if job.state in DONE}
        self.seconds: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        self.since: dict[int, float] = {}
        self._live: Any = None
        self._next = 0.0
        self._waiting = 0
        for job in jobs:
            if job.state == "finished":
                self._learn(job)

    def started(self, job: SweepJob) -> None:
        """A job's process has started."""
        self.since[id(job)] = time.monotonic()
        self._line("started  ", job, "")

    def ended(self, job: SweepJob) -> None:
        """A job is done: by its process, or found so."""
        if id(job) in self.told or job.state not in DONE:
            return
        self.told.add(id(job))
        self.since.pop(id(job), None)
        if job.state == "finished":
            self._learn(job)
            text = result_text(job) + (f", {duration(job.seconds)}" if job.made_here else " (made elsewhere)")
        else:
            text = "" if job.state == "interrupted" else job.message
        self._line(job.state.upper() if job.state == "failed" else job.state.ljust(9), job, text)

    def show(self, jobs: list[SweepJob], running: list[SweepJob]) -> None:
        """Refresh the live view, on a terminal."""
        if not sys.stderr.isatty() or not log.isEnabledFor(logging.INFO) or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REFRESH_SECONDS
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(self._view(jobs, running), refresh=True)

    def waiting(self, number: int) -> None:
        """Nothing runs here, and this many jobs are held by other processes; said when the number changes."""
        if number != self._waiting:
            self._waiting = number
            log.info("waiting for %s that other processes have", counted(number, "run"))

    def close(self) -> None:
        """Take the live view away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def estimate(self) -> float | None:
        """Seconds until all jobs are done, from the jobs of the same kind that are; None before the first."""
        known = [value for values in self.seconds.values() for value in values]
        left = 0.0
        for job in self.jobs:
            if job.state in DONE:
                continue
            ran = time.monotonic() - self.since[id(job)] if id(job) in self.since else 0.0
            share = fraction(job) if ran else 0.0
            if job.group in self.seconds:
                whole = mean(self.seconds[job.group])
            elif share > 0.1:
                whole = ran / share
            elif known:
                whole = mean(known)
            else:
                return None
            left += max(whole - ran, 0.0)
        return left / self.slots

    def _learn(self, job: SweepJob) -> None:
        seconds = job.seconds or job.folder.manifest().get("timings", {}).get("total_seconds", 0.0)
        if seconds:
            self.seconds[job.group].append(seconds)

    def _line(self, what: str, job: SweepJob, text: str) -> None:
        done = sum(job.state in DONE and job.state != "interrupted" for job in self.jobs)
        left = self.estimate() if job.state in DONE and job.state != "interrupted" else None
        tail = f"; about {duration(left)} left" if left is not None and done < len(self.jobs) else ""
        line = f"[{done}/{len(self.jobs)}] {what} {job.name}" + (f": {text}" if text else "") + tail
        if self._live is not None:
            self._live.console.print(line, highlight=False, markup=False)
        elif job.state == "failed":
            log.warning("%s", line)
        else:
            log.info("%s", line)

    def _view(self, jobs: list[SweepJob], running: list[SweepJob]) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        for job in running:
            share = fraction(job)
            ran = time.monotonic() - self.since[id(job)]
            grid.add_row(Text(job.name), ProgressBar(total=1.0, completed=share, width=20), f"{duration(ran)}")
        done = sum(job.state in DONE for job in jobs)
        left = self.estimate()
        summary = f"{done} of {len(jobs)} done" + (f", about {duration(left)} left" if left is not None else "")
        grid.add_row(Text(summary), ProgressBar(total=float(len(jobs)), completed=float(done), width=20), "")
        return Group(grid)


def fraction(job: SweepJob) -> float:
    """How much of its steps a running job has taken, by what it has written down."""
    try:
        manifest = job.folder.manifest()
        with open(job.folder.path / "metrics.jsonl", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
        return min(1.0, float(json.loads(lines[-1])["step"]) / float(manifest["steps"]))
    except Exception:  # the files are being written, or not there yet
        return 0.0


def result_text(job: SweepJob) -> str:
    """The selected metric on dev of a finished job."""
    manifest = job.folder.manifest()
    metric = manifest["selection"]
    split, values = next(iter(manifest["metrics"].items()))
    one = ", one answer to every example" * (split in manifest.get("one_answer", {}))
    return f"{split} {metric} {values[metric]:.4f}{one}"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def summary(jobs: list[SweepJob], runs: Path) -> str:
    """The closing lines: how many cells are in which state, what failed and why, what diverged."""
    cells = [job for job in jobs if job.command == "distill"]
    counts = {state: sum(job.state == state for job in cells) for state in DONE}
    lines = [
        f"{counted(len(cells), 'run')}: " + ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    ]
    for state in ("diverged", "failed"):
        for job in jobs:
            if job.state == state:
                lines.append(f"{state}: {job.name}: {job.message}")
                if job.made_here:
                    lines.append(f"  its output: {job.log}")
                if state == "failed":
                    lines.append(f"  its command: {shlex.join(['kdbert', *job.words])}")
    if counts["failed"]:
        lines.append("once the cause is mended, the same sweep runs what failed (kdbert distill has --overwrite)")
    if counts["finished"]:
        lines.append(f"see them: kdbert table {shlex.quote(str(runs))}")
    return "\n".join(lines)
