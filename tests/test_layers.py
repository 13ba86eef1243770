"""Which layers are compared: the defaults for any two depths, what a person writes, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_bert
from kdbert import Recipe, UserError
from kdbert.methods import Models, Shape, get_method
from kdbert.models.layers import check_pairs, last_pair, layerwise_pairs, matched_layer, parse_pairs, penultimate_pair
from kdbert.models.layers import told as written
from small_run import Setting, logged

DEPTHS = st.integers(1, 60)


@pytest.mark.parametrize(
    ("depths", "last", "before", "layerwise"),
    [
        ((12, 6), [(12, 6)], [(11, 5)], [(2, 1), (4, 2), (6, 3), (8, 4), (10, 5)]),
        ((6, 3), [(6, 3)], [(5, 2)], [(2, 1), (4, 2)]),
        ((12, 4), [(12, 4)], [(11, 3)], [(3, 1), (6, 2), (9, 3)]),
        ((24, 12), [(24, 12)], [(23, 11)], [(2 * layer, layer) for layer in range(1, 12)]),
        ((3, 2), [(3, 2)], [(2, 1)], [(2, 1)]),  # 1.5 is rounded up
        ((4, 6), [(4, 6)], [(3, 5)], [(1, 1), (1, 2), (2, 3), (3, 4), (3, 5)]),  # a student deeper than its teacher
        ((5, 5), [(5, 5)], [(4, 4)], [(1, 1), (2, 2), (3, 3), (4, 4)]),
    ],
    ids=str,
)
def test_the_default_pairs(depths: tuple[int, int], last: Any, before: Any, layerwise: Any) -> None:
    """12 and 6 are the published ones."""
    assert list(last_pair(*depths)) == last
    assert list(penultimate_pair(*depths)) == before
    assert list(layerwise_pairs(*depths)) == layerwise


@given(DEPTHS, st.integers(2, 60))
def test_layerwise_pairs_are_in_range_and_in_order(teacher: int, student: int) -> None:
    pairs = layerwise_pairs(teacher, student)
    assert [layer for _, layer in pairs] == list(range(1, student))
    assert all(0 <= layer <= teacher for layer, _ in pairs)
    assert [layer for layer, _ in pairs] == sorted(layer for layer, _ in pairs)
    assert all(matched == math.floor(layer * teacher / student + 0.5) for matched, layer in pairs)
    if teacher >= student:
        assert len({layer for layer, _ in pairs}) == len(pairs)
        assert min(layer for layer, _ in pairs) >= 1


@given(DEPTHS, DEPTHS)
def test_the_last_layer_answers_to_the_last(teacher: int, student: int) -> None:
    assert matched_layer(student, teacher, student) == teacher


PAIRS = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=8)


@given(PAIRS, st.sampled_from([",", ", ", " ,"]), st.sampled_from([":", " : "]))
def test_written_pairs_are_read_back(pairs: list[tuple[int, int]], comma: str, colon: str) -> None:
    assert parse_pairs(comma.join(f"{teacher}{colon}{student}" for teacher, student in pairs)) == pairs
    assert parse_pairs(written(pairs)) == pairs


@given(st.text(alphabet="0123456789:,- .x٣²", max_size=12))
def test_any_text_is_pairs_or_refused_with_an_example(text: str) -> None:
    try:
        pairs = parse_pairs(text)
    except ValueError as error:
        refusal = str(error)
    else:
        assert pairs
        assert all(teacher >= 0 and student >= 0 for teacher, student in pairs)
        assert text.count(":") == len(pairs) == text.count(",") + 1
        return
    assert "such as 2:1,4:2" in refusal
    assert repr(text) in refusal


@pytest.mark.parametrize(
    "text", ["", "2", "2:", ":1", "2:1,", "2;1", "a:b", "-1:2", "2:1:3", "2.0:1", "2:1 4:2", "²:1"]
)
def test_malformed_pairs_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 2:1,4:2"):
        parse_pairs(text)


@given(PAIRS, DEPTHS, DEPTHS)
def test_layers_that_are_not_there_are_named(pairs: list[tuple[int, int]], teacher: int, student: int) -> None:
    wrong = [pair for pair in pairs if pair[0] > teacher or pair[1] > student]
    if not wrong:
        assert check_pairs(pairs, teacher, student) == tuple(pairs)
        return
    with pytest.raises(UserError) as error:
        check_pairs(pairs, teacher, student)
    role, depth = ("teacher", teacher) if wrong[0][0] > teacher else ("student", student)
    assert f"--layer-map {wrong[0][0]}:{wrong[0][1]}: the {role} has layers 0 (embeddings) to {depth}" in str(
        error.value
    )


# ---- in a recipe


def pairs_of(method: str, depths: tuple[int, int], sets: list[str] | None = None) -> dict[str, Any]:
    """term -> pairs, as a run would have them."""
    options = Recipe.build(flags={"method.name": method}, sets=sets or []).method
    models = Models(Shape(depths[1], 8), (Shape(depths[0], 8),))
    return {name: list(pairs) for name, pairs in get_method(method).needs(options, models).pairs.items()}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("ics", {"feature": [(12, 6)]}),
        ("cka-l", {"local": [(12, 6)]}),
        ("cka-i", {"intra": [(11, 5)]}),
        ("cka-g", {"global": [(11, 5)]}),
        ("cka-il", {"intra": [(11, 5)], "local": [(11, 5)]}),
        ("cka-ilg", {"intra": [(11, 5)], "local": [(11, 5)], "global": [(11, 5)]}),
        ("pkd", {"patience": [(2, 1), (4, 2), (6, 3), (8, 4), (10, 5)]}),
        ("rkd", {"distance": [(12, 6)], "angle": [(12, 6)]}),
        ("kd", {}),
    ],
)
def test_the_published_layers_of_each_method(method: str, expected: dict[str, Any]) -> None:
    assert pairs_of(method, (12, 6)) == expected


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["method.layer_map=2:1,4:2"], [(2, 1), (4, 2)]),
        (["method.layer_map=11:5"], [(11, 5)]),  # YAML reads 665
        (["method.layer_map=2:1"], [(2, 1)]),  # 121
        (["method.layer_map=1:0"], [(1, 0)]),  # 60
        (["method.layer_map=12:6"], [(12, 6)]),
        (["method.layer_map=0:0"], [(0, 0)]),
        (["method.layer_map='11:5'"], [(11, 5)]),
        (["method.layer_map=[[11, 5], [2, 1]]"], [(11, 5), (2, 1)]),
        (["method.layerwise=true"], [(2, 1), (4, 2), (6, 3), (8, 4), (10, 5)]),
    ],
    ids=str,
)
def test_layers_as_a_person_sets_them(sets: list[str], expected: list[Any]) -> None:
    assert pairs_of("cka-i", (12, 6), sets) == {"intra": expected}


@given(st.integers(0, 99), st.integers(0, 59))
def test_one_pair_without_quotes_is_read_as_it_is_written(teacher: int, student: int) -> None:
    options = Recipe.build(flags={"method.name": "cka-l"}, sets=[f"method.layer_map={teacher}:{student}"]).method
    assert options.layer_map == [(teacher, student)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["[2:1, 4:2]", "\n  - 2:1\n  - 4:2"], ids=["in brackets", "as a list"])
def test_pairs_written_as_a_yaml_list(text: str, tmp_path: Path) -> None:
    """As a person would write them in a recipe file; YAML reads 121 and 242."""
    file = tmp_path / "recipe.yaml"
    file.write_text(f"method:\n  name: cka-i\n  layer_map: {text}\n", encoding="utf-8")
    assert Recipe.build(file).method.layer_map == [(2, 1), (4, 2)]  # type: ignore[attr-defined]


def test_a_resolved_recipe_is_read_back_with_its_layers(tmp_path: Path) -> None:
    recipe = Recipe.build(flags={"method.name": "cka-ilg", "method.layer_map": "2:1,4:2"}, sets=["method.sigma=0"])
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.yaml(), encoding="utf-8")
    assert Recipe.build(file) == recipe


def test_the_global_term_has_a_pair_of_its_own() -> None:
    sets = ["method.layer_map=2:1,4:2", "method.global_layer_map=9:5"]
    assert pairs_of("cka-ilg", (12, 6), sets)["global"] == [(9, 5)]
    assert pairs_of("cka-ilg", (12, 6), sets[:1])["global"] == [(11, 5)]
    assert pairs_of("cka-ilg", (12, 6), ["method.layer_map=4:2"])["global"] == [(4, 2)]


# ---- in a run


@pytest.mark.parametrize("method", ["cka-i", "cka-g", "cka-il", "cka-ilg"])
def test_a_student_of_one_layer_is_refused_with_the_cure_and_cured(
    method: str, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    keys = {"method.name": method, "student.layers": 1, "max_steps": 2, "memory.centroids": 5}
    words = setting.words(tmp_path / "run", **keys)
    refused = kdbert(*words)
    assert refused.code == 2
    assert "the student has one layer" in refused.err
    assert "--layer-map 4:1" in refused.err
    assert not (tmp_path / "run").exists()
    done = kdbert(*words, "--layer-map", "4:1")
    assert done.code == 0, done.err
    assert "(teacher:student) 4:1\n" in done.err
    assert len(logged(tmp_path / "run")) == 2


def test_a_student_of_one_layer_has_no_layerwise_pairs(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    keys = {"method.name": "cka-l", "student.layers": 1, "method.layerwise": True}
    refused = kdbert(*setting.words(tmp_path / "run", **keys))
    assert (refused.code, "--layer-map" in refused.err) == (2, True)


def test_a_teacher_of_one_layer_is_refused_by_its_role(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    labels = ["negative", "positive"]
    flat = make_bert(tmp_path_factory.mktemp("flat") / "bert", layers=1, base=False, labels=labels)
    setting = Setting(setting.train, setting.dev, flat, setting.student)
    refused = kdbert(*setting.words(tmp_path / "run", **{"method.name": "cka-i"}))
    assert refused.code == 2
    assert "the teacher has one layer" in refused.err
    assert "--layer-map 1:2" in refused.err
    assert kdbert(*setting.words(tmp_path / "run", **{"method.name": "cka-l", "max_steps": 1})).code == 0


def test_a_dry_run_prints_layers_and_memory(setting: Setting, kdbert: Callable[..., Any], tmp_path: Path) -> None:
    keys = {"method.name": "cka-ilg", "student.layers": 3, "memory.centroids": 11}
    done = kdbert(*setting.words(tmp_path / "run", **keys), "--dry-run", "--layer-map", "1:1,3:2")
    assert done.code == 0, done.err
    for term, pairs in {"intra": "1:1, 3:2", "local": "1:1, 3:2", "global": "3:2"}.items():
        assert f"{term}: layers (teacher:student) {pairs}\n" in done.out
    assert "11 centroids of the teacher's layer 3 by kmeans" in done.out
    assert list(tmp_path.iterdir()) == []


def test_layer_map_changes_what_is_compared(setting: Setting, kdbert: Callable[..., Any], tmp_path: Path) -> None:
    first = {}
    for number, pairs in enumerate(("4:2", "1:1", "1:1,4:2", None)):
        words = setting.words(tmp_path / str(number), **{"method.name": "cka-l", "max_steps": 1, "precision": "fp32"})
        done = kdbert(*words, *(["--layer-map", pairs] if pairs else []))
        assert done.code == 0, done.err
        assert f"local: layers (teacher:student) {(pairs or '4:2').replace(',', ', ')}\n" in done.err
        first[pairs] = logged(tmp_path / str(number))[1]["loss/local"]
    assert first[None] == first["4:2"] != first["1:1"]
    assert first["1:1,4:2"] == pytest.approx((first["1:1"] + first["4:2"]) / 2, rel=1e-5)
