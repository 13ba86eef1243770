"""Runs of own data: the same as a registered task's on the same rows; they answer without their files."""

from __future__ import annotations

import gzip
import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from kdbert.disk.files import sha256

KDBERT = Any
ROWS = {"train": 40, "dev": 24}
TASKS = {"rte": ("RTE", []), "stsb": ("STS-B", [])}


def run_of(kdbert: KDBERT, folder: Path, *words: Any) -> Path:
    """One epoch in float32, to its end."""
    shared = ["--max-length", 48, "--epochs", 1, "--batch-size", 8, "--precision", "fp32", "--quiet"]
    done = kdbert("finetune-teacher", *words, *shared, "--output-dir", folder)
    assert done.code == 0, done.err
    return folder


def facts(run: Path) -> Any:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, glue_dir: Path) -> Path:
    """The first rows of RTE and STS-B as their files have them, in `glue`."""
    place = tmp_path_factory.mktemp("own")
    for folder, _ in TASKS.values():
        (place / "glue" / folder).mkdir(parents=True)
        for split, rows in ROWS.items():
            with gzip.open(glue_dir / folder / f"{split}.tsv.gz", "rb") as file:
                (place / "glue" / folder / f"{split}.tsv").write_bytes(b"".join(islice(file, rows + 1)))
    return place


@pytest.fixture(scope="module", params=TASKS)
def both(request: pytest.FixtureRequest, kdbert: KDBERT, place: Path, tiny_bert: Path) -> tuple[Path, Path]:
    """A run of a registered task, and one of own data on copies of its very files, which are gone since."""
    folder, words = TASKS[request.param]
    data = place / f"of-{request.param}"
    shutil.copytree(place / "glue" / folder, data)
    registered = run_of(
        kdbert, place / f"{request.param}-run", "--task", request.param, "--model", tiny_bert,
        "--data-dir", place / "glue",
    )  # fmt: skip
    files = ["--train-file", data / "train.tsv", "--dev-file", data / "dev.tsv"]
    own = run_of(kdbert, place / f"{request.param}-own", "--task", "custom", "--model", tiny_bert, *files, *words)
    shutil.move(data, place / f"moved-{request.param}")
    return registered, own


@pytest.mark.real_data
def test_own_files_with_a_tasks_rows_give_the_tasks_run(both: tuple[Path, Path]) -> None:
    registered, own = both
    assert sha256(own / "model" / "model.safetensors") == sha256(registered / "model" / "model.safetensors")
    answers = [
        [{**json.loads(line), "id": ""} for line in (run / "predictions" / "dev.jsonl").read_text().splitlines()]
        for run in both
    ]
    assert len(answers[0]) == ROWS["dev"]
    assert answers[0] == answers[1]
    scores = [facts(run)["metrics"]["dev"] for run in both]
    assert {name: scores[1][name] for name in scores[0]} == scores[0]
    configurations = [json.loads((run / "model" / "config.json").read_text()) for run in both]
    assert configurations[0].get("id2label") == configurations[1].get("id2label")


