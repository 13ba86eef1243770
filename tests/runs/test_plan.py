"""One plan for all commands: which jobs a recipe takes, what each reads and writes, and that nothing is read twice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from kdbert.errors import UserError
from kdbert.recipe import Recipe
from kdbert.runs.centroids import CentroidsJob
from kdbert.runs.checks import check
from kdbert.runs.commands import distill, train_memory
from kdbert.runs.job import Job
from kdbert.runs.plan import plan
from kdbert.tasks import get_task
from small_run import Setting

SHORT = {"train.max_steps": 2, "train.batch_size": 16, "teacher_training.epochs": 1}


@pytest.fixture
def setting(tiny_bert: Path, custom_files: tuple[Path, Path], tmp_path: Path) -> Setting:
    return Setting(*custom_files, tmp_path / "no teacher", tiny_bert)


def recipe_of(setting: Setting, tmp_path: Path, **changes: Any) -> Recipe:
    keys = setting.keys(**{"output.runs_dir": str(tmp_path / "runs"), "teacher_training.model": str(setting.student)})
    keys.pop("teachers")
    return Recipe.build(flags={**keys, **SHORT, **changes})


def roles(jobs: list[Any]) -> list[str]:
    return [job.role for job in jobs]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["teacher", "student"]),
        ({"method.name": "finetune"}, ["student"]),
        ({"method.name": "multi-kd"}, ["teacher", "teacher", "student"]),
        ({"method.name": "cka-g", "memory.centroids": 3}, ["teacher", "centroids", "student"]),
        ({"method.name": "cka-g", "method.beta": 0.0}, ["teacher", "student"]),
    ],
)
def test_a_recipe_takes_these_jobs(
    changes: dict[str, Any], expected: list[str], setting: Setting, tmp_path: Path
) -> None:
    recipe = recipe_of(setting, tmp_path, **changes)
    assert roles(plan(recipe)) == expected
    with_baseline = [*expected[: expected.count("teacher")], *["baseline"] * ("teacher" in expected)]
    assert roles(plan(recipe, baseline=True)) == [*with_baseline, *expected[expected.count("teacher") :]]
    assert not (tmp_path / "runs").exists()


def test_a_job_says_what_it_reads_and_writes(setting: Setting, tmp_path: Path) -> None:
    recipe = recipe_of(setting, tmp_path, **{"method.name": "cka-g", "memory.centroids": 3})
    teacher, centroids, student = plan(recipe)
    assert isinstance(teacher, Job)
    assert isinstance(student, Job)
    assert (teacher.reads, teacher.waits, student.waits) == ([str(setting.student)], False, True)
    assert (centroids.writes, student.writes) == (None, None)
    result = distill(recipe)
    again, centroids, student = plan(recipe)
    assert isinstance(again, Job)
    assert again.finished
    assert again.writes == teacher.writes
    assert str(again.writes) in student.reads
    assert centroids.writes is not None
    assert centroids.writes.exists()
    assert student.writes == result.path
    (made, wanted) = plan(recipe, "centroids")
    assert (made.writes, wanted.writes) == (again.writes, centroids.writes)
    assert train_memory(recipe) == centroids.writes


def test_the_centroids_of_a_layer_that_is_not_there(setting: Setting, tmp_path: Path) -> None:
    recipe = recipe_of(setting, tmp_path, **{"memory.centroids": 3})
    *_, job = plan(recipe, "centroids", layer=9)
    assert isinstance(job, CentroidsJob)
    with pytest.raises(UserError, match="layer"):
        check(job)


OPENED: list[str] = []  # paths, while a test looks
WATCHING = [False]


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if WATCHING[0] and event == "open" and isinstance(arguments[0], str):
        OPENED.append(arguments[0])


sys.addaudithook(watch)


@pytest.mark.parametrize("method", ["kd", "cka-g"])
def test_teacher_baseline_and_student_read_a_file_once(method: str, setting: Setting, tmp_path: Path) -> None:
    keys = {"task.name": "quickstart", "method.name": method, "memory.centroids": 3, "memory.passes": 1}
    recipe = recipe_of(setting, tmp_path, **keys, **{"task.train_file": None, "task.dev_file": None})
    OPENED.clear()
    WATCHING[0] = True
    distill(recipe, baseline=True)
    WATCHING[0] = False
    spec = get_task("quickstart")
    data = [str(spec.path(split, None)) for split in ("train", "dev", "test")]
    assert set(data) < set(OPENED)
    for path in data:
        assert OPENED.count(path) <= 1 + data.count(path), path  # its checksum, and each split once
