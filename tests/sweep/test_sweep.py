"""A sweep on the disk: what runs, what is skipped, and that nothing is lost or done twice whoever is killed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from conftest import make_bert
from in_processes import manifest, saved_steps, start, wait_until
from kdbert.disk.lock import FileLock
from kdbert.recipe import Recipe
from kdbert.sweep.jobs import plan_jobs
from kdbert.training.store import FOLDER
from small_run import changed, run_recipe
from small_sweep import STARTED, THREADS, Place, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def new_place(
    tiny_bert: Path, custom_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Place]:
    """Make a folder with models and files of its own."""
    return lambda name: Place.make(tmp_path_factory.mktemp(name) / "place", tiny_bert, custom_files)


def finish(process: BaseProcess, seconds: float = 120) -> int | None:
    """Wait for a process and give its exit code; kill it if it takes too long."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode


# ---- several methods


@pytest.mark.long
def test_three_methods_fill_one_store_of_teacher_outputs(new_place: Callable[[str], Place]) -> None:
    """The one sweep here that is a program of its own, as a person starts it."""
    place = new_place("methods")
    words = [sys.executable, "-m", "kdbert", *place.words("method=kd,ics,cka-i")]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert place.statuses() == ["finished"] * 4
    files = [file.stem for file in place.runs.glob(f"{FOLDER}/*/*.safetensors")]
    assert sorted(files) == ["gram.3", "hidden.4", "logits"]


# ---- two sweeps that are started at the same moment, two jobs each, on one folder

GRID = ("method=finetune,kd", "--seeds=2", "--jobs=2")


@dataclass(frozen=True)
class Swept:
    """What came of it.

    Attributes:
        keys: what its jobs were known by before.
    """

    place: Place
    keys: list[str]
    codes: list[int | None]
    outputs: list[str]


@pytest.fixture(scope="module")
def swept(new_place: Callable[[str], Place]) -> Swept:
    """Four cells and the teacher of two of them."""
    place = new_place("two")
    keys = keys_of(place)
    files = [place.folder / f"output{number}" for number in (1, 2)]
    both = [start(place.words(*GRID), file) for file in files]
    codes = [finish(process) for process in both]
    return Swept(place, keys, codes, [file.read_text() for file in files])


def test_two_sweeps_at_once_run_every_cell_once_and_the_teacher_once(swept: Swept) -> None:
    assert swept.codes == [0, 0], swept.outputs
    started = [name for output in swept.outputs for name in STARTED.findall(output)]
    cells = [f"method={method} seed={seed}" for method in ("finetune", "kd") for seed in (1, 2)]
    assert sorted(started) == sorted([*cells, "teacher of custom: bert, seed 1"])
    assert swept.place.statuses() == ["finished"] * 5
    assert all("4 runs: 4 finished" in output for output in swept.outputs)
    assert swept.place.litter() == []


def keys_of(place: Place) -> list[str]:
    """What the jobs of the sweep are known by."""
    return [job.key for job in plan_jobs(place.cells("method=finetune,kd", "seed=1,2"))]


def test_jobs_are_known_by_the_same_keys_once_their_teacher_is_made(swept: Swept) -> None:
    """By which jobs that are queued on a cluster are found again."""
    assert keys_of(swept.place) == swept.keys
    assert len(set(swept.keys)) == 5


def test_every_job_has_its_share_of_the_threads(swept: Swept) -> None:
    assert {manifest(run)["threads"] for run in swept.place.run_folders()} == {THREADS}


def test_the_cells_share_teacher_and_teacher_outputs(swept: Swept) -> None:
    taught = [manifest(run) for run in swept.place.run_folders() if run.parent.name == "kd"]
    assert len({facts["teachers"][0]["model"] for facts in taught}) == 1
    # Of train; how it scores on dev is in its run.
    assert len(list(swept.place.runs.glob(".teacher-outputs/*/logits.safetensors"))) == 1


