"""What each kind of task means: labels, losses, answers, scores, rows of files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbert.data.batches import Batch
from kdbert.data.encode import Encoded
from kdbert.data.examples import Examples, RawExample, examples_of
from kdbert.errors import UserError
from kdbert.heads import HEADS, Encoder, Head, MaskedLM, MultiLabel, Regression, SingleLabel, Tokens, head_of
from kdbert.heads.masked_lm import HIDDEN
from kdbert.metrics import METRICS, score
from kdbert.tasks import get_task, task_names

SINGLE, MULTI, SCORE, TAGS = (
    SingleLabel(("no", "yes")),
    MultiLabel(("a", "b", "c")),
    Regression(),
    Tokens(("B", "I", "O")),
)
TEXT = MaskedLM()
EVERY = [SINGLE, MULTI, SCORE, TAGS, TEXT, Encoder()]
PARTS = ("f1", "precision", "recall")


def rows(head: Head, *labels: str | tuple[str, ...], words: int = 0) -> Examples:
    """Examples of these labels, each of so many words."""
    some = tuple("word" for _ in range(words)) or None
    given = [RawExample(str(i), "text", None, label, f"line {i + 1}", some) for i, label in enumerate(labels)]
    path = Path("file.csv")
    return examples_of(given, path=path, split="dev", read_label=head.read_label, label_type=head.label_type)


# ---- what a head says of itself


def test_each_head_is_found_by_its_name_and_knows_its_classes() -> None:
    assert [type(head) for head in EVERY] == list(HEADS.values())
    assert head_of("token", ("B", "O")) == Tokens(("B", "O")) != Tokens(("O", "B"))
    for name in task_names():
        spec = get_task(name)
        assert (spec.head.kind, spec.head.classes) == (spec.kind, spec.labels)
        assert spec.head.outputs == (len(spec.labels) or 1)


def test_the_library_has_the_classes_that_heads_name() -> None:
    import transformers

    for head in EVERY:
        assert hasattr(transformers, head.auto_class)
        assert head.takes
        assert head.answers
        assert head.makes


def test_a_fresh_head_is_written_into_a_configuration() -> None:
    from transformers import BertConfig

    config = BertConfig()
    MULTI.configure(config)
    assert (config.num_labels, config.id2label, config.label2id["c"]) == (3, {0: "a", 1: "b", 2: "c"}, 2)
    assert config.problem_type == "multi_label_classification"
    SCORE.configure(config)
    assert (config.num_labels, config.problem_type) == (1, "regression")


# ---- labels


@pytest.mark.parametrize(
    ("head", "labels", "words", "expected", "form"),
    [
        (SINGLE, ("yes", "no", "yes"), 0, [1, 0, 1], np.int64),
        (MULTI, (("c", "a"), ()), 0, [[True, False, True], [False, False, False]], np.bool_),
        (SCORE, ("2.5", "-1e-1"), 0, [2.5, -0.1], np.float32),
        (TAGS, (("O", "B"), ("I", "I")), 2, [2, 0, 1, 1], np.int64),
    ],
)
def test_labels_become_arrays(
    head: Head, labels: tuple[str | tuple[str, ...], ...], words: int, expected: list[object], form: type
) -> None:
    found = rows(head, *labels, words=words).labels
    assert found is not None
    assert found.dtype == form
    np.testing.assert_array_equal(found, np.array(expected, dtype=form))


@pytest.mark.parametrize(
    ("head", "label", "words"),
    [
        (SINGLE, "Yes", 0), (MULTI, ("a", "d"), 0), (SCORE, "much", 0), (SCORE, "nan", 0), (SCORE, "inf", 0),
        (TAGS, ("B", "X"), 2), (TAGS, ("B",), 2), (SINGLE, "", 0),
    ],
)  # fmt: skip
def test_a_label_that_is_none_is_refused_with_its_line(head: Head, label: str | tuple[str, ...], words: int) -> None:
    with pytest.raises(UserError, match=r"^file\.csv, line 1: "):
        rows(head, label, words=words)


def test_examples_are_of_one_class_where_their_labels_are_alike() -> None:
    labels = torch.tensor([3, 0, 2])
    assert torch.equal(SINGLE.example_classes(labels), labels)
    scores = torch.tensor([0.0, 0.2, 0.3, 0.5, 0.74, 0.76, 1.0, 4.8, 5.0])
    nearest_half = [0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0, 5.0, 5.0]
    assert SCORE.example_classes(scores).tolist() == [2 * value for value in nearest_half]
    sets = torch.tensor([[i >> bit & 1 for bit in range(10)] for i in range(1024)]).bool()
    classes = MULTI.example_classes(sets)
    assert len(classes.unique()) == 1024
    assert torch.equal(MULTI.example_classes(sets.clone()), classes)
    assert len(MULTI.example_classes(torch.eye(60).bool()).unique()) == 60


# ---- losses


def kl(p: float, q: float) -> float:
    """Of two Bernoulli distributions."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def logit(p: float) -> float:
    """The logit of a probability."""
    return math.log(p / (1 - p))


