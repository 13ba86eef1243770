"""A run whose numbers explode stops, says where, and leaves nothing broken behind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdbert.disk.sealed import sealed
from kdbert.errors import Diverged
from kdbert.training.checkpoint import save_checkpoint
from kdbert.training.finite import FiniteWatch
from small_run import BATCH, STEPS_PER_EPOCH, Setting, logged


def not_finite(run: Path) -> list[str]:
    """Files and tensors below a run that hold a NaN or an infinity."""
    return [
        f"{file.relative_to(run)}: {name}"
        for file in run.rglob("*.safetensors")
        for name, value in load_file(file).items()
        if not torch.isfinite(value.float()).all()
    ]


@pytest.mark.parametrize("method", ["kd", "finetune"])
@pytest.mark.parametrize("logging_steps", [1, 100])
def test_an_exploding_run_names_step_and_term_and_exits_4(
    setting: Setting, kdbert: Any, tmp_path: Path, method: str, logging_steps: int
) -> None:
    run = tmp_path / "run"
    changes = {"learning_rate": 1e30, "checkpoint_steps": 1, "logging_steps": logging_steps, "method.name": method}
    words = setting.words(run, **changes)
    ended = kdbert(*words)
    assert ended.code == 4, ended.err
    last = ended.err.strip().splitlines()[-1]
    assert re.search(r"diverged at step [2-9]: the (loss term hard|loss term soft|gradient) is not finite", last)
    assert "learning_rate" in last
    assert "Traceback" not in ended.err
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["status"] == "diverged"
    assert "not finite" in manifest["message"]
    assert not (run / "model").exists()
    assert not_finite(run) == []
    named = re.search(r"the last good checkpoint is (\S+);", last)
    assert named
    assert Path(named[1]).is_dir()
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert "NaN" not in line
        assert "Infinity" not in line


def test_without_a_checkpoint_the_message_says_so(setting: Setting, kdbert: Any, tmp_path: Path) -> None:
    ended = kdbert(*setting.words(tmp_path / "run", learning_rate=1e30))
    assert ended.code == 4
    assert "no checkpoint had been saved" in ended.err
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_model_that_the_last_step_ruined_is_not_called_finished(
    setting: Setting, kdbert: Any, tmp_path: Path
) -> None:
    """The loss of the last step is finite; what it made of the weights shows only when they are used."""
    run = tmp_path / "run"
    ended = kdbert(*setting.words(run, learning_rate=1e30, max_steps=1))
    assert ended.code == 4, ended.err
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["status"] == "diverged"
    assert manifest["divergence"] == {"split": "dev", "examples": [str(row) for row in range(61)]}
    assert "the model's outputs on dev are not finite for examples 0, 1, 2, 3, 4, 5, 6, 7, … (61 in all" in ended.err
    assert not (run / "model").exists()


def test_the_watch_remembers_the_first_step_and_the_first_term(tmp_path: Path) -> None:
    watch = FiniteWatch(torch.device("cpu"), ids=[f"text-{i}" for i in range(40)])
    good, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    watch.check(tmp_path)
    watch.see(1, {"hard": good, "soft": good, "gradient": good}, np.arange(3))
    watch.check(tmp_path)
    watch.see(2, {"hard": good, "soft": torch.tensor(float("inf")), "gradient": bad}, np.array([7, 30, 2]))
    watch.see(3, {"hard": bad, "soft": bad, "gradient": bad}, np.array([9]))
    save_checkpoint(tmp_path, 1, {"weights": {}, "optimizer": {}}, {})
    told = r"the loss term soft is not finite in the batch of examples text-7, text-30, text-2; the last good .*step-1"
    with pytest.raises(Diverged, match=told) as caught:
        watch.check(tmp_path)
    assert caught.value.where == {"step": 2, "term": "soft", "examples": ["text-7", "text-30", "text-2"]}


@pytest.fixture
def scores(tiny_bert: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Words of a fine-tuning run on scores of a given size; one of them may be another."""

    def words(run: Path, size: float, one: str | None = None, **changes: Any) -> list[str]:
        for name, rows in (("train", 203), ("dev", 20)):
            values = [f"{size * (1 + i / rows)!r}" for i in range(rows)]
            if one is not None and name == "train":
                values[77] = one
            lines = [f"good film number {i},{value}" for i, value in enumerate(values)]
            (tmp_path / f"{name}.csv").write_text("\n".join(["text,score", *lines]) + "\n", encoding="utf-8")
        keys = {"batch_size": BATCH, "epochs": 1, "logging_steps": 1, "max_grad_norm": 1.0, **changes}
        files = ["--train-file", str(tmp_path / "train.csv"), "--dev-file", str(tmp_path / "dev.csv")]
        sets = [word for key, value in keys.items() for word in ("--set", f"train.{key}={json.dumps(value)}")]
        order = ["finetune-teacher", "--task", "custom", *files, "--model", str(tiny_bert), "--max-length", "32"]
        return [*order, "--output-dir", str(run), *sets]

    return words


