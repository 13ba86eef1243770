"""Two processes (torchrun, gloo) give what one gives: losses, gradients, predictions, one run folder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from ragged_gradients import all_gradients
from safetensors.torch import load_file

from small_run import FEATURES, Setting, assert_same_gradients, logged, make_teacher, predictions, torchrun

pytestmark = pytest.mark.slow
EXACT = {"dropout": 0.0, "precision": "fp32"}


def words(setting: Setting, root: Path) -> list[str]:
    """The run that is made by one and by two processes: two epochs, each with a ragged batch."""
    given = setting.words(root, epochs=2, learning_rate=1e-4, checkpoint_steps=5, **EXACT)
    given[given.index("--output-dir")] = "--runs-dir"
    place = next(number for number, word in enumerate(given) if word.startswith("output.runs_dir="))
    return given[: place - 1] + given[place + 1 :]


@pytest.fixture(scope="module")
def two(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The root of the runs of two processes, and how they ended."""
    root = tmp_path_factory.mktemp("two")
    return root, torchrun("-m", "kdbert", *words(setting, root))


def only_run(root: Path) -> Path:
    """The one run folder below a root."""
    found = [path.parent for path in root.rglob("run.json")]
    assert len(found) == 1, found
    return found[0]


@pytest.fixture
def runs(setting: Setting, two: tuple[Path, Any], kdbert: Any, tmp_path: Path) -> tuple[Path, Path]:
    """Run folders of one and of two processes."""
    root, ended = two
    assert ended.returncode == 0, ended.stderr
    assert kdbert(*words(setting, tmp_path)).code == 0
    return only_run(tmp_path), only_run(root)


def test_losses_and_gradient_norms_are_those_of_one_process(runs: tuple[Path, Path]) -> None:
    one, two = (logged(run) for run in runs)
    assert sorted(one) == sorted(two) == list(range(1, 27))
    keys = ("loss", "loss/hard", "loss/soft", "grad_norm")
    for step in range(1, 21):
        tolerance = 1e-5 if step == 1 else 1e-4
        assert {k: two[step][k] for k in keys} == pytest.approx({k: one[step][k] for k in keys}, rel=tolerance), step
        assert two[step]["learning_rate"] == one[step]["learning_rate"]
    assert one[1]["loss/soft"] > 0.1


def test_every_example_is_predicted_once_and_as_by_one_process(runs: tuple[Path, Path]) -> None:
    one, two = (predictions(run) for run in runs)
    assert len(two) == 61
    assert len({row["id"] for row in two}) == 61
    assert [row["id"] for row in two] == [row["id"] for row in one]
    assert [row["label"] for row in two] == [row["label"] for row in one]
    assert sum(a["prediction"] == b["prediction"] for a, b in zip(one, two, strict=True)) >= 0.99 * 61
    for a, b in zip(one, two, strict=True):
        assert b["scores"] == pytest.approx(a["scores"], abs=1e-3)


def test_two_processes_write_one_run_that_says_so(
    runs: tuple[Path, Path], two: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    one, both = (json.loads((run / "run.json").read_text(encoding="utf-8")) for run in runs)
    assert (one["processes"], both["processes"]) == (1, 2)
    assert both["status"] == "finished"
    assert both["fingerprints"] == one["fingerprints"]
    assert runs[0].name == runs[1].name  # the number of processes is no part of the recipe
    assert len(list(runs[1].glob("events.out.tfevents.*"))) == 1
    ended = two[1]
    assert "2 processes" in ended.stderr
    assert ended.stdout.count("run: ") == 1  # one table, printed by one process
    # Each step is written down once, by one process.
    assert len((runs[1] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 26 + 2


def test_two_processes_on_a_finished_run_say_so(
    setting: Setting, two: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in two[0].rglob("*") if path.is_file()}
    again = torchrun("-m", "kdbert", *words(setting, two[0]))
    assert again.returncode == 0, again.stderr
    assert "already finished" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in two[0].rglob("*") if path.is_file()} == before


METHODS: dict[str, dict[str, Any]] = {"kd": {}, **FEATURES}
Found = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def ragged(
    setting: Setting, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Found], dict[str, Found], subprocess.CompletedProcess[str]]:
    """Method -> gradients and terms, of one process and of two; one start of torchrun for all methods."""
    root = tmp_path_factory.mktemp("ragged")
    wide = make_teacher(root / "teacher", hidden=48)  # so that ics has a projection, whose gradients are compared too
    recipes = {}
    for number, (name, changes) in enumerate(METHODS.items()):
        own = setting if name == "kd" else Setting(setting.train, setting.dev, wide, setting.student)
        recipe = own.recipe(root / f"run-{number}", **EXACT, **changes)
        (root / f"{number}.yaml").write_text(recipe.yaml(), encoding="utf-8")
        recipes[name] = recipe
    one = {name: all_gradients(recipe) for name, recipe in recipes.items()}  # makes the memory, which two then read
    script = Path(__file__).with_name("ragged_gradients.py")
    files = [root / f"{number}.yaml" for number in range(len(recipes))]
    ended = torchrun(script, root / "two.safetensors", *files)
    if ended.returncode:
        return one, {}, ended
    both = load_file(root / "two.safetensors")
    two = {name: of(both, f"{number}|") for number, name in enumerate(recipes)}
    return one, two, ended


def of(found: Found, prefix: str) -> Found:
    """Values under a prefix."""
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_the_ragged_batch_are_those_of_one_process(
    ragged: tuple[dict[str, Found], dict[str, Found], subprocess.CompletedProcess[str]], name: str
) -> None:
    one, two, ended = ragged
    assert ended.returncode == 0, ended.stderr
    exact = name != "kd"  # in float64
    for case in ("11 rows|1|", "11 rows|2|", "1 rows|1|"):
        expected, actual = of(one[name], case), of(two[name], case)
        assert expected.keys() == actual.keys()
        assert len(expected) > 30  # every parameter of the student and of the method, and the terms
        terms = [key for key in expected if key == "loss" or key.startswith(("loss/", "ics/"))]
        assert len(terms) >= (3 if name == "kd" else 4)
        for key in terms:
            torch.testing.assert_close(
                actual.pop(key), expected.pop(key), rtol=1e-9 if exact else 1e-5, atol=1e-12 if exact else 0,
                msg=lambda m, k=case + key: f"{k}: {m}",
            )  # fmt: skip
        assert_same_gradients(actual, expected, rtol=1e-5, floor=1e-9 if exact else 1e-6)
    kept, kept_by_two = of(one[name], "stored|"), of(two[name], "stored|")
    assert kept.keys() == kept_by_two.keys() != set()
    for key, value in kept.items():
        torch.testing.assert_close(kept_by_two[key], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()))
    own = {key for key in of(one[name], "11 rows|1|") if key.startswith("method.")}
    assert bool(own) == (name == "ics" or name.startswith(("cka-g", "cka-ilg")))