def test_losses_of_any_number_of_classes_by_hand() -> None:
    student = torch.tensor([[logit(0.5), logit(0.2)], [logit(0.9), logit(0.1)]], dtype=torch.float64)
    teacher = torch.tensor([[logit(0.75), logit(0.2)], [logit(0.5), logit(0.3)]], dtype=torch.float64)
    labels = torch.tensor([[True, False], [False, False]])
    hard = [-(math.log(0.5) + math.log(0.8)) / 2, -(math.log(0.1) + math.log(0.9)) / 2]
    torch.testing.assert_close(MULTI.hard_loss(student, labels), torch.tensor(hard, dtype=torch.float64))
    soft = torch.tensor([kl(0.75, 0.5) / 2, (kl(0.5, 0.9) + kl(0.3, 0.1)) / 2], dtype=torch.float64)
    torch.testing.assert_close(MULTI.soft_loss(student, teacher, labels, 1.0, "corrected"), soft)
    tau = 4.0
    torch.testing.assert_close(MULTI.soft_loss(student * tau, teacher * tau, labels, tau, "corrected"), tau**2 * soft)


def test_large_logits_of_classes_stay_finite() -> None:
    student = torch.tensor([[300.0, -300.0]], requires_grad=True)
    loss = MULTI.soft_loss(student, torch.tensor([[-300.0, -300.0]]), torch.zeros(1, 2).bool(), 1.0, "corrected")
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_losses_of_classes_and_scores_by_hand() -> None:
    student = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
    labels = torch.tensor([1, 0])
    expected = -student.log_softmax(-1)[torch.arange(2), labels]
    torch.testing.assert_close(SINGLE.hard_loss(student, labels), expected)
    one, gold = torch.tensor([[1.5], [3.0]]), torch.tensor([1.0, 5.0])
    assert SCORE.hard_loss(one, gold).tolist() == [0.25, 4.0]
    teacher = torch.tensor([[1.0], [2.0]])
    assert SCORE.soft_loss(one, teacher, gold, 5.0, "corrected").tolist() == [0.25, 1.0]
    assert SCORE.soft_loss(one, teacher, gold, 5.0, "original").tolist() == [0.0, 0.0]  # softened to the constant 1


def test_losses_of_tags_are_zero_where_a_token_has_none() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([[-100, 2, -100, 0], [-100, 1, -100, -100]])
    hard, soft = TAGS.hard_loss(student, labels), TAGS.soft_loss(student, teacher, labels, 2.0, "corrected")
    for i in range(2):
        for j in range(4):
            tag = int(labels[i, j])
            if tag < 0:
                assert hard[i, j] == soft[i, j] == 0.0
                continue
            p, q = (teacher[i, j] / 2).softmax(0), (student[i, j] / 2).softmax(0)
            assert float(hard[i, j]) == pytest.approx(-float(student[i, j].log_softmax(0)[tag]))
            assert float(soft[i, j]) == pytest.approx(4 * float((p * (p / q).log()).sum()))


# ---- answers


def test_answers_of_logits() -> None:
    logits = np.array([[0.25, 1.5, -1.0], [2.0, -1.0, 3.0]], dtype=np.float32)
    assert SINGLE.predicted(logits).tolist() == TAGS.predicted(logits).tolist() == [1, 2]
    assert MULTI.predicted(logits).tolist() == [[True, True, False], [True, False, True]]
    assert SCORE.predicted(logits[:, :1]).tolist() == [0.25, 2.0]
    assert SINGLE.label_logits(logits, None, [2, 0]).tolist() == [[-1.0, 0.25], [3.0, 2.0]]  # type: ignore[arg-type]


