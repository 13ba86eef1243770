"""Runs with weights of classes and label smoothing: who gets them, where they are said, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kdbert.data.masking import IGNORE_INDEX
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import baseline_recipe
from kdbert.training.step import forward_backward
from small_heads import TASKS, make_setting
from small_run import Setting, build, predictions

BOTH = {"class_weights": "balanced", "label_smoothing": 0.1}


def rare(setting: Setting) -> np.ndarray:
    """Whether each training row of the small task is of the class `positive`."""
    rows = setting.train.read_text(encoding="utf-8").splitlines()[1:]
    return np.array([row.endswith(",positive") for row in rows])


def test_balanced_weights_are_of_the_rows_that_are_trained_on(setting: Setting, tmp_path: Path) -> None:
    for most in (None, 30):
        recipe = setting.recipe(tmp_path / "run", **BOTH, **{"task.max_train_examples": most})
        parts, there = build(recipe), rare(setting)[:most]
        expected = (len(there) / (2 * (~there).sum()), len(there) / (2 * there.sum()))
        assert parts.module.method.head.class_weights == pytest.approx(expected)
        assert parts.module.method.head.label_smoothing == 0.1


def test_of_words_those_count_whose_tag_is_read(tiny_bert: Path, tmp_path: Path) -> None:
    setting = make_setting("token", tmp_path / "files", tiny_bert)
    parts = build(setting.recipe(tmp_path / "run", **BOTH, **{"task.max_length": 8}))
    words = parts.data.labels
    read = parts.data.token_labels[parts.data.token_labels != IGNORE_INDEX]
    assert words is not None
    assert len(read) < len(words)  # some were cut off
    expected = [len(read) / (3 * (read == tag).sum()) for tag in range(3)]
    assert parts.run.job.head.class_weights == pytest.approx(expected)


def test_weights_of_one_change_no_loss_and_others_do(setting: Setting, tmp_path: Path) -> None:
    def terms(weights: Any) -> dict[str, float]:
        parts = build(setting.recipe(tmp_path / "run", dropout=0.0, precision="fp32", class_weights=weights))
        found = forward_backward(
            parts.module, parts.data, np.arange(16), [parts.live_teacher()], parts.accelerator, accumulation=1, seed=1,
            step=0,
        )  # fmt: skip
        return {name: value.item() for name, value in found.terms.items()}

    plain, ones, others = (terms(one) for one in (None, {"negative": 1, "positive": 1}, {"negative": 3, "positive": 1}))
    assert ones == pytest.approx(plain, rel=1e-6)
    assert others["soft"] == plain["soft"]
    assert others["hard"] > plain["hard"]  # divided by the number of examples, not by the sum of weights


def test_a_baseline_has_the_same_hard_loss() -> None:
    recipe = Recipe.build(flags={f"train.{key}": value for key, value in BOTH.items()})
    assert baseline_recipe(recipe).train.class_weights == "balanced"
    assert baseline_recipe(recipe).train.label_smoothing == 0.1


def test_log_dry_run_card_and_run_json_say_which_weights_were_used(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    words = [*setting.words(tmp_path / "run", max_steps=3), "--class-weights", "balanced", "--label-smoothing", "0.1"]
    there = rare(setting)
    expected = {"negative": len(there) / (2 * (~there).sum()), "positive": len(there) / (2 * there.sum())}
    told = ", ".join(f"{name} {weight:.4g}" for name, weight in expected.items())
    planned, done = kdbert(*words, "--dry-run"), kdbert(*words)
    assert planned.code == done.code == 0, planned.err + done.err
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    for text in (planned.out, done.err, card):
        assert told in text
        assert "label smoothing: 0.1" in text
    facts = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert facts["class_weights"] == pytest.approx(expected)
    assert facts["recipe"]["train"]["class_weights"] == "balanced"
    again = kdbert("distill", "--config", tmp_path / "run" / "recipe.yaml")
    assert "already finished" in again.err
    plain = kdbert(*setting.words(tmp_path / "plain", max_steps=3))
    assert plain.code == 0
    assert "class weights" not in plain.err
    assert "class_weights" not in json.loads((tmp_path / "plain" / "run.json").read_text(encoding="utf-8"))
    assert "label smoothing" not in (tmp_path / "plain" / "model" / "README.md").read_text(encoding="utf-8")
    assert predictions(tmp_path / "plain") != predictions(tmp_path / "run")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Words that name own files: labels that YAML takes for something else, and scores."""
    root, found = tmp_path_factory.mktemp("tables"), {}
    for name, labels in {"yes": ("yes", "no"), "true": ("True", "False"), "one": ("1", "0.0"), "a,b": ("a,b", "c=d"),
                         "score": ("0.5", "1.5")}.items():  # fmt: skip
        lines = [json.dumps({"text": f"the cat {n}", "label": labels[n % 3 == 0]}) for n in range(30)]
        files = [root / f"{split} {name}.jsonl" for split in ("train", "dev")]
        for file in files:
            file.write_text("\n".join(lines), encoding="utf-8")
        found[name] = ["finetune-teacher", "--task", "custom", "--train-file", files[0], "--dev-file", files[1]]
    return found


