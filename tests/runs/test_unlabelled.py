"""Whole runs with rows that have no label: texts of a file, empty labels, hidden ones, none at all; what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from in_processes import saved_steps
from kdbert.errors import UserError
from kdbert.runs.folder import RunFolder
from kdbert.tasks import get_task
from kdbert.tasks.own import NoLabels, custom_task
from kdbert.tasks.unlabelled import hide_labels, unlabelled_examples
from small_run import Setting, logged

KDBERT = Any
HOW = ["--no-baseline", "--epochs", 1, "--batch-size", 16, "--max-length", 32, "--precision", "fp32", "-q"]


def facts(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def own(setting: Setting, folder: Path, train: Path, *words: object) -> list[object]:
    return [
        "distill", "--task", "custom", "--train-file", train, "--dev-file", setting.dev, "--teacher", setting.teacher,
        "--student", setting.student, "--student-layers", 2, "--runs-dir", folder / "runs", *HOW, *words,
    ]  # fmt: skip


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "more.txt"
    file.write_text("".join(f"a good film {number}\n\n" for number in range(40)), encoding="utf-8")
    return file


def done(result: Any) -> Path:
    assert result.code == 0, result.err
    return Path(result.out.strip())


def test_texts_of_a_file_are_further_rows(setting: Setting, kdbert: KDBERT, tmp_path: Path, texts: Path) -> None:
    run = done(kdbert(*own(setting, tmp_path, setting.train, "--unlabelled-file", texts)))
    assert facts(run)["rows"] == {"labelled": 203, "unlabelled": 40}  # empty lines are no rows
    assert facts(run)["steps"] == 16
    assert "203 of 243 training rows have a label" in (run / "model" / "README.md").read_text(encoding="utf-8")
    texts.write_text("other words\n", encoding="utf-8")  # content makes the run, not the name
    other = done(kdbert(*own(setting, tmp_path, setting.train, "--unlabelled-file", texts)))
    assert other != run
    told = kdbert("table", tmp_path / "runs")
    assert "40 of 243 training rows have no label" in told.out


def test_a_share_of_each_batch_has_no_label(setting: Setting, kdbert: KDBERT, tmp_path: Path, texts: Path) -> None:
    words = own(
        setting,
        tmp_path,
        setting.train,
        "--unlabelled-file",
        texts,
        "--bucketing",
        "--set",
        "train.unlabelled_share=0.25",
    )
    run = done(kdbert(*words))
    assert facts(run)["steps"] == 17  # 203 rows, 12 in a step


def test_empty_labels_are_rows_without_one(setting: Setting, kdbert: KDBERT, tmp_path: Path) -> None:
    header, *rows = setting.train.read_text(encoding="utf-8").splitlines()
    half = tmp_path / "half.csv"
    lines = [row if number % 2 else row.rpartition(",")[0] + "," for number, row in enumerate(rows)]
    half.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    run = done(kdbert(*own(setting, tmp_path, half)))
    assert facts(run)["rows"] == {"labelled": 101, "unlabelled": 102}
    words = ["finetune-teacher", "--task", "custom", "--train-file", half, "--dev-file", setting.dev, *HOW[1:]]
    alone = done(kdbert(*words, "--model", setting.student, "--runs-dir", tmp_path / "alone"))
    assert facts(alone)["rows"] == {"labelled": 101, "left_out": 102}
    assert facts(alone)["steps"] == 7
    described = kdbert("data", "describe", "custom", "--train-file", half, "--dev-file", setting.dev)
    assert described.code == 0, described.err
    assert "no label: 102 rows" in described.out
    scored = kdbert("evaluate", run, "--split", "train", "--output-dir", tmp_path / "out")
    assert scored.code == 0, scored.err
    assert "no scores" in scored.out
    swapped = own(setting, tmp_path, setting.train)
    swapped[swapped.index(setting.dev)] = half
    refused = kdbert(*swapped)
    assert (refused.code, "the label is missing" in refused.err) == (2, True)


def test_a_share_of_nothing_leaves_them_out(setting: Setting, kdbert: KDBERT, tmp_path: Path) -> None:
    more = ("--labelled-share", "0.5", "--epochs", "1")
    run = done(kdbert(*own(setting, tmp_path, setting.train, *more, "--set", "train.unlabelled_share=0")))
    assert facts(run)["rows"] == {"labelled": 102, "left_out": 101}
    assert facts(run)["steps_done"] == 7
    assert "loss/soft" in logged(run)[7]


@pytest.mark.parametrize("form", ["empty labels", "no column", "hidden"])
def test_without_any_label_the_teacher_is_imitated(setting: Setting, kdbert: KDBERT, tmp_path: Path, form: str) -> None:
    header, *rows = setting.train.read_text(encoding="utf-8").splitlines()
    train, more = tmp_path / "train.csv", []
    if form == "hidden":
        train, more = setting.train, ["--labelled-share", 0]
    elif form == "empty labels":
        train.write_text("\n".join([header, *(row.rpartition(",")[0] + "," for row in rows)]) + "\n", encoding="utf-8")
    else:
        train.write_text("\n".join(line.rpartition(",")[0] for line in [header, *rows]) + "\n", encoding="utf-8")
    run = done(kdbert(*own(setting, tmp_path, train, *more)))
    assert facts(run)["rows"] == {"labelled": 0, "unlabelled": 203}
    assert {line["loss/hard"] for line in logged(run).values()} == {0.0}
    assert facts(run)["task"]["labels"] == ["negative", "positive"]
    again = kdbert("evaluate", run)
    assert again.code == 0, again.err
    with_baseline = own(setting, tmp_path, train, *more, "--epochs", 2, "--baseline")
    words = ["--task", "custom", "--train-file", train, "--dev-file", setting.dev, "--model", setting.student, *more]
    for given in ([word for word in with_baseline if word != "--no-baseline"], ["finetune-teacher", *words]):
        refused = kdbert(*given, "--runs-dir", tmp_path / "alone", "-q")
        assert refused.code == 2
        assert len(refused.err.strip().splitlines()) == 1


def test_a_run_that_was_stopped_ends_with_the_same_weights(
    setting: Setting, kdbert: KDBERT, tmp_path: Path, texts: Path
) -> None:
    words = own(
        setting, tmp_path, setting.train, "--unlabelled-file", texts, "--set", "train.unlabelled_share=0.5",
        "--set", "train.checkpoint_steps=5", "output.keep_checkpoints=true",
    )  # fmt: skip
    run = done(kdbert(*words))
    before = (run / "model" / "model.safetensors").read_bytes()
    steps = saved_steps(run)
    shutil.rmtree(run / "checkpoints" / f"step-{steps[-1]:06d}", ignore_errors=True)
    shutil.rmtree(run / "checkpoints" / f"step-{steps[-1]}", ignore_errors=True)
    about = facts(run)
    with RunFolder(run).locked():
        RunFolder(run).update(status="interrupted")
    assert about["steps"] == 26
    assert (done(kdbert(*words)) / "model" / "model.safetensors").read_bytes() == before
    assert facts(run)["timings"]["resumed_from_step"] == steps[-2] > 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--unlabelled-file", "none.txt"], "none.txt"),
        (["--unlabelled-file", "empty.txt"], "empty"),
        (["--unlabelled-file", "blank.txt"], "no texts"),
        (["--unlabelled-file", "pairs.csv"], "text"),
        (["--unlabelled-file", "odd.bin"], "format"),
        (["--set", "train.unlabelled_share=0.5"], "train.unlabelled_share"),
        (["--set", "train.unlabelled_share=0.01"], "unlabelled_share"),
        (["--labelled-share", "0.5", "--batch-sampler", "class-balanced"], "class-balanced"),
        (["--labelled-share", "0", "--class-weights", "balanced"], "--class-weights"),
        (["--labelled-share", "0.001"], "--labelled-share"),
        (["--unlabelled-file", "binary.txt"], "binary"),
        (["--labelled-share", "2"], "--labelled-share"),
        (["--labelled-share", "0.5", "--method", "ics", "--set", "method.alpha_soft=0"], "'ics'"),
        (["--labels", "positive,neutral"], "line"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    setting: Setting, kdbert: KDBERT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    contents = {"empty.txt": "", "blank.txt": "\n\n", "pairs.csv": "sentence1,sentence2\na,b\n", "odd.bin": "a\n"}
    for name, content in contents.items():
        Path(name).write_text(content, encoding="utf-8")
    Path("binary.txt").write_bytes(bytes(range(7, 256)) * 9)
    result = kdbert(*own(setting, tmp_path, setting.train, *more))
    assert result.code == 2, result.err
    assert told in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_unlabelled_texts_are_read_from_every_form(tmp_path: Path) -> None:
    import datasets

    task, expected = get_task("sst2"), ["a b", "c"]
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "1.txt").write_text("a b\n\n", encoding="utf-8")
    (folder / "2.txt").write_text("c\n", encoding="utf-8")
    rows = datasets.Dataset.from_dict({"text": expected})
    rows.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"unsupervised": rows}).save_to_disk(str(tmp_path / "one split"))
    for name, content in {
        "a.txt": "a b\nc\n", "a.csv": "id,sentence\n1,a b\n2,c\n", "a.tsv": "sentence\tlabel\na b\t1\nc\t0\n",
        "a.jsonl": '{"text": "a b"}\n{"text": null}\n{"text": "c"}\n{"text": " "}\n',
    }.items():  # fmt: skip
        (tmp_path / name).write_text(content, encoding="utf-8")
    for name in ("a.txt", "a.csv", "a.tsv", "a.jsonl", "saved", "one split", "texts"):
        found = unlabelled_examples(str(tmp_path / name), task, None)
        assert list(found.text_a) == expected
        assert found.ids[0] == "unlabelled-0"
        assert not found.labelled.any()
    pairs = get_task("rte")
    (tmp_path / "pairs.csv").write_text("sentence1,sentence2\na,b\n", encoding="utf-8")
    assert list(unlabelled_examples(str(tmp_path / "pairs.csv"), pairs, None).text_b) == ["b"]
    for name, spec in (("a.txt", pairs), ("pairs.csv", task)):
        with pytest.raises(UserError):
            unlabelled_examples(str(tmp_path / name), spec, None)
    (tmp_path / "own.csv").write_text("premise,claim\na,b\n", encoding="utf-8")
    assert len(unlabelled_examples(str(tmp_path / "own.csv"), pairs, ["premise", "claim"])) == 1
    words = tmp_path / "w.conll"
    words.write_text("EU\nrejects\n\nPeter\n", encoding="utf-8")
    found = unlabelled_examples(str(words), get_task("ncbi-disease"), None)
    assert (found.words, len(found.labels)) == ([("EU", "rejects"), ("Peter",)], 3)


def test_own_texts_are_found_by_their_name_or_by_a_known_one(tmp_path: Path) -> None:
    for name, content in {
        "train.csv": "premise,hypothesis,label\na,b,x\nc,d,y\n", "dev.csv": "premise,hypothesis,label\ne,f,x\n",
        "same.csv": "premise,hypothesis\na,b\n", "known.csv": "id,sentence1,sentence2\n1,a,b\n", "one.csv": "text\na\n",
        "odd.csv": "left,right\na,b\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(content, encoding="utf-8")
    own = custom_task(str(tmp_path / "train.csv"), str(tmp_path / "dev.csv"))
    for name in ("same.csv", "known.csv"):
        assert list(unlabelled_examples(str(tmp_path / name), own, None).text_b) == ["b"]
    for name in ("one.csv", "odd.csv"):
        with pytest.raises(UserError):
            unlabelled_examples(str(tmp_path / name), own, None)


def test_a_share_that_leaves_every_label_hides_none() -> None:
    task = get_task("quickstart")
    part = task.load("train", None)
    assert hide_labels(part, task, 0.9999, 1).labelled is None


def test_missing_labels_of_every_form_of_own_data(tmp_path: Path) -> None:
    def task(train: str, dev: str, suffix: str, **options: Any) -> Any:
        files = [tmp_path / f"{name}{suffix}" for name in ("train", "dev")]
        for file, content in zip(files, (train, dev), strict=True):
            file.write_text(content, encoding="utf-8")
        return custom_task(*map(str, files), **options)

    scores = "text,label\na,1.5\nb,0.2\n"
    sets = '{"text": "a", "label": ["x"]}\n{"text": "b", "label": ["y"]}\n'
    tags = '{"tokens": ["a", "b"], "tags": ["O", "B-X"]}\n'
    for given, missing, suffix in (
        ("text,label\na,x\nb,y\n", "c,\n", ".csv"),
        (scores, "c,nan\n", ".csv"),
        (sets, '{"text": "c", "label": null}\n', ".jsonl"),
        (tags + tags, '{"tokens": ["c"], "tags": null}\n', ".jsonl"),
    ):
        spec = task(given + missing, given, suffix)
        assert spec.load("train", None).labelled.tolist() == [True, True, False]
        assert spec.load("dev", None).labelled is None
        with pytest.raises(UserError, match="missing"):
            task(given, given + missing, suffix).load("dev", None)
    some = [f"t{number},{'xyz'[number % 2]}\n" for number in range(20)]
    (tmp_path / "some.csv").write_text("".join(["text,label\n", *some, "a,\n", "b,\n"]), encoding="utf-8")
    share = custom_task(str(tmp_path / "some.csv"), dev_share=0.5)
    assert (share.load("dev", None).labelled, len(share.load("dev", None))) == (None, 10)
    assert (~share.load("train", None).labelled).sum() == 2
    named = task("text,label\na,\n", "text,label\nb,y\n", ".csv", known_labels=["y", "x"])
    assert (named.labels, named.load("dev", None).labels.tolist()) == (("y", "x"), [0])
    with pytest.raises(NoLabels):
        task("text,label\na,\n", "text,label\nb,y\n", ".csv")
    none = task('{"text": "a", "label": null}\n', sets, ".jsonl", kind="multi-label", known_labels=["x", "y"])
    assert (none.kind, none.load("train", None).labels) == ("multi_label", None)
    with pytest.raises(UserError, match=r"line 4.*finite"):
        task(scores + "c,inf\n", scores, ".csv")
