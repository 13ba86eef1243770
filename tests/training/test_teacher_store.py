"""The teacher's outputs on disk: read by every run that would compute the same, never trusted, never in the way."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors

from in_processes import processes, run_command, start, wait_until
from kdbert.data.batches import collate
from kdbert.disk.lock import FileLock
from kdbert.errors import KdbertError
from kdbert.methods import Needs
from kdbert.training import store
from kdbert.training.precision import make_accelerator
from kdbert.training.store import FOLDER, Allocate, stored, used_bytes
from kdbert.training.teacher import StoredTeacher
from small_run import Setting, build, logged, predictions

STEPS = 4
READ, KEPT = " logits: read from ", " logits: kept in "


@pytest.fixture
def run(setting: Setting, kdbert: Any, tmp_path: Path) -> Callable[..., Any]:
    """Run four steps in a folder; the store is that of `root`."""

    def go(folder: Path, root: Path, use: Setting = setting, **changes: Any) -> Any:
        ended = kdbert(*words(use, folder, root, **changes))
        assert ended.code == 0, ended.err
        return ended

    return go


def words(setting: Setting, folder: Path, root: Path, seed: int = 1, **changes: Any) -> list[str]:
    """Words of the command."""
    options = {"max_steps": STEPS, "precision": "fp32", **changes}
    return [*setting.words(folder, **{"output.runs_dir": str(root), **options}), "--seed", str(seed)]


def store_files(root: Path) -> dict[str, Path]:
    """split -> file."""
    files = root.glob(f"{FOLDER}/*/logits.safetensors")
    return {json.loads((file.parent / "about.json").read_text())["split"]: file for file in files}


def assert_same(actual: Path, expected: Path) -> None:
    """Weights and predictions are the same, bit for bit."""
    for name in ("model/model.safetensors", "predictions/dev.jsonl"):
        assert (actual / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.fixture(scope="module")
def made(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of seed 1, `first`, and the store that it made below `runs`. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("made")
    process = start(words(setting, folder / "first", folder / "runs"), folder / "output")
    process.join(120)
    assert process.exitcode == 0, (folder / "output").read_text()
    assert (folder / "output").read_text().count(KEPT) == 2
    return folder


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of the store."""
    return Path(shutil.copytree(made / "runs", tmp_path / "runs"))


# ---- what is read


def test_another_seed_reads_what_the_first_has_computed_and_ends_with_the_same_bits(
    run: Any, root: Path, tmp_path: Path
) -> None:
    again = run(tmp_path / "again", root, seed=2)
    fresh = run(tmp_path / "fresh", tmp_path / "other", seed=2)
    assert (again.err.count(READ), again.err.count(KEPT)) == (2, 0)
    assert (fresh.err.count(READ), fresh.err.count(KEPT)) == (0, 2)
    assert_same(tmp_path / "again", tmp_path / "fresh")
    for split, file in store_files(root).items():
        assert file.read_bytes() == store_files(tmp_path / "other")[split].read_bytes()


def test_methods_share_what_they_read_alike_and_end_with_the_same_bits(run: Any, tmp_path: Path) -> None:
    both = tmp_path / "both"
    run(tmp_path / "kd", both)
    again = run(tmp_path / "ics", both, **{"method.name": "ics"})
    alone = run(tmp_path / "alone", tmp_path / "own", **{"method.name": "ics"})
    assert again.err.count(READ) == 2  # logits of train and dev
    assert again.err.count("one pass over train") == alone.err.count("one pass over train") == 1
    assert_same(tmp_path / "ics", tmp_path / "alone")