def test_the_same_command_again_starts_nothing_and_says_all_are_there(swept: Swept, kdbert: Any) -> None:
    before = swept.place.manifests()
    logs = sorted(swept.place.runs.glob(".sweep/logs/*"))
    ended = kdbert(*swept.place.words(*GRID))
    assert ended.code == 0, ended.err
    assert STARTED.findall(ended.err) == []
    assert "4 runs: 4 finished" in ended.err
    assert swept.place.manifests() == before
    assert sorted(swept.place.runs.glob(".sweep/logs/*")) == logs
    assert swept.place.litter() == []


def test_quiet_prints_the_run_folders_and_nothing_else(swept: Swept, kdbert: Any) -> None:
    ended = kdbert(*swept.place.words(*GRID), "--quiet")
    assert ended.code == 0
    students = [run for run in swept.place.run_folders() if "student" in manifest(run)["fingerprints"]]
    students = [run for run in students if manifest(run)["recipe"]["student"]["layers"] == 2]  # not the teacher
    assert sorted(ended.out.splitlines()) == sorted(map(str, students))
    assert len(students) == 4
    assert ended.err == "" or all("Warning" in line for line in ended.err.splitlines()), ended.err


def test_a_cell_is_what_its_printed_command_makes_by_hand(
    swept: Swept, kdbert: Any, tmp_path: Path, threads: Callable[[int], None]
) -> None:
    ended = kdbert(*swept.place.words(*GRID), "--dry-run")
    assert ended.code == 0
    assert ended.out.count("# finished") == 5
    commands = [shlex.split(line, comments=True) for line in ended.out.splitlines()]
    by_hand = tmp_path / "by-hand"
    threads(THREADS)
    for words in reversed(commands):  # the teacher last: who needs it makes it
        changed = [word.replace(str(swept.place.runs), str(by_hand)) for word in words[1:]]
        assert changed != words[1:]
        again = kdbert(*changed)
        assert again.code == 0, again.err
    for run in swept.place.run_folders():
        assert weights(by_hand / run.relative_to(swept.place.runs)) == weights(run), run
    assert len(list(by_hand.glob("*/*/*/run.json"))) == 5


# ---- cells that fail and cells that explode


@dataclass(frozen=True)
class Failing:
    """A sweep in which much fails, and the same command after the cause is fixed."""

    place: Place
    broken: Path
    first: tuple[int | None, str]
    before: dict[Path, bytes]
    second: tuple[int | None, str]


@pytest.fixture(scope="module")
def failing(new_place: Callable[[str], Place]) -> Failing:
    """One good cell, one from a model file that is cut short, one whose rate is absurd, one whose teacher is cut short.

    Then the file is put right.
    """
    place = new_place("failing")
    broken = make_bert(place.folder / "broken", seed=5)
    whole = (broken / "model.safetensors").read_bytes()
    os.truncate(broken / "model.safetensors", 30_000)
    (place.folder / "sweep.yaml").write_text(
        "grid:\n"
        f"  - {{method: [finetune], student.model: [{place.folder}/bert, {broken}]}}\n"
        f"  - {{method: [finetune], student.model: [{place.folder}/bert], train.learning_rate: [1.0e+30]}}\n"
        f"  - {{method: [kd], student.model: [{place.folder}/bert], teacher_training.model: [{broken}]}}\n"
    )
    left_out = ("student.model", "train.learning_rate", "teacher_training.model")
    words = [*place.words(str(place.folder / "sweep.yaml"), leave_out=left_out), "--jobs=2"]
    found = []
    for number in (1, 2):
        process = start(words, place.folder / f"output{number}")
        found.append((finish(process), (place.folder / f"output{number}").read_text()))
        if number == 1:
            before = place.manifests()
            (broken / "model.safetensors").write_bytes(whole)
    return Failing(place, broken, found[0], before, found[1])


