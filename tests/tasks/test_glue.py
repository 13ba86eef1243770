"""GLUE from its official files: rows, columns and labels, against the raw lines and the published counts."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbert.data.examples import Examples
from kdbert.data.files import read_lines
from kdbert.errors import UserError
from kdbert.tasks import get_task
from kdbert.tasks.readers import Columns, read_tsv

# task, folder, split, rows, column of text_a, of text_b, of the label, whether there is a header
# (docs/quirks.md, 7 and the row counts of the official files)
REAL = [
    ("cola", "CoLA", "train", 8551, 3, None, 1, False),
    ("cola", "CoLA", "dev", 1043, 3, None, 1, False),
    ("cola", "CoLA", "test", 1063, 1, None, None, True),
    ("mrpc", "MRPC", "train", 3668, 3, 4, 0, True),
    ("mrpc", "MRPC", "dev", 408, 3, 4, 0, True),
    ("mrpc", "MRPC", "test", 1725, 3, 4, None, True),
    ("rte", "RTE", "train", 2490, 1, 2, 3, True),
    ("rte", "RTE", "dev", 277, 1, 2, 3, True),
    ("rte", "RTE", "test", 3000, 1, 2, None, True),
    ("wnli", "WNLI", "train", 635, 1, 2, 3, True),
    ("wnli", "WNLI", "dev", 71, 1, 2, 3, True),
    ("wnli", "WNLI", "test", 146, 1, 2, None, True),
    ("sst2", "SST-2", "train", 67349, 0, None, 1, True),
    ("sst2", "SST-2", "dev", 872, 0, None, 1, True),
    ("sst2", "SST-2", "test", 1821, 1, None, None, True),
    ("stsb", "STS-B", "train", 5749, 7, 8, 9, True),
    ("stsb", "STS-B", "dev", 1500, 7, 8, 9, True),
    ("stsb", "STS-B", "test", 1379, 7, 8, None, True),
    ("qnli", "QNLI", "dev", 5463, 1, 2, 3, True),
    ("qnli", "QNLI", "test", 5463, 1, 2, None, True),
    ("ax", "diagnostic", "test", 1104, 1, 2, None, True),
]
LABELS = {
    "cola": ("0", "1"),
    "mrpc": ("0", "1"),
    "rte": ("entailment", "not_entailment"),
    "wnli": ("0", "1"),
    "sst2": ("0", "1"),
    "stsb": (),
    "qqp": ("0", "1"),
    "qnli": ("entailment", "not_entailment"),
    "mnli": ("contradiction", "entailment", "neutral"),
    "ax": ("contradiction", "entailment", "neutral"),
}
# Any character but tab, line ends and half surrogates (which are no UTF-8).
CELL = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), max_size=40)


def raw(path: Path) -> list[list[str]]:
    """Cells of every line of a plain or gzipped file, read with nothing of kdbert."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [line.split("\t") for line in content.decode("utf-8-sig").split("\n") if line]


def same(first: Examples, second: Examples) -> bool:
    """Whether two splits hold the same ids, texts and labels."""
    return first.ids == second.ids and first.fingerprint() == second.fingerprint()


def write_rte(folder: Path, content: bytes, name: str = "dev.tsv") -> Path:
    """An RTE folder with one file of these bytes."""
    (folder / "RTE").mkdir(parents=True, exist_ok=True)
    (folder / "RTE" / name).write_bytes(content)
    return folder


@pytest.mark.real_data
@pytest.mark.parametrize(("task", "folder", "split", "rows", "a", "b", "label", "header"), REAL)
def test_real_file_equals_its_raw_lines(
    glue_dir: Path,
    task: str,
    folder: str,
    split: str,
    rows: int,
    a: int,
    b: int | None,
    label: int | None,
    header: bool,
) -> None:
    spec = get_task(task)
    path = spec.path(split, str(glue_dir))
    assert path is not None
    assert path.parent == glue_dir / folder
    examples = spec.load(split, str(glue_dir))
    lines = raw(path)[header:]
    assert len(examples) == rows == spec.rows[split] == len(lines)
    assert examples.text_a == [cells[a].rstrip("\r") for cells in lines]
    assert examples.text_b == (None if b is None else [cells[b].rstrip("\r") for cells in lines])
    assert len(set(examples.ids)) == rows
    if label is None:
        assert examples.labels is None
    elif spec.kind == "regression":
        assert examples.labels is not None
        assert examples.labels.tolist() == pytest.approx([float(cells[label]) for cells in lines])
    else:
        assert examples.labels is not None
        assert [spec.labels[i] for i in examples.labels] == [cells[label].rstrip("\r") for cells in lines]


@pytest.mark.parametrize("task", LABELS)
def test_label_names_and_their_order(task: str) -> None:
    assert get_task(task).labels == LABELS[task]
    assert get_task(task).head.outputs == (len(LABELS[task]) or 1)


