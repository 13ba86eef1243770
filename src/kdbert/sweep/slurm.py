"""Running jobs on a cluster: arrays of Slurm jobs through submitit, watched until they have left the queue."""

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
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.core.core import PicklingExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from kdbert.disk.files import write_json
from kdbert.disk.lock import FileLock
from kdbert.disk.sealed import parse_json
from kdbert.errors import Interrupted, UserError, near_miss
from kdbert.recipe.yaml_files import load_yaml
from kdbert.signals import stop_request
from kdbert.sweep.jobs import DONE, SweepJob, now_on
from kdbert.sweep.local import count_finished, last_line
from kdbert.sweep.progress import Progress, counted
from kdbert.sweep.submitted import Submitted

log = logging.getLogger("kdbert")
LOOK_SECONDS = 15.0  # between two questions to squeue
POLL_SECONDS = 0.2
MOST_TIMEOUTS = 20  # of one job; a run that gets nowhere in its time would go round for ever
LARGEST_ARRAY = 1000  # Slurm's MaxArraySize is 1001 unless a cluster has changed it
EVENT_SECONDS = 60  # Slurm may send a job's signal so much earlier than it was asked to
NOT_GIVEN = {  # submitit's parameters that a sweep does not take, and why
    "dependency": "the sweep orders its jobs itself",
    "nodes": "one job is one process",
    "ntasks_per_node": "one job is one process",
    "num_gpus": "write gpus_per_node",
    "srun_args": "the sweep sets them",
    "stderr_to_stdout": "the sweep reads what stands in stderr",
    "teardown": "it would hide that a run has failed",
    "use_srun": "the sweep needs srun",
}


@dataclass(frozen=True)
class Cluster:
    """A queue that takes jobs.

    Attributes:
        executor: makes submitit's executor, which keeps its files in the folder that it is given.
        queue: gives id -> state (`PENDING`, `RUNNING`, …) of the jobs that are queued or running now, or raises
            UserError.
        look_seconds: how often the queue is asked.
    """

    executor: Callable[[Path], PicklingExecutor]
    queue: Callable[[], Mapping[str, str]]
    look_seconds: float = LOOK_SECONDS


@dataclass(frozen=True)
class Queued:
    """A job's id on the cluster, and the folder in which submitit keeps its files."""

    id: str
    files: Path

    @property
    def errors(self) -> Path:
        """What the job has written to stderr."""
        return self.files / f"{self.id}_0_log.err"


def slurm_cluster(parameters: Mapping[str, Any]) -> Cluster:
    """The Slurm cluster of this machine.

    Args:
        parameters: from `parse_parameters`.

    Raises:
        UserError: sbatch is not here.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "--engine slurm: there is no sbatch on the PATH; start the sweep on a login node of the cluster "
            "(--dry-run works everywhere)"
        )
    return Cluster(lambda folder: _slurm_executor(folder, parameters), _squeue)


def parse_parameters(texts: Iterable[str]) -> dict[str, Any]:
    """`KEY=VALUE` texts as submitit's parameters of a Slurm job; `exclusive` may stand without a value.

    Raises:
        UserError: an unknown key, one that a sweep does not take, no time limit, or one that leaves no time to work.
    """
    known = SlurmExecutor._valid_parameters() - set(NOT_GIVEN)
    given: dict[str, Any] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if key in NOT_GIVEN:
            raise UserError(f"--slurm {text}: leave it away, {NOT_GIVEN[key]}")
        if key not in known:
            raise UserError(
                f"--slurm {text}: unknown key {key!r}{near_miss(key, known)}; there are {', '.join(sorted(known))}"
            )
        if not value and text != "exclusive":
            raise UserError(f"--slurm {text}: the value is missing, as in {key}=…")
        if key == "setup":
            given.setdefault(key, []).append(value)
            continue
        if key in given:
            raise UserError(f"--slurm {key} is given twice; keep one of them")
        given[key] = _value(key, value) if value else True
    if "time" not in given:
        raise UserError(
            "--slurm time=… is missing: what a run may take before it is saved and queued again, "
            "in minutes (90) or as 4:00:00"
        )
    delay = given.get("signal_delay_s", 90)
    if given["time"] * 60 <= delay + EVENT_SECONDS:
        raise UserError(
            f"--slurm time: in {given['time']} minutes a run gets nowhere, since Slurm may ask it to save "
            f"{delay + EVENT_SECONDS} seconds before the end; give it more, or lower signal_delay_s"
        )
    return given


def _value(key: str, text: str) -> Any:
    """What a parameter's text stands for; sbatch reads most of them itself."""
    if key == "time":
        return _minutes(text)
    if key in ("array_parallelism", "signal_delay_s"):
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise UserError(f"--slurm {key}={text}: expected a number from 1")
        return int(text)
    if key == "additional_parameters":
        with contextlib.suppress(ValueError):
            value = load_yaml(text)
            if isinstance(value, dict) and all(isinstance(part, str) for part in value):
                return value
        raise UserError(f"--slurm {key}={text}: expected more of sbatch's options, such as '{{reservation: spring}}'")
    return text