def test_who_reads_the_store_needs_no_teachers_weights(
    setting: Setting, run: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    teacher = Path(shutil.copytree(setting.teacher, tmp_path / "teacher"))
    own = Setting(setting.train, setting.dev, teacher, setting.student)
    root = tmp_path / "runs"
    run(tmp_path / "first", root, own)
    file = teacher / "model.safetensors"
    status = file.stat()
    content = file.read_bytes()
    head = content[: 8 + int.from_bytes(content[:8], "little")]
    file.write_bytes(head.ljust(status.st_size, b"\0"))  # every weight is 0 now
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # so that nobody looks into it again but to load it
    again = run(tmp_path / "second", root, own, seed=2)
    assert again.err.count(READ) == 2
    facts = json.loads((tmp_path / "second" / "run.json").read_text())["teachers"]
    assert facts == json.loads((tmp_path / "first" / "run.json").read_text())["teachers"]


def test_the_store_says_what_it_holds(made: Path, setting: Setting) -> None:
    files = store_files(made / "runs")
    assert sorted(files) == ["dev", "train"]
    about = json.loads((files["train"].parent / "about.json").read_text())
    assert (about["max_length"], about["precision"]) == (64, "fp32")
    assert load_file(files["train"])["logits"].shape == (203, 2)
    assert load_file(files["train"])["logits"].dtype == np.float32


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"batch_size": 8},
        {"learning_rate": 1e-4},
        {"dropout": 0.3},
        {"student.layers": 1},
        {"method.alpha": 0.1},
        {"accumulation": 2},
    ],
    ids=str,
)
def test_what_concerns_the_student_alone_shares_the_store(
    run: Any, root: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert run(tmp_path / "run", root, **changes).err.count(READ) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"task.max_length": 32},
        {"precision": "bf16"},
        {"eval_batch_size": 16},
        {"task.max_train_examples": 150},
        "teacher",
        "data",
    ],
    ids=str,
)
def test_what_may_change_the_outputs_makes_another_store(
    setting: Setting, run: Any, root: Path, tmp_path: Path, changes: Any
) -> None:
    before = {file: file.read_bytes() for file in store_files(root).values()}
    parts = {name: getattr(setting, name) for name in ("train", "dev", "teacher", "student")}
    only_train = changes == "data" or "task.max_train_examples" in changes
    if changes == "teacher":
        parts["teacher"] = Path(shutil.copytree(setting.teacher, tmp_path / "teacher"))
        tensors = load_file(parts["teacher"] / "model.safetensors")
        tensors["classifier.bias"] += 1
        save_file(tensors, parts["teacher"] / "model.safetensors", {"format": "pt"})
    elif changes == "data":
        parts["train"] = tmp_path / "train.csv"
        parts["train"].write_text(setting.train.read_text().replace("great", "good", 1))
    ended = run(tmp_path / "run", root, Setting(**parts), **(changes if isinstance(changes, dict) else {}))
    assert ended.err.count(KEPT) == (1 if only_train else 2)
    assert ended.err.count(READ) == (1 if only_train else 0)
    assert {file: file.read_bytes() for file in before} == before


def test_a_teacher_that_was_moved_is_the_same_teacher(setting: Setting, run: Any, root: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(setting.teacher, tmp_path / "moved"))
    own = Setting(setting.train, setting.dev, moved, setting.student)
    assert run(tmp_path / "run", root, own).err.count(READ) == 2


def test_without_the_cache_nothing_is_stored(run: Any, tmp_path: Path) -> None:
    run(tmp_path / "run", tmp_path / "runs", teacher_cache=False)
    assert not (tmp_path / "runs").exists()


# ---- what is damaged


def truncate(file: Path) -> None:
    """Half of it is gone."""
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    """One bit of a value differs."""
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    """No bytes, as after a power failure."""
    file.write_bytes(b"")


def write_logits(file: Path, values: np.ndarray) -> None:
    """A whole file with other values, as if it were written by the program."""
    save_file({"logits": values}, file, {"sha256": hashlib.sha256(values.tobytes()).hexdigest()})


def drop_row(file: Path) -> None:
    """A row is missing, in a file that is whole."""
    write_logits(file, load_file(file)["logits"][:-1])


def one_number(file: Path) -> None:
    """There are no rows at all."""
    write_logits(file, np.array(1.0, np.float32))


