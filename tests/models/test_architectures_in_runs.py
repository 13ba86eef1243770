"""Every model type in whole runs: fine-tuned, as the teacher of a BERT, as a student cut to half its depth.

A run's predictions, a fresh `from_pretrained` of its model, and `kdbert evaluate` at several batch sizes agree with the
library's own logits (eager attention, one text at a time, no padding). `scripts/test-long` runs this and writes what it
found into docs/models.md.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from conftest import make_bert
from kdbert import Recipe, distill, finetune
from kdbert.cli.dry_run import print_plan
from kdbert.errors import UserError
from kdbert.export import ExportRefused, export_model
from kdbert.heads import SingleLabel, Tokens
from kdbert.models.load import auto_class
from kdbert.models.way import Way, decide
from kdbert.recipe.defaults import resolve_finetune
from kdbert.runs.evaluate import evaluate
from kdbert.runs.folder import RunResult
from small_architectures import LAYERS, PAIR, library_logits, make_model, texts, variant_of, variants

pytestmark = pytest.mark.long
CLOSE = 1e-5  # times the largest logit where that is above 1
ROWS = 24
TAGS = ("O", "B", "I")
HEADS = {"words": Tokens(), "texts": SingleLabel(), "pairs": SingleLabel()}


class Task:
    """Files of a small task, of texts, of pairs, or of words, and how the library reads its dev split."""

    def __init__(self, folder: Path, form: str) -> None:
        self.form = form
        self.first: list[Any] = texts(ROWS)
        self.second = texts(ROWS, seed=1) if form == "pairs" else None
        self.flags: dict[str, Any] = {"train.precision": "fp32", "train.epochs": 1, "train.batch_size": 8}
        folder.mkdir(parents=True)
        if form == "words":
            self.first = [text.split() for text in self.first]
            rows = [
                {
                    "tokens": words,
                    "ner_tags": [TAGS[(i + len(words)) % 3] for i in range(len(words))],
                    "id": str(number),
                }
                for number, words in enumerate(self.first)
            ]
            for split in ("train", "dev", "test"):
                (folder / f"{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            self.flags |= {"task.name": "ncbi-disease", "task.data_dir": str(folder)}
        else:
            names = ["sentence1", "sentence2", "label"] if self.second else ["text", "label"]
            lines = [",".join(names)]
            for number, text in enumerate(self.first):
                cells = [text, *([self.second[number]] if self.second else []), PAIR[number % 2]]
                lines.append(",".join(cells))
            for split in ("train", "dev"):
                (folder / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
            files = {"task.train_file": str(folder / "train.csv"), "task.dev_file": str(folder / "dev.csv")}
            self.flags |= {"task.name": "custom", **files}

    @property
    def labels(self) -> tuple[str, ...]:
        return TAGS if self.form == "words" else PAIR

    def library(self, folder: Path, max_length: int) -> list[np.ndarray]:
        """Logits of what has a label: [C] of each text, [words, C] of each sentence."""
        from transformers import AutoTokenizer

        model = auto_class(HEADS[self.form]).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        found = library_logits(model, tokenizer, self.first, self.second, max_length)
        if self.form != "words":
            return found
        words = []
        for text, logits in zip(self.first, found, strict=True):
            coded = tokenizer(text, is_split_into_words=True, truncation=True, max_length=max_length).word_ids()
            firsts = {word: place for place, word in reversed(list(enumerate(coded))) if word is not None}
            words.append(np.stack([logits[firsts[number]] for number in sorted(firsts)]))
        return words

    def recipe(self, folder: Path, **flags: Any) -> Recipe:
        """A run of this task in a folder."""
        places = {"output.dir": str(folder), "output.runs_dir": str(folder.parent / "runs")}
        return Recipe.build(flags={**self.flags, **places, "train.learning_rate": 1e-4, **flags})


def scores(file: Path) -> list[np.ndarray]:
    """What a predictions file has."""
    return [np.array(json.loads(line)["scores"]) for line in file.read_text(encoding="utf-8").splitlines()]


def apart(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest difference of a logit, a share of the largest logit where that is above 1.

    Words that were cut off have no logits in the library; what the run says of them is not compared.
    """
    largest = max(1.0, *(float(np.abs(one).max()) for one in expected))
    parts = [one[: len(other)] if other.ndim == 2 else one for one, other in zip(found, expected, strict=True)]
    return max(float(np.abs(one - other).max()) for one, other in zip(parts, expected, strict=True)) / largest


