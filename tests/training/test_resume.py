"""A run that was killed, stopped, or met a full disk and is then continued ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from conftest import often
from in_processes import saved_steps, start, wait_until
from kdbert.disk.sealed import sealed
from kdbert.errors import Interrupted, UserError
from kdbert.signals import ended_by_signals
from kdbert.training.checkpoint import load_optimizer, newest_checkpoint, optimizer_tensors, save_checkpoint
from small_run import FEATURES, Setting, logged, make_teacher, predictions, run_recipe

EPOCHS = 5
STEPS = 13 * EPOCHS
# Dropout as BERT has it and the machine's own precision: what a person runs.
COMMON: dict[str, Any] = {"epochs": EPOCHS, "checkpoint_steps": 3}


@pytest.fixture(scope="module")
def reference(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run that nothing interrupted, made once for each set of changes."""
    made: dict[str, Path] = {}

    def of(**changes: Any) -> Path:
        key = json.dumps(changes, sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("reference") / "run"
            run_recipe(setting.recipe(folder, **COMMON, **changes))
            made[key] = folder
        return made[key]

    return of


def assert_same_run(actual: Path, expected: Path) -> None:
    """Weights, record and predictions are equal byte for byte, and nothing temporary is left."""
    assert (actual / "metrics.jsonl").read_text() == (expected / "metrics.jsonl").read_text()
    own = ["method.safetensors"] if (expected / "method.safetensors").exists() else []
    for name in ("model/model.safetensors", "predictions/dev.jsonl", *own):
        assert (actual / name).read_bytes() == (expected / name).read_bytes(), name
    assert json.loads((actual / "run.json").read_text())["status"] == "finished"
    assert sorted(p.name for p in actual.iterdir() if not p.name.startswith("events.")) == sorted(
        p.name for p in expected.iterdir() if not p.name.startswith("events.")
    )
    assert [p for p in actual.rglob("*") if p.name.endswith((".tmp", ".old", ".lock"))] == []


def kill_at(words: list[str], run: Path, step: int, output: Path) -> None:
    """Run until the checkpoint of `step` or a later one is there, then SIGKILL."""
    process = start(words, output)
    try:
        wait_until(lambda: max(saved_steps(run), default=0) >= step, process.is_alive, f"step {step}")
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert json.loads((run / "run.json").read_text())["status"] == "running"


@pytest.mark.parametrize(
    ("changes", "moments"),
    [
        ({"accumulation": 2, "selection": "best"}, [30]),
        # At this rate the score goes up and down, so that what is best also changes after the kill.
        pytest.param({"accumulation": 1, "selection": "best", "learning_rate": 5e-3}, [27], marks=pytest.mark.long),
        # What depends on how far the run has come, and a student that is differentiated twice.
        pytest.param({"method.name": "ad-kd", "method.anneal": True}, [30], marks=pytest.mark.long),
        ({"accumulation": 1, "selection": "best", "learning_rate": 5e-3, "patience": 1}, [14]),
    ],
    ids=str,
)
def test_killed_at_any_moment_and_continued_equals_uninterrupted(
    setting: Setting,
    reference: Callable[..., Path],
    kdbert: Any,
    tmp_path: Path,
    changes: dict[str, Any],
    moments: list[int],
) -> None:
    run = tmp_path / "run"
    words = setting.words(run, **COMMON, **changes)
    for moment in moments:
        kill_at(words, run, moment, tmp_path / "output")
    ended = kdbert(*words)
    assert ended.code == 0, ended.err
    assert re.search(r"continuing from step \d+ of 65", ended.err)
    assert_same_run(run, reference(**changes))


def test_what_a_method_has_learnt_is_continued_too(setting: Setting, kdbert: Any, tmp_path: Path) -> None:
    """`ics` with a projection, since its teacher is wider."""
    wide = Setting(setting.train, setting.dev, make_teacher(tmp_path / "teacher", hidden=48), setting.student)
    changes = {**COMMON, **FEATURES["ics"], "selection": "best", "epochs": 2}
    expected, run = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    run_recipe(wide.recipe(expected, **changes))
    run.parent.mkdir()
    words = wide.words(run, **changes)
    kill_at(words, run, 14, tmp_path / "output")
    ended = kdbert(*words)
    assert ended.code == 0, ended.err
    assert re.search(r"continuing from step \d+ of 26", ended.err)
    assert_same_run(run, expected)
    assert load_file(run / "method.safetensors").keys() == {"projections.0.weight", "projections.0.bias"}


def test_a_k_that_has_shrunk_stays_so_when_the_run_is_continued(setting: Setting, kdbert: Any, tmp_path: Path) -> None:
    """The hate-speech script's k is that of the smallest class met in the whole run (I2)."""
    changes = {
        **COMMON, "epochs": 2, "method.name": "ics", "method.variant": "original", "method.k_state": "run",
        "method.neighbors": 16,
    }  # fmt: skip
    expected, run = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    run_recipe(setting.recipe(expected, **changes))
    run.parent.mkdir()
    words = setting.words(run, **changes)
    kill_at(words, run, 3, tmp_path / "output")
    stopped_at = newest_checkpoint(run / "checkpoints")
    assert stopped_at is not None
    shrunk = int(stopped_at.tensors["weights"]["method.k"])
    assert kdbert(*words).code == 0
    assert_same_run(run, expected)
    assert 0 < int(load_file(run / "method.safetensors")["k"]) <= shrunk < 16


def test_best_is_the_first_of_the_best_epochs(reference: Callable[..., Path]) -> None:
    last, best = (reference(accumulation=2, selection=s) for s in ("last", "best"))
    facts = json.loads((best / "run.json").read_text())["best"]
    scores = {step: line["dev/accuracy"] for step, line in logged(best, "dev/accuracy").items()}
    assert len(scores) == EPOCHS
    assert facts["value"] == max(scores.values())
    assert facts["step"] == min(step for step, value in scores.items() if value == facts["value"])
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (last, best)]
    assert (weights[0] == weights[1]) == (facts["step"] == STEPS)
    assert [line.keys() for line in logged(best).values()] == [line.keys() for line in logged(last).values()]


