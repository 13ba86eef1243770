"""The command and the Python functions, from a recipe to a run folder and back."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml

from in_processes import start

COMMANDS = [
    ("finetune-teacher",), ("distill",), ("evaluate",), ("data",), ("data", "list"), ("data", "describe"),
    ("data", "verify"), ("train-memory",), ("sweep",), ("table",), ("methods",),
    ("methods", "list"), ("methods", "show"), ("doctor",),
]  # fmt: skip
GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax")


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights(run: Path) -> str:
    """What a run's weights are known by."""
    return sha256(run / "model" / "model.safetensors")


def manifest(run: Path) -> dict[str, Any]:
    """run.json."""
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


# ---- help and the commands that only tell


OUT_OF_MEMORY = {
    "torch": lambda: torch.empty(10**15),
    "numpy": lambda: numpy.empty(10**15),
    "python": lambda: bytearray(2**62),
}


@pytest.mark.parametrize("place", OUT_OF_MEMORY)
def test_out_of_memory_is_told_with_a_cure(place: str, kdbert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbert.cli.app", lambda **_: OUT_OF_MEMORY[place]())
    ended = kdbert("distill")
    assert ended.code == 1
    assert ended.err.startswith("kdbert: out of memory")
    assert ended.err.count("\n") == 1
    for cure in ("--batch-size", "train.accumulation", "--max-length"):
        assert cure in ended.err


def test_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "kdbert", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(command[0] in done.stdout for command in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['kdbert', '--help']\nfrom kdbert.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code or 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'numpy', 'sklearn', 'scipy', 'pydantic'}\n"
        "print('heavy:', code, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "heavy: 0 []", done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(kdbert: Callable[..., Any], command: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        done = kdbert(*command, flag)
        assert done.code == 0, done.err
        assert "Usage:" in done.out


def test_version(kdbert: Callable[..., Any]) -> None:
    from kdbert import __version__

    assert kdbert("--version").out == f"kdbert {__version__}\n"


def test_methods_are_listed_with_their_aliases(kdbert: Callable[..., Any]) -> None:
    done = kdbert("methods")
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines() if line.strip()}
    assert "hinton" in lines["kd"]
    assert "finetune" in lines
    assert kdbert("methods", "list").out == done.out


def test_a_method_shows_formula_paper_options_and_defaults(kdbert: Callable[..., Any]) -> None:
    done = kdbert("methods", "show", "kd")
    assert done.code == 0
    for word in (
        "alpha = 0.5",
        "temperature = 5.0",
        "variant = corrected",
        "KL(",
        "Hinton",
        "2015",
        "1503.02531",
        "teachers: 1",
    ):
        assert word in done.out
    assert kdbert("methods", "show", "hinton").out == done.out
    assert "teachers: none" in kdbert("methods", "show", "finetune").out


def test_tasks_are_listed(kdbert: Callable[..., Any]) -> None:
    done = kdbert("data", "list")
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines() if line.strip()}
    assert {*GLUE, "clinc150", "quickstart", "custom"} <= set(lines)
    assert "all" in lines["quickstart"].split()  # its files are in the package
    assert "151" in lines["clinc150"].split()
    assert kdbert("data").out == done.out


def test_quickstart_is_described_and_verified(kdbert: Callable[..., Any]) -> None:
    done = kdbert("data", "describe", "quickstart")
    assert done.code == 0
    for word in ("896 rows", "224 rows", "320 rows", "block_card", "CC0", "16 classes", "accuracy"):
        assert word in done.out
    done = kdbert("data", "verify", "quickstart")
    assert done.code == 0
    assert done.out.count("as published") == 3


