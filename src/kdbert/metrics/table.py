"""Every metric under its exact name: what it is, which heads have it, how it is computed.

Values are scikit-learn's and scipy's. Where these are undefined, kdbert says 0: precision without such an answer, a
correlation with a constant, ROC AUC of a split with one class. A mean over classes leaves out the classes for which
the metric is undefined in the split.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kdbert.errors import UserError, near_miss
from kdbert.metrics.arrays import METRICS, POSITIVE
from kdbert.metrics.grouped import GROUPED

Value = Callable[[np.ndarray, np.ndarray], Any]
ONE, SEVERAL, SCORE, WORDS, TEXT, READ = "single_label", "multi_label", "regression", "token", "masked_lm", "encoder"
ANY_CLASSES = (2, None)  # how many classes a task has, at least and at most
TWO = (2, 2)


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    Attributes:
        heads: the kinds of task that have it.
        meaning: one sentence.
        value: (what it reads [N] or [N, C], labels [N] or [N, C]) -> the metric; None for one of `GROUPED`.
        reads: answers; probabilities of each class [N, C]; or answers with their document or sentence.
        also: its names in scikit-learn, and short ones.
        lower: whether a lower value is better.
        classes: how many classes a task with it has, at least and at most.
        resampled: whether `value` also takes class numbers or scores [..., N], so that a thousand resamples are one
            call; one of `GROUPED` adds up counts instead.
    """

    name: str
    heads: tuple[str, ...]
    meaning: str
    value: Value | None
    reads: Literal["answers", "probabilities", "groups"] = "answers"
    also: tuple[str, ...] = ()
    lower: bool = False
    classes: tuple[int, int | None] = ANY_CLASSES
    resampled: bool = False

    def fits(self, kind: str, classes: int, groups: Collection[str]) -> bool:
        """Whether a task of this kind, with so many classes (0: it has none), can have it.

        Args:
            groups: which of `document` and `entity` its labels make up.
        """
        least, most = self.classes
        enough = not classes or (classes >= least and (most is None or classes <= most))
        group = self.name.partition("_")[0]
        return kind in self.heads and enough and (group not in ("document", "entity") or group in groups)


def _call(function: str, labels: Any, values: Any, /, **options: Any) -> Any:
    """A function of scikit-learn's; what is not a finite number is 0."""
    import sklearn.metrics

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they tell of the undefined cases
        found = getattr(sklearn.metrics, function)(labels, values, **options)
    return np.where(np.isfinite(found), found, 0.0)


def _of_answers(function: str, **options: Any) -> Value:
    return lambda answers, labels: float(_call(function, labels, answers, **options))


def _of_positive(function: str) -> Value:
    """Of class 1, which need not occur."""
    return lambda answers, labels: float(_call(function, labels == POSITIVE, answers == POSITIVE, zero_division=0))


def _by_form(one_class: Value, several_classes: Value) -> Value:
    return lambda answers, labels: (several_classes if labels.dtype == np.bool_ else one_class)(answers, labels)


def _of_shares(function: str, **options: Any) -> Value:
    """Of probabilities: of the classes of each example, or of each class of each example by itself."""

    def value(probabilities: np.ndarray, labels: np.ndarray) -> float:
        if labels.ndim == 2:
            return float(_call(function, labels.ravel(), probabilities.ravel(), labels=[False, True], **options))
        classes = np.arange(probabilities.shape[1])
        return float(_call(function, labels, probabilities, labels=classes, **options))

    return value


def _class_by_class(function: str, average: str) -> Value:
    """Of each class against the rest (of two classes: of class 1), over the classes for which it is defined."""

    def value(probabilities: np.ndarray, labels: np.ndarray) -> float:
        there = labels if labels.ndim == 2 else labels[:, None] == np.arange(probabilities.shape[1])
        if labels.ndim == 1 and there.shape[1] == 2:
            there, probabilities = there[:, [POSITIVE]], probabilities[:, [POSITIVE]]
        if average == "micro":
            there, probabilities = there.reshape(-1, 1), probabilities.reshape(-1, 1)
        defined = there.any(axis=0)
        if function == "roc_auc_score":
            defined &= ~there.all(axis=0)
        if not defined.any():
            return 0.0
        if defined.sum() == 1:
            return float(_call(function, there[:, defined][:, 0], probabilities[:, defined][:, 0]))
        return float(_call(function, there[:, defined], probabilities[:, defined], average=average))

    return value


