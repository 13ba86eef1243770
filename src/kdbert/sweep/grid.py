"""A grid of recipes: every combination of the values that are given for some keys, for every seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbert.disk.sealed import flatten
from kdbert.errors import UserError, near_miss
from kdbert.recipe import Recipe
from kdbert.recipe.yaml_files import load_yaml, read_yaml

# What people write for short.
SECTION_NAMES = {"method": "method.name", "task": "task.name", "student": "student.model"}
SHORT_NAMES = {name: section for section, name in SECTION_NAMES.items()}
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: the keys in which it differs from other cells, with its values.
        recipe: as a person would have written it: nothing is resolved yet.
    """

    name: str
    recipe: Recipe


def expand(
    config: str | Path | None = None,
    grid: Iterable[str] = (),
    seeds: str | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
) -> list[Cell]:
    """All cells of a sweep, in the order of the grid with the seeds innermost.

    Args:
        config: YAML file: a recipe with two more keys, `grid` (key -> list of values; or a list of such
            grids, which are run one after the other) and `seeds` (a number of seeds, or a list of them).
        grid: texts such as `train.learning_rate=5e-5,1e-4`; they replace the file's lists for the same keys.
        seeds: `3` for the seeds 1, 2, 3; `5,7` for these two; replaces the file's.
        flags, sets: what all cells share, as in `Recipe.build`.

    Raises:
        UserError: a malformed grid, or the problems of all cells at once.
    """
    tree = read_yaml(Path(config)) if config is not None else {}
    grids = _grids(tree.pop("grid", None), str(config))
    known = [*Recipe.model_fields, "grid", "seeds"]
    for key in tree:
        if key not in known:
            raise UserError(f"{config}: unknown key {key!r}{near_miss(key, known)}")
    axes = [parse_axis(text) for text in grid]
    for key, values in axes:
        if sum(key == other for other, _ in axes) > 1:
            raise UserError(f"--grid {key}= is given twice; give all its values in one list, {key}=A,B")
        grids = [{**one, key: values} for one in grids]
    numbers = _seeds(seeds if seeds is not None else tree.pop("seeds", None))
    tree.pop("seeds", None)
    if numbers is not None:
        if "seed" in tree or any("seed" in one for one in grids):
            raise UserError("seeds are given twice: by `seeds` and by `seed`; keep one of them")
        grids = [{**one, "seed": numbers} for one in grids]
    sets = list(sets)
    fixed = {SECTION_NAMES.get(key, key) for text in sets for key in [text.partition("=")[0].strip()]}
    fixed |= {key for key, value in (flags or {}).items() if value is not None}
    for one in grids:
        _check_given_once(one, fixed)

    cells: dict[str, Cell] = {}
    problems: dict[str, str] = {}
    for one in grids:
        for combination in itertools.product(*one.values()):
            chosen = dict(zip(one, combination, strict=True))
            name = " ".join(f"{key}={_short(value)}" for key, value in chosen.items()) or "the only cell"
            try:
                recipe = Recipe.build(config=tree, flags={**(flags or {}), **_assignments(chosen)}, sets=sets)
            except UserError as error:
                problems.setdefault(str(error), name)
                continue
            cells.setdefault(recipe.yaml(), Cell(name, recipe))
    if problems:
        cure = ""
        if any("has no option" in problem for problem in problems):
            cure = "; options of one method go with its name, --grid 'method=finetune,{name: kd, temperature: 3}', or "
            cure += "into a grid of its own (docs/sweeps-and-tables.md)"
        raise UserError("; ".join(f"cell {name}: {problem}" for problem, name in problems.items()) + cure)
    if any(cell.recipe.output.dir is not None for cell in cells.values()):
        raise UserError("output.dir names the folder of one run, a sweep has many; name their root with --runs-dir")
    return list(cells.values())


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """`key=a,b,c` -> key and values, read as YAML: `[1,3],[2,4]` are two values, `{name: kd, temperature: 3}` is one.

    Raises:
        UserError: no key, no value, or not YAML.
    """
    key, sign, listed = text.partition("=")
    key = key.strip()
    example = "expected KEY=VALUE,VALUE such as train.learning_rate=5e-5,1e-4"
    if not sign or not key:
        raise UserError(f"--grid {text!r}: {example}")
    try:
        values = load_yaml(f"[{listed}\n]")
    except ValueError:
        raise UserError(f"--grid {text!r}: the values are not valid YAML; {example}") from None
    if not isinstance(values, list) or not values:
        raise UserError(f"--grid {text!r}: a value is missing; {example}")
    return SHORT_NAMES.get(key, key), values


def _grids(value: Any, file: str) -> list[dict[str, list[Any]]]:
    """The file's `grid` as a list of grids."""
    if value is None:
        return [{}]
    wrong = UserError(
        f"{file}: grid must give a list of values for each key, such as `train.learning_rate: [5e-5, 1e-4]`, "
        "or be a list of such grids"
    )
    grids = value if isinstance(value, list) else [value]
    if not grids:
        raise wrong
    for one in grids:
        if not isinstance(one, dict) or not all(isinstance(key, str) for key in one):
            raise wrong
        if not all(isinstance(values, list) and values for values in one.values()):
            raise wrong
    return [{SHORT_NAMES.get(key, key): values for key, values in one.items()} for one in grids]


def _seeds(value: Any) -> list[int] | None:
    if value is None:
        return None
    told = str(value) if len(str(value)) < 60 else f"{str(value)[:60]}…"
    wrong = UserError(f"seeds {told!r}: expected how many (3 stands for 1, 2, 3) or which (5,7), from 0")
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isascii() and part.isdigit() for part in parts if part) or not parts[0]:
            raise wrong
        if any(len(part) > 19 for part in parts):  # beyond 64 bits
            raise wrong
        numbers = [int(part) for part in parts if part]
        value = numbers if len(parts) > 1 else numbers[0]
    if isinstance(value, int) and not isinstance(value, bool):
        value = list(range(1, value + 1)) if value <= MOST_SEEDS else None
    if not isinstance(value, list) or not value or not all(type(seed) is int and seed >= 0 for seed in value):
        raise wrong
    return list(dict.fromkeys(value))


def _check_given_once(grid: Mapping[str, list[Any]], fixed: set[str]) -> None:
    """Refuse a recipe key that a list of the grid sets and something else too.

    Raises:
        UserError: with the key.
    """
    given: dict[str, str] = {}
    for axis, values in grid.items():
        keys = {key for value in values for key in _assignments({axis: value})}
        for key in sorted(keys):
            if key in fixed:
                raise UserError(f"{axis} is set for all cells and has a list of values in the grid; keep one of them")
            if key in given:
                raise UserError(f"{key} is set by two lists of the grid, {given[key]} and {axis}; keep one of them")
            given[key] = axis


def _assignments(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Grid keys and values as recipe keys; a mapping sets several keys of its section together."""
    keys: dict[str, Any] = {}
    for key, value in chosen.items():
        if isinstance(value, Mapping):
            keys.update(flatten(value, f"{key}."))
        elif key == "teacher":
            keys["teachers"] = [{"model": one} for one in (value if isinstance(value, list) else [value])]
        else:
            keys[SECTION_NAMES.get(key, key)] = value
    return keys


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_short(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_short, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