def rename(file: Path) -> None:
    """It holds something else."""
    save_file({"hidden": load_file(file)["logits"]}, file)


@pytest.mark.parametrize("damage", [truncate, flip, empty, drop_row, one_number, rename])
def test_a_damaged_file_is_named_and_made_again(
    run: Any, made: Path, root: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    file = store_files(root)["train"]
    whole = file.read_bytes()
    damage(file)
    assert file.read_bytes() != whole
    ended = run(tmp_path / "run", root)
    (told,) = [line for line in ended.err.splitlines() if " is damaged (" in line]
    assert told.startswith(f"{file} is damaged (")
    assert told.endswith("); made again")
    assert (ended.err.count(READ), ended.err.count(KEPT)) == (1, 1)
    assert file.read_bytes() == whole
    assert_same(tmp_path / "run", made / "first")


def test_what_cannot_take_its_place_in_the_store_is_used_all_the_same(
    run: Any, made: Path, root: Path, tmp_path: Path
) -> None:
    file = store_files(root)["train"]
    file.unlink()
    file.mkdir()
    (file / "somebodys").write_text("own", encoding="utf-8")
    ended = run(tmp_path / "run", root)
    assert "used for this run" in ended.err
    assert (file / "somebodys").read_text(encoding="utf-8") == "own"
    assert_same(tmp_path / "run", made / "first")


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., np.ndarray]:
    """Store an array, or read it back."""
    accelerator = make_accelerator()

    def go(values: np.ndarray, budget: float = float("inf"), **about: Any) -> np.ndarray:
        def compute(wanted: list[str], allocate: Allocate) -> dict[str, np.ndarray | None]:
            array = allocate("logits", values.shape)
            assert array is not None
            array[...] = values
            return {"logits": array}

        rows = {"logits": len(values)}
        return np.array(stored(tmp_path, rows, about, compute, accelerator, budget=budget)["logits"])

    return go


