"""Each file that kdbert reads back, damaged in each way: the newest whole state is used and the damage named, or the
command refuses in one sentence; never another result without a word, never a traceback.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bombs import EXECUTED, bombs
from broken_world import CUT, MADE, inputs, make, result, unprivileged, words
from kdbert.centroids.file import Centroids
from kdbert.disk.files import sha256
from kdbert.errors import UserError
from kdbert.reporting.collect import read_run
from kdbert.runs.folder import RunFolder
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


def a_pickle(file: Path) -> None:
    """A pickle lies there that does something when it is read."""
    file.write_bytes(bombs()["pickle"])


def torchs_pickle(file: Path) -> None:
    """The same in the form of torch.save."""
    file.write_bytes(bombs()["torch"])


BOMBS = (a_pickle, torchs_pickle)
DAMAGES = (truncated, flipped, emptied, deleted, a_folder, unreadable, *BOMBS)
# Of a file that another row damages in each way and that is read by the same code.
SOME = (truncated, deleted, a_folder)

# ---- what must follow

HEALED = "the same result, and the damage is named"
SAME = "the same result; the file is not needed, or is written anew"
REFUSED = "exit code 2 and one sentence with the file"
RECORD = "the same weights and answers, another record, and the damage of that is named"
TELLING = ("damaged", "skipping", "cannot be read", "no checkpoint")
NOTED = "the rest is shown, with the file and what is wrong with it"
MODEL = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
NEWEST = f"run/checkpoints/step-{CUT}"
ATTEMPT = ("status", "message", "environment", "recipe", "task", "sha256")  # of the last attempt (and its place)


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
    # A checkpoint: the one before is taken (each of its files: see below).
    Row("distill", f"{NEWEST}/weights.safetensors", HEALED),
    Row("distill", NEWEST, HEALED, {deleted: SAME}, (deleted, a_file, unreadable)),
    Row("distill", "run/checkpoints", HEALED, {a_file: REFUSED, unreadable: REFUSED}, (deleted, a_file, unreadable)),
    # The rest of a run that is continued.
    Row("distill", "run/run.json", REFUSED),
    Row("distill", "run/metrics.jsonl", RECORD, {a_folder: REFUSED, unreadable: REFUSED}),
    Row("distill", "run/recipe.yaml", SAME, {a_folder: REFUSED}, (truncated, deleted, a_folder, unreadable)),
    # A finished run, read by each command that reads one.
    *(Row("evaluate", f"run/model/{file}", REFUSED) for file in MODEL),
    *(
        Row(command, f"run/model/{file}", REFUSED, damages=(flipped, deleted, a_pickle))
        for command in ("export", "benchmark")
        for file in ("model.safetensors", "tokenizer.json")
    ),
    *(Row(command, "run/model", REFUSED, damages=(deleted, a_file)) for command in ("evaluate", "export", "benchmark")),
    Row("evaluate", "run/run.json", REFUSED),
    *(Row(command, "run/run.json", REFUSED, damages=SOME) for command in ("table", "export", "benchmark")),
    Row("evaluate", "run/predictions/dev.jsonl", SAME, {a_folder: REFUSED}),
    Row("evaluate", "run/model/README.md", SAME, damages=(flipped, deleted)),
    # (Each of their files in each way: see below.)
    *(
        Row("report", f"run/{file}", NOTED, damages=(damage,))
        for file, damage in (
            ("run.json", truncated), ("run.json", deleted), ("metrics.jsonl", unreadable),
            ("predictions/dev.jsonl", flipped), ("diagnostics/cka.csv", deleted),
        )
    ),
    # What no command reads.
    Row("evaluate", "run/method.safetensors", SAME, damages=SOME),
    # As a teacher.
    *(Row("short", f"teacher/{file}", REFUSED) for file in ("run.json", *(f"model/{file}" for file in MODEL))),
    Row("short", "teacher/model", REFUSED, damages=(deleted, a_file)),
    # Memory: that which a run makes for itself, and one that is named.
    Row("short", "runs/custom/memory/*.safetensors", HEALED, {deleted: SAME, a_folder: REFUSED}),
    Row("given", "memory.safetensors", REFUSED),
    # What is kept of a teacher: its features, and what is computed of them (more in
    # tests/training/test_teacher_store.py).
    Row("short", "runs/.teacher-outputs/*/hidden.*", HEALED, {deleted: SAME}),
    *(
        Row("short", f"runs/.teacher-outputs/*/{quantity}.*", HEALED, damages=(truncated, flipped, emptied))
        for quantity in ("logits", "gram", "global")
    ),
    Row("short", "runs/.teacher-outputs/*/about.json", SAME, damages=SOME),
    # A domain's tokenizer, and its text as tokens.
    *(Row("ve-kd", f"vocab/{file}", REFUSED) for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")),
    Row("ve-kd", "vocab/expansion.json", REFUSED, {deleted: SAME}),
    *(
        Row("ve-kd", f"runs/corpus/text/*/{file}", HEALED)
        for file in ("ids.bin", "offsets.bin")
    ),
    # (Two numbers in it are only told in the log; a flipped one of these goes unnoticed.)
    Row(
        "ve-kd", "runs/corpus/text/*/about.json", HEALED,
        damages=(truncated, emptied, deleted, a_folder, unreadable, a_pickle),
    ),
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


def contents(place: Path) -> dict[Path, Any]:
    """What no refusal may change: everything but what tells how the last attempt went."""
    return {
        path: unchanged(path)
        for path in place.rglob("*")
        if path.is_file() and os.access(path, os.R_OK) and not path.name.startswith(("events.", "recipe.yaml"))
    }


def unchanged(path: Path) -> Any:
    """A file's bytes; of a run that was begun, the part of its run.json that is the same after each attempt."""
    content = path.read_bytes()
    with contextlib.suppress(ValueError):
        if path.name == "run.json" and (facts := json.loads(content))["status"] != "finished":
            return {key: value for key, value in facts.items() if key not in ATTEMPT}
    return content


