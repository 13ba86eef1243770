"""A run whose numbers explode stops, says where, and leaves nothing broken behind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdbert.errors import Diverged
from kdbert.training.checkpoint import save_checkpoint
from kdbert.training.loop import FiniteWatch
from small_run import Setting


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
    assert re.search(r"diverged at step [2-9]: (hard|soft|gradient) is not finite", last)
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
    assert json.loads((run / "run.json").read_text())["status"] == "diverged"
    assert not (run / "model").exists()


def test_the_watch_remembers_the_first_step_and_the_first_term(tmp_path: Path) -> None:
    watch = FiniteWatch(torch.device("cpu"))
    good, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    watch.check(tmp_path)
    watch.see(1, {"hard": good, "soft": good, "gradient": good})
    watch.check(tmp_path)
    watch.see(2, {"hard": good, "soft": torch.tensor(float("inf")), "gradient": bad})
    watch.see(3, {"hard": bad, "soft": bad, "gradient": bad})
    save_checkpoint(tmp_path, 1, {"weights": {}, "optimizer": {}}, {})
    with pytest.raises(Diverged, match=r"step 2: soft is not finite; the last good checkpoint is .*step-1"):
        watch.check(tmp_path)
