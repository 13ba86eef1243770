"""Labels are matched by name: spellings, aliases, any order, and what follows for teachers and students."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_bert
from kdbert import Recipe, UserError, distill
from kdbert.data.encode import Encoded
from kdbert.export import PLAIN
from kdbert.models.labels import is_generic, label_permutation, plain, teacher_permutation
from kdbert.models.load import label_names, load_config
from kdbert.models.locate import ModelPlace, locate
from kdbert.models.open import open_classifier
from kdbert.models.way import decide
from kdbert.tasks import TaskSpec, get_task
from kdbert.tasks.own import custom_task
from kdbert.training.teacher import LOGITS, LiveTeacher, StoredTeacher

IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 12, 13, 3]])


def opened(place: ModelPlace, spec: TaskSpec, *, keep_head: bool) -> tuple[Any, bool]:
    """A classifier in the library's own way, eager attention."""
    way = decide(load_config(place), spec.head, place.given, PLAIN)
    return open_classifier(place, spec, way, keep_head=keep_head)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("not_entailment", "not-entailment"),
        ("not_entailment", "Not Entailment"),
        ("NOT_ENTAILMENT", "not entailment"),
        ("Block__card", "block - card"),
        (" oos ", "OOS"),
        ("STRASSE", "straße"),
    ],
)
def test_spellings_of_one_label(first: str, second: str) -> None:
    assert plain(first) == plain(second)


@pytest.mark.parametrize(
    ("first", "second"), [("good", "bad"), ("1", "10"), ("not entailment", "entailment"), ("a+b", "a b")]
)
def test_labels_that_differ(first: str, second: str) -> None:
    assert plain(first) != plain(second)


@pytest.mark.parametrize(
    ("task", "names", "permutation"),
    [
        ("sst2", ["NEGATIVE", "POSITIVE"], [0, 1]),
        ("sst2", ["positive", "negative"], [1, 0]),
        ("sst2", ["0", "1"], [0, 1]),
        ("cola", ["acceptable", "unacceptable"], [1, 0]),
        ("mrpc", ["equivalent", "not-equivalent"], [1, 0]),
        ("qqp", ["not_duplicate", "duplicate"], [0, 1]),
        ("wnli", ["Entailment", "Not Entailment"], [1, 0]),
        ("rte", ["NOT_ENTAILMENT", "ENTAILMENT"], [1, 0]),
        ("mnli", ["ENTAILMENT", "NEUTRAL", "CONTRADICTION"], [2, 0, 1]),
        ("ax", ["entailment", "neutral", "contradiction"], [2, 0, 1]),
    ],
)
def test_published_names_are_matched(task: str, names: list[str], permutation: list[int]) -> None:
    spec = get_task(task)
    assert label_permutation(spec.labels, spec.aliases, names) == permutation


