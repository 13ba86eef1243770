"""What is saved is what was scored: a saved model that answers otherwise, or not at all, is never reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import WORDS, Finished
from kdbert import KdbertError, distill
from kdbert.data.encode import encode
from kdbert.runs.answers import Answers, saved_model
from kdbert.runs.folder import RunResult
from kdbert.runs.saved import check_saved
from small_run import Setting, predict

KDBERT = Callable[..., Finished]


@pytest.fixture(scope="module")
def run(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A finished run."""
    return distill(setting.recipe(tmp_path_factory.mktemp("saved") / "run", precision="fp32"), baseline=False)


def checked(run: RunResult, folder: Path, change: Callable[[np.ndarray], np.ndarray] = lambda logits: logits) -> None:
    """Check the model in a folder as the run checked its own, with what it reported changed."""
    saved = saved_model(str(run.path))
    examples, model = saved.examples("dev"), saved.network()
    data = encode(examples, saved.tokenizer, saved.max_length)
    logits = predict(model, data)
    check_saved(folder, model, Answers(saved.spec, examples, change(logits)), data, "fp32", saved.max_length)


def changed_copy(run: RunResult, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The run's model with other weights."""
    shutil.copytree(run.path / "model", folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_models_own_folder_passes(run: RunResult) -> None:
    checked(run, run.path / "model")


@pytest.mark.parametrize("value", [0.01, float("nan")])
def test_other_weights_are_seen(run: RunResult, tmp_path: Path, value: float) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["classifier.bias"] = weights["classifier.bias"] + value

    with pytest.raises(KdbertError, match="disagrees with the trained model"):
        checked(run, changed_copy(run, tmp_path / "model", change))


@pytest.mark.parametrize("value", [0.01, float("inf")])
def test_other_scores_are_seen(run: RunResult, value: float) -> None:
    with pytest.raises(KdbertError, match="disagrees with what the run reports"):
        checked(run, run.path / "model", lambda logits: logits + np.float32(value))


def test_another_tokenizer_is_seen(run: RunResult, tmp_path: Path) -> None:
    folder = changed_copy(run, tmp_path / "model", lambda weights: None)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    words = [word for word in vocabulary if word in WORDS]
    vocabulary.update(zip(words, [vocabulary[word] for word in words[1:] + words[:1]], strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(KdbertError, match="tokenizer"):
        checked(run, folder)


def test_a_tokenizer_that_pads_left_or_not_at_all_is_no_difference(run: RunResult, tmp_path: Path) -> None:
    for key, value in (("padding_side", "left"), ("pad_token", None)):
        folder = changed_copy(run, tmp_path / key, lambda weights: None)
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings[key] = value
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        checked(run, folder)


def test_scores_that_are_not_finite_end_with_an_error_and_replace_nothing(
    tmp_path: Path, kdbert: KDBERT, quickstart_model: Path
) -> None:
    def words(model: Path) -> list[Any]:
        return ["evaluate", model, "--task", "quickstart", "--output-dir", tmp_path / "out", "--precision", "fp32"]

    assert kdbert(*words(quickstart_model)).code == 0
    before = (tmp_path / "out" / "dev.jsonl").read_bytes()
    broken = tmp_path / "broken"
    shutil.copytree(quickstart_model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["bert.pooler.dense.bias"][:] = 1e4  # each unit is 1 then
    weights["classifier.weight"][0] = 3e38  # finite, but no sum of them is
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    done = kdbert(*words(broken))
    assert done.code not in (0, 2)
    assert "not finite" in done.err
    assert "Traceback" not in done.err
    assert (tmp_path / "out" / "dev.jsonl").read_bytes() == before


@pytest.fixture(scope="module")
def quickstart_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier of the quickstart task."""
    from conftest import make_bert
    from kdbert.tasks import get_task

    folder = tmp_path_factory.mktemp("model") / "model"
    return make_bert(folder, base=False, labels=list(get_task("quickstart").labels))
