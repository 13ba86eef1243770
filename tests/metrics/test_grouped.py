"""Metrics of documents, entities and words: against seqeval and scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbert.metrics import score
from kdbert.metrics.grouped import GROUPED

PARTS = ("f1", "precision", "recall")
PLAIN = ("B", "I", "O")
KINDS = ("B-CHEM", "B-DIS", "I-CHEM", "I-DIS", "O")
WORDS = ("B-INT", "B-OUT", "B-PAR", "O")


def sentences(tags: tuple[str, ...]) -> st.SearchStrategy[list[tuple[list[str], list[str]]]]:
    """Sentences as (predicted, gold) tags, I without B among them."""
    pair = st.integers(1, 12).flatmap(
        lambda n: st.tuples(*[st.lists(st.sampled_from(tags), min_size=n, max_size=n)] * 2)
    )
    return st.lists(pair, min_size=1, max_size=6)


def flat(rows: list[list[str]], tags: tuple[str, ...]) -> np.ndarray:
    """Tag numbers of all words."""
    return np.array([tags.index(tag) for row in rows for tag in row])


def found(what: str, rows: list[tuple[list[str], list[str]]], tags: tuple[str, ...]) -> dict[str, float]:
    """kdbert's metrics of these sentences."""
    groups = np.repeat(np.arange(len(rows)), [len(gold) for _, gold in rows])
    predicted, gold = (flat([row[side] for row in rows], tags) for side in (0, 1))
    return score([f"{what}_{part}" for part in PARTS], predicted, gold, groups, tags)


@pytest.mark.parametrize("tags", [PLAIN, KINDS], ids=["BIO", "two kinds"])
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_entities_equal_seqeval(tags: tuple[str, ...], data: st.DataObject) -> None:
    rows = data.draw(sentences(tags))
    predicted, gold = [row[0] for row in rows], [row[1] for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "entity_f1": seqeval.metrics.f1_score(gold, predicted, zero_division=0),
            "entity_precision": seqeval.metrics.precision_score(gold, predicted, zero_division=0),
            "entity_recall": seqeval.metrics.recall_score(gold, predicted, zero_division=0),
        }
    assert found("entity", rows, tags) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(sentences(WORDS))
def test_words_equal_seqevals_mean_over_kinds(rows: list[tuple[list[str], list[str]]]) -> None:
    # LinkBERT's figure for EBM PICO: with tags that are all B, each word is an entity of its own.
    predicted, gold = [row[0] for row in rows], [row[1] for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = seqeval.metrics.classification_report(gold, predicted, output_dict=True, zero_division=0)
    mean = report["macro avg"]  # not a number where there is no entity at all
    expected = {f"macro_token_{part}": np.nan_to_num(mean["f1-score" if part == "f1" else part]) for part in PARTS}
    assert found("macro_token", rows, WORDS) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30).flatmap(lambda n: st.tuples(
    *[st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=n, max_size=n)] * 2,
    st.lists(st.integers(0, 4), min_size=n, max_size=n),
)))  # fmt: skip
def test_documents_equal_scikit_learn_over_the_classes_of_their_sentences(
    drawn: tuple[list[list[bool]], list[list[bool]], list[int]],
) -> None:
    predicted, gold = np.array(drawn[0]), np.array(drawn[1])
    names = np.unique(drawn[2])
    groups = np.searchsorted(names, drawn[2])
    documents = [
        np.array([side[groups == number].any(0) for number in range(len(names))]) for side in (predicted, gold)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            f"document_{name}": function(documents[1], documents[0], average="micro", zero_division=0)
            for name, function in (
                ("f1", sklearn.metrics.f1_score),
                ("precision", sklearn.metrics.precision_score),
                ("recall", sklearn.metrics.recall_score),
            )
        }
    assert score(tuple(expected), predicted, gold, groups) == pytest.approx(expected, abs=1e-12)


def test_counts_add_up_over_groups() -> None:
    groups = np.array([0, 0, 1, 1, 2])
    labels, predictions = flat([["B", "I", "O", "B", "O"]], PLAIN), flat([["B", "I", "I", "B", "B"]], PLAIN)
    metric = GROUPED["entity_f1"]
    counts = metric.counts(predictions, labels, groups, PLAIN)
    assert counts.tolist() == [[1, 1, 1], [1, 2, 1], [0, 1, 0]]
    assert metric.value(counts.sum(0)) == pytest.approx(2 * 2 / (4 + 2))