@pytest.fixture(scope="module")
def interrupted(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed in its third epoch, with two checkpoints; tests work on copies."""
    folder = tmp_path_factory.mktemp("interrupted")
    kill_at(setting.words(folder / "run", **COMMON), folder / "run", 30, folder / "output")
    for temporary in folder.rglob(".step-*.tmp"):  # the kill may have struck while one was written
        shutil.rmtree(temporary)
    for old in saved_steps(folder / "run")[:-2]:  # or before the oldest was removed
        shutil.rmtree(folder / "run" / "checkpoints" / f"step-{old}")
    return folder / "run"


@pytest.fixture
def run(interrupted: Path, tmp_path: Path) -> Path:
    """A copy of the killed run."""
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def truncate(checkpoint: Path) -> None:
    """Half of the weights are gone."""
    file = checkpoint / "weights.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def flip(checkpoint: Path) -> None:
    """One byte in the middle of the weights differs."""
    file = checkpoint / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def lose_optimizer(checkpoint: Path) -> None:
    """The optimiser's state is gone."""
    (checkpoint / "optimizer.safetensors").unlink()


def lose_manifest(checkpoint: Path) -> None:
    """Nothing says what belongs to it."""
    (checkpoint / "manifest.json").unlink()


def empty_manifest(checkpoint: Path) -> None:
    """The manifest has no bytes, as after a power failure."""
    (checkpoint / "manifest.json").write_bytes(b"")


DAMAGES = [truncate, flip, lose_optimizer, lose_manifest, empty_manifest]


@pytest.mark.parametrize("damage", often(DAMAGES, {truncate, lose_manifest}.__contains__))
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    setting: Setting,
    reference: Callable[..., Path],
    kdbert: Any,
    run: Path,
    damage: Callable[[Path], None],
) -> None:
    older, newest = saved_steps(run)
    damage(run / "checkpoints" / f"step-{newest}")
    ended = kdbert(*setting.words(run, **COMMON))
    assert ended.code == 0, ended.err
    assert re.search(rf"skipping checkpoint .*step-{newest}: \S", ended.err)
    assert f"continuing from step {older} of {STEPS} (step-{older})" in ended.err
    assert_same_run(run, reference(accumulation=1, selection="last"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_when_every_checkpoint_is_damaged_the_run_is_refused(
    setting: Setting, kdbert: Any, run: Path, damage: Callable[[Path], None]
) -> None:
    steps = saved_steps(run)
    for step in steps:
        damage(run / "checkpoints" / f"step-{step}")
    record = (run / "metrics.jsonl").read_bytes()
    ended = kdbert(*setting.words(run, **COMMON))
    assert ended.code == 2
    assert all(f"step-{step}" in ended.err for step in steps)
    assert "--overwrite" in ended.err
    assert "Traceback" not in ended.err
    assert saved_steps(run) == steps
    assert (run / "metrics.jsonl").read_bytes() == record


def test_overwrite_starts_afresh_and_keeps_the_damaged_run(
    setting: Setting, reference: Callable[..., Path], kdbert: Any, run: Path
) -> None:
    for step in saved_steps(run):
        truncate(run / "checkpoints" / f"step-{step}")
    ended = kdbert(*setting.words(run, **COMMON), "--overwrite")
    assert ended.code == 0, ended.err
    assert "continuing from" not in ended.err
    assert_same_run(run, reference(accumulation=1, selection="last"))
    (aside,) = run.parent.glob("run.old-*")
    assert saved_steps(aside)


def test_what_a_killed_process_leaves_half_written_is_gone_after_success(
    setting: Setting, reference: Callable[..., Path], kdbert: Any, run: Path
) -> None:
    (run / "checkpoints" / ".step-31.tmp").mkdir()
    (run / "checkpoints" / ".step-31.tmp" / "weights.safetensors").write_bytes(b"half")
    (run / ".model.4194000.tmp").mkdir()
    (run / ".model.4194000.tmp" / "model.safetensors").write_bytes(b"half")
    (run / ".run.json.4194000.tmp").write_text("{")
    (run / "predictions").mkdir(exist_ok=True)
    (run / "predictions" / ".dev.jsonl.4194000.tmp").write_text("{")
    ended = kdbert(*setting.words(run, **COMMON))
    assert ended.code == 0, ended.err
    assert_same_run(run, reference(accumulation=1, selection="last"))


def test_a_record_that_was_lost_or_cut_short_does_not_stop_a_run(setting: Setting, kdbert: Any, run: Path) -> None:
    os.truncate(run / "metrics.jsonl", 100)
    ended = kdbert(*setting.words(run, **COMMON))
    assert ended.code == 0, ended.err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]  # no half line is left
    assert {line["step"] for line in lines} >= {STEPS}


@pytest.fixture
def ended_one(tmp_path: Path) -> Callable[..., tuple[int | None, str]]:
    """Run the command to its end in a process that may not write large files: exit code and output."""

    def run(words: list[str], file_limit: int) -> tuple[int | None, str]:
        process = start(words, tmp_path / "output", file_limit)
        process.join(120)
        assert process.exitcode is not None
        return process.exitcode, (tmp_path / "output").read_text()

    return run


def assert_one_sentence(output: str) -> None:
    """The last line is the program's, and there is no traceback."""
    assert "Traceback" not in output, output
    assert output.strip().splitlines()[-1].startswith("kdbert: "), output


def test_disk_full_while_saving_a_checkpoint_keeps_the_one_before(
    setting: Setting,
    reference: Callable[..., Path],
    kdbert: Any,
    run: Path,
    ended_one: Callable[..., tuple[int | None, str]],
) -> None:
    before = saved_steps(run)
    size = (run / "checkpoints" / f"step-{before[-1]}" / "weights.safetensors").stat().st_size
    words = setting.words(run, **COMMON)
    code, output = ended_one(words, size // 2)
    assert code == 2, output
    assert_one_sentence(output)
    assert f"step-{before[-1]}" in output.splitlines()[-1]
    assert saved_steps(run) == before
    assert not list((run / "checkpoints").glob(".*"))
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert newest.state["step"] == before[-1]
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["status"] == "failed"

    ended = kdbert(*words)
    assert ended.code == 0, ended.err
    assert_same_run(run, reference(accumulation=1, selection="last"))


def test_disk_so_full_that_the_record_cannot_grow_is_told_and_survived(
    setting: Setting,
    reference: Callable[..., Path],
    kdbert: Any,
    run: Path,
    ended_one: Callable[..., tuple[int | None, str]],
) -> None:
    before = saved_steps(run)
    words = setting.words(run, **COMMON)
    code, output = ended_one(words, (run / "metrics.jsonl").stat().st_size + 10)
    assert code == 2, output
    assert_one_sentence(output)
    assert saved_steps(run) == before
    ended = kdbert(*words)
    assert ended.code == 0, ended.err
    assert_same_run(run, reference(accumulation=1, selection="last"))


def test_disk_full_while_saving_the_first_checkpoint_leaves_a_run_that_can_start_again(
    setting: Setting,
    reference: Callable[..., Path],
    kdbert: Any,
    tmp_path: Path,
    ended_one: Callable[..., tuple[int | None, str]],
) -> None:
    run = tmp_path / "run"
    words = setting.words(run, **COMMON)
    code, output = ended_one(words, 50_000)
    assert code == 2, output
    assert_one_sentence(output)
    assert saved_steps(run) == []
    ended = kdbert(*words)
    assert ended.code == 0, ended.err
    assert_same_run(run, reference(accumulation=1, selection="last"))


def test_disk_full_while_saving_the_model_is_told_and_survived(
    setting: Setting,
    reference: Callable[..., Path],
    kdbert: Any,
    tmp_path: Path,
    ended_one: Callable[..., tuple[int | None, str]],
) -> None:
    run = tmp_path / "run"
    words = setting.words(run, **COMMON, **{"output.keep_checkpoints": True})
    assert kdbert(*words).code == 0
    # As if it had been killed between its last checkpoint and the model.
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(sealed({**manifest, "status": "running"})))
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "predictions")
    kept = saved_steps(run)
    assert kept[-1] == STEPS
    last = newest_checkpoint(run / "checkpoints")
    assert last is not None
    assert not last.tensors["optimizer"]  # no step is left that would read it

    code, output = ended_one(words, 50_000)
    assert code == 2, output
    assert_one_sentence(output)
    assert not (run / "model").exists()
    assert saved_steps(run) == kept
    ended = kdbert(*words)
    assert ended.code == 0, ended.err
    expected = reference(accumulation=1, selection="last")
    assert (run / "model" / "model.safetensors").read_bytes() == (expected / "model" / "model.safetensors").read_bytes()
    assert predictions(run) == predictions(expected)


