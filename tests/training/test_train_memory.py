"""`kdbert train-memory` and the runs that read its file: what is in it, made once, used again, refused elsewhere."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from in_processes import manifest, start, wait_until
from kdbert.disk.lock import FileLock
from small_run import Setting, logged

K, LENGTH = 6, 64


def memory_words(setting: Setting, root: Path, *more: object) -> list[str]:
    """Words of train-memory: six centroids of the small task."""
    words = [
        "train-memory", "--task", "custom", "--train-file", setting.train, "--dev-file", setting.dev,
        "--max-length", LENGTH, "--teacher", setting.teacher, "--centroids", K, "--precision", "fp32",
        "--runs-dir", root, *more,
    ]  # fmt: skip
    return [str(word) for word in words]


def distill_words(setting: Setting, folder: Path, root: Path, **changes: Any) -> list[str]:
    """Words of a short cka-g run that wants the same memory."""
    keys = {"method.name": "cka-g", "max_steps": 3, "precision": "fp32", "output.runs_dir": str(root)}
    return setting.words(folder, **{**keys, **changes})


@pytest.fixture
def told(kdbert: Callable[..., Any]) -> Callable[..., Any]:
    """Run a command that must end well."""

    def run(words: list[str]) -> Any:
        done = kdbert(*words)
        assert done.code == 0, done.err
        return done

    return run


def the_file(root: Path) -> Path:
    """The one memory below a runs folder."""
    (file,) = root.glob("custom/memory/*")
    return file


def tensors(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Centroids [K, L, H], counts, assignments and metadata, by safetensors alone."""
    with safe_open(file, framework="np") as opened:
        about = json.loads(opened.metadata()["kdbert"])["about"]
        return opened.get_tensor("centroids"), opened.get_tensor("counts"), opened.get_tensor("assignments"), about


def teacher_features(setting: Setting, layer: int, length: int | None = None) -> np.ndarray:
    """Hidden states of every training example, by the library alone, one example at a time: [N, L, H].

    Args:
        length: run every example padded to it and keep what stands at padding; None: zeros there, up to the longest.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setting.teacher)
    model = AutoModelForSequenceClassification.from_pretrained(setting.teacher, dtype=torch.float32).eval()
    with open(setting.train, encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    padding = {"padding": "max_length"} if length is not None else {}
    found = []
    for text in texts:
        coded = tokenizer(text, truncation=True, max_length=LENGTH, return_tensors="pt", **padding)
        with torch.no_grad():
            found.append(model(**coded, output_hidden_states=True).hidden_states[layer][0].numpy())
    whole = np.zeros((len(found), max(map(len, found)), found[0].shape[1]), dtype=np.float32)
    for row, states in zip(whole, found, strict=True):
        row[: len(states)] = states
    return whole


@pytest.fixture(scope="module")
def made(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with the memory of `memory_words`. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("made")
    process = start(memory_words(setting, folder / "runs"), folder / "output")
    process.join(120)
    assert process.exitcode == 0, (folder / "output").read_text()
    return folder / "runs"


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


# ---- what is in it


def test_centroids_are_the_means_of_the_teachers_features(made: Path, setting: Setting) -> None:
    """Of the last layer but one, real tokens only, zero behind an example's end."""
    centroids, counts, assignments, about = tensors(the_file(made))
    features = teacher_features(setting, layer=3)
    assert centroids.shape == (K, *features.shape[1:])
    assert assignments.shape == (203,)
    assert counts.tolist() == np.bincount(assignments, minlength=K).tolist()
    assert counts.min() > 0
    for cluster, centroid in enumerate(centroids):
        np.testing.assert_allclose(centroid, features[assignments == cluster].mean(0), rtol=1e-4, atol=1e-5)
    squares = ((features[:, None] - centroids[None]) ** 2).sum((2, 3))
    assert (squares.argmin(1) == assignments).mean() > 0.95  # 20 passes may end just before nothing moves
    assert about["inertia"] == pytest.approx(squares[np.arange(203), assignments].sum(), rel=0.02)


