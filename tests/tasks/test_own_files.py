"""A person's own files: read right, or refused in a sentence; nothing is lost, joined or left out without a word."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from kdbert.data.data_file import open_data_file
from kdbert.errors import UserError
from kdbert.tasks import TaskSpec, get_task
from kdbert.tasks.own.columns import infer_columns
from kdbert.tasks.own.task import custom_task, own_rows
from kdbert.tasks.spec import Own

Content = str | bytes | Callable[[Path], Any]
# Folder of GLUE -> its task, the text columns and the label's.
GLUE = {
    "MRPC": ("mrpc", ("#1 String", "#2 String"), "Quality"),
    "QNLI": ("qnli", ("question", "sentence"), "label"),
    "RTE": ("rte", ("sentence1", "sentence2"), "label"),
    "SST-2": ("sst2", ("sentence",), "label"),
    "STS-B": ("stsb", ("sentence1", "sentence2"), "score"),
    "WNLI": ("wnli", ("sentence1", "sentence2"), "label"),
    "QQP_head": ("qqp", ("question1", "question2"), "is_duplicate"),
    "MNLI": ("mnli", ("sentence1", "sentence2"), "gold_label"),
    "diagnostic": ("ax", ("sentence1", "sentence2"), "label"),
    "CoLA": ("cola", ("sentence",), "label"),
}


def put(path: Path, content: Content) -> Path:
    """A file with this content."""
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def own(folder: Path, train: Content, suffix: str = ".csv", dev: Content | None = None, **options: Any) -> TaskSpec:
    """A task of a training file and a dev file (by default of the same content)."""
    files = [put(folder / f"{name}{suffix}", content) for name, content in (("train", train), ("dev", dev or train))]
    return custom_task(str(files[0]), str(files[1]), **options)


def labels(spec: TaskSpec, split: str = "train") -> list[Any]:
    """The labels of a split, as names or scores."""
    found = spec.load(split, None).labels
    assert found is not None
    return [spec.labels[number] for number in found] if spec.labels else found.tolist()


@pytest.mark.real_data
@pytest.mark.parametrize("folder", GLUE)
def test_every_file_of_glue_gives_the_rows_of_the_registered_task(glue_dir: Path, folder: str) -> None:
    name, text, label = GLUE[folder]
    spec, read = get_task(name), 0
    for path in sorted((glue_dir / folder).glob("*.tsv*")):
        split = "test" if folder == "diagnostic" else path.name.partition(".")[0]
        if split not in spec.splits:
            continue
        registered = list(spec.splits[split].rows(path))
        if folder == "CoLA" and split != "test":  # without a header
            with pytest.raises(UserError, match="line 1: column 3 has no name; write a header"):
                open_data_file(path)
            continue
        labelled = spec.splits[split].labelled
        found = list(own_rows(open_data_file(path), Own(text, (label,)), labelled))
        assert [(row.text_a, row.text_b) for row in found] == [(row.text_a, row.text_b) for row in registered]
        if spec.kind == "regression" and labelled:
            assert [float(str(row.label)) for row in found] == [float(str(row.label)) for row in registered]
        else:
            assert [row.label for row in found] == [row.label for row in registered]
        read += 1
    assert read


@pytest.mark.real_data
def test_a_malformed_row_that_qqps_own_reader_skips_is_refused(glue_dir: Path, tmp_path: Path) -> None:
    whole = (glue_dir / "QQP_head" / "train.head.tsv").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="line 11: 3 columns where the header has 6"):
        open_data_file(put(tmp_path / "train.tsv", f"{whole.rstrip()}\n9\t1\t2\n"))


@pytest.mark.real_data
def test_davidsons_csv_gives_every_row_though_many_take_several_lines(
    data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = (data_dir / "davidson").iterdir()
    table = open_data_file(path)
    assert infer_columns(table) == (("tweet",), ("class",), False)
    with caplog.at_level(logging.INFO, "kdbert"):
        assert sum(1 for _ in own_rows(table, Own(("tweet",), ("class",)), True, ("0", "1", "2"))) == 24783
    assert "917 of the rows have a quoted field with line breaks" in caplog.text


@pytest.mark.parametrize(
    ("columns", "cells", "read"),
    [
        ("question passage label", "a b|c d", "question passage"),  # BoolQ
        ("text text_pair label", "a b|c d", "text text_pair"),
        ("Sentence_A Sentence_B label", "a b|c d", "Sentence_A Sentence_B"),
        ("sentence2 sentence1 label", "a b|c d", "sentence1 sentence2"),
        ("tweet_id text label", "ab12|a b", "text"),
        ("pairID source text date label", "12x|imdb|a b|2020-01-31 10:00", "text"),
        ("text label_text label", "a b|very good", "text"),  # SetFit's
        ("genre source1 sentence1 sentence2 label", "news|none|a b|c d", "sentence1 sentence2"),
        ("number text length label", "3|a b|0.5", "text"),
        ("source mark sentence label", "gj04|*|a b", "sentence"),  # CoLA's, with a header
        ("digits label", "123", "digits"),  # the only one left
    ],
)
def test_columns_that_hold_no_text_or_are_a_known_pair_need_no_question(
    tmp_path: Path, columns: str, cells: str, read: str
) -> None:
    rows = [",".join([*cells.split("|"), label]) for label in "xyxy"]
    path = put(tmp_path / "train.csv", "\n".join([columns.replace(" ", ","), *rows]))
    assert infer_columns(open_data_file(path)) == (tuple(read.split()), ("label",), False)


@pytest.mark.parametrize(
    ("columns", "cells", "asked"),
    [
        ("title text label", "a b|c d", "title, text"),
        ("text aspect label", "a b|food", "text, aspect"),  # one word, and still a part of the question
        ("question passage title label", "a b|c d|e f", "question, passage, title"),
        ("text source label", "a b|Washington Post", "text, source"),
        ("premise body label", "a b|c d", "premise, body"),
    ],
)
def test_two_columns_of_text_whose_names_are_no_known_pair_are_asked_for(
    tmp_path: Path, columns: str, cells: str, asked: str
) -> None:
    rows = [",".join([*cells.split("|"), label]) for label in "xyxy"]
    path = put(tmp_path / "train.csv", "\n".join([columns.replace(" ", ","), *rows]))
    with pytest.raises(UserError, match=f"{asked} all hold text.*--text-columns"):
        infer_columns(open_data_file(path))


def test_text_in_the_last_row_only_is_text(tmp_path: Path) -> None:
    rows = [f"a b,{number},{'xy'[number % 2]}" for number in range(50)]
    path = put(tmp_path / "train.csv", "\n".join(["text,remark,label", *rows, "a b,not sure,x"]))
    with pytest.raises(UserError, match="text, remark all hold text"):
        infer_columns(open_data_file(path))


def test_columns_that_are_not_read_are_told_with_the_first_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "kdbert"):
        own(tmp_path, ",text,genre,label\n0,good film,news,x\n1,bad film,news,y\n")
    assert "not read: (without a name), genre; the first row: 'good film' -> x" in caplog.text


def rows_of(labels: list[Any]) -> str:
    """Json lines with these labels."""
    return "".join(json.dumps({"text": f"a {number}", "label": label}) + "\n" for number, label in enumerate(labels))


def parquet(labels: Any) -> Callable[[Path], None]:
    """A parquet file with these labels."""
    return lambda path: pyarrow.parquet.write_table(
        pyarrow.table({"text": [f"a {number}" for number in range(len(labels))], "label": labels}), path
    )


def test_labels_are_matched_across_forms_by_one_rule(tmp_path: Path) -> None:
    train = parquet(pyarrow.array([0.0, 1.0, 1.0, 0.0]))  # how pandas stores whole numbers once some were missing
    files = [put(tmp_path / "t.parquet", train), put(tmp_path / "d.csv", "text,label\na,1\nb,0.0\n")]
    test = put(tmp_path / "e.jsonl", rows_of(["0", 1, 1.0]))
    spec = custom_task(*map(str, files), str(test))
    assert spec.labels == ("0", "1")
    assert (labels(spec), labels(spec, "dev"), labels(spec, "test")) == (
        ["0", "1", "1", "0"], ["1", "0"], ["0", "1", "1"],
    )  # fmt: skip
    spec = own(tmp_path, rows_of([True, False, "TRUE", "false"]), ".jsonl", rows_of(["True", False]))
    assert (spec.labels, labels(spec, "dev")) == (("false", "true"), ["true", "false"])


@pytest.mark.parametrize("dev", [[1, 0], ["1", "0"]])
def test_truth_values_are_not_one_and_zero(tmp_path: Path, dev: list[Any]) -> None:
    with pytest.raises(UserError, match="line 1: label '1' is not one of the task's labels"):
        labels(own(tmp_path, rows_of([True, False, True, False]), ".jsonl", rows_of(dev)), "dev")


@pytest.mark.parametrize("none", [[-1, -1], ["-1", "-1"], [None, None], ["", ""], [float("nan"), None]])
def test_labels_that_are_all_missing_mean_an_unlabelled_split(tmp_path: Path, none: list[Any]) -> None:
    test = put(tmp_path / "test.jsonl", rows_of(none))
    spec = own(tmp_path, rows_of([1, 0, 1, 0]), ".jsonl", test_file=str(test))
    assert spec.load("test", None).labels is None
    for train, dev in ((none, [1, 0]), ([1, 0, 1, 0], none)):
        with pytest.raises(UserError, match="has no labels"):
            own(tmp_path, rows_of(train), ".jsonl", rows_of(dev))


def test_minus_one_beside_other_labels_is_a_class(tmp_path: Path) -> None:
    test = put(tmp_path / "test.jsonl", rows_of([-1, 1]))
    spec = own(tmp_path, rows_of([-1, 0, 1, 0, 1, -1]), ".jsonl", test_file=str(test))
    assert (spec.labels, labels(spec, "test")) == (("-1", "0", "1"), ["-1", "1"])
    test = put(tmp_path / "none.jsonl", rows_of([-1, -1]))  # alone it means none, whatever the classes
    assert not own(tmp_path, rows_of([-1, 0, 1, 0, 1, -1]), ".jsonl", test_file=str(test)).splits["test"].labelled
    with pytest.raises(UserError, match="line 1: label '-1' is not one"):
        labels(own(tmp_path, rows_of([0, 1, 0, 1]), ".jsonl", rows_of([-1, 1])), "dev")


@pytest.mark.parametrize(
    ("given", "kind", "read"),
    [
        ([0, 1, 2, 0, 1, 2], None, "single_label"),
        ([0, 1, 2, 0, 1, 2], "regression", "regression"),
        ([0, 1, 2, 0, 1, 2], "single-label", "single_label"),
        ([0, 1.5, 2, 0, 1, 2], None, "regression"),
        ([0, 1.5, 2, 0, 1, 2], "single-label", "single_label"),
        (list(range(20)), "regression", "regression"),
        (list(range(20)), "single-label", "single_label"),
    ],
)
def test_a_person_may_say_how_labels_are_read(tmp_path: Path, given: list[Any], kind: str | None, read: str) -> None:
    spec = own(tmp_path, rows_of(given), ".jsonl", kind=kind)
    assert spec.kind == read
    assert labels(spec) == ([str(label) for label in given] if read == "single_label" else given)


def test_whole_numbers_say_how_they_were_read(tmp_path: Path, kdbert: Any, tiny_bert: Path) -> None:
    rows = [f"a film,{number % 6}" for number in range(24)]
    files = [put(tmp_path / name, "\n".join(["text,score", *rows])) for name in ("train.csv", "dev.csv")]
    words = ["finetune-teacher", "--task", "custom", "--train-file", files[0], "--dev-file", files[1]]
    words += ["--model", tiny_bert, "--max-length", 32, "--dry-run"]
    done = kdbert(*words)
    assert done.code == 0, done.err
    assert "6 classes (0, 1, 2, 3, 4, 5); if these numbers are scores, say --kind regression" in done.err
    done = kdbert(*words, "--kind", "regression")
    assert done.code == 0, done.err
    assert "scores (regression)" in done.err
    assert "kind: regression" in done.out
    assert kdbert("distill", *words[1:-5], "--teacher-model", tiny_bert, *words[-3:], "--kind", "regression").code == 0
    assert kdbert(*words, "--kind", "scores").code == 2


REFUSED: dict[str, tuple[Content, str, dict[str, Any], str]] = {
    "soft labels": (rows_of([[0.2, 0.8], [0.9, 0.1]]), ".jsonl", {}, "soft labels"),
    "soft labels by name": (rows_of([{"a": 0.2, "b": 0.8}]), ".jsonl", {}, "soft labels"),
    "an object": (rows_of([{"a": "b"}]), ".jsonl", {}, "JSON object"),
    "a list in a later row": (rows_of(["a", "b", ["a", "b"]]), ".jsonl", {}, "lists .*line 3.* other .*line 1"),
    "numpy in csv": ("text,label\na,[0.2 0.8]\n", ".csv", {}, "soft labels"),
    "numbers in one cell": ('text,label\na,2\nb,17\nc,2\nd,17\ne,"2,17"\nf,2\n', ".csv", {}, "2,17.*decimal comma"),
    "a JSON object of columns": ('{"text": {"0": "a"}, "label": {"0": "x"}}', ".json", {}, "orient"),
    "a JSON object of rows": ('{"data": [{"text": "a", "label": "x"}]}', ".json", {}, "orient"),
    "a line for Excel": ("sep=,\ntext,label\na,x\n", ".csv", {}, "remove this line"),
    "dates": (parquet(pyarrow.array([0, 1], pyarrow.timestamp("s"))), ".parquet", {}, "date or time"),
    "bytes": (parquet([b"a", b"b"]), ".parquet", {}, "bytes"),
    "words and a class": ('{"tokens": ["a"], "label": 1}\n{"tokens": ["a"], "label": 0}\n', ".jsonl", {}, "list"),
    "CoNLL as text": ("EU NNP B-ORG\nrejects VB O\n\nPeter NNP B-PER\n", ".txt", {}, "--kind token"),
    "CoNLL as tsv": ("EU\tB-ORG\nrejects\tO\n\nPeter\tB-PER\n", ".tsv", {}, "line 3: .*tagged word"),
    "CoNLL as csv": ("EU,O\nrejects,O\nPeter,B\n", ".csv", {}, "first line looks like a row"),
    "no header": ("good film,1\nbad film,0\nso so,1\nwell,0\n", ".csv", {}, "first line looks like a row"),
    "scores without a header": ("good film,1.5\nbad film,0.2\nso so,1\n", ".csv", {}, "first line looks like a row"),
    "plain text": ("one text\nanother text\n", ".txt", {}, "--corpus"),
    "a quote that is not closed": ('text,label\n"a\nb",x\nc,y\n"d,x\ne,y\n', ".csv", {}, "line 5: .*quote"),
    "in the second field": ('text,label\n"a\nb","x\nc,y\n', ".csv", {}, "line 2: .*quote"),
    "text behind a quote": ('text,label\n"good" film,x\nb,y\n', ".csv", {}, "line 2: .*quote"),
    "swallowed rows": ('text,label\na,x\n"b,x\nc",y\nd,y\n', ".csv", {}, "line 3: .*looks like a row .b,x"),
    "swallowed behind the label": ('label,text\nx,a\nx,"b\ny,c"\ny,d\n', ".csv", {}, "line 3: .*looks like a row .y,c"),
    "a blank line in a list of texts": ("text\tlabel\na\tx\n\nb\ty\n", ".tsv", {}, "line 3: a blank line"),
    "a tab too many": ("text\tlabel\na\tb\tx\n", ".tsv", {}, "line 2: 3 columns where the header has 2"),
    "semicolons": ("text;label\na;x\n", ".csv", {}, "separated by ';'"),
    "commas in tsv": ("text,label\na,x\n", ".tsv", {}, "separated by ','"),
    "quoted names in tsv": ('"text"\t"label"\n"a"\t"x"\n', ".tsv", {}, "names are in quotes"),
    "carriage returns": ("text\tlabel\ra\tx\rb\ty\r", ".tsv", {}, "carriage returns"),
    "carriage returns in csv": ("text,label\ra,x\rb,y\r", ".csv", {}, "carriage returns"),
    "UTF-16": ("text,label\na,x\nb,y\n".encode("utf-16"), ".csv", {}, "iconv -f utf-16"),
    "UTF-16 without a mark": ("text\tlabel\na\tx\n".encode("utf-16-le"), ".tsv", {}, "iconv -f utf-16le"),
    "a column without a name": ("text,label,\na,x,\n", ".csv", {}, "column 3 has no name"),
    "a key that stands twice": ('{"text": "a", "label": 1, "label": 0}\n', ".jsonl", {}, "line 1: a key is"),
    "a parquet column that stands twice": (
        lambda path: pyarrow.parquet.write_table(
            pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["text", "label", "label"]), path
        ),
        ".parquet", {}, "occurs twice",
    ),
    "a JSON list": (json.dumps([{"text": "a", "label": 1}]), ".json", {}, "a JSON list.*lines=True"),
    "a JSON list on many lines": (json.dumps([{"text": "a", "label": 1}], indent=1), ".json", {}, "a JSON list"),
    "a word among scores": ("text,label\na,1\nb,so\n", ".csv", {"kind": "regression"}, "line 3: .*'so'"),
    "true among scores": (rows_of([1, True]), ".jsonl", {"kind": "regression"}, "line 2: .*'true' is not a number"),
    "whole scores": ("text,label\n" + "".join(f"a,{n}\n" for n in range(9)), ".csv", {}, "--kind regression"),
    "one score": ("text,label\na,1.5\nb,1.5\n", ".csv", {}, "one label only"),
    "the same label in other letters": (rows_of(["Yes", "yes", "no"] * 3), ".jsonl", {}, "'Yes' and 'yes'"),
    "the same number": (rows_of(["1", "01", "2"] * 3), ".jsonl", {}, "'01' and '1'"),
    "several label columns": ("text,intent,category\na,x,z\nb,y,z\n", ".csv", {}, "intent, category may be it"),
    "the text behind": ("mood,text\nx,a b\ny,c d\n", ".csv", {}, "cannot tell the label column"),
    "one column twice": ("text,label\na,x\nb,y\n", ".csv", {"text_columns": ["text", "text"]}, "different columns"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_misread_is_refused_in_a_sentence(tmp_path: Path, case: str) -> None:
    content, suffix, options, told = REFUSED[case]
    with pytest.raises(UserError, match=told) as error:
        own(tmp_path, content, suffix, **options).load("train", None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "suffix", "texts"),
    [
        ('text,label\n5" screen,x\nthe "best",y\n', ".csv", ['5" screen', 'the "best"']),
        ('text\tlabel\n"good" film\tx\n"fine\ty\nbad"\tx\n', ".tsv", ['"good" film', '"fine', 'bad"']),
        ('text,label\n"Dear John,\nno",x\n"a ""b""",y\n', ".csv", ["Dear John,\nno", 'a "b"']),
        (lambda path: pyarrow.parquet.write_table(
            pyarrow.table({"text": pyarrow.array(["a", "b", "a"]).dictionary_encode(),
                           "label": pyarrow.array(["x", "y", "y"]).dictionary_encode()}), path),
         ".parquet", ["a", "b", "a"]),
    ],
)  # fmt: skip
def test_what_looks_odd_and_is_right_is_read(tmp_path: Path, content: Content, suffix: str, texts: list[str]) -> None:
    assert own(tmp_path, content, suffix).load("train", None).text_a == texts