def test_a_second_start_of_a_running_run_is_refused_and_harms_nothing(
    setting: Setting, reference: Callable[..., Path], kdbert: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = setting.words(run, **COMMON)
    process = start(words, tmp_path / "output")
    try:
        wait_until(lambda: bool(saved_steps(run)), process.is_alive, "the first checkpoint")
        os.kill(process.pid or 0, signal.SIGSTOP)  # so that it is running for as long as this takes
        for more in ([], ["--overwrite"]):
            ended = kdbert(*words, *more)
            assert ended.code == 2
            assert f"process {process.pid}" in ended.err
            assert socket.gethostname() in ended.err
            assert "Traceback" not in ended.err
        os.kill(process.pid or 0, signal.SIGCONT)
        process.join(120)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == 0
    assert_same_run(run, reference(accumulation=1, selection="last"))
    assert not list(tmp_path.glob("run.old-*"))


@pytest.fixture(scope="module")
def stopped(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, tuple[Path, int, str]]]:
    """signal -> (run, exit code, stderr) of a command that got it while training."""
    started: dict[int, tuple[Path, BaseProcess, Path]] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        folder = tmp_path_factory.mktemp("stopped")
        words = setting.words(folder / "run", **COMMON) + (["--overwrite"] if number == signal.SIGTERM else [])
        started[number] = (folder / "run", start(words, folder / "output"), folder / "output")
    try:
        for number, (run, process, _) in started.items():
            wait_until(lambda run=run: bool(saved_steps(run)), process.is_alive, "the first checkpoint")
            os.kill(process.pid or 0, number)
        for _, process, _ in started.values():
            process.join(120)
        yield {n: (run, process.exitcode or 0, output.read_text()) for n, (run, process, output) in started.items()}
    finally:
        for _, process, _ in started.values():
            process.kill()
            process.join()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_says_how_to_continue_and_loses_nothing(
    setting: Setting,
    reference: Callable[..., Path],
    stopped: dict[int, tuple[Path, int, str]],
    kdbert: Any,
    number: int,
    code: int,
) -> None:
    run, returned, errors = stopped[number]
    assert returned == code, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith(f"kdbert: stopped by {signal.Signals(number).name} at step ")
    again = "again, without --overwrite, to" if number == signal.SIGTERM else "again to"
    assert f"run the same command {again} continue" in last
    assert "Traceback" not in errors
    step = int(re.findall(r"at step (\d+) of 65", last)[0])
    assert saved_steps(run)[-1] == step  # not a step is lost
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"

    ended = kdbert(*setting.words(run, **COMMON))
    assert ended.code == 0, ended.err
    assert f"continuing from step {step} of {STEPS}" in ended.err
    assert_same_run(run, reference(accumulation=1, selection="last"))


