"""Several teachers, and teachers that read other tokens than the student: each reads its own encoding."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import make_bert, often
from in_processes import manifest
from kdbert import UserError
from kdbert.data.batches import Batch, collate
from kdbert.heads import SingleLabel
from kdbert.methods import Context, Models, Outputs, Shape, get_method
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import missing_teachers
from kdbert.runs.teacher_scores import teacher_facts
from small_models import make_distilbert, make_roberta
from small_run import Setting, build, changed, logged


@pytest.fixture(scope="module")
def teachers(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Teachers of every kind."""
    folder = tmp_path_factory.mktemp("teachers")
    return {
        "bert": setting.teacher,
        "roberta": make_roberta(folder / "roberta"),
        "letters": make_roberta(folder / "letters", pieces=262),  # hardly a piece is longer than a byte
        "distilbert": make_distilbert(folder / "distilbert"),
        "distilbert with types": make_distilbert(folder / "types", types=True),
        "turned": make_bert(folder / "turned", layers=2, base=False, labels=["positive", "negative"], seed=7),
    }


# ---- how their losses are put together


def by_hand(student: np.ndarray, teacher: np.ndarray, tau: float) -> float:
    """Mean over examples of tau^2 KL(teacher || student), softened."""

    def softmax(values: np.ndarray) -> np.ndarray:
        values = np.exp(values / tau - (values / tau).max(1, keepdims=True))
        return values / values.sum(1, keepdims=True)

    p, q = softmax(teacher), softmax(student)
    return float(tau**2 * (p * np.log(p / q)).sum(1).mean())


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, [1 / 3, 1 / 3, 1 / 3]),
        ({"reduction": "sum"}, [1, 1, 1]),
        ({"variant": "original"}, [1, 1, 1]),
        ({"variant": "original", "reduction": "mean"}, [1 / 3, 1 / 3, 1 / 3]),
        ({"weights": [2, 0.5, 0.25]}, [2, 0.5, 0.25]),
        ({"weights": [2, 0, 0.25], "reduction": "weights"}, [2, 0, 0.25]),
        ({"alpha": 0.3, "temperature": 1, "reduction": "sum"}, [1, 1, 1]),
    ],
    ids=str,
)
def test_sum_mean_and_weights_by_hand(options: dict[str, Any], shares: list[float]) -> None:
    method = get_method("multi-kd")
    own = method(method.Options.model_validate({"name": "multi-kd", **options}))
    random = np.random.default_rng(0)
    student, *logits = (random.normal(size=(5, 3)) * 4 for _ in range(4))
    labels = torch.tensor([0, 2, 1, 1, 0])
    ones = torch.ones(5, 2, dtype=torch.int64)
    batch = Batch(ones, ones, None, labels, torch.arange(5), torch.ones(5), scale=1 / 5)
    own.prepare(Context(Models(Shape(1, 1), (Shape(1, 1),) * 3), SingleLabel(), 5))
    found = own(
        Outputs(torch.tensor(student), mask=ones), [Outputs(torch.tensor(one), mask=ones) for one in logits], batch
    )
    alpha, tau = options.get("alpha", 0.5), options.get("temperature", 3)
    log_probability = student - np.log(np.exp(student).sum(1, keepdims=True))
    hard = -log_probability[np.arange(5), labels.numpy()].mean()
    soft = [share * by_hand(student, one, tau) for share, one in zip(shares, logits, strict=True)]
    assert found.total.item() == pytest.approx(alpha * hard + (1 - alpha) * sum(soft), rel=1e-9)
    assert set(found.terms) == {"hard", *(f"soft.{i}" for i, share in enumerate(shares, 1) if share)}


@pytest.mark.parametrize(
    ("options", "named", "told"),
    [
        ({"name": "multi-kd"}, 1, "takes 2 teachers or more, the recipe names 1: add another --teacher; kd takes one"),
        ({"name": "multi-kd", "weights": [1, 2, 3]}, 2, "takes 3 teachers, the recipe names 2: add another --teacher"),
        ({"name": "multi-kd", "weights": [1, 2]}, 3, "takes 2 teachers, the recipe names 3"),
        ({"name": "kd"}, 2, "takes 1 teacher, the recipe names 2; multi-kd takes several"),
        ({"name": "ics"}, 2, "multi-kd takes several"),
        ({"name": "cka-ilg"}, 3, "multi-kd takes several"),
    ],
    ids=str,
)
def test_the_number_of_teachers_must_fit(options: dict[str, Any], named: int, told: str) -> None:
    recipe = Recipe.of({"task": "rte", "method": options, "teachers": [{"model": f"t{i}"} for i in range(named)]})
    with pytest.raises(UserError) as error:
        missing_teachers(recipe)
    assert told in str(error.value)


def test_as_many_teachers_are_made_as_there_are_weights() -> None:
    recipe = Recipe.of({"task": "rte", "method": {"name": "multi-kd", "weights": [1, 2, 3]}})
    assert missing_teachers(recipe) == 3
    assert missing_teachers(Recipe.of({"task": "rte", "method": {"name": "multi-kd", "alpha": 1}})) == 0