@given(
    st.lists(st.text("abcdefgh12", min_size=1, max_size=6), min_size=1, max_size=20, unique_by=plain).flatmap(
        lambda names: st.tuples(st.just(names), st.permutations(names))
    ),
    st.sampled_from([str, str.upper, str.title, lambda name: f" {name} "]),
)
def test_any_order_and_case_is_undone(names: tuple[list[str], list[str]], respell: Any) -> None:
    task, model = names
    permutation = label_permutation(task, {}, [respell(name) for name in model])
    assert sorted(permutation) == list(range(len(task)))
    assert [model[column] for column in permutation] == task
    logits = np.array([[float(task.index(name)) for name in model]])  # each column holds its label's number
    assert logits[:, permutation].tolist() == [[float(i) for i in range(len(task))]]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (["a", "b", "d"], ["lacks c", "has d"]),
        (["a", "b"], ["lacks c"]),
        (["a", "b", "c", "d"], ["has d"]),
        (["a", "b", "C", "c"], ["occurs twice"]),
    ],
)
def test_missing_extra_and_doubled_labels_are_refused(model: list[str], told: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        label_permutation(["a", "b", "c"], {}, model)
    assert all(word in str(error.value) for word in told)


def test_names_given_by_the_library_are_generic() -> None:
    assert is_generic(["LABEL_0", "LABEL_1"])
    assert not is_generic(["LABEL_0"])  # one score means what it means
    assert not is_generic(["LABEL_0", "good"])


def test_a_teacher_is_refused_with_the_cure() -> None:
    ask = lambda names, told=None: teacher_permutation("T", "rte", ("entailment", "not_entailment"), {}, names, told)  # noqa: E731
    assert ask(["LABEL_0", "LABEL_1"], ["not_entailment", "entailment"]) == [1, 0]
    assert ask(["yes", "no"], ["entailment", "not entailment"]) == [0, 1]
    with pytest.raises(UserError, match=r"--teacher-labels, in the order of the teacher's outputs"):
        ask(["LABEL_0", "LABEL_1"])
    with pytest.raises(UserError, match=r"3 outputs.*needs 2"):
        ask(["a", "b", "c"])
    with pytest.raises(UserError, match="names 3 labels"):
        ask(["LABEL_0", "LABEL_1"], ["a", "b", "c"])
    with pytest.raises(UserError, match=r"other labels.*lacks entailment"):
        ask(["yes", "no"])
    assert teacher_permutation("T", "stsb", (), {}, ["LABEL_0"], None) == [0]


@pytest.mark.parametrize("role", ["teacher", "model"])
@given(
    names=st.lists(st.text("abc12 -", min_size=1, max_size=4).map(str.strip), min_size=2, max_size=30, unique_by=plain)
    | st.lists(st.integers(-3, 40).map(str), min_size=2, max_size=30, unique_by=plain)
)
def test_an_order_of_labels_is_suggested_for_whole_numbers_only(role: str, names: list[str]) -> None:
    flag = "--labels" if role == "model" else "--teacher-labels"
    generic = [f"LABEL_{number}" for number in range(len(names))]
    with pytest.raises(UserError) as error:
        teacher_permutation("T", "custom", sorted(names), {}, generic, None, role=role, flag=flag)
    suggested = re.search(rf"{flag} (\S+)$", str(error.value))
    numbers = all(re.fullmatch(r"-?[0-9]+", name) for name in names)
    assert (suggested is not None) == numbers
    if suggested is not None:
        given = [int(word) for word in suggested[1].split(",") if word != "…"]
        assert given == sorted(given)
        assert len(given) == len(names) or (len(names) > 20 and len(given) == 4)


LABELS = ["blue", "green", "red"]
ORDER = [2, 0, 1]  # the permuted teacher's output i is the straight one's output ORDER[i]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One classifier twice: labels in the task's order, and with the rows of its head and its names permuted."""
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("teachers")
    straight = make_bert(folder / "straight", layers=2, labels=LABELS, base=False, seed=3)
    shutil.copytree(straight, folder / "permuted")
    model = AutoModelForSequenceClassification.from_pretrained(straight)
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[ORDER].clone())
        model.classifier.bias.copy_(torch.tensor([0.3, -0.2, 0.1])[ORDER])
    model.config.id2label = {i: LABELS[j].upper() for i, j in enumerate(ORDER)}
    model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    model.save_pretrained(folder / "permuted")
    straight_model = AutoModelForSequenceClassification.from_pretrained(straight)
    with torch.no_grad():
        straight_model.classifier.bias.copy_(torch.tensor([0.3, -0.2, 0.1]))
    straight_model.save_pretrained(straight)
    return straight, folder / "permuted"


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A csv task in three classes."""
    folder = tmp_path_factory.mktemp("colours")
    for name, rows in (("train.csv", 42), ("dev.csv", 12)):
        lines = [f"the {LABELS[i % 3]} book was very good {i},{LABELS[i % 3]}" for i in range(rows)]
        (folder / name).write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return folder / "train.csv", folder / "dev.csv"


@pytest.mark.parametrize("cache", [True, False])
def test_a_teacher_with_labels_in_another_order_teaches_the_same(
    tmp_path: Path, teachers: tuple[Path, Path], colours: tuple[Path, Path], tiny_bert: Path, cache: bool
) -> None:
    digests, tables = [], []
    for number, teacher in enumerate(teachers):
        result = distill(Recipe.of({
            "task": {"name": "custom", "train_file": str(colours[0]), "dev_file": str(colours[1]), "max_length": 16},
            "teachers": [{"model": str(teacher)}],
            "student": {"model": str(tiny_bert), "layers": 1},
            "method": {"name": "kd", "alpha": 0.1, "temperature": 2.0},
            "train": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "teacher_cache": cache, "precision": "fp32"},
            "output": {"runs_dir": str(tmp_path / str(number))},
        }))  # fmt: skip
        digests.append(hashlib.sha256((result.path / "model" / "model.safetensors").read_bytes()).hexdigest())
        tables.append((result.metrics, result.manifest["teachers"][0]["metrics"]))
    assert digests[0] == digests[1]
    assert tables[0] == tables[1]


def test_live_and_stored_teachers_give_logits_in_the_tasks_order(
    teachers: tuple[Path, Path], colours: tuple[Path, Path]
) -> None:
    from kdbert.data.batches import Batch

    spec = custom_task(str(colours[0]), str(colours[1]))
    batch = Batch(IDS, torch.ones_like(IDS), None, None, torch.tensor([1, 0]), torch.ones(2), 0.5)
    data = Encoded(np.zeros(2, dtype=np.int32), None, np.arange(3), None, 0, 0)
    outputs = []
    for teacher in teachers:
        place = locate(str(teacher))
        names = label_names(load_config(place))
        permutation = teacher_permutation(str(teacher), spec.name, spec.labels, spec.aliases, names, None)
        model, kept = opened(place, spec, keep_head=True)
        assert kept
        outputs.append(LiveTeacher(model, permutation, "fp32").outputs(batch).logits)
        with torch.no_grad():
            raw = model(IDS, attention_mask=torch.ones_like(IDS)).logits.numpy()
        stored = StoredTeacher(
            {"logits": raw[[1, 0]]}, data, permutation, torch.device("cpu"), LOGITS
        )  # example 1 is the batch's first
        assert torch.allclose(stored.outputs(batch).logits, outputs[-1], atol=1e-6)
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.allclose(outputs[0], outputs[1], atol=1e-6)
    assert outputs[0].std() > 0


def test_labels_that_are_told_in_another_order_than_the_models_own_are_refused() -> None:
    own = ["negative", "positive"]

    def columns(told: list[str]) -> list[int]:
        return teacher_permutation("m", "custom", own, {}, ["Positive", "Negative"], told)

    with pytest.raises(UserError, match="--teacher-labels negative,positive contradicts teacher 'm'"):
        columns(own)
    assert columns(["positive", "negative"]) == [1, 0]


def test_a_student_that_starts_from_a_trained_head_keeps_it_in_the_tasks_order(
    teachers: tuple[Path, Path], colours: tuple[Path, Path]
) -> None:
    spec = custom_task(str(colours[0]), str(colours[1]))
    logits = []
    for teacher in teachers:
        model, kept = opened(locate(str(teacher)), spec, keep_head=False)
        assert kept
        assert [model.config.id2label[i] for i in range(3)] == LABELS
        with torch.no_grad():
            logits.append(model(IDS).logits)
    assert torch.allclose(logits[0], logits[1], atol=1e-6)


def test_a_head_of_other_labels_is_replaced_by_a_fresh_one(teachers: tuple[Path, Path]) -> None:
    torch.manual_seed(5)
    model, kept = opened(locate(str(teachers[0])), get_task("mnli"), keep_head=False)
    assert not kept
    old, _ = opened(locate(str(teachers[0])), get_task("mnli"), keep_head=True)
    assert not torch.equal(model.classifier.weight, old.classifier.weight)
    assert model.classifier.bias.abs().max() == 0
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, old.bert.embeddings.word_embeddings.weight)