# What follows otherwise than from the other damages of a row, and every tenth case of the rest: so that each damage is
# seen with each outcome, and each file in some way. `scripts/test-long` runs all others.
CASES = [
    pytest.param(
        row, damage, (row.but or {}).get(damage, row.outcome), id=f"{row.command}-{row.file}-{damage.__name__}",
        marks=[] if damage in (row.but or {}) or number % 10 == 0 else [pytest.mark.long],
    )
    for number, (row, damage) in enumerate((row, damage) for row in ROWS for damage in row.damages)
]  # fmt: skip


@pytest.mark.parametrize(("row", "damage", "outcome"), CASES)
def test_damage_is_named_and_no_other_result_is_given(
    row: Row,
    damage: Callable[[Path], None],
    outcome: str,
    place: Path,
    expected: Callable[..., Any],
    kdbert: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place.parent)
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
    assert not Path(EXECUTED).exists()
    name = files[0].name
    if outcome == REFUSED:
        assert done.code == 2, done.err
        last = done.err.strip().splitlines()[-1]
        assert last.startswith("kdbert: "), done.err
        assert name in last
        after = contents(place)
        assert {path: after.get(path) for path in before} == before
        assert list(place.rglob("*.lock")) == []
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


# ---- files that are read by the same code, without a whole command for each


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "optimizer.safetensors", "best.safetensors", "state.json", "manifest.json"]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    name: str, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for damage in DAMAGES:
        folder = Path(shutil.copytree(whole / "cut" / "checkpoints", tmp_path / damage.__name__))
        damage(folder / f"step-{CUT}" / name)
        with unprivileged():
            found = newest_checkpoint(folder)
        assert found is not None
        assert found.path == folder / f"step-{CUT - 3}", damage.__name__
        (line,) = [record.getMessage() for record in caplog.records if str(folder) in record.getMessage()]
        assert line.startswith(f"skipping checkpoint {folder / f'step-{CUT}'}: ")
        assert name in line or (name, damage) == ("manifest.json", flipped)  # which lists another file with other bytes
    assert not Path(EXECUTED).exists()


@pytest.mark.parametrize(
    "name",
    ["run.json", "metrics.jsonl", "predictions/dev.jsonl", "model/config.json", "diagnostics/cka.csv"],
)
def test_no_report_or_table_reads_what_is_damaged(
    name: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for damage in DAMAGES:
        run = Path(shutil.copytree(whole / "run", tmp_path / damage.__name__))
        damage(run / name)
        with unprivileged(), pytest.raises(ValueError, match=re.escape(Path(name).name)):
            read_run(run).read(name)
    assert not Path(EXECUTED).exists()


# ---- bombs that every checksum vouches for: whoever can write a pickle can write these, too


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "best.safetensors"])
def test_a_pickle_that_a_checkpoint_lists_as_its_own_is_not_executed(
    name: str, bomb: Callable[[Path], None], place: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.chdir(place)
    newest = place / "cut" / "checkpoints" / f"step-{CUT}"
    bomb(newest / name)
    listed = json.loads((newest / "manifest.json").read_text())
    listed[name] = {"bytes": (newest / name).stat().st_size, "sha256": sha256(newest / name)}
    (newest / "manifest.json").write_text(json.dumps(listed))
    found = newest_checkpoint(newest.parent)
    assert found is not None
    assert found.path.name == f"step-{CUT - 3}"
    assert f"skipping checkpoint {newest}" in caplog.text
    assert not Path(EXECUTED).exists()


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", MODEL)
def test_a_pickle_that_run_json_lists_as_the_runs_own_is_not_executed(
    name: str, bomb: Callable[[Path], None], place: Path, kdbert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    file = place / "run" / "model" / name
    bomb(file)
    RunFolder(place / "run").rewritten([file])
    for command in ("evaluate", "export", "benchmark"):
        done = kdbert(*words(place, command))
        assert done.code == 2, done.err
        assert "Traceback" not in done.err
        assert str(place / "run") in done.err.splitlines()[-1]
    assert not Path(EXECUTED).exists()


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
    whole = Centroids.load(place / "memory.safetensors")
    for _ in flips(place / "memory.safetensors", 400):
        with contextlib.suppress(UserError):
            told = Centroids.load(place / "memory.safetensors")
            assert torch.equal(told.values, whole.values)
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
        assert f"{config} is damaged" in done.err
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
