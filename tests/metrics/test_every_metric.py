"""The table of metrics: all of scikit-learn's that fit a head, their values, their edges, their constant answers."""

from __future__ import annotations

import inspect
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk
from sklearn.preprocessing import label_binarize

from kdbert.errors import UserError
from kdbert.heads import Head, MultiLabel, Regression, SingleLabel, Tokens
from kdbert.metrics import LOWER_IS_BETTER, TABLE, better, chosen, our_name
from kdbert.metrics.arrays import METRICS
from kdbert.metrics.grouped import GROUPED
from kdbert.metrics.table import LEFT_OUT, OTHER_NAMES

TWO, FOUR = SingleLabel(("no", "yes")), SingleLabel(tuple("abcd"))
MANY = SingleLabel(tuple(map(str, range(12))))
SETS, TAGS, SCORES = MultiLabel(tuple("abcde")), Tokens(("O", "B", "I")), Regression()
HEADS = (TWO, FOUR, MANY, SETS, TAGS, SCORES)
SEEDS = range(6)
Given = tuple[np.ndarray, np.ndarray]  # logits and labels


def fitting(head: Head) -> list[str]:
    """The metrics of a head that are no metrics of groups."""
    return [
        name
        for name, one in TABLE.items()
        if one.fits(head.kind, len(head.classes), groups=()) and one.reads != "groups"
    ]


def draw(head: Head, seed: int, rows: int = 40) -> Given:
    """Logits with ties, and labels that have something to do with them."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(size=(rows, max(len(head.classes), 1))) * 2, 1).astype(np.float32)
    noisy = logits + rng.normal(size=logits.shape)
    if head is SETS:
        return logits, noisy > 0.5
    return logits, noisy[:, 0].astype(np.float32) if head is SCORES else noisy.argmax(1)


def scores(head: Head, logits: np.ndarray, labels: np.ndarray, names: list[str] | None = None) -> dict[str, float]:
    """What a head says; a warning of bad arithmetic is as good as an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return head.scores(names or fitting(head), head.predicted(logits), labels, None, logits)


# ---- which there are


def test_every_scorer_of_scikit_learn_is_known_or_left_out_with_a_reason() -> None:
    known = {*TABLE, *OTHER_NAMES}
    assert [name for name in sk.get_scorer_names() if name not in known and not LEFT_OUT.get(name)] == []
    assert not known & {*LEFT_OUT}


def test_every_function_of_scikit_learns_metrics_is_known_or_left_out_with_a_reason() -> None:
    functions = {name for name, _ in inspect.getmembers(sk, inspect.isfunction) if not name.startswith("_")}
    about_others = {"check_scoring", "get_scorer", "get_scorer_names", "make_scorer"}
    distances = {name for name in functions if "pairwise" in name or name.endswith("_distances")}
    assert sorted(functions - {*TABLE, *OTHER_NAMES, *LEFT_OUT} - about_others - distances) == []


def test_names_are_of_one_metric_each() -> None:
    assert len(OTHER_NAMES) == sum(len(one.also) for one in TABLE.values())
    assert not {*OTHER_NAMES} & {*TABLE}
    assert {*METRICS, *GROUPED} <= {*TABLE}
    assert all(one.meaning for one in TABLE.values())


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("mcc", "matthews_correlation"), ("matthews_corrcoef", "matthews_correlation"), ("f1_macro", "macro_f1"),
        ("neg_log_loss", "log_loss"), ("neg_root_mean_squared_error", "root_mean_squared_error"), ("r2_score", "r2"),
        ("top_k_accuracy", "top_2_accuracy"), ("roc_auc_ovr_weighted", "weighted_roc_auc"), (" accuracy ", "accuracy"),
        ("jaccard_samples", "samples_jaccard"), ("neg_brier_score", "brier_score"),
    ],
)  # fmt: skip
def test_scikit_learns_names_are_other_names_of_ours(given: str, ours: str) -> None:
    assert our_name(given) == ours


