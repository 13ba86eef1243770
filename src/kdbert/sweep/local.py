"""Running jobs here: so many processes at a time, each claimed first, stopped politely."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from kdbert.disk.lock import FileLock
from kdbert.errors import Interrupted
from kdbert.runs.environment import cores
from kdbert.signals import stop_request
from kdbert.sweep.jobs import DONE, SweepJob, note_time
from kdbert.sweep.preloaded import Preloaded, Started
from kdbert.sweep.progress import Progress

POLL_SECONDS = 0.05
ELSEWHERE_SECONDS = 1.0  # how often jobs that other sweeps hold are looked at


@dataclass
class Running:
    """A job's process, the claim that it inherited, when it started, and where its part of the log begins."""

    job: SweepJob
    process: subprocess.Popen[bytes] | Started
    claim: FileLock
    slot: int
    started: float
    log_start: int


def run_jobs(jobs: list[SweepJob], slots: int, progress: Progress) -> None:
    """Run what is missing, at most `slots` processes at a time; every job ends in one of `DONE`.

    A job is claimed before it starts, and its process inherits the claim: no other sweep on the same runs
    folder starts it, even if this process is killed and leaves its child behind. Jobs that others hold are
    waited for, and taken over if their holder dies.

    Raises:
        Interrupted: a signal asked to stop; running jobs have saved their state.
    """
    note_time(job for job in jobs if job.state not in ("finished", "diverged"))
    running: list[Running] = []
    environments = [job_environment(slot, slots) for slot in range(slots)]
    next_look = 0.0
    with Preloaded() as server, stop_request("letting the running jobs save, starting no more") as stop:
        while any(job.state not in DONE for job in jobs):
            number = stop.number
            if number:
                _stop(running)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                _ended(one, stopping=bool(number))
                progress.ended(one.job)
                next_look = 0.0
            if number:
                for job in jobs:
                    job.state = "interrupted" if job.state == "waiting" else job.state
                progress.close()
                raise Interrupted(
                    f"stopped; {count_finished(jobs)}; run the same command again to continue", signal_number=number
                )
            if len(running) < slots and time.monotonic() >= next_look:
                next_look = time.monotonic() + ELSEWHERE_SECONDS
                for job in jobs:
                    free = set(range(slots)) - {one.slot for one in running}
                    if free and job.state == "waiting":
                        started = _start(job, server, min(free), environments)
                        if started is not None:
                            running.append(started)
                            progress.started(job)
                        progress.ended(job)
            if not running and not stop.number:
                progress.waiting(sum(job.state not in DONE for job in jobs))
            progress.show([one.job for one in running])
            time.sleep(POLL_SECONDS)
    for job in jobs:
        if job.state in ("finished", "diverged"):  # nobody needs the claim, which a killed sweep may have left
            with contextlib.suppress(OSError):
                job.claim.path.unlink()
    progress.close()


def _start(job: SweepJob, server: Preloaded, slot: int, environments: list[dict[str, str]]) -> Running | None:
    """Start a job's process, unless it waits for what comes before, is done, or is somebody else's."""
    if any(one.state not in DONE for one in job.before):
        return None
    job.look()
    try:
        claim = job.claim
        if job.state != "waiting" or not claim.acquire():
            return None
        with contextlib.ExitStack() as stack:
            stack.callback(claim.release)
            job.look()  # it may have been finished between the look and the claim
            if job.state != "waiting" or job.folder.busy():
                return None
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with open(job.log, "ab") as log:
                log_start = log.tell()
                process = server.start(job.words, environments[slot], log.fileno(), keep=[claim.fileno()])
            stack.pop_all()
    except OSError as error:  # a full disk, too many processes
        job.state, job.message = "failed", f"cannot start: {error}"
        return None
    job.state, job.made_here = "running", True
    return Running(job, process, claim, slot, time.monotonic(), log_start)


def _ended(one: Running, stopping: bool) -> None:
    """Write down how a job's process ended, and let go of the claim."""
    job, code = one.job, one.process.wait()
    job.seconds = time.monotonic() - one.started
    one.claim.release()
    job.state, job.since = "waiting", math.inf
    job.look()
    if job.state == "waiting":
        job.state = "interrupted" if stopping else "failed"
        job.message = f"exit code {code}: {last_line(job.log, one.log_start)}"
        if code < 0:
            job.message = f"killed by signal {-code}" + (" (out of memory?)" if code == -signal.SIGKILL else "")


def last_line(log: Path, start: int = 0) -> str:
    """The last line that a process wrote behind `start` (srun's own remarks do not count)."""
    with open(log, "rb") as file:
        file.seek(start)
        lines = [line.strip() for line in deque(file, maxlen=20) if line.strip() and not line.startswith(b"srun: ")]
    last = lines[-1].decode(errors="replace") if lines else "it said nothing"
    return last.removeprefix("kdbert: ")


def _stop(running: list[Running]) -> None:
    """Ask the running processes to save and end, and wait for them; a second Ctrl-C is passed on.

    The first signal is passed on as SIGTERM: a Ctrl-C in a terminal has reached them already, and a second
    SIGINT would end them at once.
    """
    for one in running:
        one.process.send_signal(signal.SIGTERM)
    while any(one.process.poll() is None for one in running):
        try:
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            for one in running:
                one.process.send_signal(signal.SIGINT)


def count_finished(jobs: list[SweepJob]) -> str:
    """`3 of 4 runs are finished`."""
    cells = [job for job in jobs if job.cell]
    return f"{sum(job.state == 'finished' for job in cells)} of {len(cells)} runs are finished"


def job_environment(slot: int, slots: int) -> dict[str, str]:
    """The environment of the jobs in one slot: their share of the cores, and one GPU where there are several.

    With one slot it is left alone, so that a job runs as it would by hand.
    """
    environment = dict(os.environ)
    if slots == 1:
        return environment
    threads = str(threads_per_job(slots))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        environment[name] = threads
    gpus = _gpus()
    if len(gpus) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment


def threads_per_job(slots: int) -> int:
    """The cores that this process may use, shared out; at least one each."""
    return max(1, cores() // slots)


def _gpus() -> list[str]:
    """The GPUs that jobs may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]
