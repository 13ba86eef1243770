"""Each file that kdbert reads back, damaged in each way: the newest whole state is used and the damage named, or the
command refuses in one sentence; never another result without a word, never a traceback.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from broken_world import CUT, MADE, inputs, make, result, unprivileged, words
from kdbert.errors import UserError
from kdbert.memory import Memory
from kdbert.runs import RunFolder
from kdbert.training.checkpoint import newest_checkpoint

# ---- what can become of a file


def truncated(file: Path) -> None:
    """The second half is gone."""
    os.truncate(file, file.stat().st_size // 2)


def flipped(file: Path) -> None:
    """A byte differs: near the end of weights, so that they are well-formed; in a text a digit, so that it is, too."""
    content = bytearray(file.read_bytes())
    places = range(len(content) // 2, len(content))
    digits = [place for place in places if file.suffix != ".safetensors" and chr(content[place]).isdigit()]
    content[digits[0] if digits else -3] ^= 1
    file.write_bytes(content)


def emptied(file: Path) -> None:
    """There are no bytes, as after a power failure."""
    file.write_bytes(b"")


def deleted(file: Path) -> None:
    """It is not there."""
    shutil.rmtree(file) if file.is_dir() else file.unlink()


def a_folder(file: Path) -> None:
    """A folder of its name lies there, with somebody's file in it."""
    file.unlink()
    file.mkdir()
    (file / "somebodys").write_text("own")


def a_file(folder: Path) -> None:
    """A file of its name lies there."""
    shutil.rmtree(folder)
    folder.write_text("own")


def unreadable(file: Path) -> None:
    """It may not be read."""
    file.chmod(0)


DAMAGES = (truncated, flipped, emptied, deleted, a_folder, unreadable)

# ---- what must follow

HEALED = "the same result, and the damage is named"
SAME = "the same result; the file is not needed, or is written anew"
REFUSED = "exit code 2 and one sentence with the file"
RECORD = "the same weights and answers, another record, and the damage of that is named"
TELLING = ("damaged", "skipping", "cannot be read", "no checkpoint")
NOTED = "the rest is shown, with the file and what is wrong with it"
MODEL = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
NEWEST = f"run/checkpoints/step-{CUT}"


@dataclass(frozen=True)
class Row:
    """A file, a command that may read it, and what follows; `but` for some damages.

    A file below `run` is that of the killed run for `distill` and of the finished one for the others.
    """

    command: str
    file: str
    outcome: str
    but: dict[Callable[[Path], None], str] | None = None
    damages: tuple[Callable[[Path], None], ...] = DAMAGES