def test_what_is_no_metric_is_refused_with_the_nearest_or_the_reason() -> None:
    with pytest.raises(UserError, match="'macro_f1'"):
        our_name("macro-f1")
    with pytest.raises(UserError, match="cluster"):
        our_name("rand_score")
    with pytest.raises(UserError, match=r"metrics\.md"):
        our_name("xyz")


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_a_metric_of_another_head_is_refused_and_those_that_fit_are_named(head: Head) -> None:
    some = {"task": "t", "takes": head.takes, "kind": head.kind, "classes": len(head.classes), "groups": ()}
    for name, one in TABLE.items():
        if one.fits(head.kind, len(head.classes), groups=()):
            assert chosen([name, name], **some) == (name,)  # type: ignore[arg-type]
        elif (head, name) != (SETS, "accuracy"):
            with pytest.raises(UserError) as refused:
                chosen([name], **some)  # type: ignore[arg-type]
            assert all(f" {other}" in str(refused.value) for other in fitting(head)[:5])


def test_the_accuracy_of_sets_is_printed_as_that_of_whole_sets() -> None:
    assert chosen(["accuracy", "subset_accuracy"], "t", "", "multi_label", 5, groups=()) == ("subset_accuracy",)


# ---- values, as scikit-learn computes them


def test_probabilities_are_softmax_and_sigmoid_of_the_logits_of_predictions_files() -> None:
    logits = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32) * 9
    stated = np.round(logits.astype(np.float64), 6)
    np.testing.assert_allclose(FOUR.probabilities(FOUR.stated(logits)), scipy.special.softmax(stated, axis=1))
    np.testing.assert_allclose(SETS.probabilities(SETS.stated(logits)), scipy.special.expit(stated))


def of_classes(logits: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], float]]:
    """Of one class an example or word."""
    p, y = logits.argmax(1), labels
    found: dict[str, Callable[[], float]] = {
        "accuracy": lambda: sk.accuracy_score(y, p),
        "balanced_accuracy": lambda: sk.balanced_accuracy_score(y, p),
        "matthews_correlation": lambda: sk.matthews_corrcoef(y, p),
        "cohen_kappa": lambda: sk.cohen_kappa_score(y, p),
        "zero_one_loss": lambda: sk.zero_one_loss(y, p),
    }
    for part, average in itertools.product(("f1", "precision", "recall", "jaccard"), ("macro", "weighted", "micro")):
        function = getattr(sk, f"{part}_score")
        found[f"{average}_{part}"] = lambda f=function, a=average: f(y, p, average=a, zero_division=0)
    return found


def of_one_class(logits: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], float]]:
    classes, y = np.arange(logits.shape[1]), labels
    head = TWO if len(classes) == 2 else FOUR
    p = head.probabilities(head.stated(logits))  # the very ones, so that ties are ties
    found = of_classes(logits, labels)
    no_relation = {"labels": classes[1:], "average": "micro", "zero_division": 0}
    for part in ("f1", "precision", "recall"):
        function = getattr(sk, f"{part}_score")
        found[f"relation_{part}"] = lambda f=function: f(y, logits.argmax(1), **no_relation)
    found |= {
        "log_loss": lambda: sk.log_loss(y, p, labels=classes),
        "brier_score": lambda: sk.brier_score_loss(y, p, labels=classes),
    }
    for k in (2, 3, 5, 10):
        if k < len(classes):
            found[f"top_{k}_accuracy"] = lambda k=k: sk.top_k_accuracy_score(y, p, k=k, labels=classes)
    if len(classes) > 2:
        there = label_binarize(y, classes=classes)
        for name, average in (("", "macro"), ("weighted_", "weighted")):
            found[f"{name}roc_auc"] = lambda a=average: sk.roc_auc_score(
                y, p, multi_class="ovr", average=a, labels=classes
            )
            found[f"{name}average_precision"] = lambda a=average: sk.average_precision_score(there, p, average=a)
        return found
    for part in ("f1", "precision", "recall", "jaccard"):
        found[part] = lambda f=getattr(sk, f"{part}_score"): f(y, logits.argmax(1), zero_division=0)
    found["accuracy_and_f1"] = lambda: (sk.accuracy_score(y, logits.argmax(1)) + found["f1"]()) / 2
    for name in ("", "weighted_"):
        found[f"{name}roc_auc"] = lambda: sk.roc_auc_score(y, p[:, 1])
        found[f"{name}average_precision"] = lambda: sk.average_precision_score(y, p[:, 1])
    return found


