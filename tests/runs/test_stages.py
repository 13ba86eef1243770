"""A method with two stages: one command makes a run of each, and the second goes on with the student of the first."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from conftest import Finished
from in_processes import manifest, saved_steps, start, wait_until
from kdbert import UserError
from kdbert.methods import load_plugin
from kdbert.recipe import Recipe
from kdbert.runs.plan import plan
from small_run import BATCH, Setting, logged

PLUGIN = Path(__file__).with_name("two_stages.py")
KEYS: dict[str, Any] = {
    "method.name": "two-stages", "precision": "fp32", "max_steps": 6, "checkpoint_steps": 2, "logging_steps": 1,
    "stages.states.learning_rate": 3e-3, "stages.states.schedule": "constant",
}  # fmt: skip


def words(setting: Setting, root: Path, **changes: Any) -> list[str]:
    """The command; all runs below a root."""
    given = setting.words(root / "run", **{**KEYS, "output.runs_dir": str(root / "runs"), **changes})
    return [*given, "--plugin", str(PLUGIN)]


def first_run(root: Path) -> Path:
    """The one run that was made on the way."""
    (found,) = (path.parent for path in (root / "runs").glob("*/two-stages/*/run.json"))
    return found


@pytest.fixture(scope="module")
def done(setting: Setting, kdbert: Callable[..., Finished], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of both runs of one command."""
    root = tmp_path_factory.mktemp("done")
    ended = kdbert(*words(setting, root))
    assert ended.code == 0, ended.err
    return root


def weights(run: Path) -> dict[str, torch.Tensor]:
    """A finished run's student."""
    found: dict[str, torch.Tensor] = load_file(run / "model" / "model.safetensors")
    return found


def test_one_command_makes_a_run_of_each_stage(done: Path) -> None:
    first, second = first_run(done), done / "run"
    for run, stage, term in ((first, "states", "loss/states"), (second, "answers", "loss/soft")):
        facts = manifest(run)
        assert facts["recipe"]["method"]["stage"] == stage
        assert facts["recipe"]["stages"] == {}
        assert all(term in line for line in logged(run).values())
    rates = [[line["learning_rate"] for line in logged(run).values()] for run in (first, second)]
    assert rates[0] == [3e-3] * 6
    assert rates[1][0] == 1e-3 > rates[1][-1]
    facts = manifest(second)
    assert facts["recipe"]["student"]["model"] == str(first) == facts["stage_before"]["run"]
    assert (manifest(first)["role"], facts["role"]) == ("stage", "student")
    card = (second / "model" / "README.md").read_text()
    assert "Stage: **answers**, after states" in card
    assert str(first) in card


def test_scores_of_a_first_stage_are_not_shown(done: Path, kdbert: Callable[..., Finished], tmp_path: Path) -> None:
    first = first_run(done)
    assert [manifest(run).get("head_trained", True) for run in (first, done / "run")] == [False, True]
    shutil.copytree(first, tmp_path / "runs" / first.name)  # alone, as in the middle of a sweep
    table = kdbert("table", tmp_path / "runs", "--format", "csv")
    assert table.code == 0, table.err
    (row,) = csv.DictReader(table.out.splitlines())
    assert (row["mean"], row["n"], row["unfinished"]) == ("", "0", "1")


def test_the_second_stage_starts_from_the_student_of_the_first(
    done: Path, setting: Setting, kdbert: Callable[..., Finished], tmp_path: Path
) -> None:
    by_hand = words(setting, tmp_path, **{"method.stage": "states", "output.dir": str(tmp_path / "first")})
    by_hand[by_hand.index("--output-dir") + 1] = str(tmp_path / "first")
    assert kdbert(*by_hand).code == 0
    assert weights(tmp_path / "first").keys() == weights(first_run(done)).keys()
    assert all(
        torch.equal(value, weights(first_run(done))[name]) for name, value in weights(tmp_path / "first").items()
    )
    start_of = {"method.stage": "answers", "student.model": str(tmp_path / "first"), "student.layers": None}
    assert kdbert(*words(setting, tmp_path, **start_of)).code == 0
    assert all(torch.equal(value, weights(done / "run")[name]) for name, value in weights(tmp_path / "run").items())


def test_what_is_finished_is_found(done: Path, setting: Setting, kdbert: Callable[..., Finished]) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}
    again = kdbert(*words(setting, done))
    assert again.code == 0, again.err
    assert "already finished" in again.err
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()} == before
    repeated = kdbert("distill", "--config", done / "run" / "recipe.yaml", "--plugin", PLUGIN)
    assert repeated.code == 0, repeated.err
    assert "already finished" in repeated.err


@pytest.mark.parametrize("stage", ["states", "answers"])
def test_killed_in_either_stage_and_continued_ends_with_the_same_weights(
    stage: str, done: Path, setting: Setting, kdbert: Callable[..., Finished], tmp_path: Path
) -> None:
    command = words(setting, tmp_path)
    if stage == "answers":  # its folder's name has the content of the first stage's student
        shutil.copytree(first_run(done), tmp_path / "runs" / "custom" / "two-stages" / first_run(done).name)
    process = start(command, tmp_path / "output")
    try:
        seen: Callable[[], list[Path]] = lambda: (  # noqa: E731
            list((tmp_path / "runs").glob("*/two-stages/*")) if stage == "states" else [tmp_path / "run"]
        )
        wait_until(lambda: any(saved_steps(run) for run in seen()), process.is_alive, "a checkpoint")
    finally:
        process.kill()
        process.join()
    assert not (tmp_path / "run" / "model").exists()
    ended = kdbert(*command)
    assert ended.code == 0, ended.err
    for own, whole in ((first_run(tmp_path), first_run(done)), (tmp_path / "run", done / "run")):
        assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(own).items())


