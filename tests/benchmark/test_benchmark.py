"""`kdbert benchmark`: each engine in a process of its own, the same texts for all, numbers that add up."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from in_processes import start, wait_until
from kdbert.benchmark.contenders import contenders
from kdbert.benchmark.timing import milliseconds
from kdbert.disk.files import sha256
from kdbert.disk.lock import FileLock
from kdbert.disk.sealed import sealed
from small_run import Setting

KDBERT = Any
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(kdbert: KDBERT, setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished distillation on the small task, in float32."""
    done = kdbert(*setting.words(tmp_path_factory.mktemp("place") / "run", precision="fp32"), "--quiet")
    assert done.code == 0, done.err
    return Path(done.out.strip())


@pytest.fixture(scope="module")
def measured(kdbert: KDBERT, run: Path, setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student by torch and by onnxruntime, and its teacher, which is a model folder and no run."""
    folder = tmp_path_factory.mktemp("measured") / "new"
    engines = ["--backend", "torch", "--batch-size", "1,7", "--threads", "1", "--output-dir", folder]
    assert kdbert("export", run).code == 0
    done = kdbert("benchmark", run, setting.teacher, run / "export" / "onnx", *engines)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == f"benchmark: {folder}"
    return folder


def content(folder: Path) -> Any:
    return json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))


def test_every_engine_is_asked_the_same_and_scored_by_its_own_answers(
    measured: Path, run: Path, setting: Setting
) -> None:
    found = content(measured)
    assert (found["task"], found["split"], found["examples"], found["metric"]) == ("custom", "dev", 61, "accuracy")
    engines = [(engine["model"], engine["backend"]) for engine in found["engines"]]
    assert engines == [(str(run), "torch"), (str(setting.teacher), "torch"), (str(run), "onnx")]
    ran = json.loads((run / "run.json").read_text())
    for engine in found["engines"]:
        if engine["model"] == str(run):
            assert engine["quality"] == pytest.approx(ran["metrics"]["dev"])
            assert engine["parameters"] == ran["parameters"]
            assert engine["name"] == "kd, 2 layers, seed 1"
        else:
            assert engine["quality"] == pytest.approx(ran["teachers"][0]["metrics"]["dev"])
            assert engine["agreement"] == 1.0  # it is the run's teacher
        assert engine["teacher"] == str(setting.teacher)
    student = found["engines"][0]
    lines = [json.loads(line) for line in (run / "predictions" / "dev.jsonl").read_text().splitlines()]
    assert 0 < student["agreement"] <= 1
    assert student["quality"]["accuracy"] == np.mean([row["prediction"] == row["label"] for row in lines])


def test_times_add_up(measured: Path) -> None:
    for engine in content(measured)["engines"]:
        assert [batch["batch_size"] for batch in engine["batches"]] == [1, 7]
        for batch in engine["batches"]:
            total = batch["total_ms"]
            assert batch["calls"] == 100
            assert 0 < total["p50"] <= total["p95"]
            assert batch["examples_per_second"] == pytest.approx(1000 * batch["batch_size"] / total["mean"])
            parts = batch["tokenisation_ms"]["mean"] + batch["model_ms"]["mean"]
            assert parts == pytest.approx(total["mean"])


def test_an_engine_has_a_process_and_memory_of_its_own(measured: Path) -> None:
    memory = {engine["backend"]: engine["memory_mib"] for engine in content(measured)["engines"]}
    # onnxruntime and tokenizers alone: torch is in nobody's process but its own engines'.
    assert 20 < memory["onnx"] < memory["torch"] - 100


def test_the_csv_has_the_numbers_of_the_json_and_the_picture_is_one(measured: Path) -> None:
    with open(measured / "benchmark.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    flat = [(engine, batch) for engine in content(measured)["engines"] for batch in engine["batches"]]
    assert len(rows) == len(flat) == 6
    for row, (engine, batch) in zip(rows, flat, strict=True):
        assert (row["name"], row["backend"]) == (engine["name"], engine["backend"])
        assert float(row["total_ms_p95"]) == batch["total_ms"]["p95"]
        assert float(row["quality"]) == engine["quality"]["accuracy"]
        assert float(row["memory_mib"]) == engine["memory_mib"]
    assert (measured / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_statistics_are_those_of_the_calls() -> None:
    found = milliseconds([0.001 * value for value in range(1, 102)])
    assert found == pytest.approx({"mean": 51.0, "sd": 29.3002, "p50": 51.0, "p95": 96.0}, rel=1e-5)


def test_wrong_words_end_in_one_sentence_before_anything_is_timed(
    kdbert: KDBERT, run: Path, setting: Setting, measured: Path, tmp_path: Path
) -> None:
    place = ["--runs-dir", tmp_path / "runs"]
    for words, told in {
        (run, "--calls", 20): "--calls 20",
        (run, "--rounds", 0): "--rounds 0",
        (run, "--backend", "onx"): "did you mean 'onnx'",
        (run, "--batch-size", "0"): "--batch-size 0",
        (setting.teacher,): "--task",
        (run, setting.teacher, "--backend", "onnx"): "kdbert export",
        (run, "--split", "tset"): "tset",
        (run, "--output-dir", measured): "--output-dir",
        (run, "--teacher", tmp_path / "nobody"): "nobody",
    }.items():
        done = kdbert("benchmark", *words, *place)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert told in done.err
    assert kdbert("benchmark", run, "--batch-size", "1,x").code == 2
    assert not (tmp_path / "runs").exists()
    assert {file.name for file in measured.iterdir()} == {"benchmark.json", "benchmark.csv", "benchmark.png"}


def timed(folder: Path) -> Any:
    """What is kept of a benchmark that was stopped."""
    return json.loads((folder / "progress.json").read_text(encoding="utf-8"))


def rounds(folder: Path) -> int:
    """How many rounds were timed so far."""
    return int(timed(folder)["rounds"]) if (folder / "progress.json").exists() else 0


@pytest.mark.long
def test_a_benchmark_that_was_killed_before_its_first_round_leaves_a_folder_that_the_next_takes(
    kdbert: KDBERT, run: Path, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    words = ["benchmark", str(run), "--batch-size", "1", "--threads", "1", "--rounds", "1", "--runs-dir", str(root)]
    process = start(words, tmp_path / "output")
    wait_until(lambda: bool(list(root.glob("benchmark/*/progress.json"))), process.is_alive, "it has begun")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (folder,) = root.glob("benchmark/*")
    assert rounds(folder) == 0
    done = kdbert(*words, "-q")
    assert done.code == 0, done.err
    assert [Path(done.out.strip())] == [folder] == list(root.glob("benchmark/*"))
    assert content(folder)["settings"]["continued_after"] == []
    assert {file.name for file in folder.iterdir()} == {"benchmark.json", "benchmark.csv", "benchmark.png"}


@pytest.mark.long
def test_a_benchmark_that_was_stopped_continues_where_it_was(kdbert: KDBERT, run: Path, tmp_path: Path) -> None:
    """Also where its folder is named by the time. The engine is the library's pipeline."""
    root = tmp_path / "runs"
    words = ["benchmark", str(run), "--batch-size", "1", "--threads", "1", "--rounds", "10", "--runs-dir", str(root)]
    words += ["--backend", "pipeline"]
    process = start(words, tmp_path / "output")
    assert process.pid is not None
    wait_until(lambda: any(map(rounds, root.glob("benchmark/*"))), process.is_alive, "a round was timed")
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert "run the same command again to continue" in (tmp_path / "output").read_text()
    (folder,) = root.glob("benchmark/*")
    kept = timed(folder)
    assert 1 <= kept["rounds"] < 10
    turns = [len(part) for part in np.array_split(range(100), 10)]
    assert len(kept["engines"][0]["seconds"]["1 total"]) == sum(turns[: kept["rounds"]])
    # Nobody takes another benchmark for it, nor one that is still running.
    lock = FileLock(folder / "benchmark.lock")
    assert lock.acquire()
    other = kdbert(*words, "-q")
    lock.release()
    assert other.code == 0, other.err
    assert Path(other.out.strip()) != folder
    assert timed(folder) == kept
    done = kdbert(*words)
    assert done.code == 0, done.err
    assert f"continuing {folder}: {kept['rounds']} rounds were timed before" in done.err
    found = content(folder)
    assert found["settings"]["continued_after"] == [kept["rounds"]]
    (engine,) = found["engines"]
    assert engine["quality"] == pytest.approx(json.loads((run / "run.json").read_text())["metrics"]["dev"])
    assert 200 < engine["memory_mib"] < 2000
    (batch,) = engine["batches"]
    assert batch["calls"] == 100
    assert batch["tokenisation_ms"] is batch["model_ms"] is None  # it does not show where its tokenizer ends
    assert {file.name for file in folder.iterdir()} == {"benchmark.json", "benchmark.csv", "benchmark.png"}


@pytest.mark.long
def test_what_was_timed_before_is_counted_and_other_settings_are_refused(
    kdbert: KDBERT, run: Path, measured: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    words = ["benchmark", run, "--batch-size", "1", "--threads", "1", "--output-dir", folder]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "progress.json").write_text("{", encoding="utf-8")
    refused = kdbert(*words[:-1], tmp_path / "broken")
    assert (refused.code, "is damaged" in refused.err) == (2, True)
    process = start([str(word) for word in [*words, "--rounds", 2]], tmp_path / "output")
    wait_until(lambda: rounds(folder) > 0, process.is_alive, "a round was timed")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = timed(folder)
    kept["engines"][0] |= {"seconds": {f"1 {part}": [0.25] * 100 for part in ("total", "tokenisation", "model")}}
    kept["rounds"] = 2
    (folder / "progress.json").write_text(json.dumps(sealed(kept)), encoding="utf-8")
    other = kdbert(*words, "--rounds", 3)
    assert other.code == 2
    assert "stopped half-way (settings.rounds differ)" in other.err
    done = kdbert(*words, "--rounds", 2)
    assert done.code == 0, done.err
    (batch,) = content(folder)["engines"][0]["batches"]
    assert batch["total_ms"] == pytest.approx({"mean": 250, "sd": 0, "p50": 250, "p95": 250})


def test_runs_that_differ_in_one_key_are_named_by_it(
    kdbert: KDBERT, setting: Setting, run: Path, tmp_path: Path
) -> None:
    done = kdbert(*setting.words(tmp_path / "other", precision="fp32", learning_rate=5e-4), "--quiet")
    assert done.code == 0, done.err
    found = contenders([str(run), done.out.strip()], ["torch"], {"task": None, "data_dir": None, "max_length": None})
    assert [one.name for one in found] == ["kd, 2 layers, seed 1, lr 1e-3", "kd, 2 layers, seed 1, lr 5e-4"]


def test_an_engine_that_fails_is_named(kdbert: KDBERT, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    assert kdbert("export", run, "--output-dir", folder).code == 0
    (folder / "model.onnx").write_bytes(b"no model")
    about = json.loads((folder / "export.json").read_text())
    files = {**about["files"], "model.onnx": sha256(folder / "model.onnx")}
    (folder / "export.json").write_text(json.dumps(sealed({**about, "model": str(run), "files": files})))
    done = kdbert("benchmark", folder, "--output-dir", tmp_path / "out")
    assert done.code == 1
    assert "kd, 2 layers, seed 1 (onnx): " in done.err
    assert not (tmp_path / "out").exists()
