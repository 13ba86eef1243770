"""A run is of the data that it was made from: other files of the same task are not taken for it."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.real_data
def test_other_files_of_a_task_are_refused_and_the_same_in_another_form_are_not(
    glue_dir: Path, tiny_bert: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    source = next(path for path in (glue_dir / "RTE", glue_dir / "rte") if path.is_dir())
    zipped, plain, other = (tmp_path / name for name in ("zipped", "plain", "other"))
    shutil.copytree(source, zipped / "RTE")
    plain_files = {}
    for path in (zipped / "RTE").iterdir():
        read = gzip.open if path.suffix == ".gz" else open
        with read(path, "rb") as stream:
            plain_files[path.name.removesuffix(".gz")] = stream.read()
    for folder in (plain, other):
        (folder / "RTE").mkdir(parents=True)
        for name, content in plain_files.items():
            (folder / "RTE" / name).write_bytes(content)
    lines = plain_files["dev.tsv"].splitlines(keepends=True)
    (other / "RTE" / "dev.tsv").write_bytes(b"".join(lines[:101]))

    words = ["--task", "rte", "--runs-dir", tmp_path / "runs", "task.max_length=32"]
    words += ["train.max_steps=2", "task.max_train_examples=64"]
    first = kdbert("finetune-teacher", "--model", tiny_bert, "--data-dir", zipped, *words, "--quiet")
    assert first.code == 0, first.err
    run = Path(first.out.strip())
    assert set(json.loads((run / "run.json").read_text())["data"]) == {"train", "dev"}

    same = kdbert("finetune-teacher", "--model", tiny_bert, "--data-dir", plain, *words)
    assert same.code == 0
    assert "already finished" in same.err
    (tmp_path / "empty").mkdir()
    gone = kdbert("finetune-teacher", "--model", tiny_bert, "--data-dir", tmp_path / "empty", *words)
    assert gone.code == 0  # the files may be elsewhere by now
    mistyped = kdbert("finetune-teacher", "--model", tiny_bert, "--data-dir", tmp_path / "nothing", *words)
    assert mistyped.code == 2

    refused = kdbert("finetune-teacher", "--model", tiny_bert, "--data-dir", other, *words)
    assert refused.code == 2
    assert "was made from other rte files than those at hand now (dev differ)" in refused.err
    sweep = ["sweep", "--grid", "method=finetune", "--student", tiny_bert, "--data-dir"]
    assert kdbert(*sweep, zipped, *words).code == 0
    ended = kdbert(*sweep, other, *words)
    assert ended.code == 3
    assert "was made from other rte files" in ended.err


def test_a_run_whose_model_was_deleted_is_still_that_run_but_teaches_no_more(
    tiny_bert: Path, custom_files: tuple[Path, Path], kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    train, dev = custom_files
    words = [
        "distill", "--task", "custom", "--train-file", train, "--dev-file", dev, "--teacher-model", tiny_bert,
        "--max-length", "32", "--runs-dir", tmp_path, "--no-baseline", "train.max_steps=2", "teacher_training.epochs=1",
    ]  # fmt: skip
    assert kdbert(*words).code == 0
    (teacher,) = tmp_path.glob("custom/finetune/*")
    shutil.rmtree(teacher / "model")
    again = kdbert(*words)
    assert again.code == 0, again.err
    assert "already finished" in again.err
    refused = kdbert(*words, "--seed", "2", "--no-teacher-cache")
    assert refused.code == 2
    assert "has no model folder any more; train it again with --overwrite" in refused.err
