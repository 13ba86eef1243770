"""docs/from-the-originals.md: every kdbert command on it is accepted, with small models under its names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, often
from kdbert.cli import app
from named_models import make_place

PAGE = (ROOT / "docs" / "from-the-originals.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line.strip()
]


@pytest.fixture(scope="module")
def place(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the commands are typed in."""
    return make_place(tmp_path_factory.mktemp("originals"), data_dir)


def test_the_page_has_every_system_and_each_block_is_kdberts() -> None:
    for name in ("ICS", "FSD", "BERT-and-Friends", "CLINC-OOS", "VE-KD"):
        assert re.search(rf"^## .*{name}", PAGE, re.MULTILINE), name
    assert len(COMMANDS) > 30
    assert all(command.startswith("kdbert ") for command in COMMANDS)


@pytest.mark.real_data
@pytest.mark.parametrize("command", often(COMMANDS, lambda command: COMMANDS.index(command) % 3 == 0))
def test_a_command_of_the_page_is_accepted(
    command: str, place: Path, kdbert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    words = shlex.split(command)[1:]
    if words[0] == "evaluate":  # it has no dry run, and this model is small
        words += ["--output-dir", "predictions", "--max-length", "16"]
    elif words[0] != "expand-vocab":
        words += ["--dry-run"]
    done = kdbert(*words)
    if words[:2] == ["data", "fetch"]:  # the training files of two tasks are not at hand, others are
        assert "https://dl.fbaipublicfiles.com/glue/data/MNLI.zip" in done.out
    assert done.code == 0, done.err


def test_flags_of_the_right_column_exist() -> None:
    import typer

    known = {
        option
        for command in typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    for row in re.findall(r"^\| .*? \| (.*?) \|", PAGE, re.MULTILINE):
        for flag in re.findall(r"`(--[a-z-]+)", row):
            assert flag in known, (flag, row)


def test_every_flag_of_an_original_is_spoken_of_in_its_system_or_at_the_head() -> None:
    head, *systems = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    for system in systems:
        said = head + re.sub(r"```.*?```", "", system, flags=re.DOTALL)
        for block in re.findall(r"```text\n(.*?)```", system, re.DOTALL):
            for flag in re.findall(r"--[a-z_]+", block):
                assert flag in said, (system.splitlines()[0], flag)
