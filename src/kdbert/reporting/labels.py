"""How tables and figures write a run's keys: plain values, and short words for what tells runs apart (`lr 1e-4`)."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kdbert.reporting.collect import Run

ALIASES = {"method": "method.name", "task": "task.name", "teacher": "teachers"}
FACTS = ("layers", "precision")  # of run.json, besides the recipe
SHORT = {"train.learning_rate": "lr", "train.batch_size": "batch", "teachers": "teacher"}


def text_of(run: Run, key: str) -> str:
    """A key's value in a run, as a table writes it; "-" where the run has no such key."""
    if key == "student":
        layers, init = run.told.get("student.layers"), run.told.get("student.init")
        kept = "-".join(map(str, init)) if isinstance(init, list) else f"{init} {layers}"
        name = Path(str(run.told.get("student.model"))).name
        return name if run.whole else f"{name}, {kept}"
    key = ALIASES.get(key, key)
    value = run.facts.get(key) if key in FACTS else run.told.get(key)
    if key == "teachers":
        return ", ".join(Path(str(one["model"])).name for one in run.told["teachers"]) or "-"
    if value is None:
        return "-"
    if key.startswith("data."):
        return f"#{value[:4]}"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: float) -> str:
    """Six digits; below 0.01 and from a million up with a power of ten: 5e-5, 1e-3, 0.01, 1e9."""
    if value == 0 or not math.isfinite(value) or 0.01 <= abs(value) < 1e6:
        return f"{value:g}"
    digits, _, power = f"{value:.5e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def sort_key(text: str) -> tuple[bool, float, str]:
    """Numbers by value, before words."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text


def is_one_of(text: str, wanted: str) -> bool:
    """Whether a value is the wanted one, or one of several with commas; numbers by value (2e-4 is 0.0002)."""
    return any(sort_key(text) == sort_key(part) for part in (wanted, *parts_of(wanted)))


def parts_of(wanted: str) -> list[str]:
    """The values of which one is wanted."""
    return [part.strip() for part in wanted.split(",") if part.strip()]


def differing(runs: Iterable[Run]) -> list[str]:
    """The keys of their identity in which runs differ.

    A data file that a run did not have is not another file. `stage_before`, a digest, is one only where nothing else
    tells first stages apart.
    """
    runs = list(runs)
    keys = dict.fromkeys(key for run in runs for key in run.identity)
    found = [
        key
        for key in keys
        if len({repr(run.identity.get(key)) for run in runs if key in run.identity or not key.startswith("data.")}) > 1
    ]
    if "stage_before" in found:
        others = [key for key in found if key != "stage_before"]
        rest = {run.path: tuple(repr(run.identity.get(key)) for key in others) for run in runs}
        if len({*rest.values()}) == len({(run.identity.get("stage_before"), rest[run.path]) for run in runs}):
            return others
    return found


def short(key: str, text: str) -> str:
    """A key with its value in few words: `lr 1e-4`."""
    name = key.partition(".")[2] or key  # of a weight of a class with the class
    return f"{SHORT.get(key, name.replace('_', ' ').replace('.', ' '))} {text}"


def telling(keys: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """What tells rows of values apart, for each row: `lr 1e-4`. No key is named without which they differ as well.

    Args:
        rows: the text of each key.
    """
    words = [[short(*pair) if pair[1] != "-" else "" for pair in zip(keys, row, strict=True)] for row in rows]
    kept, different = [*range(len(keys))], len({*map(tuple, words)})
    for i in range(len(keys))[::-1]:
        fewer = [j for j in kept if j != i]
        if len({tuple(row[j] for j in fewer) for row in words}) == different:
            kept = fewer
    return [[row[j] for j in kept if row[j]] for row in words]


def told_apart(runs: Sequence[Run]) -> dict[Path, str]:
    """What tells each run from the others: `lr 1e-4`; and the seed where that is not enough."""
    keys = differing(runs)
    words = telling(keys, [[text_of(run, key) for key in keys] for run in runs])
    enough = len({*map(tuple, words)}) == len(runs)
    return {
        run.path: ", ".join(some if enough else [*some, f"seed {run.seed}"])
        for run, some in zip(runs, words, strict=True)
    }


class Labels:
    """How the values of some keys are written, so that different values read differently.

    A teacher that is one of the runs is named by what its student starts from and what tells it from the task's other
    teachers. Where two values still read the same (one path, other content), digits of the content follow.
    """

    def __init__(self, runs: Sequence[Run], keys: Sequence[str]) -> None:
        self._teachers: dict[str, str] = {}
        taught = {content for run in runs for content in run.teachers}
        teachers: dict[str, list[Run]] = defaultdict(list)
        for run in runs:
            if run.content in taught:
                teachers[run.task].append(run)
        for some in teachers.values():
            words = told_apart(some)
            for run in some:
                self._teachers[str(run.content)] = ", ".join(filter(None, (text_of(run, "student"), words[run.path])))
        self._values: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        for run in runs:
            for key in keys:
                self._values[run.task, key, self._text(run, key)].add(repr(_content(run, key)))

    def label(self, run: Run, key: str) -> str:
        """The value of one of the keys in a run."""
        text = self._text(run, key)
        if len(self._values[run.task, key, text]) < 2:
            return text
        return f"{text} #{hashlib.sha256(repr(_content(run, key)).encode()).hexdigest()[:4]}"

    def _text(self, run: Run, key: str) -> str:
        if key != "teachers" or not run.teachers:
            return text_of(run, key)
        given = [Path(str(one["model"])).name for one in run.told["teachers"]]
        return " + ".join(self._teachers.get(known, name) for known, name in zip(run.teachers, given, strict=False))


def _content(run: Run, key: str) -> Any:
    return run.identity.get(ALIASES.get(key, key))