# ---- each reads its own encoding


def rows_of(file: Path) -> list[str]:
    """The texts."""
    with open(file, encoding="utf-8", newline="") as opened:
        return [row["text"] for row in csv.DictReader(opened)]


def by_the_library(model_folder: Path, texts: list[str], layer: int | None = None) -> list[torch.Tensor]:
    """Logits (or a layer's hidden states) of texts by transformers alone, one at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder, dtype=torch.float32).eval()
    found = []
    for text in texts:
        coded = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        if model.config.model_type == "distilbert":
            coded.pop("token_type_ids", None)
        with torch.no_grad():
            out = model(**coded, output_hidden_states=True)
        found.append(out.logits[0] if layer is None else out.hidden_states[layer][0])
    return found


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "live"])
def test_every_teacher_says_what_it_says_of_its_own_tokens(
    cached: bool, setting: Setting, teachers: dict[str, Path], tmp_path: Path
) -> None:
    names = ["roberta", "bert", "letters", "distilbert", "turned"]
    places = [{"model": str(teachers[name])} for name in names]
    keys = {"method.name": "multi-kd", "teacher_cache": cached, "precision": "fp32"}
    parts = build(changed(setting.recipe(tmp_path / "run", **keys), {"teachers": places}))
    facts = [teacher_facts(parts.run.job, teacher) for teacher in parts.run.teachers]
    ready = parts.run.ready_teachers()  # those that the training loop gets
    rows = np.array([5, 17, 3, 100, 202, 44])
    texts = [rows_of(setting.train)[row] for row in rows]
    batch = collate(parts.data, rows)
    dev = rows_of(setting.dev)
    with open(setting.dev, encoding="utf-8", newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    for name, teacher, fact in zip(names, ready, facts, strict=True):
        expected = torch.stack(by_the_library(teachers[name], texts))
        order = ["positive", "negative"] if name == "turned" else ["negative", "positive"]
        if name == "turned":
            expected = expected[:, [1, 0]]
        torch.testing.assert_close(teacher.outputs(batch).logits, expected, rtol=1e-4, atol=1e-4, msg=name)
        right = [
            order[int(logits.argmax())] == label
            for logits, label in zip(by_the_library(teachers[name], dev), labels, strict=True)
        ]
        assert fact["metrics"]["dev"]["accuracy"] == pytest.approx(np.mean(right), abs=1.1 / len(dev)), name


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "live"])
@pytest.mark.parametrize("kind", ["roberta", "letters"])
def test_hidden_states_of_such_a_teacher_lie_on_its_own_tokens(
    kind: str, cached: bool, setting: Setting, teachers: dict[str, Path], tmp_path: Path
) -> None:
    place = [{"model": str(teachers[kind])}]
    keys = {"method.name": "cka-l", "teacher_cache": cached, "precision": "fp32"}
    parts = build(changed(setting.recipe(tmp_path / "run", **keys), {"teachers": place}))
    (teacher,) = parts.run.ready_teachers()
    rows = np.array([5, 17, 3, 100])
    found = teacher.outputs(collate(parts.data, rows))
    expected = by_the_library(teachers[kind], [rows_of(setting.train)[row] for row in rows], layer=4)
    assert found.mask is not None
    assert found.mask.sum(1).tolist() == [len(states) for states in expected]
    assert found.mask.shape[1] == max(map(len, expected))
    for states, mask, wanted in zip(found.hidden[4], found.mask, expected, strict=True):
        torch.testing.assert_close(states[mask > 0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "kind"),
    often(
        list(itertools.product(["kd", "cka-l", "cka-g", "multi-kd"], ["roberta", "letters", "distilbert"])),
        [("kd", "letters"), ("cka-l", "distilbert"), ("cka-g", "roberta"), ("multi-kd", "letters")].__contains__,
    ),
)
def test_cached_and_live_teachers_of_other_tokens_give_one_loss(
    method: str, kind: str, setting: Setting, teachers: dict[str, Path], kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    setting = Setting(setting.train, setting.dev, teachers[kind], setting.student)
    for name, cached in (("stored", True), ("live", False)):
        keys = {"method.name": method, "teacher_cache": cached, "precision": "fp32", "max_steps": 5}
        more = ["memory.centroids=7"] if method == "cka-g" else []
        more += ["--teacher", str(teachers["bert"])] if method == "multi-kd" else []
        done = kdbert(*setting.words(tmp_path / name, **keys), *more)
        assert done.code == 0, done.err
    stored, live = logged(tmp_path / "stored"), logged(tmp_path / "live")
    for step in range(1, 6):
        for key in (key for key in stored[step] if key.startswith("loss")):
            assert live[step][key] == pytest.approx(stored[step][key], rel=1e-4, abs=1e-6), (step, key)
    assert (manifest(tmp_path / "stored")["fingerprints"].get("centroids") is None) == (method != "cka-g")


@pytest.mark.parametrize("method", ["ics", "cka-i", "cka-il", "cka-ilg", "distilbert", "mgskd", "ckd", "ad-kd"])
def test_a_teacher_of_other_tokens_is_refused_where_tokens_are_compared(
    method: str, setting: Setting, teachers: dict[str, Path], kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    setting = Setting(setting.train, setting.dev, teachers["roberta"], setting.student)
    done = kdbert(*setting.words(tmp_path / "run", **{"method.name": method}))
    assert done.code == 2
    assert "different tokenizers" in done.err
    assert f"method {method!r} compares them token by token" in done.err
    assert "cka-g" in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["ics", "cka-i", "cka-g", "cka-ilg"])
def test_a_distilbert_teaches_token_by_token(
    method: str, setting: Setting, teachers: dict[str, Path], kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    """It has no token types, but reads the very same tokens."""
    setting = Setting(setting.train, setting.dev, teachers["distilbert"], setting.student)
    more = ["memory.centroids=7"] if method.endswith("g") else []
    for name, cached in (("stored", True), ("live", False)):
        keys = {"method.name": method, "max_steps": 3, "precision": "fp32", "teacher_cache": cached}
        done = kdbert(*setting.words(tmp_path / name, **keys), *more)
        assert done.code == 0, done.err
    stored, live = (
        {step: line["loss"] for step, line in logged(tmp_path / name).items()} for name in ("stored", "live")
    )
    assert live == pytest.approx(stored, rel=1e-5)


@pytest.mark.parametrize("method", ["kd", "ics"])
def test_a_distilbert_beside_which_berts_tokenizer_was_saved(
    method: str, setting: Setting, teachers: dict[str, Path], kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    """That tokenizer gives token types, which the model does not take. Many people's folders are so."""
    setting = Setting(setting.train, setting.dev, teachers["distilbert with types"], setting.student)
    done = kdbert(*setting.words(tmp_path / "run", **{"method.name": method, "max_steps": 2}))
    assert done.code == 0, done.err


