"""Tables of tasks whose metrics belong to documents and sentences: their intervals, and the BLURB score."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_files import write_run

from kdbert.metrics import score
from kdbert.tasks import get_task

HALLMARKS = get_task("hoc").labels


def entities(seed: int, wrong: float) -> list[dict[str, Any]]:
    """Sixty sentences and an answer in which this share of tags is another."""
    draw = np.random.default_rng(5)
    gold = [draw.choice(["O", "B", "I"], p=[0.7, 0.2, 0.1], size=draw.integers(3, 12)).tolist() for _ in range(60)]
    draw = np.random.default_rng(seed)
    rows = []
    for number, tags in enumerate(gold):
        answer = [str(draw.choice(["O", "B", "I"])) if draw.random() < wrong else tag for tag in tags]
        rows.append({"id": str(number), "label": tags, "prediction": answer, "scores": [[0.0] * 3] * len(tags)})
    return rows


def documents(seed: int, wrong: float) -> list[dict[str, Any]]:
    """Twenty documents of three sentences, likewise."""
    draw = np.random.default_rng(5)
    gold = draw.random((60, 10)) < 0.2
    flips = np.random.default_rng(seed).random((60, 10)) < wrong
    return [
        {
            "id": f"{number // 3}_s{number % 3}",
            "label": [HALLMARKS[i] for i in np.flatnonzero(gold[number])],
            "prediction": [HALLMARKS[i] for i in np.flatnonzero(gold[number] ^ flips[number])],
            "scores": [0.0] * 10,
        }
        for number in range(60)
    ]


def value(task: str, rows: list[dict[str, Any]]) -> float:
    """The task's first metric."""
    spec = get_task(task)
    if task == "hoc":
        sides = [
            np.array([[name in row[key] for name in spec.labels] for row in rows]) for key in ("prediction", "label")
        ]
        groups = np.arange(60) // 3
    else:
        sides = [np.array([spec.labels.index(t) for row in rows for t in row[key]]) for key in ("prediction", "label")]
        groups = np.repeat(np.arange(60), [len(row["label"]) for row in rows])
    return score(spec.metrics[:1], *sides, groups, spec.labels)[spec.metrics[0]]


@pytest.mark.parametrize(("task", "make"), [("ncbi-disease", entities), ("hoc", documents)])
def test_the_interval_holds_the_difference_and_is_one_of_documents_or_sentences(
    task: str, make: Any, kdbert: Any, tmp_path: Path
) -> None:
    metric = get_task(task).metrics[0]
    for method, wrong in (("finetune", 0.3), ("kd", 0.1)):
        for seed in (1, 2):
            rows = make(seed, wrong)
            run = write_run(tmp_path, task=task, method=method, seed=seed, score=value(task, rows), selection=metric)
            (run / "predictions").mkdir()
            content = "".join(json.dumps(row) + "\n" for row in rows)
            (run / "predictions" / "dev.jsonl").write_text(content, encoding="utf-8")
    done = kdbert("table", tmp_path, "--rows", "method", "--baseline", "finetune", "--format", "csv")
    assert done.code == 0, done.err
    assert "no bootstrap interval" not in done.err
    (line,) = [row for row in csv.DictReader(io.StringIO(done.out)) if row["method"] == "kd"]
    low, difference, high = (float(line[key]) for key in ("interval_low", "difference", "interval_high"))
    assert 0 < low < difference < high < 0.8
    assert high - low > 0.02


def test_answers_that_do_not_fit_their_sentences_give_no_interval(kdbert: Any, tmp_path: Path) -> None:
    for method, wrong in (("finetune", 0.3), ("kd", 0.1)):
        rows = entities(1, wrong)
        run = write_run(
            tmp_path, task="ncbi-disease", method=method, score=value("ncbi-disease", rows), selection="entity_f1"
        )
        if method == "kd":
            rows[0]["prediction"] = rows[0]["prediction"][1:]
        (run / "predictions").mkdir()
        (run / "predictions" / "dev.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    done = kdbert("table", tmp_path, "--rows", "method", "--baseline", "finetune", "--format", "csv")
    assert done.code == 0, done.err
    assert "no bootstrap interval" in done.err


def test_the_blurb_score_is_the_mean_over_groups_and_says_what_it_lacks(kdbert: Any, tmp_path: Path) -> None:
    scores = {"ncbi-disease": 0.8, "bc2gm": 0.6, "gad": 0.5, "hoc": 0.4}
    for task, reached in scores.items():
        write_run(tmp_path, task=task, score=reached, selection=get_task(task).metrics[0])
    done = kdbert("table", tmp_path, "--format", "csv")
    assert done.code == 0, done.err
    lines = {line["column"]: float(line["mean"]) for line in csv.DictReader(io.StringIO(done.out))}
    assert lines["average"] == pytest.approx(0.575)
    assert lines["BLURB (partial)"] == pytest.approx(((0.8 + 0.6) / 2 + 0.5 + 0.4) / 3)
    shown = kdbert("table", tmp_path).out
    assert "mean of 3 groups" in shown
    assert "without bc5cdr-chem, bc5cdr-disease, jnlpba, ebm-pico" in shown
    assert "BIOSSES" in shown
    assert "BLURB" not in kdbert("table", tmp_path, "--metric", get_task("hoc").metrics[0]).out
    write_run(tmp_path, task="rte", score=0.5)
    assert "BLURB" not in kdbert("table", tmp_path).out
