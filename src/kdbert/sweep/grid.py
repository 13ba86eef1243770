"""A grid of recipes: every combination of the values given for some keys, with every seed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbert.disk.sealed import flatten
from kdbert.errors import UserError, near_miss
from kdbert.recipe import Recipe, is_name
from kdbert.recipe.yaml_files import load_yaml, read_yaml

# What people write for short.
SECTION_NAMES = {"method": "method.name", "task": "task.name", "student": "student.model"}
SHORT_NAMES = {name: section for section, name in SECTION_NAMES.items()}
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    name: str  # its values of the grid's keys
    recipe: Recipe  # as a person would have written it; nothing is resolved yet


def expand(
    config: str | Path | None = None,
    grid: Iterable[str] = (),
    seeds: str | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
) -> list[Cell]:
    """All cells of a sweep, in the order of the grid with the seeds innermost.

    Args:
        config: YAML file: a recipe with two more keys, `grid` (key -> list of values; or a list of such grids, which
            run one after the other) and `seeds` (how many, or a list).
        grid: texts such as `train.learning_rate=5e-5,1e-4`; they replace the file's values of that key.
        seeds: `3` for the seeds 1, 2, 3; `5,7` for these two; replaces the file's.
        flags, sets: what all cells share, as in `Recipe.build`.
    """
    flags, sets = dict(flags or {}), list(sets)
    _check_single([*flags.items(), *(text.partition("=")[::2] for text in sets)])
    tree = read_yaml(Path(config)) if config is not None else {}
    known = [*Recipe.model_fields, "grid", "seeds"]
    for key in tree:
        if key not in known:
            raise UserError(f"{config}: unknown key {key!r}{near_miss(key, known)}")
    grids = _grids(tree.pop("grid", None), str(config))
    listed = tree.pop("seeds", None)
    axes: dict[str, list[Any]] = {}
    for key, values in map(parse_axis, grid):
        if key in axes:
            raise UserError(f"--grid {key}= is given twice; give all its values in one list, {key}=A,B")
        axes[key] = values
    numbers = _seeds(listed, "seeds") if seeds is None else _seeds(seeds, "--seeds")
    if numbers is not None:
        if "seed" in tree or any("seed" in one for one in (axes, *grids)):
            raise UserError("seeds are given twice: by `seeds` and by `seed`; keep one of them")
        axes["seed"] = numbers
    grids = [{**one, **axes} for one in grids]
    fixed = {SECTION_NAMES.get(key, key) for text in sets for key in [text.partition("=")[0].strip()]}
    fixed |= {key for key, value in flags.items() if value is not None}
    for one in grids:
        _check_given_once(one, fixed)

    cells: dict[str, Cell] = {}
    problems: dict[str, str] = {}
    for one in grids:
        for combination in itertools.product(*one.values()):
            chosen = dict(zip(one, combination, strict=True))
            name = " ".join(f"{key}={_short(value)}" for key, value in chosen.items()) or "the only cell"
            try:
                recipe = Recipe.build(config=tree, flags={**flags, **_recipe_keys(chosen)}, sets=sets)
                cells.setdefault(recipe.yaml(), Cell(name, recipe))
            except UserError as error:
                problems.setdefault(str(error), name)
    if problems:
        message = "; ".join(f"cell {name}: {problem}" for problem, name in problems.items())
        if "has no option" in message:
            message += "; options of one method go with its name: --grid 'method=finetune,{name: kd, temperature: 3}'"
        raise UserError(message)
    if any(cell.recipe.output.dir is not None for cell in cells.values()):
        raise UserError("output.dir is the folder of one run, and a sweep has many; set their root with --runs-dir")
    return list(cells.values())


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """`key=a,b,c` -> key and values, read as YAML: `[1,3],[2,4]` are two values, `{name: kd, alpha: 0}` is one."""
    key, _, listed = text.partition("=")
    key = key.strip()
    try:
        values = load_yaml(f"[{listed}\n]")
    except ValueError:
        values = None
    if not key or not isinstance(values, list) or not values:
        raise UserError(f"--grid {text!r}: expected KEY=VALUE,VALUE in YAML, such as train.learning_rate=5e-5,1e-4")
    return SHORT_NAMES.get(key, key), values


def _grids(value: Any, file: str) -> list[dict[str, list[Any]]]:
    """The file's `grid` as a list of grids."""
    grids = [{}] if value is None else value if isinstance(value, list) else [value]
    pairs = [pair for one in grids for pair in (one.items() if isinstance(one, dict) else [(None, None)])]
    if not grids or not all(isinstance(key, str) and isinstance(values, list) and values for key, values in pairs):
        raise UserError(
            f"{file}: grid must give a list of values for each key, such as `train.learning_rate: [5e-5, 1e-4]`, "
            "or be a list of such grids"
        )
    return [{SHORT_NAMES.get(key, key): values for key, values in one.items()} for one in grids]


def _seeds(value: Any, name: str) -> list[int] | None:
    """The seeds that a text or a value of YAML gives: how many, or which; `name` is where it stands."""
    if value is None:
        return None
    found = value
    if isinstance(value, str) and re.fullmatch(r"( *\d{1,19} *,)* *(\d{1,19} *)?", value, re.ASCII) and value.strip():
        numbers = [int(part) for part in value.split(",") if part.strip()]
        found = numbers if "," in value else numbers[0]
    if type(found) is int and found <= MOST_SEEDS:
        found = list(range(1, found + 1))
    if not isinstance(found, list) or not found or not all(type(seed) is int and seed >= 0 for seed in found):
        given = str(value) if len(str(value)) < 60 else f"{str(value)[:60]}…"
        raise UserError(f"{name} {given!r}: expected how many, such as 3 (the seeds 1 to 3), or which, such as 5,7")
    return list(dict.fromkeys(found))


def _check_single(given: Iterable[tuple[str, Any]]) -> None:
    """Refuse several methods or tasks where all cells share one."""
    for key, value in given:
        section = SHORT_NAMES.get(key, key)
        names = str(value).split(",")
        if section in ("method", "task") and len(names) > 1 and all(is_name(section, name) for name in names):
            raise UserError(f"{key}={value!r}: several values go into --grid {section}={value}")


def _check_given_once(grid: Mapping[str, list[Any]], fixed: set[str]) -> None:
    """Refuse a recipe key that a list of the grid sets, and something else too."""
    given: dict[str, str] = {}
    for axis, values in grid.items():
        for key in sorted({key for value in values for key in _recipe_keys({axis: value})}):
            if key in fixed:
                raise UserError(f"{axis} is set for all cells and has a list of values in the grid; keep one of them")
            if key in given:
                raise UserError(f"{key} is set by two lists of the grid, {given[key]} and {axis}; keep one of them")
            given[key] = axis


def _recipe_keys(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Grid keys as recipe keys. A mapping sets several keys of its section."""
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
