"""From a grid to its cells: which there are, in which order, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdbert.errors import UserError
from kdbert.sweep.grid import expand, parse_axis


def names(*grid: str, **more: Any) -> list[str]:
    """Names of the cells."""
    return [cell.name for cell in expand(grid=grid, **more)]


def write(folder: Path, text: str) -> Path:
    """A sweep's file."""
    path = folder / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(*grid: str, **more: Any) -> str:
    """The one sentence with which a grid is refused."""
    with pytest.raises(UserError) as error:
        expand(grid=grid, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- the cells


def test_every_combination_in_the_order_of_the_grid_with_the_seeds_innermost() -> None:
    assert names("method=finetune,kd", "train.learning_rate=5e-5,0.001", seeds="2") == [
        f"method={method} train.learning_rate={rate} seed={seed}"
        for method in ("finetune", "kd") for rate in ("5e-5", "0.001") for seed in (1, 2)
    ]  # fmt: skip


def test_a_cell_is_the_recipe_that_its_values_and_the_shared_ones_make() -> None:
    cells = expand(
        grid=["method=finetune,kd", "task=rte,STS-B"],
        seeds="7,",
        flags={"task.data_dir": "glue", "train.epochs": None},
        sets=["train.warmup=0.1"],
    )
    assert len(cells) == 4
    last = cells[-1].recipe
    assert (last.method.name, last.task.name, last.seed) == ("kd", "stsb", 7)
    assert {(cell.recipe.task.data_dir, cell.recipe.train.warmup) for cell in cells} == {("glue", 0.1)}


def test_weights_of_classes_are_an_axis() -> None:
    cells = expand(grid=["train.class_weights=null,balanced,{no: 1, yes: 3}"], flags={"task": "rte"})
    assert [cell.recipe.train.class_weights for cell in cells] == [None, "balanced", {"no": 1.0, "yes": 3.0}]


def test_without_a_grid_there_is_one_cell() -> None:
    (cell,) = expand(sets=["task=rte"])
    assert cell.recipe.task.name == "rte"
    assert cell.name


@pytest.mark.parametrize(
    ("told", "seeds"),
    [
        ("3", [1, 2, 3]), ("5,7", [5, 7]), (" 7 , 5 ", [7, 5]), ("4,", [4]), ("0,1", [0, 1]), ("2,2,1", [2, 1]),
    ],
)  # fmt: skip
def test_seeds_are_a_number_of_them_or_a_list(told: str, seeds: list[int]) -> None:
    assert [cell.recipe.seed for cell in expand(seeds=told)] == seeds


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [1, 2, 3]), ("[5, 7]", [5, 7]), ('"5,7"', [5, 7]), ("[0]", [0]), ("null", [1])]
)
def test_seeds_of_the_file(tmp_path: Path, text: str, seeds: list[int]) -> None:
    path = write(tmp_path, f"task: rte\nseeds: {text}\n")
    assert [cell.recipe.seed for cell in expand(path)] == seeds
    assert [cell.recipe.seed for cell in expand(path, seeds="9,8")] == [9, 8]  # the command line's count


def test_a_grid_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "task: rte\ntrain: {epochs: 4}\ngrid:\n  method: [finetune, kd]\n  train.warmup: [0, 0.1]\n")
    cells = expand(path)
    assert [(cell.recipe.method.name, cell.recipe.train.warmup) for cell in cells] == [
        ("finetune", 0.0), ("finetune", 0.1), ("kd", 0.0), ("kd", 0.1),
    ]  # fmt: skip
    assert {(cell.recipe.task.name, cell.recipe.train.epochs) for cell in cells} == {("rte", 4)}