def _of_scores(function: str) -> Value:
    """Of scores [..., N], by columns."""

    def value(answers: np.ndarray, labels: np.ndarray) -> Any:
        shape = labels.shape[:-1]
        gold, given = (np.asarray(one, np.float64).reshape(-1, labels.shape[-1]).T for one in (labels, answers))
        found = np.broadcast_to(_call(function, gold, given, multioutput="raw_values"), gold.shape[1])
        return found.reshape(shape) if shape else float(found[0])

    return value


def _max_error(answers: np.ndarray, labels: np.ndarray) -> float:
    return float(_call("max_error", labels.astype(np.float64), answers.astype(np.float64)))


def _kendall(answers: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import kendalltau

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = float(kendalltau(answers, labels).statistic)
    return found if np.isfinite(found) else 0.0


def _averages() -> Iterator[Metric]:
    """F1, precision, recall and Jaccard: of class 1, and averaged over classes, examples, or all decisions."""
    words = {
        "f1": "F1", "precision": "precision", "recall": "recall", "jaccard": "Jaccard index"
    }  # fmt: skip
    for part, word in words.items():
        function = f"{part}_score"
        if part != "f1":
            yield Metric(
                part, (ONE,), f"{word} of the class numbered 1", _of_positive(function), also=(function,), classes=TWO
            )
        for average, meaning in (
            ("macro", f"unweighted mean over classes of the {word}"),
            ("weighted", f"mean over classes of the {word}, weighted with how often a class is in the labels"),
            ("micro", f"{word} of all decisions counted together"),
        ):
            name, value = f"{average}_{part}", _of_answers(function, average=average, zero_division=0)
            known = METRICS.get(name)
            yield Metric(
                name, (ONE, SEVERAL, WORDS), meaning, _by_form(known, value) if known is not None else value,
                also=(f"{part}_{average}",), resampled=known is not None,
            )  # fmt: skip
        yield Metric(
            f"samples_{part}", (SEVERAL,), f"mean over examples of the {word} of its classes (0 where there are none)",
            _of_answers(function, average="samples", zero_division=0), also=(f"{part}_samples",),
        )  # fmt: skip


def _named(name: str, heads: tuple[str, ...], meaning: str, **more: Any) -> Metric:
    """One of `METRICS`."""
    return Metric(name, heads, meaning, METRICS[name], resampled=True, **more)


def _grouped(name: str, heads: tuple[str, ...], meaning: str) -> Metric:
    """One of `GROUPED`."""
    lower = name.endswith(("_loss", "pseudo_perplexity"))
    return Metric(name, heads, meaning, None, reads="groups", lower=lower, resampled=True)


_PARTS = {"f1": "F1", "precision": "precision", "recall": "recall"}
_CLASSES = (ONE, WORDS)
_BOTH = (ONE, SEVERAL)
_TABLE = (
    # Of answers, one class an example or word.
    _named("accuracy", _CLASSES, "share of right answers", also=("accuracy_score",)),
    Metric(
        "balanced_accuracy", _CLASSES, "mean of the recall of the classes that are in the labels",
        _of_answers("balanced_accuracy_score"), also=("balanced_accuracy_score",),
    ),
    _named("f1", (ONE,), "F1 of the class numbered 1", also=("f1_score",), classes=TWO),
    _named("accuracy_and_f1", (ONE,), "(accuracy + F1) / 2", classes=TWO),
    _named(
        "matthews_correlation", _CLASSES, "Matthews correlation coefficient, of any number of classes",
        also=("matthews_corrcoef", "mcc"),
    ),
    Metric(
        "cohen_kappa", _CLASSES, "Cohen's kappa of answers and labels", _of_answers("cohen_kappa_score"),
        also=("cohen_kappa_score",),
    ),
    _named("relation_f1", (ONE,), "F1 over all classes but class 0"),
    _named("relation_precision", (ONE,), "precision over all classes but class 0"),
    _named("relation_recall", (ONE,), "recall over all classes but class 0"),
    _named("in_scope_accuracy", (ONE,), "CLINC150: accuracy over the queries of the 150 intents", classes=(151, 151)),
    _named("out_of_scope_recall", (ONE,), "CLINC150: recall of the class out of scope", classes=(151, 151)),
    *_averages(),
    # Of sets of classes.
    Metric(
        "subset_accuracy", (SEVERAL,), "share of examples whose set of classes is exactly right",
        _of_answers("accuracy_score"),
    ),
    Metric(
        "hamming_loss", (SEVERAL,), "share of wrong decisions, over examples and classes", _of_answers("hamming_loss"),
        lower=True,
    ),
    Metric(
        "zero_one_loss", (ONE, SEVERAL, WORDS), "share of wrong answers (of several classes: of inexact sets)",
        _of_answers("zero_one_loss"), lower=True,
    ),
    # Of probabilities.
    Metric(
        "roc_auc", _BOTH, "area under the ROC curve: of class 1 of two; else the unweighted mean over classes, each "
        "against the rest", _class_by_class("roc_auc_score", "macro"), "probabilities",
        also=("roc_auc_score", "roc_auc_ovr"),
    ),
    Metric(
        "weighted_roc_auc", _BOTH, "the same, weighted with how often a class is in the labels",
        _class_by_class("roc_auc_score", "weighted"), "probabilities", also=("roc_auc_ovr_weighted",),
    ),
    Metric(
        "micro_roc_auc", (SEVERAL,), "area under the ROC curve of all decisions together",
        _class_by_class("roc_auc_score", "micro"), "probabilities",
    ),
    Metric(
        "average_precision", _BOTH, "mean of the precision over recall: of class 1 of two; else the unweighted mean "
        "over classes, each against the rest", _class_by_class("average_precision_score", "macro"), "probabilities",
        also=("average_precision_score",),
    ),
    Metric(
        "weighted_average_precision", _BOTH, "the same, weighted with how often a class is in the labels",
        _class_by_class("average_precision_score", "weighted"), "probabilities",
    ),
    Metric(
        "micro_average_precision", (SEVERAL,), "average precision of all decisions together",
        _class_by_class("average_precision_score", "micro"), "probabilities",
    ),
    *(
        Metric(
            f"top_{k}_accuracy", (ONE,), f"share of examples whose class is among the {k} most probable",
            _of_shares("top_k_accuracy_score", k=k), "probabilities", classes=(k + 1, None),
            also=("top_k_accuracy", "top_k_accuracy_score") if k == 2 else (),
        )
        for k in (2, 3, 5, 10)
    ),
    Metric(
        "log_loss", _BOTH, "mean of -ln of the probability of the right answer (of several classes: of each decision)",
        _of_shares("log_loss"), "probabilities", also=("neg_log_loss",), lower=True,
    ),
    Metric(
        "brier_score", _BOTH, "mean squared error of the probabilities: of class 1 of two, of all of more classes "
        "summed, of each decision of several classes", _of_shares("brier_score_loss"), "probabilities",
        also=("brier_score_loss", "neg_brier_score"), lower=True,
    ),
    Metric(
        "label_ranking_average_precision", (SEVERAL,), "mean over an example's classes of the share of right ones "
        "among those ranked at least as high", _of_answers("label_ranking_average_precision_score"), "probabilities",
        also=("label_ranking_average_precision_score",),
    ),
    Metric(
        "coverage_error", (SEVERAL,), "how many of the most probable classes hold all of an example's",
        _of_answers("coverage_error"), "probabilities", lower=True,
    ),
    Metric(
        "label_ranking_loss", (SEVERAL,), "share of pairs of a right and a wrong class that are ranked the wrong way",
        _of_answers("label_ranking_loss"), "probabilities", also=("ranking_loss",), lower=True,
    ),
    Metric(
        "ndcg", (SEVERAL,), "normalised discounted cumulative gain of an example's classes", _of_answers("ndcg_score"),
        "probabilities", also=("ndcg_score",),
    ),
    # Of scores.
    _named("pearson", (SCORE,), "Pearson correlation"),
    _named("spearman", (SCORE,), "Spearman rank correlation"),
    _named("pearson_and_spearman", (SCORE,), "(Pearson + Spearman) / 2"),
    Metric("kendall", (SCORE,), "Kendall's tau-b", _kendall, also=("kendalltau",)),
    *(
        Metric(name, (SCORE,), meaning, _of_scores(function), also=also, lower=lower, resampled=True)
        for name, function, meaning, also, lower in (
            ("mean_squared_error", "mean_squared_error", "mean of the squared errors",
             ("neg_mean_squared_error", "mse"), True),
            ("root_mean_squared_error", "root_mean_squared_error", "root of the mean squared error",
             ("neg_root_mean_squared_error", "rmse"), True),
            ("mean_absolute_error", "mean_absolute_error", "mean of the errors without their signs",
             ("neg_mean_absolute_error", "mae"), True),
            ("median_absolute_error", "median_absolute_error", "median of the errors without their signs",
             ("neg_median_absolute_error",), True),
            ("mean_absolute_percentage_error", "mean_absolute_percentage_error",
             "mean of |error / label| (huge where a label is 0)", ("neg_mean_absolute_percentage_error", "mape"), True),
            ("r2", "r2_score", "1 - squared error / that of the labels' mean", ("r2_score",), False),
            ("explained_variance", "explained_variance_score", "1 - variance of the errors / that of the labels",
             ("explained_variance_score",), False),
            ("d2_absolute_error", "d2_absolute_error_score", "1 - absolute error / that of the labels' median",
             ("d2_absolute_error_score",), False),
        )
    ),
    Metric(
        "max_error", (SCORE,), "the largest error without its sign", _max_error, also=("neg_max_error",),
        lower=True,
    ),
    # Of documents, entities, kinds of words, and hidden pieces.
    *(_grouped(f"document_{part}", (SEVERAL,), f"{word} of documents, which have the classes of their sentences")
      for part, word in _PARTS.items()),
    *(_grouped(f"entity_{part}", (WORDS,), f"{word} of whole entities, as seqeval counts them")
      for part, word in _PARTS.items()),
    *(_grouped(f"macro_token_{part}", (WORDS,), f"{word} of words, mean over the tags but O")
      for part, word in _PARTS.items()),
    *(_grouped(f"{new}{name}", (TEXT,), meaning)
      for new in ("", "new_")
      for name, meaning in (("masked_accuracy", "share of hidden pieces that are found"),
                            ("mlm_loss", "their mean cross-entropy"), ("pseudo_perplexity", "exp of that"))),
    _grouped("distillation_loss", (READ,), "the method's own loss on texts that were not learned from"),
)  # fmt: skip

TABLE: dict[str, Metric] = {metric.name: metric for metric in _TABLE}
OTHER_NAMES = {other: metric.name for metric in _TABLE for other in metric.also}
LOWER_IS_BETTER = frozenset(metric.name for metric in _TABLE if metric.lower)

# What scikit-learn has besides, and why it is not here.
LEFT_OUT: dict[str, str] = {
    name: reason
    for reason, names in {
        "it compares clusterings": (
            "adjusted_mutual_info_score adjusted_rand_score completeness_score fowlkes_mallows_score homogeneity_score "
            "homogeneity_completeness_v_measure mutual_info_score normalized_mutual_info_score rand_score "
            "v_measure_score calinski_harabasz_score davies_bouldin_score silhouette_score silhouette_samples "
            "consensus_score pair_confusion_matrix"
        ),
        "it is a curve, a table or a report, not one number": (
            "classification_report confusion_matrix multilabel_confusion_matrix confusion_matrix_at_thresholds "
            "metric_at_thresholds det_curve precision_recall_curve roc_curve precision_recall_fscore_support"
        ),
        "it needs a number of your choice": "fbeta_score mean_pinball_loss d2_pinball_score",
        "it is the area under any curve; roc_auc is that under the ROC curve": "auc",
        "it is defined for positive predictions only, and a score may be negative": (
            "neg_mean_gamma_deviance mean_gamma_deviance neg_mean_poisson_deviance mean_poisson_deviance "
            "neg_mean_squared_log_error mean_squared_log_error neg_root_mean_squared_log_error "
            "root_mean_squared_log_error mean_tweedie_deviance d2_tweedie_score"
        ),
        "it is undefined for a model that is always right": (
            "positive_likelihood_ratio neg_negative_likelihood_ratio class_likelihood_ratios"
        ),
        "it is undefined where a class is absent; roc_auc takes each class against the rest": (
            "roc_auc_ovo roc_auc_ovo_weighted"
        ),
        "it is a loss against that of the shares of the classes, which tables show as the constant answer": (
            "d2_log_loss_score d2_brier_score"
        ),
        "it is of margins, and kdbert's classifiers give probabilities": "hinge_loss",
        "ndcg is the same between 0 and 1": "dcg_score",
    }.items()
    for name in names.split()
}  # fmt: skip


def better(name: str, value: float, other: float) -> bool:
    """Whether a value of a metric is better than another."""
    return value < other if name in LOWER_IS_BETTER else value > other


def our_name(name: str) -> str:
    """The exact name of a metric that is named by one of its names; an unknown one is refused."""
    found = OTHER_NAMES.get(name.strip(), name.strip())
    if found in LEFT_OUT:
        raise UserError(f"metric {found!r} is not one of kdbert's: {LEFT_OUT[found]}")
    if found not in TABLE:
        cure = near_miss(found, [*TABLE, *OTHER_NAMES]) or "; docs/metrics.md lists the metrics of every kind of task"
        raise UserError(f"unknown metric {found!r}{cure}")
    return found


def chosen(
    names: Iterable[str], task: str, takes: str, kind: str, classes: int, groups: Collection[str]
) -> tuple[str, ...]:
    """The exact names of the metrics that a task is to be scored by, each once; one that does not fit is refused.

    Args:
        task, takes: its name, and what completes "task X, which …".
        kind, classes, groups: see `Metric.fits`.
    """
    found = []
    for name in dict.fromkeys(map(our_name, names)):
        if name == "accuracy" and kind == SEVERAL:
            name = "subset_accuracy"  # what scikit-learn calls so there
        if not TABLE[name].fits(kind, classes, groups):
            fitting = ", ".join(metric.name for metric in TABLE.values() if metric.fits(kind, classes, groups))
            of = f" has {classes} classes and" if classes and kind in TABLE[name].heads else ""
            raise UserError(f"metric {name!r} does not fit task {task!r}, which{of} {takes}; those that do: {fitting}")
        found.append(name)
    return tuple(dict.fromkeys(found))


def score(
    names: Sequence[str],
    predictions: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    classes: Sequence[str] = (),
    probabilities: np.ndarray | None = None,
) -> dict[str, float]:
    """The named metrics of one split, in the order given.

    Args:
        predictions, labels: class numbers or scores [N], bool [N, C], or tags of words [W].
        groups: the document or sentence of each row, where a metric is one of `GROUPED`.
        classes: names of the classes, for these.
        probabilities: of each class [N, C], where a metric reads them.
    """
    found = {}
    for name in names:
        metric = TABLE[name]
        if metric.value is None:
            assert groups is not None
            counts = GROUPED[name].counts(predictions, labels, groups, classes)
            found[name] = float(GROUPED[name].value(counts.sum(0)))
        elif metric.reads == "probabilities":
            assert probabilities is not None
            found[name] = metric.value(probabilities, labels)
        else:
            found[name] = metric.value(predictions, labels)
    return found
