"""Own data of several classes and of tagged words: the same runs as the registered tasks', and every command works."""

from __future__ import annotations

import gzip
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kdbert.disk.files import sha256
from kdbert.tasks.blurb import HALLMARKS

KDBERT = Any
FOLDERS = {"hoc": "blurb/seqcls/HoC_hf", "ncbi-disease": "blurb/tokcls/NCBI-disease_hf"}
FORMS = {"hoc": ("jsonl", "columns"), "ncbi-disease": ("conll", "jsonl", "saved")}
SPLITS = {"train": 40, "dev": 24, "test": 24}
HOW = ["--max-length", 48, "--epochs", 1, "--batch-size", 8, "--precision", "fp32", "--quiet"]


def rows_of(file: Path, most: int) -> list[dict[str, Any]]:
    """The first rows of a file of BLURB, and of HoC's training rows the first of each class."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    first = {}
    for number, row in enumerate(rows if "HoC" in str(file) else []):
        for place, mark in enumerate(row["label"]):
            if mark:
                first.setdefault(place, number)
    chosen = sorted({*first.values(), *range(most - len(first))})
    return [rows[number] for number in chosen]


def conll(rows: list[dict[str, Any]]) -> str:
    return "\n".join(
        "".join(f"{word}\t{tag}\n" for word, tag in zip(row["tokens"], row["ner_tags"], strict=True)) for row in rows
    )


def save(rows: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """A saved dataset with all splits, whose tags are numbers with names."""
    import datasets

    names, text = ["O", "B", "I"], datasets.List(datasets.Value("string"))
    features = datasets.Features({"tokens": text, "ner_tags": datasets.List(datasets.ClassLabel(names=names))})
    parts = {
        {"dev": "validation"}.get(split, split): datasets.Dataset.from_dict(
            {
                "tokens": [row["tokens"] for row in some],
                "ner_tags": [[*map(names.index, row["ner_tags"])] for row in some],
            },
            features=features,
        )
        for split, some in rows.items()
    }
    datasets.DatasetDict(parts).save_to_disk(str(folder))


def write(task: str, form: str, rows: dict[str, list[dict[str, Any]]], folder: Path) -> list[Any]:
    """Own files with these rows; the flags that name them."""
    if form == "saved":
        save(rows, folder / "saved")
        return ["--train-file", folder / "saved"]
    files = {split: folder / f"{split}.{'csv' if form == 'columns' else form}" for split in rows}
    for split, some in rows.items():
        if form == "conll":
            text = conll(some)
        elif task == "ncbi-disease":
            text = "".join(json.dumps({"tokens": row["tokens"], "ner_tags": row["ner_tags"]}) + "\n" for row in some)
        elif form == "jsonl":
            named = [[name for name, mark in zip(HALLMARKS, row["label"], strict=True) if mark] for row in some]
            both = zip(some, named, strict=True)
            text = "".join(json.dumps({"sentence": row["sentence"], "labels": names}) + "\n" for row, names in both)
        else:
            header = ",".join(["sentence", *HALLMARKS])
            cells = [json.dumps(row["sentence"], ensure_ascii=False).replace('\\"', '""') for row in some]
            lines = [",".join([cell, *map(str, row["label"])]) for cell, row in zip(cells, some, strict=True)]
            text = "\n".join([header, *lines]) + "\n"
        files[split].write_text(text, encoding="utf-8")
    flags = [word for split, file in files.items() for word in (f"--{split}-file", file)]
    return [*flags, *(["--label-column", ",".join(HALLMARKS)] if form == "columns" else [])]


class World:
    """Runs of registered tasks and of own data on the same rows, each made once."""

    def __init__(self, place: Path, data: Path, model: Path, kdbert: KDBERT) -> None:
        self.place, self.model, self.kdbert = place, model, kdbert
        self.rows = {
            task: {split: rows_of(data / folder / f"{split}.json.gz", most) for split, most in SPLITS.items()}
            for task, folder in FOLDERS.items()
        }
        self.made: dict[tuple[str, str], tuple[Path, list[Any]]] = {}

    def run(self, task: str, form: str = "") -> tuple[Path, list[Any]]:
        """A fine-tuned model, and the flags that name its data; without a form that of the registered task."""
        if (task, form) not in self.made:
            folder = self.place / f"{task}{form}"
            if form:
                folder.mkdir()
                words = ["--task", "custom", *write(task, form, self.rows[task], folder)]
            else:
                (folder / FOLDERS[task]).mkdir(parents=True)
                for split, some in self.rows[task].items():
                    text = "".join(json.dumps(row) + "\n" for row in some)
                    (folder / FOLDERS[task] / f"{split}.json").write_text(text, encoding="utf-8")
                words = ["--task", task, "--data-dir", folder]
            out = folder / "run"
            done = self.kdbert("finetune-teacher", *words, "--model", self.model, *HOW, "--output-dir", out)
            assert done.code == 0, done.err
            self.made[task, form] = out, words
        return self.made[task, form]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, tiny_bert: Path, kdbert: KDBERT) -> World:
    return World(tmp_path_factory.mktemp("heads"), data_dir, tiny_bert, kdbert)


def facts(run: Path) -> Any:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def predictions(run: Path, split: str = "test") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "predictions" / f"{split}.jsonl").read_text().splitlines()]


CASES = [
    pytest.param(task, form, marks=[] if form == forms[0] else pytest.mark.long)
    for task, forms in FORMS.items()
    for form in forms
]


@pytest.mark.real_data
@pytest.mark.parametrize(("task", "form"), CASES)
def test_own_files_with_a_tasks_rows_give_the_tasks_run(world: World, task: str, form: str) -> None:
    registered, own = world.run(task)[0], world.run(task, form)[0]
    assert sha256(own / "model" / "model.safetensors") == sha256(registered / "model" / "model.safetensors")
    for split in ("dev", "test"):
        both = [[{**row, "id": ""} for row in predictions(run, split)] for run in (registered, own)]
        assert both[0] == both[1]
    assert facts(own)["metrics"]["dev"].keys() == {
        *(("micro_f1", "macro_f1") if task == "hoc" else facts(registered)["metrics"]["dev"])
    }
    assert facts(registered)["data"]
    configurations = [json.loads((run / "model" / "config.json").read_text()) for run in (registered, own)]
    assert configurations[0]["id2label"] == configurations[1]["id2label"]


FIRST = [(task, forms[0]) for task, forms in FORMS.items()]


@pytest.mark.real_data
@pytest.mark.parametrize(("task", "form"), FIRST)
def test_other_files_are_scored_and_answered(
    world: World, task: str, form: str, kdbert: KDBERT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, _ = world.run(task, form)
    test, selection = run.parent / f"test.{form}", facts(run)["selection"]
    scored = kdbert("evaluate", run, "--test-file", test)
    assert scored.code == 0, scored.err
    assert f"{facts(run)['metrics']['test'][selection]:.4f}" in scored.out
    answered = kdbert("predict", run, test, "-q")
    assert answered.code == 0, answered.err
    expected = [row["prediction"] for row in predictions(run)]
    assert [json.loads(line)["prediction"] for line in answered.out.splitlines()] == expected


@pytest.mark.real_data
@pytest.mark.long
@pytest.mark.parametrize(("task", "form"), FIRST)
def test_every_command_takes_such_a_run(
    world: World, task: str, form: str, kdbert: KDBERT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, words = world.run(task, form)
    shared = [*words, *HOW, "--student-layers", 2, "--runs-dir", tmp_path / "runs"]
    kd = kdbert("distill", *shared, "--teacher", run, "--method", "cka-i", "--baseline")
    assert kd.code == 0, kd.err
    student = Path(kd.out.strip())
    again = kdbert("distill", *shared, "--teacher", run, "--method", "cka-i", "--baseline")
    assert (again.code, Path(again.out.strip())) == (0, student)
    card = (student / "model" / "README.md").read_text(encoding="utf-8")
    assert re.search(r"tagger|any number of classes", card)
    for command in (
        ["table", tmp_path / "runs", "--baseline", "finetune"],
        ["report", tmp_path / "runs", "-o", tmp_path / "report.html"],
        ["export", student],
        ["benchmark", run, student, "--output-dir", tmp_path / "b", "--rounds", 1],
    ):
        done = kdbert(*command)
        assert done.code == 0, (command, done.err)


@pytest.mark.real_data
def test_a_dev_share_is_the_same_for_teacher_student_and_later_commands(
    world: World, kdbert: KDBERT, tmp_path: Path, tiny_bert: Path
) -> None:
    task, form = "ncbi-disease", "conll"
    train = world.run(task, form)[0].parent / f"train.{form}"
    words = ["--task", "custom", "--train-file", train, "--dev-share", 0.25, *HOW, "--runs-dir", tmp_path / "runs"]
    done = kdbert("distill", *words, "--teacher-model", tiny_bert, "--student-layers", 1, "--seed", 2)
    assert done.code == 0, done.err
    student = Path(done.out.strip())
    (teacher,) = (path.parent for path in (tmp_path / "runs").rglob("run.json") if path.parent != student)
    ids = [[row["id"] for row in predictions(run, "dev")] for run in (student, teacher)]
    assert ids[0] == ids[1]
    assert 5 <= len(ids[0]) <= 15
    before = predictions(student, "dev")
    scored = kdbert("evaluate", student)
    assert scored.code == 0, scored.err
    assert predictions(student, "dev") == before
    assert all(int(one) < int(other) for one, other in pairwise(ids[0]))
