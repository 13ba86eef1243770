"""The model card: numbers of the run, what it cost, and nothing of the data that is taken for markup."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from kdbert.runs.model_card import code, plain
from small_run import Setting, make_teacher

KDBERT = Any
EVIL = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A task in which one class is called like a script."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("train", "dev"):
        rows = [
            {"text": f"{EVIL} the {'good' if n % 2 else 'bad'} cat {n}", "label": EVIL if n % 2 else "`a`|b"}
            for n in range(40)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder / "train.jsonl", folder / "dev.jsonl"


def metadata(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_has_the_run_s_numbers_and_those_of_the_same_student_without_a_teacher(
    kdbert: KDBERT, custom_files: tuple[Path, Path], tiny_bert: Path, tmp_path: Path
) -> None:
    setting = Setting(*custom_files, make_teacher(tmp_path / "teacher"), tiny_bert)
    words = setting.words(tmp_path / "run", precision="fp32")
    words.remove("--no-baseline")
    done = kdbert(*words, "--baseline", "--quiet")
    assert done.code == 0, done.err
    run = Path(done.out.strip())
    told = json.loads((run / "run.json").read_text())
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    without = json.loads((Path(told["baseline"]["run"]) / "run.json").read_text())["metrics"]
    assert told["baseline"]["metrics"] == without
    score, taught = told["metrics"]["dev"]["accuracy"], told["teachers"][0]["metrics"]["dev"]["accuracy"]
    line = next(line for line in card.splitlines() if line.startswith("| dev | accuracy |"))
    shown = [f"{value:.4f}" for value in (score, taught, without["dev"]["accuracy"])]
    assert line.split(" | ")[2:5] == shown
    results = metadata(card)["model-index"][0]["results"][0]["metrics"]
    assert {one["type"]: one["value"] for one in results} == told["metrics"]["dev"]
    assert f"{told['steps_done']} steps in {told['timings']['train_seconds']:.0f} s" in card
    for heading in ("Results", "Cost", "Use", "Limits", "Data", "Recipe", "Citation"):
        assert f"## {heading}" in card
    assert "It repeats mistakes of its teacher" in card


def test_labels_and_names_of_the_data_are_no_markup(
    kdbert: KDBERT, files: tuple[Path, Path], tiny_bert: Path, tmp_path: Path
) -> None:
    done = kdbert(
        "finetune-teacher", "--task", "custom", "--train-file", files[0], "--dev-file", files[1], "--model", tiny_bert,
        "--max-length", "32", "--runs-dir", tmp_path, "--set", "train.max_steps=2", "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    card = (Path(done.out.strip()) / "model" / "README.md").read_text(encoding="utf-8")
    assert EVIL in card
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.split("---\n", 2)[2])
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert EVIL not in (metadata(card).get("model_name") or "")


@given(st.text(min_size=1, max_size=40))
def test_any_text_stays_text(text: str) -> None:
    reader = MarkdownIt("commonmark", {"html": True})
    wanted = " ".join(text.split())
    found = reader.render(f"a {code(text)} b") if wanted else ""
    if wanted:
        assert re.fullmatch(r"<p>a <code>.*</code> b</p>\n", found, re.DOTALL)
    tokens = reader.parseInline(f"a {plain(text)} b")[0].children or []
    assert {token.type for token in tokens} <= {"text", "text_special"}