def test_a_list_of_grids_is_run_one_after_the_other(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "grid:\n  - {method: [finetune]}\n  - {method: [kd], method.temperature: [1, 3]}\nseeds: 2\n",
    )
    assert [cell.name for cell in expand(path)] == [
        "method=finetune seed=1", "method=finetune seed=2",
        "method=kd method.temperature=1 seed=1", "method=kd method.temperature=1 seed=2",
        "method=kd method.temperature=3 seed=1", "method=kd method.temperature=3 seed=2",
    ]  # fmt: skip
    shared = [cell.recipe.train.warmup for cell in expand(path, grid=["train.warmup=0.1,0.2"])]
    assert shared == [0.1, 0.1, 0.2, 0.2] + [0.1, 0.1, 0.2, 0.2] * 2


@pytest.mark.parametrize("key", ["method", "method.name"])
@pytest.mark.parametrize("told", ["method", "method.name"])
def test_the_command_lines_list_replaces_the_files_for_its_key(tmp_path: Path, key: str, told: str) -> None:
    path = write(tmp_path, f"grid:\n  {key}: [finetune, kd]\n  train.warmup: [0, 0.1]\n")
    assert names(f"{told}=hinton", config=path) == ["method=hinton train.warmup=0", "method=hinton train.warmup=0.1"]


def test_the_files_own_value_gives_way_to_the_grid(tmp_path: Path) -> None:
    path = write(tmp_path, "method: {name: kd, temperature: 3}\ntrain: {warmup: 0.5}\n")
    cells = expand(path, grid=["train.warmup=0,0.1", "method=finetune,kd"])
    assert [cell.recipe.train.warmup for cell in cells] == [0, 0, 0.1, 0.1]
    assert cells[1].recipe.method.temperature == 3  # type: ignore[attr-defined]


def test_a_mapping_sets_several_keys_together() -> None:
    cells = expand(grid=["method=finetune,{name: kd, temperature: 3},{name: kd, temperature: 4, alpha: 0.1}"])
    found = [cell.recipe.method.model_dump(include={"name", "temperature", "alpha"}) for cell in cells]
    assert [one["name"] for one in found] == ["finetune", "kd", "kd"]
    assert (found[1]["temperature"], found[2]["temperature"], found[2]["alpha"]) == (3, 4, 0.1)
    assert cells[1].name == "method={name: kd, temperature: 3}"
    sections = expand(grid=["train={epochs: 2, batch_size: 8},{epochs: 4}"])
    assert [(cell.recipe.train.epochs, cell.recipe.train.batch_size) for cell in sections] == [(2, 8), (4, 32)]


def test_teachers_are_a_list_of_models() -> None:
    cells = expand(grid=["teacher=runs/a,b", "method=kd"])
    assert [[teacher.model for teacher in cell.recipe.teachers] for cell in cells] == [["runs/a"], ["b"]]
    assert [cell.name for cell in cells] == ["teacher=runs/a method=kd", "teacher=b method=kd"]


def test_a_list_is_one_value_if_it_stands_in_brackets() -> None:
    cells = expand(grid=["student.init=[1,3],[2,4],even"], flags={"student.layers": 2})
    assert [cell.recipe.student.init for cell in cells] == [[1, 3], [2, 4], "even"]


