"""Runs that are scored and selected by metrics that a person has named."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import sklearn.metrics

from kdbert.errors import UserError
from kdbert.export import ExportRefused, _refuse_beyond
from kdbert.metrics import TABLE
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import baseline_recipe, task_of, teacher_recipes
from kdbert.runs.evaluate import evaluate
from kdbert.runs.teacher_scores import warn_if_untrained
from kdbert.tasks import get_task
from small_heads import make_setting
from small_run import Setting, logged, predictions

Command = Callable[..., Any]
ASKED = "neg_log_loss,mcc,roc_auc,accuracy"
OURS = ["log_loss", "matthews_correlation", "roc_auc", "accuracy"]


def facts(run: Path) -> Any:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def runs(setting: Setting, kdbert: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model fine-tuned for six epochs, so fast that its loss on dev rises again, and a student of it."""
    root = tmp_path_factory.mktemp("asked")
    files = ["--task", "custom", "--train-file", setting.train, "--dev-file", setting.dev, "--max-length", 64]
    shared = [*files, "--metrics", ASKED, "--set", "train.selection=best", "--runs-dir", root]
    done = kdbert(
        "finetune-teacher", *shared, "--model", setting.student, "--epochs", 6, "--learning-rate", 5e-3,
        "--output-dir", root / "teacher",
    )  # fmt: skip
    assert done.code == 0, done.err
    done = kdbert(
        "distill", *shared, "--teacher", root / "teacher", "--student-layers", 2, "--epochs", 1,
        "--output-dir", root / "student",
    )  # fmt: skip
    assert done.code == 0, done.err
    return root


def test_the_first_metric_selects_the_lowest_where_lower_is_better(runs: Path) -> None:
    on_dev = logged(runs / "teacher", "dev/log_loss")
    best = min(on_dev.values(), key=lambda line: line["dev/log_loss"])
    told = facts(runs / "teacher")
    assert told["selection"] == "log_loss"
    assert told["best"]["step"] == best["step"] < max(on_dev)
    assert told["metrics"]["dev"]["log_loss"] == pytest.approx(best["dev/log_loss"])


def test_the_scores_are_those_of_the_predictions_file_under_our_names(runs: Path) -> None:
    told, rows = facts(runs / "teacher"), predictions(runs / "teacher")
    labels = np.array([row["label"] == "positive" for row in rows])
    p = scipy.special.softmax([row["scores"] for row in rows], axis=1)
    found = told["metrics"]["dev"]
    assert list(found) == list(told["constant_answer"]["dev"]) == OURS
    assert found["log_loss"] == pytest.approx(sklearn.metrics.log_loss(labels, p))
    assert found["roc_auc"] == pytest.approx(sklearn.metrics.roc_auc_score(labels, p[:, 1]))
    assert found["matthews_correlation"] == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, p[:, 1] > 0.5))
    assert told["constant_answer"]["dev"]["roc_auc"] == 0.5
    student = facts(runs / "student")
    assert student["teachers"][0]["metrics"] == told["metrics"]
    assert "log_loss" in (runs / "teacher" / "model" / "README.md").read_text(encoding="utf-8")


def test_evaluate_scores_by_the_runs_metrics_or_by_those_asked_for(runs: Path, kdbert: Command) -> None:
    again = evaluate(str(runs / "student"))
    assert (again.selection, again.metrics) == ("log_loss", facts(runs / "student")["metrics"])
    other = evaluate(str(runs / "student"), metrics=["brier_score_loss", "accuracy"])
    assert list(other.metrics["dev"]) == list(other.constant["dev"]) == ["brier_score", "accuracy"]
    done = kdbert("evaluate", runs / "student", "--metrics", "f1_macro,log_loss")
    assert done.code == 0, done.err
    assert "macro f1" in done.out
    refused = kdbert("evaluate", runs / "student", "--metrics", "hamming_loss")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert "zero_one_loss" in refused.err


def test_tables_and_reports_show_such_runs(runs: Path, kdbert: Command, tmp_path: Path) -> None:
    shown = kdbert("table", runs, "--metric", "matthews_correlation")
    assert shown.code == 0, shown.err
    assert "dev log_loss" in kdbert("table", runs).out
    report = kdbert("report", runs, "-o", tmp_path / "report.html")
    assert report.code == 0, report.err
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "dev log_loss" in page
    assert "teacher right, student wrong" in page