@pytest.mark.real_data
def test_real_files_are_described_and_verified(kdbert: Callable[..., Any], glue_dir: Path, data_dir: Path) -> None:
    done = kdbert("data", "verify", "rte", "--data-dir", glue_dir)
    assert (done.code, done.out.count("as published")) == (0, 3)
    assert kdbert("data", "verify", "CLINC150", "--data-dir", data_dir).code == 0
    done = kdbert("data", "verify", "olid-a", "--data-dir", data_dir)
    assert (done.code, done.out.count("as published"), done.out.count("as kdbert divides the file")) == (0, 1, 2)
    done = kdbert("data", "describe", "rte", "--data-dir", glue_dir)
    assert "entailment 1249, not_entailment 1241" in done.out
    assert "3000 rows" in done.out
    assert "no labels" in done.out
    assert "mean 2.70" in kdbert("data", "describe", "stsb", "--data-dir", glue_dir).out
    done = kdbert("data", "verify", "qnli", "--data-dir", glue_dir)  # its training file is not there
    assert done.code == 2
    assert "train: missing" in done.out
    assert "1 of 3 splits of 'qnli'" in done.err
    listed = kdbert("data", "list", "--data-dir", glue_dir).out
    assert re.search(r"^qnli .*dev, test", listed, re.MULTILINE)


def test_a_file_cut_at_a_line_end_is_found_by_its_row_count(kdbert: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "WNLI").mkdir()
    for split in ("train", "dev", "test"):
        label = "" if split == "test" else "\t1"
        text = "index\tsentence1\tsentence2" + label.replace("1", "label") + f"\n0\ta\tb{label}\n"
        (tmp_path / "WNLI" / f"{split}.tsv").write_text(text, encoding="utf-8")
    done = kdbert("data", "verify", "wnli", "--data-dir", tmp_path)
    assert done.code == 2
    assert "1 rows, published: 71" in done.out


def test_doctor_says_what_is_here(kdbert: Callable[..., Any]) -> None:
    done = kdbert("doctor", "--hub-timeout", 0.2)
    assert done.code == 0, done.err
    for word in ("python", "torch", "transformers", "precision", "bf16 units", "cuda", "Hub", "threads", "quickstart"):
        assert word in done.out


# ---- runs


