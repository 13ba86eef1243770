"""A run that is continued from any of its checkpoints, or stopped at any step, ends with the bits of one left alone.

Every method family, the steps around the border of an epoch, the optimiser's state among what is compared.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from equal_runs import differences

from conftest import VOCABULARY, WORDS, make_bert, often
from in_processes import manifest, saved_steps
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import resolve_distill
from kdbert.runs.folder import RunFolder
from kdbert.training import checkpoint
from kdbert.training.loggers import MetricsLog
from small_run import FEATURES, HELD, Setting, make_teacher, run_recipe

# 203 rows in batches of 64 are four steps an epoch, the last of 11 rows.
CUTS = {"first step": 1, "mid-epoch": 2, "epoch end": 4, "first step of the next epoch": 5, "last step": 8}
COMMON: dict[str, Any] = {
    "batch_size": 64, "epochs": 2, "checkpoint_steps": 1, "warmup": 2, "output.keep_checkpoints": True,
}  # fmt: skip
LEVERS = {"teacher_cache": True, "bucketing": True, "precision": "bf16"}
PLAIN = {"teacher_cache": False, "packing": False, "used_rows": False, "fast_dropout": False, "precision": "fp32"}


@pytest.fixture(scope="module")
def setting(tiny_bert: Path, custom_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Task, student, and a teacher that is wider, so that ics and ve-kd train a projection."""
    return Setting(*custom_files, make_teacher(tmp_path_factory.mktemp("teacher"), hidden=48), tiny_bert)


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Keys of ve-kd: four steps of text with words that the teacher's vocabulary lacks; a student that reads them."""
    folder, draw = tmp_path_factory.mktemp("domain"), random.Random(0)
    terms = ["cataract", "glaucoma", "retinopathy"]
    texts = [" ".join([*draw.choices(WORDS, k=draw.randint(3, 20)), draw.choice(terms)]) for _ in range(224)]
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    teacher = make_bert(folder / "teacher", hidden=48, masked_lm=True)
    student = make_bert(folder / "student", masked_lm=True)
    grown = make_bert(folder / "grown", vocabulary=[*VOCABULARY, *terms])
    return {
        "task.name": "corpus", "task.train_file": str(folder / "texts.txt"), "task.dev_file": None,
        "teachers": [{"model": str(teacher)}], "student.model": str(student), "student.tokenizer": str(grown),
        "method.name": "ve-kd", "task.max_length": 32, "train.batch_size": 24,
    }  # fmt: skip


@pytest.fixture
def recipe_of(setting: Setting, request: pytest.FixtureRequest) -> Callable[..., Recipe]:
    """The recipe of a method for a folder."""

    def of(folder: Path, method: str, **changes: Any) -> Recipe:
        own = {"finetune": {"method.name": "finetune"}, "kd": {}, **FEATURES, **HELD}.get(method)
        keys = setting.keys(**COMMON, **(own or {}), **changes)
        if own is None:
            domain = request.getfixturevalue("domain")
            text = {key: value for key, value in domain.items() if key.startswith("task.")}
            keys.update(domain if method == "ve-kd" else {**text, "method.name": method, "train.batch_tokens": 1050})
        places = {"output.dir": str(folder), "output.runs_dir": str(folder.parent / "runs")}
        return resolve_distill(Recipe.build(flags={**keys, **places}))

    return of


FAMILIES = [
    "finetune", "kd", "ics", "cka-ilg", "pkd", "sinkd", "minilm", "tinybert", "distilbert", "mgskd", "ckd",
    "ad-kd of classes", "ve-kd", "hidden", *HELD,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("kd", PLAIN),  # a teacher that runs in every step
        *often(
            [(method, {"accumulation": micro, **LEVERS}) for method in FAMILIES for micro in (1, 2)],
            lambda case: (case[0], case[1]["accumulation"]) in {("cka-ilg", 2), ("ve-kd", 1), ("reptile", 1)},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else f"accumulation {value.get('accumulation', 1)}",
)
def test_continued_from_any_checkpoint_ends_with_the_same_bits(
    recipe_of: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    method: str,
    options: dict[str, Any],
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    recipe = recipe_of(run, method, **options)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "KEEP", 100)  # else the two newest
        run_recipe(recipe)
    assert saved_steps(run) == list(range(1, 9))
    run.rename(whole)
    found = {}
    for cut, step in CUTS.items():
        # As a kill after this checkpoint leaves it: the record has lines of later steps.
        shutil.copytree(whole, run, ignore=shutil.ignore_patterns("model", "predictions", "checkpoints", "method.*"))
        shutil.copytree(whole / "checkpoints" / f"step-{step}", run / "checkpoints" / f"step-{step}")
        RunFolder(run).update(status="running")
        assert run_recipe(recipe).manifest["timings"]["resumed_from_step"] == step
        found[cut] = differences(run, whole)
        shutil.rmtree(run)
    assert found == {cut: [] for cut in CUTS}


@pytest.fixture
def terminal() -> Iterator[None]:
    """A closed terminal is heard, whatever the tests were started from (`nohup`, say)."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.usefixtures("terminal")
def test_stopped_at_any_step_and_continued_ends_with_the_same_bits(
    setting: Setting, kdbert: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One run that a signal stops five times, once behind the last step of an epoch, before its dev score."""
    changes = {**COMMON, **FEATURES["cka-ilg"], **LEVERS, "accumulation": 2, "checkpoint_steps": 3}
    whole, run = tmp_path / "whole", tmp_path / "run"
    words = setting.words(run, **changes)
    assert kdbert(*words).code == 0
    run.rename(whole)
    write, moments = MetricsLog.write, [*CUTS.values()]
    signals = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGINT]

    def write_and_signal(log: MetricsLog, step: int, values: dict[str, Any]) -> None:
        """The line of a step is written; then the signal comes, if this is its moment."""
        write(log, step, values)
        if moments and step == moments[0] and "loss" in values:
            os.kill(os.getpid(), signals[len(CUTS) - len(moments)])
            moments.pop(0)

    monkeypatch.setattr(MetricsLog, "write", write_and_signal)
    for number, step in zip(signals, CUTS.values(), strict=True):
        ended = kdbert(*words)
        assert ended.code == 128 + number, ended.err
        assert f"stopped by {number.name} at step {step} of 8" in ended.err
        assert manifest(run)["status"] == "interrupted"
        assert saved_steps(run)[-1] == step
    ended = kdbert(*words)
    assert ended.code == 0, ended.err
    assert differences(run, whole) == []
