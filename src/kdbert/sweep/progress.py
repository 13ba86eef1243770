"""What a sweep reports: a line when a job starts or ends, a bar per running job on a terminal, a summary at the end."""

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
    """Lines on stderr; on a terminal also a live view of the running jobs and the time left."""

    def __init__(self, jobs: list[SweepJob], slots: int) -> None:
        self.jobs = jobs
        self.slots = slots
        self._reported = {job for job in jobs if job.state in DONE}
        self._started: dict[SweepJob, float] = {}
        self._seconds: dict[tuple[Any, ...], list[float]] = defaultdict(list)  # of finished jobs, by group
        self._live: Any = None
        self._next = 0.0
        self._waiting = 0
        for job in self._reported:
            if job.state == "finished":
                self._learn(job)

    def started(self, job: SweepJob) -> None:
        """A job's process has started."""
        self._started[job] = time.monotonic()
        self._line("started  ", job, "")

    def ended(self, job: SweepJob) -> None:
        """A job may have ended, here or elsewhere; each is reported once."""
        if job in self._reported or job.state not in DONE:
            return
        self._reported.add(job)
        text = "" if job.state == "interrupted" else why(job)
        if job.state == "finished":
            seconds = self._learn(job)
            text = result_text(job) + (f", {duration(seconds)}" if job.made_here else " (made elsewhere)")
        self._line("FAILED" if job.state == "failed" else job.state.ljust(9), job, text)

    def show(self, running: list[SweepJob]) -> None:
        """Refresh the live view, on a terminal."""
        if not sys.stderr.isatty() or not log.isEnabledFor(logging.INFO) or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REFRESH_SECONDS
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(self._view(running), refresh=True)

    def waiting(self, number: int) -> None:
        """Nothing runs here, and other processes have this many jobs; logged when the number changes."""
        if number != self._waiting:
            self._waiting = number
            log.info("waiting for %s in other processes", counted(number, "run"))

    def close(self) -> None:
        """Remove the live view."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _done(self) -> list[SweepJob]:
        return [job for job in self.jobs if job.state in DONE and job.state != "interrupted"]

    def _left(self) -> str:
        """`; about 3 min 5 s left`, judged by finished jobs of the same group; "" before there is one."""
        known = [value for values in self._seconds.values() for value in values]
        left = 0.0
        for job in self.jobs:
            if job.state in DONE:
                continue
            ran = time.monotonic() - self._started[job] if job in self._started else 0.0
            share = fraction(job) if ran else 0.0
            alike = self._seconds.get(job.group) or ([ran / share] if share > 0.1 else known)
            if not alike:
                return ""
            left += max(mean(alike) - ran, 0.0)
        return f"; about {duration(left / self.slots)} left"

    def _learn(self, job: SweepJob) -> float:
        """Seconds that a finished job took, remembered for its group."""
        seconds = job.seconds or float(job.folder.manifest().get("timings", {}).get("total_seconds", 0.0))
        if seconds:
            self._seconds[job.group].append(seconds)
        return seconds

    def _line(self, what: str, job: SweepJob, text: str) -> None:
        done = self._done()
        line = f"[{len(done)}/{len(self.jobs)}] {what} {job.name}" + (f": {text}" if text else "")
        line += self._left() if job in done and len(done) < len(self.jobs) else ""
        if self._live is not None:
            self._live.console.print(line, highlight=False, markup=False)
        else:
            log.log(logging.WARNING if job.state == "failed" else logging.INFO, "%s", line)

    def _view(self, running: list[SweepJob]) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        for job in running:
            bar = ProgressBar(total=1.0, completed=fraction(job), width=20)
            grid.add_row(Text(job.name), bar, duration(time.monotonic() - self._started[job]))
        done, jobs = len(self._done()), len(self.jobs)
        bar = ProgressBar(total=jobs, completed=done, width=20)
        grid.add_row(Text(f"{done} of {jobs} done{self._left()}"), bar, "")
        return grid


def fraction(job: SweepJob) -> float:
    """The part of its steps that a running job has logged."""
    try:
        manifest = job.folder.manifest()
        with open(job.folder.path / "metrics.jsonl", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
        return min(1.0, float(json.loads(lines[-1])["step"]) / float(manifest["steps"]))
    except Exception:  # the files do not exist yet, or are being written
        return 0.0


def result_text(job: SweepJob) -> str:
    """The selection metric of a finished job, on dev."""
    manifest = job.folder.manifest()
    if not manifest.get("head_trained", True):
        return "no head was trained, so no score"
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


def why(job: SweepJob) -> str:
    """Why a job has failed or diverged, without the word itself, which is told before its name."""
    return job.message.removeprefix("diverged ")


def summary(jobs: list[SweepJob], runs: Path) -> str:
    """The last lines: how many runs ended how; each that failed or diverged, and why."""
    cells = [job for job in jobs if job.cell]
    counts = {state: sum(job.state == state for job in cells) for state in DONE}
    ended = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    lines = [f"{counted(len(cells), 'run')}: {ended}"]
    for job in sorted(jobs, key=lambda job: job.state):  # diverged, failed, finished
        if job.state in ("diverged", "failed"):
            lines.append(f"{job.state}: {job.name}: {why(job)}")
            if job.made_here:
                lines.append(f"  its output: {job.log}")
            if job.state == "failed":
                lines.append(f"  its command: {shlex.join(['kdbert', *job.words])}")
    if counts["failed"]:
        lines.append("fix the cause and rerun: failed runs are retried")
    if counts["finished"]:
        lines.append(f"see them: kdbert table {shlex.quote(str(runs))}")
    return "\n".join(lines)
