"""Large files are read in bounded memory, and a long run keeps to the memory and the files that it took at first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from in_processes import manifest, start
from kdbert.data.examples import PackedStrings
from large_runs import descriptors, last_step, resident, watch, write_table
from small_run import Setting, make_teacher

FEW, MANY = 200, 100_000


def test_packed_texts_are_a_list_of_strings() -> None:
    given = ["", "one", "zwei ä", "三", "🙂\u2028", "\ud800", "", "seven"]
    packed = PackedStrings(given)
    assert packed == given == packed
    assert list(packed) == given
    assert (packed[2], packed[-1], packed[1:4], packed[::-2]) == (given[2], given[-1], given[1:4], given[::-2])
    assert packed != given[:-1]
    assert packed != [*given[:-1], "eight"]
    assert not PackedStrings()
    for place in (8, -9):
        with pytest.raises(IndexError):
            packed[place]


@pytest.mark.long
def test_a_row_of_a_large_file_takes_bytes_and_no_objects(tiny_bert: Path, tmp_path: Path) -> None:
    """Peak memory up to a finished run, for each row beyond the first 200; the file has 40 bytes a row."""
    peaks = {}
    for rows in (FEW, MANY):
        folder = tmp_path / str(rows)
        folder.mkdir()
        train, dev = (
            write_table(folder / name, count, words=(3, 7)) for name, count in (("t.csv", rows), ("d.csv", FEW))
        )
        words = [
            "finetune-teacher", "--task", "custom", "--train-file", str(train), "--dev-file", str(dev), "--model",
            str(tiny_bert), "--max-length", "16", "--output-dir", str(folder / "run"), "train.max_steps=2",
        ]  # fmt: skip
        process = start(words, folder / "output")
        peaks[rows] = watch(process.is_alive, process.pid or 0)
        assert process.exitcode == 0, (folder / "output").read_text()
        assert manifest(folder / "run")["status"] == "finished"
    assert (peaks[MANY] - peaks[FEW]) / (MANY - FEW) < 450


@pytest.mark.long
def test_a_long_run_takes_no_more_after_800_steps_than_after_200(
    tiny_bert: Path, custom_files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Sixteen epochs, each with an evaluation and a checkpoint; `tests/reliability/long-run` does 2,000 steps."""
    setting = Setting(*custom_files, make_teacher(tmp_path / "teacher"), tiny_bert)
    run = tmp_path / "run"
    changes: dict[str, Any] = {
        "batch_size": 4, "epochs": 16, "logging_steps": 10, "student.layers": 1, "task.max_length": 16,
    }  # fmt: skip
    process = start(setting.words(run, **changes), tmp_path / "output")
    seen: dict[int, tuple[int, int]] = {}

    def look() -> None:
        step = last_step(run / "metrics.jsonl")
        if process.is_alive() and step:
            seen[step] = resident(process.pid or 0), descriptors(process.pid or 0)

    watch(process.is_alive, process.pid or 0, look)
    assert process.exitcode == 0, (tmp_path / "output").read_text()
    early = [seen[step] for step in seen if 200 <= step <= 400]
    late = [seen[step] for step in seen if 600 <= step <= 800]
    assert len(early) > 5
    assert len(late) > 5
    assert max(memory for memory, _ in late) - max(memory for memory, _ in early) < 4 * 2**20
    assert min(files for _, files in late) == min(files for _, files in early)