@pytest.mark.real_data
def test_first_and_last_rows_are_where_they_should_be(glue_dir: Path) -> None:
    load = lambda task, split: get_task(task).load(split, str(glue_dir))  # noqa: E731
    cola = load("cola", "dev")
    assert cola.text_a[0] == "The sailors rode the breeze clear of the rocks."  # no header is taken for one
    assert cola.labels is not None
    assert Counter(cola.labels.tolist()) == {0: 322, 1: 721}
    mrpc = load("mrpc", "dev")  # its header starts with a byte-order mark, its cells hold single quotes
    assert mrpc.text_b is not None
    assert mrpc.text_a[0].startswith("He said the foodservice pie business doesn 't fit")
    assert mrpc.text_b[0].startswith('" The foodservice pie business does not fit')
    stsb = load("stsb", "dev")
    assert stsb.labels is not None
    assert (stsb.labels.dtype.name, stsb.labels.min(), stsb.labels.max()) == ("float32", 0.0, 5.0)
    rte = load("rte", "dev")
    assert rte.labels is not None
    assert Counter(rte.labels.tolist()) == {0: 146, 1: 131}  # 0 is entailment


@pytest.mark.real_data
def test_data_dir_may_be_the_task_folder_or_its_parent(glue_dir: Path) -> None:
    spec = get_task("rte")
    assert same(spec.load("dev", str(glue_dir)), spec.load("dev", str(glue_dir / "RTE")))


@pytest.mark.real_data
@pytest.mark.parametrize(("task", "folder"), [("rte", "RTE"), ("mrpc", "MRPC"), ("stsb", "STS-B")])
def test_plain_and_gzipped_files_give_equal_examples(glue_dir: Path, tmp_path: Path, task: str, folder: str) -> None:
    (tmp_path / folder).mkdir()
    spec = get_task(task)
    for split in ("dev", "test"):
        packed = glue_dir / folder / f"{split}.tsv.gz"
        (tmp_path / folder / f"{split}.tsv").write_bytes(gzip.decompress(packed.read_bytes()))
        assert same(spec.load(split, str(tmp_path)), spec.load(split, str(glue_dir)))


@pytest.mark.real_data
def test_qqp_reads_the_official_columns_and_skips_malformed_rows(
    glue_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "QQP").mkdir()
    for split in ("train", "dev", "test"):
        shutil.copy(glue_dir / "QQP_head" / f"{split}.head.tsv", tmp_path / "QQP" / f"{split}.tsv")
    spec = get_task("qqp")
    for split in ("train", "dev", "test"):
        lines = raw(tmp_path / "QQP" / f"{split}.tsv")[1:]
        examples = spec.load(split, str(tmp_path))
        first, second = (1, 2) if split == "test" else (3, 4)
        assert len(examples) == 9
        assert examples.text_a == [cells[first].rstrip("\r") for cells in lines]
        assert examples.text_b == [cells[second].rstrip("\r") for cells in lines]
        assert examples.ids == [cells[0] for cells in lines]
        if split == "test":
            assert examples.labels is None
        else:
            assert examples.labels is not None
            assert examples.labels.tolist() == [int(cells[5]) for cells in lines]
    whole = spec.load("train", str(tmp_path))
    with open(tmp_path / "QQP" / "train.tsv", "a", encoding="utf-8") as file:
        file.write("7\t8\t9\tA question that lost its other half\n")
    with caplog.at_level(logging.WARNING, logger="kdbert"):
        assert same(spec.load("train", str(tmp_path)), whole)
    assert "skipped 1 malformed" in caplog.text


