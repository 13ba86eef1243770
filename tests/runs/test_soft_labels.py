"""A file of soft labels as teacher: its student is that of the model which wrote it; a fault is told with its line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbert.disk.files import sha256
from kdbert.errors import UserError
from kdbert.tasks import TaskSpec
from kdbert.tasks.own import custom_task
from kdbert.training.soft_labels import FLOOR, SoftLabels, text_digest

KDBERT = Callable[..., Any]
WORDS = "a good bad film book plot of the and not".split()
TEXTS = [
    " ".join(WORDS[(number * k) % len(WORDS)] for k in range(1, 4 + number % 5)) + f" {number}" for number in range(48)
]
KINDS = ("class", "pair", "multi_label", "token")


def label_of(kind: str, number: int) -> Any:
    if kind == "multi_label":
        return [name for name, bit in (("art", 1), ("law", 2)) if number % 4 & bit]
    if kind == "token":
        return ["B-X" if place == number % 3 else "O" for place in range(len(TEXTS[number].split()))]
    return ["no", "yes", "maybe"][number % 3]


def row_of(kind: str, number: int) -> dict[str, Any]:
    """A row of own data."""
    text: dict[str, Any] = {"text": TEXTS[number]}
    if kind == "token":
        text = {"tokens": TEXTS[number].split()}
    if kind == "pair":
        text = {"premise": TEXTS[number], "hypothesis": TEXTS[-number]}
    return {**text, {"multi_label": "labels", "token": "tags"}.get(kind, "label"): label_of(kind, number)}


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def files(folder: Path, kind: str) -> list[Any]:
    """A training and a dev file; the flags that name them."""
    rows = [row_of(kind, number) for number in range(len(TEXTS))]
    train, dev = put(folder / "train.jsonl", rows[:32]), put(folder / "dev.jsonl", rows[32:])
    return ["--task", "custom", "--train-file", train, "--dev-file", dev, "--max-length", 32]


HOW = ["--epochs", 1, "--batch-size", 8, "--precision", "fp32", "--quiet"]


def run(kdbert: KDBERT, *words: Any) -> Path:
    done = kdbert(*words)
    assert done.code == 0, done.err
    return Path(done.out.strip().splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_predict_wrote_teaches_as_the_model_itself(
    kind: str, kdbert: KDBERT, tiny_bert: Path, tmp_path: Path
) -> None:
    words = files(tmp_path, kind)
    teacher = run(kdbert, "finetune-teacher", *words, "--model", tiny_bert, *HOW, "--output-dir", tmp_path / "t")
    soft = tmp_path / "soft.jsonl"
    run(
        kdbert,
        "predict",
        teacher,
        tmp_path / "train.jsonl",
        "--scores",
        "logits",
        "-o",
        soft,
        "-q",
        "--precision",
        "fp32",
    )
    lines = soft.read_text().splitlines()
    soft.write_text("\n".join(lines[::-1]) + "\n")  # any order
    student = ["distill", *words, *HOW, "--student", tiny_bert, "--student-layers", 2, "--runs-dir", tmp_path / "runs"]
    of_model = run(kdbert, *student, "--teacher", teacher, "--output-dir", tmp_path / "a")
    of_file = run(kdbert, *student, "--teacher", soft, "--output-dir", tmp_path / "b")
    assert sha256(of_file / "model" / "model.safetensors") == sha256(of_model / "model" / "model.safetensors")
    facts = json.loads((of_file / "run.json").read_text())
    assert [one["model"] for one in facts["teachers"]] == [str(soft)]
    assert "soft.jsonl" in (of_file / "model" / "README.md").read_text()
    assert run(kdbert, *student, "--teacher", soft, "--output-dir", tmp_path / "b") == of_file  # already finished
    if kind == "class":
        both = run(
            kdbert,
            *student,
            "--method",
            "multi-kd",
            "--teacher",
            soft,
            "--teacher",
            teacher,
            "--output-dir",
            tmp_path / "c",
        )
        assert len(json.loads((both / "run.json").read_text())["teachers"]) == 2
        for words in (["table", tmp_path], ["report", tmp_path, "-o", tmp_path / "r.html"]):
            done = kdbert(*words)
            assert done.code == 0, done.err


# ---- what a file says


def spec_of(folder: Path, kind: str) -> TaskSpec:
    files(folder, kind)
    return custom_task(str(folder / "train.jsonl"), str(folder / "dev.jsonl"))


def logits(folder: Path, kind: str, rows: list[dict[str, Any]], **options: Any) -> list[list[float]]:
    """The logits that a file gives to the examples with these rows."""
    import numpy as np

    from kdbert.data.encode import Encoded

    spec = spec_of(folder, kind)
    part = spec.load("train", None)
    tokens = int(part.word_offsets[-1]) if part.words else len(part)
    data = Encoded(
        np.zeros(tokens, np.int32), None, np.arange(len(part) + 1), None, 0, 0,
        word_tokens=np.arange(tokens) if part.words else None,
    )  # fmt: skip
    found: list[list[float]] = (
        SoftLabels(str(put(folder / "soft.jsonl", rows)), **options).logits(spec, part, data).tolist()
    )
    return found


def shares(number: int) -> dict[str, float]:
    return {"yes": 0.25, "no": 0.75, "Maybe": 0.0} if number % 2 else {"no": 0.1, "yes": 0.2, "maybe": 0.7}


@pytest.mark.parametrize("by", ["id", "text", "text_sha256"])
def test_probabilities_by_name_become_logarithms_in_the_tasks_order(tmp_path: Path, by: str) -> None:
    keys = {"id": str, "text": TEXTS.__getitem__, "text_sha256": lambda number: text_digest(TEXTS[number])}
    rows = [{by: keys[by](number), "probabilities": shares(number)} for number in range(40)]
    found = logits(tmp_path, "class", rows[::-1])
    assert found[1] == pytest.approx([math.log(FLOOR), math.log(0.75), math.log(0.25)])  # maybe, no, yes
    assert found[2] == pytest.approx([math.log(0.7), math.log(0.1), math.log(0.2)])


def test_probabilities_of_several_classes_are_each_of_its_own(tmp_path: Path) -> None:
    found = logits(tmp_path, "multi_label", [{"id": n, "probabilities": {"law": 1, "art": 0.5}} for n in range(32)])
    assert found[0] == pytest.approx([0.0, math.log(1 - FLOOR) - math.log(FLOOR)], rel=1e-4)


def test_a_text_counts_more_than_an_id_beside_it_and_equal_rows_are_one(tmp_path: Path) -> None:
    rows = [{"id": number + 1, "text": TEXTS[number], "probabilities": shares(number)} for number in range(32)]
    by_id = [{"id": number, "probabilities": shares(number)} for number in range(32)]
    assert logits(tmp_path, "class", [*rows, rows[0]]) == logits(tmp_path, "class", by_id)


def test_sums_are_made_one_where_that_is_asked(tmp_path: Path) -> None:
    rows = [{"id": n, "probabilities": {"no": 1, "yes": 2, "maybe": 1}} for n in range(32)]
    assert logits(tmp_path, "class", rows, renormalise=True)[0] == pytest.approx([math.log(0.25)] * 2 + [math.log(0.5)])


GOOD = {"no": 0.5, "yes": 0.25, "maybe": 0.25}
FAULTS: dict[str, tuple[str, dict[str, Any] | None, str]] = {
    "a missing text": ("class", None, "1 of 32 training texts .id 3"),
    "an unknown label": ("class", {"id": 3, "probabilities": {**GOOD, "perhaps": 0.0}}, "line 4: .*perhaps"),
    "a label that lacks": ("class", {"id": 3, "probabilities": {"no": 0.5, "yes": 0.5}}, "line 4: .*maybe"),
    "another sum": ("class", {"id": 3, "probabilities": {**GOOD, "no": 0.9}}, "line 4: .*1.4.*renormalise"),
    "a negative one": ("class", {"id": 3, "probabilities": {"no": -0.5, "yes": 1.5, "maybe": 0}}, "line 4: .*negative"),
    "not a number": ("class", {"id": 3, "logits": {"no": 1.0, "yes": float("nan"), "maybe": 0.0}}, "line 4: "),
    "a word": ("class", {"id": 3, "logits": {"no": "high", "yes": 1, "maybe": 0}}, "line 4: .*high"),
    "both": ("class", {"id": 3, "logits": GOOD, "probabilities": GOOD}, "line 4: .*either"),
    "neither": ("class", {"id": 3, "scores": GOOD}, "line 4: .*either"),
    "nothing that names the text": ("class", {"probabilities": GOOD}, "line 4: .*which text"),
    "two that differ": ("class", {"id": 2, "probabilities": {"no": 1, "yes": 0, "maybe": 0}}, "line 4: .*other soft"),
    "two by other names": ("class", {"text": TEXTS[2], "probabilities": {"no": 1, "yes": 0, "maybe": 0}}, "line 4: "),
    "beyond 32 bits": ("class", {"id": 3, "logits": {"no": 1e300, "yes": 1, "maybe": 0}}, "line 4: .*32 bits"),
    "beyond 64 bits": ("class", {"id": 3, "logits": {"no": 10**400, "yes": 1, "maybe": 0}}, "line 4: .*32 bits"),
    "true": ("class", {"id": 3, "probabilities": {"no": True, "yes": 0, "maybe": 0}}, "line 4: .*True"),
    "all zero": ("class", {"id": 3, "probabilities": {"no": 0, "yes": 0, "maybe": 0}}, "line 4: .*sum to 0"),
    "another text": ("class", {"id": 3, "text": "of another set", "probabilities": GOOD}, "id 3.*leave the text out"),
    "a list": ("class", {"id": 3, "logits": [1, 2, 3]}, "line 4: .*an object"),
    "above one": ("multi_label", {"id": 3, "probabilities": {"law": 1.5, "art": 0}}, "line 4: .*above 1"),
    "other words": ("token", {"id": 3, "logits": [{"O": 1, "B-X": 0}]}, "line 4: .*1 words"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_told_with_file_and_line(tmp_path: Path, case: str) -> None:
    kind, row, told = FAULTS[case]
    good: dict[str, Any] = {"probabilities": GOOD if kind == "class" else {"law": 0.5, "art": 0.5}}
    rows = [{"id": number, **good} for number in range(32)]
    if kind == "token":
        rows = [{"id": n, "logits": [{"O": 1, "B-X": 0}] * len(TEXTS[n].split())} for n in range(32)]
    rows[3:4] = [] if row is None else [row]
    with pytest.raises(UserError, match=told) as error:
        logits(tmp_path, kind, rows)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method", "cka-i"], "hidden states"),
        (["--teacher-labels", "a,b"], "labels"),
        (["--diagnose"], "hidden states"),
    ],
)
def test_what_needs_more_than_answers_is_refused_before_training(
    kdbert: KDBERT, tiny_bert: Path, tmp_path: Path, words: list[str], told: str
) -> None:
    rows = [{"id": number, "probabilities": GOOD} for number in range(32)]
    data = [*files(tmp_path, "class"), "--teacher", put(tmp_path / "soft.jsonl", rows), "--student", tiny_bert]
    for more in ([], ["--dry-run"]):
        done = kdbert("distill", *data, *words, *more, "--runs-dir", tmp_path / "runs")
        assert (done.code, told in done.err) == (2, True), done.err
    assert not (tmp_path / "runs").exists()


def test_without_any_label_the_classes_are_those_of_the_file(kdbert: KDBERT, tiny_bert: Path, tmp_path: Path) -> None:
    train = put(tmp_path / "train.jsonl", [{"text": text} for text in TEXTS[:32]])
    dev = put(tmp_path / "dev.jsonl", [{"text": TEXTS[32 + n], "label": n % 3} for n in range(6)])
    soft = put(tmp_path / "soft.jsonl", [{"id": n, "logits": {"2": 0, "1": n, "0": 1}} for n in range(32)])
    words = ["--task", "custom", "--train-file", train, "--dev-file", dev, "--teacher", soft, "--max-length", 32]
    alone = kdbert("distill", *words, "--runs-dir", tmp_path / "runs")
    assert (alone.code, "--student" in alone.err) == (2, True), alone.err
    done = kdbert("distill", *words, "--student", tiny_bert, "--epochs", 1, "--runs-dir", tmp_path / "runs", "-q")
    assert done.code == 0, done.err
    assert json.loads((Path(done.out.strip()) / "run.json").read_text())["task"]["labels"] == ["2", "1", "0"]


def test_scores_have_no_soft_labels(kdbert: KDBERT, tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{"text": text, "score": number / 7} for number, text in enumerate(TEXTS)]
    train, dev = put(tmp_path / "train.jsonl", rows[:32]), put(tmp_path / "dev.jsonl", rows[32:])
    soft = put(tmp_path / "soft.jsonl", [{"id": 0, "logits": {"a": 1}}])
    words = ["--task", "custom", "--train-file", train, "--dev-file", dev, "--teacher", soft, "--student", tiny_bert]
    done = kdbert("distill", *words, "--max-length", 32)
    assert (done.code, "soft labels are of classes" in done.err) == (2, True), done.err
    gone = kdbert("distill", *words[:-3], tmp_path / "none.jsonl", *words[-2:], "--max-length", 32)
    assert (gone.code, "none.jsonl" in gone.err) == (2, True), gone.err