def _minutes(text: str) -> int:
    """A time as Slurm writes it (minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s), rounded up to whole minutes."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text, re.ASCII)
    if match is None:
        raise UserError(f"--slurm time={text}: expected minutes (90), or a time as 4:00:00 or 1-12:00:00")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        numbers = [int(days) * 24 + numbers[0], *numbers[1:]]
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, minutes, seconds = {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
    return hours * 60 + minutes + -(-seconds // 60)


class _AnywhereExecutor(SlurmExecutor):
    """Can be made where there is no Slurm, too: a dry run needs none, and a real one has looked for sbatch."""

    @classmethod
    def affinity(cls) -> int:
        """As on a cluster."""
        return 2


def _slurm_executor(folder: Path, parameters: Mapping[str, Any]) -> SlurmExecutor:
    executor = _AnywhereExecutor(folder, max_num_timeout=MOST_TIMEOUTS)
    more = {
        "requeue": True,  # else `scontrol requeue` is refused where jobs are not requeued by default
        "kill-on-invalid-dep": "yes",  # else the students of a teacher that has failed stay in the queue for ever
        **parameters.get("additional_parameters", {}),
    }
    given = {"job_name": "kdbert", "wckey": None, **parameters, "additional_parameters": more}
    if "cpus_per_task" in given:  # srun does not take it over from sbatch since Slurm 22.05
        given["srun_args"] = [f"--cpus-per-task={given['cpus_per_task']}"]
    executor.update_parameters(**given)
    return executor


def _squeue() -> dict[str, str]:
    """id -> state of this user's jobs that are queued or running.

    Raises:
        UserError: squeue failed.
    """
    command = ["squeue", "--noheader", "--me", "--array", "--format=%F_%K %T"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"cannot ask squeue: {error}") from None
    if ended.returncode != 0:
        raise UserError(f"cannot ask squeue: {ended.stderr.strip()}")
    lines = [line.split() for line in ended.stdout.splitlines()]
    return {words[0].removesuffix("_N/A"): words[1] for words in lines if len(words) == 2}


# ---- submitit's folder


def private_folder() -> Path:
    """Where submitit's pickles and the output of queued jobs lie: `$XDG_STATE_HOME/kdbert/submitit`."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path.home() / ".local" / "state") / "kdbert" / "submitit"