def test_the_file_says_what_it_was_made_of(made: Path, setting: Setting) -> None:
    about = tensors(the_file(made))[3]
    said = {key: about[key] for key in ("task", "layer", "max_length", "algorithm", "centroids", "seed", "width")}
    assert said == {
        "task": "custom", "layer": 3, "max_length": 64, "algorithm": "kmeans", "centroids": K, "seed": 1, "width": 32,
    }  # fmt: skip
    assert len(about["teacher"]) == 16
    assert about["examples"] == 203


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_another_layer(layer: int, setting: Setting, told: Any, tmp_path: Path) -> None:
    told(memory_words(setting, tmp_path, "--layer", layer, "--passes", 2))
    centroids, _, assignments, about = tensors(the_file(tmp_path))
    features = teacher_features(setting, layer)
    assert about["layer"] == layer
    np.testing.assert_allclose(centroids[0], features[assignments == 0].mean(0), rtol=1e-4, atol=1e-5)


def test_where_the_features_do_not_fit_into_memory_the_same_comes_out(
    made: Path, setting: Setting, told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher then runs in every pass."""
    monkeypatch.setattr("kdbert.training.frozen_teacher.KEPT_SHARE", 0.0)
    done = told(memory_words(setting, tmp_path, "train.cache_gib=0"))
    assert "the teacher runs in every pass" in done.err
    streamed, kept = tensors(the_file(tmp_path)), tensors(the_file(made))
    np.testing.assert_array_equal(streamed[2], kept[2])
    np.testing.assert_allclose(streamed[0], kept[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("step", "passes"), [(1, 3), (8, 3), (1, 5)])
def test_the_published_procedure_computed_plainly(
    step: int, passes: int, setting: Setting, told: Any, tmp_path: Path
) -> None:
    """docs/quirks.md, 3.5, in numpy: padding included, an exponential average, statistics of the last batch."""
    words = memory_words(setting, tmp_path, "--algorithm", "legacy", "--passes", passes, f"memory.batch_size={step}")
    done = told(words)
    assert "legacy" not in done.out
    centroids, counts, assignments, about = tensors(the_file(tmp_path))
    features = teacher_features(setting, layer=3, length=LENGTH).reshape(203, -1)
    assert centroids.shape == (K, LENGTH, 32)
    assert (about["algorithm"], about["passes"]) == ("legacy", passes)

    batches = [features[at : at + step] for at in range(0, 203, step)]
    last = batches[-1]
    mean, std = last.mean() / len(batches), (last.var(1, ddof=1).mean() / len(batches)) ** 0.5
    drawn = torch.randn(K, features.shape[1], generator=torch.Generator().manual_seed(1)).numpy()
    current, updated = drawn * std + mean, np.zeros((K, features.shape[1]))
    nearest = np.zeros(203, dtype=int)
    for number in range(1, passes):
        if number % 2:
            nearest = ((features[:, None] - current[None]) ** 2).sum(2).argmin(1)
        else:
            for begin in range(0, 203, step):
                members = dict.fromkeys(range(K), 0)
                for row in range(begin, min(begin + step, 203)):
                    k = nearest[row]
                    updated[k] = ((members[k] + 1) * updated[k] + features[row]) / (members[k] + 2)
                    members[k] += 1
            current = updated.copy()
    np.testing.assert_array_equal(assignments, nearest)
    np.testing.assert_array_equal(counts, np.bincount(nearest, minlength=K))
    np.testing.assert_allclose(centroids.reshape(K, -1), current, rtol=1e-3, atol=1e-4)


# ---- made once


def test_it_tells_of_progress_and_the_file_and_the_second_time_takes_what_is_there(
    setting: Setting, told: Any, tmp_path: Path
) -> None:
    first = told(memory_words(setting, tmp_path))
    file = the_file(tmp_path)
    assert first.out == f"memory: {file}\n"
    assert "6 centroids of 203 examples, layer 3" in first.err
    assert "pass" in first.err
    content, changed = file.read_bytes(), file.stat().st_mtime_ns
    again = told(memory_words(setting, tmp_path))
    assert again.out == first.out
    assert "of 203 examples" not in again.err
    assert f"6 centroids of layer 3, reused: {file}" in again.err
    assert (file.read_bytes(), file.stat().st_mtime_ns) == (content, changed)
    assert not list(tmp_path.rglob("*.lock"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_same_call_elsewhere_gives_the_same_bits(setting: Setting, told: Any, made: Path, tmp_path: Path) -> None:
    done = told(memory_words(setting, tmp_path, "--quiet"))
    assert done.out == f"{the_file(tmp_path)}\n"
    assert not any(word in done.err for word in ("memory", "pass", "centroids"))
    assert the_file(tmp_path).name == the_file(made).name
    for found, expected in zip(tensors(the_file(tmp_path)), tensors(the_file(made)), strict=True):
        np.testing.assert_equal(found, expected)


def test_what_makes_another_memory_makes_another_file(setting: Setting, told: Any, root: Path) -> None:
    before = the_file(root).read_bytes()
    for words in (["--seed", 2], ["--centroids", 5], ["--layer", 2], ["--passes", 1], ["--algorithm", "legacy"]):
        told(memory_words(setting, root, *words))
    files = list(root.glob("custom/memory/*"))
    assert len(files) == 6
    assert len({file.read_bytes() for file in files}) == 6
    assert before in {file.read_bytes() for file in files}


def test_a_damaged_memory_is_named_and_made_again(setting: Setting, told: Any, root: Path) -> None:
    file = the_file(root)
    whole = file.read_bytes()
    os.truncate(file, len(whole) // 2)
    done = told(memory_words(setting, root))
    assert str(file) in done.err
    assert "made again" in done.err
    assert the_file(root).stat().st_size == len(whole)


def test_output_puts_it_where_it_is_wanted(setting: Setting, told: Any, kdbert: Any, root: Path) -> None:
    target = root / "mine" / "m.safetensors"
    for _ in range(2):
        assert told(memory_words(setting, root, "--output", target)).out == f"memory: {target}\n"
    assert target.read_bytes() == the_file(root).read_bytes()
    refused = kdbert(*memory_words(setting, root, "--output", target, "--centroids", 5))
    assert refused.code == 2
    assert "m.safetensors' is another file already" in refused.err
    assert target.read_bytes() != b""


def test_only_the_teacher_is_needed_not_what_it_was_fine_tuned_from(
    setting: Setting, told: Any, tmp_path: Path
) -> None:
    """The pretrained model may have stayed on another machine; a memory knows nothing of students."""
    start_of_it = Path(shutil.copytree(setting.student, tmp_path / "pretrained"))
    words = memory_words(setting, tmp_path / "runs")
    at = words.index("--teacher")
    files = words[1:at]
    tuned = told(["finetune-teacher", *files, "--model", str(start_of_it), "--quiet", "train.max_steps=1",
                  "--runs-dir", str(tmp_path / "teachers")])  # fmt: skip
    shutil.rmtree(start_of_it)
    told([*words[: at + 1], tuned.out.strip(), *words[at + 2 :]])


def test_two_at_once_make_it_once_and_the_second_waits(
    setting: Setting, made: Path, root: Path, tmp_path: Path
) -> None:
    file = the_file(root)
    file.unlink()
    lock = FileLock(file.with_suffix(".lock"))
    assert lock.acquire()  # so that both come to want it
    outputs = [tmp_path / f"output{number}" for number in (1, 2)]
    orders = [memory_words(setting, root), distill_words(setting, tmp_path / "run", root, **{"memory.centroids": K})]
    both = [start(words, output) for words, output in zip(orders, outputs, strict=True)]
    try:
        told = f"waiting for the memory, which process {os.getpid()} on"
        for process, output in zip(both, outputs, strict=True):
            wait_until(lambda o=output: o.exists() and told in o.read_text(), process.is_alive, "waiting")
        lock.release()
        for process in both:
            process.join(120)
    finally:
        for process in both:
            process.kill()
    texts = [output.read_text() for output in outputs]
    assert [process.exitcode for process in both] == [0, 0], texts
    assert sum(text.count("memory: 6 centroids of 203 examples") for text in texts) == 1
    assert sum(text.count("memory: 6 centroids of layer 3") for text in texts) == 2
    for found, expected in zip(tensors(file), tensors(the_file(made)), strict=True):
        np.testing.assert_equal(found, expected)
    assert not list(root.rglob("*.lock"))


# ---- runs that read it


def test_distill_takes_the_very_file_that_train_memory_made(
    setting: Setting, told: Any, root: Path, tmp_path: Path
) -> None:
    content, changed = the_file(root).read_bytes(), the_file(root).stat().st_mtime_ns
    done = told(distill_words(setting, tmp_path / "run", root, **{"memory.centroids": K}))
    assert "of 203 examples, layer" not in done.err
    assert f"6 centroids of layer 3, reused: {the_file(root)}" in done.err
    assert (the_file(root).read_bytes(), the_file(root).stat().st_mtime_ns) == (content, changed)
    facts = manifest(tmp_path / "run")
    centroids = tensors(the_file(root))[0]
    assert facts["fingerprints"]["centroids"] == hashlib.sha256(centroids.tobytes()).hexdigest()[:16]
    assert facts["recipe"]["memory"]["centroids"] == K
    assert {"loss/distance", "loss/cosine", "loss/memory_cka"} <= set(logged(tmp_path / "run")[1])


def test_a_named_memory_gives_the_same_student_as_the_one_that_is_found(
    setting: Setting, told: Any, root: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copy(the_file(root), tmp_path / "mine.safetensors"))
    told(distill_words(setting, tmp_path / "found", root, **{"memory.centroids": K}))
    told(["distill", "--memory", str(mine), *distill_words(setting, tmp_path / "named", tmp_path / "other")[1:]])
    assert not list((tmp_path / "other").glob("custom/memory"))
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("found", "named")]
    assert weights[0] == weights[1]
    first, second = manifest(tmp_path / "found"), manifest(tmp_path / "named")
    assert first["fingerprints"] == second["fingerprints"]
    assert second["recipe"]["memory"]["file"] == str(mine)


def test_who_must_not_make_a_memory_is_told_the_command(setting: Setting, kdbert: Any, root: Path, told: Any) -> None:
    folder = root.parent / "run"
    words = distill_words(setting, folder, root, **{"memory.centroids": 7, "memory.train": "never"})
    refused = kdbert(*words)
    assert refused.code == 2
    assert "cka-g needs a memory, and below" in refused.err
    assert "`kdbert train-memory`" in refused.err
    assert "memory.train=auto" in refused.err
    assert len(list(root.glob("custom/memory/*"))) == 1
    told(memory_words(setting, root, "--centroids", 7))
    told(words)
    assert manifest(folder)["status"] == "finished"


def test_a_run_whose_memory_has_changed_is_not_continued(
    setting: Setting, kdbert: Any, root: Path, told: Any, tmp_path: Path
) -> None:
    """The same recipe with a file of another content is another run."""
    mine = Path(shutil.copy(the_file(root), tmp_path / "mine.safetensors"))
    words = distill_words(setting, tmp_path / "run", root, **{"memory.file": str(mine)})
    told(words)
    assert "already finished" in told(words).err
    moved = mine.rename(tmp_path / "moved.safetensors")
    assert "already finished" in told([word.replace(str(mine), str(moved)) for word in words]).err
    told(memory_words(setting, root, "--centroids", 5, "--output", mine))
    refused = kdbert(*words)
    assert refused.code == 2
    assert "memory.file" in refused.err


# ---- memories of something else


@pytest.fixture(scope="module")
def other_teacher(tmp_path_factory: pytest.TempPathFactory, setting: Setting) -> Path:
    """The teacher with one weight changed."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(setting.teacher, tmp_path_factory.mktemp("other") / "teacher"))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("made_with", "run_with", "told_too"),
    [
        (["--layer", 2], {}, ["layer 2, not 3"]),
        (["--max-length", 40], {}, ["--max-length 40, not 64"]),
        (["--algorithm", "legacy"], {}, ["--variant original"]),
        ([], {"method.layer_map": "1:1"}, ["layer 3, not 1"]),
        (["--teacher", "other"], {}, ["another teacher"]),
    ],
    ids=str,
)
def test_a_memory_of_something_else_is_refused_before_training(
    made_with: list[Any], run_with: dict[str, Any], told_too: list[str], setting: Setting, other_teacher: Path,
    kdbert: Any, told: Any, tmp_path: Path,
) -> None:  # fmt: skip
    mine = tmp_path / "mine.safetensors"
    by = replace(setting, teacher=other_teacher) if "--teacher" in made_with else setting
    words = [] if "--teacher" in made_with else made_with
    told(memory_words(by, tmp_path / "runs", *words, "--passes", 2, "--output", mine))
    keys = {"memory.file": str(mine), **run_with}
    refused = kdbert(*distill_words(setting, tmp_path / "run", tmp_path / "runs", **keys))
    assert refused.code == 2
    (sentence,) = [line for line in refused.err.splitlines() if line.startswith("kdbert: ")]
    for word in (str(mine), *told_too):
        assert word in sentence
    assert not (tmp_path / "run").exists()


