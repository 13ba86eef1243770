"""Several classes and tagged words in a person's own files: every form means the same, or is refused with its line."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

from kdbert.data.data_file import open_data_file
from kdbert.data.examples import Examples
from kdbert.errors import UserError
from kdbert.metrics import score
from kdbert.tasks import TaskSpec
from kdbert.tasks.own import custom_task, no_dev
from kdbert.tasks.own.dev_part import Row, dev_rows
from kdbert.tasks.own.tags import scheme_of

CLASSES = ("art", "law", "music")
SETS = [("art",), (), ("law", "music"), ("art", "law"), ("music",), ("art", "law", "music"), ("law",), ()]
TEXTS = [f"words {number}" for number in range(len(SETS))]


def put(path: Path, text: str) -> Path:
    """A file with this text; gzip where its name says so."""
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def labelled(*labels: Any) -> str:
    """Json lines of texts with these labels."""
    return json_lines([{"text": "a b", "label": label} for label in labels])


def numbers(names: tuple[str, ...]) -> list[int]:
    return [CLASSES.index(name) for name in names]


def marks(names: tuple[str, ...]) -> list[int]:
    return [int(name in names) for name in CLASSES]


def saved(path: Path, labels: list[Any], feature: Any, **more: Any) -> Path:
    """A saved dataset of texts and labels."""
    import datasets

    columns = {"text": TEXTS, "label": labels} if not more else {**more, "label": labels}
    kinds = {
        name: datasets.Value("string") if name == "text" else datasets.List(datasets.Value("string"))
        for name in columns
    }
    data = datasets.Dataset.from_dict(columns, features=datasets.Features({**kinds, "label": feature}))
    data.save_to_disk(str(path))
    return path


def class_lists(path: Path) -> Path:
    import datasets

    return saved(path, [numbers(names) for names in SETS], datasets.List(datasets.ClassLabel(names=list(CLASSES))))


def parquet_lists(path: Path) -> Path:
    import datasets

    class_lists(path.with_suffix(".saved"))
    datasets.load_from_disk(str(path.with_suffix(".saved"))).to_parquet(str(path))
    return path


def own(path: Path, **options: Any) -> TaskSpec:
    """The task of a training file that is its own test file, with a part of it as dev split."""
    return custom_task(str(path), str(path.with_name(f"dev-{path.name}")), **options)


def both(folder: Path, name: str, text: str, **options: Any) -> TaskSpec:
    put(folder / f"dev-{name}", text)
    return own(put(folder / name, text), **options)


def table(names: list[str], rows: list[list[Any]], sign: str = ",") -> str:
    return "\n".join(sign.join(map(str, row)) for row in [names, *rows]) + "\n"


Made = Callable[[Path], TaskSpec]
SEVERAL: dict[str, Made] = {
    "names in json lines": lambda at: both(
        at, "t.jsonl", json_lines([{"text": t, "labels": list(s)} for t, s in zip(TEXTS, SETS, strict=True)])
    ),
    "one-hot columns": lambda at: both(
        at, "t.csv", table(["text", *CLASSES], [[t, *marks(s)] for t, s in zip(TEXTS, SETS, strict=True)]),
        label_column=list(CLASSES),
    ),
    "columns of truth values": lambda at: both(
        at, "t.tsv", table(
            ["id", *CLASSES, "text"],
            [["7", *map(bool, marks(s)), t] for t, s in zip(TEXTS, SETS, strict=True)], "\t",
        ),
        label_column=list(CLASSES),
    ),
    "a separator": lambda at: both(
        at, "t.csv.gz", table(["text", "label"], [[t, "|".join(s)] for t, s in zip(TEXTS, SETS, strict=True)]),
        label_separator="|",
    ),
    "a separator with spaces": lambda at: both(
        at, "t.tsv", table(["text", "label"], [[t, " ; ".join(s)] for t, s in zip(TEXTS, SETS, strict=True)], "\t"),
        label_separator=";", kind="multi-label",
    ),
    "white space": lambda at: both(
        at, "t.csv", table(["text", "label"], [[t, " ".join(s)] for t, s in zip(TEXTS, SETS, strict=True)]),
        label_separator=" ",
    ),
    "lists written by Python": lambda at: both(
        at, "t.tsv", table(["text", "label"], [[t, str(list(s))] for t, s in zip(TEXTS, SETS, strict=True)], "\t"),
    ),
    "a saved dataset": lambda at: (class_lists(at / "dev-t"), own(class_lists(at / "t")))[1],
    "parquet of datasets": lambda at: (parquet_lists(at / "dev-t.parquet"), own(parquet_lists(at / "t.parquet")))[1],
}  # fmt: skip
UNNAMED: dict[str, Made] = {  # classes are called by their numbers
    "marks": lambda at: both(
        at, "t.jsonl", json_lines([{"text": t, "label": marks(s)} for t, s in zip(TEXTS, SETS, strict=True)])
    ),
    "marks in csv": lambda at: both(
        at, "t.csv", table(["text", "label"], [[t, f'"{marks(s)}"'] for t, s in zip(TEXTS, SETS, strict=True)])
    ),
    "numbers": lambda at: both(
        at, "t.jsonl", json_lines([{"text": t, "label": numbers(s)} for t, s in zip(TEXTS, SETS, strict=True)])
    ),
}


@pytest.mark.parametrize("form", [*SEVERAL, *UNNAMED])
def test_several_classes_mean_the_same_in_every_form(tmp_path: Path, form: str) -> None:
    spec = (SEVERAL | UNNAMED)[form](tmp_path)
    assert (spec.kind, spec.labels) == ("multi_label", CLASSES if form in SEVERAL else ("0", "1", "2"))
    for split in ("train", "dev"):
        examples = spec.load(split, None)
        assert list(examples.text_a) == TEXTS
        assert examples.labels is not None
        assert examples.labels.astype(int).tolist() == [marks(names) for names in SETS]


WORDS = [["EU", "rejects", "German", "call"], ["Peter", "#", "Blackburn"], ["Brussels"]]
TAGS = {
    "BIO": [["B-ORG", "O", "B-MISC", "O"], ["B-PER", "I-PER", "I-PER"], ["B-LOC"]],
    "IOB1": [["I-ORG", "O", "I-MISC", "O"], ["I-PER", "I-PER", "B-PER"], ["I-LOC"]],
    "BIOES": [["S-ORG", "O", "S-MISC", "O"], ["B-PER", "I-PER", "E-PER"], ["S-LOC"]],
    "BILOU": [["U-ORG", "O", "U-MISC", "O"], ["B-PER", "I-PER", "L-PER"], ["U-LOC"]],
    "IO": [["I-ORG", "O", "I-MISC", "O"], ["I-PER", "I-PER", "I-PER"], ["I-LOC"]],
    "": [["NNP", "VBZ", "JJ", "NN"], ["NNP", "SYM", "NNP"], ["NNP"]],
}


def conll(tags: list[list[str]], sign: str = " ", middle: str = "", start: str = "") -> str:
    sentences = [
        "".join(sign.join([word, *([middle] if middle else []), tag]) + "\n" for word, tag in zip(*both, strict=True))
        for both in zip(WORDS, tags, strict=True)
    ]
    return start + "\n".join(sentences)


def tag_lists(path: Path) -> Path:
    import datasets

    names = sorted({tag for sentence in TAGS["BIO"] for tag in sentence})[::-1]
    feature = datasets.List(datasets.ClassLabel(names=names))
    return saved(path, [[names.index(tag) for tag in tags] for tags in TAGS["BIO"]], feature, tokens=WORDS)


BIO = TAGS["BIO"]
TAGGED: dict[str, Made] = {
    "json lines": lambda at: both(
        at, "t.jsonl", json_lines([{"id": 1, "tokens": w, "ner_tags": t} for w, t in zip(WORDS, BIO, strict=True)])
    ),
    "other tags beside": lambda at: both(
        at, "t.jsonl", json_lines([
            {"words": w, "pos_tags": t[::-1], "tags": t} for w, t in zip(WORDS, BIO, strict=True)
        ]),
    ),
    "text and tags as texts": lambda at: both(
        at, "t.csv", table(
            ["sentence", "label"], [[" ".join(w), " ".join(t)] for w, t in zip(WORDS, BIO, strict=True)]
        ),
        kind="token",
    ),
    "CoNLL": lambda at: both(at, "t.conll", conll(BIO)),
    "CoNLL 2003": lambda at: both(at, "t.conll", conll(BIO, middle="NN", start="-DOCSTART- -X- O\n\n")),
    "CoNLL with comments": lambda at: both(at, "t.conll.gz", conll(BIO, start="# a text\n# id 7\n#x\n")),
    "CoNLL with tabs": lambda at: both(at, "t.iob2", conll(BIO, "\t", start="\n\n")),
    "CoNLL with Windows line ends": lambda at: both(at, "t.conll", conll(BIO).replace("\n", "\r\n") + "\r\n \r\n"),
    "CoNLL called txt": lambda at: both(at, "train.txt", conll(BIO), kind="token"),
    "CoNLL called tsv": lambda at: both(at, "train.tsv", conll(BIO, "\t"), kind="token"),
    "CoNLL without an ending": lambda at: both(at, "eng.train", conll(BIO), kind="token"),
    "a saved dataset": lambda at: (tag_lists(at / "dev-t"), own(tag_lists(at / "t")))[1],
}  # fmt: skip


@pytest.mark.parametrize("form", TAGGED)
def test_tagged_words_mean_the_same_in_every_form(tmp_path: Path, form: str) -> None:
    spec = TAGGED[form](tmp_path)
    kinds = ("LOC", "MISC", "ORG", "PER")
    assert (spec.kind, spec.metrics[0]) == ("token", "entity_f1")
    assert spec.labels == (*(f"B-{kind}" for kind in kinds), *(f"I-{kind}" for kind in kinds), "O")
    for split in ("train", "dev"):
        examples = spec.load(split, None)
        assert examples.words == [tuple(words) for words in WORDS]
        assert examples.labels is not None
        assert [spec.labels[tag] for tag in examples.labels] == [tag for sentence in BIO for tag in sentence]


@pytest.mark.parametrize("name", TAGS)
def test_a_scheme_is_told_and_its_entities_are_counted_as_seqeval_counts_them(tmp_path: Path, name: str) -> None:
    spec = both(tmp_path, "t.conll", conll(TAGS[name]))
    scheme = scheme_of(TAGS[name], "t")
    assert scheme.name == name
    assert name in scheme.told()
    assert spec.labels == scheme.labels
    assert spec.metrics[0] == ("entity_f1" if name else "accuracy")
    if name not in ("", "BILOU"):
        expected = get_entities(TAGS[name])
        assert scheme.kinds == {kind: sum(one[0] == kind for one in expected) for kind in sorted(scheme.kinds)}


SCHEMES = {"BIO": "BI", "IO": "I", "BIOES": "BIES"}
TAG_LISTS = st.sampled_from(["BIO", "IO", "BIOES"]).flatmap(
    lambda name: st.lists(
        st.lists(st.sampled_from(["O", *(f"{one}-{kind}" for one in SCHEMES[name] for kind in "xy")]), max_size=9),
        min_size=2, max_size=6,
    ).filter(lambda sentences: any(sentences))
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(TAG_LISTS, st.randoms(use_true_random=False))
def test_any_tags_are_scored_as_seqeval_scores_them(labels: list[list[str]], random: Any) -> None:
    classes = tuple(sorted({tag for sentence in labels for tag in sentence} | {"O"}))
    answers = [[random.choice(classes) for _ in sentence] for sentence in labels]
    flat = [np.array([classes.index(tag) for sentence in one for tag in sentence]) for one in (answers, labels)]
    groups = np.repeat(np.arange(len(labels)), [len(sentence) for sentence in labels])
    found = score(("entity_f1", "entity_precision", "entity_recall"), *flat, groups, classes)
    expected = [metric(labels, answers, zero_division=0) for metric in (f1_score, precision_score, recall_score)]
    assert list(found.values()) == pytest.approx(expected)


# Without U+FEFF: at the start of a file it is a byte-order mark.
CELLS = st.text(
    st.characters(exclude_categories=["Cs", "Zl", "Zp", "Cc"], exclude_characters=" \ufeff"), min_size=1, max_size=5
).filter(lambda cell: cell.strip() == cell)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(CELLS, st.sampled_from(["O", "B-x", "I-x"])), min_size=1, max_size=5), min_size=1, max_size=5
    ),
    st.sampled_from([" ", "\t", "  "]),
    st.integers(0, 2),
)
@example([[("#", "O")], [("#x", "B-x"), ("#", "O")]], " ", 1)
def test_any_words_survive_a_conll_file(sentences: list[list[tuple[str, str]]], sign: str, blanks: int) -> None:
    between = "\n" * (1 + blanks)
    text = between.join("".join(f"{word}{sign}{tag}\n" for word, tag in sentence) for sentence in sentences)
    with tempfile.TemporaryDirectory() as folder:
        rows = [dict(record) for _, record in open_data_file(put(Path(folder) / "t.conll", text)).rows()]
    assert [list(zip(row["tokens"], row["tags"], strict=True)) for row in rows] == sentences


def test_a_sentence_without_words_keeps_its_place(tmp_path: Path) -> None:
    rows = [{"tokens": w, "tags": t} for w, t in [(["a"], ["B-x"]), ([], []), (["b", "c"], ["O", "O"])]]
    examples: Examples = both(tmp_path, "t.jsonl", json_lines(rows)).load("dev", None)
    assert examples.words == [("a",), (), ("b", "c")]
    assert examples.word_offsets.tolist() == [0, 1, 1, 3]


TAGGED_WORD = '{"tokens": ["a"], "tags": ["O"]}\n'
MARKS_2 = labelled([0, 1, 1], [0, 1, 1], [2, 0, 0])
COLUMNS: dict[str, Any] = {"label_column": ["a", "b"]}
REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "more tags": ("t.jsonl", TAGGED_WORD + '{"tokens": ["a"], "tags": ["O", "O"]}', {}, "line 2: 1 words, but 2 tags"),
    "a 2 among marks": ("t.jsonl", MARKS_2, {}, "line 3: .*each 0 or 1"),
    "a 2 in a column": ("t.csv", "text,a,b\nx,0,1\ny,1,2\n", COLUMNS, "line 3: column 'b' holds 2, not 0 or 1"),
    "nothing in a column": ("t.csv", "text,a,b\nx,0,1\ny,1,\n", COLUMNS, "line 3: column 'b' holds nothing"),
    "a ragged line": ("t.conll", "EU B-ORG\nrejects O\nGerman\n\nPeter B-PER\n", {}, "line 3: 1 column where .* 2"),
    "a line with more": ("t.conll", "EU B-ORG\nrejects the O\n", {}, "line 2: 3 columns"),
    "no tag": ("t.conll", "EU\tB-ORG\nrejects\t\n", {}, "line 2: there is no tag"),
    "a header": ("t.conll", "token tag\n\nEU B-ORG\nrejects O\n", {}, "'tag' is neither O nor"),
    "sentences without an end": ("t.conll", "EU B-ORG\n" * 10_001, {}, "line 1: .*blank line"),
    "another sign in the tags": ("t.conll", "EU B_ORG\nx O\n", {}, "'B_ORG'"),
    "small letters in the tags": ("t.conll", "EU b-org\nx o\n", {}, "'b-org'"),
    "letters behind the kinds": ("t.conll", "EU ORG-B\nx O\n", {}, "'ORG-B'"),
    "a word in each row": ("t.csv", "Word,Tag\nEU,B-org\nsays,O\nno,O\n", {}, "CoNLL"),
    "empty sets": ("t.csv", "text,label\na,x|y\nb,\nc,y|z\nd,x|z\ne,x|y|z\n", {}, "--label-separator"),
    "another column": ("t.conll", "EU B-ORG -\nx O -\n", {}, "--label-column"),
    "two schemes": ("t.conll", "EU S-ORG\nx O\ny U-ORG\n", {}, "BIOES and BILOU"),
    "tags that are numbers": ("t.jsonl", '{"tokens": ["a", "b"], "tags": [0, 3]}', {}, "numbers"),
    "one tag": ("t.conll", "EU O\n", {}, "every word has the tag 'O'"),
    "lists and names": ("t.jsonl", labelled(["x", "y"], "x"), {}, "line 1.*line 2"),
    "soft labels later": ("t.jsonl", labelled([0, 1], [0.3, 0.7]), {}, "line 2: .*soft"),
    "two readings of lists": ("t.jsonl", labelled([0, 1], [1, 0]), {}, "two ways"),
    "two readings of tags": ("t.jsonl", labelled(["O", "B-x"], ["O", "O"]), {}, "--kind token or --kind multi-label"),
    "a class twice": ("t.jsonl", labelled(["x", "y"], ["x", "x"]), {}, "line 2: .*'x' twice"),
    "no class anywhere": ("t.jsonl", labelled([], [], []), {}, "no row has a class"),
    "a separator in sight": ("t.csv", table(["text", "label"], [["a", one] for one in ("x", "y", "x|y")] * 4), {},
                             "--label-separator '|'"),
    "combinations": ("t.csv", "text,label\n" + "".join(f"a,{one}\n" for one in ("x|y", "y|z", "x|z", "x|y|z") * 2), {},
                     r"--label-separator '\|'"),
    "a column for each class": ("t.csv", "id,words,p,q\nu1,a b,0,1\nu2,c d,1,0\n", {}, "--label-column p,q"),
    "spans": ("t.jsonl", labelled([[0, 2, "ORG"]], []), {}, "line 1: .*spans"),
    "an empty separator": ("t.csv", "text,label\na,x\nb,y\n", {"label_separator": ""}, "--label-separator"),
    "a kind that is not there": ("t.csv", "text,label\na,x\nb,y\n", {"kind": "multi-label"}, "--label-separator"),
    "lists as one class": ("t.jsonl", labelled(["x", "y"], ["x"]), {"kind": "single-label"}, "--kind single-label"),
    "lists as scores": ("t.jsonl", labelled([1, 2], [1, 2]), {"kind": "regression"}, "--kind regression"),
    "words without tags": ("t.csv", "text,mood\na b,x\nc,y\n", {"kind": "token"}, "column of the tags"),
    "no such column": ("t.csv", "text,a,b\nx,0,1\n", {"label_column": ["a", "c"]}, "no column 'c'"),
    "a text column as label": ("t.csv", "text,a,b\nx,0,1\n", {"label_column": ["a", "text"], "text_columns": ["text"]},
                               "column 'text' is the label"),
    "splits of a file": ("t.csv", "text,label\na,x\nb,y\n", {"split_names": ["a", "b"]}, "saved dataset"),
    "a million columns": ("t.csv", ",".join(f"c{n}" for n in range(1_000_000)) + "\n", {}, "line 1: 1,000,000 columns"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_its_line(tmp_path: Path, case: str) -> None:
    name, text, options, told = REFUSED[case]
    with pytest.raises(UserError, match=told) as error:
        both(tmp_path, name, text, **options).load("train", None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("train", "dev", "options", "told"),
    [
        ([["x"], ["y"]] * 2, [["x", "z"]], {}, "line 1: label 'z' is not one of the task's labels"),
        ([[0, 1, 1], [1, 1, 0]], [[0, 2, 0]], {}, "line 1: .*each 0 or 1"),
        ([[0, 1, 1], [1, 1, 0]], [[0, 1]], {}, "line 1: .*list of 3 numbers"),
        (["x|y", "y"] * 2, ["y|zz"], {"label_separator": "|"}, "line 1: label 'zz'"),
        ([["x"], ["y"]] * 2, ["x"], {}, "line 1: the label 'x' is no list"),
        (["x", "y"] * 2, [["x", "y"]], {}, "line 1: .*several classes"),
    ],
)
def test_a_dev_label_that_does_not_fit_is_refused_with_its_line(
    tmp_path: Path, train: list[Any], dev: list[Any], options: dict[str, Any], told: str
) -> None:
    files = [
        put(tmp_path / f"{name}.jsonl", json_lines([{"text": "a", "label": label} for label in labels]))
        for name, labels in (("train", train), ("dev", dev))
    ]
    with pytest.raises(UserError, match=told):
        custom_task(*map(str, files), **options).load("dev", None)


def test_an_unknown_tag_and_a_damaged_gzip_are_named(tmp_path: Path) -> None:
    train = put(tmp_path / "t.conll.gz", conll(BIO))
    dev = put(tmp_path / "dev.conll", "EU O\n\nParis O\nVienna B-CITY\n")
    with pytest.raises(UserError, match="lines 3 to 4: label 'B-CITY'"):
        custom_task(str(train), str(dev)).load("dev", None)
    train.write_bytes(train.read_bytes()[:-12])
    with pytest.raises(UserError, match=r"truncated|cannot read"):
        custom_task(str(train), str(dev))


# ---- splits


def test_a_saved_dataset_has_all_splits(tmp_path: Path) -> None:
    import datasets

    rows = {"text": [f"t {n}" for n in range(20)], "label": ["x", "y"] * 10}
    data = datasets.Dataset.from_dict(rows)
    parts = {"train": data, "validation": data.select(range(4)), "test": data.select(range(6))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    spec = custom_task(str(tmp_path / "d"))
    assert {name: len(spec.load(name, None)) for name in spec.splits} == {"train": 20, "dev": 4, "test": 6}
    spec = custom_task(str(tmp_path / "d"), split_names=["test", "validation", "train"])
    assert {name: len(spec.load(name, None)) for name in spec.splits} == {"train": 6, "dev": 4, "test": 20}
    spec = custom_task(str(tmp_path / "d"), dev_share=0.2, split_names=["train"])
    assert {name: len(spec.load(name, None)) for name in spec.splits} == {"train": 16, "dev": 4, "test": 6}
    datasets.DatasetDict({"train": data, "dev_matched": data}).save_to_disk(str(tmp_path / "e"))
    assert "dev_matched" in str(no_dev(tmp_path / "e"))
    assert len(custom_task(str(tmp_path / "e"), split_names=["train", "dev_matched"]).load("dev", None)) == 20


def test_a_dev_share_is_taken_once_and_needs_no_dev_file(tmp_path: Path) -> None:
    rows = [{"text": f"t {n % 90}", "label": "xy"[n % 3 == 0]} for n in range(100)]
    train = put(tmp_path / "t.jsonl", json_lines(rows))
    assert list(custom_task(str(train)).splits) == ["train"]
    with pytest.raises(UserError, match="--dev-share"):
        custom_task(str(train), str(train), dev_share=0.1)
    spec = custom_task(str(train), dev_share=0.1)
    parts = {name: spec.load(name, None) for name in ("train", "dev")}
    assert sorted(map(int, [*parts["train"].ids, *parts["dev"].ids])) == list(range(100))
    assert not set(parts["train"].text_a) & set(parts["dev"].text_a)
    other = custom_task(str(train), dev_share=0.1, dev_seed=2).load("dev", None)
    assert list(other.ids) != list(parts["dev"].ids)


LABELLED = st.lists(
    st.tuples(st.text("ab ", max_size=3), st.sampled_from(["x", "y", "z"])), min_size=12, max_size=60
).map(
    lambda rows: [Row(f"{text} {number}" if number % 3 else text, label) for number, (text, label) in enumerate(rows)]
)


@settings(max_examples=100, deadline=None)
@given(LABELLED, st.floats(0.1, 0.5), st.integers(0, 5), st.randoms(use_true_random=False))
def test_a_dev_part_has_its_share_of_each_label(rows: list[Row], share: float, seed: int, random: Any) -> None:
    try:
        chosen = dev_rows(rows, share, seed, "t")
    except UserError:
        return
    texts = [{row.text for row, dev in zip(rows, chosen, strict=True) if dev == part} for part in (False, True)]
    assert not texts[0] & texts[1]
    assert {row.label for row, dev in zip(rows, chosen, strict=True) if not dev} == {row.label for row in rows} or any(
        row.text == other.text and row.label != other.label for row in rows for other in rows
    )
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.text, str(row.label))
    for label in "xyz":
        group = [text for text, its in first.items() if its == label]
        assert abs(len(texts[1] & set(group)) - share * len(group)) < 2
    if all(first[row.text] == row.label for row in rows):
        order = list(range(len(rows)))
        random.shuffle(order)
        assert dev_rows([rows[n] for n in order], share, seed, "t").tolist() == chosen[order].tolist()


def test_a_dev_part_of_scores_spans_them() -> None:
    chosen = dev_rows([Row(f"t {n}", n / 100) for n in range(1000)], 0.1, 1, "t")
    scores = np.arange(1000)[chosen] / 100
    assert len(scores) == 100
    assert np.diff(np.sort(scores)).max() <= 0.2


def test_lists_of_one_class_may_be_single_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = labelled(["x"], ["y"], ["x"], ["y"])
    assert both(tmp_path, "t.jsonl", text).kind == "multi_label"
    spec = both(tmp_path, "u.jsonl", text, kind="single-label")
    assert (spec.kind, spec.labels) == ("single_label", ("x", "y"))
    labels = spec.load("dev", None).labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 0, 1]


def test_conll_u_has_words_only(tmp_path: Path) -> None:
    rows = [("1-2", "Don't", "_"), ("1", "Do", "AUX"), ("2", "n't", "PART"), ("2.1", "x", "_"), ("3", "go", "VERB")]
    text = "# text = Don't go\n" + "".join(f"{n}\t{w}\t_\t{tag}" + "\t_" * 6 + "\n" for n, w, tag in rows)
    spec = both(tmp_path, "t.conll", text, text_columns=["2"], label_column="4", kind="token")
    assert spec.load("dev", None).words == [("Do", "n't", "go")]
    assert spec.labels == ("AUX", "PART", "VERB")


def test_dev_words_may_come_in_another_form_and_a_column_may_have_a_comma(tmp_path: Path) -> None:
    train = put(tmp_path / "t.conll", conll(BIO))
    rows = [{"tokens": w, "ner_tags": t} for w, t in zip(WORDS, BIO, strict=True)]
    spec = custom_task(str(train), str(put(tmp_path / "dev.jsonl", json_lines(rows))))
    assert spec.load("dev", None).words == [tuple(words) for words in WORDS]
    table_ = put(tmp_path / "t.csv", 'text,"a, b"\nx,p\ny,q\n')
    assert custom_task(str(table_), label_column=["a", "b"], text_columns=["text"]).labels == ("p", "q")