def test_the_examples_of_the_step_are_named(scores: Any, kdbert: Any, tmp_path: Path) -> None:
    """One score whose square no float32 holds: it is among the examples that run.json names, and no other batch is."""
    run = tmp_path / "run"
    ended = kdbert(*scores(run, 1.5, one="1e30", precision="fp32"))
    assert ended.code == 4, ended.err
    manifest = json.loads((run / "run.json").read_text())
    found = manifest["divergence"]
    assert found["term"] == "hard"
    assert found["step"] == max(logged(run), default=0) + 1
    assert len(found["examples"]) == BATCH
    assert "77" in found["examples"]
    named = re.search(r"in the batch of examples ((?:\d+, ){8})… \(16 in all, see run.json\)", ended.err)
    assert named
    assert named[1].split(", ")[:8] == found["examples"][:8]


def test_an_overflow_in_fp16_is_scaled_away_and_counted(scores: Any, kdbert: Any, tmp_path: Path) -> None:
    """At first a loss of this size times the first factor has gradients that no float16 holds."""
    run = tmp_path / "run"
    words = scores(run, 900.0, precision="fp16", checkpoint_steps=10)
    ended = kdbert(*words, "output.keep_checkpoints=true")
    assert ended.code == 0, ended.err
    manifest = json.loads((run / "run.json").read_text())
    lines = logged(run)
    assert manifest["precision"] == "fp16"
    assert manifest["skipped_steps"] == lines[STEPS_PER_EPOCH]["skipped_steps"] >= 5
    assert manifest["loss_scale"] == 65536.0 * 0.5 ** manifest["skipped_steps"]
    overflowed = [step for step, line in lines.items() if "grad_norm" not in line]
    assert overflowed == list(range(1, manifest["skipped_steps"] + 1))
    assert f"fp16: {len(overflowed)} of 13 steps were skipped" in ended.err
    assert not_finite(run) == []

    # Continued from step 10 it ends with the same weights; without the factor of then it would leave steps out again.
    other = Path(shutil.copytree(run, tmp_path / "other"))
    shutil.rmtree(other / "checkpoints" / f"step-{STEPS_PER_EPOCH}")
    shutil.rmtree(other / "model")
    (other / "run.json").write_text(json.dumps(sealed({**manifest, "status": "interrupted"})), encoding="utf-8")
    again = kdbert(*scores(other, 900.0, precision="fp16", checkpoint_steps=10), "output.keep_checkpoints=true")
    assert again.code == 0, again.err
    assert "continuing from step 10 of 13" in again.err
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (run, other)]
    assert weights[0] == weights[1]
    assert (other / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()


def test_what_no_factor_mends_in_fp16_is_divergence(scores: Any, kdbert: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = kdbert(*scores(run, 1e6, precision="fp16", epochs=2))
    assert ended.code == 4, ended.err
    found = json.loads((run / "run.json").read_text())["divergence"]
    assert (found["step"], found["term"]) == (17, "gradient")  # the factor is 2^16 at step 1, and 1 here


@pytest.mark.parametrize("method", ["kd", "cka-i", "ics"])
def test_an_fp16_encoder_gives_nearly_the_loss_of_fp32(
    setting: Setting, kdbert: Any, tmp_path: Path, method: str
) -> None:
    losses = []
    for precision in ("fp32", "fp16"):
        changes = {"method.name": method, "student.layers": 3, "dropout": 0.0, "max_steps": 4}
        ended = kdbert(*setting.words(tmp_path / precision, precision=precision, **changes))
        assert ended.code == 0, ended.err
        losses.append([line["loss"] for line in logged(tmp_path / precision).values()])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_the_examples_at_which_a_teacher_fails_are_named(setting: Setting, kdbert: Any, tmp_path: Path) -> None:
    """A teacher with infinite numbers for one word: only texts with this word come out wrong."""
    teacher = Path(shutil.copytree(setting.teacher, tmp_path / "teacher"))
    weights = load_file(teacher / "model.safetensors")
    word = json.loads((teacher / "tokenizer.json").read_text())["model"]["vocab"]["cat"]
    weights["bert.embeddings.word_embeddings.weight"][word] = 3e38  # finite, but no sum of them is
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    ended = kdbert(*replace(setting, teacher=teacher).words(tmp_path / "run"))
    assert ended.code == 4, ended.err
    told = re.search(r"teacher on (train|dev): its logits of examples (.*) are not finite", ended.err)
    assert told
    named = re.findall(r"\d+", told[2].partition(", …")[0])
    file = setting.train if told[1] == "train" else setting.dev
    lines = file.read_text(encoding="utf-8").splitlines()[1:]
    with_it = [str(row) for row, line in enumerate(lines) if "cat" in line.partition(",")[0].split()]
    assert named  # those of the first batch that has any: texts of like length stand together
    assert set(named) <= set(with_it)
    assert not (tmp_path / "run").exists()
