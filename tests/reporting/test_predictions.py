"""Prediction files: one row per example, and the upload format of gluebenchmark.com."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import make_bert
from kdbert.data.examples import Examples
from kdbert.runs.answers import Answers
from kdbert.tasks import get_task

# split -> file name, and the words of the classes in upload files (gluebenchmark.com/submit)
SUBMISSION: dict[str, tuple[dict[str, str], set[str]]] = {
    "cola": ({"test": "CoLA.tsv"}, {"0", "1"}),
    "sst2": ({"test": "SST-2.tsv"}, {"0", "1"}),
    "mrpc": ({"test": "MRPC.tsv"}, {"0", "1"}),
    "stsb": ({"test": "STS-B.tsv"}, set()),
    "qqp": ({"test": "QQP.tsv"}, {"0", "1"}),
    "mnli": (
        {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
        {"contradiction", "entailment", "neutral"},
    ),
    "qnli": ({"test": "QNLI.tsv"}, {"entailment", "not_entailment"}),
    "rte": ({"test": "RTE.tsv"}, {"entailment", "not_entailment"}),
    "wnli": ({"test": "WNLI.tsv"}, {"0", "1"}),
    "ax": ({"test": "AX.tsv"}, {"contradiction", "entailment", "neutral"}),
}

UNREAD = Examples("test", [], [], [], None)  # an upload file says nothing of the examples


@pytest.mark.parametrize("task", SUBMISSION)
def test_upload_files_have_the_official_form(tmp_path: Path, task: str) -> None:
    spec = get_task(task)
    names, words = SUBMISSION[task]
    assert dict(spec.submission) == names
    logits = np.random.default_rng(0).normal(size=(40, spec.head.outputs)).astype(np.float32)
    for name in names.values():
        Answers(spec, UNREAD, logits).write_submission(tmp_path / name)
        content = (tmp_path / name).read_bytes().decode()
        assert content.endswith("\n")
        header, *rows = content.removesuffix("\n").split("\n")
        assert header == "index\tprediction"
        cells = [row.split("\t") for row in rows]
        assert [index for index, _ in cells] == [str(i) for i in range(40)]
        if words:
            assert {word for _, word in cells} == words
            assert [word for _, word in cells] == [spec.labels[i] for i in logits.argmax(1)]


def test_scores_are_limited_to_the_range_of_stsb(tmp_path: Path) -> None:
    logits = np.array([[-0.3], [5.7], [2.34567], [0.0004], [4.9996], [3.0]], dtype=np.float32)
    Answers(get_task("stsb"), UNREAD, logits).write_submission(tmp_path / "STS-B.tsv")
    rows = (tmp_path / "STS-B.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert [row.split("\t")[1] for row in rows] == ["0.000", "5.000", "2.346", "0.000", "5.000", "3.000"]


def test_prediction_rows_tell_id_label_prediction_and_scores(tmp_path: Path) -> None:
    spec = get_task("rte")
    examples = Examples("dev", ["7", "x\u2028é"], ["a", "b"], ["c", "d"], np.array([1, 0]))
    logits = np.array([[0.25, 1.5], [-1.0, 2.0]], dtype=np.float32)
    assert spec.head.predicted(logits).tolist() == [1, 1]
    Answers(spec, examples, logits).write(tmp_path / "deep" / "dev.jsonl")
    lines = (tmp_path / "deep" / "dev.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert [json.loads(line) for line in lines] == [
        {"id": "7", "label": "not_entailment", "prediction": "not_entailment", "scores": [0.25, 1.5]},
        {"id": "x\u2028é", "label": "entailment", "prediction": "not_entailment", "scores": [-1.0, 2.0]},
    ]
    score = Examples("test", ["0"], ["a"], ["b"], None)
    Answers(get_task("stsb"), score, np.array([[5.5]], dtype=np.float32)).write(tmp_path / "test.jsonl")
    line = json.loads((tmp_path / "test.jsonl").read_text(encoding="utf-8"))
    assert line == {"id": "0", "label": None, "prediction": 5.5, "scores": [5.5]}


@pytest.fixture(scope="module")
def rte_run(tmp_path_factory: pytest.TempPathFactory, glue_dir: Path, tiny_bert: Path) -> Path:
    """A tiny model fine-tuned on 32 examples of the real RTE."""
    from kdbert import Recipe, finetune

    result = finetune(Recipe.of({
        "task": {"name": "rte", "data_dir": str(glue_dir), "max_length": 32, "max_train_examples": 32},
        "student": {"model": str(tiny_bert)},
        "method": "finetune",
        "train": {"epochs": 1, "batch_size": 16},
        "output": {"runs_dir": str(tmp_path_factory.mktemp("runs"))},
    }))  # fmt: skip
    return result.path


@pytest.mark.real_data
def test_dev_predictions_are_in_the_run_and_give_its_score(rte_run: Path, glue_dir: Path) -> None:
    rows = [
        json.loads(line)
        for line in (rte_run / "predictions" / "dev.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]
    examples = get_task("rte").load("dev", str(glue_dir))
    assert [row["id"] for row in rows] == examples.ids
    assert all(set(row) == {"id", "label", "prediction", "scores"} and len(row["scores"]) == 2 for row in rows)
    labels = get_task("rte").labels
    assert examples.labels is not None
    assert [row["label"] for row in rows] == [labels[i] for i in examples.labels]
    assert all(row["prediction"] == labels[int(row["scores"][1] > row["scores"][0])] for row in rows)
    accuracy = sum(row["label"] == row["prediction"] for row in rows) / len(rows)
    assert accuracy == pytest.approx(
        json.loads((rte_run / "run.json").read_text(encoding="utf-8"))["metrics"]["dev"]["accuracy"]
    )


@pytest.mark.real_data
def test_evaluate_writes_the_upload_file_of_the_real_test_split(
    kdbert: Callable[..., Any], rte_run: Path, glue_dir: Path
) -> None:
    done = kdbert("evaluate", rte_run, "--split", "test", "--data-dir", glue_dir)
    assert done.code == 0, done.err
    assert "no labels" in done.out
    lines = (rte_run / "predictions" / "RTE.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "index\tprediction"
    assert [line.split("\t")[0] for line in lines[1:]] == [str(i) for i in range(3000)]
    assert {line.split("\t")[1] for line in lines[1:]} <= {"entailment", "not_entailment"}
    rows = [
        json.loads(line) for line in (rte_run / "predictions" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["prediction"] for row in rows] == [line.split("\t")[1] for line in lines[1:]]
    assert {row["label"] for row in rows} == {None}


@pytest.mark.real_data
def test_evaluate_gives_the_runs_own_score_and_files_where_asked(
    kdbert: Callable[..., Any], rte_run: Path, tmp_path: Path
) -> None:
    before = (rte_run / "predictions" / "dev.jsonl").read_bytes()
    done = kdbert("evaluate", rte_run, "--output-dir", tmp_path / "out")
    assert done.code == 0, done.err
    facts = json.loads((rte_run / "run.json").read_text(encoding="utf-8"))
    assert f"{facts['metrics']['dev']['accuracy']:.4f}" in done.out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dev.jsonl"]
    assert (tmp_path / "out" / "dev.jsonl").read_bytes() == before
    quiet = kdbert("evaluate", rte_run, "--output-dir", tmp_path / "out", "--quiet")
    assert quiet.out == f"{tmp_path / 'out' / 'dev.jsonl'}\n"


@pytest.mark.real_data
@pytest.mark.long
def test_diagnostics_are_predicted_with_an_mnli_model_whatever_its_label_order(
    kdbert: Callable[..., Any], glue_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    monkeypatch.chdir(tmp_path)
    names = ["ENTAILMENT", "NEUTRAL", "CONTRADICTION"]
    folder = make_bert(tmp_path / "nli", layers=1, labels=names, base=False)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():  # it always says neutral, so the file must say so too
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 1.0, 0.5]))
    model.save_pretrained(folder)
    done = kdbert("evaluate", folder, "--task", "AX", "--split", "test", "--data-dir", glue_dir, "--max-length", 16)
    assert done.code == 0, done.err
    (place,) = (tmp_path / "predictions" / "ax").iterdir()
    assert place.name.startswith("nli-")
    lines = (place / "AX.tsv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1105
    assert {line.split("\t")[1] for line in lines[1:]} == {"neutral"}
    first = json.loads((place / "test.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["scores"] == [0.5, 0.0, 1.0]  # in the task's order: contradiction, entailment, neutral


def test_matched_and_mismatched_are_scored_and_written_apart(
    kdbert: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_bert(tmp_path / "nli", layers=1, labels=["contradiction", "entailment", "neutral"], base=False)
    (tmp_path / "glue" / "MNLI").mkdir(parents=True)
    header = "\t".join(["index", "promptID", "pairID", "genre", *"abcd", "sentence1", "sentence2"])
    row = lambda i: "\t".join([str(i), *"xxxxxxx", f"the cat {i}", "a dog"])  # noqa: E731
    for name, rows in (("dev_matched", 5), ("dev_mismatched", 7), ("test_matched", 4), ("test_mismatched", 6)):
        labelled = name.startswith("dev")
        lines = [header + ("\tlabel1\tgold_label" if labelled else "")]
        lines += [row(i) + ("\tneutral\tentailment" if labelled else "") for i in range(rows)]
        (tmp_path / "glue" / "MNLI" / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ("evaluate", folder, "--task", "mnli", "--data-dir", "glue", "--max-length", 16)
    done = kdbert(*words)
    assert done.code == 0, done.err
    assert "dev_matched" in done.out
    assert "dev_mismatched" in done.out
    done = kdbert(*words, "--split", "test")
    assert done.code == 0, done.err
    (place,) = (tmp_path / "predictions" / "mnli").iterdir()
    assert len((place / "MNLI-m.tsv").read_text(encoding="utf-8").splitlines()) == 5
    assert len((place / "MNLI-mm.tsv").read_text(encoding="utf-8").splitlines()) == 7
    one = kdbert(*words, "--split", "dev_mismatched", "--output-dir", "one")
    assert one.code == 0, one.err
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["dev_mismatched.jsonl"]