def test_failed_and_diverged_cells_are_listed_with_reason_and_log_and_others_finish(failing: Failing) -> None:
    code, output = failing.first
    assert code == 3, output
    assert "4 runs: 1 finished, 1 diverged, 2 failed" in output
    closing = output[output.index("4 runs: 1 finished") :].splitlines()
    (diverged,) = [line for line in closing if line.startswith("diverged: ")]
    assert re.search(r"train\.learning_rate=1e\+30: at step \d+: the [\w ]+ is not finite", diverged)
    failed = [line for line in closing if line.startswith("failed: ")]
    assert len(failed) == 3  # a cell, a teacher and the cell that waits for it
    (cell,) = [line for line in failed if " student=" in line and "method=finetune" in line]
    assert f"student={failing.broken}" in cell
    assert "exit code 2" in cell
    (blocked,) = [line for line in failed if "method=kd" in line]
    assert blocked.endswith("its teacher has failed")
    logs = [Path(line.split(": ", 1)[1]) for line in closing if line.startswith("  its output: ")]
    assert len(logs) == 3
    assert all(log.read_text().strip() for log in logs)
    assert len(STARTED.findall(output)) == 4


def test_after_a_fix_the_same_command_runs_what_failed_and_nothing_else(failing: Failing) -> None:
    code, output = failing.second
    assert code == 3, output  # one has diverged and stays so
    assert "4 runs: 3 finished, 1 diverged" in output
    assert "failed: " not in output
    started = STARTED.findall(output)
    assert len(started) == 3
    assert not any("1e+30" in name for name in started)
    after = failing.place.manifests()
    assert failing.before.items() <= after.items()
    assert failing.place.statuses() == ["diverged", *["finished"] * 4]
    assert failing.place.litter() == []


# ---- one cell that is interrupted in every way, beside one that was finished before

EPOCHS = 24
LONG = f"method=finetune train.epochs={EPOCHS}"
INTERRUPTIONS = ["its process killed", "Ctrl-C", "SIGTERM to the sweep", "everything killed", "the sweep killed"]


@dataclass(frozen=True)
class Stage:
    """What an interruption left.

    Attributes:
        begun: the newest checkpoint that was there when the sweep was started.
        left: running processes of the sweep's group, half a second later.
        done: run.json of the finished cell.
        long: run.json of the interrupted cell.
    """

    code: int | None
    output: str
    begun: int
    saved: int
    left: list[int]
    done: bytes
    long: dict[str, Any]


@dataclass(frozen=True)
class Story:
    """All interruptions one after the other, always by the same command; at last it ends by itself."""

    place: Place
    done: Path
    long: Path
    stages: dict[str, Stage]
    waiting: tuple[list[str], int | None, str]


