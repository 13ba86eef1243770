"""A run that is killed, or whose terminal is closed, continues by the same command; nothing temporary is left."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from equal_runs import differences
from killing import die_at_changes, kill_runs

from in_processes import manifest, saved_steps, wait_until
from small_run import FEATURES, Setting, make_teacher


@pytest.fixture(scope="module")
def setting(tiny_bert: Path, custom_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Task, teacher and student."""
    return Setting(*custom_files, make_teacher(tmp_path_factory.mktemp("teacher")), tiny_bert)


@pytest.mark.long
def test_kills_at_random_times_change_nothing(setting: Setting, tmp_path: Path) -> None:
    """`tests/reliability/kills` does as many as one likes."""
    changes = {"epochs": 2, "checkpoint_steps": 2, **FEATURES["cka-ilg"]}
    figures = kill_runs(lambda run: setting.words(run, **changes), tmp_path / "runs", kills=100, seed=1)
    print(figures)
    assert figures.faults == []
    assert figures.skipped == 0  # what has its name is whole, whenever the kill was
    assert len(figures.kills) == 100
    assert sum(kill.reached.startswith("step") for kill in figures.kills) >= 20  # else it tried little


KINDS = "logits teacher run step dev model".split()  # of temporary names; the second is the memory


def telling(calls: list[str]) -> list[int]:
    """Changes of the disk at which something is half-done, one of each kind, from the middle of the run."""
    also = ("os.fsync state.json", "os.remove weights.safetensors", "os.rmdir checkpoints", "os.remove run.lock")
    kinds: dict[str, list[int]] = {}
    for number, call in enumerate(calls, 1):
        if call in also or (re.match(rf"os\.rename \.({'|'.join(KINDS)})\d*\b", call) and ".about." not in call):
            kinds.setdefault(re.sub(r"\d+", "", call), []).append(number)
    return [numbers[len(numbers) // 2] for numbers in kinds.values()]


@pytest.mark.long
def test_a_kill_right_before_something_gets_its_name_or_goes_changes_nothing(setting: Setting, tmp_path: Path) -> None:
    """`tests/reliability/kills --changes` does all of them."""
    changes = {"max_steps": 3, "checkpoint_steps": 1, **FEATURES["cka-ilg"]}
    figures = die_at_changes(lambda run: setting.words(run, **changes), tmp_path / "runs", telling)
    print(figures)
    assert figures.faults == []
    assert figures.skipped == 0
    litter = [Path(name).name for kill in figures.kills for name in kill.half_written]
    assert [kind for kind in KINDS if not any(re.match(rf"\.{kind}\d*\b", name) for name in litter)] == []
    assert len(figures.kills) == len(KINDS) + 4


def test_what_a_kill_behind_the_end_leaves_goes_at_the_next_start(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    """Finished stands in run.json, but the checkpoints and the lock are still there."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    words = setting.words(run, max_steps=2)
    assert kdbert(*words).code == 0
    shutil.copytree(run, whole)
    (run / "checkpoints" / "step-2").mkdir(parents=True)
    (run / "run.lock").write_text("process 4194000 on a machine")
    ended = kdbert(*words)
    assert ended.code == 0, ended.err
    assert "already finished" in ended.err
    assert differences(run, whole) == []
    assert not (run / "checkpoints").exists()


def test_checkpoints_that_are_to_be_kept_stay(setting: Setting, kdbert: Callable[..., Any], tmp_path: Path) -> None:
    words = setting.words(tmp_path / "run", max_steps=2, **{"output.keep_checkpoints": True})
    without = setting.words(tmp_path / "run", max_steps=2)
    for again in (words, words, without):  # the run decides that was made
        assert kdbert(*again).code == 0
        assert saved_steps(tmp_path / "run") == [2]


@pytest.mark.long
@pytest.mark.slow
def test_a_closed_terminal_saves_and_stops_unless_nohup_says_otherwise(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    """Two runs in a terminal of their own each, which is closed while they train."""
    changes = {"epochs": 3, "checkpoint_steps": 3}
    folders = {name: tmp_path / name / "run" for name in ("alone", "plain", "nohup")}
    for folder in folders.values():
        folder.parent.mkdir()
    words = {name: setting.words(folder, **changes) for name, folder in folders.items()}
    started: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
    try:
        for name, before in (("plain", []), ("nohup", ["nohup"])):
            started[name] = in_terminal([*before, sys.executable, "-m", "kdbert", *words[name]], tmp_path / name)
        assert kdbert(*words["alone"]).code == 0
        for name, (process, terminal) in started.items():
            there = lambda name=name: bool(saved_steps(folders[name]))  # noqa: E731
            wait_until(there, lambda process=process: process.poll() is None, "the first checkpoint")
            os.close(terminal)
        codes = {name: process.wait(120) for name, (process, _) in started.items()}
    finally:
        for process, _ in started.values():
            if process.poll() is None:
                process.kill()
                process.wait()
    assert codes == {"plain": 128 + signal.SIGHUP, "nohup": 0}
    assert differences(folders["nohup"], folders["alone"]) == []
    facts = manifest(folders["plain"])
    assert facts["status"] == "interrupted"
    assert re.match(r"stopped by SIGHUP at step (\d+) of 39", facts["message"])[1] == str(
        saved_steps(folders["plain"])[-1]
    )
    assert kdbert(*words["plain"]).code == 0
    assert differences(folders["plain"], folders["alone"]) == []


def in_terminal(words: list[str], folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start words in a new terminal. Returns the process and the terminal's other end, by which it is closed."""
    outer, inner = pty.openpty()

    def take() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as in a shell, whatever the tests were started from
        os.setsid()
        os.close(os.open(os.ttyname(0), os.O_RDWR))  # the first terminal that the leader of a session opens is its own

    process = subprocess.Popen(words, cwd=folder, stdin=inner, stdout=inner, stderr=inner, preexec_fn=take)
    os.close(inner)
    return process, outer