def test_whichever_byte_is_wrong_no_wrong_value_is_read(keep: Any, tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    keep(values, a=1)
    (file,) = tmp_path.glob(f"{FOLDER}/*/logits.safetensors")
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        again = keep(values, a=1)
        assert again.tobytes() == values.tobytes()
        assert again.shape == values.shape


# ---- where nothing can be written


def test_where_the_store_cannot_be_made_the_run_goes_on(run: Any, made: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    (root / FOLDER).write_text("a file")
    ended = run(tmp_path / "run", root)
    assert "teacher outputs are not kept: cannot write to " in ended.err
    assert " is damaged (" not in ended.err
    assert_same(tmp_path / "run", made / "first")


@pytest.fixture
def disk_of() -> Iterator[Callable[[int], None]]:
    """No file may grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100_000])
def test_a_full_disk_is_told_and_survived(
    keep: Any, tmp_path: Path, disk_of: Callable[[int], None], caplog: pytest.LogCaptureFixture, size: int
) -> None:
    values = np.ones((100_000, 3), np.float32)
    disk_of(size)
    with caplog.at_level(logging.WARNING, "kdbert"):
        assert np.array_equal(keep(values, a=1), values)
    disk_of(resource.RLIM_INFINITY)
    assert "teacher outputs are not kept: cannot write" in caplog.text
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert np.array_equal(keep(values, a=1), values)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_the_store_takes_no_more_than_its_budget(keep: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.ones((1000, 3), np.float32)
    keep(values, a=1)
    taken = used_bytes(tmp_path)
    assert taken > values.nbytes
    with caplog.at_level(logging.WARNING, "kdbert"):
        assert np.array_equal(keep(values, a=2, budget=taken + values.nbytes - 1), values)
    assert "no room for 0 MiB on the disk or in train.cache_gib" in caplog.text
    assert used_bytes(tmp_path) == taken
    caplog.clear()
    with caplog.at_level(logging.WARNING, "kdbert"):
        keep(values, a=2, budget=taken + values.nbytes)
    assert caplog.text == ""
    assert used_bytes(tmp_path) > taken + values.nbytes


def test_a_run_without_room_in_the_budget_gives_the_same(run: Any, made: Path, tmp_path: Path) -> None:
    ended = run(tmp_path / "run", tmp_path / "runs", cache_gib=0)
    assert "teacher outputs are not kept" in ended.err
    assert not list(tmp_path.rglob(f"{FOLDER}/*/*.safetensors"))
    assert_same(tmp_path / "run", made / "first")


def test_what_is_too_large_for_memory_lies_on_the_disk_and_is_found_there_again(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path / "first", tmp_path / "runs", **{"method.name": "cka-l"})
    (file,) = tmp_path.glob(f"runs/{FOLDER}/*/hidden.*.safetensors")
    monkeypatch.setattr("kdbert.training.frozen_teacher.KEPT_SHARE", 0.0)
    budget = 1.5 * file.stat().st_size / 2**30  # no second one fits
    keys = {"method.name": "cka-l", "cache_gib": budget}
    again = run(tmp_path / "again", tmp_path / "runs", **keys)
    assert "runs at every step" not in first.err + again.err
    assert f"read from {file}" in again.err
    assert_same(tmp_path / "again", tmp_path / "first")
    live = run(tmp_path / "live", tmp_path / "runs", **{**keys, "student.layers": 3, "method.layer_map": "3:2"})
    assert "runs at every step, since there is no room to keep its hidden.3 (train.cache_gib)" in live.err


@pytest.mark.parametrize("method", ["cka-l", pytest.param("ics", marks=pytest.mark.long)])
@pytest.mark.long
def test_a_store_in_half_precision_stays_near_the_live_loss_over_50_steps(
    method: str, run: Any, tmp_path: Path
) -> None:
    keys = {
        "method.name": method,
        "max_steps": 50,
        "epochs": 4,
        "dropout": 0.0,
        "student.layers": 3,
        "learning_rate": 1e-4,
    }
    for name, more in (
        ("live", {"teacher_cache": False}), ("whole", {}), ("half", {"cache_precision": "bf16"}),
    ):  # fmt: skip
        run(tmp_path / name, tmp_path / "runs", **keys, **more)
    live, whole, half = (logged(tmp_path / name) for name in ("live", "whole", "half"))
    assert len(live) == 50
    for step, line in live.items():
        assert whole[step]["loss"] == pytest.approx(line["loss"], rel=1e-5)
        assert half[step]["loss"] == pytest.approx(line["loss"], rel=5e-3)
    assert any(half[step]["loss"] != line["loss"] for step, line in whole.items())
    files = {path.name: path.stat().st_size for path in tmp_path.glob(f"runs/{FOLDER}/*/hidden.*.safetensors")}
    (precise,) = [size for name, size in files.items() if ".bf16." not in name]
    (rounded,) = [size for name, size in files.items() if ".bf16." in name]
    assert rounded == pytest.approx(precise / 2, rel=0.01)


def test_others_can_read_the_files(run: Any, tmp_path: Path) -> None:
    run(tmp_path / "run", tmp_path / "runs", **{"method.name": "cka-l", "cache_precision": "bf16"})
    (file,) = tmp_path.glob(f"runs/{FOLDER}/*/hidden.*.bf16.safetensors")
    (hidden,) = load_tensors(file).values()
    assert hidden.dtype == torch.bfloat16
    assert hidden.shape[1] == 32
    assert hidden.abs().float().mean() > 0.1


def test_what_is_read_is_a_map_of_the_file_and_cannot_change_it(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    array = np.zeros(0)
    for _ in range(2):

        def compute(wanted: list[str], allocate: Allocate) -> dict[str, np.ndarray | None]:
            found = allocate("logits", values.shape)
            assert isinstance(found, np.memmap)
            found[...] = values
            return {"logits": found}

        array = stored(tmp_path, {"logits": 4}, {"a": 1}, compute, make_accelerator())["logits"]
        assert isinstance(array, np.memmap)
        assert np.array_equal(array, values)
        with pytest.raises(ValueError, match="read-only"):
            array += 1
    (file,) = tmp_path.glob(f"{FOLDER}/*/logits.safetensors")
    assert np.array_equal(load_file(file)["logits"], values)


def test_what_a_killed_process_left_half_written_is_removed(keep: Any, tmp_path: Path) -> None:
    values = np.ones((3, 2), np.float32)
    keep(values, a=1)
    (file,) = tmp_path.glob(f"{FOLDER}/*/logits.safetensors")
    file.rename(file.with_name(".logits.safetensors.4194000.tmp"))
    keep(values, a=1)
    assert sorted(path.name for path in file.parent.iterdir()) == ["about.json", "logits.safetensors"]


# ---- several at once


def test_two_runs_at_once_compute_it_once_and_the_second_waits(setting: Setting, made: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    lock = FileLock(root / FOLDER / store_files(made / "runs")["dev"].parent.name / "logits.lock")
    assert lock.acquire()  # so that both come to want it
    outputs = [tmp_path / f"output{seed}" for seed in (1, 2)]
    both = [start(words(setting, tmp_path / f"run{seed}", root, seed=seed), outputs[seed - 1]) for seed in (1, 2)]
    try:
        told = f"waiting for the teacher's outputs, which process {os.getpid()} on"
        for process, output in zip(both, outputs, strict=True):
            wait_until(lambda o=output: o.exists() and told in o.read_text(), process.is_alive, "waiting")
        lock.release()
        for process in both:
            process.join(120)
    finally:
        for process in both:
            process.kill()
    texts = [output.read_text() for output in outputs]
    assert [process.exitcode for process in both] == [0, 0], texts
    assert sum(text.count(KEPT) for text in texts) == 2
    assert sum(text.count(READ) for text in texts) == 2
    assert_same(tmp_path / "run1", made / "first")
    assert predictions(tmp_path / "run2") != predictions(tmp_path / "run1")
    assert not list(root.rglob("*.lock"))


def test_logits_that_a_methods_needs_do_not_name_are_missed_aloud(setting: Setting, tmp_path: Path) -> None:
    parts = build(setting.recipe(tmp_path / "run"))
    batch = collate(parts.data, np.arange(4))
    kept = StoredTeacher({}, parts.data, [], parts.accelerator.device, Needs()).outputs(batch)
    with pytest.raises(KdbertError, match="teacher_logits"):
        parts.module(batch, [kept])  # kd, which reads them


def fill_for_ever(given: list[str], output: Path) -> None:
    """Body of a process whose run fills a file of the store and never ends it."""
    store._File.seal = lambda self: time.sleep(300)  # type: ignore[assignment,method-assign,return-value]
    run_command(given, output)


def test_when_the_run_that_fills_the_store_is_killed_the_one_that_waits_does_it_anew(
    setting: Setting, made: Path, tmp_path: Path
) -> None:
    root, outputs = tmp_path / "runs", [tmp_path / "output1", tmp_path / "output2"]
    started = [processes.Process(target=fill_for_ever, args=(words(setting, tmp_path / "killed", root), outputs[0]))]
    try:
        started[0].start()
        wait_until(lambda: bool(list(root.glob(f"{FOLDER}/*/.*.tmp"))), started[0].is_alive, "the store")
        started.append(start(words(setting, tmp_path / "run", root), outputs[1]))
        told = f"waiting for the teacher's outputs, which process {started[0].pid} on"
        wait_until(lambda: told in outputs[1].read_text() if outputs[1].exists() else False, started[1].is_alive, told)
        started[0].kill()
        started[1].join(120)
    finally:
        for process in started:
            process.kill()
    assert started[1].exitcode == 0, outputs[1].read_text()
    assert outputs[1].read_text().count(KEPT) == 2
    assert_same(tmp_path / "run", made / "first")
    assert not [path for path in root.rglob("*") if path.name.endswith((".lock", ".tmp"))]