def difference(task: Task, run: RunResult, length: int) -> float:
    """How far the run's predictions, and `evaluate` at batch sizes 1, 8 and 64, are from the library."""
    expected = task.library(run.path / "model", length)
    found = [apart(scores(run.path / "predictions" / "dev.jsonl"), expected)]
    for size in (1, 8, 64):
        out = run.path.parent / f"{run.path.name}-{size}"
        evaluate(str(run.path), precision="fp32", batch_size=size, output_dir=str(out))
        found.append(apart(scores(out / "dev.jsonl"), expected))
    return max(found)


def exported(run: RunResult) -> float | str:
    """How far the run's model as ONNX is from the model itself; `kdbert export` keeps it only if that is little."""
    try:
        checks = export_model(str(run.path)).about["checks"]["dev"]
    except ExportRefused:
        return "refused"
    return float(checks["largest_difference"]) / max(1.0, float(checks["largest_logit"]))


def note(name: str, form: str, way: Way, found: dict[str, Any]) -> None:
    """Keep what was found, for docs/models.md, where somebody asked for it."""
    folder = os.environ.get("KDBERT_FINDINGS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        content = {"name": name, "form": form, "way": way.record(), "found": found}
        (Path(folder) / f"{name.replace(' ', '_')}-{form}.json").write_text(json.dumps(content), encoding="utf-8")


CASES = [
    *((name, form) for name in variants("sequence") for form in ("texts", "pairs")),
    *((name, "words") for name in variants("token")),
]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_runs_answer_as_the_library(tmp_path: Path, name: str, form: str) -> None:
    variant = variant_of(name)
    task = Task(tmp_path / "data", form)
    head = "token" if form == "words" else "sequence"
    model = make_model(tmp_path / "model", variant, head, task.labels)
    from transformers import AutoConfig

    way = decide(AutoConfig.from_pretrained(model), HEADS[form], name)
    length = min(64, way.limit or 64)
    task.flags["task.max_length"] = length
    found: dict[str, Any] = {}

    recipe = task.recipe(tmp_path / "tuned", **{"student.model": str(model), "method.name": "finetune"})
    print_plan(resolve_finetune(recipe))  # --dry-run
    tuned = finetune(recipe)
    found["fine-tuned"] = difference(task, tuned, length)

    bert = make_bert(tmp_path / "bert", layers=2)
    taught = distill(
        task.recipe(tmp_path / "taught", **{
            "student.model": str(bert), "method.name": "kd", "teachers": [{"model": str(tuned.path)}],
            "task.max_length": min(length, 62),
        }),
        baseline=False,
    ) if form != "words" or variant.special[0] == "[PAD]" else None  # words are compared by their tokens  # fmt: skip
    if taught is not None:
        kept = _kept_of_train(tmp_path / "runs")
        found["teacher"] = _stored(task, kept, tuned.path / "model", min(length, 62))
        found["its student"] = difference(task, taught, min(length, 62))

    for init in ("first", "even", "last"):
        flags = {"student.model": str(model), "student.layers": LAYERS // 2, "student.init": init}
        recipe = task.recipe(tmp_path / init, **flags, **{"method.name": "finetune"})
        try:
            found[init] = difference(task, distill(recipe, baseline=False), length)
        except UserError:
            found[init] = "refused" if not (tmp_path / init).exists() else "refused too late"
    if form == "pairs":
        found["export"] = exported(tuned)
    note(name, form, way, found)
    right = {
        role for role, value in found.items() if value == "refused" or (value != "refused too late" and value <= CLOSE)
    }
    far = {role: value for role, value in found.items() if role not in right}
    assert not far, f"{way.words()}: {far}"


def _kept_of_train(runs: Path) -> np.ndarray:
    """The teacher's logits on the training split, as they are kept."""
    for folder in (runs / ".teacher-outputs").iterdir():
        if json.loads((folder / "about.json").read_text(encoding="utf-8"))["split"] == "train":
            return load_file(folder / "logits.safetensors")["logits"]
    raise AssertionError("nothing is kept")


def _stored(task: Task, kept: np.ndarray, model: Path, length: int) -> float:
    """How far what is kept of a teacher is from the library; the training split has the same texts as dev."""
    expected = task.library(model, length)
    if task.form != "words":
        return apart(list(kept), expected)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    start, found = 0, []
    for text in task.first:
        places = tokenizer(text, is_split_into_words=True, truncation=True, max_length=length).word_ids()
        firsts = {word: place for place, word in reversed(list(enumerate(places))) if word is not None}
        found.append(kept[[start + firsts[number] for number in sorted(firsts)]])
        start += len(places)
    return apart(found, expected)
