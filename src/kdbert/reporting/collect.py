"""Run folders as records for tables: found below some folders, checked, the damaged ones named."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdbert.disk.sealed import flatten
from kdbert.errors import UserError, printable
from kdbert.models.locate import run_facts

STATUSES = ("finished", "diverged", "running", "interrupted", "failed")
_TRACES = ("recipe.yaml", "metrics.jsonl", "checkpoints")  # what a run writes besides run.json


class Damaged(ValueError):
    """What is wrong with a file of a run."""


@dataclass(frozen=True)
class Run:
    """What a table needs of one run folder.

    Attributes:
        status: one of `STATUSES`.
        told: dotted recipe key -> value, as the person gave it.
        identity: the keys that make it this experiment: no seed and no places, models and files by content; and
            `data.<split>`, the digest of a registered task's file.
        metrics: split -> metric -> value; empty unless finished.
        selection: the metric by which runs of its task are compared ("" unless finished).
        facts: the whole of run.json.
        whole: its student starts from all layers of its model.
    """

    path: Path
    status: str
    seed: int
    told: Mapping[str, Any]
    identity: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]
    selection: str
    facts: Mapping[str, Any]
    whole: bool = False

    @property
    def task(self) -> str:
        """The name of its task."""
        return str(self.told["task.name"])

    @property
    def method(self) -> str:
        """The name of its method."""
        return str(self.told["method.name"])

    @property
    def teachers(self) -> list[str]:
        """What the content of each teacher is known by."""
        return [str(teacher["model"]) for teacher in self.identity["teachers"]]

    @property
    def content(self) -> str | None:
        """What the content of its own model is known by; None before it is finished."""
        return self.facts.get("model_fingerprint")

    @property
    def dev_chose(self) -> bool:
        """Whether the weights are those of the epoch that was best on dev."""
        return self.told.get("train.selection") == "best"

    def constant(self, split: str, metric: str) -> float | None:
        """What the best constant answer reaches; None where run.json does not say it."""
        return number(mapping(mapping(self.facts.get("constant_answer")).get(split)).get(metric))

    def same_answer(self, split: str) -> str | None:
        """The answer that it gives to every example of a split; None where its answers differ."""
        told = mapping(self.facts.get("one_answer")).get(split)
        return None if told is None else printable(str(told))

    def read(self, name: str, errors: str = "strict") -> str:
        """The text of a file of the run.

        Raises:
            Damaged: it is missing, cannot be read, or is not what the run wrote, as run.json knows.
        """
        try:
            content = (self.path / name).read_bytes()
        except FileNotFoundError:
            raise Damaged(f"there is no {name}") from None
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from None
        known = mapping(self.facts.get("files")).get(name)
        if known not in (None, hashlib.sha256(content).hexdigest()):
            raise Damaged(f"{name} is damaged: it is not what the run wrote")
        return content.decode("utf-8", errors)

    def json_lines(self, name: str, errors: str = "strict") -> list[str]:
        """The lines of such a file. Only "\\n" ends a line: Unicode's other line ends may be part of a text.

        Raises:
            Damaged: see `read`.
        """
        return [line for line in self.read(name, errors).split("\n") if line]


def collect(paths: Iterable[str | Path]) -> tuple[list[Run], dict[Path, str]]:
    """Every run at or below the given folders, and the damaged run folders with what is wrong.

    Hidden folders and runs that `--overwrite` has moved aside (`….old-<time>`) are left out.

    Raises:
        UserError: a given folder does not exist, or there is no run at all.
    """
    runs: dict[Path, Run] = {}
    broken: dict[Path, str] = {}
    for given in paths:
        root = Path(given)
        if root.is_file():
            raise UserError(f"{str(given)!r} is a file; name run folders, or folders above them")
        if not root.is_dir():
            raise UserError(f"no folder {str(given)!r} to look for runs in")
        for folder, inside, files in os.walk(root):
            path, names = Path(folder), {*inside, *files}
            if "run.json" in names or names.intersection(_TRACES):
                inside.clear()
                if path.absolute() not in runs and path not in broken:
                    try:
                        runs[path.absolute()] = read_run(path)
                    except ValueError as error:
                        broken[path] = str(error)
            inside[:] = sorted(name for name in inside if name[0] != "." and not re.search(r"\.old-\d{8}-\d{6}", name))
    if not runs:
        places = ", ".join(str(path) for path in paths)
        detail = "".join(f"; {path}: {why}" for path, why in broken.items())
        raise UserError(f"no run found in {places}{detail}")
    return _one_start(list(runs.values())), broken


def read_run(path: Path) -> Run:
    """One run folder.

    Raises:
        Damaged: what is wrong with it.
    """
    try:
        facts = run_facts(path)
    except UserError as error:
        raise Damaged(str(error)) from None
    if not facts:
        raise Damaged("no run.json")
    status = facts.get("status")
    told, identity = flatten(mapping(facts.get("recipe"))), flatten(mapping(facts.get("identity")))
    if not isinstance(told.get("task.name"), str) or not isinstance(told.get("method.name"), str):
        raise Damaged("run.json's recipe names no task or no method")
    if type(told.get("seed")) is not int:
        raise Damaged("run.json's recipe has no seed")
    if status not in STATUSES:
        raise Damaged(f"run.json has the unknown status {status!r}")
    for teachers in (told.get("teachers"), identity.get("teachers")):
        if not isinstance(teachers, list) or not all(isinstance(one, dict) and "model" in one for one in teachers):
            raise Damaged("run.json's teachers are malformed")
    identity.pop("seed", None)
    for split, digest in mapping(facts.get("data")).items():
        identity[f"data.{split}"] = told[f"data.{split}"] = str(digest)
    metrics: Any = {}
    selection: Any = ""
    if status == "finished":
        metrics, selection = facts.get("metrics"), facts.get("selection")
        _check_metrics(metrics, selection)
    for fact, form in (("model_fingerprint", str), ("layers", int)):
        if not isinstance(facts.get(fact), form):
            facts.pop(fact, None)
    return Run(path, status, told["seed"], told, identity, metrics, selection, facts)


def _check_metrics(metrics: Any, selection: Any) -> None:
    if not isinstance(metrics, dict) or not metrics or not isinstance(selection, str):
        raise Damaged("run.json is finished but has no metrics")
    for split, values in metrics.items():
        if not isinstance(values, dict) or selection not in values:
            raise Damaged(f"run.json has no {selection or 'selected metric'} on {split}")
        for name, value in values.items():
            if number(value) is None:
                raise Damaged(f"run.json has {name} = {value!r} on {split}")


def _one_start(runs: list[Run]) -> list[Run]:
    """The runs; `student.layers=12` of a model of 12 layers and no `student.layers` are one start: its whole depth."""
    depths = {
        str(run.identity.get("student.model")): run.facts["layers"]
        for run in runs
        if run.told.get("student.layers") is None and "layers" in run.facts
    }
    return [_of_depth(run, depths.get(str(run.identity.get("student.model")))) for run in runs]


def _of_depth(run: Run, depth: int | None) -> Run:
    layers, kept = run.told.get("student.layers"), run.told.get("student.init")
    if isinstance(kept, list) and kept != list(range(1, len(kept) + 1)):
        return run
    if layers is not None and layers != depth:
        return run
    if depth is None:
        return replace(run, whole=True)
    whole = {"student.layers": depth, "student.init": "first"}
    return replace(run, told={**run.told, **whole}, identity={**run.identity, **whole}, whole=True)


def number(value: Any) -> float | None:
    """The value, if it is a finite number: a person may have edited the file."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def mapping(value: Any) -> Mapping[str, Any]:
    """The value, if it is a mapping, else an empty one: a person may have edited the file."""
    return value if isinstance(value, dict) else {}
