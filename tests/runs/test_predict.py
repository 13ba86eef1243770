"""`kdbert predict` and `kdbert.predict`: the answers of a model to texts of every form, in their order."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbert import UserError, predict
from kdbert.runs.predict import AT_A_TIME, Predictor
from small_heads import make_setting
from small_run import Setting

KINDS = ("class", "score", "multi_label", "token")


@pytest.fixture(scope="module")
def runs(
    setting: Setting, tiny_bert: Path, kdbert: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path]]:
    """A run of each head in float32, and its dev file."""
    folder = tmp_path_factory.mktemp("predict")
    scored = folder / "scored.csv"
    rows = list(csv.DictReader(setting.train.open(encoding="utf-8")))[:60]
    with open(scored, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence1", "sentence2", "score"])
        writer.writerows([a["text"], b["text"], n % 7 / 2] for n, (a, b) in enumerate(itertools.pairwise(rows)))
    quick = {"precision": "fp32", "max_steps": 4}
    made: dict[str, tuple[Path, list[str]]] = {"class": (setting.dev, setting.words(folder / "class", **quick))}
    # The two files have the same rows: what is asked here is what a model answers, not what it has learnt.
    other = scored.with_name("dev.csv")
    other.write_bytes(scored.read_bytes())
    made["score"] = (
        other,
        [
            "finetune-teacher", "--task", "custom", "--train-file", scored, "--dev-file", other, "--model", tiny_bert,
            "--max-length", 48, "--output-dir", folder / "score", "train.precision=fp32", "train.max_steps=4",
        ],
    )  # fmt: skip
    for kind in ("multi_label", "token"):
        one = make_setting(kind, folder / f"{kind}-files", tiny_bert)
        made[kind] = (one.data_dir / "dev.json", one.words(folder / kind, epochs=2, precision="fp32"))
    found = {}
    for kind, (file, words) in made.items():
        done = kdbert(*words, "-q")
        assert done.code == 0, done.err
        found[kind] = Path(done.out.strip()), file
    return found


def answers_of(run: Path) -> list[dict[str, Any]]:
    """The predictions that the run itself has made of its dev file."""
    return [json.loads(line) for line in (run / "predictions" / "dev.jsonl").read_text(encoding="utf-8").splitlines()]


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_answered_as_the_run_answered_it(
    kind: str, runs: dict[str, tuple[Path, Path]], kdbert: Any, tmp_path: Path
) -> None:
    run, file = runs[kind]
    scores = [] if kind == "score" else ["--scores", "logits"]
    done = kdbert("predict", run, file, "-o", tmp_path / "out.jsonl", *scores)
    assert done.code == 0, done.err
    found, expected = rows_of((tmp_path / "out.jsonl").read_text(encoding="utf-8")), answers_of(run)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if kind == "score":
            assert one["prediction"] == pytest.approx(other["prediction"], abs=1e-4)
            continue
        assert one["prediction"] == other["prediction"]
        logits = one["logits"] if kind == "token" else [one["logits"]]
        scored = other["scores"] if kind == "token" else [other["scores"]]
        np.testing.assert_allclose([list(named.values()) for named in logits], scored, atol=1e-4)


def test_every_form_of_a_file_and_standard_input_give_the_same(
    runs: dict[str, tuple[Path, Path]], kdbert: Any, tmp_path: Path
) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    run, file = runs["class"]
    texts = [row["text"] for row in csv.DictReader(file.open(encoding="utf-8"))]
    (tmp_path / "a.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    (tmp_path / "a.tsv").write_text("text\n" + "".join(f"{text}\n" for text in texts), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "saved"))
    found = {}
    for name in ("a.txt", "a.tsv", "a.jsonl", "a.parquet", "saved", file):
        done = kdbert("predict", run, tmp_path / name)
        assert done.code == 0, done.err
        found[str(name)] = done.out
    words = [sys.executable, "-m", "kdbert", "predict", str(run), "-q"]
    piped = subprocess.run(words, input=(tmp_path / "a.txt").read_bytes(), capture_output=True)
    assert piped.returncode == 0, piped.stderr
    found["-"] = piped.stdout.decode()
    assert set(found.values()) == {found["a.txt"]}
    assert [row["prediction"] for row in rows_of(found["a.txt"])] == [row["prediction"] for row in answers_of(run)]
    assert predict(str(run), texts) == rows_of(found["a.txt"])


def test_tagged_words_are_answered_from_every_form(
    runs: dict[str, tuple[Path, Path]], kdbert: Any, tmp_path: Path
) -> None:
    run, file = runs["token"]
    sentences = [json.loads(line)["tokens"] for line in file.read_text(encoding="utf-8").splitlines()]
    for name, tag in (("a.conll", "\tO"), ("b.conll", "")):
        text = "\n".join("".join(f"{word}{tag}\n" for word in words) for words in sentences)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "a.txt").write_text("".join(" ".join(words) + "\n" for words in sentences), encoding="utf-8")
    expected = [row["prediction"] for row in answers_of(run)]
    for name, words in (("a.conll", []), ("b.conll", []), ("a.txt", []), ("b.conll", ["--format", "conll"])):
        done = kdbert("predict", run, tmp_path / name, *words)
        assert done.code == 0, done.err
        assert [row["prediction"] for row in rows_of(done.out)] == expected
    (tmp_path / "c.txt").write_text("a film\n\nb\n")
    done = kdbert("predict", run, tmp_path / "c.txt")
    assert [len(row["prediction"]) for row in rows_of(done.out)] == [2, 0, 1]
    assert "1 of the texts are empty" in done.err


@pytest.mark.parametrize("kind", ["class", "multi_label", "token"])
def test_the_librarys_pipeline_says_the_same(kind: str, runs: dict[str, tuple[Path, Path]]) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    run, file = runs[kind]
    if kind == "token":
        sentences = [json.loads(line)["tokens"] for line in file.read_text(encoding="utf-8").splitlines()][:12]
        model = AutoModelForTokenClassification.from_pretrained(run / "model").eval()
        tokenizer = AutoTokenizer.from_pretrained(run / "model")
        for words, row in zip(sentences, predict(str(run), sentences, scores="probabilities"), strict=True):
            coded = tokenizer(words, is_split_into_words=True, return_tensors="pt", truncation=True, max_length=24)
            shares = model(**coded).logits[0].softmax(-1).detach().numpy()
            for place, word in enumerate(coded.word_ids()):
                if word is not None and word != coded.word_ids()[place - 1]:
                    np.testing.assert_allclose(list(row["probabilities"][word].values()), shares[place], atol=1e-4)
            assert len(row["prediction"]) == len(words)
        return
    column = {"class": "text", "multi_label": "sentence"}[kind]
    if file.suffix == ".csv":
        texts = [row[column] for row in csv.DictReader(file.open(encoding="utf-8"))]
    else:
        texts = [json.loads(line)[column] for line in file.read_text(encoding="utf-8").splitlines()]
    library = pipeline("text-classification", model=str(run / "model"), top_k=None, device="cpu")
    length = json.loads((run / "run.json").read_text())["recipe"]["task"]["max_length"]
    expected = library(texts, truncation=True, max_length=length)
    for theirs, ours in zip(expected, predict(str(run), texts, scores="probabilities"), strict=True):
        shares = {one["label"]: one["score"] for one in theirs}
        assert ours["probabilities"] == pytest.approx(shares, abs=1e-4)
        best = [label for label, share in shares.items() if share > 0.5]
        assert ours["prediction"] == (max(shares, key=shares.__getitem__) if kind == "class" else ours["prediction"])
        assert kind == "class" or sorted(ours["prediction"]) == sorted(best)


def test_texts_are_answered_in_their_order_while_they_come(runs: dict[str, tuple[Path, Path]]) -> None:
    run, _ = runs["class"]
    asked = 0

    def texts() -> Iterator[str]:
        nonlocal asked
        for number in range(AT_A_TIME + 50):
            asked += 1
            yield ("good " if number % 3 else "bad film ") * (1 + number % 5)

    predictor = Predictor.of(
        str(run), None, scores="logits", labels=None, max_length=None, batch_size=64, precision="fp32"
    )
    found = predictor.rows(predictor.given(texts()), "texts")
    first = next(found)[1]
    assert asked == AT_A_TIME  # no more was read
    rows = [first, *(row for _, row in found)]
    assert len(rows) == AT_A_TIME + 50
    for number in (7, 300, AT_A_TIME + 3):
        (alone,) = predict(str(run), [("good " if number % 3 else "bad film ") * (1 + number % 5)], scores="logits")
        assert rows[number]["logits"] == pytest.approx(alone["logits"], abs=1e-4)


def test_columns_are_kept_and_an_existing_file_too(
    runs: dict[str, tuple[Path, Path]], kdbert: Any, tmp_path: Path
) -> None:
    run, _ = runs["class"]
    (tmp_path / "new.csv").write_text("id,text\n7,a good film\n9,\n")
    out = tmp_path / "out.jsonl"
    done = kdbert("predict", run, tmp_path / "new.csv", "-o", out, "--keep-columns")
    assert done.code == 0, done.err
    assert "1 of the texts are empty" in done.err
    assert [list(row) for row in rows_of(out.read_text())] == [["id", "text", "prediction"]] * 2
    before = out.read_bytes()
    refused = kdbert("predict", run, tmp_path / "new.csv", "-o", out)
    assert (refused.code, out.read_bytes()) == (2, before)
    assert "--overwrite" in refused.err
    (tmp_path / "new.csv").write_text("id,text\n7,a good film\n9,two,three\n")
    assert kdbert("predict", run, tmp_path / "new.csv", "-o", out, "--overwrite").code == 2
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def wrong(*words: str, files: dict[str, str] | None = None, told: str = "") -> tuple[list[str], dict[str, str], str]:
    return [*words], files or {}, told


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("class", wrong("absent.csv", told="absent.csv")),
        ("class", wrong("a.xlsx", files={"a.xlsx": "x"}, told="a.xlsx")),
        ("class", wrong("a.csv", files={"a.csv": "sentence,id\na b,1\n"}, told="--text-columns")),
        ("class", wrong("a.csv", "--text-columns", "texxt", files={"a.csv": "text,id\na,1\n"}, told="'texxt'")),
        ("class", wrong("a.csv", "--text-columns", "text,id", files={"a.csv": "text,id\na,1\n"}, told="text, id")),
        ("class", wrong("a.jsonl", files={"a.jsonl": '{"text": "a"}\n{"text": null}\n'}, told="line 2")),
        ("class", wrong("a.jsonl", files={"a.jsonl": '{"text": "a"}\n{"txt": "a"}\n'}, told="line 2")),
        ("class", wrong("a.txt", "--scores", "logit", files={"a.txt": "a\n"}, told="--scores")),
        ("class", wrong("a.txt", "--format", "xml", files={"a.txt": "a\n"}, told="--format")),
        ("class", wrong("a.csv", files={"a.csv": "text\n"}, told="a.csv")),
        ("class", wrong("a.csv", "--keep-columns", files={"a.csv": "text,prediction\na,b\n"}, told="'prediction'")),
        ("score", wrong("a.txt", files={"a.txt": "a\n"}, told="sentence1")),
        ("score", wrong("a.csv", files={"a.csv": "id,sentence1\n1,a\n"}, told="sentence2")),
        ("score", wrong("a.csv", "--scores", "logits", files={"a.csv": "sentence1,sentence2\na,b\n"}, told="--scores")),
        ("token", wrong("a.conll", files={"a.conll": "a O\nb\n"}, told="line 2")),
        ("token", wrong("-", "--format", "conll", told="--format conll")),
        ("token", wrong("a.jsonl", files={"a.jsonl": '{"tokens": [1]}\n'}, told="line 1")),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    kind: str,
    case: tuple[list[str], dict[str, str], str],
    runs: dict[str, tuple[Path, Path]],
    kdbert: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, files, told = case
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        Path(name).write_text(content)
    done = kdbert("predict", runs[kind][0], *words, "-q")
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_texts_of_another_form_are_refused_from_python_too(runs: dict[str, tuple[Path, Path]]) -> None:
    for kind, texts in (("class", "one text"), ("class", [("a", "b")]), ("class", [3]), ("score", ["alone"])):
        with pytest.raises(UserError):
            predict(str(runs[kind][0]), texts)  # type: ignore[arg-type]
