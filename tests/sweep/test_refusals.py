"""What a sweep refuses before anything runs, and what it does where it cannot write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from in_processes import start
from small_sweep import STARTED, Place


@pytest.fixture
def place(tiny_bert: Path, custom_files: tuple[Path, Path], tmp_path: Path) -> Place:
    """A folder with models and files of its own."""
    return Place.make(tmp_path / "place", tiny_bert, custom_files)


def refused(kdbert: Any, place: Place, *grid: str, **more: Any) -> str:
    """The last line of a sweep that is refused, with `--dry-run` and without; nothing is written."""
    ends = [kdbert(*place.words(*grid, **more), *extra) for extra in (["--dry-run"], [])]
    last = [ended.err.strip().splitlines()[-1] for ended in ends]
    assert [ended.code for ended in ends] == [2, 2], last
    assert last[0] == last[1]
    assert [ended.out for ended in ends] == ["", ""]
    assert "Traceback" not in ends[1].err
    assert not place.runs.exists()
    return str(last[0])


def test_what_a_cell_would_refuse_is_refused_for_all_cells_at_once(kdbert: Any, place: Place) -> None:
    message = refused(kdbert, place, "method=kd,finetune", "student.init=[1,9],[1,2],[8,1]", "--seeds=3")
    assert message.startswith("kdbert: cell ")
    assert message.count("keep layers 1, 9") == message.count("keep layers 8, 1") == 1  # not for every seed


def test_a_missing_file_is_named_before_a_teacher_is_trained(kdbert: Any, place: Place) -> None:
    files = f"task.train_file={place.folder / 'train.csv'},{place.folder / 'nope.csv'}"
    message = refused(kdbert, place, "method=kd", files, leave_out=("task.train_file",))
    assert "nope.csv" in message
    assert message.count("cell ") == 1


def test_a_key_of_the_grid_that_every_cell_has_is_refused(kdbert: Any, place: Place) -> None:
    assert "task.max_length" in refused(kdbert, place, "task.max_length=16,32")


def test_a_sweeps_file_that_is_not_there_or_stands_beside_another_is_refused(kdbert: Any, place: Place) -> None:
    assert "nope.yaml" in refused(kdbert, place, "nope.yaml")
    ended = kdbert("sweep", "a.yaml", "b.yaml")
    assert ended.code == 2
    assert "b.yaml" in ended.err
    assert kdbert("sweep", "--jobs", 0).code == 2


def test_a_runs_folder_that_cannot_be_written_is_refused(kdbert: Any, place: Place) -> None:
    place.runs.write_text("a file")
    for extra in ([], ["--dry-run"]):
        ended = kdbert(*place.words("method=finetune"), *extra)
        assert ended.code == 2, ended.err
        last = ended.err.strip().splitlines()[-1]
        assert last.startswith("kdbert: ")
        assert str(place.runs) in last
        assert "--runs-dir" in last


def swept(place: Place) -> int | None:
    """The exit code of a sweep of one run in a process of its own, which starts runs without importing everything."""
    process = start(place.words("method=finetune"), place.folder / "output")
    process.join()
    return process.exitcode


def test_a_damaged_run_is_told_with_its_command_and_the_others_are_not_held_up(kdbert: Any, place: Place) -> None:
    assert swept(place) == 0
    (run,) = place.runs.glob("custom/finetune/*")
    (run / "run.json").write_text("{")
    marked = kdbert(*place.words("method=finetune"), "--dry-run").out
    assert marked.endswith("# damaged\n")
    ended = kdbert(*place.words("method=finetune"))
    assert ended.code == 3
    assert str(run / "run.json") in ended.err
    assert "kdbert distill" in ended.err  # its command
    run.rename(run.with_name("aside"))
    assert swept(place) == 0


def test_jobs_that_cannot_be_started_have_failed(kdbert: Any, place: Place) -> None:
    (place.runs / ".sweep").mkdir(parents=True)
    (place.runs / ".sweep" / "logs").write_text("a file")
    ended = kdbert(*place.words("method=finetune", "--seeds=2"))
    assert ended.code == 3, ended.err
    assert "2 runs: 2 failed" in ended.err
    assert ended.err.count("failed: method=finetune seed=1: cannot start: ") == 1
    assert STARTED.findall(ended.err) == []
    assert place.litter() == []
