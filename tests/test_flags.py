"""Flags: those that set a recipe key are in one table, documents name only flags that exist, helps fit their column."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from conftest import ROOT
from kdbert.cli import app, flags
from kdbert.recipe import Recipe, known_keys

TRAINING = ("distill", "finetune-teacher", "train-memory", "sweep")
NOT_OF_THE_RECIPE = {
    "--config", "--set", "--plugin", "--dry-run", "--overwrite", "--quiet", "--debug", "--help", "--push-to-hub",
    "--baseline", "--layer", "--output", "--grid", "--seeds", "--jobs", "--engine", "--slurm",
}  # fmt: skip
# Of scripts of this repository, and of torchrun, that documents name.
OF_OTHERS = {"--help", "--changes", "--methods", "--device", "--minutes", "--nnodes"}
TABLE = {flag for _, group in inspect.getmembers(flags, lambda one: isinstance(one, tuple)) for flag in group}
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands() -> dict[tuple[str, ...], Any]:
    """Every command, by its words."""
    found: dict[tuple[str, ...], Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        found[(name,)] = command
        for part, below in getattr(command, "commands", {}).items():
            found[(name, part)] = below
    return found


COMMANDS = commands()


def spelled(command: Any) -> set[str]:
    """The flags that a command takes."""
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts) if name[0] == "-"}


@pytest.mark.parametrize("command", TRAINING)
def test_every_flag_of_a_training_command_is_in_the_table_or_not_of_the_recipe(command: str) -> None:
    table = {name.partition("/")[0] for flag in TABLE for name in flag.names.split()[:1]}
    for parameter in COMMANDS[(command,)].params:
        if parameter.param_type_name == "option":
            assert {*parameter.opts} & {*table, *NOT_OF_THE_RECIPE}, parameter.opts
    assert not table & NOT_OF_THE_RECIPE


def test_every_key_of_the_table_is_a_recipe_key() -> None:
    assert {flag.key for flag in TABLE} <= set(known_keys())
    assert {flag.key.partition(".")[0] for flag in TABLE} <= set(Recipe.model_fields)


def test_a_flag_sets_its_key_and_no_other() -> None:
    for flag in TABLE:
        if flag.parameter not in ("corpus", "teacher", "teacher_labels"):
            assert flags.recipe_keys({flag: 7}) == {flag.key: 7}
    by_name = {flag.parameter: flag for flag in TABLE}
    assert flags.recipe_keys({by_name["corpus"]: "a.txt"}) == {"task.name": "corpus", "task.train_file": "a.txt"}
    both = {by_name["teacher"]: ["a", "b"], by_name["teacher_labels"]: "x, y"}
    assert flags.recipe_keys(both) == {"teachers": [{"model": name, "labels": ["x", "y"]} for name in "ab"]}


@pytest.mark.parametrize(
    "words",
    [
        ("--teacher-labels", "a,b"),
        ("--teacher", "a", "--teacher-model", "b"),
        ("--corpus", "a.txt", "--train-file", "b.txt"),
        ("--corpus", "a.txt", "--task", "rte"),
        ("--lerning-rate", "1e-4"),
    ],
)
def test_flags_that_exclude_each_other_or_do_not_exist_are_refused(words: tuple[str, ...], kdbert: Any) -> None:
    done = kdbert("distill", *words, "--dry-run")
    assert done.code == 2
    assert "--teacher" in done.err or "--corpus" in done.err or "--learning-rate" in done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("distill", "--temperature", "-1"), "--set method.temperature="),
        (("distill", "--warmup", "0.1"), "--set train.warmup="),
        (("distill", "--lr", "1e-4"), "'--learning-rate'"),
        (("distill", "--temprature", "3"), "did you mean --set method.temperature="),
        (("distill", "--layers", "3"), "--student-layers"),
        (("distill", "--centroids", "5"), "--set memory.centroids="),
        (("train-memory", "--epochs", "1"), "distill, finetune-teacher, sweep"),
        (("train-memory", "--centroid", "1"), "'--centroids'"),
        (("export", "x", "--frmat", "onnx"), "'--format'"),
    ],
)
def test_a_flag_that_a_command_lacks_is_told_with_what_sets_it(words: tuple[str, ...], told: str, kdbert: Any) -> None:
    done = kdbert(*words)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert f"no flag {next(word for word in words if word.startswith('--'))}" in done.err
    assert told in done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("distill", "--learning-rate", "abc"), "--learning-rate='abc': expected a number"),
        (("distill", "--seed", "x"), "--seed='x': expected a whole number"),
        (("export", "x", "--min-agreement", "2"), "--min-agreement='2': must be at most 1"),
        (("sweep", "--epochs", "3,5"), "--grid train.epochs=3,5"),
        (("distill", "--seed"), "'--seed' requires"),
        (("distill", "--dry-run=3"), "'--dry-run' does not take a value"),
        (("distill", "--layer-map", "2:1"), "--layer-map: method 'kd'"),
    ],
)
def test_a_value_that_a_flag_does_not_take_is_shown(words: tuple[str, ...], told: str, kdbert: Any) -> None:
    done = kdbert(*words)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert told in done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--epochs", "0"), "--epochs"),
        (("--student-layers", "-1"), "--student-layers"),
        (("--set", "train.epochs=0"), "train.epochs"),
    ],
)
def test_a_wrong_value_is_told_by_what_the_person_typed(words: tuple[str, str], told: str, kdbert: Any) -> None:
    done = kdbert("distill", *words, "--dry-run")
    assert done.code == 2
    assert done.err.startswith(f"kdbert: {told}")


def test_a_sentence_about_keys_names_flags() -> None:
    by_key = {flag.key: flag for flag in TABLE}
    told = "train.epochs=0: must be at least 1; memory.seed: is text; seed: too large; train.epochs2: unknown"
    flags_told = "--epochs=0: must be at least 1; memory.seed: is text; --seed: too large; train.epochs2: unknown"
    assert flags.as_typed(told, [by_key["train.epochs"], by_key["seed"]]) == flags_told


def typed(text: str) -> Iterator[list[str]]:
    """The kdbert commands in a document: lines of shell blocks, and spans of code."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *re.findall(r"`([^`]+)`", rest)]:
        begun = re.search(r"\bkdbert (?=[a-z])", line)
        if begun:
            try:
                yield shlex.split(line[begun.end() :], comments=True)
            except ValueError:  # a span with half a quote
                yield line[begun.end() :].split()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_flags_that_exist(document: Any) -> None:
    text = document.read_text(encoding="utf-8")
    for words in typed(text):
        command = COMMANDS.get(tuple(words[:2])) or COMMANDS.get(tuple(words[:1]))
        assert command is not None, words
        used = {re.split(r"[=\s]", word)[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= {*spelled(command), "--help", "-h"}, words
    known = {*OF_OTHERS}.union(*map(spelled, COMMANDS.values()))
    if document.name not in ("from-the-originals.md", "quirks.md"):  # they name the flags of other programs
        spans = re.findall(r"`(--[a-z][a-z-]*)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        assert set(spans) <= known, set(spans) - known


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_help_begins_with_an_example_and_its_summary_is_not_cut(command: tuple[str, ...], kdbert: Any) -> None:
    lines = [line for line in kdbert(*command, "--help").out.splitlines() if line.strip()]
    assert lines[1].startswith("  kdbert ")
    assert all(len(line) <= 80 for line in lines)
    above = kdbert(*command[:-1], "--help").out
    assert "..." not in above.partition("Commands:")[2]


def test_the_help_starts_with_three_examples(kdbert: Any) -> None:
    lines = [line for line in kdbert("--help").out.splitlines() if line.strip()]
    assert [line.split()[0] for line in lines[1:4]] == ["kdbert"] * 3
