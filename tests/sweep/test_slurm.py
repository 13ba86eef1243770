"""A sweep as jobs of a cluster: submitit's local executor in Slurm's place, and stand-ins for Slurm's own programs."""

from __future__ import annotations

import json
import os
import pickletools
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from submitit import LocalExecutor

from conftest import make_bert
from in_processes import manifest, saved_steps, start, wait_until
from kdbert.errors import UserError
from kdbert.recipe import Recipe
from kdbert.runs.folder import RunFolder
from kdbert.sweep.cluster import Cluster, make_private, private_folder
from kdbert.sweep.run import SweepResult, sweep
from kdbert.sweep.slurm import parse_parameters, slurm_cluster
from kdbert.sweep.submitted import Submitted
from small_run import changed, run_recipe
from small_sweep import Place, weights


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Submitit's folder of the person who runs the tests stays as it is."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def place(tiny_bert: Path, custom_files: tuple[Path, Path], tmp_path: Path) -> Place:
    """A folder with models and files of its own."""
    return Place.make(tmp_path / "place", tiny_bert, custom_files)


def running_processes() -> dict[str, str]:
    """The queue of the local executor, whose job ids are process ids."""
    found = {}
    for process in psutil.process_iter(["pid", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE:
            found[str(process.info["pid"])] = "RUNNING"
    return found


def local_executor(folder: Path) -> LocalExecutor:
    """Submitit's; it has no queue."""
    executor = LocalExecutor(folder)
    executor.update_parameters(timeout_min=60)
    return executor


LOCAL = Cluster(local_executor, running_processes, look_seconds=0.3)


def queued_ids(place: Place) -> list[str]:
    """Ids of what is written down as queued."""
    return sorted(json.loads(file.read_text())["job"] for file in place.runs.glob(".sweep/slurm/*.json"))


# ---- what is submitted

SLURM = ["--engine", "slurm", "--slurm", "time=60", "--slurm", "partition=gpu"]


@dataclass(frozen=True)
class Programs:
    """Stand-ins for Slurm's programs: sbatch keeps the scripts, squeue lists what is said to be queued."""

    folder: Path

    @property
    def scripts(self) -> list[str]:
        """What was submitted, in order; the first has id 41."""
        return [file.read_text() for file in sorted(self.folder.glob("script-*"))]

    def list_as(self, lines: str) -> None:
        """What squeue says from now on."""
        (self.folder / "queue").write_text(lines)

    @property
    def requeued(self) -> str:
        """What scontrol was called with."""
        file = self.folder / "scontrol-calls"
        return file.read_text() if file.exists() else ""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Put the stand-ins on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    bodies = {
        "sbatch": f"n=$(ls {folder} | grep -c script-); cp $1 {folder}/script-$n; echo Submitted batch job $((41+n))",
        "squeue": f"cat {folder}/queue",
        "scontrol": f"echo $* >> {folder}/scontrol-calls",
        "srun": "exit 1",
    }
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / "queue").write_text("")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return Programs(folder)


def test_a_job_is_nothing_but_the_words_of_a_command() -> None:
    words = ["distill", "--method", "kd"]
    assert vars(Submitted(words)) == {"words": words}
    requeued = Submitted(words).checkpoint()
    assert vars(requeued.function) == {"words": words}
    assert (requeued.args, requeued.kwargs) == ((), {})


def test_runs_are_submitted_as_arrays_and_students_wait_for_their_teacher(
    place: Place, slurm: Programs, state: Path
) -> None:
    cluster = replace(slurm_cluster(parse_parameters(["time=60", "partition=gpu"])), look_seconds=0.05)
    grid = place.cells("method=finetune,kd", "seed=1,2")
    result = sweep(grid, cluster=cluster)  # squeue lists nothing, so all of them are gone at once
    assert len(result.failed) == 4
    assert result.failed["method=finetune seed=1"].startswith("job 41_1: ")
    assert result.failed["method=kd seed=2"] == "its teacher has failed"
    first, second = slurm.scripts
    assert "#SBATCH --array=0-2%3\n" in first  # the teacher and two students that need none
    assert "--dependency" not in first
    assert "#SBATCH --array=0-1%2\n" in second
    assert "#SBATCH --dependency=afterok:41_0\n" in second
    for script in slurm.scripts:
        for line in ("partition=gpu", "time=60", "requeue", "signal=USR2@90", "kill-on-invalid-dep=yes"):
            assert f"#SBATCH --{line}\n" in script
    assert queued_ids(place) == []
    assert list(private_folder().iterdir()) == []  # no pickle is left
    assert private_folder() == state / "kdbert" / "submitit"
    assert private_folder().stat().st_mode & 0o777 == 0o700


@pytest.mark.long
def test_a_sweep_that_is_stopped_leaves_its_jobs_queued_and_the_next_one_does_not_submit_them_again(
    place: Place, slurm: Programs, state: Path, kdbert: Any, tmp_path: Path
) -> None:
    words = [*place.words("method=finetune", "--seeds=2"), *SLURM]
    slurm.list_as("41_0 PENDING\n41_1 RUNNING\n")
    for attempt in (1, 2):
        output = tmp_path / f"output{attempt}"
        process = start(words, output)
        started = lambda output=output: output.exists() and "started   method=finetune seed=2" in output.read_text()  # noqa: E731
        wait_until(started, process.is_alive, "the jobs were queued")
        os.kill(process.pid or 0, signal.SIGINT)
        process.join()
        told = output.read_text()
        assert ("2 jobs queued already" if attempt == 2 else "submitted 2 jobs: 41;") in told
        assert process.exitcode == 130
        assert "scancel 41" in told.splitlines()[-1]
        assert queued_ids(place) == ["41_0", "41_1"]
    assert len(slurm.scripts) == 1
    (folder,) = private_folder().iterdir()
    allowed = {"submitit.core.utils DelayedSubmission", "kdbert.sweep.submitted Submitted"}
    for file in folder.glob("*_submitted.pkl"):
        content = file.read_bytes()
        assert globals_of(content) == allowed
        assert b"distill" in content
    assert len(list(folder.glob("*_submitted.pkl"))) == 2

    def dry_run() -> str:
        ended = kdbert(*words, "--dry-run")
        assert ended.code == 0, ended.err
        return str(ended.out)

    assert "sbatch" not in dry_run().lower()  # both are queued
    slurm.list_as("41_0 PENDING\n")
    script = dry_run()
    assert "--seed 2" in script
    assert "--seed 1" not in script
    slurm.list_as("")  # nobody has seen them ending
    cluster = replace(slurm_cluster(parse_parameters(["time=60"])), look_seconds=0.05)
    sweep(place.cells("method=finetune", "seed=1,2"), cluster=cluster)
    assert len(slurm.scripts) == 2
    assert list(private_folder().iterdir()) == []


def globals_of(pickled: bytes) -> set[str]:
    """The classes and functions that loading a pickle would look up, as `module name`."""
    found, texts = set(), []
    for operation, value, _ in pickletools.genops(pickled):
        if isinstance(value, str):
            texts.append(value)
        if operation.name == "GLOBAL":
            found.add(str(value))
        elif operation.name == "STACK_GLOBAL":
            found.add(" ".join(texts[-2:]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state_of_job", "requeued"),
    [("RUNNING", "requeue 41\n"), pytest.param("COMPLETING", "", marks=pytest.mark.long)],
)
@pytest.mark.long
def test_a_preempted_job_asks_to_be_queued_again_and_a_cancelled_one_does_not(
    place: Place, slurm: Programs, state_of_job: str, requeued: str
) -> None:
    executor = slurm_cluster(parse_parameters(["time=60"])).executor(place.folder / "submitit")
    recipe = {**place.shared, "train.epochs": 100, "method.name": "finetune", "output.runs_dir": place.runs}
    executor.submit(Submitted(["distill", *(f"{key}={value}" for key, value in recipe.items())]))
    command = slurm.scripts[0].split("_log.err ")[-1].strip()  # what srun would start
    job = subprocess.Popen(
        shlex.split(command),
        env={**os.environ, "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "here"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    slurm.list_as(state_of_job)
    wait_until(lambda: steps_logged(place) > 0, lambda: job.poll() is None, "the run began")
    for process in (psutil.Process(job.pid), *psutil.Process(job.pid).children()):
        process.send_signal(signal.SIGTERM)
    output = job.communicate(timeout=60)[0]
    assert slurm.requeued == requeued, output
    assert job.returncode != 0
    (run,) = place.run_folders()
    assert manifest(run)["status"] == "interrupted"
    assert not RunFolder(run).busy()


def steps_logged(place: Place) -> int:
    """How many steps the run has told of."""
    return sum(file.read_bytes().count(b'"step"') for file in place.runs.glob("custom/finetune/*/metrics.jsonl"))


# ---- what --dry-run prints


def test_a_dry_run_prints_scripts_that_bash_reads_and_writes_nothing(
    kdbert: Any, place: Place, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # there is no Slurm here
    more = ["--slurm", "setup=module load cuda", "--slurm", "exclusive", "--slurm", "cpus_per_task=8"]
    ended = kdbert(*place.words("method=finetune,kd", "--seeds=2"), *SLURM, *more, "--dry-run")
    assert ended.code == 0, ended.err
    monkeypatch.undo()
    checked = subprocess.run(["bash", "-n"], input=ended.out, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    scripts = ended.out.split("#!/bin/bash\n")[1:]
    assert len(scripts) == 2
    for script in scripts:
        for line in ("#SBATCH --exclusive", "#SBATCH --cpus-per-task=8", "module load cuda"):
            assert f"\n{line}\n" in script
        assert "--cpus-per-task=8 " in script.split("\nsrun ")[1]
    assert "#SBATCH --dependency=afterok:ID-OF-SCRIPT-1_0\n" in scripts[1]
    assert scripts[0].count(": kdbert finetune-teacher ") == 1
    assert [script.count(": kdbert distill ") for script in scripts] == [2, 2]
    assert not place.runs.exists()
    assert not state.exists()


# ---- what is refused


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([], "--slurm time=… is missing"),
        (["time=60", "partitoin=gpu"], "unknown key 'partitoin'; did you mean 'partition'?"),
        (["time=60", "nodes=2"], "--slurm nodes=2: leave it out"),
        (["time=60", "dependency=afterok:1"], "--slurm dependency=afterok:1: leave it out"),
        (["time=60", "time=70"], "--slurm time is given twice"),
        (["time=2"], "signal_delay_s"),
        (["time=soon"], "--slurm time=soon: expected minutes (90)"),
        (["time=60", "array_parallelism=none"], "expected a number from 1"),
        (["time=60", "partition="], "the value is missing, as in partition=…"),
        (["time=60", "partition"], "the value is missing, as in partition=…"),
        (["time=60", "additional_parameters=reservation"], "'{reservation: spring}'"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(kdbert: Any, place: Place, texts: list[str], told: str) -> None:
    flags = [word for text in texts for word in ("--slurm", text)]
    ended = kdbert(*place.words("method=finetune"), "--engine", "slurm", *flags)
    assert ended.code == 2
    assert told in ended.err.splitlines()[-1]
    assert not place.runs.exists()


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 91), ("4:00:00", 240), ("1-12", 2160), ("1-12:30", 2190), ("2-0:0:1", 2881)],
)
def test_times_are_read_as_slurm_reads_them(text: str, minutes: int) -> None:
    assert parse_parameters([f"time={text}"])["time"] == minutes


def test_flags_that_do_not_go_together_are_refused(kdbert: Any) -> None:
    ended = kdbert("sweep", "--slurm", "time=60")
    assert (ended.code, "--engine slurm" in ended.err) == (2, True)
    ended = kdbert("sweep", *SLURM, "--jobs", 4)
    assert (ended.code, "array_parallelism=4" in ended.err) == (2, True)


def test_a_machine_without_submitit_or_slurm_is_told_what_to_do(
    kdbert: Any, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    ended = kdbert(*place.words("method=finetune"), *SLURM)
    assert ended.code == 2
    assert "sbatch" in ended.err.splitlines()[-1]
    for name in ("kdbert.sweep.slurm", "kdbert.sweep.cluster", "kdbert.sweep.submitted"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "submitit", None)
    ended = kdbert(*place.words("method=finetune"), *SLURM)
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == "kdbert: --engine slurm needs submitit: pip install 'kdbert[cluster]'"
    assert not place.runs.exists()


def test_what_sbatch_says_is_told_and_leaves_nothing(kdbert: Any, place: Place, slurm: Programs) -> None:
    (slurm.folder / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition: gpu' >&2\nexit 1\n")
    ended = kdbert(*place.words("method=finetune", "--seeds=2"), *SLURM)
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == "kdbert: sbatch refused: sbatch: error: invalid partition: gpu"
    assert ended.err.count("invalid partition") == 1
    assert list(private_folder().iterdir()) == []
    assert queued_ids(place) == []
    assert place.litter() == []


@pytest.mark.parametrize("spoilt", ["the folder", "one above it"])
def test_a_folder_that_others_can_write_to_is_refused(
    kdbert: Any, place: Place, slurm: Programs, state: Path, spoilt: str
) -> None:
    make_private(private_folder())
    folder = private_folder() if spoilt == "the folder" else state
    folder.chmod(0o770)
    ended = kdbert(*place.words("method=finetune"), *SLURM)
    assert ended.code == 2
    last = ended.err.splitlines()[-1]
    assert f"chmod go-w {folder}" in last
    assert slurm.scripts == []
    folder.chmod(0o700)
    make_private(private_folder())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_folder_of_somebody_else_is_refused(state: Path) -> None:
    make_private(private_folder())
    os.chown(private_folder(), 12345, -1)
    with pytest.raises(UserError, match="belongs to somebody else"):
        make_private(private_folder())


# ---- real runs


def in_thread(grid: list[Any]) -> tuple[threading.Thread, list[SweepResult]]:
    """A sweep through the local executor beside the test."""
    results: list[SweepResult] = []
    thread = threading.Thread(target=lambda: results.append(sweep(grid, cluster=LOCAL)), daemon=True)
    thread.start()
    return thread, results


def signal_job(place: Place, number: signal.Signals) -> None:
    """What Slurm does: the signal goes to every process of the job, submitit's and those that it has started."""
    (controller,) = queued_ids(place)
    (process,) = psutil.Process(int(controller)).children()
    for one in (process, *process.children(recursive=True)):
        one.send_signal(number)


@pytest.mark.slow
def test_a_job_runs_to_the_end(place: Place) -> None:
    result = sweep(place.cells("method=finetune"), cluster=LOCAL)
    assert (result.failed, result.diverged) == ({}, {})
    assert place.statuses() == ["finished"]
    assert result.finished == place.run_folders()
    logs = {file.stem for file in place.runs.glob(".sweep/logs/*")}
    assert logs == {"--".join(run.parts[-3:]) for run in place.run_folders()}
    assert queued_ids(place) == []
    assert list(private_folder().iterdir()) == []
    assert place.litter() == []
    manifests = place.manifests()
    again = sweep(place.cells("method=finetune"), cluster=LOCAL)
    assert again == result
    assert place.manifests() == manifests


@pytest.mark.long
def test_a_failed_job_is_told_with_its_last_line_and_a_diverged_one_as_diverged(place: Place) -> None:
    broken = make_bert(place.folder / "broken", seed=5)
    os.truncate(broken / "model.safetensors", 30_000)
    changes = [{"student.model": broken}, {"train.learning_rate": "1.0e+30"}]
    grid = [cell for change in changes for cell in place.cells("method=finetune", **change)]
    result = sweep([replace(cell, name=str(number)) for number, cell in enumerate(grid)], cluster=LOCAL)
    assert result.finished == []
    assert list(result.failed) == ["0"]
    assert "broken" in result.failed["0"]
    assert list(result.diverged) == ["1"]
    assert "is not finite" in result.diverged["1"]


@pytest.mark.long
def test_a_job_that_is_cancelled_and_one_that_is_requeued_go_on_and_give_the_same_weights(
    place: Place, tmp_path: Path, threads: Callable[[int], None]
) -> None:
    grid = place.cells("method=finetune", **{"train.epochs": 15, "train.logging_steps": 1})
    thread, results = in_thread(grid)
    wait_until(lambda: steps_logged(place) > 20, thread.is_alive, "the run began")
    signal_job(place, signal.SIGTERM)  # and nothing that says it is to be queued again
    thread.join(60)
    (run,) = place.run_folders()
    assert manifest(run)["status"] == "interrupted"
    (reason,) = results[0].failed.values()
    assert "run the same command again" in reason
    first = saved_steps(run)[-1]

    thread, results = in_thread(grid)
    wait_until(lambda: steps_logged(place) > first + 20, thread.is_alive, "the run went on")
    (job,) = queued_ids(place)
    signal_job(place, signal.SIGUSR2)
    wait_until(lambda: manifest(run)["status"] == "interrupted", thread.is_alive, "the run was saved")
    second = saved_steps(run)[-1]
    assert second > first
    end = time.monotonic() + 120
    while manifest(run)["status"] != "finished" and time.monotonic() < end:
        assert queued_ids(place) in ([job], [])  # it is the same job all the time
        time.sleep(0.1)
    thread.join(60)
    assert results[0].finished == [run], results
    facts = manifest(run)
    assert facts["timings"]["resumed_from_step"] == second
    assert list(private_folder().iterdir()) == []
    assert place.litter() == []
    threads(facts["threads"])
    run_recipe(changed(Recipe.build(run / "recipe.yaml"), {"output.dir": str(tmp_path / "whole")}))
    assert manifest(tmp_path / "whole")["timings"]["resumed_from_step"] == 0
    assert weights(tmp_path / "whole") == weights(run)
