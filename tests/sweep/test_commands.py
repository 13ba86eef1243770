"""A printed command gives the very recipe that it was printed for."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdbert.recipe import Recipe
from kdbert.recipe.defaults import resolve_finetune, teacher_recipes
from kdbert.recipe.sections import TeacherTraining
from kdbert.sweep.commands import FLAGS, command_of
from small_sweep import Place

CUSTOM = {"task.name": "custom", "task.train_file": "train.csv", "task.dev_file": "dev.csv"}


def read(words: Iterable[str], command: str) -> Recipe:
    """The recipe that a command line gives, as the commands build it from flags and KEY=VALUE words."""
    first, *rest = words
    assert first == command
    keys = {flag: key for key, flag in FLAGS.items()}
    flags: dict[str, Any] = {"method.name": "finetune"} if command == "finetune-teacher" else {}
    sets = []
    while rest:
        word = rest.pop(0)
        if word in keys:
            flags[keys[word]] = rest.pop(0)
        elif word not in ("--quiet", "--no-baseline"):
            assert not word.startswith("-")
            sets.append(word)
    return Recipe.build(flags=flags, sets=sets)


def plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe with what no teacher's training is given for written out."""
    tree = recipe.model_dump(mode="json")
    return {**tree, "teacher_training": tree["teacher_training"] or TeacherTraining().model_dump(mode="json")}


def same(recipe: Recipe) -> None:
    """Assert that the command of `distill` gives this recipe, also through a shell."""
    words = command_of(recipe, "distill")
    assert plain(read(words, "distill")) == plain(recipe)
    line = shlex.join(words)
    assert shlex.split(line) == words
    assert "\n" not in line


@pytest.mark.parametrize("method", ["ve-kd", "hidden"])
def test_a_recipe_of_plain_text_names_its_text(method: str) -> None:
    flags = {"task.name": "corpus", "task.train_file": "a b.txt", "method.name": method, "train.epochs": 5}
    same(Recipe.build(flags={**flags, "teachers": [{"model": "teacher"}]}))
    same(Recipe.build(flags={**flags, "student.freeze_embeddings": True, "train.batch_tokens": 512}))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=15) | st.sampled_from(
    ["5", "1e3", "0x1f", "1_000", "null", "~", "yes", "on", "2001-99-99", "2001-01-01", "a b", "it's", 'say "no"',
     "$HOME", "`id`", "a;b", "*", "-q", "--quiet", "a=b", "a: b", "a #b", "[a]", "{a}", "😀: é", "\\", "a\nb", "\x85",
     "\ufeff", " a ", "%", "!!int 5", "\x7f"]
)  # fmt: skip
TEACHERS = st.fixed_dictionaries({"model": TEXTS, "labels": st.none() | st.lists(TEXTS, max_size=3)})
KEYS: dict[str, st.SearchStrategy[Any]] = {
    "task.data_dir": TEXTS,
    "task.max_length": st.none() | st.integers(4, 512),
    "task.max_train_examples": st.none() | st.integers(1, 10**6),
    "teachers": st.lists(TEACHERS, max_size=2),
    "student.model": TEXTS,
    "student.init": st.sampled_from(["last", "even", [1, 3]]),
    "train.epochs": st.sampled_from([3, 8]) | st.integers(1, 10**6),
    "train.learning_rate": st.sampled_from([5e-5, 3e-4]) | st.floats(1e-300, 1e300),
    "train.warmup": st.floats(0, 0.99),
    "train.dropout": st.none() | st.floats(0, 0.99),
    "train.max_steps": st.none() | st.integers(1, 10),
    "train.schedule": st.sampled_from(["linear", "cosine"]),
    "train.bucketing": st.booleans(),
    "seed": st.integers(0, 2**32 - 1),
    "output.runs_dir": TEXTS,
    "output.tracker": st.lists(TEXTS, max_size=2),
}  # fmt: skip
METHODS: list[dict[str, Any]] = [
    {},
    {"method.name": "finetune"},
    {"method.temperature": 3.5, "method.variant": "original"},
    {"method.alpha": 0.0},
]
TASKS: list[dict[str, Any]] = [{}, {"task.name": "rte"}, CUSTOM]
TRAININGS: list[dict[str, Any]] = [
    {},
    {"teacher_training.model": "a b", "teacher_training.epochs": 8},
    {"teacher_training.seed": 0, "teacher_training.learning_rate": 3e-5},
]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(TASKS),
    st.sampled_from(METHODS),
    st.sampled_from(TRAININGS),
    st.fixed_dictionaries({}, optional=KEYS),
)
@example(CUSTOM, {}, {}, {"train.epochs": 8, "train.learning_rate": 3e-4})  # the quickstart task's own
@example({}, {}, {}, {"train.epochs": 3, "train.learning_rate": 5e-5})  # the general ones, on the quickstart task
@example({}, {}, {}, {"train.max_steps": None})
@example(CUSTOM, {}, {}, {"task.train_file": "5: 😀"})
@example(CUSTOM, {}, {}, {"task.label_column": "null", "task.text_columns": ["yes", "1"]})
def test_a_command_gives_the_recipe_that_it_was_made_of(
    task: dict[str, Any], method: dict[str, Any], training: dict[str, Any], keys: dict[str, Any]
) -> None:
    recipe = Recipe.build(flags={**task, **method, **training, **keys})
    same(recipe)
    for teacher in [] if recipe.teachers else teacher_recipes(recipe):
        again = read(command_of(teacher, "finetune-teacher"), "finetune-teacher")
        assert resolve_finetune(again) == resolve_finetune(teacher)


def test_a_command_names_only_what_differs_from_the_defaults() -> None:
    recipe = Recipe.build(flags={"task.name": "rte", "train.epochs": 3, "train.warmup": 0.1, "method.temperature": 3})
    assert command_of(recipe, "distill") == [
        "distill", "--method", "kd", "--task", "rte", "--seed", "1", "--quiet", "--no-baseline",
        "method.temperature=3.0", "train.warmup=0.1",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_lines_of_a_dry_run_are_commands_that_make_its_runs(
    kdbert: Any, tiny_bert: Path, custom_files: tuple[Path, Path], tmp_path: Path
) -> None:
    place = Place.make(tmp_path / "my data's $1", tiny_bert, custom_files)
    words = place.words("method=finetune,kd", "--seeds=2")
    planned = kdbert(*words, "--dry-run")
    assert planned.code == 0, planned.err
    assert not place.runs.exists()
    lines = planned.out.splitlines()
    assert len(lines) == 5
    assert "4 runs and 1 teacher; 5 to run" in planned.err
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    typed = subprocess.run(["sh", "-c", lines[0]], stdout=subprocess.PIPE, text=True, env=environment, check=True)
    other = kdbert(*shlex.split(lines[1])[1:])
    assert other.code == 0, other.err
    assert sorted([typed.stdout.strip(), other.out.strip()]) == sorted(map(str, place.run_folders()))
    after = kdbert(*words, "--dry-run")
    assert after.out.splitlines() == [*(f"{line}  # finished" for line in lines[:2]), *lines[2:]]
    assert "3 to run" in after.err