def test_cells_with_equal_recipes_are_one(tmp_path: Path) -> None:
    assert names("method=kd,hinton", "train.learning_rate=5e-5,0.00005") == ["method=kd train.learning_rate=5e-5"]
    path = write(tmp_path, "grid: [{method: [kd, finetune]}, {method: [kd]}]\n")
    assert len(expand(path)) == 2


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train.warmup", "expected KEY=VALUE,VALUE"),
        ("=1,2", "expected KEY=VALUE,VALUE"),
        (" =1", "expected KEY=VALUE,VALUE"),
        ("train.warmup=", "expected KEY=VALUE,VALUE"),
        ("train.warmup= ", "expected KEY=VALUE,VALUE"),
        ("train.warmup=0,,1", "expected KEY=VALUE,VALUE"),
        ("train.warmup=,", "expected KEY=VALUE,VALUE"),
        ("train.warmup={a: 1", "expected KEY=VALUE,VALUE"),
        ("train.warmup=1],[2", "expected KEY=VALUE,VALUE"),
        ("train.warmup=!!int ''", "expected KEY=VALUE,VALUE"),
        ("train.warmup=!!bool x", "expected KEY=VALUE,VALUE"),
        ("train.warmup=!!timestamp x", "expected KEY=VALUE,VALUE"),
        ("task.data_dir=2001-99-99", "expected KEY=VALUE,VALUE"),
        ("train.learning_rat=1,2", "did you mean 'train.learning_rate'?"),
        ("trian.warmup=1", "unknown key 'trian'"),
        ("teachr=a,b", "unknown key 'teachr'"),
        ("method=kd,hintn", "did you mean 'hinton'?"),
        ("task=rte,mnlli", "did you mean 'mnli'?"),
        ("train.learning_rate=0.1,fast", "cell train.learning_rate=fast: train.learning_rate="),
        ("train=[1]", "train: expected keys below it"),
        ("output.dir=a,b", "--runs-dir"),
    ],
)
def test_a_wrong_axis_is_told_in_one_sentence(text: str, told: str) -> None:
    message = refused(text)
    assert told in message
    assert message.count(told) == 1


def test_a_method_for_all_cells_leaves_its_options_in_the_grid() -> None:
    cells = expand(
        grid=["method.temperature=1,2", "method.alpha=0.1,0.5"], flags={"task.name": "rte"}, sets=["method=kd"]
    )
    assert {(c.recipe.method.name, c.recipe.method.temperature, c.recipe.method.alpha) for c in cells} == {
        ("kd", 1.0, 0.1), ("kd", 1.0, 0.5), ("kd", 2.0, 0.1), ("kd", 2.0, 0.5),
    }  # fmt: skip


def test_the_problems_of_all_cells_are_told_at_once_and_each_once() -> None:
    message = refused("train.epochs=0,1", "train.warmup=0,-1", seeds="3")
    assert message.count(" train.epochs=0: ") == 2  # alone, and in the cell where the warm-up is wrong too
    assert "cell train.epochs=1 train.warmup=-1 seed=1: train.warmup" in message


@pytest.mark.parametrize(
    ("grid", "flags", "sets", "key"),
    [
        ("train.warmup=0,0.1", {}, ["train.warmup=0.2"], "train.warmup"),
        ("train.epochs=1,2", {"train.epochs": 3}, [], "train.epochs"),
        ("method=kd,finetune", {"method.name": "kd"}, [], "method"),
        ("method.name=kd,finetune", {}, ["method=kd"], "method"),
        ("task=rte,mrpc", {"task.name": "rte"}, [], "task"),
        ("teacher=a,b", {"teachers": [{"model": "c"}]}, [], "teacher"),
        ("method={name: kd, temperature: 3}", {}, ["method.temperature=4"], "method"),
        ("seed=1,2", {}, ["seed=3"], "seed"),
    ],
)
def test_a_key_for_all_cells_cannot_be_in_the_grid_too(
    grid: str, flags: dict[str, Any], sets: list[str], key: str
) -> None:
    message = refused(grid, flags=flags, sets=sets)
    assert message == f"{key} is set for all cells and has a list of values in the grid; keep one of them"


def test_an_option_that_a_method_lacks_is_told_with_the_cure() -> None:
    message = refused("method=finetune,kd", "method.temperature=3,5")
    assert "'method.temperature'" in message
    assert "'finetune'" in message
    assert "{name: kd, temperature: 3}" in message


def test_a_list_is_given_once_and_a_key_of_the_file_too(tmp_path: Path) -> None:
    assert "task" in refused("task=cola", "task=rte")
    path = tmp_path / "sweep.yaml"
    for text, told in (("task: rte\ntask: cola\n", "'task' stands twice"), ("gird: {}\n", "did you mean 'grid'")):
        path.write_text(text)
        with pytest.raises(UserError, match=told):
            expand(path)


def test_students_are_a_list_of_models() -> None:
    cells = expand(grid=["student=a,b"])
    assert [cell.recipe.student.model for cell in cells] == ["a", "b"]