def of_sets(logits: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], float]]:
    given, p = logits > 0, SETS.probabilities(SETS.stated(logits))
    found: dict[str, Callable[[], float]] = {
        "subset_accuracy": lambda: sk.accuracy_score(labels, given),
        "zero_one_loss": lambda: sk.zero_one_loss(labels, given),
        "hamming_loss": lambda: sk.hamming_loss(labels, given),
        "log_loss": lambda: float(np.mean([sk.log_loss(labels[:, i], p[:, i]) for i in range(5)])),
        "brier_score": lambda: float(np.mean([sk.brier_score_loss(labels[:, i], p[:, i]) for i in range(5)])),
        "label_ranking_average_precision": lambda: sk.label_ranking_average_precision_score(labels, p),
        "coverage_error": lambda: sk.coverage_error(labels, p),
        "label_ranking_loss": lambda: sk.label_ranking_loss(labels, p),
        "ndcg": lambda: sk.ndcg_score(labels, p),
    }
    averages = ("macro", "weighted", "micro", "samples")
    for part, average in itertools.product(("f1", "precision", "recall", "jaccard"), averages):
        function = getattr(sk, f"{part}_score")
        found[f"{average}_{part}"] = lambda f=function, a=average: f(labels, given, average=a, zero_division=0)
    for part, (name, average) in itertools.product(
        ("roc_auc", "average_precision"), (("", "macro"), ("weighted_", "weighted"), ("micro_", "micro"))
    ):
        function = getattr(sk, f"{part}_score")
        found[f"{name}{part}"] = lambda f=function, a=average: f(labels, p, average=a)
    return found


def of_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], float]]:
    p, y = logits[:, 0].astype(np.float64), labels.astype(np.float64)
    found: dict[str, Callable[[], float]] = {
        "pearson": lambda: scipy.stats.pearsonr(p, y).statistic,
        "spearman": lambda: scipy.stats.spearmanr(p, y).statistic,
        "pearson_and_spearman": lambda: (found["pearson"]() + found["spearman"]()) / 2,
        "kendall": lambda: scipy.stats.kendalltau(p, y).statistic,
        "r2": lambda: sk.r2_score(y, p),
        "explained_variance": lambda: sk.explained_variance_score(y, p),
        "d2_absolute_error": lambda: sk.d2_absolute_error_score(y, p),
        "max_error": lambda: sk.max_error(y, p),
    }
    for name in ("mean_squared", "root_mean_squared", "mean_absolute", "median_absolute", "mean_absolute_percentage"):
        found[f"{name}_error"] = lambda f=getattr(sk, f"{name}_error"): f(y, p)
    return found


DIRECT = {TWO: of_one_class, FOUR: of_one_class, MANY: of_one_class, SETS: of_sets, TAGS: of_classes, SCORES: of_scores}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_every_metric_is_scikit_learns_or_scipys(head: Head, seed: int) -> None:
    logits, labels = draw(head, seed, rows=300 if head is MANY else 40)
    expected = DIRECT[head](logits, labels)
    assert sorted(expected) == sorted(fitting(head))
    found = scores(head, logits, labels)
    assert all(type(value) is float for value in found.values())
    assert found == pytest.approx({name: value() for name, value in expected.items()}, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("head", [FOUR, SETS], ids=str)
def test_a_class_that_is_absent_or_everywhere_is_left_out_of_means_that_are_undefined_for_it(
    head: Head, seed: int
) -> None:
    logits, labels = draw(head, seed)
    if head is SETS:
        labels = labels.copy()
        labels[:, 0], labels[:, 1] = False, True
        there = labels
    else:
        labels[labels == 0] = 1
        there = label_binarize(labels, classes=range(4))
    p = head.probabilities(logits)
    found = scores(head, logits, labels)
    first = 2 if head is SETS else 1
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(there[:, first:], p[:, first:]))
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(there[:, 1:], p[:, 1:]))
    if head is FOUR:
        assert found["log_loss"] == pytest.approx(sk.log_loss(labels, p, labels=range(4)))
        assert found["balanced_accuracy"] == pytest.approx(sk.recall_score(
            labels, logits.argmax(1), labels=[1, 2, 3], average="macro", zero_division=0
        ))  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("case", ["one label", "one answer", "both", "large"])
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_undefined_cases_give_finite_numbers(head: Head, case: str, rows: int) -> None:
    logits, labels = draw(head, 3, rows)
    if case in ("one label", "both"):
        labels = np.repeat(labels[:1], rows, axis=0)
    if case in ("one answer", "both"):
        logits = np.repeat(logits[:1], rows, axis=0)
    if case == "large":
        logits = logits * 1e4
    found = scores(head, logits, labels)
    assert all(math.isfinite(value) for value in found.values()), found
    constant = head.constant_answer(fitting(head), labels)
    assert constant is not None
    assert all(math.isfinite(value) for value in constant.values()), constant
    if case == "both" and head.classes and not head.of_words:
        assert found["roc_auc"] == 0.0