def make_private(folder: Path) -> None:
    """Make a folder that only this user can read and write.

    Raises:
        UserError: somebody else could write into it, or put another one in its place (what is above the home folder
            is not looked at: nobody could mend it); or it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()
        home = Path.home().resolve()
        above = folder.parents if home not in folder.parents else folder.parents[: folder.parents.index(home) + 1]
        for place in (folder, *above):
            found = place.stat()
            others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            sticky = place != folder and found.st_mode & stat.S_ISVTX  # others' entries stay theirs, as in /tmp
            if found.st_uid not in ({os.getuid()} if place == folder else {os.getuid(), 0}):
                raise UserError(
                    f"{place} belongs to somebody else, so submitit's pickles are not safe in {folder}; "
                    "set XDG_STATE_HOME to a folder of your own"
                )
            if others_write and not sticky:
                raise UserError(
                    f"others can write to {place}, so submitit's pickles are not safe in {folder}; "
                    f"run `chmod go-w {shlex.quote(str(place))}`, or set XDG_STATE_HOME to a folder of your own"
                )
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; set XDG_STATE_HOME to another folder") from None


# ---- what is queued already


def _record(job: SweepJob) -> Path:
    """The file that tells, while a job is queued, under which id."""
    name = hashlib.sha256(job.key.encode()).hexdigest()[:16]
    return Path(job.recipe.output.runs_dir) / ".sweep" / "slurm" / f"{name}.json"


def _recorded(job: SweepJob) -> Queued | None:
    """What the file says; nothing, if it is not of this user (runs may be shared, and `_clear` removes files)."""
    try:
        content = parse_json(_record(job).read_text(encoding="utf-8"))
        found = Queued(content["job"], Path(content["files"]))
        ours = found.files.parent == private_folder() and re.fullmatch(r"\d+(_\d+)?", found.id, re.ASCII)
        return found if ours else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def queued_jobs(jobs: Iterable[SweepJob], queue: Callable[[], Mapping[str, str]]) -> dict[SweepJob, Queued]:
    """The jobs that an earlier sweep has submitted and that are still queued or running."""
    recorded = {job: found for job in jobs if (found := _recorded(job)) is not None}
    listed = queue() if recorded else {}
    return {job: queued for job, queued in recorded.items() if queued.id in listed}


# ---- submitting


def arrays(jobs: Iterable[SweepJob]) -> list[list[SweepJob]]:
    """Jobs that are submitted together: what waits for nothing, then students by the teachers that they wait for."""
    groups: dict[tuple[str, ...], list[SweepJob]] = {}
    for job in jobs:  # teachers come first
        waits = tuple(teacher.key for teacher in job.teachers if teacher.state not in DONE)
        groups.setdefault(waits, []).append(job)
    groups = dict(sorted(groups.items(), key=lambda group: len(group[0]) > 0))
    return [group[i : i + LARGEST_ARRAY] for group in groups.values() for i in range(0, len(group), LARGEST_ARRAY)]


def _let_wait(executor: PicklingExecutor, array: list[SweepJob], ids: Mapping[SweepJob, str]) -> None:
    """Let an array begin only after its teachers, if they are queued, have ended well."""
    teachers = [ids[teacher] for teacher in array[0].teachers if teacher in ids]
    executor.update_parameters(dependency=":".join(["afterok", *teachers]) if teachers else None)


def scripts(jobs: list[SweepJob], parameters: Mapping[str, Any]) -> list[str]:
    """The sbatch scripts that a sweep would submit now, each with its commands as comments; writes nothing."""
    queued = queued_jobs(jobs, _squeue) if shutil.which("squeue") else {}
    ids = {job: found.id for job, found in queued.items()}
    texts = []
    for array in arrays(job for job in jobs if job.state not in DONE and job not in queued):
        executor = _slurm_executor(private_folder() / "sweep-XXXXXXXX", parameters)
        _let_wait(executor, array, ids)
        if len(array) > 1:
            executor.parameters["map_count"] = len(array)
        text = executor._make_submission_file_text(executor._submitit_command_str, "")
        commands = [f"# {number}: {shlex.join(['kdbert', *job.words])}" for number, job in enumerate(array)]
        texts.append("\n".join([text.rstrip("\n"), "", "# what its jobs run", *commands, ""]))
        name = f"ID-OF-SCRIPT-{len(texts)}"
        ids |= {job: f"{name}_{number}" if len(array) > 1 else name for number, job in enumerate(array)}
    return texts


def _submit(jobs: list[SweepJob], cluster: Cluster, queued: dict[SweepJob, Queued]) -> None:
    """Submit jobs, and write down under which ids before anything else can happen.

    Raises:
        UserError: sbatch refused.
    """
    make_private(private_folder())
    files = Path(tempfile.mkdtemp(prefix="sweep-", dir=private_folder()))
    executor = cluster.executor(files)
    try:
        for array in arrays(jobs):
            _let_wait(executor, array, {job: found.id for job, found in queued.items()})
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises, too
                submitted = executor.submit_array([Submitted(job.words) for job in array])
            ids = [one.job_id for one in submitted]
            for job, one in zip(array, ids, strict=True):
                queued[job] = Queued(one, files)
                command = shlex.join(["kdbert", *job.words])
                write_json(_record(job), {"run": job.name, "job": one, "files": str(files), "command": command})
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        _forget(files)
        ids = sorted({one.id.partition("_")[0] for one in queued.values() if one.files == files})
        before = f"; submitted before that: {' '.join(ids)}" if ids else ""
        raise UserError(f"sbatch refused: {' '.join(str(error).split())}{before}") from None
    names = " ".join(dict.fromkeys(queued[job].id.partition("_")[0] for job in jobs))
    log.info("submitted %s: %s; their output while they run: %s", counted(len(jobs), "job"), names, files)


def _forget(files: Path) -> None:
    """Remove a folder of submitit's if no job has its pickle there any more."""
    if not any(files.glob("*_submitted.pkl")):
        shutil.rmtree(files, ignore_errors=True)


# ---- watching