def test_two_lists_cannot_set_the_same_key() -> None:
    message = refused("method={name: kd, temperature: 3}", "method.temperature=1,2")
    assert (
        message == "method.temperature is set by two lists of the grid, method and method.temperature; keep one of them"
    )


@pytest.mark.parametrize(
    "told", ["", "0", "-1", "a", "1.5", "1,a", ",3", "1;2", "9" * 5000, "123456789", "1," + "9" * 30]
)
def test_wrong_seeds_are_told_in_one_sentence(told: str) -> None:
    message = refused(seeds=told)
    assert message.startswith("--seeds ")
    assert "seeds" in message
    assert len(message) < 200


@pytest.mark.parametrize("text", ["0", "[]", "[-1]", "[a]", "[1.5]", "[true]", "true", "{a: 1}", "2.5", "10000000000"])
def test_wrong_seeds_of_the_file(tmp_path: Path, text: str) -> None:
    assert refused(config=write(tmp_path, f"seeds: {text}\n")).startswith("seeds ")


@pytest.mark.parametrize(
    ("flags", "sets", "told"),
    [
        ({"method.name": "kd,ics"}, [], "--grid method=kd,ics"),
        ({"task.name": "rte,cola"}, [], "--grid task=rte,cola"),
        ({}, ["method=kd,ics"], "--grid method=kd,ics"),
    ],
)
def test_several_values_for_all_cells_are_told_where_they_go(flags: dict[str, str], sets: list[str], told: str) -> None:
    assert refused(seeds="2", flags=flags, sets=sets).endswith(told)


def test_a_list_with_an_unknown_name_is_told_as_that() -> None:
    assert "unknown method" in refused(flags={"method.name": "kd,icss"})


def test_seeds_are_given_once(tmp_path: Path) -> None:
    assert "seeds" in refused("seed=1,2", seeds="3")
    assert "seeds" in refused(config=write(tmp_path, "seed: 1\nseeds: 3\n"))
    assert "seed" in refused(seeds="3", sets=["seed=5"])


@pytest.mark.parametrize("text", ["5", "[]", "[5]", "{train.warmup: 0.1}", "{train.warmup: []}", "a"])
def test_a_files_grid_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    message = refused(config=write(tmp_path, f"grid: {text}\n"))
    assert "sweep.yaml: grid" in message


# ---- any text


def trees() -> st.SearchStrategy[Any]:
    """What YAML can say that a recipe can hold."""
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
    return st.recursive(
        leaf, lambda part: st.lists(part, max_size=3) | st.dictionaries(text, part, max_size=3), max_leaves=6
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(trees(), min_size=1, max_size=4))
def test_any_values_written_as_yaml_are_read_back(values: list[Any]) -> None:
    text = yaml.safe_dump(values, default_flow_style=True, width=10**6).strip()
    assert text[0] + text[-1] == "[]"
    assert parse_axis(f"a.b={text[1:-1]}") == ("a.b", values)


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text("[]{}!&*#|>'\"%@`,:?-=<~0123456789. \nabc", max_size=20).map(lambda text: "a=" + text))
@example("a=!!float ''")
@example("a=&x [*x]")
@example("a=0b_")
def test_any_text_is_an_axis_or_refused(text: str) -> None:
    try:
        key, values = parse_axis(text)
    except UserError:
        return
    assert key
    assert values


@settings(max_examples=150, deadline=None)
@given(st.text() | st.text("0123456789, ", max_size=6))
def test_any_text_is_seeds_or_refused(text: str) -> None:
    try:
        cells = expand(seeds=text) if len(text) < 3 or "," in text else []  # not thousands of cells
    except UserError:
        return
    assert all(cell.recipe.seed >= 0 for cell in cells)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6))
def test_any_list_of_seeds_is_taken_as_it_is(seeds: list[int]) -> None:
    found = [cell.recipe.seed for cell in expand(seeds=",".join(map(str, seeds)) + ",")]
    assert found == list(dict.fromkeys(seeds))