def test_answers_that_no_label_is_are_0() -> None:
    logits = np.array([[9.0, 0.0], [9.0, 0.0]])
    found = scores(TWO, logits, np.array([1, 1]))
    assert found["precision"] == found["recall"] == found["jaccard"] == found["cohen_kappa"] == found["roc_auc"] == 0.0
    assert found["average_precision"] == 1.0  # as scikit-learn says where all are of the class


def test_what_is_resampled_is_scored_row_by_row() -> None:
    rng = np.random.default_rng(0)
    for name, one in TABLE.items():
        if not one.resampled or one.value is None:
            continue
        if "regression" in one.heads:
            answers, labels = rng.normal(size=(2, 7, 30))
        else:
            answers, labels = rng.integers(0, 2, (2, 7, 30))
        rows = [one.value(*pair) for pair in zip(answers, labels, strict=True)]
        np.testing.assert_allclose(one.value(answers, labels), rows, atol=1e-12, err_msg=name)


# ---- the constant answer


def every_constant(head: Head, labels: np.ndarray) -> list[Any]:
    """All answers that could be given to every example; of scores those from the lowest label to the highest."""
    if head is SETS:
        return [np.array(bits) for bits in itertools.product([False, True], repeat=5)]
    if head is SCORES:
        return [*np.linspace(labels.min(), labels.max(), 40), float(np.mean(labels)), float(np.median(labels))]
    return [*range(len(head.classes))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("head", [TWO, FOUR, SETS, TAGS, SCORES], ids=str)
def test_no_constant_answer_is_better(head: Head, seed: int) -> None:
    _, labels = draw(head, seed)
    labels = labels.astype(np.float64) if head is SCORES else labels
    # Of these the best of a few answers is taken, as docs/metrics.md says.
    not_proved = {"samples_f1", "samples_jaccard", "median_absolute_error", "mean_absolute_percentage_error"}
    names = [name for name in fitting(head) if TABLE[name].reads == "answers" and name not in not_proved]
    constant = head.constant_answer(names, labels)
    assert constant is not None
    for answer in every_constant(head, labels):
        reached = head.scores(names, np.broadcast_to(answer, labels.shape), labels)
        assert [name for name in names if better(name, reached[name], constant[name]) and not math.isclose(
            reached[name], constant[name], abs_tol=1e-9
        )] == []  # fmt: skip


@pytest.mark.parametrize("head", [TWO, FOUR, SETS], ids=str)
def test_of_probabilities_the_constant_answer_is_the_share_of_each_class(head: Head) -> None:
    _, labels = draw(head, 1)
    names = [name for name in fitting(head) if TABLE[name].reads == "probabilities"]
    constant = head.constant_answer(names, labels)
    assert constant is not None
    assert constant["roc_auc"] == pytest.approx(0.5)
    there = labels if head is SETS else label_binarize(labels, classes=range(len(head.classes)))
    shares = there.mean(0) if there.shape[1] > 1 else np.array([1 - there.mean(), there.mean()])
    entropy = -(shares * np.log(shares)).sum()
    if head is SETS:
        entropy = (entropy - ((1 - shares) * np.log(1 - shares)).sum()) / 5
    assert constant["log_loss"] == pytest.approx(entropy)
    if head is FOUR:
        assert constant["top_2_accuracy"] == pytest.approx(np.sort(shares)[-2:].sum())


def test_losses_and_errors_are_lower_better_and_nothing_else() -> None:
    assert {name for name in TABLE if name.endswith(("_loss", "_error")) and not name.startswith("d2")} | {
        "brier_score", "pseudo_perplexity", "new_pseudo_perplexity",
    } == LOWER_IS_BETTER  # fmt: skip