@pytest.mark.parametrize("kind", ["token", "multi_label", "regression"])
def test_a_run_of_another_head_is_scored_by_every_metric_that_it_has(
    kind: str, kdbert: Command, setting: Setting, tmp_path: Path
) -> None:
    if kind == "regression":
        draw = np.random.default_rng(0)
        for name in ("train", "dev"):
            lines = [f"{word} film,{draw.uniform(0, 5):.2f}" for word in ("good", "bad", "great", "poor") * 10]
            (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
        words = ["--task", "custom", "--train-file", tmp_path / "train.csv", "--dev-file", tmp_path / "dev.csv"]
        words = ["finetune-teacher", *words, "--model", setting.student, "--max-length", 24, "--runs-dir", tmp_path]
    else:
        words = [*make_setting(kind, tmp_path / kind, setting.student).words(tmp_path), "--set", "train.max_steps=2"]
    every = [name for name, one in TABLE.items() if one.fits(kind, 10, groups=("document", "entity"))]
    done = kdbert(*words, "--metrics", ",".join(every), "--set", "train.selection=best")
    assert done.code == 0, done.err
    (path,) = (path for path in tmp_path.rglob("run.json"))
    told = facts(path.parent)
    assert [list(told[what]["dev"]) for what in ("metrics", "constant_answer")] == [every, every]
    for name in every[::4]:
        shown = kdbert("table", path.parent, "--metric", name)
        assert shown.code == 0, shown.err
    assert evaluate(str(path.parent)).metrics["dev"] == pytest.approx(told["metrics"]["dev"])


@pytest.mark.parametrize(
    ("metric", "reached", "constant", "weak"),
    [
        ("log_loss", 0.30, 0.69, False),
        ("log_loss", 0.685, 0.69, True),
        ("log_loss", 0.90, 0.69, True),
        ("roc_auc", 0.51, 0.5, True),
        ("roc_auc", 0.8, 0.5, False),
    ],
)
def test_a_teacher_that_knows_little_is_told_of_in_both_directions(
    metric: str, reached: float, constant: float, weak: bool, caplog: pytest.LogCaptureFixture
) -> None:
    facts = {"model": "t", "metrics": {"dev": {metric: reached}}, "one_answer": {}}
    warn_if_untrained(get_task("rte").measured_by([metric]), facts, {"dev": {metric: constant}})
    assert bool(caplog.records) == weak


@pytest.mark.parametrize(("metric", "ours", "refused"), [("log_loss", 0.6, True), ("log_loss", 0.4, False)])
def test_an_export_whose_loss_rises_is_refused_and_one_whose_loss_falls_is_not(
    metric: str, ours: float, refused: bool
) -> None:
    found = {"examples": 9, "largest_difference": 0.1, "largest_logit": 1.0, "agreement": 1.0, "metric": metric}
    checks = {"dev": {**found, "model": {metric: 0.5}, "export": {metric: ours}}}
    with pytest.raises(ExportRefused, match="rises") if refused else contextlib.nullcontext():
        _refuse_beyond(checks, "onnx-int8", {"min_agreement": 0.95, "max_drop": 0.02})


# ---- recipes


def test_a_run_by_the_tasks_own_metrics_is_the_one_it_was_and_other_metrics_are_another() -> None:
    plain, asked = Recipe.of({"task": "rte"}), Recipe.of({"task": {"name": "rte", "metrics": "mcc, accuracy,mcc"}})
    assert "metrics" not in plain.identity({})["task"]
    assert asked.task.metrics == ["matthews_correlation", "accuracy"]
    assert asked.digest({}) != plain.digest({})
    spelled = Recipe.of({"task": {"name": "rte", "metrics": ["matthews_corrcoef", "accuracy_score"]}})
    assert spelled.digest({}) == asked.digest({})
    assert task_of(asked.task).metrics == ("matthews_correlation", "accuracy")
    assert task_of(plain.task).metrics == ("accuracy",)
    for made in (*teacher_recipes(asked), baseline_recipe(asked)):  # so that they can be compared
        assert made.task.metrics == asked.task.metrics


@pytest.mark.parametrize(
    ("task", "metrics", "told"),
    [
        ({"name": "rte"}, "macro_f2", "macro_f1"),
        ({"name": "rte"}, "rand_score", "cluster"),
        ({"name": "rte"}, "", "metrics"),
        ({"name": "rte"}, [], "metrics"),
        ({"name": "corpus", "train_file": "a.txt"}, "accuracy", "plain text"),
    ],
)
def test_a_metric_that_is_none_is_refused(task: dict[str, Any], metrics: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Recipe.of({"task": {**task, "metrics": metrics}})


@pytest.mark.parametrize(
    ("task", "metric", "fits"),
    [
        ("rte", "rmse", "roc_auc"),
        ("mnli", "f1", "macro_f1"),
        ("rte", "top_2_accuracy", "accuracy"),
        ("rte", "in_scope_accuracy", "accuracy"),
        ("stsb", "accuracy", "mean_squared_error"),
        ("hoc", "entity_f1", "document_f1"),
        ("ncbi-disease", "log_loss", "entity_f1"),
        ("bc2gm", "document_f1", "macro_token_f1"),
    ],
)
def test_a_metric_that_the_task_cannot_have_is_refused_with_those_that_it_can(
    task: str, metric: str, fits: str, kdbert: Command
) -> None:
    with pytest.raises(UserError) as refused:
        task_of(Recipe.of({"task": {"name": task, "metrics": metric}}).task)
    assert f" {fits}" in str(refused.value)
    assert metric not in str(refused.value).partition("those that do: ")[2].split(", ")


def test_a_wrong_metric_is_told_by_the_flag(kdbert: Command) -> None:
    done = kdbert("distill", "--task", "quickstart", "--metrics", "accurcy", "--dry-run")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "--metrics:" in done.err
    assert "'accuracy'" in done.err
    done = kdbert("sweep", "--task", "quickstart", "--metrics", "r2", "--seeds", "1", "--dry-run")
    assert done.code == 2
    assert "accuracy" in done.err
