"""What is refused before a run, and what is refused although the run is finished."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from kdbert.errors import UserError
from kdbert.models.locate import locate
from kdbert.recipe import Recipe
from kdbert.runs.checks import check_taught
from kdbert.runs.folder import RunFolder
from kdbert.runs.plan import plan
from kdbert.tasks import get_task
from kdbert.training.frozen_teacher import KnownTeacher
from small_run import Setting


def test_a_wrong_flag_is_refused_although_the_run_is_finished(setting: Setting, kdbert: Any, tmp_path: Path) -> None:
    words = setting.words(tmp_path / "run", max_steps=1)
    assert kdbert(*words).code == 0
    assert "already finished" in kdbert(*words).err
    for flag, value in (("--data-dir", "nowhere"), ("--tracker", "weights-and-biases")):
        for more in ([], ["--dry-run"]):
            refused = kdbert(*words, flag, value, *more)
            assert (refused.code, refused.out) == (2, "")
            assert value in refused.err
    assert "already finished" in kdbert(*words, "--data-dir", tmp_path).err


@pytest.mark.parametrize(
    ("method", "flag"), [("kd", "--memory"), ("finetune", "--teacher"), ("finetune", "--memory"), ("kd", None)]
)
def test_a_flag_that_the_method_does_not_read_is_refused(
    method: str, flag: str | None, setting: Setting, kdbert: Any, tmp_path: Path
) -> None:
    words = [*setting.words(tmp_path / "run", **{"method.name": method}), "--dry-run"]
    done = kdbert(*words, *([flag, setting.teacher] if flag else []))
    assert done.code == (2 if flag else 0), done.err
    assert flag is None or flag in done.err.splitlines()[-1]
    # A recipe that several methods share may name one.
    key = {"--teacher": f"teachers=[{{model: {setting.teacher}}}]", "--memory": "memory.file=m.safetensors"}
    shared = kdbert(*words, *([key[flag]] if flag else []))
    assert shared.code == 0, shared.err
    assert flag is None or f"reads no {flag[2:]}" in shared.err


def test_a_default_base_model_that_cannot_be_fetched_names_the_flag(tmp_path: Path) -> None:
    keys = {"task.name": "rte", "output.runs_dir": str(tmp_path)}
    for more in ({}, {"student.layers": 2}, {"method.name": "finetune"}):
        with pytest.raises(UserError, match="--teacher-model"):
            plan(Recipe.build(flags={**keys, **more}))
    with pytest.raises(UserError) as named:
        plan(Recipe.build(flags={**keys, "teacher_training.model": "somebody/bert"}))
    assert "--teacher-model" not in str(named.value)


@pytest.mark.parametrize(("task", "works"), [("sst2", True), ("mnli", False), ("stsb", False)])
def test_labels_are_asked_for_only_where_they_can_help(
    task: str, works: bool, setting: Setting, tmp_path: Path
) -> None:
    """The teacher has two labels; the task has two, three, or a score."""
    shutil.copytree(setting.teacher, tmp_path / "run" / "model")
    RunFolder(tmp_path / "run").update(status="finished", recipe={"task": {"name": "rte"}})
    with pytest.raises(UserError) as refused:
        check_taught(get_task(task), KnownTeacher(locate(str(tmp_path / "run"))))
    assert ("--teacher-labels" in str(refused.value)) == works
