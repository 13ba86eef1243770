"""The recipe: which source wins, what is refused and how it is said, what makes two runs the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdbert import Recipe, UserError
from kdbert.data.labels import label_text
from kdbert.recipe.defaults import resolve_distill, teacher_recipes
from kdbert.runs.folder import identity_of
from small_run import changed


def write(folder: Path, text: str) -> Path:
    """A recipe file."""
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_then_task_then_file_then_flags_then_set(tmp_path: Path) -> None:
    rte = Recipe.build(flags={"task.name": "rte"})
    assert (rte.train.epochs, rte.train.learning_rate, rte.method.name, rte.seed) == (3, 5e-5, "kd", 1)
    quickstart = Recipe.build()
    assert quickstart.task.name == "quickstart"
    assert quickstart.train.epochs == 8  # the task's own default
    path = write(tmp_path, "task: quickstart\ntrain: {epochs: 5, batch_size: 5, warmup: 0.5}\nseed: 5\n")
    from_file = Recipe.build(config=path)
    assert (from_file.train.epochs, from_file.train.batch_size, from_file.seed) == (5, 5, 5)
    assert from_file.train.learning_rate == quickstart.train.learning_rate  # what the file leaves open
    flags = {"train.epochs": 6, "train.batch_size": 6, "seed": None}
    flagged = Recipe.build(config=path, flags=flags)
    assert (flagged.train.epochs, flagged.train.batch_size, flagged.seed) == (6, 6, 5)
    both = Recipe.build(config=path, flags=flags, sets=["train.epochs=7", "method.temperature=2"])
    assert (both.train.epochs, both.train.batch_size, both.train.warmup) == (7, 6, 0.5)
    assert both.method.temperature == 2  # type: ignore[attr-defined]
    assert Recipe.build(sets=["seed=1", "seed=2"]).seed == 2


def test_a_flag_that_equals_the_general_default_beats_the_tasks_default() -> None:
    assert Recipe.build(flags={"train.epochs": 3}).train.epochs == 3


@pytest.mark.parametrize("method", ["hinton", "KD", "soft-label"])
def test_aliases_of_a_method_and_a_task_are_one_recipe(method: str) -> None:
    recipe = Recipe.build(flags={"method.name": method, "task.name": "STS-B"})
    assert recipe == Recipe.build(flags={"method.name": "kd", "task.name": "stsb"})
    assert Recipe.of({"method": method, "task": "STS-B"}) == recipe


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("train.epochs=0", "1"),
        ("train.learning_rate=-1", "0"),
        ("train.adam_beta1=1", "1"),
        ("seed=-1", "0"),
        ("train.epochs='many'", "whole"),
        ("train.epochs=1.5", "whole"),
        ("train.warmup='soon'", "number"),
        ("train.bucketing='perhaps'", "true"),
        ("train.precision='fp8'", "'bf16'"),
        ("output.tracker='wandb'", "list"),
        ("train=3", "below"),
        ("method.temperature=0", "0"),
        ("train.label_smoothing=1", "1"),
        ("train.label_smoothing=-0.1", "0"),
        ("train.class_weights='balancd'", "balanced"),
        ("train.class_weights='a=1,b'", "a weight for each label"),
        ("train.class_weights='a=b=1'", "a weight for each label"),
        ("train.class_weights='a=1,a=2'", "'a' is named twice"),
        ("train.class_weights='a=1,=2'", "empty"),
        ("train.class_weights='a=1,b=-2'", "0 or more"),
        ("train.class_weights='a=1,b=inf'", "finite"),
        ("train.class_weights='a=0,b=0'", "every weight is 0"),
        ("train.class_weights=2", "balanced"),
    ],
)
def test_a_wrong_value_is_told_as_it_was_typed_and_not_in_words_of_a_library(text: str, limit: str) -> None:
    with pytest.raises(UserError) as refused:
        Recipe.build(sets=[text])
    given, _, told = str(refused.value).partition(": ")
    assert given == text
    assert limit in told
    assert "input" not in told.lower()


def test_a_section_is_named_once() -> None:
    with pytest.raises(UserError) as refused:
        Recipe.build(sets=["method=cka-g", "memory={file: m.safetensors, centroids: 5}"])
    assert "memory: memory" not in str(refused.value)
    assert str(refused.value).startswith("memory.file ")


def test_a_recipe_in_python_takes_plain_mappings() -> None:
    tree = {"task": {"name": "rte"}, "method": {"name": "kd", "alpha": 0.3}, "seed": 4}
    recipe = Recipe.of(tree)
    assert recipe.method.alpha == 0.3  # type: ignore[attr-defined]
    assert changed(recipe, {"method.alpha": 0.4, "train.epochs": 9}).train.epochs == 9
    assert recipe.method.alpha == 0.3  # type: ignore[attr-defined]
    assert tree["method"] == {"name": "kd", "alpha": 0.3}


def test_the_constructor_takes_a_methods_options_too() -> None:
    recipe = Recipe(task={"name": "rte"}, method={"name": "kd", "alpha": 0.3})  # type: ignore[arg-type]
    assert recipe == Recipe.of({"task": "rte", "method": {"name": "kd", "alpha": 0.3}})
    assert Recipe(method="hinton").method.temperature == 5  # type: ignore[arg-type, attr-defined]


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["train.learning_rat=1e-4"], ["train.learning_rat", "train.learning_rate"]),
        (["train.epoch=2"], ["train.epoch", "train.epochs"]),
        (["train.lr=1e-4"], ["train.lr", "train.learning_rate"]),
        (["train.bs=8"], ["train.bs", "train.batch_size"]),
        (["method.temprature=2"], ["method.temprature", "method.temperature"]),
        (["trian.epochs=2"], ["trian", "train"]),
        (["task.name=mnlli"], ["mnlli", "mnli"]),
        (["method.name=hintn"], ["hintn", "hinton"]),
        (["student.layer=3"], ["student.layer", "student.layers"]),
    ],
)
def test_the_near_miss_is_suggested(sets: list[str], told: list[str]) -> None:
    with pytest.raises(UserError) as error:
        Recipe.build(sets=sets)
    assert repr(told[0]) in str(error.value)
    assert f"did you mean {told[1]!r}" in str(error.value)


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "task: {name: rtee}\ntrain: {epochz: 3, batch_size: 0}\n")
    with pytest.raises(UserError) as error:
        Recipe.build(
            config=path,
            flags={"train.precision": "fp8", "seed": -1, "student.init": "middle"},
            sets=["method.temprature=3", "method.alpha=2", "train.learning_rate=fast", "colour=red"],
        )
    message = str(error.value)
    for word in (
        "'rtee'", "train.epochz", "train.batch_size", "train.precision", "'fp8'", "seed", "student.init",
        "method.temprature", "method.alpha", "train.learning_rate", "'fast'", "'colour'",
    ):  # fmt: skip
        assert word in message, word
    assert "\n" not in message


def test_an_unknown_method_does_not_hide_the_other_errors() -> None:
    with pytest.raises(UserError) as error:
        Recipe.build(flags={"method.name": "hintn", "train.epochs": 0, "task.name": "rtee"})
    assert all(word in str(error.value) for word in ("'hintn'", "train.epochs", "'rtee'"))


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"student": {"layers": 3, "init": "1,2"}}, "layers is 3, but init names 2"),
        ({"student": {"init": [1, 1]}}, "at most once"),
        ({"student": {"init": "0,2"}}, "start at 1"),
        ({"student": {"init": "two"}}, "first, last, even"),
        ({"train": {"accumulation": 64}}, "accumulation"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate"),
        ({"train": {"learning_rate": float("inf")}}, "train.learning_rate"),
        ({"train": {"dropout": 1.0}}, "train.dropout"),
        ({"train": 5}, "train"),
        ({"teachers": [{"labels": ["a"]}]}, "teachers.0.model"),
        ({"task": {"name": "custom"}}, "--train-file"),
        ({"task": {"name": "custom", "train_file": "a.csv", "dev_share": 0.6}}, "task.dev_share"),
        ({"task": {"name": "rte", "dev_file": "a.csv"}}, "--dev-file goes with --task custom"),
        ({"method": 5}, "method"),
        ({"method": {"name": "finetune", "temperature": 2}}, "method.temperature"),
        ({"method": {"variant": "orginal"}}, "method.variant"),
    ],
)
def test_what_cannot_be_is_refused(tree: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        Recipe.of(tree)
    assert told in str(error.value)


@pytest.mark.parametrize("text", ["train.epochs", "=3", "train.epochs: 3"])
def test_a_set_without_key_or_value_says_what_is_expected(text: str) -> None:
    with pytest.raises(UserError, match="expected key=value"):
        Recipe.build(sets=[text])


@pytest.mark.parametrize("value", ["[1", "2001-99-99", "!!bool x", "!!int ''", "!!timestamp x"])
def test_a_value_that_is_not_yaml_is_told_in_one_sentence(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match="the value is not valid YAML") as error:
        Recipe.build(sets=[f"task.data_dir={value}"])
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"recipe\.yaml is not valid YAML"):
        Recipe.build(write(tmp_path, f"task: {value}\n"))


@pytest.mark.parametrize(
    ("text", "line"),
    [("task: [rte\n", 2), ("task: rte\n seed: 1\n", 2), ("seed: 1\nseed: 2\n", 1), ("seed: *x", 1), ("a: 'b\n\nc", 3)],
)
def test_a_broken_file_is_told_with_its_line_and_no_words_of_the_yaml_library(
    tmp_path: Path, text: str, line: int
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        Recipe.build(path)
    assert str(error.value).startswith(f"{path} is not valid YAML: line {line}: ")
    assert not {"<", "\n"} & set(str(error.value))


@pytest.mark.parametrize(
    ("value", "init"),
    [("1,3,5", [1, 3, 5]), (" 2 , 4", [2, 4]), ("3", [3]), ([1, 2], [1, 2]), ("even", "even"), (2, [2])],
)
def test_layer_numbers_in_every_spelling(value: Any, init: Any) -> None:
    assert Recipe.of({"student": {"init": value}}).student.init == init


@pytest.mark.parametrize(
    "value",
    [
        "yes=2, no=0.5", {"yes": 2, "no": "0.5"}, {" yes ": 2.0, "no": 5e-1},
    ],
)  # fmt: skip
def test_weights_of_classes_in_every_spelling(value: Any, tmp_path: Path) -> None:
    recipe = Recipe.of({"train": {"class_weights": value}})
    assert recipe.train.class_weights == {"yes": 2.0, "no": 0.5}
    assert Recipe.build(write(tmp_path, recipe.yaml())) == recipe
    assert Recipe.build(write(tmp_path, "train: {class_weights: {yes: 2, no: 0.5}}")) == recipe


@pytest.mark.parametrize("weights", [{}, {"a": "nan"}, {"1": 2, 1.0: 2}, {"a": True}, {"a": {"b": 1}}, [1, 2]], ids=str)
def test_weights_that_are_none_are_refused(weights: Any) -> None:
    with pytest.raises(UserError, match=r"^train\.class_weights: "):
        Recipe.of({"train": {"class_weights": weights}})


def test_keys_that_came_later_are_no_part_of_an_experiment_that_does_not_use_them() -> None:
    identity = Recipe.of(FULL).identity(CONTENT)["train"]
    assert not {"class_weights", "label_smoothing"} & set(identity)


# Labels that are one each, as `label_text` has them.
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: label_text(name) == name)


@settings(max_examples=60, deadline=None)
@given(
    epochs=st.integers(1, 10**6),
    rate=st.floats(1e-12, 10, allow_nan=False),
    alpha=st.floats(0, 1),
    temperature=st.floats(1e-3, 1e3),
    schedule=st.sampled_from(["linear", "constant", "cosine"]),
    seed=st.integers(0, 2**32 - 1),
    folder=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    labels=st.none() | st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=3),
    init=st.sampled_from(["first", "last", "even"]) | st.lists(st.integers(1, 24), min_size=1, max_size=5, unique=True),
    weights=st.none() | st.dictionaries(NAMES, st.floats(1e-9, 1e9), min_size=1, max_size=3),
)
@example(
    epochs=1,
    rate=1.0,
    alpha=0.0,
    temperature=1.0,
    schedule="linear",
    seed=0,
    folder="\x85",
    labels=["é\u2028"],
    init="first",
    weights={"yes": 1.0, "~": 2.0, "<<": 3.0, "=": 1.0, "1_0": 1.0, "2001-01-01": 1.0},
)
def test_a_recipe_survives_its_yaml(
    epochs: int, rate: float, alpha: float, temperature: float, schedule: str, seed: int, folder: str,
    labels: list[str] | None, init: Any, weights: dict[str, float] | None,
) -> None:  # fmt: skip
    recipe = Recipe.of({
        "task": {"name": "stsb", "data_dir": folder},
        "teachers": [{"model": f"runs/{folder}", "labels": labels}],
        "student": {"model": "bert", "init": init},
        "method": {"name": "kd", "alpha": alpha, "temperature": temperature},
        "train": {"epochs": epochs, "learning_rate": rate, "schedule": schedule, "class_weights": weights},
        "seed": seed,
        "output": {"runs_dir": folder},
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        assert Recipe.build(write(Path(place), recipe.yaml())) == recipe
    assert Recipe.of(yaml.safe_load(recipe.yaml())).digest({}) == recipe.digest({})


FULL = {
    "task": {"name": "custom", "train_file": "a/train.csv", "dev_file": "a/dev.csv", "data_dir": "a"},
    "teachers": [{"model": "runs/teacher"}],
    "student": {"model": "bert", "layers": 2},
    "method": {"name": "kd", "alpha": 0.5},
}
CONTENT = {
    "a/train.csv": "T",
    "b/train.csv": "T",
    "a/dev.csv": "D",
    "b/dev.csv": "D",
    "runs/teacher": "K",
    "moved/teacher": "K",
}


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 7},
        {"output.runs_dir": "elsewhere"},
        {"output.dir": "this/very/one"},
        {"output.keep_checkpoints": True},
        {"output.tracker": ["wandb"]},
        {"task.data_dir": "b"},
        {"task.train_file": "b/train.csv", "task.dev_file": "b/dev.csv"},
        {"teachers": [{"model": "moved/teacher"}]},
        {"train.eval_batch_size": 3},
        {"train.logging_steps": 1},
        {"train.checkpoint_steps": 9},
    ],
)
def test_places_seed_and_output_do_not_make_another_experiment(changes: dict[str, Any]) -> None:
    recipe = Recipe.of(FULL)
    assert changed(recipe, changes).digest(CONTENT) == recipe.digest(CONTENT)


@pytest.mark.parametrize(
    "changes",
    [
        {"method.alpha": 0.4},
        {"method.temperature": 4.0},
        {"method.variant": "original"},
        {"train.learning_rate": 1e-4},
        {"train.epochs": 4},
        {"train.batch_size": 8},
        {"train.precision": "fp32"},
        {"train.bucketing": True},
        {"train.class_weights": "balanced"},
        {"train.class_weights": {"a": 1, "b": 2}},
        {"train.label_smoothing": 0.1},
        {"student.layers": 3},
        {"student.init": "last"},
        {"task.max_length": 32},
        {"task.max_train_examples": 100},
        {"task.label_column": "label"},
        {"teachers": [{"model": "runs/teacher", "labels": ["b", "a"]}]},
        {"teachers": [{"model": "runs/other"}]},
    ],
)
def test_what_decides_a_number_makes_another_experiment(changes: dict[str, Any]) -> None:
    recipe = Recipe.of(FULL)
    assert changed(recipe, changes).digest(CONTENT) != recipe.digest(CONTENT)


def test_other_content_at_the_same_place_makes_another_experiment() -> None:
    recipe = Recipe.of(FULL)
    for path in ("a/train.csv", "a/dev.csv", "runs/teacher"):
        assert recipe.digest({**CONTENT, path: "changed"}) != recipe.digest(CONTENT)


WITHOUT_TEACHER = {**FULL, "teachers": [], "teacher_training": {"model": "base"}}


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 7},
        {"method.name": "kd", "method.temperature": 2.0},
        {"student.model": "other", "student.layers": 3, "student.init": "last"},
        {"train.batch_size": 8},
        {"train.learning_rate": 1e-4},
        {"train.epochs": 9},
        {"train.max_steps": 10},
        {"train.schedule": "constant"},
        {"train.warmup": 0.1},
        {"train.weight_decay": 0.1},
        {"train.max_grad_norm": 5.0},
        {"train.dropout": 0.3},
        {"train.adam_beta2": 0.98},
        {"train.selection": "best"},
        {"train.teacher_cache": False},
        {"output.dir": "this/very/one"},
        {"train.class_weights": "balanced", "train.label_smoothing": 0.1},
    ],
    ids=str,
)
def test_a_teacher_made_on_the_way_does_not_depend_on_the_students_settings(changes: dict[str, Any]) -> None:
    recipe = Recipe.of(WITHOUT_TEACHER)
    teacher = teacher_recipes(recipe)[0]
    assert identity_of(teacher_recipes(changed(recipe, changes))[0], CONTENT) == identity_of(teacher, CONTENT)
    assert teacher_recipes(changed(recipe, changes))[0].output.dir is None


@pytest.mark.parametrize(
    "changes",
    [
        {"train.precision": "fp32"},
        {"train.bucketing": True},
        {"train.accumulation": 2},
        {"task.max_length": 32},
        {"task.max_train_examples": 100},
        {"teacher_training.model": "other"},
        {"teacher_training.epochs": 4},
        {"teacher_training.batch_size": 8},
        {"teacher_training.learning_rate": 1e-4},
        {"teacher_training.seed": 2},
    ],
    ids=str,
)
def test_a_teacher_made_on_the_way_depends_on_data_arithmetic_and_its_own_settings(changes: dict[str, Any]) -> None:
    recipe = Recipe.of(WITHOUT_TEACHER)
    assert identity_of(teacher_recipes(changed(recipe, changes))[0], CONTENT) != identity_of(
        teacher_recipes(recipe)[0], CONTENT
    )


def test_a_teacher_is_trained_as_its_task_and_teacher_training_say() -> None:
    recipe = Recipe.build(flags={"train.epochs": 5, "train.accumulation": 16, "teacher_training.batch_size": 8})
    teacher = teacher_recipes(recipe)[0]
    assert teacher.train.epochs == recipe.teacher_training.epochs  # type: ignore[union-attr]
    assert (teacher.train.batch_size, teacher.train.accumulation) == (8, 8)
    assert teacher.method.name == "finetune"
    assert (teacher.student.layers, teacher.student.init) == (None, "first")
    assert teacher.teacher_training is None


def test_the_digest_is_eight_hex_digits() -> None:
    digest = Recipe.of(FULL).digest(CONTENT)
    assert len(digest) == 8
    assert int(digest, 16) >= 0


# ---- the name of a run


def digest_of(*sets: str, method: str = "cka-g", known: dict[str, str] | None = None) -> str:
    """Digest of a resolved recipe with these keys."""
    flags = {
        "task.name": "rte", "teachers": [{"model": "a/teacher"}], "student.model": "a/base", "student.layers": 6,
        "method.name": method,
    }  # fmt: skip
    return resolve_distill(Recipe.build(flags=flags, sets=sets)).digest(known or {})


@pytest.mark.parametrize(
    "key", ["centroids=50", "algorithm=legacy", "passes=7", "seed=2", "batch_size=4"], ids=lambda key: key
)
def test_how_the_memory_is_made_is_part_of_a_run(key: str) -> None:
    assert digest_of(f"memory.{key}") != digest_of()
    assert digest_of(f"memory.{key}", method="kd") == digest_of(method="kd")  # which reads none
    assert digest_of(f"memory.{key}", "method.beta=0") == digest_of("method.beta=0")


def test_an_option_that_came_later_renames_no_earlier_run() -> None:
    for method in ("kd", "ics", "cka-g"):
        assert digest_of("method.standardise_logits=true", method=method) != digest_of(method=method)
    recipe = Recipe.build(flags={"task.name": "rte", "method.name": "kd"})
    assert set(recipe.identity({})["method"]) == {"name", "variant", "alpha", "temperature"}


def test_whether_a_memory_may_be_made_is_not_and_defaults_may_be_spelled_out() -> None:
    assert digest_of("memory.train=never") == digest_of()
    spelled = ("memory.centroids=100", "memory.algorithm=kmeans", "memory.passes=20", "memory.seed=1")
    assert digest_of(*spelled) == digest_of()


def test_a_named_memory_counts_by_its_content() -> None:
    first = digest_of("memory.file=a.safetensors", known={"a.safetensors": "123"})
    assert digest_of("memory.file=b.safetensors", known={"b.safetensors": "123"}) == first
    assert digest_of("memory.file=a.safetensors", known={"a.safetensors": "456"}) != first
    assert digest_of() != first


@pytest.mark.parametrize("key", ["train.batch_sampler=class-balanced", "method.layer_map=11:5", "method.beta=1"])
def test_what_changes_numbers_changes_the_name(key: str) -> None:
    assert digest_of(key, method="cka-l") != digest_of(method="cka-l")


def test_looking_inside_does_not_change_the_name() -> None:
    assert digest_of("output.diagnose=true") == digest_of()


def test_a_list_may_be_written_without_brackets() -> None:
    recipe = Recipe.build(sets=["task=custom", "task.train_file=a", "task.dev_file=b", "task.text_columns=c, d"])
    assert recipe.task.text_columns == ["c", "d"]
    assert Recipe.build(sets=["student.init=1,3"]).student.init == [1, 3]
