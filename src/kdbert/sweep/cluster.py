"""Running jobs on a cluster: submitted by submitit in arrays, watched until they have left the queue.

How a run ended is read from its run folder. Nothing of submitit's is unpickled here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import re
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from submitit.core.core import PicklingExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from kdbert.disk.files import write_json
from kdbert.disk.lock import FileLock
from kdbert.disk.sealed import parse_json
from kdbert.errors import Interrupted, UserError
from kdbert.signals import stop_request
from kdbert.sweep.jobs import DONE, SweepJob, note_time
from kdbert.sweep.local import POLL_SECONDS, count_finished, last_line
from kdbert.sweep.progress import Progress, counted
from kdbert.sweep.submitted import Submitted

log = logging.getLogger("kdbert")
LARGEST_ARRAY = 1000  # Slurm's MaxArraySize is 1001 unless a cluster has changed it


@dataclass
class Queued:
    """A job on the cluster."""

    id: str
    files: Path  # the folder with its pickle and its output
    missed: bool = False  # by the last look at the queue

    @property
    def errors(self) -> Path:
        """Its stderr."""
        return self.files / f"{self.id}_0_log.err"


@dataclass(frozen=True)
class Cluster:
    """A queue that takes jobs. Called with the jobs of a sweep, it runs them."""

    executor: Callable[[Path], PicklingExecutor]  # submitit's, which keeps its files in the folder that it is given
    queue: Callable[[], Mapping[str, str]]  # id -> state of the jobs that are queued or running now
    look_seconds: float = 15.0  # how often the queue is asked

    def __call__(self, jobs: list[SweepJob], progress: Progress) -> None:
        """Submit what is neither done nor queued, and wait until it has left the queue. Every job ends in `DONE`.

        Raises:
            Interrupted: a signal asked to stop watching; the jobs stay queued.
        """
        note_time(job for job in jobs if job.state not in DONE)
        with stop_request("the jobs stay in the queue") as stop:
            queued = self._queue_up(jobs)
            next_look = 0.0
            while any(job.state not in DONE for job in queued):
                if stop.number:
                    progress.close()
                    left = _arrays_of(one for job, one in queued.items() if job.state not in DONE)
                    raise Interrupted(
                        f"stopped watching; {count_finished(jobs)}, the others stay in the queue (see them: squeue "
                        f"--me; remove them: scancel {left}); the same command watches them again",
                        signal_number=stop.number,
                    )
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + self.look_seconds
                    self._look(queued, progress)
                running = [job for job in queued if job.state == "running"]
                progress.slots = max(1, len(running))
                progress.show(running)
                time.sleep(POLL_SECONDS)
        progress.close()

    def _queue_up(self, jobs: list[SweepJob]) -> dict[SweepJob, Queued]:
        """Submit the jobs that are neither done nor queued; returns all that are queued then."""
        with contextlib.ExitStack() as stack:
            for root in sorted({job.root for job in jobs if job.state not in DONE}):  # or two sweeps submit the same
                lock = FileLock(root / ".sweep" / "slurm" / "submitting.lock")
                lock.acquire(wait=True)
                stack.callback(lock.release)
            listed = queued_jobs(jobs, self.queue)
            for job in jobs:
                if job not in listed:  # it may have ended while nobody watched
                    _clear(job)
            queued = {job: one for job, one in listed.items() if job.state not in DONE}
            if queued:
                log.info("%s queued already", counted(len(queued), "job"))
            missing = [job for job in jobs if job.state not in DONE and job not in queued]
            if missing:
                self._submit(missing, queued)
        return queued

    def _submit(self, jobs: list[SweepJob], queued: dict[SweepJob, Queued]) -> None:
        """Submit jobs, and write down the ids of each array before anything else can happen."""
        make_private(private_folder())
        files = Path(tempfile.mkdtemp(prefix="sweep-", dir=private_folder()))
        executor = self.executor(files)
        new: list[Queued] = []
        try:
            for array in arrays(jobs):
                wait_for_others(executor, array, queued)
                with contextlib.redirect_stderr(io.StringIO()):  # submitit also prints what it raises
                    submitted = executor.submit_array([Submitted(job.words) for job in array])
                for job, one in zip(array, [one.job_id for one in submitted], strict=True):
                    queued[job] = Queued(one, files)
                    new.append(queued[job])
                    command = shlex.join(["kdbert", *job.words])
                    write_json(_record(job), {"run": job.name, "job": one, "files": str(files), "command": command})
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            _remove_if_empty(files)
            before = f"; submitted before that: {_arrays_of(new)}" if new else ""
            raise UserError(f"sbatch refused: {' '.join(str(error).split())}{before}") from None
        log.info("submitted %s: %s; their output while they run: %s", counted(len(jobs), "job"), _arrays_of(new), files)

    def _look(self, queued: Mapping[SweepJob, Queued], progress: Progress) -> None:
        """Ask the queue, and read how the jobs that have left it ended."""
        try:
            listed = self.queue()
        except UserError as error:
            log.warning("%s; trying again", error)
            return
        for job, one in queued.items():
            if job.state in DONE:
                continue
            state = listed.get(one.id)
            if state is None:
                _left_queue(job, one)
                progress.ended(job)
            elif state == "RUNNING" and job.state == "waiting":
                job.state = "running"
                progress.started(job)
            elif state == "PENDING":  # again, after a time-out or a preemption
                job.state = "waiting"
            one.missed = state is None


def _left_queue(job: SweepJob, one: Queued) -> None:
    """Set how a job ended that the queue does not list.

    Without a result it is failed at the second look only: a shared file system may show the last files late.
    """
    job.state = "waiting"
    job.look()
    if job.state == "waiting" and one.missed and not job.job.folder.busy():  # busy: somebody makes it by hand
        last = last_line(one.errors) if one.errors.exists() else "it left the queue without output (cancelled?)"
        job.state, job.message = "failed", f"job {one.id}: {last}"
    if job.state in DONE:
        job.made_here = one.errors.exists()
        _clear(job)


def arrays(jobs: Iterable[SweepJob]) -> list[list[SweepJob]]:
    """Jobs that are submitted together: first what waits for nothing, then what waits for the same jobs."""
    groups: dict[tuple[str, ...], list[SweepJob]] = {(): []}
    for job in jobs:
        waits = tuple(one.key for one in job.before if one.state not in DONE)
        groups.setdefault(waits, []).append(job)
    return [group[i : i + LARGEST_ARRAY] for group in groups.values() for i in range(0, len(group), LARGEST_ARRAY)]


def wait_for_others(executor: PicklingExecutor, array: list[SweepJob], queued: Mapping[SweepJob, Queued]) -> None:
    """Let an array begin only after the queued jobs before it have ended well."""
    before = [queued[one].id for one in array[0].before if one in queued]
    executor.update_parameters(dependency=":".join(["afterok", *before]) if before else None)


def _arrays_of(queued: Iterable[Queued]) -> str:
    """The ids of the arrays, as scancel takes them."""
    return " ".join(dict.fromkeys(one.id.partition("_")[0] for one in queued))


# ---- files: a record of each queued job among the runs, submitit's own in a private folder


def queued_jobs(jobs: Iterable[SweepJob], queue: Callable[[], Mapping[str, str]]) -> dict[SweepJob, Queued]:
    """The jobs that an earlier sweep submitted and that are still queued or running."""
    recorded = {job: one for job in jobs if (one := _recorded(job)) is not None}
    listed = queue() if recorded else {}
    return {job: one for job, one in recorded.items() if one.id in listed}


def _record(job: SweepJob) -> Path:
    """The file that says under which id a job is queued."""
    return job.root / ".sweep" / "slurm" / f"{hashlib.sha256(job.key.encode()).hexdigest()[:16]}.json"


def _recorded(job: SweepJob) -> Queued | None:
    """What the record says; None if it is another user's (runs may be shared, and `_clear` removes files)."""
    try:
        content = parse_json(_record(job).read_text(encoding="utf-8"))
        found = Queued(content["job"], Path(content["files"]))
        ours = found.files.parent == private_folder() and re.fullmatch(r"\d+(_\d+)?", found.id, re.ASCII)
        return found if ours else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _clear(job: SweepJob) -> None:
    """Append the output of a job that has ended to the sweep's log of it, and remove its record and files."""
    one = _recorded(job)
    with contextlib.suppress(OSError):
        _record(job).unlink()
        if one is None:
            return
        for file in (one.files / f"{one.id}_0_log.out", one.errors):
            if file.exists():
                job.log.parent.mkdir(parents=True, exist_ok=True)
                with open(job.log, "ab") as kept:
                    kept.write(file.read_bytes())
        for file in one.files.glob(f"{one.id}_*"):
            file.unlink(missing_ok=True)
        _remove_if_empty(one.files)