ROWS = [
    # A checkpoint: the one before is taken.
    *(
        Row("distill", f"{NEWEST}/{file}", HEALED)
        for file in ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
    ),
    Row("distill", NEWEST, HEALED, {deleted: SAME}, (deleted, a_file)),
    Row("distill", "run/checkpoints", HEALED, {a_file: REFUSED}, (deleted, a_file)),
    # The rest of a run that is continued.
    Row("distill", "run/run.json", REFUSED),
    Row("distill", "run/metrics.jsonl", RECORD, {a_folder: REFUSED, unreadable: REFUSED}),
    Row("distill", "run/recipe.yaml", SAME, {a_folder: REFUSED}, (truncated, deleted, a_folder, unreadable)),
    # A finished run, read by each command that reads one.
    *(Row("evaluate", f"run/model/{file}", REFUSED) for file in MODEL),
    *(Row(command, "run/model/model.safetensors", REFUSED, damages=(flipped,)) for command in ("export", "benchmark")),
    *(Row(command, "run/run.json", REFUSED) for command in ("evaluate", "table", "export", "benchmark")),
    Row("evaluate", "run/predictions/dev.jsonl", SAME, {a_folder: REFUSED}),
    Row("evaluate", "run/model/README.md", SAME, damages=(flipped, deleted)),
    *(
        Row("report", f"run/{file}", NOTED, damages=(flipped, deleted))
        for file in ("run.json", "metrics.jsonl", "predictions/dev.jsonl", "model/config.json")
    ),
    # As a teacher.
    *(Row("short", f"teacher/{file}", REFUSED) for file in ("run.json", *(f"model/{file}" for file in MODEL))),
    # Memory: that which a run makes for itself, and one that is named.
    Row("short", "runs/custom/memory/*.safetensors", HEALED, {deleted: SAME, a_folder: REFUSED}),
    Row("given", "memory.safetensors", REFUSED),
    # What is kept of a teacher (more in tests/training/test_teacher_store.py).
    Row("short", "runs/.teacher-outputs/*/hidden.*", HEALED, {deleted: SAME}, (deleted, a_folder, unreadable)),
    Row("short", "runs/.teacher-outputs/*/about.json", SAME, damages=(truncated, deleted, a_folder)),
    # A domain's tokenizer, and its text as tokens.
    *(
        Row("ve-kd", f"vocab/{file}", REFUSED, damages=(truncated, flipped, deleted, unreadable))
        for file in ("tokenizer.json", "tokenizer_config.json")
    ),
    Row("ve-kd", "vocab/expansion.json", REFUSED, {deleted: SAME}, (truncated, flipped, deleted, unreadable)),
    *(
        Row("ve-kd", f"runs/corpus/text/*/{file}", HEALED)
        for file in ("ids.bin", "offsets.bin")
    ),
    # (Two numbers in it are only told in the log; a flipped one of these goes unnoticed.)
    Row("ve-kd", "runs/corpus/text/*/about.json", HEALED, damages=(truncated, emptied, deleted, a_folder, unreadable)),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(kdbert: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything, undamaged; tests work on copies."""
    return make(inputs(tmp_path_factory.mktemp("whole")), kdbert)


@pytest.fixture(scope="module")
def expected(whole: Path, kdbert: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """What a command finds where nothing is damaged."""
    known: dict[str, dict[str, str | bytes]] = {}

    def of(command: str) -> dict[str, str | bytes]:
        if command not in known:
            place, out = whole, ""
            if command not in MADE:  # it writes into the run
                place = Path(shutil.copytree(whole, tmp_path_factory.mktemp("expected") / "place"))
                done = kdbert(*words(place, command))
                assert done.code == 0, done.err
                out = done.out
            known[command] = result(place, command, out)
        return known[command]

    return of


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    """A copy of everything."""
    return Path(shutil.copytree(whole, tmp_path / "place"))


def contents(place: Path) -> dict[Path, bytes]:
    """What no refusal may change: everything but what tells how the last attempt went."""
    told = ("run.json", "recipe.yaml", "run.lock")
    return {
        path: path.read_bytes()
        for path in place.rglob("*")
        if path.is_file() and os.access(path, os.R_OK) and path.name not in told and not path.name.startswith("events.")
    }


CASES = [
    pytest.param(
        row, damage, (row.but or {}).get(damage, row.outcome), id=f"{row.command}-{row.file}-{damage.__name__}"
    )
    for row in ROWS
    for damage in row.damages
]  # fmt: skip


@pytest.mark.slow  # all of them together
@pytest.mark.parametrize(("row", "damage", "outcome"), CASES)
def test_damage_is_named_and_no_other_result_is_given(
    row: Row, damage: Callable[[Path], None], outcome: str, place: Path, expected: Callable[..., Any], kdbert: Any
) -> None:
    if row.command == "distill":
        shutil.rmtree(place / "run")
        (place / "cut").rename(place / "run")
    elif row.command in MADE:
        shutil.rmtree(place / MADE[row.command])
    files = sorted(place.glob(row.file))
    assert files
    for file in files:
        damage(file)
    before = contents(place)
    with unprivileged() if damage is unreadable else contextlib.nullcontext():
        done = kdbert(*words(place, row.command))
    assert "Traceback" not in done.err
    name = files[0].name
    if outcome == REFUSED:
        assert done.code == 2, done.err
        last = done.err.strip().splitlines()[-1]
        assert last.startswith("kdbert: "), done.err
        assert name in last
        after = contents(place)
        assert {path: after.get(path) for path in before} == before
        return
    assert done.code == 0, done.err
    found, wanted = result(place, row.command, done.out), expected(row.command)
    if outcome == NOTED:
        told, inside = done.err + str(found["told"]), row.file.removeprefix("run/")
        assert any(text in told for text in (f"{inside} is damaged", f"{inside} cannot be read", f"no {inside}"))
        return
    if outcome == RECORD:
        found["metrics.jsonl"] = wanted["metrics.jsonl"]
    assert found == wanted
    if outcome in (HEALED, RECORD):
        places = [name, *(str(file.parent) for file in files)]
        lines = [line for line in done.err.splitlines() if any(place in line for place in places)]
        assert any(word in line for line in lines for word in TELLING), done.err


# ---- whichever byte


def flips(file: Path, count: int) -> Iterator[None]:
    """One bit of the file differs, so many times, elsewhere each time; then it is whole again."""
    whole, draw = file.read_bytes(), random.Random(0)
    for place in sorted(draw.sample(range(len(whole)), min(count, len(whole)))):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        yield
    file.write_bytes(whole)


def test_no_flipped_bit_of_run_json_is_believed(place: Path) -> None:
    folder = RunFolder(place / "run")
    whole, found = folder.manifest(), 0
    for _ in flips(folder.manifest_path, 600):
        with contextlib.suppress(UserError):
            told = folder.manifest()
            assert {key: told.get(key) for key in whole} == whole
            found += 1
    assert found < 60  # of the checksum's own name


def test_no_flipped_bit_of_a_memory_is_believed(place: Path) -> None:
    whole = Memory.load(place / "memory.safetensors")
    for _ in flips(place / "memory.safetensors", 400):
        with contextlib.suppress(UserError):
            told = Memory.load(place / "memory.safetensors")
            assert torch.equal(told.centroids, whole.centroids)
            assert torch.equal(told.counts, whole.counts)
            assert told.about == whole.about


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_no_flipped_bit_of_a_checkpoint_is_believed(place: Path, name: str) -> None:
    folder = place / "cut" / "checkpoints"
    newest = newest_checkpoint(folder)
    assert newest is not None
    for _ in flips(newest.path / name, 60):
        other = newest_checkpoint(folder)
        assert other is not None
        assert other.state["step"] < newest.state["step"]


def test_a_whole_model_that_was_changed_is_refused_under_its_run_and_taken_as_a_copy(place: Path, kdbert: Any) -> None:
    """`from_pretrained` and `save_pretrained` of somebody's: well-formed, but not what run.json has the scores of."""
    config = place / "run" / "model" / "config.json"
    config.write_text(config.read_text().replace('"positive"', '"better"'))
    for given in ("run", "run/model"):
        done = kdbert("evaluate", place / given, "--precision", "fp32")
        assert done.code == 2
        assert f"{config} is damaged (it is not what was written there)" in done.err
    copy = shutil.copytree(place / "run" / "model", place / "copy")
    assert config.name in os.listdir(copy)
    done = kdbert("distill", "--dry-run", *words(place, "short")[1:], "--student", copy)
    assert done.code == 0, done.err


def test_scores_that_evaluate_writes_anew_are_those_of_the_run_from_then_on(place: Path, kdbert: Any) -> None:
    dev = place / "run" / "predictions" / "dev.jsonl"
    dev.write_text("damaged")
    done = kdbert("report", place / "run", "-o", place / "report.html")
    assert "predictions/dev.jsonl is damaged" in (place / "report.html").read_text() + done.err
    assert kdbert(*words(place, "evaluate"), "--batch-size", 3).code == 0
    facts = json.loads((place / "run" / "run.json").read_text())
    assert facts["files"]["predictions/dev.jsonl"] == hashlib.sha256(dev.read_bytes()).hexdigest()
    assert not (place / "run" / "run.lock").exists()
    kdbert("report", place / "run", "-o", place / "report.html")
    assert "is damaged" not in (place / "report.html").read_text()
