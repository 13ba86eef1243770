"""Tables of runs that were scored by metrics asked for: the better direction, intervals, averages, constant answers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_files import write_predictions, write_run
from test_grouped_intervals import entities

from kdbert.metrics import score
from kdbert.reporting.summary import SummaryRow, remarks
from kdbert.tasks import get_task

Command = Callable[..., Any]
LABELS = np.random.default_rng(0).integers(0, 2, 80)


def table(kdbert: Command, folder: Path, *words: str) -> dict[str, dict[str, str]]:
    """The rows of kdbert's csv by method."""
    done = kdbert("table", folder, "--format", "csv", *words)
    assert done.code == 0, done.err
    return {line["method"]: line for line in csv.DictReader(io.StringIO(done.out))}


def rte(folder: Path, method: str, noise: float, metric: str) -> Path:
    """A run on RTE with predictions, scored by a metric."""
    rng = np.random.default_rng(1)
    gap = (2 * LABELS - 1) + noise * rng.normal(size=80)
    logits = np.round(np.stack([-gap, gap], axis=1), 6)
    spec = get_task("rte")
    reached = spec.head.scores((metric,), spec.head.predicted(logits), LABELS, None, logits)[metric]
    run = write_run(folder, method=method, score=reached, selection=metric)
    write_predictions(run, logits.argmax(1), LABELS, scores=logits)
    return run


@pytest.mark.parametrize("metric", ["log_loss", "roc_auc", "macro_recall", "top_2_accuracy"])
def test_where_no_interval_is_computed_none_is_shown_and_the_table_says_so(
    metric: str, kdbert: Command, tmp_path: Path
) -> None:
    for method, noise in (("finetune", 3.0), ("kd", 0.5)):
        if metric == "top_2_accuracy":
            write_run(tmp_path, method=method, score=1 / (1 + noise), selection=metric)
        else:
            rte(tmp_path, method, noise, metric)
    found = table(kdbert, tmp_path, "--baseline", "finetune")["kd"]
    assert found["interval_low"] == found["interval_high"] == ""
    assert (float(found["difference"]) < 0) == (metric == "log_loss")
    shown = kdbert("table", tmp_path, "--baseline", "finetune")
    assert f"no interval of {metric}" in shown.out + shown.err
    assert "no bootstrap interval" not in shown.err


def test_errors_of_scores_have_an_interval(kdbert: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    labels = rng.uniform(0, 5, 60)
    for method, noise in (("finetune", 2.0), ("kd", 0.5)):
        answers = labels + noise * rng.normal(size=60)
        reached = score(("root_mean_squared_error",), answers, labels)["root_mean_squared_error"]
        run = write_run(tmp_path, task="stsb", method=method, score=reached, selection="root_mean_squared_error")
        write_predictions(run, answers, labels, scores=answers[:, None])
    found = table(kdbert, tmp_path, "--baseline", "finetune")["kd"]
    assert float(found["interval_low"]) < float(found["difference"]) < float(found["interval_high"]) < 0


def test_metrics_of_words_and_of_sets_have_no_interval(kdbert: Command, tmp_path: Path) -> None:
    spec = get_task("ncbi-disease")
    for method, wrong in (("finetune", 0.3), ("kd", 0.1)):
        rows = entities(1, wrong)
        tags = [np.array([spec.labels.index(t) for row in rows for t in row[key]]) for key in ("prediction", "label")]
        reached = score(("accuracy",), *tags)["accuracy"]
        run = write_run(tmp_path / "words", task=spec.name, method=method, score=reached, selection="accuracy")
        (run / "predictions").mkdir()
        (run / "predictions" / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        names = get_task("hoc").labels
        rows = [{"id": f"{i}_s1", "label": [names[i]], "prediction": names[i : i + 2]} for i in range(8)]
        run = write_run(tmp_path / "sets", task="hoc", method=method, score=2 / 3, selection="micro_f1")
        (run / "predictions").mkdir()
        (run / "predictions" / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for folder, metric in (("words", "accuracy"), ("sets", "micro_f1")):
        found = table(kdbert, tmp_path / folder, "--baseline", "finetune")["kd"]
        assert found["interval_low"] == ""
        shown = kdbert("table", tmp_path / folder, "--baseline", "finetune")
        assert f"no interval of {metric}" in shown.out + shown.err


def test_the_lowest_is_the_best_and_above_the_constant_answer_nothing_is_learned(
    kdbert: Command, tmp_path: Path
) -> None:
    for method, reached in (("finetune", 0.5), ("kd", 0.4), ("ics", 0.75)):
        write_run(tmp_path, method=method, score=reached, selection="log_loss", constant=0.69)
    lines = kdbert("table", tmp_path).out
    assert "**0.4000" in lines
    note = next(line for line in lines.splitlines() if "no better than the constant answer" in line)
    assert "ics" in note
    assert "kd" not in note
    row = SummaryRow("model", {"dev": {"log_loss": 0.4}})
    assert remarks([row], {"dev": {"log_loss": 0.69}}, "log_loss") == []
    assert len(remarks([row], {"dev": {"log_loss": 0.4}}, "log_loss")) == 1


def test_there_is_no_average_over_tasks_where_lower_is_better(kdbert: Command, tmp_path: Path) -> None:
    write_run(tmp_path, task="rte", score=0.6, selection="log_loss")
    write_run(tmp_path, task="mrpc", score=0.8, selection="accuracy")
    shown = kdbert("table", tmp_path)
    assert shown.code == 0, shown.err
    assert "no average over tasks" in shown.out + shown.err
    assert "mean of" not in shown.out
    write_run(tmp_path / "other", task="rte", score=0.6, selection="roc_auc")
    write_run(tmp_path / "other", task="mrpc", score=0.8, selection="accuracy")
    assert "mean of 2 figures" in kdbert("table", tmp_path / "other").out


def test_predictions_without_their_scores_give_no_metric_of_probabilities(kdbert: Command, tmp_path: Path) -> None:
    """A report compares a student with its teacher by the metric of the runs, from their files."""
    run = rte(tmp_path, "kd", 1.0, "roc_auc")
    from kdbert.reporting.collect import Damaged, read_run
    from kdbert.reporting.predicted import scored_predictions

    assert len(scored_predictions(read_run(run), "dev", "roc_auc").ids) == 80
    file = run / "predictions" / "dev.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**row, "scores": [0.0, 0.0]}) + "\n" for row in rows))
    with pytest.raises(Damaged):
        scored_predictions(read_run(run), "dev", "roc_auc")
    file.write_text("".join(json.dumps({k: row[k] for k in ("id", "label", "prediction")}) + "\n" for row in rows))
    with pytest.raises(Damaged):
        scored_predictions(read_run(run), "dev", "roc_auc")
