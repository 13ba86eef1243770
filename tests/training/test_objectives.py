"""`kdbert distill --method X` for every published objective: a finished run, its terms, its facts, its warnings."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import make_bert, often
from in_processes import manifest
from small_run import Setting, logged

# Terms and their weights in the total, with nothing set: the papers' and scripts' defaults, by hand.
TERMS = {
    "ics": {"hard": 0.5, "soft": 0.5, "feature": 0.32},
    "cka-i": {"hard": 0.5, "soft": 0.5, "intra": 30},
    "cka-l": {"hard": 0.5, "soft": 0.5, "local": 30},
    "cka-g": {"hard": 0.5, "soft": 0.5, "distance": 0.15, "cosine": 0.15, "memory_cka": 0.3},
    "cka-il": {"hard": 0.5, "soft": 0.5, "intra": 0.025, "local": 0.025},
    "cka-ilg": {
        "hard": 0.5, "soft": 0.5, "intra": 0.0125, "local": 0.0125, "distance": 0.025, "cosine": 0.025,
        "memory_cka": 0.05,
    },
    "distilbert": {"hard": 0.5, "soft": 0.5, "cos": 1},
    "mgskd": {"hard": 0.5, "soft": 0.5, "token": 1, "sample": 4},
    "ckd": {"hard": 0.5, "soft": 0.5, "word_distance": 1, "word_angle": 1, "layer_distance": 1, "layer_angle": 1},
    "ad-kd": {"hard": 0.2, "soft": 0.8, "attribution": 1},
}  # fmt: skip
PUBLISHED = {
    "ics": "Saadi", "distilbert": "Sanh", "mgskd": "Multi-Granularity", "ckd": "Linguistic", "ad-kd": "Attribution",
}  # fmt: skip
PAIRS = {
    "ics": "4:2", "cka-l": "4:2", "cka-i": "3:1", "cka-g": "3:1", "cka-il": "3:1", "cka-ilg": "3:1",
    "distilbert": "4:2", "mgskd": "0:0, 2:1", "ckd": "0:0, 2:1, 4:2", "ad-kd": "0:0",
}  # fmt: skip
OF_ANSWERS = ("pkd", "rkd", "dist", "dkd", "sinkd")


def files(setting: Setting) -> list[Any]:
    """The task's words."""
    return ["--task", "custom", "--train-file", setting.train, "--dev-file", setting.dev, "--max-length", 64]