def recipe_of(setting: Setting, root: Path, **changes: Any) -> Recipe:
    """The recipe as written; the method must be loaded."""
    keys = setting.keys(**{**KEYS, "output.runs_dir": str(root / "runs"), **changes})
    return Recipe.build(flags=keys)


def test_the_plan_of_a_missing_teacher_and_both_stages(setting: Setting, tmp_path: Path) -> None:
    load_plugin(PLUGIN)
    recipe = recipe_of(setting, tmp_path, **{"teacher_training.model": str(setting.student)})
    recipe = recipe.model_copy(update={"teachers": []})
    jobs = plan(recipe, baseline=True)
    assert [job.role for job in jobs] == ["teacher", "stage", "baseline", "student"]
    assert [job.writes is None for job in jobs] == [False, True, True, True]
    assert {len(job.kept_layers) for job in jobs[1:]} == {2}  # type: ignore[union-attr]
    one = recipe.model_copy(update={"method": recipe.method.model_copy(update={"stage": "states"})})
    assert [job.role for job in plan(one)] == ["teacher", "student"]


def test_a_baseline_starts_from_what_the_first_stage_starts_from(done: Path, setting: Setting) -> None:
    load_plugin(PLUGIN)
    *_, baseline, student = plan(recipe_of(setting, done), baseline=True)
    assert student.recipe.student.model == str(first_run(done))
    assert baseline.recipe.student.model == str(setting.student)
    assert baseline.recipe.student.layers == 2


def test_a_dry_run_tells_both_and_writes_nothing(
    setting: Setting, kdbert: Callable[..., Finished], tmp_path: Path
) -> None:
    ended = kdbert(*words(setting, tmp_path), "--dry-run")
    assert ended.code == 0, ended.err
    first, rest = ended.out.split("\n", 1)
    assert first.startswith("# stage: ")
    assert "states" in first
    assert "learning rate 0.003" in first
    told = yaml.safe_load(rest.split("\nrun folder:")[0].partition("\n")[2])
    assert told["method"]["stage"] == "answers"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stages.state.epochs", 1),
        ("stages.states.epochs", 0),
        ("stages.states.batch_size", 3),
        ("stages.answers.warmup", 1.5),
    ],
)
def test_a_mistake_in_the_section_stages_names_its_key(key: str, value: Any, setting: Setting, tmp_path: Path) -> None:
    load_plugin(PLUGIN)
    with pytest.raises(UserError, match=key.removesuffix(".epochs" if "state." in key else "")):
        recipe_of(setting, tmp_path, **{key: value})


def test_dev_does_not_choose_the_weights_of_the_first_stage(setting: Setting, tmp_path: Path) -> None:
    load_plugin(PLUGIN)
    first, second = plan(recipe_of(setting, tmp_path, selection="best", patience=1))
    assert (first.recipe.train.selection, first.recipe.train.patience) == ("last", None)
    assert (second.recipe.train.selection, second.recipe.train.patience) == ("best", 1)


def test_one_stage_of_two_is_refused_without_its_option(tmp_path: Path) -> None:
    text = PLUGIN.read_text().replace("    stage: Literal", "    other: Literal")
    (tmp_path / "wrong.py").write_text(text)
    with pytest.raises(UserError, match="stage"):
        load_plugin(tmp_path / "wrong.py")


def sweep_words(setting: Setting, tmp_path: Path) -> list[Any]:
    """A sweep of two seeds."""
    keys = setting.keys(**{**KEYS, "output.runs_dir": str(tmp_path / "runs"), "max_steps": 2, "batch_size": BATCH})
    keys.pop("teachers")
    sets = [word for key, value in keys.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return ["sweep", "--teacher", setting.teacher, "--plugin", PLUGIN, *sets, "--seeds", "2"]


def test_cells_of_a_sweep_share_a_first_stage(
    setting: Setting, kdbert: Callable[..., Finished], tmp_path: Path
) -> None:
    planned = kdbert(*sweep_words(setting, tmp_path), "--grid", "stages.answers.learning_rate=1e-3,2e-3", "--dry-run")
    assert planned.code == 0, planned.err
    assert len(planned.out.splitlines()) == 2 + 4


@pytest.mark.long
def test_a_sweep_makes_first_stages_first_and_its_table_shows_the_second_ones(
    setting: Setting, kdbert: Callable[..., Finished], tmp_path: Path
) -> None:
    command = sweep_words(setting, tmp_path)
    ended = kdbert(*command)
    assert ended.code == 0, ended.err
    runs = [manifest(path.parent) for path in (tmp_path / "runs").glob("*/two-stages/*/run.json")]
    stages = [run["recipe"]["method"]["stage"] for run in runs]
    assert (stages.count("states"), stages.count("answers")) == (2, 2)
    assert "nothing to run" in kdbert(*command).err
    table = kdbert("table", tmp_path / "runs", "--format", "csv")
    assert table.code == 0, table.err
    rows = [line for line in table.out.splitlines() if "two-stages" in line]
    assert len(rows) == 1, table.out  # both seeds; no first stage
    longer = kdbert(*command, "stages.states.epochs=2")
    assert longer.code == 0, longer.err
    split = kdbert("table", tmp_path / "runs", "--format", "csv")
    assert "stages.states.epochs" in split.out.splitlines()[0]
    assert "stage_before" not in split.out
    asked = kdbert("table", tmp_path / "runs", "--rows", "method,stages.states.epochs")
    assert asked.code == 0, asked.err