@pytest.mark.real_data
def test_a_run_whose_files_were_moved_answers_from_anywhere(
    both: tuple[Path, Path], kdbert: KDBERT, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, own = both
    task = own.name.removesuffix("-own")
    moved = place / f"moved-{task}"
    monkeypatch.chdir(tmp_path)
    gone = kdbert("evaluate", own)
    assert (gone.code, "not there any more" in gone.err) == (2, True)
    known = facts(own)["metrics"]["dev"]
    again = kdbert("evaluate", own, "--data-dir", moved)
    assert again.code == 0, again.err
    assert f"{known[facts(own)['selection']]:.4f}" in again.out
    before = sha256(own / "predictions" / "dev.jsonl")
    other = kdbert("evaluate", own, "--test-file", moved / "dev.tsv")
    assert other.code == 0, other.err
    assert f"{known[facts(own)['selection']]:.4f}" in other.out
    (written,) = tmp_path.glob("predictions/custom/*/test.jsonl")
    assert len(written.read_text().splitlines()) == ROWS["dev"]
    assert sha256(own / "predictions" / "dev.jsonl") == before
    timed = kdbert("benchmark", own, "--output-dir", tmp_path / "b")
    assert (timed.code, "dev file" in timed.err, "--data-dir" in timed.err) == (2, True, True)
    made = kdbert("export", own)
    assert made.code == 0, made.err
    assert "dev: not checked" in made.out
    about = json.loads((own / "export" / "onnx" / "export.json").read_text())
    assert about["unchecked"] == ["dev"]
    assert about["checks"]["built-in sentences"]["largest_difference"] < 1e-3
    assert "Not checked on dev" in (own / "export" / "onnx" / "README.md").read_text()
    checked = kdbert("export", own, "--overwrite", "--data-dir", moved)
    assert checked.code == 0, checked.err
    about = json.loads((own / "export" / "onnx" / "export.json").read_text())
    assert (about["unchecked"], list(about["checks"])) == ([], ["dev"])
    told = kdbert("report", own.parent, "-o", tmp_path / "report.html")
    assert told.code == 0, told.err


def write(path: Path, rows: list[str], header: str = "text,label") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def small(kdbert: KDBERT, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose files were named from the folder in which it was started, with a test file."""
    folder = tmp_path_factory.mktemp("small")
    rows = [f"a {word} film {number},{label}" for number in range(8) for word, label in (("good", 1), ("bad", 0))]
    write(folder / "train.csv", rows)
    write(folder / "dev.csv", rows[:6])
    write(folder / "test.csv", [f"{row.split(',')[0]},-1" for row in rows[:4]])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        files = ["--train-file", "./train.csv", "--dev-file", "dev.csv", "--test-file", "test.csv"]
        return run_of(kdbert, folder / "run", "--task", "custom", *files, "--model", tiny_bert)


def test_a_file_of_the_same_name_elsewhere_is_not_the_runs(
    small: Path, kdbert: KDBERT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "dev.csv", ["something else,1"])
    done = kdbert("evaluate", small)
    assert done.code == 0, done.err
    assert len((small / "predictions" / "dev.jsonl").read_text().splitlines()) == 6
    refused = kdbert("evaluate", small, "--data-dir", tmp_path)
    assert (refused.code, "not the run's dev file any more" in refused.err) == (2, True)
    whole = (small.parent / "dev.csv").read_text(encoding="utf-8")
    try:
        (small.parent / "dev.csv").write_text(whole + "one more,1\n", encoding="utf-8")
        changed = kdbert("evaluate", small)
    finally:
        (small.parent / "dev.csv").write_text(whole, encoding="utf-8")
    assert (changed.code, "not the run's dev file any more" in changed.err) == (2, True)


def test_a_test_file_without_labels_gets_answers_and_no_scores(
    small: Path, kdbert: KDBERT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = kdbert("evaluate", small, "--split", "test")
    assert own.code == 0, own.err
    assert "no scores" in own.out
    written = small / "predictions" / "test.jsonl"
    before = written.read_bytes()
    new = write(tmp_path / "new.csv", ["a good one", "a bad one"], header="text")
    for given in (new, new):  # the second time gives the same
        done = kdbert("evaluate", small, "--test-file", given)
        assert done.code == 0, done.err
        assert "no scores" in done.out
    assert written.read_bytes() == before
    (answers,) = tmp_path.glob("predictions/custom/*/test.jsonl")
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["label"] for row in rows] == [None, None]
    assert {row["prediction"] for row in rows} <= {"0", "1"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--test-file", "none.csv"], "none.csv"),
        (["--test-file", "other.csv"], "no column 'text'"),
        (["--test-file", "words.csv"], "line 2: label 'good'"),
        (["--test-file", "words.csv", "--split", "dev"], "omit --split"),
    ],
)
def test_a_test_file_that_cannot_be_read_so_is_refused(
    small: Path, kdbert: KDBERT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "other.csv", ["a,b"], header="sentence,label")
    write(tmp_path / "words.csv", ["a,good"])
    done = kdbert("evaluate", small, *words)
    assert (done.code, told in done.err) == (2, True), done.err
    assert not (tmp_path / "predictions").exists()


def test_a_test_file_goes_with_own_data_only(both: tuple[Path, Path], kdbert: KDBERT, place: Path) -> None:
    registered, own = both
    words = ["--test-file", place / "glue" / "RTE" / "dev.tsv"]
    assert kdbert("evaluate", registered, *words).code == 2
    without = kdbert("evaluate", own, "--split", "test")
    assert (without.code, "--test-file" in without.err) == (2, True)


def test_runs_on_different_data_are_not_benchmarked_on_the_firsts(
    small: Path, both: tuple[Path, Path], kdbert: KDBERT, tmp_path: Path
) -> None:
    done = kdbert("benchmark", small, both[1], "--output-dir", tmp_path / "b")
    assert (done.code, "different data" in done.err) == (2, True)
