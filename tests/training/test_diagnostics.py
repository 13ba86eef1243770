"""`--diagnose`: monitors beside the loss, a heat map at the end, and the same student as without."""

from __future__ import annotations

import csv
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import make_bert
from in_processes import manifest
from small_models import make_roberta
from small_run import Setting, logged, make_teacher

PARTS = ("difference", "teacher_mean", "teacher_std", "student_mean", "student_std")
COMPARED = {f"{kind}_{name}/{part}" for kind in ("inter", "intra") for name in ("distance", "cosine") for part in PARTS}
COSINES = {"intra_class_cosine/student", "intra_class_cosine/teacher"}


@pytest.fixture(scope="module")
def setting(custom_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Task, and a model that is teacher and student's start, in which every layer does a lot."""
    from transformers import AutoModelForSequenceClassification

    folder = make_teacher(tmp_path_factory.mktemp("teacher"))
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.bert.encoder.named_parameters():
            if name.endswith("dense.weight") or "value" in name:
                weight.mul_(8)
    model.save_pretrained(folder)
    return Setting(*custom_files, folder, folder)


def diagnosed(setting: Setting, folder: Path, **changes: Any) -> list[str]:
    """Words of a run with --diagnose."""
    keys = {"method.name": "cka-i", "max_steps": 13, "logging_steps": 5, "precision": "fp32", "student.layers": 3}
    return [*setting.words(folder, **{**keys, **changes}), "--diagnose"]


@pytest.fixture(scope="module")
def run(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with --diagnose. Tests leave it as it is."""
    from in_processes import start

    folder = tmp_path_factory.mktemp("diagnosed")
    process = start(diagnosed(setting, folder / "run"), folder / "output")
    process.join(120)
    assert process.exitcode == 0, (folder / "output").read_text()
    text = (folder / "output").read_text()
    assert "monitors on 32 dev examples, layers 3:2" in text
    assert f"heat map: {folder / 'run' / 'diagnostics' / 'cka.png'}" in text
    return folder / "run"


def monitors(run: Path) -> dict[int, dict[str, float]]:
    """step -> monitor -> value."""
    return {
        step: {key.removeprefix("diagnostics/"): line[key] for key in line if key.startswith("diagnostics/")}
        for step, line in logged(run).items()
    }


def heat_map(run: Path) -> np.ndarray:
    """cka.csv as a matrix [teacher layers, student layers]."""
    with open(run / "diagnostics" / "cka.csv", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["teacher_layer", *(f"student_{layer}" for layer in range(len(head) - 1))]
    assert [row[0] for row in rows] == [str(layer) for layer in range(len(rows))]
    return np.array([[float(value) for value in row[1:]] for row in rows])


def test_every_logged_step_has_the_monitors(run: Path) -> None:
    found = monitors(run)
    assert sorted(found) == [1, 5, 10, 13]
    for line in found.values():
        assert set(line) == COMPARED | COSINES | {"patience"}
        assert all(math.isfinite(value) for value in line.values())
        for name in COSINES:
            assert -1 <= line[name] <= 1
        assert line["inter_distance/difference"] > 0
    assert len({line["inter_distance/student_mean"] for line in found.values()}) == 4  # the student learns
    for name in COMPARED | COSINES:  # the teacher does not
        if name.endswith(("teacher", "teacher_mean", "teacher_std")):
            assert len({line[name] for line in found.values()}) == 1, name


def test_they_are_tensorboard_scalars_too(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    assert {f"diagnostics/{name}" for name in COMPARED | COSINES} <= set(events.Tags()["scalars"])
    name = "inter_cosine/difference"
    scalars = {event.step: event.value for event in events.Scalars(f"diagnostics/{name}")}
    assert scalars == pytest.approx({step: line[name] for step, line in monitors(run).items()}, rel=1e-6)


def test_the_heat_map_is_the_linear_cka_of_every_two_layers(run: Path, setting: Setting) -> None:
    """Computed again from the saved student, by numpy, of the mean vector of each dev example's tokens."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    values = heat_map(run)
    assert values.shape == (5, 4)
    assert np.ptp(values, axis=0).min() > 0.05  # the layers differ, in both models
    assert np.ptp(values, axis=1).min() > 0.05
    with open(setting.dev, encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    sides = []
    for folder in (setting.teacher, run / "model"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        pooled: list[list[np.ndarray]] = [[] for _ in range(model.config.num_hidden_layers + 1)]
        for text in texts:
            with torch.no_grad():
                coded = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
                states = model(**coded, output_hidden_states=True).hidden_states
            for layer, state in zip(pooled, states, strict=True):
                layer.append(state[0].mean(0).double().numpy())
        sides.append([np.array(layer) - np.mean(layer, 0) for layer in pooled])
    for teacher, first in enumerate(sides[0]):
        for student, second in enumerate(sides[1]):
            shared = np.linalg.norm(first.T @ second) ** 2
            expected = shared / (np.linalg.norm(first.T @ first) * np.linalg.norm(second.T @ second))
            assert values[teacher, student] == pytest.approx(expected, abs=3e-4), (teacher, student)


def test_the_picture_is_a_picture(run: Path) -> None:
    content = (run / "diagnostics" / "cka.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 400
    assert height > 400
    from PIL import Image

    with Image.open(run / "diagnostics" / "cka.png") as picture:
        picture.load()
        assert len(set(picture.convert("RGB").resize((60, 60)).getdata())) > 20  # something is drawn


def test_it_changes_no_bit_of_the_student(
    run: Path, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    """Dropout is on, so a single random draw more would show."""
    words = [word for word in diagnosed(setting, tmp_path / "run") if word != "--diagnose"]
    done = kdbert(*words)
    assert done.code == 0, done.err
    for file in ("model/model.safetensors", "predictions/dev.jsonl"):
        assert (tmp_path / "run" / file).read_bytes() == (run / file).read_bytes()
    assert not (tmp_path / "run" / "diagnostics").exists()
    plain = logged(tmp_path / "run")
    for step, line in logged(run).items():
        assert {key: value for key, value in line.items() if not key.startswith("diagnostics/")} == plain[step]
    assert manifest(tmp_path / "run")["identity"] == manifest(run)["identity"]


def test_a_finished_run_says_that_it_was_made_without(
    run: Path, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    words = diagnosed(setting, tmp_path / "run", max_steps=1)
    assert kdbert(*words[:-1]).code == 0
    done = kdbert(*words)
    assert done.code == 0
    assert "already finished" in done.err
    assert "made without --diagnose" in done.err
    assert "--overwrite" in done.err
    again = kdbert(*words, "--overwrite")
    assert again.code == 0
    assert (tmp_path / "run" / "diagnostics" / "cka.png").exists()
    assert "made without" not in kdbert(*words).err


def test_identical_models_are_alike(setting: Setting, kdbert: Callable[..., Any], tmp_path: Path) -> None:
    """A student that is its teacher and learns nothing."""
    keys = {"student.layers": 4, "max_steps": 1, "learning_rate": 1e-30, "method.name": "kd", "dropout": 0.0}
    done = kdbert(*diagnosed(setting, tmp_path / "run", **keys))
    assert done.code == 0, done.err
    values = heat_map(tmp_path / "run")
    assert values.shape == (5, 5)
    np.testing.assert_allclose(np.diag(values), 1, atol=1e-4)
    np.testing.assert_allclose(values, values.T, atol=1e-4)
    assert values[0, 4] < 0.95
    (line,) = monitors(tmp_path / "run").values()
    for name in ("inter_distance", "inter_cosine", "intra_distance", "intra_cosine"):
        assert line[f"{name}/difference"] == pytest.approx(0, abs=1e-4)
        assert line[f"{name}/student_mean"] == pytest.approx(line[f"{name}/teacher_mean"], abs=1e-4)
    assert line["patience"] == pytest.approx(0, abs=1e-6)
    assert line["intra_class_cosine/student"] == pytest.approx(line["intra_class_cosine/teacher"], abs=1e-5)


@pytest.mark.parametrize("keys", [{"method.name": "finetune"}, {"method.name": "kd", "method.alpha": 1}], ids=str)
def test_without_a_teacher_there_is_nothing_to_compare(
    keys: dict[str, Any], setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    refused = kdbert(*diagnosed(setting, tmp_path / "run", **keys))
    assert refused.code == 2, refused.err
    told = f"--diagnose compares the student with its teacher; method {keys['method.name']!r} reads none"
    assert told in refused.err
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_tokens_has_no_token_monitors(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    roberta = make_roberta(tmp_path_factory.mktemp("roberta") / "model")
    setting = Setting(setting.train, setting.dev, roberta, setting.student)
    done = kdbert(*diagnosed(setting, tmp_path / "run", **{"method.name": "kd", "max_steps": 1}))
    assert done.code == 0, done.err
    (line,) = monitors(tmp_path / "run").values()
    assert set(line) == {name for name in COMPARED if name.startswith("inter_")} | COSINES
    assert heat_map(tmp_path / "run").shape == (5, 4)


def test_small_and_narrow_students_and_a_handful_of_dev_examples(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    narrow = make_bert(tmp_path_factory.mktemp("narrow") / "bert", layers=1, hidden=16)
    dev = tmp_path / "dev.csv"
    dev.write_text("".join(setting.dev.read_text(encoding="utf-8").splitlines(keepends=True)[:4]), encoding="utf-8")
    setting = Setting(setting.train, dev, setting.teacher, narrow)
    keys = {"method.name": "kd", "max_steps": 1, "student.layers": 1}
    done = kdbert(*diagnosed(setting, tmp_path / "run", **keys))
    assert done.code == 0, done.err
    (line,) = monitors(tmp_path / "run").values()
    assert "patience" not in line  # needs layers between and one width
    assert all(math.isfinite(value) for value in line.values())
    assert heat_map(tmp_path / "run").shape == (5, 2)


def test_with_several_teachers_the_first_is_compared(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    labels = ["negative", "positive"]
    second = make_bert(tmp_path_factory.mktemp("second") / "bert", layers=2, base=False, labels=labels)
    words = diagnosed(setting, tmp_path / "run", **{"method.name": "multi-kd", "max_steps": 1})
    done = kdbert(*words, "--teacher", second)
    assert done.code == 0, done.err
    assert heat_map(tmp_path / "run").shape == (5, 4)
