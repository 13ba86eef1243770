"""`kdbert data describe`: what is counted in a task's files equals what is there, and no text is shown unasked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbert.data.examples import Examples
from kdbert.models.load import load_tokenizer
from kdbert.models.locate import locate
from kdbert.tasks import TaskSpec, get_task
from kdbert.tasks.describe import class_counts, described, entities, lengths, repeated, rows_of
from kdbert.tasks.own import custom_task

TRAIN = """text,label
good film,pos
bad film,neg
good film,neg
Good  film,pos
" ",neg
fine secret,neutral
good film,pos
"""  # rows 2 and 6 repeat row 0, row 2 with another label; row 3 but for case and space; row 4 is empty
DEV = "text,label\ngood film,neg\nawful,neg\nFINE secret ,neutral\n"
TEST = "text\nAWFUL\nbad film\nnew\n"


@pytest.fixture
def files(tmp_path: Path) -> list[Any]:
    """The flags that name three files, whose duplicates are known."""
    words: list[Any] = []
    for name, content in (("train", TRAIN), ("dev", DEV), ("test", TEST)):
        (tmp_path / f"{name}.csv").write_text(content, encoding="utf-8")
        words += [f"--{name}-file", tmp_path / f"{name}.csv"]
    return words


def lines_of(out: str, split: str) -> dict[str, str]:
    """Name of a line -> the rest of it, of one split."""
    _, _, rest = out.partition(f"\n{split}: ")
    found = {}
    for line in rest.splitlines()[1:]:
        if not line.startswith("  "):
            break
        name, _, told = line.strip().partition(": ")
        found[name] = told
    return found


def numbers(told: str) -> list[int]:
    """The counts in a line, without percentages and ids."""
    words = told.partition("; id")[0].replace(";", " ").replace(",", " ").split()
    return [int(word) for word in words if word.isdigit()]


@pytest.mark.parametrize("words", [("custom",), ("--task", "custom")])
def test_own_files_are_described_as_those_of_a_task(words: Sequence[str], files: list[Any], kdbert: Any) -> None:
    done = kdbert("data", "describe", *words, *files)
    assert done.code == 0, done.err
    train, dev, test = (lines_of(done.out, split) for split in ("train", "dev", "test"))
    assert numbers(train["empty texts"]) == [1]
    assert numbers(train["duplicates"]) == [2, 1, 3, 1]
    assert "id 2, 3, 6" in train["duplicates"]
    assert numbers(dev["also in train"]) == [1, 1, 2, 1]
    assert numbers(test["also in train"]) == [1]
    assert numbers(test["also in dev"]) == [1]
    assert {dev["empty texts"], dev["duplicates"], test["duplicates"]} == {"none"}
    assert "neg 3, neutral 1, pos 3" in train["labels"]
    assert "pos (only in train)" in done.out.splitlines()[-1]
    assert "film" not in done.out + done.err
    assert "fine secret" not in done.out + done.err


def test_texts_are_shown_where_examples_are_asked_for(files: list[Any], kdbert: Any) -> None:
    done = kdbert("data", "describe", "custom", *files, "--examples", 2)
    assert done.code == 0, done.err
    shown = [json.loads(line) for line in done.out.splitlines() if line.startswith("  {")]
    assert shown[:2] == [{"text": "good film", "label": "pos"}, {"text": "bad film", "label": "neg"}]
    assert len(shown) == 6


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("custom",), "--train-file"),
        (("--task", "custom"), "--train-file"),
        (("custom", "--train-file", "nowhere.csv", "--dev-file", "{train}"), "nowhere.csv"),
        (("custom", "--train-file", "{train}", "--dev-file", "{dev}", "--label-column", "lable"), "'label'"),
        (("custom", "--train-file", "{dev}", "--dev-file", "{train}"), "line 2"),
        (("rte", "--train-file", "{train}"), "--task custom"),
        (("rte", "--task", "stsb"), "rte and stsb"),
        (("rte", "--max-length", "1"), "--max-length"),
    ],
)
def test_what_cannot_be_described_is_told_in_a_sentence(
    words: Sequence[str], told: str, files: list[Any], kdbert: Any
) -> None:
    places = {"train": files[1], "dev": files[3]}
    done = kdbert("data", "describe", *(word.format(**places) for word in words))
    assert done.code == 2
    last = done.err.splitlines()[-1]
    assert last.startswith("kdbert: ")
    assert told in last
    assert "Traceback" not in done.err


# ---- against a count by hand

TEXTS = ["", " ", "a", "A", "a b", "a  b", "A B", "ab", "ß", "SS", "\u2028a", "b", "a\tb "]
ROWS = st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(TEXTS), st.integers(0, 1)), min_size=1, max_size=30)


def part_of(rows: Sequence[tuple[str, str, int]], pair: bool, labelled: bool) -> Examples:
    labels = np.array([label for *_, label in rows]) if labelled else None
    return Examples(
        "train",
        [str(i) for i in range(len(rows))],
        [a for a, *_ in rows],
        [b for _, b, _ in rows] if pair else None,
        labels,
    )


def by_hand(keys: Sequence[Any], labels: Any, before: Sequence[Any] | None, its: Any) -> tuple[list[bool], int | None]:
    """As `repeated`, by comparing each row with every other."""
    found, other = [], 0
    for number, key in enumerate(keys):
        first = [i for i, one in enumerate(keys[:number] if before is None else before) if one == key][:1]
        found.append(bool(first))
        if first and labels is not None and its is not None:
            other += int(labels[number] != its[first[0]])
    return found, None if labels is None or its is None else other


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, others=ROWS, pair=st.booleans(), labelled=st.booleans(), theirs=st.booleans())
def test_repeated_rows_are_those_that_a_search_finds(
    rows: Any, others: Any, pair: bool, labelled: bool, theirs: bool
) -> None:
    spec = get_task("rte" if pair else "cola")
    part, other = part_of(rows, pair, labelled), part_of(others, pair, theirs)
    known, before = rows_of(spec, part), rows_of(spec, other)

    def keys(some: Any, plain: bool) -> list[Any]:
        texts = [(a, b) if pair else (a,) for a, b, _ in some]
        return [tuple(" ".join(one.casefold().split()) for one in row) for row in texts] if plain else texts

    for plain in (False, True):
        digests, its = (known.plain, before.plain) if plain else (known.exact, before.exact)
        for source, against in ((None, None), (others, (its, before.labels))):
            labels = part.labels if source is None else other.labels
            expected = by_hand(keys(rows, plain), part.labels, source and keys(source, plain), labels)
            which, counted = repeated(digests, known.labels, against)
            assert (which.tolist(), counted.relabelled) == expected
            assert counted.rows == sum(expected[0])


@pytest.mark.parametrize("name", ["stsb", "hoc", "ncbi-disease"])
def test_a_contradiction_is_another_score_set_or_tagging(name: str) -> None:
    spec = get_task(name)
    of_words = [("a", "b"), ("a", "b"), ("a", "b"), ("c",)] if name == "ncbi-disease" else None
    labels = {
        "stsb": np.array([1.5, 1.5, 2.0, 1.5], dtype=np.float32),
        "hoc": np.eye(10, dtype=bool)[[0, 0, 1, 0]],
        "ncbi-disease": np.array([0, 2, 0, 2, 2, 0, 1]),
    }[name]
    part = Examples("train", list("0123"), ["a b", "a b", "a b", "c"], None, labels, of_words)
    rows = rows_of(spec, part)
    assert repeated(rows.exact, rows.labels)[1] == (2, 1)


# ---- tags and lengths


def tagged(sentences: Sequence[Sequence[str]], classes: tuple[str, ...]) -> tuple[TaskSpec, Examples]:
    """A task of these tags, and sentences with them."""
    spec = TaskSpec("t", "", "token", {}, ("entity_f1",), labels=classes)
    words = [tuple(f"w{i}" for i in range(len(tags))) for tags in sentences]
    labels = np.array([classes.index(tag) for tags in sentences for tag in tags])
    return spec, Examples("train", [*map(str, range(len(words)))], [" ".join(w) for w in words], None, labels, words)


def test_entities_are_counted_by_kind_and_sentence() -> None:
    classes = ("B-LOC", "B-PER", "E-PER", "I-LOC", "I-PER", "O", "S-LOC")
    sentences = (
        ["B-PER", "I-PER", "E-PER", "S-LOC", "S-LOC"], ["O", "O"], ["I-LOC", "I-PER", "O", "B-LOC", "B-LOC", "I-LOC"],
    )  # fmt: skip
    found = entities(*tagged(sentences, classes))
    assert found is not None
    assert {kind: counts.tolist() for kind, counts in found.items()} == {"LOC": [2, 0, 3], "PER": [1, 0, 1]}
    assert entities(*tagged([["NOUN", "VERB"]], ("NOUN", "VERB"))) is None
    assert entities(*tagged([["B-INT", "O"]], ("B-INT", "O"))) is None  # each word by itself, as in EBM PICO


def test_entities_are_those_of_seqeval() -> None:
    from seqeval.metrics.sequence_labeling import get_entities

    classes = ("B-X", "B-Y", "I-X", "I-Y", "O")
    sentences = [list(tags) for size in (1, 2, 3) for tags in product(classes, repeat=size)]
    found = entities(*tagged(sentences, classes))
    assert found is not None
    for kind, counts in found.items():
        assert counts.tolist() == [sum(one[0] == kind for one in get_entities(tags)) for tags in sentences]


@pytest.mark.parametrize("rows", [3, 10_001])
def test_lengths_and_cut_words_are_those_of_the_tokenizer(rows: int, tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(locate(str(tiny_bert)), words=True)
    words = [("good", "film")[: 1 + number % 2] * (1 + number % 5) for number in range(rows)]
    part = Examples("train", [*map(str, range(rows))], [" ".join(some) for some in words], None, None, words)
    found, cut = lengths(part, tokenizer, 6)
    assert found.tolist() == [len(some) + 2 for some in words]
    assert cut == sum(max(0, len(some) - 4) for some in words)
    assert lengths(part, tokenizer, 128)[1] == 0
    assert lengths(part, None, 6)[0].tolist() == [len(some) for some in words]


# ---- all kinds of tasks


def test_a_score_tells_its_values(tmp_path: Path) -> None:
    for name in ("train", "dev"):
        rows = "".join(f"text {name} {number},{number % 4 / 2}\n" for number in range(8))
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    spec = custom_task(str(tmp_path / "train.csv"), str(tmp_path / "dev.csv"))
    told = [line for line in described(spec, None, None, "words", 128, 0) if line.startswith("  scores")]
    assert len(told) == 2
    for word in ("0 to 1.5", "mean 0.750", "4 distinct"):
        assert word in told[0]


@pytest.mark.real_data
def test_published_data_are_described_as_a_search_finds_them(kdbert: Any, data_dir: Path) -> None:
    done = kdbert("data", "describe", "emotion", "--data-dir", data_dir)
    assert done.code == 0, done.err
    spec = get_task("emotion")
    parts = {split: spec.load(split, str(data_dir)) for split in spec.splits}
    seen: dict[str, dict[str, int]] = {}  # split -> text -> label of the first row
    for split, part in parts.items():
        assert part.labels is not None
        repeats, seen[split] = [], {}
        for text, label in zip(part.text_a, part.labels.tolist(), strict=True):
            if text in seen[split]:
                repeats.append(label != seen[split][text])
            seen[split].setdefault(text, label)
        told = lines_of(done.out, split)
        assert numbers(told["duplicates"]) == ([len(repeats), sum(repeats)] if repeats else [])
        for other in list(seen)[:-1]:
            leaks = [
                label != seen[other][text]
                for text, label in zip(part.text_a, part.labels.tolist(), strict=True)
                if text in seen[other]
            ]
            assert leaks
            assert numbers(told[f"also in {other}"]) == [len(leaks), sum(leaks)]


@pytest.mark.real_data
def test_sets_of_classes_and_entities_of_published_data(data_dir: Path) -> None:
    told = [*described(get_task("hoc"), str(data_dir), None, "words", 512, 0)]
    train = get_task("hoc").load("train", str(data_dir))
    counts = class_counts(get_task("hoc"), train)
    assert train.labels is not None
    assert counts is not None
    assert any(f"none {int((~train.labels.any(1)).sum())}, one " in line for line in told)
    assert any("documents: 1295" in line for line in told)
    told = [*described(get_task("ncbi-disease"), str(data_dir), None, "words", 512, 0)]
    assert any("words: 24497; entities: 960;" in line for line in told)  # the published number of test mentions