def group_of(leader: int) -> list[int]:
    """Processes of a process group."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            except (OSError, ValueError):  # it has just ended
                continue
            if int(group) == leader and state != "Z":
                found.append(int(folder.name))
    return found


def worker_of(run: Path) -> int:
    """The process that writes a run."""
    return int(re.findall(r"process (\d+)", FileLock(run / "run.lock").holder())[0])


def interrupt(how: str, leader: int, worker: int) -> None:
    """Do it."""
    if how == "its process killed":
        os.kill(worker, signal.SIGKILL)
    elif how == "Ctrl-C":
        os.killpg(leader, signal.SIGINT)
    elif how == "SIGTERM to the sweep":
        os.kill(leader, signal.SIGTERM)
    elif how == "everything killed":
        os.killpg(leader, signal.SIGKILL)
    else:
        os.kill(worker, signal.SIGSTOP)  # so that it lives for as long as the test needs
        os.kill(leader, signal.SIGKILL)


@pytest.fixture(scope="module")
def story(new_place: Callable[[str], Place]) -> Iterator[Story]:
    """Two cells, a short and a long one, one at a time."""
    place = new_place("story")
    words = place.words("method=finetune", f"train.epochs=1,{EPOCHS}", leave_out=("train.epochs",))
    words += ["train.checkpoint_steps=10"]
    stages: dict[str, Stage] = {}
    groups: list[int] = []
    done = long = place.runs

    def found() -> bool:
        nonlocal done, long
        runs = place.run_folders()
        if len(runs) < 2:
            return False
        long, done = sorted(runs, key=lambda run: -manifest(run)["steps"])
        return True

    try:
        for how in INTERRUPTIONS:
            begun = max(saved_steps(long), default=0)
            output = place.folder / f"output of {how}"
            process = start(words, output, group=True)
            assert process.pid is not None
            groups.append(process.pid)
            wait_until(found, process.is_alive, "the second cell")
            newer = lambda begun=begun: max(saved_steps(long), default=0) > begun  # noqa: E731
            wait_until(newer, process.is_alive, f"a checkpoint before: {how}")
            worker = worker_of(long)
            interrupt(how, process.pid, worker)
            code = finish(process)
            if how == "everything killed":
                time.sleep(0.5)
            stages[how] = Stage(
                code, output.read_text(), begun, saved_steps(long)[-1], group_of(process.pid),
                (done / "run.json").read_bytes(), manifest(long),
            )  # fmt: skip
        output = place.folder / "output of the second sweep"
        second = start(words, output, group=True)
        assert second.pid is not None
        groups.append(second.pid)
        wait_until(lambda: output.exists() and "1 to run" in output.read_text(), second.is_alive, "planning")
        time.sleep(1.5)
        meanwhile = STARTED.findall(output.read_text())
        assert second.is_alive()
        os.kill(worker, signal.SIGCONT)
        yield Story(place, done, long, stages, (meanwhile, finish(second), output.read_text()))
    finally:
        for group in groups:
            for pid in group_of(group):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("how", "code", "status"),
    [
        ("its process killed", 3, "running"),
        ("Ctrl-C", 130, "interrupted"),
        ("SIGTERM to the sweep", 143, "interrupted"),
        ("everything killed", -signal.SIGKILL, "running"),
    ],
)
def test_an_interrupted_sweep_leaves_no_process_and_a_run_to_continue(
    story: Story, how: str, code: int, status: str
) -> None:
    stage = story.stages[how]
    assert stage.code == code, stage.output
    assert stage.left == []
    assert stage.long["status"] == status
    assert "Traceback" not in stage.output
    assert stage.done == (story.done / "run.json").read_bytes()
    assert stage.saved > stage.begun


def test_a_killed_process_is_told_as_such(story: Story) -> None:
    output = story.stages["its process killed"].output
    assert "2 runs: 1 finished, 1 failed" in output
    assert f"failed: {LONG}: killed by signal 9" in output


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM to the sweep"])
def test_a_signal_saves_the_state_and_says_how_far_it_is(story: Story, how: str) -> None:
    stage = story.stages[how]
    last = stage.output.strip().splitlines()[-1]
    assert last.startswith("kdbert: stopped; 1 of 2 runs are finished")
    step = int(re.findall(rf"at step (\d+) of {EPOCHS * 13}", stage.long["message"])[0])
    assert stage.saved == step  # not a step is lost


def test_only_the_interrupted_cell_is_started_again(story: Story) -> None:
    outputs = [story.stages[how].output for how in INTERRUPTIONS]
    first, *later = [STARTED.findall(output) for output in outputs]
    assert len(first) == 2
    assert later == [[LONG]] * 4


def test_a_second_sweep_waits_for_the_process_that_a_killed_one_left(story: Story) -> None:
    assert story.stages["the sweep killed"].code == -signal.SIGKILL
    meanwhile, code, output = story.waiting
    assert meanwhile == []
    assert STARTED.findall(output) == []
    assert code == 0, output
    assert "(made elsewhere)" in output
    assert "2 runs: 2 finished" in output


def test_after_all_that_the_result_is_as_if_nothing_had_happened(
    story: Story, tmp_path: Path, threads: Callable[[int], None]
) -> None:
    facts = manifest(story.long)
    assert story.place.statuses() == ["finished", "finished"]
    assert facts["timings"]["resumed_from_step"] > 0
    assert story.place.litter() == []
    threads(facts["threads"])
    run_recipe(changed(Recipe.build(story.long / "recipe.yaml"), {"output.dir": str(tmp_path / "run")}))
    assert weights(tmp_path / "run") == weights(story.long)
