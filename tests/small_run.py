"""What the tests of the loop share: a small distillation by `kd`, as a recipe, as command words, and as objects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from kdbert.data.encode import Encoded
from kdbert.recipe import Recipe, put
from kdbert.recipe.defaults import resolve_distill
from kdbert.runs.checks import check
from kdbert.runs.execute import execute
from kdbert.runs.folder import RunResult
from kdbert.runs.inputs import Inputs
from kdbert.runs.job import Job
from kdbert.runs.run import Run
from kdbert.training.forward import StudentWithMethod, pass_over
from kdbert.training.precision import make_accelerator
from kdbert.training.teacher import LiveTeacher, StoredTeacher, by_gradient, kinds_of, layers_read, quantities

ROWS, BATCH = 203, 16  # 12 full batches and one of 11
STEPS_PER_EPOCH = 13
# Feature methods as recipe keys; three layers of the student, so that there are two pairs of layers to compare.
FEATURES: dict[str, dict[str, Any]] = {
    name: {"student.layers": 3, "method.name": name.partition(" ")[0], **options}
    for name, options in {
        "ics": {},
        "cka-i": {},
        "cka-i internal=false": {"method.internal": False},
        "cka-l": {},
        "cka-l layerwise": {"method.layerwise": True},
        "cka-g": {"memory.centroids": 6},
        "cka-il": {"method.epsilon": 10.0},
        "cka-ilg": {"method.epsilon": 10.0, "memory.centroids": 6},
        "cka-ilg layerwise": {"method.epsilon": 10.0, "method.layerwise": True, "memory.centroids": 6},
        "pkd": {},
        "rkd": {},
        "rkd features=flat": {"method.features": "flat"},
        "dist": {},
        "dkd": {"method.warmup": 0.0},
        "sinkd": {"method.beta": 1.0, "method.anneal": True},
        "minilm": {},
        "minilm qk,vv": {"method.relations": "qk,vv", "method.kd": 0.5},
        "tinybert": {},
        "distilbert": {},
        "mgskd": {"method.centres": 6, "method.ends": 5},
        # Small random models are alike in cosines of layers, and answer from their first token.
        "ckd": {
            "method.window": 5,
            "method.distance": "squared",
            "method.normalize": True,
            "method.distance_error": "l2",
            "method.layer_map": "0:0,1:1,3:2,4:3",
        },
        "ad-kd": {"method.error": "l1"},
        "ad-kd of classes": {
            "method.views": "classes",
            "method.error": "l1",
            "method.top_k": 40,
            "method.anneal": True,
        },
    }.items()
}

# Methods that work with the models themselves; their student is cut from the teacher.
HELD: dict[str, dict[str, Any]] = {
    "theseus": {"method.name": "theseus", "student.model": None},
    "reptile": {"method.name": "reptile", "method.teacher_learning_rate": 1e-3, "student.model": None},
}


def make_teacher(folder: Path, hidden: int = 32, labels: Sequence[str] = ("negative", "positive")) -> Path:
    """A random classifier whose logits differ between examples by several units, so that the soft term weighs in.

    Args:
        hidden: its width; the student's is 32.
    """
    from transformers import AutoModelForSequenceClassification

    from conftest import make_bert

    make_bert(folder, hidden=hidden, base=False, labels=list(labels), seed=1)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.bert.pooler.dense.weight.mul_(30)
        model.classifier.weight.mul_(30)
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Setting:
    """The files of the small task, its teacher, and what the student is cut from."""

    train: Path
    dev: Path
    teacher: Path
    student: Path

    def keys(self, **changes: Any) -> dict[str, Any]:
        """Recipe keys: two layers of the student, batch 16, one epoch; `changes` are keys of `train`, or dotted."""
        keys = {
            "task.name": "custom",
            "task.train_file": str(self.train),
            "task.dev_file": str(self.dev),
            "task.max_length": 64,
            "teachers": [{"model": str(self.teacher)}],
            "student.model": str(self.student),
            "student.layers": 2,
            "method.name": "kd",
            "train.batch_size": BATCH,
            "train.epochs": 1,
            "train.learning_rate": 1e-3,
            "train.logging_steps": 1,
        }
        return {**keys, **{key if "." in key else f"train.{key}": value for key, value in changes.items()}}

    def words(self, output_dir: Path, **changes: Any) -> list[str]:
        """The same as words of the command line."""
        keys = self.keys(**{"output.runs_dir": str(output_dir.parent / "runs"), **changes})
        keys.pop("teachers")
        sets = [word for key, value in keys.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        taught = [] if keys["method.name"] == "finetune" else ["--teacher", str(self.teacher)]
        return ["distill", *taught, "--no-baseline", "--output-dir", str(output_dir), *sets]

    def recipe(self, output_dir: Path, **changes: Any) -> Recipe:
        """The same as a resolved recipe."""
        places = {"output.dir": str(output_dir), "output.runs_dir": str(output_dir.parent / "runs")}
        return resolve_distill(Recipe.build(flags={**self.keys(**changes), **places}))


@dataclass
class Parts:
    """What `train` and `forward_backward` work on, built as a run builds it."""

    recipe: Recipe
    run: Run

    @property
    def module(self) -> StudentWithMethod:
        """Student and method."""
        return self.run.module

    @property
    def data(self) -> Encoded:
        """The tokenised training split."""
        return self.run.job.encoded["train"]

    @property
    def accelerator(self) -> Accelerator:
        """Device and processes."""
        return self.run.session.accelerator

    def live_teacher(self, number: int = 0) -> LiveTeacher:
        """A teacher, run on each batch."""
        teacher = self.run.teachers[number]
        precision, needs = self.run.session.precision, self.run.job.needs
        return LiveTeacher(teacher.network, teacher.columns or [], precision, needs, self.module.method)

    def stored_teacher(self) -> StoredTeacher:
        """What is read of the teacher, computed once."""
        needs, method, teacher = self.run.job.needs, self.module.method, self.run.teachers[0]
        assert teacher.columns is not None
        values = pass_over(
            teacher.network,
            self.data,
            lambda seen, batch: quantities(needs, method, seen, batch, teacher.columns),
            kinds_of(needs, self.data.logits_of),
            layers=layers_read(needs),
            attention=needs.teacher_attention,
            graph=by_gradient(needs),
            batch_size=64,
            precision=self.run.session.precision,
            accelerator=self.accelerator,
        )
        return StoredTeacher(values, self.data, teacher.columns, self.accelerator.device, needs)


def predict(model: Any, data: Encoded, batch_size: int = 64) -> np.ndarray:
    """A classifier's logits in the order of a split, in float32."""
    found = pass_over(
        model,
        data,
        lambda outputs, batch: {"logits": outputs.logits},
        {"logits": data.logits_of},
        batch_size=batch_size,
        precision="fp32",
        accelerator=make_accelerator(),
    )["logits"]
    assert found is not None
    return found


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A copy of a recipe with some dotted keys set."""
    tree = recipe.model_dump(mode="json")
    for key, value in changes.items():
        put(tree, key, value, [])
    return Recipe.of(tree)


def run_recipe(recipe: Recipe) -> RunResult:
    """Run a resolved recipe in its folder."""
    job = Job("student", recipe, Inputs())
    check(job)
    return execute(job)


def build(recipe: Recipe) -> Parts:
    """Load everything that a recipe names."""
    return Parts(recipe, Run(Job("student", recipe, Inputs())))


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the gradient of every trained parameter; afterwards there are none."""
    found = {
        name: parameter.grad.detach().cpu().clone()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    module.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float, floor: float = 1e-6
) -> None:
    """Compare elementwise; below `floor` times the largest gradient of the model a difference is rounding.

    (The gradient of a key bias, for one, is zero by theory and some 1e-9 in float32.)
    """
    assert actual.keys() == expected.keys()
    assert expected
    atol = floor * max(float(value.abs().max()) for value in expected.values())
    assert atol > 0
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def logged(run: Path, key: str = "loss") -> dict[int, dict[str, float]]:
    """step -> numbers, of the lines of metrics.jsonl that have `key`."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line for line in lines if key in line}


def predictions(run: Path) -> list[dict[str, Any]]:
    """Rows of the dev predictions."""
    return [json.loads(line) for line in (run / "predictions" / "dev.jsonl").read_text(encoding="utf-8").splitlines()]


def ragged_rows(parts: Parts) -> np.ndarray:
    """The global batch of the first epoch that is not full."""
    from kdbert.data.batches import epoch_batches

    order = epoch_batches(parts.data.lengths, BATCH, seed=1, epoch=0, bucketing=False)
    return next(rows for rows in order if len(rows) != BATCH)


ONE_AGENT = ("--standalone", "--nproc-per-node", "2")


def start_torchrun(*words: object, agent: Sequence[str] = ONE_AGENT) -> subprocess.Popen[str]:
    """Start words in two processes on this machine, or in those of one agent of several."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *agent, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
