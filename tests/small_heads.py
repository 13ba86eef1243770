"""Small tasks of other heads than one class: tags of words, any number of classes. Their files are made here."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from conftest import WORDS, make_bert
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import resolve_distill
from kdbert.tasks import get_task

TOLD = {"cat": "B", "dog": "B", "red": "I"}  # what a word's tag is
TASKS = {"token": "ncbi-disease", "multi_label": "hoc"}


def write_tags(folder: Path, rows: int, seed: int) -> list[dict[str, Any]]:
    """Sentences of which a few words are entities; `Unbelievable` is several tokens."""
    draw = random.Random(seed)
    records = []
    for number in range(rows):
        words = draw.choices([*WORDS, *TOLD, *TOLD, "Unbelievable"], k=draw.randint(1, 20))
        records.append({"tokens": words, "ner_tags": [TOLD.get(word, "O") for word in words], "id": str(number)})
    return records


def write_sets(folder: Path, rows: int, seed: int) -> list[dict[str, Any]]:
    """Sentences of documents of three; class i is there where the i-th telling word is."""
    draw = random.Random(seed)
    telling = "cat dog man woman red blue small large good bad".split()
    records = []
    for number in range(rows):
        words = draw.choices([*WORDS, *telling], k=draw.randint(2, 20))
        label = [int(word in words) for word in telling]
        records.append({"sentence": " ".join(words), "label": label, "id": f"{number // 3}_s{number % 3}"})
    return records


@dataclass(frozen=True)
class HeadSetting:
    """Files of a small task of another head, its teacher, and what the student is cut from."""

    kind: str
    data_dir: Path
    teacher: Path
    student: Path

    def keys(self, **changes: Any) -> dict[str, Any]:
        """Recipe keys: two layers of the student, batch 16, one epoch; `changes` are keys of `train`, or dotted."""
        keys = {
            "task.name": TASKS[self.kind],
            "task.data_dir": str(self.data_dir),
            "task.max_length": 24,
            "teachers": [{"model": str(self.teacher)}],
            "student.model": str(self.student),
            "student.layers": 2,
            "method.name": "kd",
            "train.batch_size": 16,
            "train.epochs": 1,
            "train.learning_rate": 1e-3,
            "train.logging_steps": 1,
        }
        return {**keys, **{key if "." in key else f"train.{key}": value for key, value in changes.items()}}

    def recipe(self, output_dir: Path, **changes: Any) -> Recipe:
        """The same as a resolved recipe."""
        places = {"output.dir": str(output_dir), "output.runs_dir": str(output_dir.parent / "runs")}
        return resolve_distill(Recipe.build(flags={**self.keys(**changes), **places}))

    def words(self, runs_dir: Path, **changes: Any) -> list[str]:
        """The same as words of the command line."""
        keys = self.keys(**changes)
        keys.pop("teachers")
        sets = [word for key, value in keys.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        return ["distill", "--teacher", str(self.teacher), "--no-baseline", "--runs-dir", str(runs_dir), *sets]


def make_setting(kind: str, folder: Path, student: Path) -> HeadSetting:
    """Write 101 training, 31 dev and 31 test examples, and a random teacher whose logits differ by several units."""
    from transformers import BertForSequenceClassification, BertForTokenClassification

    write = {"token": write_tags, "multi_label": write_sets}[kind]
    data = folder / "data"
    data.mkdir(parents=True)
    for seed, (split, rows) in enumerate((("train", 101), ("dev", 31), ("test", 31))):
        content = "".join(json.dumps(record) + "\n" for record in write(folder, rows, seed))
        (data / f"{split}.json").write_text(content, encoding="utf-8")
    labels = list(get_task(TASKS[kind]).labels)
    teacher = make_bert(folder / "teacher", base=False, labels=labels, seed=1)
    head = {"token": BertForTokenClassification, "multi_label": BertForSequenceClassification}[kind]
    torch.manual_seed(2)
    model = head.from_pretrained(teacher, dtype=torch.float32)
    with torch.no_grad():
        model.classifier.weight.mul_(100)
    model.save_pretrained(teacher)
    return HeadSetting(kind, data, teacher, student)