def _remove_if_empty(files: Path) -> None:
    """Remove a folder of submitit's in which no job has its pickle any more."""
    if not any(files.glob("*_submitted.pkl")):
        shutil.rmtree(files, ignore_errors=True)


def private_folder() -> Path:
    """Where submitit's pickles and the output of queued jobs are: `$XDG_STATE_HOME/kdbert/submitit`."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path.home() / ".local" / "state") / "kdbert" / "submitit"


def make_private(folder: Path) -> None:
    """Make a folder that only this user can read and write, or refuse it if somebody else could write to it or replace
    it. Folders above the home folder are not checked, since a user cannot change them.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder, home = folder.resolve(), Path.home().resolve()
        above = folder.parents if home not in folder.parents else folder.parents[: folder.parents.index(home) + 1]
        for place in (folder, *above):
            found = place.stat()
            sticky = place != folder and found.st_mode & stat.S_ISVTX  # others' entries stay theirs, as in /tmp
            if found.st_uid not in ({os.getuid()} if place == folder else {os.getuid(), 0}):
                problem, cure = f"{place} belongs to somebody else", ""
            elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
                problem, cure = f"others can write to {place}", f"run `chmod go-w {shlex.quote(str(place))}`, or "
            else:
                continue
            raise UserError(
                f"{problem}, so submitit's pickles are not safe in {folder}; {cure}set XDG_STATE_HOME to a folder of "
                "your own"
            )
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; set XDG_STATE_HOME to another folder") from None
