"""The sweep in plain bash that people copy, on real data; and runs that are started side by side by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from in_processes import start

ROOT = Path(__file__).parents[2]


def manifests(runs: Path) -> dict[Path, bytes]:
    """run.json of every run."""
    return {path.parent: path.read_bytes() for path in sorted(runs.glob("*/*/*/run.json"))}


def finished(runs: Path) -> dict[Path, bytes]:
    """run.json of the finished runs."""
    return {path: content for path, content in manifests(runs).items() if json.loads(content)["status"] == "finished"}


@pytest.mark.long
@pytest.mark.real_data
def test_the_bash_sweep_is_interrupted_and_started_again(glue_dir: Path, tiny_bert: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TASKS": "rte nonsense", "METHODS": "kd", "SEEDS": "1",
        "DATA": str(glue_dir), "RUNS": str(runs), "MODEL": str(tiny_bert),
    }  # fmt: skip
    words = [ROOT / "scripts" / "glue-sweep", "train.max_steps=30", "task.max_train_examples=160", "task.max_length=32"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            # bash cannot trap what was ignored when it began, as in a job that a script has put in the background
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    first = start()
    end = time.monotonic() + 120
    while not finished(runs) and time.monotonic() < end:
        time.sleep(0.05)
    before = finished(runs)  # the teacher
    os.killpg(first.pid, signal.SIGINT)
    first.communicate(timeout=60)
    assert first.returncode in (130, -signal.SIGINT)
    assert len(finished(runs)) < 2

    again = start()
    out, err = again.communicate(timeout=300)
    assert again.returncode == 3, err  # one task does not exist
    assert err.count("failed (2): nonsense") == 1
    assert len(out.splitlines()) == 1, err  # the folder of one task x one method
    after = finished(runs)
    assert len(after) == 2  # and a teacher
    assert after == manifests(runs)
    ended = [[json.loads(found[path])["finished"] for path in before] for found in (before, after)]
    assert ended[0] == ended[1]  # it is not made again
    assert "rte<br>dev accuracy" in err  # the table


def test_runs_started_side_by_side_share_the_teacher_that_one_of_them_makes(
    tiny_bert: Path, custom_files: tuple[Path, Path], tmp_path: Path
) -> None:
    train, dev = custom_files
    words = [
        "distill", "--task", "custom", "--train-file", train, "--dev-file", dev, "--teacher-model", tiny_bert,
        "--max-length", "32", "--epochs", "1", "--no-baseline", "teacher_training.epochs=8",
    ]  # fmt: skip
    words += ["--runs-dir", tmp_path / "runs"]
    outputs = [tmp_path / f"output{seed}" for seed in (1, 2, 3)]
    started = [start([*map(str, words), "--seed", str(seed)], outputs[seed - 1]) for seed in (1, 2, 3)]
    for process in started:
        process.join()
    told = [output.read_text(encoding="utf-8") for output in outputs]
    assert [process.exitcode for process in started] == [0, 0, 0], told
    assert len(list((tmp_path / "runs" / "custom" / "finetune").iterdir())) == 1
    assert len(finished(tmp_path / "runs")) == 4
    assert sum(text.count("finetune on custom") for text in told) == 1, told