@pytest.mark.parametrize("method", ["kd", "ics", "cka-g"])
def test_a_distilbert_student(
    method: str, setting: Setting, teachers: dict[str, Path], kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    setting = Setting(setting.train, setting.dev, setting.teacher, teachers["distilbert"])
    more = ["memory.centroids=7"] if method.endswith("g") else []
    done = kdbert(*setting.words(tmp_path / "run", **{"method.name": method, "max_steps": 2}), *more)
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def long_words(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Texts of words that the small RoBERTa knows and BERT spells letter by letter."""
    folder = tmp_path_factory.mktemp("long")
    rows = [
        f"{' '.join(['zxqjvk', 'good', 'qqzzxx'][: 1 + i % 3] * 3)},{('negative', 'positive')[i % 2]}"
        for i in range(48)
    ]
    for name in ("train.csv", "dev.csv"):
        (folder / name).write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return folder / "train.csv", folder / "dev.csv"


@pytest.mark.parametrize("method", ["kd", "cka-l", "cka-g"])
def test_a_student_that_reads_more_tokens_than_its_teacher(
    method: str, setting: Setting, teachers: dict[str, Path], long_words: tuple[Path, Path],
    kdbert: Callable[..., Any], tmp_path: Path,
) -> None:  # fmt: skip
    """More tokens than the teacher's memory has, too."""
    setting = Setting(*long_words, teachers["roberta"], setting.student)
    more = ["memory.centroids=5"] if method == "cka-g" else []
    done = kdbert(*setting.words(tmp_path / "run", **{"method.name": method, "max_steps": 2}), *more)
    assert done.code == 0, done.err[-800:]
    assert all(np.isfinite(line["loss"]) for line in logged(tmp_path / "run").values())


def test_a_memory_of_such_a_teacher_is_of_its_own_tokens(
    setting: Setting, teachers: dict[str, Path], kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    done = kdbert(
        "train-memory", "--task", "custom", "--train-file", setting.train, "--dev-file", setting.dev,
        "--max-length", 64, "--teacher", teachers["letters"], "--centroids", 4, "--precision", "fp32",
        "--runs-dir", tmp_path, "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    memory = load_file(done.out.strip())
    states = by_the_library(teachers["letters"], rows_of(setting.train), layer=3)
    assert memory["centroids"].shape == (4, max(map(len, states)), 32)
    mine = np.zeros((203, *memory["centroids"].shape[1:]), dtype=np.float32)
    for row, values in zip(mine, states, strict=True):
        row[: len(values)] = values
    for cluster in range(4):
        np.testing.assert_allclose(
            memory["centroids"][cluster], mine[memory["assignments"] == cluster].mean(0), rtol=1e-4, atol=1e-5
        )


def test_a_roberta_cannot_read_to_its_last_two_positions(
    setting: Setting, teachers: dict[str, Path], kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    setting = Setting(setting.train, setting.dev, teachers["roberta"], teachers["roberta"])
    done = kdbert(*setting.words(tmp_path / "run", **{"task.max_length": 129, "max_steps": 1}))
    assert done.code == 2
    assert "128 tokens" in done.err