def test_the_published_memory_serves_the_published_method(setting: Setting, told: Any, tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    told(memory_words(setting, tmp_path / "runs", "--algorithm", "legacy", "--output", mine))
    keys = {"memory.file": str(mine), "method.variant": "original", "method.beta": 0.001}
    told(distill_words(setting, tmp_path / "run", tmp_path / "runs", **keys))
    assert manifest(tmp_path / "run")["recipe"]["method"]["variant"] == "original"
    # Without a file the variant makes the same one by itself.
    keys = {"method.variant": "original", "method.beta": 0.001, "memory.centroids": K}
    done = told(distill_words(setting, tmp_path / "again", tmp_path / "runs", **keys))
    assert "of 203 examples, layer" not in done.err
    runs = [tmp_path / name / "model" / "model.safetensors" for name in ("run", "again")]
    assert runs[0].read_bytes() == runs[1].read_bytes()


@pytest.mark.parametrize("missing", ["never", "unfit"])
def test_nothing_is_trained_before_a_memory_is_refused(
    missing: str, setting: Setting, kdbert: Any, told: Any, tmp_path: Path
) -> None:
    """Not the baseline either, which comes first."""
    keys: dict[str, Any] = {"memory.train": "never"}
    if missing == "unfit":
        told(memory_words(setting, tmp_path / "memory", "--layer", 2, "--output", tmp_path / "m.safetensors"))
        keys = {"memory.file": str(tmp_path / "m.safetensors")}
    words = distill_words(setting, tmp_path / "run", tmp_path / "runs", **keys)
    words = [word for word in words if word != "--no-baseline"]
    refused = kdbert(*words, "--baseline")
    assert refused.code == 2
    assert not list((tmp_path / "runs").glob("custom/finetune/*")), refused.err


@pytest.mark.parametrize("missing", ["never", "unfit"])
def test_a_dry_run_refuses_the_memory_that_the_run_would_refuse(
    missing: str, setting: Setting, kdbert: Any, told: Any, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"memory.train": "never"}
    if missing == "unfit":
        told(memory_words(setting, tmp_path / "memory", "--layer", 2, "--output", tmp_path / "m.safetensors"))
        keys = {"memory.file": str(tmp_path / "m.safetensors")}
    refused = kdbert(*distill_words(setting, tmp_path / "run", tmp_path / "runs", **keys), "--dry-run")
    assert refused.code == 2, refused.out