def total(line: dict[str, float], weights: dict[str, float]) -> float:
    """What the loss of a logged step must be."""
    return sum(weight * line[f"loss/{name}"] for name, weight in weights.items())


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One runs folder for all, as a person has it: the teacher's outputs and the memory are shared."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("method", often(TERMS, {"ics", "cka-ilg", "ckd"}.__contains__))
def test_with_nothing_but_a_teacher(method: str, setting: Setting, kdbert: Callable[..., Any], runs_dir: Path) -> None:
    words = ["distill", "--method", method, *files(setting), "--teacher", setting.teacher, "--runs-dir", runs_dir]
    done = kdbert(*words, "train.logging_steps=5")
    assert done.code == 0, done.err
    run = Path(re.search(r"^run: (.+)$", done.out, re.MULTILINE)[1])  # type: ignore[index]
    assert run.parent == runs_dir / "custom" / method
    assert re.search(r"^\s*teacher ", done.out, re.MULTILINE)
    assert f"student ({method})" in done.out
    assert f": layers (teacher:student) {PAIRS[method]}\n" in done.err

    lines = logged(run)
    assert sorted(lines) == [1, 5, 10, 15, 20, 21]
    for line in lines.values():
        assert {key for key in line if key.startswith("loss/")} == {f"loss/{name}" for name in TERMS[method]}
        assert line["loss"] == pytest.approx(total(line, TERMS[method]), rel=1e-4)
        assert all(line[f"loss/{name}"] > 0 for name in TERMS[method])
    assert ("ics/neighbors" in lines[5]) == (method == "ics")

    facts = manifest(run)
    has_memory = method in ("cka-g", "cka-ilg")
    wanted = {"train", "dev", "student", "teacher0", *(["centroids"] if has_memory else [])}
    assert set(facts["fingerprints"]) == wanted
    assert all(re.fullmatch(r"[0-9a-f]{16}", value) for value in facts["fingerprints"].values())
    assert [one["model"] for one in facts["teachers"]] == [str(setting.teacher)]
    assert facts["teachers"][0]["layers"] == 4
    assert facts["layers"] == 2
    assert (facts["recipe"]["memory"] is not None) == has_memory
    kept = {path.name.rsplit(".safetensors")[0] for path in runs_dir.glob(".teacher-outputs/*/*.safetensors")}
    if has_memory:
        assert facts["recipe"]["memory"]["centroids"] == 100
        assert load_file(run / "method.safetensors")["centroids.student"].shape[::2] == (100, 32)
        assert f"global.3.{facts['fingerprints']['centroids']}" in kept
        # All runs on one teacher share its memory.
        assert len(list(runs_dir.glob("custom/memory/*.safetensors"))) == 1
        before = [
            manifest(path.parent)["fingerprints"]["centroids"] for path in runs_dir.glob("custom/cka-*g/*/run.json")
        ]
        assert set(before) == {facts["fingerprints"]["centroids"]}
    else:
        assert not (run / "method.safetensors").exists()
    assert not [name for name in load_file(run / "model" / "model.safetensors") if "centroid" in name]
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert PUBLISHED.get(method, "Feature Structure Distillation") in card

    again = kdbert(*words, "train.logging_steps=5")
    assert "already finished" in again.err
    scored = kdbert("evaluate", run)
    assert scored.code == 0, scored.err
    assert f"{facts['metrics']['dev']['accuracy']:.4f}" in scored.out


