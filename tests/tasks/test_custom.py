"""A person's own files: every form gives the same examples, and what was inferred is told."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbert.data.data_file import open_data_file
from kdbert.data.examples import Examples
from kdbert.errors import UserError
from kdbert.tasks import TaskSpec
from kdbert.tasks.own.columns import infer_columns
from kdbert.tasks.own.task import custom_task, own_rows
from kdbert.tasks.spec import Own

ROWS = [
    {"text": "plain words", "label": "good"},
    {"text": 'she said "no", twice', "label": "bad"},
    {"text": "a second\nline", "label": "good"},
    {"text": "café, naïve 東京 🙂", "label": "bad"},
    {"text": "  spaces stay  ", "label": "so-so"},
    {"text": "the dot. the end.", "label": "so-so"},
]
ON_A_LINE = [{**row, "text": row["text"].replace("\n", " ")} for row in ROWS]  # .tsv holds no line breaks
NAMES = ["so-so", "good", "bad"]  # the order in which a saved dataset numbers them
DEV = "text,label\nnew words,good\nworse words,bad\n"


def delimited(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    """Rows as csv with a header."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def tabbed(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    """Rows as tsv with a header, without quoting."""
    return "".join("\t".join(cells) + end for cells in (rows[0], *(row.values() for row in rows))).encode()


def json_lines(rows: list[dict[str, Any]], **options: Any) -> bytes:
    """Rows as one JSON object a line."""
    return "".join(json.dumps(row, **options) + "\n" for row in rows).encode()


def saved_dataset(path: Path, in_dict: bool = False) -> None:
    """Rows as a folder of `datasets.save_to_disk`, labels as numbers with names."""
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})
    rows = [{**row, "label": NAMES.index(row["label"])} for row in ROWS]
    data = datasets.Dataset.from_list(rows, features=features)
    if in_dict:
        datasets.DatasetDict({"train": data, "validation": data.select(range(4))}).save_to_disk(str(path))
    else:
        data.save_to_disk(str(path))


def parquet_of_datasets(path: Path) -> None:
    """Parquet as `datasets` writes it: label numbers, names in the metadata."""
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})
    datasets.Dataset.from_list(
        [{**row, "label": NAMES.index(row["label"])} for row in ROWS], features=features
    ).to_parquet(str(path))


FORMS: dict[str, Callable[[Path], Any]] = {
    "t.csv": lambda path: path.write_bytes(delimited(ROWS)),
    "t.tsv": lambda path: path.write_bytes(tabbed(ON_A_LINE)),
    "mark.csv": lambda path: path.write_bytes(b"\xef\xbb\xbf" + delimited(ROWS)),
    "crlf.csv": lambda path: path.write_bytes(delimited(ROWS, "\r\n")),
    "open-end.csv": lambda path: path.write_bytes(delimited(ROWS).rstrip(b"\n")),
    "t.csv.gz": lambda path: path.write_bytes(gzip.compress(delimited(ROWS))),
    "crlf.tsv": lambda path: path.write_bytes(tabbed(ON_A_LINE, "\r\n")),
    "blank-end.tsv": lambda path: path.write_bytes(tabbed(ON_A_LINE) + b"\n  \n"),
    "blank-end.csv": lambda path: path.write_bytes(delimited(ROWS) + b"\n\n"),
    "t.tsv.gz": lambda path: path.write_bytes(gzip.compress(tabbed(ON_A_LINE))),
    "t.jsonl": lambda path: path.write_bytes(json_lines(ROWS)),
    "t.json": lambda path: path.write_bytes(json_lines(ROWS, ensure_ascii=False)),
    "t.jsonl.gz": lambda path: path.write_bytes(gzip.compress(json_lines(ROWS))),
    "t.parquet": lambda path: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path),
    "datasets.parquet": parquet_of_datasets,
    "saved": saved_dataset,
    "saved-dict": lambda path: saved_dataset(path, in_dict=True),
}


def task_of(train: Path, dev: Path | None = None, **options: Any) -> TaskSpec:
    """A custom task of a training file, with a small csv as dev file unless one is given."""
    if dev is None:
        dev = train.parent / "the-dev.csv"
        dev.write_text(DEV, encoding="utf-8")
    return custom_task(str(train), str(dev), **options)


def write_csv(folder: Path, rows: list[dict[str, Any]], name: str = "train.csv") -> Path:
    """A csv file of these rows."""
    (folder / name).write_bytes(delimited(rows))
    return folder / name


def load(spec: TaskSpec, split: str = "train") -> Examples:
    """One split of a custom task."""
    return spec.load(split, None)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_examples(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / form)
    spec = task_of(tmp_path / form)
    examples = load(spec)
    assert (spec.kind, spec.pair) == ("single_label", False)
    assert spec.labels == ("bad", "good", "so-so")
    assert examples.text_a == [row["text"] for row in (ON_A_LINE if ".tsv" in form else ROWS)]
    assert examples.text_b is None
    assert examples.labels is not None
    assert [spec.labels[i] for i in examples.labels] == [row["label"] for row in ROWS]
    assert len(set(examples.ids)) == len(ROWS)


def test_one_saved_dataset_dict_serves_both_splits(tmp_path: Path) -> None:
    saved_dataset(tmp_path / "data", in_dict=True)
    spec = task_of(tmp_path / "data", tmp_path / "data")
    assert (len(load(spec)), len(load(spec, "dev"))) == (6, 4)


def test_a_data_dir_does_not_move_a_persons_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path, ROWS)
    write_csv(tmp_path, ROWS[:3], "dev.csv")
    spec = custom_task("train.csv", "dev.csv")
    assert len(spec.load("train", "elsewhere")) == len(ROWS)


def test_a_test_file_may_have_labels_or_not(tmp_path: Path) -> None:
    train = write_csv(tmp_path, ROWS)
    with_labels = write_csv(tmp_path, ROWS[:2], "labelled.csv")
    without = write_csv(tmp_path, [{"text": row["text"]} for row in ROWS], "bare.csv")
    labelled = load(task_of(train, test_file=str(with_labels)), "test")
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [1, 0]
    bare = load(task_of(train, test_file=str(without)), "test")
    assert bare.labels is None
    assert bare.text_a == [row["text"] for row in ROWS]


@pytest.mark.parametrize(
    ("columns", "text", "label"),
    [
        ("text label", "text", "label"),
        ("id text label split", "text", "label"),
        ("Sentence Label", "Sentence", "Label"),
        ("idx sentence1 sentence2 label", "sentence1 sentence2", "label"),
        ("premise hypothesis gold_label", "premise hypothesis", "gold_label"),
        ("question1 question2 target", "question1 question2", "target"),
        ("question sentence label", "question sentence", "label"),
        ("utt intent", "utt", "intent"),
        ("tweet class", "tweet", "class"),
        ("remark verdict", "remark", "verdict"),  # two columns: the second is the label
        ("guid remark label", "remark", "label"),  # the only one left
    ],
)
def test_columns_are_inferred_by_name(tmp_path: Path, columns: str, text: str, label: str) -> None:
    names = columns.split()
    table = open_data_file(write_csv(tmp_path, [dict.fromkeys(names, "x"), dict.fromkeys(names, "y")]))
    assert infer_columns(table) == (tuple(text.split()), (label,), False)


@pytest.mark.parametrize(("columns", "told"), [("a b c", "label column"), ("a b label", "text columns")])
def test_what_cannot_be_inferred_is_asked_for(tmp_path: Path, columns: str, told: str) -> None:
    names = columns.split()
    with pytest.raises(UserError, match=f"cannot tell the {told}.*a, b.*--{told.split()[0]}-"):
        task_of(write_csv(tmp_path, [dict.fromkeys(names, "x"), dict.fromkeys(names, "y")]))


def test_named_columns_come_before_inference(tmp_path: Path) -> None:
    rows = [{"text": "wrong", "body": "b", "title": f"t{n}", "label": "wrong", "kind": "pq"[n % 2]} for n in range(4)]
    files = write_csv(tmp_path, rows), write_csv(tmp_path, rows[:2], "d.csv")
    spec = task_of(*files, text_columns=["title", "body"], label_column="kind")
    examples = load(spec)
    assert (spec.pair, spec.labels) == (True, ("p", "q"))
    assert (examples.text_a, examples.text_b) == (["t0", "t1", "t2", "t3"], ["b"] * 4)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["0.5", "3.25", "4", "5.0"], "regression"),
        (["-1.5", "1e-3", "2.0", "7"], "regression"),
        (["0", "1", "1", "0"], "single_label"),
        (["1", "2", "2", "1"], "single_label"),
        (["0.5", "high", "0.5", "high"], "single_label"),
    ],
)
def test_regression_is_inferred_from_decimal_scores(tmp_path: Path, labels: list[str], kind: str) -> None:
    rows = [{"text": f"words {number}", "label": label} for number, label in enumerate(labels)]
    spec = task_of(write_csv(tmp_path, rows), write_csv(tmp_path, rows[:3], "dev.csv"))
    examples = load(spec)
    assert examples.labels is not None
    assert spec.kind == kind
    if kind == "regression":
        assert (spec.labels, spec.head.outputs) == ((), 1)
        assert examples.labels.tolist() == pytest.approx([float(label) for label in labels])
        assert spec.metrics[0] == "pearson_and_spearman"
    else:
        assert [spec.labels[i] for i in examples.labels] == labels


def test_numbers_and_booleans_in_json_lines_are_labels(tmp_path: Path) -> None:
    cases: list[tuple[list[Any], str]] = [
        ([1, 0, 1, 0], "single_label"),
        ([True, False, True, False], "single_label"),
        ([0.5, 2.0, 3, 1.25], "regression"),
    ]
    for labels, kind in cases:
        path = tmp_path / "t.jsonl"
        path.write_bytes(json_lines([{"text": "w", "label": label} for label in labels]))
        assert task_of(path, write_dev(tmp_path, labels[0], labels[1])).kind == kind


def write_dev(folder: Path, *labels: Any) -> Path:
    """A dev file with these labels."""
    path = folder / "dev.jsonl"
    path.write_bytes(json_lines([{"text": "w", "label": label} for label in labels]))
    return path


def test_what_was_inferred_is_printed(tmp_path: Path, tiny_bert: Path, kdbert: Callable[..., Any]) -> None:
    rows = [{"Premise": f"a {n}", "hypothesis": "b", "Label": ["yes", "no"][n % 2]} for n in range(8)]
    files = ("--train-file", write_csv(tmp_path, rows), "--dev-file", write_csv(tmp_path, rows[:4], "dev.csv"))
    done = kdbert("finetune-teacher", "--task", "custom", *files, "--model", tiny_bert, "--max-length", 32, "--dry-run")
    assert done.code == 0, done.err
    said = done.out + done.err
    for word in ("8 rows", "Premise", "hypothesis", "Label", "2 classes", "no, yes"):
        assert word in said
    scores = [{"text": f"a {n}", "score": n / 4} for n in range(8)]
    files = ("--train-file", write_csv(tmp_path, scores), "--dev-file", write_csv(tmp_path, scores[:4], "dev.csv"))
    done = kdbert("finetune-teacher", "--task", "custom", *files, "--model", tiny_bert, "--max-length", 32, "--dry-run")
    assert done.code == 0, done.err
    assert "regression" in done.out + done.err


# Any text but carriage returns (a lone one is a line end to some csv readers) and what is no UTF-8.
TEXT = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=40) | st.text(
    st.sampled_from("\",\n\t;'🙂 é a"), max_size=20
)
LABELS = st.sampled_from(["yes", "no, thanks", 'a "quoted" label'])


def read_back(content: bytes, suffix: str) -> list[dict[str, Any]]:
    """The rows of a file with this content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"train{suffix}"
        path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
        return [dict(record) for _, record in open_data_file(path).rows()]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(TEXT, LABELS), min_size=1, max_size=6),
    text_last=st.booleans(),
    suffix=st.sampled_from([".csv", ".csv.gz"]),
)
def test_any_text_survives_a_csv_file(rows: list[tuple[str, str]], text_last: bool, suffix: str) -> None:
    records = [{"text": text, "label": label} for text, label in rows]
    if text_last:
        records = [{"label": record["label"], "text": record["text"]} for record in records]
    assert read_back(delimited(records), suffix) == records


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, LABELS), min_size=1, max_size=6), st.booleans())
def test_any_text_of_one_line_survives_a_tsv_file(rows: list[tuple[str, str]], text_last: bool) -> None:
    records = [{"text": text.replace("\n", "").replace("\t", ""), "label": label} for text, label in rows]
    if text_last:
        records = [{"label": record["label"], "text": record["text"]} for record in records]
    assert read_back(tabbed(records), ".tsv") == records


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_stray_quotes_lose_no_row_of_a_csv_file_without_a_word(data: st.DataObject) -> None:
    """Whole rows that a quote has swallowed are known by their labels."""
    rows = [f"{data.draw(st.sampled_from(['good film', 'so so', 'a']))},{number % 3}" for number in range(9)]
    content = "\n".join(rows)
    for place in data.draw(st.lists(st.integers(0, len(content)), max_size=4)):
        content = f'{content[:place]}"{content[place:]}'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.csv"
        path.write_text(f"text,label\n{content}\nlast,0\nlast,1\nlast,2\n", encoding="utf-8")
        found = []
        with contextlib.suppress(UserError):
            found = list(own_rows(open_data_file(path), Own(("text",), ("label",)), True, ("0", "1", "2")))
        assert len(found) in (0, 12)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_quotes_are_characters_in_a_tsv_file(data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.text('a" ,', min_size=1, max_size=8), min_size=1, max_size=5))
    content = "".join(f"{text}\t{number}\n" for number, text in enumerate(texts))
    rows = read_back(f"text\tlabel\n{content}".encode(), ".tsv")
    assert "".join(f"{row['text']}\t{row['label']}\n" for row in rows) == content


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.integers(0, 3)),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_any_text_survives_json_lines(rows: list[tuple[str, int]], escaped: bool) -> None:
    records = [{"text": text, "label": label} for text, label in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        path.write_bytes(json_lines(records, ensure_ascii=escaped))
        assert [dict(record) for _, record in open_data_file(path).rows()] == records


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz"]))
def test_no_bytes_end_in_anything_but_a_table_or_one_sentence(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"train{suffix}"
        path.write_bytes(content)
        told = f"no error in {suffix}"
        rows: list[Any] = []
        try:
            rows = list(open_data_file(path).rows())
        except UserError as error:
            told = str(error)
        assert rows or path.name in told
        assert "\n" not in told


def test_a_row_that_spans_lines_is_named_by_its_first(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text('text,label\n"one\ntwo\nthree",a\n"four\nfive",b,too many\n', encoding="utf-8")
    with pytest.raises(UserError, match="line 5: 3 columns where the header has 2"):
        open_data_file(path)