def run_on_cluster(jobs: list[SweepJob], progress: Progress, cluster: Cluster) -> None:
    """Submit what is missing and not queued, and wait until all of it has left the queue; every job ends in `DONE`.

    How a run stands is read from its folder; nothing of submitit's is unpickled here.

    Raises:
        UserError: the queue cannot be asked, or refuses; submitit's folder is not safe.
        Interrupted: a signal asked to stop watching; the jobs stay queued.
    """
    for job in jobs:
        if job.state not in DONE and any(teacher.state in DONE[1:] for teacher in job.teachers):
            job.state, job.message = "failed", _untaught(job)
            progress.ended(job)
    roots = sorted({Path(job.recipe.output.runs_dir) for job in jobs if job.state not in DONE})
    since = {root: now_on(root) for root in roots}
    with stop_request("the jobs stay in the queue") as stop:
        with contextlib.ExitStack() as stack:
            for root in roots:  # one sweep at a time, or two would submit the same runs
                lock = FileLock(root / ".sweep" / "slurm" / "submitting.lock")
                lock.acquire(wait=True)
                stack.callback(lock.release)
            listed = queued_jobs(jobs, cluster.queue)
            for job in jobs:
                if job not in listed:
                    _clear(job)  # what nobody has seen ending
            queued = {job: one for job, one in listed.items() if job.state not in DONE}
            if queued:
                log.info("%s queued already", counted(len(queued), "job"))
            missing = [job for job in jobs if job.state not in DONE and job not in queued]
            if missing:
                _submit(missing, cluster, queued)
        absent: dict[SweepJob, int] = dict.fromkeys(queued, 0)
        next_look = 0.0
        while any(job.state not in DONE for job in queued):
            if stop.number:
                progress.close()
                raise Interrupted(_left(jobs, queued), signal_number=stop.number)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + cluster.look_seconds
                _look(queued, absent, cluster, since, progress)
            running = [job for job in queued if job.state == "running"]
            progress.slots = max(1, len(running))
            progress.show(jobs, running)
            time.sleep(POLL_SECONDS)
    progress.close()


def _look(
    queued: Mapping[SweepJob, Queued],
    absent: dict[SweepJob, int],
    cluster: Cluster,
    since: Mapping[Path, float],
    progress: Progress,
) -> None:
    """Ask the queue, and take over what became of the jobs that have left it."""
    try:
        listed = cluster.queue()
    except UserError as error:
        log.warning("%s; trying again", error)
        return
    for job, one in queued.items():
        if job.state in DONE:
            continue
        state = listed.get(one.id)
        if state is None:
            absent[job] += 1
            # A shared file system may show what the job wrote last a little later.
            _left_queue(job, one, since[Path(job.recipe.output.runs_dir)], surely=absent[job] > 1)
            progress.ended(job)
        elif state == "RUNNING" and job.state == "waiting":
            job.state = "running"
            progress.started(job)
        elif state == "PENDING":  # again, after a time-out or a preemption
            job.state = "waiting"


def _left_queue(job: SweepJob, one: Queued, since: float, *, surely: bool) -> None:
    """Take over what a job has come to that is no longer queued; leave it waiting if that is not to be seen yet."""
    job.state = "waiting"
    if any(teacher.state != "finished" for teacher in job.teachers):
        if surely:
            job.state, job.message = "failed", _untaught(job)
            _clear(job)
        return
    try:
        job.look(since)
    except UserError as error:
        job.state, job.message = "failed", str(error)
    if job.state == "waiting" and surely and not job.folder.busy():  # else somebody makes it by hand
        last = last_line(one.errors) if one.errors.exists() else "it has left the queue and said nothing (cancelled?)"
        job.state, job.message = "failed", f"job {one.id}: {last}"
    if job.state in DONE:
        job.made_here = one.errors.exists()
        job.seconds = float(job.folder.manifest().get("timings", {}).get("total_seconds", 0.0))
        _clear(job)


def _untaught(job: SweepJob) -> str:
    """Why a student cannot be made, by what became of its teachers."""
    state = next(teacher.state for teacher in job.teachers if teacher.state != "finished")
    return f"its teacher has {state}" if state in DONE else "its job has left the queue before its teacher was there"


def _clear(job: SweepJob) -> None:
    """Put the output of a job that has ended to the sweep's logs, and remove what submitit kept of it."""
    one = _recorded(job)
    with contextlib.suppress(OSError, UserError):  # without its models a run has no name, and its log no place
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
        _forget(one.files)


def _left(jobs: list[SweepJob], queued: Mapping[SweepJob, Queued]) -> str:
    """What a person is told who stops watching."""
    ids = " ".join(dict.fromkeys(one.id.partition("_")[0] for job, one in queued.items() if job.state not in DONE))
    return (
        f"stopped watching; {count_finished(jobs)}, the others stay in the queue "
        f"(see them: squeue --me; remove them: scancel {ids}); the same command watches them again"
    )