def test_multi_kd_with_no_teacher_makes_two_that_differ_in_seed(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    words = [
        "distill", "--method", "multi-kd", *files(setting), "--teacher-model", setting.student, "--runs-dir", tmp_path,
        "--epochs", 1, "teacher_training.epochs=1", "train.logging_steps=1",
    ]  # fmt: skip
    planned = kdbert(*words, "--dry-run")
    assert planned.code == 0, planned.err
    assert planned.out.count("; to be made: ") == 2
    assert list(tmp_path.iterdir()) == []
    done = kdbert(*words)
    assert done.code == 0, done.err
    assert "teacher 1" in done.out
    assert "teacher 2" in done.out
    made = sorted(tmp_path.glob("custom/finetune/*"))
    assert [manifest(run)["recipe"]["seed"] for run in made] == [1, 2]
    (run,) = tmp_path.glob("custom/multi-kd/*")
    facts = manifest(run)
    assert [one["model"] for one in facts["teachers"]] == [str(path) for path in made]
    assert [one["metrics"]["dev"] for one in facts["teachers"]] == [
        {key: pytest.approx(value) for key, value in manifest(path)["metrics"]["dev"].items()} for path in made
    ]
    assert facts["fingerprints"]["teacher0"] != facts["fingerprints"]["teacher1"]
    line = logged(run)[1]
    assert line["loss/soft.1"] != line["loss/soft.2"]
    assert line["loss"] == pytest.approx(total(line, {"hard": 0.5, "soft.1": 0.25, "soft.2": 0.25}), rel=1e-4)
    assert kdbert(*words).err.count("already finished") == 1
    assert "; to be made: " not in kdbert(*words, "--dry-run").out


def test_a_second_seed_takes_both_teachers_as_they_are(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    words = [
        "distill", "--method", "multi-kd", *files(setting), "--teacher-model", setting.student, "--runs-dir", tmp_path,
        "train.max_steps=2", "teacher_training.epochs=1", "--quiet",
    ]  # fmt: skip
    assert [kdbert(*words, "--seed", seed).code for seed in (1, 2)] == [0, 0]
    assert len(list(tmp_path.glob("custom/finetune/*"))) == 2
    assert len(list(tmp_path.glob("custom/multi-kd/*"))) == 2


def test_multi_kd_with_two_named_teachers(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    labels = ["negative", "positive"]
    second = make_bert(tmp_path_factory.mktemp("second") / "bert", layers=1, base=False, labels=labels, seed=9)
    words = ["distill", "--method", "multi-kd", *files(setting), "--runs-dir", tmp_path, "train.max_steps=3"]
    taught = ["--teacher", setting.teacher, "--teacher", second]
    done = kdbert(*words, *taught, "train.logging_steps=1", "method.weights=[3, 0.5]")
    assert done.code == 0, done.err
    assert "teacher 2" in done.out
    (run,) = tmp_path.glob("custom/multi-kd/*")
    facts = manifest(run)
    assert [one["layers"] for one in facts["teachers"]] == [4, 1]
    line = logged(run)[1]
    assert line["loss"] == pytest.approx(total(line, {"hard": 0.5, "soft.1": 1.5, "soft.2": 0.25}), rel=1e-4)
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert str(setting.teacher) in card
    assert str(second) in card
    # The order of the teachers is part of the recipe, where their weights differ.
    turned = kdbert(*words, "--teacher", second, "--teacher", setting.teacher, "method.weights=[3, 0.5]")
    assert turned.code == 0
    assert len(list(tmp_path.glob("custom/multi-kd/*"))) == 2


# ---- ICS where a batch holds few examples of a class


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Path]:
    """A task of 40 classes with 6 examples each, and a teacher of it."""
    folder = tmp_path_factory.mktemp("many")
    labels = [f"c{number:02}" for number in range(40)]
    draw = random.Random(0)
    rows = [
        (" ".join(draw.choices(["good", "bad", "film", "the", "dog", label[1]], k=8)), label) for label in labels * 6
    ]
    draw.shuffle(rows)
    for name, part in (("train.csv", rows), ("dev.csv", rows[:60])):
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *part])
    teacher = make_bert(folder / "teacher", layers=2, base=False, labels=labels)
    words = [
        "distill", "--task", "custom", "--train-file", folder / "train.csv", "--dev-file", folder / "dev.csv",
        "--max-length", 32, "--teacher", teacher, "--epochs", 1, "--batch-size", 8, "train.logging_steps=1",
    ]  # fmt: skip
    return words, folder / "train.csv"


def warnings(text: str) -> list[str]:
    """Lines that tell of too few companions."""
    return [line for line in text.splitlines() if "neighbours of its class" in line]