@pytest.fixture(scope="module")
def common(custom_files: tuple[Path, Path]) -> list[Any]:
    """Flags of a small run that both training commands take."""
    return [
        "--task", "custom", "--train-file", custom_files[0], "--dev-file", custom_files[1], "--max-length", 32,
        "--epochs", 2, "--batch-size", 16, "--learning-rate", 2e-3,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def easy_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A csv task whose last word decides the label: 140 rows and 52 others, learned by any model that learns."""
    folder = tmp_path_factory.mktemp("easy")
    words = {"positive": ("good", "great", "happy"), "negative": ("bad", "poor", "sad")}
    things = ("book", "film", "cat", "dog", "man", "woman", "time", "people")
    rows = [
        f"the {thing} was {how} {word},{label}"
        for thing in things for how in ("very", "all", "so", "not") for label, some in words.items() for word in some
    ]  # fmt: skip
    random.Random(0).shuffle(rows)
    for name, part in (("train.csv", rows[:140]), ("dev.csv", rows[140:])):
        (folder / name).write_text("\n".join(["text,label", *part]) + "\n", encoding="utf-8")
    return folder / "train.csv", folder / "dev.csv"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, easy_files: tuple[Path, Path]) -> Path:
    """A run of finetune-teacher, made through Python."""
    from kdbert import Recipe, finetune

    train, dev = map(str, easy_files)
    result = finetune(Recipe.of({
        "task": {"name": "custom", "train_file": train, "dev_file": dev, "max_length": 32},
        "student": {"model": str(tiny_bert)},
        "method": "finetune",
        "train": {"epochs": 5, "batch_size": 8, "learning_rate": 2e-3},
        "output": {"runs_dir": str(tmp_path_factory.mktemp("teachers"))},
    }))  # fmt: skip
    return result.path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, teacher: Path, custom_files: tuple[Path, Path]) -> Path:
    """A finished kd run, made through Python; tests leave it as it is."""
    from kdbert import Recipe, distill

    train, dev = map(str, custom_files)
    result = distill(Recipe.of({
        "task": {"name": "custom", "train_file": train, "dev_file": dev, "max_length": 32},
        "teachers": [{"model": str(teacher)}],
        "student": {"layers": 2},
        "method": {"name": "kd", "alpha": 0.4},
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 2e-3},
        "output": {"runs_dir": str(tmp_path_factory.mktemp("runs"))},
    }))  # fmt: skip
    return result.path


def test_python_api_from_teacher_to_scores(
    tmp_path: Path, tiny_bert: Path, easy_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdbert import Recipe, distill, evaluate, finetune

    monkeypatch.chdir(tmp_path)
    base: dict[str, Any] = {
        "task.name": "custom", "task.train_file": str(easy_files[0]), "task.dev_file": str(easy_files[1]),
        "task.max_length": 32, "train.epochs": 5, "train.batch_size": 8, "train.learning_rate": 2e-3,
    }  # fmt: skip
    taught = finetune(Recipe.build(flags={**base, "method.name": "finetune", "student.model": str(tiny_bert)}))
    assert taught.path.parent == Path("runs/custom/finetune")
    assert (taught.path / "model" / "config.json").is_file()
    result = distill(Recipe.build(flags={**base, "teachers": [{"model": str(taught.path)}], "student.layers": 2}))
    assert re.fullmatch(r"runs/custom/kd/tiny-bert-first2-[0-9a-f]{8}-seed1", str(result.path))
    assert set(result.metrics["dev"]) == {"accuracy", "macro_f1"}
    assert result.selection == "accuracy"
    assert result.parameters < taught.parameters
    assert result.size_mib == pytest.approx(
        (result.path / "model" / "model.safetensors").stat().st_size / 2**20, abs=0.01
    )
    assert taught.metrics["dev"]["accuracy"] > 0.9
    assert result.metrics["dev"]["accuracy"] > 0.9
    assert taught.manifest["constant_answer"]["dev"]["accuracy"] < 0.7
    scored = evaluate(str(result.path))
    assert scored.task == "custom"
    assert scored.metrics == {"dev": pytest.approx(result.metrics["dev"])}
    assert scored.files == [result.path / "predictions" / "dev.jsonl"]


def test_the_run_folder_holds_what_it_should(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"recipe.yaml", "run.json", "metrics.jsonl", "predictions", "model"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not names & {"checkpoints", "run.lock"}
    assert not [path for path in run.rglob("*") if path.name.endswith(".tmp")]
    facts = manifest(run)
    assert facts["status"] == "finished"
    for key in (
        "metrics",
        "fingerprints",
        "timings",
        "environment",
        "recipe",
        "parameters",
        "teachers",
        "constant_answer",
        "precision",
    ):
        assert facts[key], key
    assert facts["recipe"] == yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    assert {"torch", "transformers", "kdbert"} <= set(facts["environment"]["versions"])
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in steps] == sorted(line["step"] for line in steps)
    assert {"loss", "loss/hard", "loss/soft", "learning_rate", "grad_norm"} <= set(steps[0])
    assert steps[0]["loss"] == pytest.approx(0.4 * steps[0]["loss/hard"] + 0.6 * steps[0]["loss/soft"], rel=1e-5)
    assert steps[-1]["dev/accuracy"] == facts["metrics"]["dev"]["accuracy"]
    assert steps[-1]["step"] == facts["steps"] == 2 * 13  # 203 rows in batches of 16


def test_the_recipe_of_a_run_is_that_run(kdbert: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    before = weights(run), (run / "model" / "model.safetensors").stat().st_mtime_ns
    copy = tmp_path / "mine.yaml"
    copy.write_bytes((run / "recipe.yaml").read_bytes())
    done = kdbert("distill", "--config", copy)
    assert done.code == 0, done.err
    assert "already finished" in done.err
    assert "student (kd)" in done.out
    assert done.out.rstrip().endswith(str(run))
    assert (weights(run), (run / "model" / "model.safetensors").stat().st_mtime_ns) == before
    again = kdbert("distill", "--config", copy, "--runs-dir", tmp_path / "elsewhere", "--quiet")
    assert again.code == 0, again.err
    other = Path(again.out.strip())
    assert other.relative_to(tmp_path / "elsewhere") == run.relative_to(run.parents[2])
    assert manifest(other)["metrics"] == manifest(run)["metrics"]
    assert weights(other) == weights(run)


def test_a_finetuning_recipe_is_that_run_too(kdbert: Callable[..., Any], teacher: Path) -> None:
    done = kdbert("finetune-teacher", "--config", teacher / "recipe.yaml", "--quiet")
    assert (done.code, done.out) == (0, f"{teacher}\n"), done.err


def test_quiet_prints_only_the_path(
    kdbert: Callable[..., Any], common: list[Any], teacher: Path, tmp_path: Path
) -> None:
    words = ["distill", *common, "--teacher", teacher, "--student-layers", 1, "--runs-dir", tmp_path, "--quiet"]
    done = kdbert(*words)
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    path = Path(done.out.strip())
    assert manifest(path)["status"] == "finished"
    assert not re.search("training|epoch|step|student:", done.err)  # a warning may stand there, progress not
    again = kdbert(*words)
    assert (again.code, again.out, again.err) == (0, done.out, done.err)


def test_dry_run_tells_everything_and_makes_nothing(
    kdbert: Callable[..., Any], common: list[Any], teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = kdbert("distill", *common, "--teacher", teacher, "--student-init", "2,4", "--dry-run")
    assert done.code == 0, done.err
    assert list(tmp_path.iterdir()) == []
    printed = yaml.safe_load(done.out.split("\nrun folder:")[0])
    assert printed["student"] == {
        "model": str(manifest(teacher)["recipe"]["student"]["model"]),
        "tokenizer": None,
        "layers": 2,
        "init": [2, 4],
        "freeze_embeddings": False,
    }
    assert printed["method"] == {
        "name": "kd",
        "variant": "corrected",
        "alpha": 0.5,
        "temperature": 5.0,
        "standardise_logits": False,
    }
    assert "negative <- its output 0 (negative)" in done.out
    assert "positive <- its output 1 (positive)" in done.out
    assert "steps: 26" in done.out
    assert "train 203, dev 61" in done.out
    assert "student layers: 2, 4 of 4" in done.out
    assert re.search(r"^parameters: student 0\.\d+ M, teacher 0\.\d+ M$", done.out, re.MULTILINE)
    assert re.search(r"^main memory: about \d+\.\d GiB", done.out, re.MULTILINE)
    folder = re.search(r"^run folder: (.+)$", done.out, re.MULTILINE)
    assert folder
    assert re.fullmatch(r"runs/custom/kd/tiny-bert-2-4-[0-9a-f]{8}-seed1", folder[1])
    quiet = kdbert("distill", *common, "--teacher", teacher, "--student-init", "2,4", "--dry-run", "--quiet")
    assert (quiet.code, quiet.out) == (0, f"{folder[1]}\n")


def test_the_folder_and_parameters_of_a_dry_run_are_those_of_the_run(kdbert: Callable[..., Any], run: Path) -> None:
    done = kdbert("distill", "--config", run / "recipe.yaml", "--dry-run")
    assert f"run folder: {run}\n" in done.out
    assert f"parameters: student {manifest(run)['parameters'] / 1e6:.2f} M" in done.out
    assert f"steps: {manifest(run)['steps']}\n" in done.out


def test_a_missing_teacher_is_made_first_and_found_again(
    kdbert: Callable[..., Any], common: list[Any], tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["distill", *common, "--set", f"teacher_training.model={tiny_bert}", "--set", "teacher_training.epochs=1"]
    done = kdbert(*words, "--dry-run")
    assert done.code == 0, done.err
    assert done.out.count("; to be made: ") == 1
    assert list(tmp_path.iterdir()) == []
    done = kdbert(*words, "--baseline")
    assert done.code == 0, done.err
    for row in ("teacher", "baseline (no teacher)", "student (kd)"):
        assert row in done.out
    runs = sorted(path.parent for path in Path("runs").rglob("run.json"))
    assert [path.parent.name for path in runs] == ["finetune", "finetune", "kd"]
    facts = manifest(runs[2])
    made = Path(facts["recipe"]["teachers"][0]["model"])
    assert made in runs
    assert manifest(made)["recipe"]["train"]["epochs"] == 1
    baseline = manifest(next(path for path in runs[:2] if path != made))["recipe"]
    student = facts["recipe"]
    for key in ("task", "student", "train", "seed"):
        assert student[key] == baseline[key]
    assert (student["student"]["layers"], student["student"]["init"]) == (2, "first")
    again = kdbert(*words, "--baseline")
    assert again.code == 0
    assert again.err.count("already finished") == 2  # student and baseline
    assert sorted(path.parent for path in Path("runs").rglob("run.json")) == runs


def test_overwrite_moves_the_old_run_aside(
    kdbert: Callable[..., Any], common: list[Any], tiny_bert: Path, tmp_path: Path
) -> None:
    words = [
        "finetune-teacher",
        *common,
        "--model",
        tiny_bert,
        "--set",
        "train.max_steps=2",
        "--output-dir",
        tmp_path / "mine",
    ]
    assert kdbert(*words).code == 0
    (tmp_path / "mine" / "note").write_text("the first", encoding="utf-8")
    refused = kdbert(*words, "--batch-size", 8)
    assert refused.code == 2
    assert "train.batch_size (16 there, 8 now)" in refused.err
    done = kdbert(*words, "--batch-size", 8, "--overwrite")
    assert done.code == 0, done.err
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0] == "mine"
    assert len(names) == 2
    assert re.fullmatch(r"mine\.old-\d{8}-\d{6}", names[1])
    assert (tmp_path / names[1] / "note").read_text(encoding="utf-8") == "the first"
    assert manifest(tmp_path / names[1])["recipe"]["train"]["batch_size"] == 16
    assert manifest(tmp_path / "mine")["recipe"]["train"]["batch_size"] == 8
    assert kdbert(*words, "--batch-size", 8, "--overwrite").code == 0  # within the same second, too
    assert len(list(tmp_path.iterdir())) == 3


def test_student_and_teacher_load_with_transformers(run: Path, teacher: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    for place, layers in ((run, 2), (teacher, 4)):
        model = AutoModelForSequenceClassification.from_pretrained(place / "model").eval()
        tokenizer = AutoTokenizer.from_pretrained(place / "model")
        assert model.config.num_hidden_layers == layers
        assert model.config.id2label == {0: "negative", 1: "positive"}
        assert model.dtype == torch.float32
        with open(manifest(place)["recipe"]["task"]["dev_file"], encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        coded = tokenizer(
            [row["text"] for row in rows], truncation=True, max_length=32, padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            chosen = model(**coded).logits.argmax(-1).tolist()
        right = sum(model.config.id2label[i] == row["label"] for i, row in zip(chosen, rows, strict=True))
        # bf16 may turn a tie or two; the model card's number must be what a user gets
        assert right / len(rows) == pytest.approx(manifest(place)["metrics"]["dev"]["accuracy"], abs=2.1 / len(rows))


def test_the_model_card_tells_task_metrics_recipe_and_citation(run: Path) -> None:
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    _, head, body = card.split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["library_name"] == "transformers"
    assert {"kdbert", "kdbert:kd", "knowledge-distillation"} <= set(data["tags"])
    facts = manifest(run)
    assert "custom" in body
    assert f"| dev | accuracy | {facts['metrics']['dev']['accuracy']:.4f} |" in body
    assert f"| dev | macro_f1 | {facts['metrics']['dev']['macro_f1']:.4f} |" in body
    recipe = re.search(r"```yaml\n(.*?)```", body, re.DOTALL)
    assert recipe
    assert yaml.safe_load(recipe[1]) == facts["recipe"]
    assert "Hinton" in body
    assert "1503.02531" in body
    assert str(facts["recipe"]["teachers"][0]["model"]) in body


def test_the_teacher_is_untouched_by_a_run(
    kdbert: Callable[..., Any], common: list[Any], teacher: Path, tmp_path: Path
) -> None:
    before = {path: sha256(path) for path in sorted(teacher.rglob("*")) if path.is_file()}
    for flags in (["--teacher-cache"], ["--no-teacher-cache"]):
        done = kdbert(
            "distill",
            *common,
            "--teacher",
            teacher,
            "--runs-dir",
            tmp_path,
            *flags,
            "train.max_steps=3",
            "train.dropout=0.3",
        )
        assert done.code == 0, done.err
        (run,) = tmp_path.glob("*/kd/*")
        assert manifest(run)["recipe"]["train"]["teacher_cache"] is (flags[-1] == "--teacher-cache")
        shutil.rmtree(run)
    wrong = kdbert("distill", *common, "--teacher", teacher, "--runs-dir", tmp_path, "--teacher-cache", "sometimes")
    assert wrong.code == 2
    assert "sometimes" in wrong.err
    assert {path: sha256(path) for path in sorted(teacher.rglob("*")) if path.is_file()} == before


def test_same_recipe_and_seed_give_the_same_bytes(
    kdbert: Callable[..., Any], common: list[Any], teacher: Path, tmp_path: Path
) -> None:
    def train(place: str, *words: Any) -> Path:
        done = kdbert(
            "distill",
            *common,
            "--teacher",
            teacher,
            "--student-layers",
            2,
            "--runs-dir",
            tmp_path / place,
            "-q",
            *words,
        )
        assert done.code == 0, done.err
        return Path(done.out.strip())

    first, second, other = train("a"), train("b"), train("a", "--seed", 2)
    assert first.name == second.name
    assert weights(first) == weights(second)
    lines = [(path / "metrics.jsonl").read_text(encoding="utf-8") for path in (first, second, other)]
    assert lines[0] == lines[1]
    assert other.name == first.name.replace("-seed1", "-seed2")
    assert weights(other) != weights(first)
    assert lines[2] != lines[0]


def test_moved_data_and_teacher_are_the_same_run(
    kdbert: Callable[..., Any], custom_files: tuple[Path, Path], run: Path, tmp_path: Path
) -> None:
    for file in custom_files:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    words = ["--train-file", tmp_path / "train.csv", "--dev-file", tmp_path / "dev.csv"]
    done = kdbert("distill", "--config", run / "recipe.yaml", *words)
    assert done.code == 0, done.err
    assert "already finished" in done.err
    (tmp_path / "dev.csv").write_text("text,label\ngood,positive\nbad,negative\n", encoding="utf-8")
    done = kdbert("distill", "--config", run / "recipe.yaml", *words, "--dry-run")
    assert f"run folder: {run}\n" not in done.out


def test_a_teacher_in_another_folder_form_is_accepted(
    kdbert: Callable[..., Any], common: list[Any], teacher: Path, tmp_path: Path
) -> None:
    folders = set()
    for form in (teacher, teacher / "model"):
        done = kdbert("distill", *common, "--teacher", form, "--student-layers", 1, "--runs-dir", tmp_path, "--dry-run")
        assert done.code == 0, done.err
        folders.add(re.search(r"run folder: (.+)", done.out)[1])  # type: ignore[index]
    assert len(folders) == 1


def test_a_process_of_its_own_does_the_same(common: list[Any], teacher: Path, run: Path, tmp_path: Path) -> None:
    words = [
        "distill", *common, "--teacher", teacher, "--student-layers", 2, "--set", "method.alpha=0.4",
        "--runs-dir", tmp_path / "runs", "-q",
    ]  # fmt: skip
    process = start([str(word) for word in words], tmp_path / "output")
    process.join()
    assert process.exitcode == 0, (tmp_path / "output").read_text()
    (made,) = (tmp_path / "runs" / "custom" / "kd").iterdir()
    assert weights(made) == weights(run)
