"""RTE with 300 training examples, of which fewer than half are the class that is the commonest of dev: chance is that
of dev, and a model of one answer is said to be one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from conftest import make_bert
from kdbert.tasks import get_task

Kdbert = Callable[..., Any]
CHANCE = 146 / 277  # the share of "entailment" in RTE's dev split
LABELS = ["entailment", "not_entailment"]


def edited(folder: Path, scale: float, bias: list[float]) -> Path:
    """The classifier with another head: its weights times `scale`, and this bias."""
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= scale
    weights["classifier.bias"] = torch.tensor(bias)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def guessing(folder: Path, rows: list[str]) -> Path:
    """A classifier of random weights that answers half of these texts by the one class, half by the other."""
    edited(make_bert(folder, layers=1, labels=LABELS, base=False, seed=4), 50, [0.0, 0.0])
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer(rows, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        logits = model(**asked).logits
    return edited(folder, 1, [0.0, float((logits[:, 0] - logits[:, 1]).median())])


@pytest.fixture(scope="module")
def collapsed(kdbert: Kdbert, glue_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A student that learns nothing, and answers "entailment" to everything; how its command ended."""
    folder = tmp_path_factory.mktemp("rte")
    teacher = guessing(folder / "teacher", list(get_task("rte").load("dev", str(glue_dir)).text_a))
    student = edited(make_bert(folder / "student", layers=1, labels=LABELS, base=False), 0, [1.0, 0.0])
    done = kdbert(
        "distill", "--task", "rte", "--data-dir", glue_dir, "--teacher", teacher, "--student", student,
        "--max-length", 16, "--learning-rate", 1e-9, "--output-dir", folder / "run", "--precision", "fp32",
        "--set", "task.max_train_examples=300", "train.max_steps=2",
    )  # fmt: skip
    assert done.code == 0, done.err
    return folder / "run", done


def facts(run: Path) -> dict[str, Any]:
    """run.json."""
    found: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return found


def test_chance_is_that_of_the_split_that_is_scored(collapsed: tuple[Path, Any]) -> None:
    run, done = collapsed
    found = facts(run)
    assert found["metrics"]["dev"]["accuracy"] == found["constant_answer"]["dev"]["accuracy"] == pytest.approx(CHANCE)
    (teacher,) = found["teachers"]
    assert teacher["metrics"]["dev"]["accuracy"] < CHANCE + 0.02
    assert teacher["one_answer"] == {}
    assert "one answer to every example gives 0.5271" in done.err


def test_one_answer_is_said_in_run_json_closing_lines_table_card_and_by_evaluate(
    kdbert: Kdbert, collapsed: tuple[Path, Any], glue_dir: Path
) -> None:
    run, done = collapsed
    assert facts(run)["one_answer"] == {"dev": "entailment"}
    assert "student (kd): one answer to every example of dev: entailment" in done.out
    assert "constant answer" in done.out
    assert "†" in kdbert("table", run).out
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "**On dev it gives the same answer to every example: `entailment`.**" in card
    assert f"| {CHANCE:.4f} |" in card
    for quiet in ([], ["--quiet"]):
        scored = kdbert("evaluate", run, "--data-dir", glue_dir, *quiet)
        assert scored.code == 0, scored.err
        assert "one answer to every example of dev: entailment" in (scored.err if quiet else scored.out)


def test_a_teacher_of_one_answer_is_warned_about(kdbert: Kdbert, collapsed: tuple[Path, Any], glue_dir: Path) -> None:
    run, _ = collapsed
    done = kdbert(
        "distill", "--task", "rte", "--data-dir", glue_dir, "--teacher", run, "--student", run.parent / "teacher",
        "--max-length", 16, "--output-dir", run.parent / "next", "--set", "task.max_train_examples=300",
        "train.max_steps=2", "train.precision=fp32",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert f"teacher {run} answers entailment to every example of dev" in done.err
    assert facts(run.parent / "next")["teachers"][0]["one_answer"] == {"dev": "entailment"}  # from its own run.json