def test_the_same_command_on_a_damaged_finished_run_is_refused(
    setting: Setting, reference: Callable[..., Path], kdbert: Any, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(reference(accumulation=1, selection="last"), tmp_path / "run"))
    words = setting.words(run, **COMMON)
    for name in ("model/model.safetensors", "model/config.json", "predictions/dev.jsonl", "metrics.jsonl"):
        whole = (run / name).read_bytes()
        for damage in (whole[:-1], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], None):
            (run / name).unlink() if damage is None else (run / name).write_bytes(damage)
            ended = kdbert(*words)
            assert (ended.code, ended.out) == (2, ""), (name, ended.err)
            assert str(run / name) in ended.err
            assert "--overwrite" in ended.err
        (run / name).write_bytes(whole)
    (run / "model" / "README.md").write_text("A card that a person has edited.")
    assert kdbert(*words).code == 0
    shutil.rmtree(run / "model")  # to save room: what it was stands in run.json
    ended = kdbert(*words)
    assert ended.code == 0
    assert "its model folder was deleted" in ended.err


def test_continuing_by_other_versions_is_told(setting: Setting, kdbert: Any, run: Path) -> None:
    manifest = json.loads((run / "run.json").read_text())
    manifest["environment"]["versions"]["torch"] = "1.0.0"
    (run / "run.json").write_text(json.dumps(sealed(manifest)))
    ended = kdbert(*setting.words(run, **COMMON))
    assert ended.code == 0, ended.err
    assert re.search(r"\(torch 1\.0\.0 then, 2\S+ now\)", ended.err)