def test_ics_warns_once_of_batches_without_companions_and_tells_the_cure(
    many_classes: tuple[list[Any], Path], kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    words, _ = many_classes
    done = kdbert(*words, "--method", "ics", "--runs-dir", tmp_path / "random")
    assert done.code == 0, done.err
    (warning,) = warnings(done.err)
    assert "--batch-sampler class-balanced" in warning
    (run,) = (tmp_path / "random").glob("custom/ics/*")
    lines = logged(run)
    told = float(re.search(r"has (\d\.\d\d) neighbours", warning)[1])  # type: ignore[index]
    assert told < 0.5
    # What was foretold from the labels is what was met: k 3 leaves room for two others.
    assert sum(line["ics/neighbors"] for line in lines.values()) / len(lines) == pytest.approx(told, abs=0.02)
    assert sum(line["ics/alone"] for line in lines.values()) / len(lines) > 0.7

    done = kdbert(*words, "--method", "ics", "--runs-dir", tmp_path / "cured", "--batch-sampler", "class-balanced")
    assert done.code == 0, done.err
    assert warnings(done.err) == []
    (run,) = (tmp_path / "cured").glob("custom/ics/*")
    lines = logged(run)
    assert sum(line["ics/neighbors"] for line in lines.values()) / len(lines) > 1
    assert manifest(run)["recipe"]["train"]["batch_sampler"] == "class-balanced"


@pytest.mark.parametrize("more", [["--method", "kd"], ["--method", "ics", "method.beta=0"], ["--quiet"]], ids=str)
def test_other_runs_on_many_classes_do_not_warn_of_companions(
    more: list[str], many_classes: tuple[list[Any], Path], kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    words, _ = many_classes
    done = kdbert(*words, *more, "train.max_steps=2", "--runs-dir", tmp_path)
    assert done.code == 0, done.err
    assert warnings(done.err) == []


def test_ics_on_two_classes_does_not_warn(setting: Setting, kdbert: Callable[..., Any], tmp_path: Path) -> None:
    done = kdbert(*setting.words(tmp_path / "run", **{"method.name": "ics", "max_steps": 4}))
    assert done.code == 0, done.err
    assert warnings(done.err) == []
    line = logged(tmp_path / "run")[1]
    assert 2 <= line["ics/neighbors"] <= 3  # three, of which the own teacher is mostly one
    assert line["ics/alone"] == 0


def test_cut_into_micro_batches_the_warning_and_the_log_speak_of_those(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    words = setting.words(tmp_path / "run", **{"method.name": "ics", "max_steps": 4, "accumulation": 8})
    done = kdbert(*words)
    assert "ics compares 2 examples, not 16" in done.err
    assert len(warnings(done.err)) == 1
    assert logged(tmp_path / "run")[1]["ics/neighbors"] < 1


# ---- models of other shapes


@pytest.mark.parametrize("method", ["ics", "cka-i", "cka-l", "cka-g", "cka-ilg", "pkd", "rkd"])
def test_a_narrower_student(
    method: str, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A projection is learned where a term needs equal width (ICS), and none where it does not."""
    narrow = make_bert(tmp_path_factory.mktemp("narrow") / "bert", layers=3, hidden=16)
    setting = Setting(setting.train, setting.dev, setting.teacher, narrow)
    words = setting.words(tmp_path / "run", **{"method.name": method, "max_steps": 3, "student.layers": 3})
    done = kdbert(*words, "memory.centroids=9") if method.endswith("g") else kdbert(*words)
    assert done.code == 0, done.err
    own = tmp_path / "run" / "method.safetensors"
    if method in ("ics", "pkd"):
        assert load_file(own)["projections.0.weight"].shape == (32, 16)
    else:
        assert not own.exists() or set(load_file(own)) == {"centroids.student"}
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in logged(tmp_path / "run").values())


@pytest.mark.parametrize("method", ["ics", "pkd"])
def test_some_published_methods_refuse_other_widths(
    method: str, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    narrow = make_bert(tmp_path_factory.mktemp("narrow") / "bert", layers=2, hidden=16)
    setting = Setting(setting.train, setting.dev, setting.teacher, narrow)
    done = kdbert(*setting.words(tmp_path / "run", **{"method.name": method, "method.variant": "original"}))
    assert done.code == 2
    assert "the teacher has 32, the student 16" in done.err
    assert not (tmp_path / "run").exists()


def test_a_method_of_our_own_has_no_original(setting: Setting, kdbert: Callable[..., Any], tmp_path: Path) -> None:
    done = kdbert(*setting.words(tmp_path / "run", **{"method.name": "distilbert", "method.variant": "original"}))
    assert done.code == 2
    assert "--variant corrected" in done.err
    assert not (tmp_path / "run").exists()
    shown = kdbert("methods", "show", "distilbert")
    assert shown.code == 0
    assert "distilbert-mlm" in shown.out


@pytest.mark.parametrize(
    "method",
    often(
        [*(name for name in TERMS if name != "distilbert"), *OF_ANSWERS, "multi-kd"],
        {"ics", "cka-ilg", "pkd", "dkd", "multi-kd"}.__contains__,
    ),
)
def test_the_published_variant_runs_and_names_its_nonsense(
    method: str, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    keys = {"method.name": method, "method.variant": "original", "max_steps": 2, "task.max_train_examples": 64}
    words = setting.words(tmp_path / "run", **keys)
    more = ["memory.centroids=5"] if method.endswith("g") else []
    more += ["--teacher", str(setting.teacher)] if method == "multi-kd" else []
    done = kdbert(*words, *more)
    assert done.code == 0, done.err
    labels = [line for line in done.err.splitlines() if line.startswith("variant original, as published: ")]
    assert len(labels) == (2 if method == "cka-ilg" else 0), done.err
    assert {key for key in logged(tmp_path / "run")[1] if key.startswith("loss/")} >= {"loss/hard"}


@pytest.mark.parametrize(
    ("keys", "label"),
    [
        ({"method.name": "cka-ilg", "method.sigma": 5}, "sigma 5 gives weights of 5 and -4"),
        ({"method.name": "cka-i", "method.beta": -1}, "beta gives a weight of -1"),
        ({"method.name": "ics", "method.alpha_soft": -0.5}, "alpha_soft gives a weight of -0.5"),
        ({"method.name": "multi-kd", "method.weights": [1, -2]}, "weights gives a teacher -2"),
        ({"method.name": "kd", "method.alpha": 2}, "alpha 2 gives weights of 2 and -1"),
    ],
    ids=str,
)
def test_weights_that_mean_nothing_are_refused_and_in_original_labelled(
    keys: dict[str, Any], label: str, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    more = ["--teacher", str(setting.teacher)] if keys["method.name"] == "multi-kd" else []
    refused = kdbert(*setting.words(tmp_path / "run", **keys), *more)
    assert refused.code == 2
    assert label in refused.err
    assert "variant original" in refused.err
    keys = {**keys, "method.variant": "original", "max_steps": 1, "task.max_train_examples": 40}
    more += ["memory.centroids=5"] if keys["method.name"].endswith("g") else []
    done = kdbert(*setting.words(tmp_path / "run", **keys), *more)
    assert done.code == 0, done.err
    assert f"variant original, as published: {label}" in done.err


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"method.name": "dist"}, "two classes"),
        ({"method.name": "dkd"}, "beta_d"),
        ({"method.name": "ics", "method.standardise_logits": True}, "standardise_logits"),
    ],
    ids=str,
)
def test_what_two_classes_leave_without_effect_is_told_before_training(
    keys: dict[str, Any], told: str, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    words = setting.words(tmp_path / "run", **keys, max_steps=1)
    done = kdbert(*words)
    assert done.code == 0, done.err
    assert told in done.err
    assert told in kdbert(*words, "--dry-run").out.rpartition("labels: 2")[2]


@pytest.mark.parametrize(("method", "told"), [("dkd", "dkd"), ("sinkd", "sinkd"), ("kd", "standardise_logits")])
def test_scores_refuse_what_needs_classes(
    method: str, told: str, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    files = tmp_path / "train.csv", tmp_path / "dev.csv"
    for name, file in enumerate(files):
        rows = "".join(f"{'good' if name else 'bad'} {i},{i / 7}\n" for i in range(20))
        file.write_text(f"text,label\n{rows}", encoding="utf-8")
    standardise = {"method.standardise_logits": True} if method == "kd" else {}
    own = Setting(*files, setting.teacher, setting.student)
    refused = kdbert(*own.words(tmp_path / "run", **{"method.name": method, "task.kind": "regression", **standardise}))
    assert refused.code == 2
    assert told in refused.err


def test_the_hate_speech_scripts_weights(setting: Setting, kdbert: Callable[..., Any], tmp_path: Path) -> None:
    keys = {"method.name": "ics", "method.alpha_ce": 0.7, "method.alpha_soft": 0.6, "method.beta": 0.4}
    done = kdbert(*setting.words(tmp_path / "run", **keys, max_steps=2))
    assert done.code == 0, done.err
    for line in logged(tmp_path / "run").values():
        assert line["loss"] == pytest.approx(total(line, {"hard": 0.7, "soft": 0.6, "feature": 0.4}), rel=1e-4)
