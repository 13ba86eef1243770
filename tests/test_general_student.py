"""`scripts/general-student`: no text of a dev or test split is in its corpus, and it runs to its end."""

from __future__ import annotations

import hashlib
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, make_bert
from kdbert.tasks import get_task, task_names

SCRIPT = ROOT / "scripts" / "general-student"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """Its functions."""
    return runpy.run_path(str(SCRIPT))


def test_a_text_that_is_or_holds_a_held_out_one_is_found(script: dict[str, Any]) -> None:
    held = script["HeldOut"](["A good film.", "One two three four five six seven eight, nine!"])
    for text, there in (
        ("a GOOD film", True), ("it is a good film, he said", False),
        ("He said: one two three four five six seven eight nine.", True),
        ("one two three four five six seven eight ten", False), ("", False),
    ):  # fmt: skip
        assert (text in held) == there, text


@pytest.mark.long
@pytest.mark.real_data
def test_no_text_of_a_dev_or_test_split_is_in_the_corpus(
    script: dict[str, Any], data_dir: Path, tmp_path: Path
) -> None:
    """Looked for in another way than the script does it: as whole lines, and inside of lines by plain search."""
    (data_dir / "corpora").stat()
    lines = script["gather"](data_dir)
    assert len(lines) > 50_000
    parts = [part for line in lines for part in line.split(" [SEP] ")]
    bare = {" ".join(re.findall(r"\w+", part.casefold())) for part in parts}
    everything = "\n".join(sorted(bare))
    seen = 0
    for name in task_names():
        spec = get_task(name)
        roots = [path for path in (data_dir, *data_dir.rglob("*")) if spec.folder and (path / spec.folder).is_dir()]
        for folder in roots:
            for split in spec.splits:
                if split == "train" or spec.path(split, str(folder)) is None:
                    continue
                part = spec.load(split, str(folder))
                texts = {" ".join(re.findall(r"\w+", one.casefold())) for one in [*part.text_a, *(part.text_b or ())]}
                assert not texts & bare - {""}, (name, split)
                long = sorted(text for text in texts if text.count(" ") >= 11)[:40]  # a sample: a search takes a while
                assert not [text for text in long if text in everything], (name, split)
                seen += len(texts)
    assert seen > 50_000
    assert lines == script["gather"](data_dir)


@pytest.mark.long
@pytest.mark.real_data
def test_it_runs_to_its_end_and_again_prints_the_same(data_dir: Path, tmp_path: Path) -> None:
    teacher = make_bert(tmp_path / "teacher", layers=6, positions=128)
    words = ["--data", data_dir, "--runs", tmp_path / "runs", "--teacher", teacher, "--steps", 2, "train.warmup=0"]
    printed = [
        subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert printed[0] == printed[1]
    *sums, run = printed[0].splitlines()
    for line in sums:
        digest, _, file = line.partition("  ")
        assert hashlib.sha256(Path(file).read_bytes()).hexdigest() == digest
    assert (Path(run) / "model" / "config.json").is_file()