def test_continuing_with_other_data_is_refused(setting: Setting, kdbert: Any, run: Path, tmp_path: Path) -> None:
    changed = tmp_path / "train.csv"
    changed.write_text(setting.train.read_text().replace("good", "great"))
    files = setting.train
    words = [word.replace(str(files), str(changed)) for word in setting.words(run, **COMMON)]
    before = saved_steps(run)
    ended = kdbert(*words)
    assert ended.code == 2
    assert "train" in ended.err
    assert saved_steps(run) == before


# --- the functions that the above stands on ---


def trained(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A module after one optimiser step."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    module(torch.randn(5, 4)).square().mean().backward()
    optimizer.step()
    return module, optimizer


def save(folder: Path, step: int) -> Path:
    """A checkpoint of such a module."""
    module, optimizer = trained(step)
    tensors = {"weights": module.state_dict(), "optimizer": optimizer_tensors(module, optimizer)}
    return save_checkpoint(folder, step, tensors, {"step": step})


def test_the_newest_two_checkpoints_are_kept_and_steps_are_numbers(tmp_path: Path) -> None:
    for step in (8, 9, 10, 100):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-100"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.state == {"step": 100}


def test_a_damaged_later_checkpoint_takes_no_place_of_a_whole_one(tmp_path: Path) -> None:
    for step in (5, 7):
        save(tmp_path, step)
    for step in (30, 40):  # what is left of a run that got further
        (tmp_path / f"step-{step}").mkdir()
        (tmp_path / f"step-{step}" / "manifest.json").write_text("{")
    save(tmp_path, 9)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.state == {"step": 9}
    assert (tmp_path / "step-7").is_dir()


def test_a_file_that_the_manifest_does_not_list_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    save_file({"other": torch.ones(1)}, path / "best.safetensors")
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert set(newest.tensors) == {"weights", "optimizer"}


def test_signals_end_what_is_before_and_behind_the_loop() -> None:
    """As Ctrl-C does: by an exception, behind which the handlers are those of before."""
    before = signal.getsignal(signal.SIGTERM)
    told = "stopped by SIGTERM; run the same command again to continue"
    with pytest.raises(Interrupted, match=told) as caught, ended_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") is None
    (tmp_path / ".step-5.tmp").mkdir()
    (tmp_path / "step-x").mkdir()
    assert newest_checkpoint(tmp_path) is None


def test_every_file_of_a_checkpoint_is_listed_with_size_and_hash(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest) == {p.name for p in path.iterdir()} - {"manifest.json"}
    for name, facts in manifest.items():
        assert facts["bytes"] == (path / name).stat().st_size
        assert len(facts["sha256"]) == 64


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    truncate(path)
    save(tmp_path, 1)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.path == path


def test_a_manifest_that_lists_no_optimizer_is_not_trusted(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    lose_optimizer(path)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["optimizer.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"optimizer\.safetensors not listed"):
        newest_checkpoint(tmp_path)


def test_an_optimizer_continues_exactly_where_it_was(tmp_path: Path) -> None:
    module, optimizer = trained(1)
    save(tmp_path, 1)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    other, fresh = trained(2)
    other.load_state_dict(newest.tensors["weights"])
    load_optimizer(other, fresh, newest.tensors["optimizer"], newest.path)
    for parts in ((module, optimizer), (other, fresh)):
        torch.manual_seed(5)
        parts[1].zero_grad()
        parts[0](torch.randn(5, 4)).square().mean().backward()
        parts[1].step()
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_a_parameter_that_no_gradient_has_reached_is_continued_without_a_state(tmp_path: Path) -> None:
    module = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 2), "idle": torch.nn.Linear(2, 2)})
    before, after = (torch.optim.AdamW(module.parameters(), lr=0.1) for _ in range(2))
    module["used"](torch.ones(1, 2)).sum().backward()
    before.step()
    saved = optimizer_tensors(module, before)
    load_optimizer(module, after, saved, tmp_path)
    assert set(after.state) == set(module["used"].parameters())
    with pytest.raises(UserError, match="missing"):
        load_optimizer(module, after, {k: v for k, v in saved.items() if "idle" not in k}, tmp_path)


def test_a_missing_optimizer_state_is_an_error_never_a_silent_restart(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    tensors = load_file(path / "optimizer.safetensors")
    module, optimizer = trained(1)
    kept = {name: value for name, value in tensors.items() if not name.startswith("2.bias")}
    save_file(kept, path / "optimizer.safetensors")
    with pytest.raises(UserError, match=r"2\.bias"):
        load_optimizer(module, optimizer, kept, path)