@pytest.mark.parametrize(
    ("task", "text", "told"),
    [
        ("yes", "{yes: 2, no: 0.5}", "no 0.5, yes 2"),
        ("true", "{true: 2, FALSE: 0.5}", "false 0.5, true 2"),
        ("one", "{1: 2, 0: 0.5}", "0 0.5, 1 2"),
        ("one", "{1.0: 2, '0': 5e-1}", "0 0.5, 1 2"),
        ("a,b", "{'a,b': 2, c=d: 0.5}", "a,b 2, c=d 0.5"),
        ("yes", "yes=2,no=0.5", "no 0.5, yes 2"),
    ],
)
def test_labels_in_a_recipe_are_those_of_the_files(
    task: str, text: str, told: str, tables: dict[str, list[Any]], kdbert: Callable[..., Any], tiny_bert: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    file = tmp_path / "recipe.yaml"
    file.write_text(f"train:\n  class_weights: {text}\n", encoding="utf-8")
    words = [*tables[task], "--model", tiny_bert, "--max-length", "16", "--dry-run"]
    for more in (["--config", file], [f"train.class_weights={text}"]):
        done = kdbert(*words, *more)
        assert done.code == 0, done.err
        assert f"class weights: {told}" in done.out
        resolved = yaml.safe_load(done.out.partition("\nrun folder: ")[0].partition(":\n")[2])
        assert set(map(type, resolved["train"]["class_weights"])) == {str}  # so that it is read back as it is


@pytest.mark.parametrize(
    ("task", "words", "told"),
    [
        ("yes", ["--class-weights", "yes=1"], "no weight for no"),
        ("yes", ["--class-weights", "yes=1,no=1,maybe=2"], "'maybe'"),
        ("yes", ["--class-weights", "true=1,false=1"], "'true'"),
        ("a,b", ["--class-weights", "a,b=1,c=d=2"], "class_weights: {"),
        ("score", ["--class-weights", "balanced"], "--class-weights"),
        ("score", ["--label-smoothing", "0.1"], "--label-smoothing"),
        ("text", ["--class-weights", "balanced"], "--class-weights"),
    ],
)
def test_what_has_no_meaning_is_refused_before_anything_is_made(
    task: str, words: list[str], told: str, tables: dict[str, list[Any]], kdbert: Callable[..., Any], tiny_bert: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    (tmp_path / "text.txt").write_text("the cat\n" * 40, encoding="utf-8")
    given = tables.get(task, ["finetune-teacher", "--corpus", str(tmp_path / "text.txt")])
    for more in ([], ["--dry-run"]):
        done = kdbert(
            *given, "--model", tiny_bert, "--max-length", "16", "--runs-dir", tmp_path / "runs", *words, *more
        )
        assert done.code == 2
        assert told in done.err
        assert done.out == ""
    assert not list(tmp_path.rglob("run.json"))


def test_a_run_of_any_number_of_classes_tells_both_weights(
    kdbert: Callable[..., Any], tiny_bert: Path, tmp_path: Path
) -> None:
    setting = make_setting("multi_label", tmp_path / "files", tiny_bert)
    done = kdbert(*setting.words(tmp_path / "runs", **BOTH, max_steps=2), "-q")
    assert done.code == 0, done.err
    rows = [json.loads(line)["label"] for line in (setting.data_dir / "train.json").read_text().splitlines()]
    there = np.array(rows).mean(0)
    facts = json.loads((Path(done.out.strip()) / "run.json").read_text(encoding="utf-8"))
    assert TASKS["multi_label"] in done.out
    for weights, share in zip(facts["class_weights"].values(), there, strict=True):
        assert weights == pytest.approx({"without": 1 / (2 * (1 - share)), "with": 1 / (2 * share)})