def test_words_that_were_cut_off_are_outside() -> None:
    tokens = np.array([1, 3, -1])
    data = Encoded(np.zeros(5, np.int32), None, np.array([0, 5]), np.array([0, 1, 0]), 1, 0, tokens)
    logits = np.arange(15, dtype=np.float32).reshape(5, 3)
    found = TAGS.label_logits(logits, data, [2, 1, 0])
    assert found.tolist() == [[5, 4, 3], [11, 10, 9], [0, 0, 1]]


@pytest.mark.parametrize(
    ("head", "examples", "logits", "expected"),
    [
        (
            SINGLE,
            Examples("dev", ["7", "x\u2028é"], ["a", "b"], ["c", "d"], np.array([1, 0])),
            [[0.25, 1.5], [-1.0, 2.0]],
            [
                {"id": "7", "label": "yes", "prediction": "yes", "scores": [0.25, 1.5]},
                {"id": "x\u2028é", "label": "no", "prediction": "yes", "scores": [-1.0, 2.0]},
            ],
        ),
        (
            MULTI,
            Examples("dev", ["1"], ["a"], None, np.array([[True, False, False]])),
            [[0.5, -1.0, 2.0]],
            [{"id": "1", "label": ["a"], "prediction": ["a", "c"], "scores": [0.5, -1.0, 2.0]}],
        ),
        (
            SCORE,
            Examples("test", ["0"], ["a"], ["b"], None),
            [[5.5]],
            [{"id": "0", "label": None, "prediction": 5.5, "scores": [5.5]}],
        ),
        (
            TAGS,
            Examples("dev", ["s", "t"], ["a b", "c"], None, np.array([0, 2, 2]), [("a", "b"), ("c",)]),
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            [
                {"id": "s", "label": ["B", "O"], "prediction": ["B", "I"], "scores": [[1.0, 0, 0], [0, 1.0, 0]]},
                {"id": "t", "label": ["O"], "prediction": ["O"], "scores": [[0.0, 0.0, 1.0]]},
            ],
        ),
    ],
)  # fmt: skip
def test_rows_of_predictions_files_and_back(
    head: Head, examples: Examples, logits: list[list[float]], expected: list[dict[str, object]]
) -> None:
    values = np.array(logits, dtype=np.float32)
    found = list(head.prediction_rows(examples, values))
    assert found == expected
    back = [value for row in found for value in head.read_label(row["prediction"], row["label"], "file")]
    np.testing.assert_array_equal(back, head.predicted(values))


