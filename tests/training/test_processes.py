"""Two processes (torchrun, gloo) give what one gives: losses, gradients, memory, predictions, one run folder."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from by_processes import all_gradients, compare
from safetensors.torch import load_file

from conftest import WORDS, make_bert, often
from in_processes import Ended, Two, saved_steps, wait_until
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import resolve_distill
from small_run import (
    FEATURES,
    HELD,
    Setting,
    assert_same_gradients,
    logged,
    make_teacher,
    predictions,
    run_recipe,
    start_torchrun,
)

pytestmark = pytest.mark.slow
EXACT = {"dropout": 0.0, "precision": "fp32"}


def words(setting: Setting, root: Path) -> list[str]:
    """The run that is made by one and by two processes: two epochs, each with a ragged batch."""
    given = setting.words(root, epochs=2, learning_rate=1e-4, checkpoint_steps=5, **EXACT)
    given[given.index("--output-dir")] = "--runs-dir"
    place = next(number for number, word in enumerate(given) if word.startswith("output.runs_dir="))
    return given[: place - 1] + given[place + 1 :]


Stages = tuple[Path, list[tuple[int, str]], Ended]


@pytest.fixture(scope="module")
def two(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """The root of the runs of two processes; how they ended when the first of them was killed, when after another
    start the second was, and when started again.
    """
    root = tmp_path_factory.mktemp("two")
    given = words(setting, root / "runs")
    killed = [first_killed(root / "runs", given), second_killed(root, given)]
    return root / "runs", killed, Two.command(root / "again", given).join()


def first_killed(root: Path, given: list[str]) -> tuple[int, str]:
    """How torchrun ends when its first process is killed once a checkpoint is there: exit code and what was printed."""
    with start_torchrun("-m", "kdbert", *given) as process:
        try:
            wait_for_checkpoint(root, lambda: process.poll() is None)
            children = psutil.Process(process.pid).children()
            (one,) = [child for child in children if child.environ().get("RANK") == "0"]
            one.send_signal(signal.SIGKILL)
            out, _ = process.communicate(timeout=120)
        except BaseException:
            process.terminate()
            raise
    return process.returncode, out


def second_killed(root: Path, given: list[str]) -> tuple[int, str]:
    """The same of the second one. Here the first may only end because it is ended."""
    both = Two.command(root / "killed", given)
    wait_for_checkpoint(root / "runs", both.running)
    both.processes[1].kill()
    ended = both.join()
    return ended.codes[0] or 0, ended.out


def wait_for_checkpoint(root: Path, running: Callable[[], bool]) -> None:
    """Wait until two processes have saved a checkpoint that was not there when they began."""
    before = saved_steps(only_run(root)) if list(root.rglob("run.json")) else []
    wait_until(lambda: bool(list(root.rglob("run.json"))), running, "the run folder")
    wait_until(lambda: bool(set(saved_steps(only_run(root))) - set(before)), running, "a checkpoint")


def only_run(root: Path) -> Path:
    """The one run folder below a root."""
    found = [path.parent for path in root.rglob("run.json")]
    assert len(found) == 1, found
    return found[0]


@pytest.fixture(scope="module")
def runs(
    setting: Setting,
    two: Stages,
    kdbert: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """Run folders of one and of two processes."""
    root, _, ended = two
    assert ended.codes == (0, 0), ended.err
    alone = tmp_path_factory.mktemp("one")
    assert kdbert(*words(setting, alone)).code == 0
    return only_run(alone), only_run(root)


def test_when_one_process_dies_all_end_and_the_same_command_goes_on(
    two: Stages,
) -> None:
    _, killed, again = two
    for code, out in killed:
        assert code != 0
        assert "run: " not in out
    assert again.codes == (0, 0), again.err
    assert "continuing from step " in again.err


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


def test_two_processes_write_one_run_that_says_so(runs: tuple[Path, Path], two: Stages) -> None:
    one, both = (json.loads((run / "run.json").read_text(encoding="utf-8")) for run in runs)
    assert (one["processes"], both["processes"]) == (1, 2)
    assert both["status"] == "finished"
    assert both["fingerprints"] == one["fingerprints"]
    assert runs[0].name == runs[1].name  # the number of processes is no part of the recipe
    assert len(list(runs[1].glob("events.out.tfevents.*"))) == 3  # one for each start
    ended = two[2]
    assert "2 processes" in ended.err
    assert ended.out.count("run: ") == 1  # one table, printed by one process
    # Each step is written down once, by one process.
    assert len((runs[1] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 26 + 2


def test_two_processes_on_a_finished_run_say_so(setting: Setting, two: Stages, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in two[0].rglob("*") if path.is_file()}
    again = Two.command(tmp_path / "again", words(setting, two[0])).join()
    assert again.codes == (0, 0), again.err
    assert "already finished" in again.err
    assert {path: path.stat().st_mtime_ns for path in two[0].rglob("*") if path.is_file()} == before


# ---- every method: gradients of the ragged batch, and 20 steps

SELDOM = "cka-i internal=false", "cka-ilg layerwise"
METHODS: dict[str, dict[str, Any]] = {
    "kd": {},
    "finetune": {"method.name": "finetune"},
    "multi-kd": {"method.name": "multi-kd"},
    **{name: keys for name, keys in FEATURES.items() if name not in SELDOM},
    "cka-l weighed": {**FEATURES["cka-l"], "class_weights": "balanced", "label_smoothing": 0.1},
    "cka-l half": {**FEATURES["cka-l"], "task.labelled_share": 0.5},  # of its rows half have no label
    "ics half": {**FEATURES["ics"], "task.labelled_share": 0.5},
    "dkd half": {**FEATURES["dkd"], "task.labelled_share": 0.5},
    "ve-kd": {
        "method.name": "ve-kd", "method.variant": "original", "method.tolerance": 0.2, "method.alpha_ce": 2.0,
        "method.alpha_mse": 0.01, "method.alpha_cos": 5.0, "method.alpha_mlm": 1.0,
    },
    "distilbert-mlm": {"method.name": "distilbert-mlm", "method.alpha_mse": 0.01},
    "hidden": {"method.name": "hidden", "batch_tokens": 140},
    "minilm text": {"method.name": "minilm", "batch_tokens": 140},
    "tinybert text": {"method.name": "tinybert", "batch_tokens": 140},
    **HELD,
    "reptile": {**HELD["reptile"], "method.teacher_learning_rate": 1e-4},
}  # fmt: skip
# Of these, whole runs too: several teachers, a projection that is trained, a memory, plain text, models held.
RUNS = ["multi-kd", "ics", "cka-ilg", "ve-kd", "hidden", *HELD]
OFTEN = {"cka-ilg", "ve-kd", "reptile"}
# One of each kind of needs: examples compared, tokens, layers' relations, rows without labels, weights of rows.
OFTEN_GRADIENTS = OFTEN | {
    "kd", "ics", "cka-l weighed", "cka-l half", "rkd", "minilm", "ckd", "ad-kd", "theseus",
}  # fmt: skip
GENERAL = ("hidden", "minilm text", "tinybert text")  # on plain text, without labels
Found = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def plain_text(tmp_path_factory: pytest.TempPathFactory, kdbert: Any, tiny_bert: Path) -> dict[str, Any]:
    """What a `ve-kd` run reads: short texts, a masked-LM, and its tokenizer with new pieces."""
    root, draw = tmp_path_factory.mktemp("text"), random.Random(0)
    for name, rows in (("train.txt", 203), ("dev.txt", 61)):
        lines = [" ".join([*draw.choices(WORDS, k=draw.randint(3, 12)), "cataract"]) for _ in range(rows)]
        (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    corpus, grown = root / "train.txt", root / "grown"
    made = kdbert("expand-vocab", "--tokenizer", tiny_bert, "--corpus", corpus, "--add", "4", "--out", grown)
    assert made.code == 0, made.err
    return {
        "task.name": "corpus", "task.train_file": str(root / "train.txt"), "task.dev_file": str(root / "dev.txt"),
        "teachers": [{"model": str(make_bert(root / "teacher", masked_lm=True, seed=1))}],
        "student.model": None, "student.tokenizer": str(grown),
    }  # fmt: skip


@pytest.fixture(scope="module")
def both(
    request: pytest.FixtureRequest,
    setting: Setting,
    plain_text: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Found], dict[str, Found], Path, Ended]:
    """Method -> gradients and terms, of one process and of two; the root of the runs `<one|two>/<method>`.

    Of those methods that the tests of this session ask for.
    """
    asked: dict[str, list[str]] = {"gradients": [], "twenty": []}
    for item in request.session.items:
        words = item.name.split("_")
        if item.path == request.path and isinstance(item, pytest.Function) and len(words) > 1 and words[1] in asked:
            asked[words[1]].append(item.callspec.params["name"])
    methods, runs = asked["gradients"], asked["twenty"]
    root = tmp_path_factory.mktemp("both")
    wide = make_teacher(root / "teacher", hidden=48)  # so that ics has a projection, whose gradients are compared too
    teachers = {"finetune": [], "kd": [setting.teacher], "multi-kd": [setting.teacher, wide]}

    def recipe(name: str, folder: Path, **changes: Any) -> Recipe:
        keys = {
            **setting.keys(learning_rate=1e-4, **EXACT, **METHODS[name], **changes),
            "teachers": [{"model": str(model)} for model in teachers.get(name, [wide])],
            **(plain_text if name in ("ve-kd", "distilbert-mlm") else {}),
            **({key: plain_text[key] for key in plain_text if key.startswith("task.")} if name in GENERAL else {}),
            "output.dir": str(folder / name),
            "output.runs_dir": str(folder / "runs"),
        }
        return resolve_distill(Recipe.build(flags=keys))

    def write(file: Path, what: Recipe) -> Path:
        file.write_text(what.yaml(), encoding="utf-8")
        return file

    for name in runs:
        run_recipe(recipe(name, root / "one", epochs=2, max_steps=20))
    recipes = {name: recipe(name, root / "one") for name in methods}
    alone = recipe("kd", root / "alone", epochs=2, checkpoint_steps=5)  # the run of `words`; nobody kills it
    one = {name: all_gradients(each) for name, each in recipes.items()}  # two processes read the same memory
    files = [write(root / f"{number}.yaml", each) for number, each in enumerate(recipes.values())]
    whole = [write(root / f"{name}.yaml", recipe(name, root / "two", epochs=2, max_steps=20)) for name in runs]
    whole.append(write(root / "alone.yaml", alone))
    ended = Two(root / "printed", compare, root / "two.safetensors", files, whole).join()
    if ended.codes != (0, 0):
        return one, {}, root, ended
    found = load_file(root / "two.safetensors")
    two = {name: of(found, f"{number}|") for number, name in enumerate(recipes)}
    return one, two, root, ended


def of(found: Found, prefix: str) -> Found:
    """Values under a prefix."""
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


@pytest.mark.parametrize("name", often(METHODS, OFTEN_GRADIENTS.__contains__))
def test_gradients_of_the_ragged_batch_are_those_of_one_process(
    both: tuple[dict[str, Found], dict[str, Found], Path, Ended], name: str
) -> None:
    one, two, _, ended = both
    assert ended.codes == (0, 0), ended.err
    exact = name != "kd"  # in float64
    for case in ("ragged|1|", "ragged|2|", "one|1|"):
        expected, actual = of(one[name], case), of(two[name], case)
        assert expected.keys() == actual.keys()
        assert len(expected) > 30  # every parameter of the student and of the method, and the terms
        terms = [key for key in expected if key == "loss" or key.startswith(("loss/", "ics/"))]
        fewest = {
            "kd": 3, "reptile": 3, "finetune": 2, "hidden": 2, "theseus": 2, "dist": 3, "dkd": 3, "tinybert": 3
        }  # fmt: skip
        assert len(terms) >= fewest.get(name.partition(" ")[0], 4)
        for key in terms:
            torch.testing.assert_close(
                actual.pop(key), expected.pop(key), rtol=1e-9 if exact else 1e-5, atol=1e-12 if exact else 0,
                msg=lambda m, k=case + key: f"{k}: {m}",
            )  # fmt: skip
        assert_same_gradients(actual, expected, rtol=1e-5, floor=1e-9 if exact else 1e-6)
    kept, kept_by_two = of(one[name], "stored|"), of(two[name], "stored|")
    assert kept.keys() == kept_by_two.keys()
    assert bool(kept) == (name not in ("finetune", "ve-kd", "distilbert-mlm", "theseus", *GENERAL))
    for key, value in kept.items():
        torch.testing.assert_close(kept_by_two[key], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()))
    own = {key for key in of(one[name], "ragged|1|") if key.startswith("method.")}
    with_own = "ics", "hidden", "cka-g", "cka-ilg", "pkd", "tinybert"
    assert bool(own) == (name == "distilbert" or name.startswith(with_own))


def test_a_run_of_two_processes_that_was_killed_twice_ends_with_the_bits_of_one_left_alone(
    two: Stages, both: tuple[dict[str, Found], dict[str, Found], Path, Ended]
) -> None:
    _, _, root, ended = both
    assert ended.codes == (0, 0), ended.err
    killed, alone = only_run(two[0]), root / "alone" / "kd"
    facts = [json.loads((run / "run.json").read_text(encoding="utf-8")) for run in (killed, alone)]
    assert facts[0]["identity"] == facts[1]["identity"]
    assert facts[1]["timings"]["resumed_from_step"] == 0 < facts[0]["timings"]["resumed_from_step"]
    for name in ("model/model.safetensors", "metrics.jsonl", "predictions/dev.jsonl"):
        assert (killed / name).read_bytes() == (alone / name).read_bytes(), name


@pytest.mark.parametrize("name", often(RUNS, OFTEN.__contains__))
def test_twenty_steps_and_their_predictions_are_those_of_one_process(
    both: tuple[dict[str, Found], dict[str, Found], Path, Ended], name: str
) -> None:
    _, _, root, ended = both
    assert ended.codes == (0, 0), ended.err
    folders = [root / side / name for side in ("one", "two")]
    one, two = map(logged, folders)
    assert sorted(one) == sorted(two) == list(range(1, 21))
    later = 1e-3 if name == "reptile" else 1e-4  # a new AdamW's step has the full length for gradients of rounding, too
    for step in one:
        assert one[step].keys() == two[step].keys()
        assert two[step] == pytest.approx(one[step], rel=1e-5 if step == 1 else later, abs=1e-6), step
    rows, by_two = map(predictions, folders)
    assert len({row["id"] for row in by_two}) == len(by_two) == 61
    assert [row["id"] for row in rows] == [row["id"] for row in by_two]
    answers = [[row["prediction"] for row in part] for part in (rows, by_two)]
    if name == "ve-kd":
        answers = [[(answer["right"], answer["hidden"]) for answer in part] for part in answers]
    if name == "hidden":
        answers = [[pytest.approx(answer["loss"], rel=1e-3) for answer in answers[0]], [a["loss"] for a in answers[1]]]
    assert sum(a == b for a, b in zip(*answers, strict=True)) >= 0.99 * 61
    facts = [json.loads((folder / "run.json").read_text(encoding="utf-8")) for folder in folders]
    assert [fact["processes"] for fact in facts] == [1, 2]
    prints = [{key: mark for key, mark in fact["fingerprints"].items() if key != "centroids"} for fact in facts]
    assert prints[0] == prints[1]


def test_the_memories_by_one_and_two_processes_are_the_same_and_stores_are_filled_once(
    both: tuple[dict[str, Found], dict[str, Found], Path, Ended],
) -> None:
    _, _, root, ended = both
    assert ended.codes == (0, 0), ended.err
    made = [sorted((root / side / "runs" / "custom" / "memory").iterdir()) for side in ("one", "two")]
    assert [path.name for path in made[0]] == [path.name for path in made[1]]
    assert len(made[0]) == 1
    one, two = (load_file(files[0]) for files in made)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)
    stores = [path for side in ("two", "alone") for path in (root / side / "runs").rglob("*.safetensors")]
    kept = [str(path) for path in stores if path.parent != made[1][0].parent]
    filled = [line.partition(": kept in ")[2] for line in ended.err.splitlines() if ": kept in " in line]
    assert sorted(filled) == sorted(kept)
    assert filled
    assert not [path for path in (root / "two").rglob("*") if path.suffix in (".tmp", ".lock")]
