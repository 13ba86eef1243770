"""A sweep from its cells to its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdbert.sweep.grid import Cell
from kdbert.sweep.jobs import SweepJob, plan_jobs
from kdbert.sweep.local import run_jobs, threads_per_job
from kdbert.sweep.progress import Progress, counted, summary

log = logging.getLogger("kdbert")


@dataclass(frozen=True)
class SweepResult:
    """How the cells of a sweep ended: run folders of the finished ones; names and reasons of the others."""

    finished: list[Path]
    diverged: dict[str, str]
    failed: dict[str, str]


def sweep(
    cells: list[Cell], *, jobs: int = 1, cluster: Callable[[list[SweepJob], Progress], None] | None = None
) -> SweepResult:
    """Run every cell that is not finished, each as a `kdbert` process of its own; missing teachers first.

    Args:
        cells: from `kdbert.sweep.grid.expand`.
        jobs: processes at a time on this machine; they share the cores.
        cluster: runs the jobs instead of this machine: `kdbert.sweep.slurm.slurm_cluster`.

    Raises:
        Interrupted: a signal; the running jobs have saved their state (those of a cluster stay queued).
    """
    planned = plan_jobs(cells)
    missing = sum(job.state == "waiting" for job in planned)
    work = f"{missing} to run" if missing else "nothing to run"
    if missing and cluster is None:
        work += f", {jobs} at a time"
        work += f", each with {counted(threads_per_job(jobs), 'thread')}" if jobs > 1 else ""
    log.info("%s: %s", sweep_size(planned), work)
    progress = Progress(planned, jobs)
    if cluster is None:
        run_jobs(planned, jobs, progress)
    else:
        cluster(planned, progress)
    level = logging.WARNING if any(job.state == "failed" for job in planned) else logging.INFO
    log.log(level, "%s", summary(planned, Path(cells[0].recipe.output.runs_dir)))
    students = [job for job in planned if job.cell]
    return SweepResult(
        finished=[job.folder.path for job in students if job.state == "finished"],
        diverged={job.name: job.message for job in students if job.state == "diverged"},
        failed={job.name: job.message for job in students if job.state == "failed"},
    )


def sweep_size(planned: list[SweepJob]) -> str:
    """`36 runs and 3 teachers`, `2 runs, 1 teacher and 2 first stages`."""
    numbers = {"run": "student", "teacher": "teacher", "first stage": "stage"}
    counts = {noun: sum(job.job.role == role for job in planned) for noun, role in numbers.items()}
    *most, last = [counted(number, noun) for noun, number in counts.items() if number]
    return f"{', '.join(most)} and {last}" if most else last
