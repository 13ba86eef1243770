"""`kdbert table`: what is pooled, what is counted, what is compared, what is left out; and that cells are run.json."""

from __future__ import annotations

import csv
import io
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_files import write_predictions, write_run

from conftest import absent
from kdbert.disk.sealed import sealed
from kdbert.reporting.published import SOURCES

Kdbert = Callable[..., Any]


def rows_of(text: str) -> list[dict[str, str]]:
    """Lines of a CSV table."""
    return list(csv.DictReader(io.StringIO(text)))


def tabled(kdbert: Kdbert, *words: object) -> list[dict[str, str]]:
    """The CSV table of a command that must work."""
    done = kdbert("table", *words, "--format", "csv")
    assert done.code == 0, done.err
    return rows_of(done.out)


def only(lines: list[dict[str, str]], **wanted: str) -> dict[str, str]:
    """The one line with these values."""
    found = [line for line in lines if all(line[key] == value for key, value in wanted.items())]
    assert len(found) == 1, found
    return found[0]


# ---- real runs


@pytest.fixture(scope="module")
def real_runs(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, custom_files: tuple[Path, Path]) -> Path:
    """A teacher, and two seeds each of finetune and kd."""
    from kdbert import Recipe, distill

    runs = tmp_path_factory.mktemp("real") / "runs"
    train, dev = custom_files
    for method in ("finetune", "kd"):
        for seed in (1, 2):
            flags = {
                "method.name": method,
                "seed": seed,
                "task": {"name": "custom", "train_file": str(train), "dev_file": str(dev), "max_length": 32},
                "teacher_training": {"model": str(tiny_bert), "epochs": 2, "learning_rate": 1e-3},
                "train.epochs": 4,
                "train.learning_rate": 2e-3,
                "train.batch_size": 8,
                "output.runs_dir": str(runs),
            }
            distill(Recipe.build(flags=flags))
    return runs


def test_cells_are_what_run_json_says(kdbert: Kdbert, real_runs: Path) -> None:
    lines = tabled(kdbert, real_runs, "--baseline", "finetune")
    for method in ("finetune", "kd"):
        manifests = [json.loads(path.read_text()) for path in real_runs.glob(f"custom/{method}/*-first2-*/run.json")]
        metric = manifests[0]["selection"]
        scores = [manifest["metrics"]["dev"][metric] for manifest in manifests]
        line = only(lines, method=method)
        assert float(line["mean"]) == pytest.approx(statistics.mean(scores), abs=1e-15)
        assert float(line["deviation"]) == pytest.approx(statistics.stdev(scores), abs=1e-12)
        assert (line["n"], line["seeds"], line["metric"], line["split"]) == ("2", "1 2", metric, "dev")
    kd = only(lines, method="kd")
    assert float(kd["difference"]) == pytest.approx(
        float(kd["mean"]) - float(only(lines, method="finetune")["mean"]), abs=1e-12
    )
    assert float(kd["interval_low"]) <= float(kd["difference"]) <= float(kd["interval_high"])
    assert kd["also_differs"] == ""  # all of a real recipe, besides what kd brings with it


def test_the_teacher_stands_apart_and_takes_no_part(kdbert: Kdbert, real_runs: Path) -> None:
    lines = tabled(kdbert, real_runs, "--baseline", "finetune")
    assert lines[0]["method"] == "finetune (teacher, 4 layers)"
    assert (lines[0]["n"], lines[0]["best"], lines[0]["difference"]) == ("1", "0", "")
    shown = kdbert("table", real_runs).out.splitlines()
    assert shown[2].startswith("| finetune (teacher, 4 layers) |")
    assert "teachers apart" in kdbert("table", real_runs).out


def test_the_teacher_is_known_when_the_runs_were_moved(kdbert: Kdbert, real_runs: Path, tmp_path: Path) -> None:
    shutil.copytree(real_runs, tmp_path / "elsewhere" / "results")
    assert tabled(kdbert, tmp_path / "elsewhere")[0]["method"] == "finetune (teacher, 4 layers)"


def test_markdown_says_metric_split_and_n(kdbert: Kdbert, real_runs: Path) -> None:
    shown = kdbert("table", real_runs).out
    mean, deviation = (float(only(tabled(kdbert, real_runs), method="kd")[key]) for key in ("mean", "deviation"))
    assert "custom<br>dev accuracy" in shown.splitlines()[0]
    assert f"{mean:.4f} ± {deviation:.4f}" in shown
    assert "(2)" in shown
    percent = kdbert("table", real_runs, "--percent").out
    assert f"{100 * mean:.2f} ± {100 * deviation:.2f}" in percent


# ---- what is pooled


def test_only_seeds_are_pooled(kdbert: Kdbert, tmp_path: Path) -> None:
    for rate, base in ((1e-4, 0.6), (2e-4, 0.8)):
        for seed in (1, 2, 3):
            write_run(tmp_path, rate=rate, seed=seed, score=base + seed / 100)
    done = kdbert("table", tmp_path, "--format", "csv")
    lines = rows_of(done.out)
    assert "rows are split by train.learning_rate" in done.err
    assert [(line["train.learning_rate"], line["n"]) for line in lines] == [("1e-4", "3"), ("2e-4", "3")]
    assert float(lines[0]["mean"]) == pytest.approx(0.62)  # all seeds, not the best one
    chosen = tabled(kdbert, tmp_path, "--where", "train.learning_rate=0.0002")
    assert [line["mean"] for line in chosen] == [lines[1]["mean"]]
    assert tabled(kdbert, tmp_path, "--where", "train.learning_rate=2e-4") == chosen
    assert [line["seeds"] for line in tabled(kdbert, tmp_path, "--where", "seed=1,3")] == ["1 3", "1 3"]
    named = tabled(kdbert, tmp_path, "--rows", "method,train.learning_rate")
    assert named == lines


def test_values_of_keys_are_written_by_one_rule(kdbert: Kdbert, tmp_path: Path) -> None:
    for rate in (5e-5, 1e-3, 0.00125, 0.01, 0.5, 2.0, 1e9):
        write_run(tmp_path, rate=rate)
    written = [line["train.learning_rate"] for line in tabled(kdbert, tmp_path)]
    assert written == ["5e-5", "1e-3", "1.25e-3", "0.01", "0.5", "2", "1e9"]
    for text in ("1e-3", "0.001"):
        assert len(tabled(kdbert, tmp_path, "--where", f"train.learning_rate={text}")) == 1