def test_columns_of_dev_and_test_may_stand_in_another_order(tmp_path: Path) -> None:
    test = put(tmp_path / "test.csv", "more,text\n1,so so\n")
    spec = own(tmp_path, "text,label\ngood,x\nbad,y\n", ".csv", "label,text\ny,worse\n", test_file=str(test))
    assert (spec.load("dev", None).text_a, labels(spec, "dev")) == (["worse"], ["y"])
    assert spec.load("test", None).text_a == ["so so"]


@pytest.mark.parametrize(
    ("content", "suffix", "told"),
    [
        ('text\tlabel\n"she said ""no"""\tx\nb\ty\n', ".tsv", "1 of the texts look quoted as in csv"),
        ("text,label\n,x\n  ,y\nb,y\n", ".csv", "2 of the rows have an empty text"),
    ],
)
def test_what_is_likely_to_be_a_mistake_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str, suffix: str, told: str
) -> None:
    own(tmp_path, content, suffix).load("train", None)
    assert told in caplog.text


def test_a_label_column_in_another_spelling_is_not_missed(tmp_path: Path) -> None:
    for name in ("Label", "labels"):
        test = put(tmp_path / f"{name}.csv", f"text,{name}\na,x\nb,y\n")
        with pytest.raises(UserError, match="has no column 'label'"):
            own(tmp_path, "text,label\na,x\nb,y\n", ".csv", test_file=str(test))


def test_a_very_long_text_is_read(tmp_path: Path) -> None:
    spec = own(tmp_path, f"text,label\n{'a ' * 100_000},x\nb,y\n", ".csv")
    assert len(spec.load("train", None).text_a[0]) == 200_000


def test_another_class_is_not_suggested_for_a_label(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        labels(own(tmp_path, "text,label\na,neg\nb,pos\n", ".csv", "text,label\na,neu\nb,pos\n"), "dev")
    assert "did you mean" not in str(error.value)
