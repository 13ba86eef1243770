"""Handles: the short names of runs, and what only looks like one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdbert.disk.files import write_json
from kdbert.disk.sealed import sealed
from kdbert.errors import UserError
from kdbert.models.locate import find_run, handle_of, short_name

RUNS = {  # folder -> when it finished
    "rte/finetune/bert-base-uncased-1a2b3c4d-seed1": "2030-01-01T10:00:00+0000",
    "rte/kd/bert-base-uncased-first6-5e6f7a8b-seed1": "2030-01-01T12:00:00+0000",
    "rte/kd/bert-base-uncased-first6-5e6f7a8b-seed10": "2030-01-01T11:00:00+0000",
    "rte/kd/bert-base-uncased-first6-5e6f7a8b-seed2": None,
    "rte/kd/bert-base-uncased-first6-5e6f7a8b-seed1.old-20300101-000000": "2030-01-01T13:00:00+0000",
}
TEACHER, FIRST, TENTH, SECOND, _ = (f"runs/{name}" for name in RUNS)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with some runs."""
    for name, when in RUNS.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        facts: dict[str, Any] = {"status": "finished", "finished": when} if when else {"status": "interrupted"}
        write_json(tmp_path / "runs" / name / "run.json", sealed(facts))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("handle", "run"),
    [
        ("@last", FIRST),
        ("1a2b", TEACHER),
        ("1a2b3c4d", TEACHER),
        ("bert-base-uncased-1a2b", TEACHER),
        ("5e6f7a8b-seed1", FIRST),
        ("bert-base-uncased-first6-5e6f7a8b-seed1", FIRST),
        ("5e6f7a8b-seed10", TENTH),
        ("5e6f7a8b-seed2", SECOND),
        ("runs/rte/finetune/bert", TEACHER),
    ],
)
def test_a_handle_names_a_run(handle: str, run: str, here: Path) -> None:
    assert find_run(handle) == run
    assert find_run(handle.replace("runs/", f"{here}/runs/"), here / "runs") == str(here / run)


@pytest.mark.parametrize(
    "name",
    [
        "bert-base-uncased",  # a Hub id that a run's folder begins with
        "bert-base-uncased-first6",
        "google/bert_uncased_L-4_H-512_A-8",
        "runs/rte/kd/other",
        TEACHER,
        "runs/rte",
        "all-MiniLM-L6-v2",
        "a/b/c/d",
        "",
    ],
)
def test_other_names_are_left_as_they_are(name: str, here: Path) -> None:
    assert find_run(name) == name


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("5e6f7a8b", "several runs"),
        ("runs/rte/kd/", "several runs"),
        ("bert-base-uncased-first6-5e6f", "several runs"),
        ("deadbeef", "no run"),
        ("dead", "no run"),
        ("bert-base-uncased-1a2", "4 digits"),
        ("@lst", "@last"),
        ("bert-base-uncased-deadbeef-seed1", "no run"),
        *(
            (name, "placeholder")
            for name in ("RUN", "RUN_FOLDER", "TEACHER", "A", "runs/rte/finetune/…", "<run>", "...")
        ),
    ],
)
def test_what_names_no_single_run_is_refused(name: str, told: str, here: Path) -> None:
    if name.endswith("/"):  # a folder that exists is taken as it is
        name += "bert"
    with pytest.raises(UserError, match=told) as caught:
        find_run(name)
    if told == "several runs":
        assert FIRST in str(caught.value)
        assert SECOND in str(caught.value)


def test_a_folder_of_that_name_comes_first(here: Path) -> None:
    for name in ("RUN", "1a2b"):
        (here / name).mkdir()
        assert find_run(name) == name


def test_nothing_has_finished_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="@last"):
        find_run("@last")