class Vocabulary:
    """A masked-LM whose logits at a token are its row of a table."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table, self.pieces, self.head = table, table.shape[1], self

    def __call__(self, positions: torch.Tensor, columns: int | None = None) -> torch.Tensor:
        return self.table[positions][:, :columns]


def test_the_outcome_of_plain_text_is_six_sums_a_text() -> None:
    table = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[-100, 2, 4], [1, -100, -100]])
    ids = torch.zeros(2, 3, dtype=torch.int64)
    known = labels < 3
    batch = Batch(ids, ids + 1, None, labels, torch.arange(2), torch.ones(2), 0.5, known=known)
    found = TEXT.outcome(Vocabulary(table), batch)
    loss = -table.log_softmax(-1)
    right = (table.argmax(-1) == labels.reshape(-1)).float()
    expected = [[loss[1, 2], right[1], 1, loss[2, 4], right[2], 1], [loss[3, 1], right[3], 1, 0, 0, 0]]
    torch.testing.assert_close(found, torch.tensor([[float(x) for x in row] for row in expected]))
    small = TEXT.outcome(Vocabulary(table[:, :3]), batch)  # a model that lacks the new pieces
    assert small[0, 3:].tolist() == [0, 0, 0]
    names = ("masked_accuracy", "mlm_loss", "new_masked_accuracy")
    assert set(TEXT.scores(names, found.numpy(), None)) == set(names)
    assert set(TEXT.scores(names, small.numpy(), None)) == set(names[:2])
    assert TEXT.same_answer(found.numpy()) is None
    assert TEXT.constant_answer(names, None) is None
    assert list(TEXT.written(found[0])) == list(HIDDEN)


# ---- scores


@pytest.mark.parametrize(
    ("head", "answers", "same"),
    [
        (SINGLE, [1, 1, 1], "yes"),
        (SINGLE, [1, 1, 0], None),
        (SINGLE, [1], None),  # of one example nothing can be said
        (MULTI, [[True, False, True], [True, False, True]], "a, c"),
        (MULTI, [[False] * 3, [False] * 3], "none of the classes"),
        (MULTI, [[True, False, False], [True, True, False]], None),
        (SCORE, [2.7109, 2.7110, 2.7109], "2.711"),
        (SCORE, [2.70, 2.71, 2.72], None),
        (SCORE, [1e-6, 2e-6, 3e-6], None),
        (SCORE, [0.0, 0.0, 0.0], "0"),
        (TAGS, [2, 2], "O"),
    ],
)
def test_one_answer_to_everything_is_known(head: Head, answers: list[object], same: str | None) -> None:
    assert head.same_answer(np.array(answers)) == same


def test_the_constant_answer_is_the_best_on_the_split_that_is_scored() -> None:
    labels = np.array([0, 0, 0, 1])
    assert SINGLE.constant_answer(("accuracy", "f1"), labels) == pytest.approx({"accuracy": 0.75, "f1": 0.4})
    assert SINGLE.constant_answer(("matthews_correlation",), labels) == {"matthews_correlation": 0.0}
    both = SINGLE.constant_answer(("accuracy_and_f1",), np.array([1, 1, 0]))
    assert both == pytest.approx({"accuracy_and_f1": 11 / 15})
    scores = np.array([1.0, 2.5, 4.0], dtype=np.float32)
    assert SCORE.constant_answer(("pearson_and_spearman",), scores) == {"pearson_and_spearman": 0.0}
    assert SINGLE.constant_answer(("accuracy",), labels[:0]) == {"accuracy": 0.0}
    assert SINGLE.constant_answer(("accuracy",), None) is None


@given(st.lists(st.sampled_from([0, 1, 2, 5, 150]), min_size=1, max_size=30))
def test_no_class_is_a_better_constant_answer(classes: list[int]) -> None:
    labels = np.array(classes)
    names = [name for name in METRICS if "pearson" not in name and name != "spearman"]
    every = [score(names, np.full_like(labels, answer), labels) for answer in (*range(7), 150)]
    best = {name: max(one[name] for one in every) for name in names}
    assert SINGLE.constant_answer(names, labels) == pytest.approx(best, abs=1e-12)


def test_the_constant_answer_of_tags_is_the_best_tag() -> None:
    tags = np.array([2, 0, 1, 2, 0])  # "B" at every word finds the entity of one word
    assert TAGS.constant_answer(("entity_f1",), tags, np.zeros(5, int)) == pytest.approx({"entity_f1": 2 / 7})
    whole, groups = np.array([0, 1, 1, 0, 1, 1, 0]), np.array([0, 0, 0, 1, 1, 1, 2])
    assert TAGS.constant_answer(("entity_f1",), whole, groups) == {"entity_f1": 1.0}  # "I" at every word


@given(st.integers(1, 12), st.integers(0, 2**31))
def test_no_set_of_classes_is_a_better_constant_answer(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, groups = rng.random((rows, 4)) < rng.random(4), rng.integers(0, 3, rows)
    groups = np.unique(groups, return_inverse=True)[1]
    names = [f"document_{part}" for part in PARTS]
    sets = [np.array(list(np.binary_repr(number, 4)), dtype=int) > 0 for number in range(2**4)]
    every = [score(names, np.broadcast_to(answer, labels.shape), labels, groups) for answer in sets]
    best = {name: max(one[name] for one in every) for name in names}
    assert MultiLabel(tuple("abcd")).constant_answer(names, labels, groups) == pytest.approx(best, abs=1e-12)


# ---- two models side by side


def test_how_alike_two_models_answer() -> None:
    assert SINGLE.agreement(np.array([0, 1, 1]), np.array([0, 0, 1])) == pytest.approx(2 / 3)
    sets, others = np.array([[True, False, False]] * 2), np.array([[True, False, False], [True, True, False]])
    assert MULTI.agreement(sets, others) == 0.5
    assert SCORE.agreement(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])) == pytest.approx(1.0)
