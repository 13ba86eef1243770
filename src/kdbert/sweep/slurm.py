"""Slurm: what `--slurm` says, sbatch through submitit, squeue. `kdbert.sweep.cluster` does the rest."""

from __future__ import annotations

import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor

from kdbert.errors import UserError, near_miss
from kdbert.recipe.yaml_files import load_yaml
from kdbert.sweep.cluster import Cluster, Queued, arrays, private_folder, queued_jobs, wait_for_others
from kdbert.sweep.jobs import DONE, SweepJob

MOST_TIMEOUTS = 20  # of one job, or a run that gets nowhere in its time would be queued again forever
EVENT_SECONDS = 60  # Slurm may signal a job this much earlier than it was asked to
NOT_TAKEN = {  # submitit's parameters that a sweep does not take, and why
    "dependency": "the sweep orders its jobs itself",
    "nodes": "one job is one process",
    "ntasks_per_node": "one job is one process",
    "num_gpus": "use gpus_per_node",
    "srun_args": "the sweep sets them",
    "stderr_to_stdout": "the sweep reads stderr",
    "teardown": "it would hide that a run has failed",
    "use_srun": "the sweep needs srun",
}
EXPECTED = {  # parameters that kdbert reads; sbatch reads the others
    "time": "minutes (90), or a time such as 4:00:00 or 1-12:00:00",
    "array_parallelism": "a number from 1",
    "signal_delay_s": "a number from 1",
    "additional_parameters": "more of sbatch's options, such as '{reservation: spring}'",
}


def slurm_cluster(parameters: Mapping[str, Any]) -> Cluster:
    """The Slurm cluster of this machine, with parameters of `parse_parameters`."""
    if shutil.which("sbatch") is None:
        raise UserError("--engine slurm: no sbatch on the PATH; start the sweep on a login node (or add --dry-run)")
    return Cluster(lambda folder: _executor(folder, parameters), _squeue)


def parse_parameters(texts: Iterable[str]) -> dict[str, Any]:
    """`KEY=VALUE` texts as submitit's parameters of a Slurm job; `exclusive` needs no value."""
    known = SlurmExecutor._valid_parameters() - set(NOT_TAKEN)
    given: dict[str, Any] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if key in NOT_TAKEN:
            raise UserError(f"--slurm {text}: leave it out, {NOT_TAKEN[key]}")
        if key not in known:
            near = near_miss(key, known)
            raise UserError(f"--slurm {text}: unknown key {key!r}{near}; known: {', '.join(sorted(known))}")
        if not value and text != "exclusive":
            raise UserError(f"--slurm {text}: the value is missing, as in {key}=…")
        if key == "setup":
            given.setdefault(key, []).append(value)
            continue
        if key in given:
            raise UserError(f"--slurm {key} is given twice; keep one of them")
        try:
            given[key] = _value(key, value)
        except ValueError:
            raise UserError(f"--slurm {text}: expected {EXPECTED[key]}") from None
    if "time" not in given:
        raise UserError(
            "--slurm time=… is missing: how long a run may take before it is saved and queued again, in minutes (90) "
            "or as 4:00:00"
        )
    needed = given.get("signal_delay_s", 90) + EVENT_SECONDS
    if given["time"] * 60 <= needed:
        raise UserError(
            f"--slurm time: {given['time']} minutes are too few, since Slurm may ask a run to save {needed} seconds "
            "before the end; give it more, or lower signal_delay_s"
        )
    return given


def _value(key: str, text: str) -> Any:
    """The value of a parameter, or ValueError: not what is `EXPECTED`."""
    if key == "time":
        return _minutes(text)
    if key in ("array_parallelism", "signal_delay_s"):
        if not re.fullmatch(r"0*[1-9]\d{0,9}", text, re.ASCII):
            raise ValueError
        return int(text)
    if key == "additional_parameters":
        value = load_yaml(text)
        if not isinstance(value, dict) or not all(isinstance(part, str) for part in value):
            raise ValueError
        return value
    return text or True


def _minutes(text: str) -> int:
    """A time as Slurm writes it (minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s), rounded up to whole minutes."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text, re.ASCII)
    if match is None:
        raise ValueError
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is None and len(numbers) < 3:  # then the first number is minutes
        numbers.insert(0, 0)
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    return (int(days or 0) * 24 + hours) * 60 + minutes + math.ceil(seconds / 60)


class _AnywhereExecutor(SlurmExecutor):
    """It can be made without Slurm: a dry run needs none, and `slurm_cluster` has looked for sbatch."""

    @classmethod
    def affinity(cls) -> int:
        """As on a cluster."""
        return 2


def _executor(folder: Path, parameters: Mapping[str, Any]) -> SlurmExecutor:
    executor = _AnywhereExecutor(folder, max_num_timeout=MOST_TIMEOUTS)
    more = {
        "requeue": True,  # or `scontrol requeue` is refused where jobs are not requeued by default
        "kill-on-invalid-dep": "yes",  # or students of a failed teacher stay in the queue forever
        **parameters.get("additional_parameters", {}),
    }
    given = {"job_name": "kdbert", "wckey": None, **parameters, "additional_parameters": more}
    if "cpus_per_task" in given:  # since Slurm 22.05 srun does not take it over from sbatch
        given["srun_args"] = [f"--cpus-per-task={given['cpus_per_task']}"]
    executor.update_parameters(**given)
    return executor


def _squeue() -> dict[str, str]:
    """id -> state of this user's jobs that are queued or running."""
    command = ["squeue", "--noheader", "--me", "--array", "--format=%F_%K %T"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"squeue failed: {error}") from None
    if ended.returncode != 0:
        raise UserError(f"squeue failed: {ended.stderr.strip()}")
    lines = [line.split() for line in ended.stdout.splitlines()]
    return {words[0].removesuffix("_N/A"): words[1] for words in lines if len(words) == 2}


def scripts(jobs: list[SweepJob], parameters: Mapping[str, Any]) -> list[str]:
    """The sbatch scripts that a sweep would submit now, each with its commands as comments; writes nothing."""
    queued = queued_jobs(jobs, _squeue) if shutil.which("squeue") else {}
    texts = []
    for array in arrays([job for job in jobs if job.state not in DONE and job not in queued]):
        files = private_folder() / "sweep-XXXXXXXX"
        executor = _executor(files, parameters)
        wait_for_others(executor, array, queued)
        if len(array) > 1:
            executor.parameters["map_count"] = len(array)
        text = executor._make_submission_file_text(executor._submitit_command_str, "")
        commands = [f"# {number}: {shlex.join(['kdbert', *job.words])}" for number, job in enumerate(array)]
        texts.append("\n".join([text.rstrip("\n"), "", "# what its jobs run", *commands, ""]))
        name = f"ID-OF-SCRIPT-{len(texts)}"
        for number, job in enumerate(array):
            queued[job] = Queued(f"{name}_{number}" if len(array) > 1 else name, files)
    return texts