@pytest.mark.real_data
def test_mnli_equals_its_json_lines(glue_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "MNLI").mkdir()
    shutil.copy(glue_dir / "MNLI" / "dev_matched.derived.tsv.gz", tmp_path / "MNLI" / "dev_matched.tsv.gz")
    spec = get_task("mnli")
    examples = spec.load("dev_matched", str(tmp_path))
    with gzip.open(glue_dir / "MNLI" / "dev_matched.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    assert len(examples) == len(records) == spec.rows["dev_matched"] == 9815
    key = {name.lower(): name for name in records[0]}
    tidy = lambda text: " ".join(text.split())  # noqa: E731  a tab inside a sentence cannot stand in a TSV file
    assert examples.text_b is not None
    assert [tidy(text) for text in examples.text_a] == [tidy(record[key["premise"]]) for record in records]
    assert [tidy(text) for text in examples.text_b] == [tidy(record[key["hypothesis"]]) for record in records]
    assert examples.labels is not None
    assert [spec.labels[i] for i in examples.labels] == [record[key["label"]] for record in records]


def test_mnli_dev_and_test_are_two_splits_each() -> None:
    spec = get_task("mnli")
    assert spec.split_names("dev") == ("dev_matched", "dev_mismatched")
    assert spec.split_names("test") == ("test_matched", "test_mismatched")
    assert spec.split_names("dev_mismatched") == ("dev_mismatched",)


@pytest.mark.parametrize("name", ["STS-B", "sts-b", "SST-2", "RTE", "diagnostic", "CoLA", "MNLI"])
def test_tasks_are_found_under_the_names_people_type(name: str) -> None:
    assert get_task(name).name == {"sts-b": "stsb", "sst-2": "sst2", "diagnostic": "ax"}.get(name.lower(), name.lower())


def test_byte_order_mark_line_ends_quotes_and_empty_lines(tmp_path: Path) -> None:
    rows = [
        ("0", 'He said "yes', "it's ''fine''", "entailment"),  # a quote opens nothing
        ("1", "form\x0cfeed and \u2028 separator", "naïve 東京 🙂", "not_entailment"),
        ("2", " spaces stay ", "b", "entailment"),
    ]
    text = "index\tsentence1\tsentence2\tlabel\n" + "\n".join("\t".join(row) for row in rows)
    spec = get_task("rte")
    plain = spec.load("dev", str(write_rte(tmp_path / "plain", (text + "\n").encode())))
    assert plain.ids == ["0", "1", "2"]
    assert plain.text_a == [row[1] for row in rows]
    assert plain.text_b == [row[2] for row in rows]
    assert plain.labels is not None
    assert plain.labels.tolist() == [0, 1, 0]
    variants = {
        "mark": b"\xef\xbb\xbf" + text.encode(),
        "crlf": text.replace("\n", "\r\n").encode() + b"\r\n",
        "both": b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
        "no-last-line-end": text.encode(),
        "empty-lines": text.replace("\n", "\n\n").encode() + b"\n\n\n",
    }
    for name, content in variants.items():
        assert same(spec.load("dev", str(write_rte(tmp_path / name, content))), plain), name


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"index\tsentence1\tsentence2\tlabel\n", "no examples"),
        (b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\ta\n", "line 3: 2 columns"),
        (b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentails\n", "line 2: label 'entails'"),
        (b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\t\n", "line 2: the label is missing"),
        (b"index\tsentence1\tsentence2\tlabel\n0\ta\tcaf\xe9\tentailment\n", "line 2: not UTF-8"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path: Path, content: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        get_task("rte").load("dev", str(write_rte(tmp_path, content)))
    assert "dev.tsv" in str(error.value)


@pytest.mark.parametrize("score", ["", "nan", "inf", "high"])
def test_a_score_that_is_no_number_is_named_with_its_line(tmp_path: Path, score: str) -> None:
    (tmp_path / "STS-B").mkdir()
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    row = "\t".join(["0", "g", "f", "y", "0", "s", "s", "a", "b"])
    (tmp_path / "STS-B" / "dev.tsv").write_text(f"{header}{row}\t3.2\n{row}\t{score}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"dev\.tsv, line 3: "):
        get_task("stsb").load("dev", str(tmp_path))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELL, CELL, st.sampled_from(["entailment", "not_entailment"])), min_size=1, max_size=8))
def test_any_sentence_survives_a_tsv_file(rows: list[tuple[str, str, str]]) -> None:
    lines = ["index\tsentence1\tsentence2\tlabel"]
    lines += [f"{number}\t{a}\t{b}\t{label}" for number, (a, b, label) in enumerate(rows)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dev.tsv"
        path.write_bytes(("\n".join(lines) + "\n").encode())
        read = list(read_tsv(path, Columns(a=1, b=2, label=-1, id=0)))
    assert [(row.text_a, row.text_b, row.label) for row in read] == rows
    assert [row.place for row in read] == [f"line {number}" for number in range(2, len(rows) + 2)]


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(
        st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=30),
        min_size=1,
        max_size=8,
    ),
    mark=st.booleans(),
    crlf=st.booleans(),
    packed=st.booleans(),
)
def test_any_line_survives_read_lines(lines: list[str], mark: bool, crlf: bool, packed: bool) -> None:
    lines[0] = lines[0].lstrip("\ufeff")  # a first line's mark is what is dropped
    end = "\r\n" if crlf else "\n"
    content = ("\ufeff" if mark else "").encode() + "".join(line + end for line in lines).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("file.gz" if packed else "file")
        path.write_bytes(gzip.compress(content) if packed else content)
        assert list(read_lines(path)) == list(enumerate(lines, 1))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_gzip_file_cut_anywhere_is_refused(data: st.DataObject) -> None:
    whole = gzip.compress(b"".join(b"line %d of a file\n" % number for number in range(200)))
    cut = data.draw(st.integers(1, len(whole) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.gz"
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"file\.gz"):
            list(read_lines(path))