def test_the_handle_of_a_folder() -> None:
    assert handle_of(Path(FIRST)) == "5e6f7a8b-seed1"
    assert handle_of(Path("mine")) == ""


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "RUN"),
        ("export", "RUN"),
        ("benchmark", "RUN"),
        ("benchmark", "all-MiniLM-L6-v2", "--teacher", "TEACHER"),
        ("report", "RUN"),
        ("table", "RUN"),
        ("distill", "--teacher", "TEACHER"),
        ("distill", "--student", "runs/rte/finetune/…"),
        ("distill", "--set", "student.model=RUN"),
        ("finetune-teacher", "--model", "RUN"),
        ("train-memory", "--teacher", "RUN"),
        ("sweep", "--grid", "teacher=RUN"),
        ("expand-vocab", "--tokenizer", "RUN", "--out", "vocab"),
    ],
    ids=" ".join,
)
def test_every_command_that_takes_a_run_refuses_a_placeholder(words: tuple[str, ...], here: Path, kdbert: Any) -> None:
    done = kdbert(*words)
    assert (done.code, done.out) == (2, "")
    assert "placeholder" in done.err
    assert done.err.count("\n") == 1


def test_commands_take_a_handle_and_recipes_keep_the_path(
    setting: Any, kdbert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = ["--task", "custom", "--train-file", setting.train, "--dev-file", setting.dev, "--max-length", 32]
    made = kdbert("finetune-teacher", *task, "--model", setting.student, "train.max_steps=2")
    assert made.code == 0, made.err
    handle, run = (line.partition(": ")[2] for line in made.out.splitlines()[-2:])
    assert run.endswith(handle)
    for name in (handle, handle[:4], "@last"):
        done = kdbert("distill", *task, "--teacher", name, "--dry-run")
        assert done.code == 0, done.err
        assert f"model: {run}\n" in done.out
    assert kdbert("distill", *task, "--teacher", "@last", "--student", "@last", "train.max_steps=2", "-q").code == 0
    done = kdbert("evaluate", "@last", "--quiet")
    assert done.code == 0, done.err
    assert "/kd/" in done.out
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert kdbert("evaluate", handle, "--runs-dir", tmp_path / "runs").code == 0
    assert kdbert("evaluate", handle).code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("table",),
        ("report", "-o", "page.html"),
        ("evaluate",),
        ("export",),
        ("benchmark",),
        ("expand-vocab", "--out", "vocab", "--corpus", "a.txt", "--tokenizer"),
        ("distill", "--dry-run", "--teacher"),
        ("finetune-teacher", "--dry-run", "--model"),
        ("train-memory", "--dry-run", "--teacher"),
    ],
    ids=" ".join,
)
def test_every_command_that_takes_a_run_looks_for_it_where_runs_dir_says(
    words: tuple[str, ...], here: Path, kdbert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is damaged, and the command names its folder."""
    (here / TEACHER / "run.json").write_text("{")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    Path("a.txt").write_text("a text\n")
    done = kdbert(*words, "1a2b", "--runs-dir", here / "runs")
    assert done.code == 2
    assert str(here / TEACHER) in done.err
    assert str(here / TEACHER) not in kdbert(*words, "1a2b").err


def test_the_last_run_is_no_baseline_and_the_last_teacher_no_student(here: Path) -> None:
    for role, digest, hour in (("teacher", "aaaa0000", 1), ("student", "bbbb0000", 2), ("baseline", "cccc0000", 3)):
        run = here / "runs" / "rte" / "made" / f"bert-{digest}-seed1"
        run.mkdir(parents=True)
        facts = {"status": "finished", "finished": f"2999-01-01T0{hour}:00:00+0000", "role": role}
        write_json(run / "run.json", sealed(facts))
    assert find_run("@last") == "runs/rte/made/bert-bbbb0000-seed1"
    assert find_run("@last", teacher=True) == "runs/rte/made/bert-aaaa0000-seed1"


@pytest.mark.parametrize("name", ["4fe", "zzzz1234", "run"])
def test_a_name_that_is_no_run_is_not_taken_for_a_model_of_the_hub(
    name: str, kdbert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = kdbert("evaluate", name)
    assert done.code == 2
    assert f"no run or model folder {name!r}" in done.err


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("google/electra-small", "electra-small"), ("models/mine/", "mine"), ("small bert/config.json", "small-bert"),
        ("config.json", "config.json"), ("/", "model"),
    ],
)  # fmt: skip
def test_the_name_of_a_model_in_a_folder(model: str, name: str) -> None:
    assert short_name(model) == name
