"""The embedded quickstart task: large enough, balanced, and no sentence in two splits."""

from __future__ import annotations

from collections import Counter

import pytest

from kdbert.data.examples import Examples
from kdbert.tasks import get_task


@pytest.fixture(scope="module")
def splits() -> dict[str, Examples]:
    """Every split, with no folder named: the file is in the package."""
    return {name: get_task("quickstart").load(name, None) for name in ("train", "dev", "test")}


def test_there_are_enough_sentences_and_intents(splits: dict[str, Examples]) -> None:
    spec = get_task("quickstart")
    assert sum(map(len, splits.values())) >= 1000
    assert len(spec.labels) >= 12
    assert {name: len(part) for name, part in splits.items()} == dict(spec.rows)
    assert spec.licence.startswith("CC0")


def test_every_split_has_every_intent_often_enough(splits: dict[str, Examples]) -> None:
    spec = get_task("quickstart")
    for name, part in splits.items():
        assert part.labels is not None
        counts = Counter(spec.labels[i] for i in part.labels)
        assert set(counts) == set(spec.labels), name
        assert min(counts.values()) >= 8, name
        assert max(counts.values()) <= 3 * min(counts.values()), name


def test_no_sentence_stands_twice(splits: dict[str, Examples]) -> None:
    seen = Counter(" ".join(text.casefold().split()) for part in splits.values() for text in part.text_a)
    assert [text for text, count in seen.items() if count > 1] == []


def test_sentences_are_sentences(splits: dict[str, Examples]) -> None:
    for part in splits.values():
        assert all(text == text.strip() and len(text.split()) >= 2 for text in part.text_a)
        assert len(set(part.ids)) == len(part)