def tables_of(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, by row and cell, without the rule below the heading."""
    parts = [part for part in text.split("\n\n") if part.startswith("|")]
    grids = [[[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()] for part in parts]
    return [[grid[0], *grid[2:]] for grid in grids]


def test_after_exploring_each_task_has_a_table_with_the_keys_that_differ_there(kdbert: Kdbert, tmp_path: Path) -> None:
    for rate in (1e-4, 2e-4):
        write_run(tmp_path, rate=rate, score=0.6)
    for size in (16, 32):
        write_run(tmp_path, task="cola", score=0.6, batch_size=size, name=f"b{size}")
    done = kdbert("table", tmp_path)
    cola, rte = tables_of(done.out)
    assert [cola[0][:2], rte[0][:2]] == [["method", "train.batch_size"], ["method", "train.learning_rate"]]
    assert [[row[1] for row in table[1:]] for table in (cola, rte)] == [["16", "32"], ["1e-4", "2e-4"]]
    assert done.err.count("\n") == 2  # what rows are split by, and how to get one table
    assert all(len(line) < 120 for line in done.err.splitlines())
    assert kdbert("report", tmp_path, "-o", tmp_path / "page.html").err.count("--rows") == 0
    assert kdbert("table", tmp_path, "--format", "latex").out.count("\\begin{table}") == 2
    # One table where it is asked for, and where each row has runs on every task; a CSV is always one.
    keys = "method,train.learning_rate,train.batch_size"
    assert len(tables_of(kdbert("table", tmp_path, "--rows", keys).out)) == 1
    assert [line["column"] for line in tabled(kdbert, tmp_path)].count("rte") == 2
    shutil.rmtree(tmp_path / "cola")
    for rate in (1e-4, 2e-4):
        write_run(tmp_path, task="cola", rate=rate, score=0.6)
    (both,) = tables_of(kdbert("table", tmp_path).out)
    assert "average" in both[0][-1]


def test_only_ended_runs_split_rows(kdbert: Kdbert, tmp_path: Path) -> None:
    """What runs now, stopped or failed has nothing to show: it makes no column, and is counted where it belongs."""
    write_run(tmp_path, seed=1, score=0.7)
    write_run(tmp_path, seed=2, status="running")
    for seed, status in enumerate(("running", "interrupted", "failed"), start=1):
        write_run(tmp_path, seed=seed, status=status, epochs=9, warmup=0.1, name=status)
    write_run(tmp_path, method="ics", status="running", rate=1e-4, name="a")
    write_run(tmp_path, method="ics", status="running", rate=2e-4, name="b")
    done = kdbert("table", tmp_path)
    ((heading, *rows),) = tables_of(done.out)
    assert heading[0] == "method"
    assert len(heading) == 2
    assert rows == [["ics", "- (0; 2 unfinished)"], ["kd", "0.7000 (1; 1 unfinished)"]]
    assert "- 3 unfinished runs left out" in done.out
    assert done.err == ""
    write_run(tmp_path, status="diverged", epochs=9, name="diverged")  # a result: these settings diverge
    ((heading, *rows),) = tables_of(kdbert("table", tmp_path).out)
    assert heading[:2] == ["method", "train.epochs"]
    assert [row[1:] for row in rows if row[0] == "kd"] == [
        ["3", "0.7000 (1; 1 unfinished)"],
        ["9", "- (0; 1 diverged)"],
    ]


def test_a_row_is_named_by_no_key_that_is_not_needed(kdbert: Kdbert, tmp_path: Path) -> None:
    for rate, epochs, warmup in ((1e-4, 3, 0.0), (2e-4, 5, 0.1), (2e-4, 3, 0.0)):
        write_run(tmp_path, rate=rate, epochs=epochs, warmup=warmup, score=0.4, constant=0.5, name=f"{rate}-{epochs}")
    shown = kdbert("table", tmp_path).out
    assert "kd, lr 1e-4, epochs 3; kd, lr 2e-4, epochs 3; kd, lr 2e-4, epochs 5" in shown
    (grid,) = tables_of(shown)
    assert grid[0][:-1] == ["method", "train.learning_rate", "train.epochs", "train.warmup"]


def test_weights_of_classes_split_rows_and_name_them(kdbert: Kdbert, tmp_path: Path) -> None:
    for number, keys in enumerate(({}, {"class_weights": "balanced"}, {"class_weights": {"no": 1.0, "yes": 3.0}})):
        write_run(tmp_path, score=0.4, constant=0.5, name=f"{number}", **keys)
    shown = kdbert("table", tmp_path).out
    (grid,) = tables_of(shown)
    assert grid[0][1:-1] == ["train.class_weights", "train.class_weights.no", "train.class_weights.yes"]
    assert sorted(row[1:-1] for row in grid[1:]) == [["-", "-", "-"], ["-", "1", "3"], ["balanced", "-", "-"]]
    assert "kd, class weights balanced" in shown
    assert "kd, class weights no 1" in shown


def test_a_table_of_all_runs_is_of_those_below_runs_dir(
    kdbert: Kdbert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "there", name="bert-1a2b3c4d-seed1")
    write_run(tmp_path / "there", method="ics", name="bert-5e6f7a8b-seed1")
    both = kdbert("table", "--runs-dir", "there")
    assert ("| kd |" in both.out, "| ics |" in both.out) == (True, True)
    one = kdbert("table", "--runs-dir", "there", "1a2b")
    assert ("| kd |" in one.out, "| ics |" in one.out) == (True, False)
    assert kdbert("report", "--runs-dir", "there", "1a2b", "-o", "page.html").code == 0
    assert kdbert("table").code == kdbert("table", "1a2b").code == 2


def test_of_tables_by_task_one_may_lack_the_baseline(kdbert: Kdbert, tmp_path: Path) -> None:
    for rate in (1e-4, 2e-4):
        for method in ("finetune", "kd"):
            write_run(tmp_path, method=method, rate=rate, score=0.6)
    write_run(tmp_path, task="cola", score=0.6)
    done = kdbert("table", tmp_path, "--baseline", "finetune")
    assert done.code == 0, done.err
    assert "- cola: no difference where no rows of finetune fit: kd" in done.out
    assert done.out.count("Difference to finetune") == done.out.count("Difference to finetune on rte:") == 1
    assert kdbert("report", tmp_path, "-o", tmp_path / "page.html").code == 0
    assert "cola: no difference where no rows of finetune fit: kd" in (tmp_path / "page.html").read_text()
    assert kdbert("table", tmp_path, "--baseline", "ics").code == 2


def test_all_layers_of_a_model_are_one_start_however_they_were_asked_for(kdbert: Kdbert, tmp_path: Path) -> None:
    write_run(tmp_path, seed=1, layers=None, score=0.7)
    write_run(tmp_path, seed=2, layers=12, score=0.8)
    write_run(tmp_path, seed=1, layers=6, score=0.5)
    lines = tabled(kdbert, tmp_path)
    assert [(line["student.layers"], line["seeds"]) for line in lines] == [("6", "1"), ("12", "1 2")]
    assert [line["seeds"] for line in tabled(kdbert, tmp_path, "--where", "student.layers=12")] == ["1 2"]
    named = tabled(kdbert, tmp_path, "--rows", "method,student")
    assert [(line["student"], line["n"]) for line in named] == [
        ("bert-base-uncased", "2"),
        ("bert-base-uncased, first 6", "1"),
    ]


def test_teachers_are_told_apart_by_what_differs_in_them(kdbert: Kdbert, tmp_path: Path) -> None:
    for rate in (1e-4, 5e-5):
        name = f"bert-{rate:g}"
        whole = {"layers": None, "fingerprint": f"content of {name}", "rate": rate, "name": name}
        write_run(tmp_path, method="finetune", score=0.9, **whole)
        write_run(tmp_path, teacher=name, score=0.7, name=f"kd-{rate:g}")
    lines = [line for line in tabled(kdbert, tmp_path) if line["method"] == "kd"]
    assert [line["teachers"] for line in lines] == ["bert-base-uncased, lr 1e-4", "bert-base-uncased, lr 5e-5"]


def test_a_table_needs_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path)
    code = "import sys; sys.modules['torch'] = None; from kdbert.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "table", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0.7000 (1)" in done.stdout


def test_one_name_with_other_content_is_not_pooled(kdbert: Kdbert, tmp_path: Path) -> None:
    write_run(tmp_path, seed=1, teacher="t", score=0.6)
    other = write_run(tmp_path, seed=1, teacher="t", score=0.8, name="retrained")
    content = json.loads((other / "run.json").read_text())
    content["identity"]["teachers"][0]["model"] = "other content"
    (other / "run.json").write_text(json.dumps(sealed(content)))
    for words in ([], ["--rows", "method,teacher"]):
        lines = tabled(kdbert, tmp_path, *words)
        assert sorted((line["n"], line["mean"]) for line in lines) == [("1", "0.6"), ("1", "0.8")]
        assert all(line["teachers"].startswith("t #") for line in lines)


def with_data(run: Path, digest: str) -> None:
    """Say that a run was made from these files."""
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(sealed({**content, "data": {"train": "same", "dev": digest}})))


def test_runs_from_other_files_of_a_task_are_neither_pooled_nor_compared(kdbert: Kdbert, tmp_path: Path) -> None:
    with_data(write_run(tmp_path, seed=1, score=0.6), "a")
    with_data(write_run(tmp_path, seed=2, score=0.8), "b")
    write_run(tmp_path, seed=3, score=0.7)  # made before runs said from which files
    done = kdbert("table", tmp_path, "--format", "csv")
    assert "rows are split by data.dev" in done.err
    assert sorted(line["n"] for line in rows_of(done.out)) == ["1", "1", "1"]
    for path in tmp_path.glob("rte/kd/*"):
        shutil.rmtree(path)
    with_data(write_run(tmp_path, seed=1, score=0.6), "a")
    with_data(write_run(tmp_path, method="finetune", seed=1, score=0.8), "b")
    assert {line["best"] for line in tabled(kdbert, tmp_path)} == {"0"}
    assert "from different files" in kdbert("table", tmp_path).out


def test_teachers_are_known_before_their_students_are_there_and_stay_with_them(kdbert: Kdbert, tmp_path: Path) -> None:
    for task in ("rte", "cola"):
        whole = {"layers": None, "fingerprint": f"content of {task}-teacher", "score": 0.9}
        write_run(tmp_path, task=task, method="finetune", rate=1e-4, **whole)
        write_run(tmp_path, task=task, method="finetune", rate=1e-4, score=0.5)
        write_run(tmp_path, task=task, method="finetune", score=0.5)
    write_run(tmp_path, rate=1e-4, teacher="rte-teacher", score=0.6)  # the kd student on cola is still to come
    lines = tabled(kdbert, tmp_path, "--baseline", "finetune")
    teachers = [line for line in lines if "teacher" in line["method"]]
    assert [line["column"] for line in teachers] == ["cola", "rte", "average"]
    assert {line["best"] for line in teachers} == {"0"}
    assert float(only(lines, method="kd", column="rte")["difference"]) == pytest.approx(0.1)
    kept = tabled(kdbert, tmp_path, "--where", "method=kd")  # the teachers of what stays
    assert [line["method"] for line in kept] == ["finetune (teacher, 12 layers)", "kd"]


def test_a_baseline_that_also_teaches_stays_the_baseline(kdbert: Kdbert, tmp_path: Path) -> None:
    """The whole model teaches 6 layers; 6 layers fine-tuned are their baseline, and teach 3 layers in another run."""
    whole = {"layers": None, "method": "finetune", "fingerprint": "content of whole"}
    write_run(tmp_path, score=0.9, **whole)
    for seed in (1, 2):
        taught = {"fingerprint": "content of six"} if seed == 1 else {}
        write_run(tmp_path, method="finetune", layers=6, seed=seed, score=0.6, **taught)
        write_run(tmp_path, layers=6, seed=seed, score=0.7, teacher="whole")
    write_run(tmp_path, score=0.5, teacher="six", seed=1)
    lines = tabled(kdbert, tmp_path, "--rows", "method,student.layers", "--baseline", "finetune")
    rows = {(line["method"], line["student.layers"]): line for line in lines}
    assert set(rows) == {("finetune (teacher, 12 layers)", "12"), ("finetune", "6"), ("kd", "6"), ("kd", "3")}
    assert rows["finetune", "6"]["n"] == "2"
    assert float(rows["kd", "6"]["difference"]) == pytest.approx(0.1)
    assert "runs of these rows also teach others: finetune" in kdbert("table", tmp_path).out
    # Where it was not asked for, it is but a teacher.
    kept = tabled(kdbert, tmp_path, "--where", "method=kd", "--rows", "method,student.layers")
    assert [(line["method"], line["student.layers"]) for line in kept] == [
        ("finetune (teacher, 6 layers)", "6"),
        ("finetune (teacher, 12 layers)", "12"),
        ("kd", "3"),
        ("kd", "6"),
    ]


def test_a_student_that_teaches_a_smaller_one_stays_a_student(kdbert: Kdbert, tmp_path: Path) -> None:
    write_run(tmp_path, method="finetune", layers=None, fingerprint="content of whole", score=0.9)
    write_run(tmp_path, layers=6, score=0.8, teacher="whole", fingerprint="content of assistant")
    write_run(tmp_path, layers=3, score=0.6, teacher="assistant")
    lines = tabled(kdbert, tmp_path, "--rows", "method,student.layers")
    assert [(line["method"], line["best"]) for line in lines] == [
        ("finetune (teacher, 12 layers)", "0"),
        ("kd", "0"),
        ("kd", "1"),
    ]


def test_runs_of_one_cell_in_other_precision_are_told(kdbert: Kdbert, tmp_path: Path) -> None:
    for seed, precision in ((1, "bf16"), (2, "bf16"), (3, "fp32")):
        run = write_run(tmp_path, seed=seed)
        content = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(sealed({**content, "precision": precision})))
        told = kdbert("table", tmp_path).out
        assert ("kd on rte: the runs' precision was bf16 and fp32" in told) == (seed == 3)


def test_the_same_recipe_and_seed_counts_once(kdbert: Kdbert, tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path, seed=seed, score=0.7)
    write_run(tmp_path, seed=2, score=0.7, name="copy")
    shutil.copytree(tmp_path / "rte/kd/copy", tmp_path / "rte/kd/bert.old-20261121-120000")
    done = kdbert("table", tmp_path, "--format", "csv")
    assert rows_of(done.out)[0]["n"] == "2"
    assert "the same recipe and seed" in done.err
    assert "OTHER SCORES" not in done.err
    assert ".old-" not in done.err  # moved aside by --overwrite: not looked at
    assert "1 run folder left out: the same recipe and seed" in kdbert("table", tmp_path).out
    write_run(tmp_path / "elsewhere", seed=2, score=0.9)
    assert "OTHER SCORES" in kdbert("table", tmp_path).err
    assert "1 of them had other scores" in kdbert("table", tmp_path).out
    both = [tmp_path / "rte", tmp_path / "elsewhere"]
    assert kdbert("table", *both).out == kdbert("table", *reversed(both)).out


def test_diverged_and_unfinished_runs_are_counted(kdbert: Kdbert, tmp_path: Path) -> None:
    for seed, status in enumerate(("finished", "diverged", "diverged", "running", "interrupted", "failed"), start=1):
        write_run(tmp_path, seed=seed, status=status)
    write_run(tmp_path, task="cola", status="diverged")
    lines = tabled(kdbert, tmp_path)
    line = only(lines, column="rte")
    assert (line["n"], line["diverged"], line["unfinished"]) == ("1", "2", "3")
    shown = kdbert("table", tmp_path).out
    assert "0.7000 (1; 2 diverged; 3 unfinished)" in shown
    assert "- (0; 1 diverged)" in shown
    assert "diverged and unfinished runs have no score" in shown


def test_the_average_is_over_tasks_seed_by_seed(kdbert: Kdbert, tmp_path: Path) -> None:
    for seed, (rte, cola) in {1: (0.6, 0.2), 2: (0.8, 0.3), 3: (0.9, None)}.items():
        write_run(tmp_path, seed=seed, score=rte)
        if cola is not None:
            write_run(tmp_path, task="cola", seed=seed, score=cola, selection="matthews_correlation")
    write_run(tmp_path, method="finetune", seed=1)  # no cola: no average
    lines = tabled(kdbert, tmp_path)
    average = only(lines, method="kd", column="average")
    assert (float(average["mean"]), average["n"], average["seeds"]) == (pytest.approx(0.475), "2", "1 2")
    assert float(average["deviation"]) == pytest.approx(statistics.stdev([0.4, 0.55]))
    assert only(lines, method="finetune", column="average")["mean"] == ""


def test_one_task_has_no_average_and_other_columns_have_none(kdbert: Kdbert, tmp_path: Path) -> None:
    write_run(tmp_path)
    assert "average" not in kdbert("table", tmp_path).out
    write_run(tmp_path, task="cola")
    assert "average" in kdbert("table", tmp_path).out
    assert "average" not in kdbert("table", tmp_path, "--rows", "task", "--columns", "method").out


def test_the_best_of_each_task_is_bold_whichever_way_the_table_lies(kdbert: Kdbert, tmp_path: Path) -> None:
    for method, rte, cola in (("finetune", 0.6, 0.5), ("kd", 0.7, 0.4), ("ics", 0.7, 0.3)):
        write_run(tmp_path, method=method, score=rte)
        write_run(tmp_path, task="cola", method=method, score=cola)
    expected = {("kd", "rte"), ("ics", "rte"), ("finetune", "cola")}  # equals are both the best
    lines = tabled(kdbert, tmp_path)
    assert {(x["method"], x["column"]) for x in lines if x["best"] == "1" and x["column"] != "average"} == expected
    assert kdbert("table", tmp_path).out.count("**0.7000**") == 2
    turned = tabled(kdbert, tmp_path, "--rows", "task", "--columns", "method")
    assert {(line["column"], line["task"]) for line in turned if line["best"] == "1"} == expected
    shown = kdbert("table", tmp_path, "--rows", "task", "--columns", "method").out
    assert "**0.5000** (1)" in shown
    assert "dev accuracy" in shown.splitlines()[0]


def test_tasks_with_other_metrics_name_them_in_each_cell(kdbert: Kdbert, tmp_path: Path) -> None:
    write_run(tmp_path)
    write_run(tmp_path, task="cola", selection="matthews_correlation")
    shown = kdbert("table", tmp_path, "--rows", "task", "--columns", "method").out
    assert "0.7000 (1) dev accuracy |" in shown
    assert "0.7000 (1) dev matthews_correlation |" in shown


def test_test_is_reported_where_it_has_labels_else_dev(kdbert: Kdbert, tmp_path: Path) -> None:
    both = {"dev": {"accuracy": 0.9, "macro_f1": 0.8}, "test": {"accuracy": 0.6, "macro_f1": 0.5}}
    write_run(tmp_path, task="clinc150", metrics=both)
    matched = {"dev_matched": {"accuracy": 0.75}, "dev_mismatched": {"accuracy": 0.76}}
    write_run(tmp_path, task="mnli", metrics=matched)
    assert {x["column"]: (x["split"], x["mean"]) for x in tabled(kdbert, tmp_path)} == {
        "mnli": ("dev_matched", "0.75"), "clinc150": ("test", "0.6"), "average": ("dev_matched and test", "0.675"),
    }  # fmt: skip
    dev = tabled(kdbert, tmp_path, "--split", "dev")
    assert {x["column"]: x["split"] for x in dev} == {
        "mnli": "dev_matched", "clinc150": "dev", "average": "dev and dev_matched",
    }  # fmt: skip
    f1 = only(tabled(kdbert, tmp_path, "--metric", "macro_f1"), column="clinc150")
    assert (f1["metric"], f1["mean"]) == ("macro_f1", "0.5")


def test_test_and_dev_figures_are_never_pooled(kdbert: Kdbert, tmp_path: Path) -> None:
    write_run(tmp_path, task="clinc150", seed=1, metrics={"dev": {"accuracy": 0.9}, "test": {"accuracy": 0.6}})
    write_run(tmp_path, task="clinc150", seed=2, metrics={"dev": {"accuracy": 0.8}})  # its test file was not at hand
    (line,) = tabled(kdbert, tmp_path)
    assert (line["split"], line["n"], float(line["mean"])) == ("dev", "2", pytest.approx(0.85))


def test_runs_of_which_dev_chose_the_epoch_are_labelled(kdbert: Kdbert, tmp_path: Path) -> None:
    write_run(tmp_path)
    assert "optimistic" not in kdbert("table", tmp_path).out
    write_run(tmp_path, method="ics", choose="best")
    assert "optimistic" in kdbert("table", tmp_path).out


def test_rows_that_do_not_beat_a_constant_answer_are_named(kdbert: Kdbert, tmp_path: Path) -> None:
    write_run(tmp_path, score=0.7, constant=0.6)
    assert "constant answer" not in kdbert("table", tmp_path).out
    write_run(tmp_path, method="finetune", score=0.6, constant=0.6)
    assert "no better than the constant answer on rte (0.6000): finetune" in kdbert("table", tmp_path).out
    assert "no better than the constant answer on rte (60.00): finetune" in kdbert("table", tmp_path, "--percent").out
    write_run(tmp_path, task="cola", score=0.5, constant=0.5)
    write_run(tmp_path, task="cola", method="finetune", score=0.4, constant=0.5)
    best = [line for line in tabled(kdbert, tmp_path) if line["best"] == "1" and line["column"] != "average"]
    assert [(line["method"], line["column"]) for line in best] == [("kd", "rte")]


def test_runs_of_one_answer_are_marked_in_every_format_and_never_bold(kdbert: Kdbert, tmp_path: Path) -> None:
    """RTE with few examples: students that answer "entailment" 277 times of 277, and a learned one just below."""
    for seed in (1, 2):
        same = {"same": "entailment"} if seed == 2 else {}
        write_run(tmp_path, seed=seed, score=0.56, constant=0.5271, **same)
        write_run(tmp_path, method="finetune", seed=seed, score=0.54, constant=0.5271)
    told = "† on rte, runs that give one answer to every example: kd (1 of 2: entailment)"
    shown = kdbert("table", tmp_path).out
    assert "| kd | 0.5600 ± 0.0000† (2) |" in shown
    assert "| finetune | 0.5400 ± 0.0000 (2) |" in shown  # it is not the best, whatever the other is worth
    assert told in shown
    assert "$\\pm$ 0.0000$^\\dagger$ (2)" in kdbert("table", tmp_path, "--format", "latex").out
    assert "caption{" in kdbert("table", tmp_path, "--format", "latex").out
    lines = tabled(kdbert, tmp_path)
    assert [(line["method"], line["one_answer"], line["best"]) for line in lines] == [
        ("finetune", "0", "0"),
        ("kd", "1", "0"),
    ]
    assert {float(line["constant_answer"]) for line in lines} == {0.5271}
    write_run(tmp_path, method="ics", seed=1, score=0.6, constant=0.5271)
    assert [line["method"] for line in tabled(kdbert, tmp_path) if line["best"] == "1"] == ["ics"]


def test_notes_on_most_rows_do_not_list_them(kdbert: Kdbert, tmp_path: Path) -> None:
    for method in ("a", "b", "c", "d", "e"):
        for seed in (1, 2):
            write_run(tmp_path, method=method, seed=seed, score=0.5, constant=0.5, same="entailment")
    shown = kdbert("table", tmp_path).out
    assert "to every example: all 5 rows (10 of 10: entailment)" in shown
    assert "answer on rte (0.5000): all 5 rows" in shown
    write_run(tmp_path, method="f", score=0.6, constant=0.5)
    shown = kdbert("table", tmp_path).out
    assert "to every example: all 6 rows but f (10 of 10: entailment)" in shown
    assert "answer on rte (0.5000): all 6 rows but f" in shown


def test_the_legend_explains_what_is_shown(kdbert: Kdbert, compared: Path) -> None:
    words = [compared, "--rows", "method,train.learning_rate", "--baseline", "finetune"]
    shown = kdbert("table", *words, "--where", "seed=1").out
    assert ("bootstrap" in shown, "p: what" in shown) == (True, False)
    shown = kdbert("table", *words).out
    assert ("bootstrap" in shown, "p: what" in shown) == (True, True)
    for path in compared.glob("rte/*/*/predictions"):
        shutil.rmtree(path)
    shown = kdbert("table", *words).out
    assert ("bootstrap" in shown, "p: what" in shown) == (False, True)
    apart = [compared / "rte/kd/bert-0.0001-3-last-seed1", compared / "rte/finetune/bert-0.0002-3-last-seed1"]
    done = kdbert("table", *apart, *words[1:])
    assert done.code == 0
    assert "Difference to" not in done.out  # there is none
    assert "no difference where no rows of finetune fit: kd" in done.out


def test_a_mean_that_equals_the_constant_answer_up_to_rounding_is_not_better(kdbert: Kdbert, tmp_path: Path) -> None:
    share = 146 / 277
    for seed in (1, 2, 3):
        write_run(tmp_path, seed=seed, score=share + 1e-16 * seed, constant=share)
        write_run(tmp_path, method="finetune", seed=seed, score=0.5, constant=share)
    assert {line["best"] for line in tabled(kdbert, tmp_path)} == {"0"}
    assert "no better than the constant answer on rte (0.5271): finetune; kd" in kdbert("table", tmp_path).out


def test_an_average_is_bold_only_if_it_beats_the_average_of_the_constant_answers(
    kdbert: Kdbert, tmp_path: Path
) -> None:
    for task, constant in (("rte", 0.5), ("mrpc", 0.7)):
        write_run(tmp_path, task=task, score=0.6, constant=constant)
        write_run(tmp_path, task=task, method="finetune", score=0.55, constant=constant)
    averages = [line for line in tabled(kdbert, tmp_path) if line["column"] == "average"]
    assert [(float(line["constant_answer"]), line["best"]) for line in averages] == [(pytest.approx(0.6), "0")] * 2


def test_of_a_loss_the_lowest_is_bold(kdbert: Kdbert, tmp_path: Path) -> None:
    for method, loss in (("ve-kd", 2.0), ("finetune", 3.0)):
        metrics = {"dev": {"masked_accuracy": 0.5, "mlm_loss": loss}}
        write_run(tmp_path, task="corpus", method=method, metrics=metrics, selection="masked_accuracy")
    best = [line["method"] for line in tabled(kdbert, tmp_path, "--metric", "mlm_loss") if line["best"] == "1"]
    assert best == ["ve-kd"]


# ---- differences


def with_predictions(root: Path, method: str, seed: int, right: float, **options: Any) -> Path:
    """A run whose score is that of its predictions."""
    rng = np.random.default_rng(seed + 100 * len(method))
    labels = np.random.default_rng(0).integers(0, 2, 200)
    predictions = np.where(rng.random(200) < right, labels, 1 - labels)
    run = write_run(root, method=method, seed=seed, score=float(np.mean(predictions == labels)), **options)
    write_predictions(run, predictions, labels)
    return run


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    """finetune and kd with two rates and three seeds, with predictions."""
    for rate in (1e-4, 2e-4):
        for seed in (1, 2, 3):
            with_predictions(tmp_path, "finetune", seed, 0.6, rate=rate)
            with_predictions(tmp_path, "kd", seed, 0.8, rate=rate)
    return tmp_path


def test_each_row_is_compared_with_the_baseline_of_its_own_setting(kdbert: Kdbert, compared: Path) -> None:
    with_predictions(compared, "kd", 4, 0.8)  # finetune has no fourth seed
    lines = tabled(kdbert, compared, "--rows", "method,train.learning_rate", "--baseline", "finetune")
    for rate in ("1e-4", "2e-4"):
        line = only(lines, method="kd", **{"train.learning_rate": rate})
        assert line["baseline"] == f"finetune, lr {rate}"
        assert line["difference_n"] == "3"
        assert 0.1 < float(line["interval_low"]) < float(line["difference"]) < float(line["interval_high"]) < 0.35
        assert 0 < float(line["p"]) < 0.1
    shown = kdbert("table", compared, "--rows", "method,train.learning_rate", "--baseline", "finetune").out
    assert "Difference to finetune:" in shown
    assert "p=0.0" in shown
    assert "paired t-test" in shown
    assert "bootstrap interval over the examples" in shown
    assert "1000 resamples" in shown


def test_a_difference_says_in_what_else_its_sides_differ(kdbert: Kdbert, tmp_path: Path) -> None:
    write_run(tmp_path, method="finetune", rate=5e-5, batch_sampler="random")
    write_run(
        tmp_path, method="kd", rate=1e-3, teacher="t", teacher_cache=False, batch_sampler="random"
    )  # finetune has no teacher to store
    write_run(tmp_path, method="ics", rate=5e-5, batch_sampler="class-balanced")
    write_run(tmp_path, method="cka-ilg", rate=5e-5, batch_sampler="random")
    words = [tmp_path, "--baseline", "finetune"]
    told = {line["method"]: line["also_differs"] for line in tabled(kdbert, *words)}
    assert told == {"finetune": "", "kd": "train.learning_rate", "ics": "train.batch_sampler", "cka-ilg": ""}
    page = tmp_path / "page.html"
    assert kdbert("report", tmp_path, "-o", page).code == 0
    for text in (kdbert("table", *words).out, kdbert("table", *words, "--format", "latex").out, page.read_text()):
        text = text.replace("\\_", "_")
        assert "kd and finetune also differ in train.learning_rate" in text.replace("Kd", "kd")
        assert "ics and finetune also differ in train.batch_sampler" in text.replace("Ics", "ics")
        assert "cka-ilg and finetune also" not in text
    assert "also differ" not in kdbert("table", *words, "--rows", "method,train.learning_rate,train.batch_sampler").out


def test_of_two_taught_rows_other_teachers_are_told(kdbert: Kdbert, tmp_path: Path) -> None:
    for task in ("rte", "cola"):
        write_run(tmp_path, task=task, teacher="a")
        write_run(tmp_path, task=task, method="ics", teacher="b" if task == "rte" else "a")
    lines = tabled(kdbert, tmp_path, "--baseline", "kd", "--where", "method=kd,ics")
    told = {line["column"]: line["also_differs"] for line in lines if line["method"] == "ics"}
    assert told == {"cola": "", "rte": "teachers", "average": "teachers"}
    assert "ics and kd also differ on rte in teachers (b, not a)" in kdbert("table", tmp_path, "--baseline", "kd").out


def test_rows_of_other_keys_than_methods_say_where_the_method_differs(kdbert: Kdbert, tmp_path: Path) -> None:
    write_run(tmp_path, method="finetune", rate=1e-4)
    write_run(tmp_path, method="kd", rate=2e-4, layers=6)
    (line,) = (
        x
        for x in tabled(kdbert, tmp_path, "--rows", "student", "--baseline", "bert-base-uncased, first 3")
        if x["baseline"]
    )
    assert line["also_differs"].split() == ["method.name", "train.learning_rate"]


def test_a_baseline_is_a_value_however_it_is_written(kdbert: Kdbert, compared: Path) -> None:
    words = [compared, "--rows", "train.learning_rate,method", "--where", "method=kd"]
    assert tabled(kdbert, *words, "--baseline", "1e-4") == tabled(kdbert, *words, "--baseline", "0.0001")


def test_the_order_of_the_examples_in_a_file_does_not_matter(kdbert: Kdbert, compared: Path) -> None:
    before = tabled(kdbert, compared, "--baseline", "finetune")
    for path in compared.glob("rte/kd/*/predictions/dev.jsonl"):
        path.write_text("\n".join(reversed(path.read_text().splitlines())))
    assert tabled(kdbert, compared, "--baseline", "finetune") == before


def spoil(how: str, run: Path) -> None:
    """Damage a run's predictions in one way."""
    path = run / "predictions" / "dev.jsonl"
    lines = path.read_text().splitlines()
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        path.write_text("\n".join(lines)[:-20])
    elif how == "another model's":
        path.write_text("\n".join(line.replace('"prediction": "not_', '"prediction": "') for line in lines))
    elif how == "other examples":
        path.write_text("\n".join(line.replace('"id": "', '"id": "x') for line in lines))
    elif how == "unknown label":
        path.write_text("\n".join(line.replace('"not_entailment"', '"perhaps"') for line in lines))


@pytest.mark.parametrize("how", ["missing", "cut short", "another model's", "other examples", "unknown label"])
def test_predictions_that_do_not_fit_give_no_interval_and_a_reason(kdbert: Kdbert, tmp_path: Path, how: str) -> None:
    for seed in (1, 2):
        with_predictions(tmp_path, "finetune", seed, 0.6)
        run = with_predictions(tmp_path, "kd", seed, 0.8)
    spoil(how, run)
    done = kdbert("table", tmp_path, "--baseline", "finetune", "--format", "csv")
    assert done.code == 0
    line = only(rows_of(done.out), method="kd")
    assert line["difference"] != ""
    assert line["interval_low"] == ""
    assert "no bootstrap interval: " in done.err
    assert "rte/kd" in done.err


def test_an_unknown_baseline_is_refused(kdbert: Kdbert, compared: Path) -> None:
    done = kdbert("table", compared, "--baseline", "finetun")
    assert done.code == 2
    assert "did you mean 'finetune'" in done.err


# ---- what is broken


BROKEN = {
    "cut short": lambda path: path.write_text(path.read_text()[:100]),
    "emptied": lambda path: path.write_text(""),
    "a list": lambda path: path.write_text("[1, 2]"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00\x01"),
    "no recipe": lambda path: path.write_text('{"status": "finished"}'),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "gone": lambda path: path.unlink(),
}
RECIPE = {"method": {"name": "kd"}, "task": {"name": "rte"}, "seed": 1}
EDITS: dict[str, dict[str, Any]] = {
    "no status": {"status": None},
    "unknown status": {"status": "fine"},
    "no metrics": {"metrics": {}},
    "metric not a number": {"metrics": {"dev": {"accuracy": "0.7"}}},
    "metric not finite": {"metrics": {"dev": {"accuracy": float("nan")}}},
    "no selected metric": {"metrics": {"dev": {"f1": 0.7}}},
    "recipe without a task": {"recipe": {key: RECIPE[key] for key in ("method", "seed")}},
    "recipe without a seed": {"recipe": {key: RECIPE[key] for key in ("method", "task")}},
    "teachers not a list of models": {"identity": {"teachers": ["x"]}},
    "teachers that are none": {"recipe": {**RECIPE, "teachers": None}},
    "teachers that are words": {"recipe": {**RECIPE, "teachers": ["a"]}},
}


@pytest.mark.parametrize("how", [*BROKEN, *EDITS])
def test_a_broken_run_folder_is_named_and_skipped(kdbert: Kdbert, tmp_path: Path, how: str) -> None:
    write_run(tmp_path, seed=1)
    broken = write_run(tmp_path, seed=2)
    if how in BROKEN:
        BROKEN[how](broken / "run.json")
    else:
        content = json.loads((broken / "run.json").read_text())
        (broken / "run.json").write_text(json.dumps(sealed({**content, **EDITS[how]})))
    done = kdbert("table", tmp_path, "--format", "csv")
    assert done.code == 0, done.err
    assert f"skipped {broken}: " in done.err
    assert rows_of(done.out)[0]["n"] == "1"
    assert "1 broken run folder left out" in kdbert("table", tmp_path).out
    shutil.rmtree(tmp_path / "rte" / "kd" / "bert-0.0002-3-last-seed1")
    alone = kdbert("table", tmp_path)
    assert alone.code == 2
    assert "no run found" in alone.err
    assert str(broken) in alone.err


@pytest.mark.parametrize("constant", [[1], {"dev": None}, {"dev": {"accuracy": "x"}}, "x"], ids=str)
def test_a_malformed_constant_answer_is_no_answer(kdbert: Kdbert, tmp_path: Path, constant: Any) -> None:
    path = write_run(tmp_path) / "run.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(sealed({**content, "constant_answer": constant, "one_answer": constant})))
    assert tabled(kdbert, tmp_path)[0]["n"] == "1"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_in_a_sentence(tmp_path: Path) -> None:
    write_run(tmp_path)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kdbert", "table", str(tmp_path)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert "cannot write the table" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_has_just_begun_is_counted_not_broken(kdbert: Kdbert, tmp_path: Path) -> None:
    write_run(tmp_path, seed=1)
    write_run(tmp_path, seed=2, status="running")
    (tmp_path / "rte" / "kd" / "claimed").mkdir()
    (tmp_path / "rte" / "kd" / "claimed" / "run.lock").write_text("process 1")
    done = kdbert("table", tmp_path, "--format", "csv")
    assert "skipped" not in done.err
    assert rows_of(done.out)[0]["unfinished"] == "1"


# ---- many


@pytest.mark.slow
def test_hundreds_of_run_folders_are_one_table(kdbert: Kdbert, tmp_path: Path) -> None:
    for task in ("rte", "mrpc", "cola", "wnli", "sst2"):
        for method in ("finetune", "kd", "ics", "cka-ilg"):
            for seed in range(20):
                with_predictions(tmp_path, method, seed, 0.7, task=task)
    for words in ([], ["--baseline", "finetune"]):
        done = kdbert("table", tmp_path, "--format", "csv", *words)
        assert done.code == 0, done.err
        assert {line["n"] for line in rows_of(done.out)} == {"20"}


# ---- published numbers


def test_published_numbers_stand_below_ours_with_their_source(kdbert: Kdbert, tmp_path: Path) -> None:
    write_run(tmp_path, task="sst2", score=0.99)
    write_run(tmp_path, task="mrpc", score=0.99, selection="accuracy_and_f1")
    write_run(tmp_path, task="cola", score=0.99, selection="matthews_correlation")
    shown = kdbert("table", tmp_path, "--paper", "ics").out
    line = next(line for line in shown.splitlines() if line.startswith("| ics: ICS |"))
    assert line == (
        "| ics: ICS | not available | 0.925 (?) | 0.9107 (?)<br>[f1 0.925, accuracy 0.8964] | not available |"
    )
    assert "| ics: DistilBERT | not available | 0.913 (?) | f1 0.875 (?) | not available |" in shown
    assert SOURCES["ics"] in shown
    percent = kdbert("table", tmp_path, "--paper", "ics", "--percent").out
    assert "92.5 (?) | 91.07 (?)<br>[f1 92.5, accuracy 89.64]" in percent
    lines = tabled(kdbert, tmp_path, "--paper", "ics")
    published = [line for line in lines if line["source"].startswith("published")]
    assert {line["best"] for line in published} == {""}
    none = only(published, method="ics: ICS", column="cola")
    assert (none["mean"], none["source"]) == ("", "published: ics (not available)")
    parts = [x for x in published if x["method"] == "ics: DistilBERT" and x["column"] == "mrpc"]
    assert [(x["metric"], x["mean"]) for x in parts] == [("f1", "0.875")]
    assert only(published, method="ics: ICS", column="sst2")["mean"] == "0.925"
    assert float(only(lines, column="average", method="kd")["mean"]) == pytest.approx(0.99)  # ours alone


def test_published_numbers_are_of_the_metric_and_split_of_the_column(kdbert: Kdbert, tmp_path: Path) -> None:
    both = {"dev": {"accuracy": 0.9}, "test": {"accuracy": 0.6}}
    write_run(tmp_path, task="clinc150", metrics=both)
    test = tabled(kdbert, tmp_path, "--paper", "clinc")
    assert only(test, method="clinc: DistilBERT")["mean"] == "0.858545"
    assert only(test, method="clinc: BERT-base (teacher)")["n"] == "1"
    dev = tabled(kdbert, tmp_path, "--paper", "clinc", "--split", "dev")
    assert only(dev, method="clinc: DistilBERT")["mean"] == "0.923548"
    assert "not available" in only(dev, method="clinc: BERT-base (teacher)")["source"]


def test_published_numbers_are_those_of_the_papers(kdbert: Kdbert, tmp_path: Path) -> None:
    """Every number in the package, against the transcription from the sources that the tests have at hand."""
    from importlib import resources

    paths = [Path(__file__).parents[3] / "shared" / name for name in ("PAPER_TABLES.md", "COMPARATORS.md")]
    if not all(path.exists() for path in paths):
        absent("the transcriptions of the papers' tables are not here")
    papers, comparators = (path.read_text(encoding="utf-8") for path in paths)
    table = resources.files("kdbert.reporting").joinpath("published.tsv").read_text(encoding="utf-8")
    lines = list(csv.DictReader(table.splitlines(), delimiter="\t"))
    assert len(lines) > 250
    texts = {"ics": papers, "linkbert": papers, "distilbert": papers, "bert-and-friends": papers, "clinc": papers}
    for line in lines:
        value, paper = line["value"], line["paper"]
        percent = paper not in ("bert-and-friends", "clinc", "pkd")
        shown = str(Decimal(value).scaleb(2).normalize()) if percent else value.removeprefix("0")
        assert shown in texts.get(paper, comparators), line
    write_run(tmp_path, task="sst2")
    for paper in SOURCES:
        assert kdbert("table", tmp_path, "--paper", paper).code == 0


# ---- LaTeX


def test_latex_compiles(kdbert: Kdbert, compared: Path) -> None:
    engine = next((shutil.which(name) for name in ("pdflatex", "lualatex", "tectonic") if shutil.which(name)), None)
    if engine is None:
        absent("no TeX engine")
    strange = "50%_a&b#c$d{e}~f^g\\h|i<j>"
    write_run(compared, method=strange, task="sst2", seed=1, name="strange")
    write_run(compared, task="mrpc", status="diverged")
    tables = [
        kdbert("table", compared, "--format", "latex", *words).out
        for words in (
            ["--baseline", "finetune"],
            ["--rows", "method,train.learning_rate", "--baseline", "finetune", "--paper", "ics", "--percent"],
            ["--rows", "task", "--columns", "method"],
        )
    ]
    assert all("\\toprule" in text and "\\bottomrule" in text for text in tables)
    source = "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\n%s\\end{document}\n"
    (compared / "tables.tex").write_text(source % "\n".join(tables), encoding="utf-8")
    words = (
        [engine, "tables.tex"]
        if "tectonic" in engine
        else [engine, "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    )
    done = subprocess.run(words, cwd=compared, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert (compared / "tables.pdf").exists()


# ---- mistakes


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--format", "latx"], "did you mean 'latex'"),
        (["--rows", "train.learning_rat"], "did you mean 'train.learning_rate'"),
        (["--columns", "tasks"], "did you mean 'task'"),
        (["--where", "learning_rate"], "expected KEY=VALUE"),
        (["--where", "train.learning_rate=7"], "no run has train.learning_rate=7"),
        (["--where", "task=rte,method=kd"], "--where method=kd"),
        (["--where", "method=kd,kdd"], "no run has method=kdd; did you mean 'kd'"),
        (["--where", "task=rte", "--where", "task=mrpc"], "task=A,B"),
        (["--metric", "acuracy"], "did you mean 'accuracy'"),
        (["--split", "tset"], "no run has the split 'tset'"),
        (["--paper", "isc"], "did you mean 'ics'"),
        (["--paper", "ics", "--columns", "method", "--rows", "task"], "--columns task"),
        (["nowhere"], "no folder 'nowhere'"),
        (["--rows", ""], "--rows"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_named_with_its_cure(kdbert: Kdbert, tmp_path: Path, words: list[str], told: str) -> None:
    write_run(tmp_path)
    done = kdbert("table", tmp_path, *words)
    assert done.code == 2, done.out
    assert told in done.err
    assert "Traceback" not in done.err
