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

UNTRAINED = "no head trained"  # the status here of a finished run whose scores say nothing, such as a first stage
STATUSES = ("finished", "diverged", "running", "interrupted", "failed")
_TRACES = ("recipe.yaml", "metrics.jsonl", "checkpoints")  # what a run writes besides run.json


class Damaged(ValueError):
    """What is wrong with a run, or with a file of it."""


@dataclass(frozen=True, eq=False)
class Run:
    """What a table needs of one run folder."""

    path: Path
    status: str
    seed: int
    told: Mapping[str, Any]  # by dotted recipe key, as the person gave it
    # The keys that make it this experiment: no seed and no places, models and files by content; and `data.<split>`,
    # the digest of a registered task's file.
    identity: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]  # by split and name; empty unless finished
    selection: str  # the metric by which runs of its task are compared; "" unless finished
    facts: Mapping[str, Any]  # the whole of run.json
    whole: bool = False  # its student starts from all layers of its model
    first_stage: str | None = None  # what the content of the student of the stage before it is known by

    @property
    def task(self) -> str:
        return str(self.told["task.name"])

    @property
    def method(self) -> str:
        return str(self.told["method.name"])

    @property
    def teachers(self) -> list[str]:
        """What the content of each teacher is known by."""
        return [str(teacher["model"]) for teacher in self.identity["teachers"]]

    @property
    def content(self) -> str | None:
        """What the content of its own model is known by; None before it is finished."""
        return self.facts.get("model_fingerprint")

    def constant(self, split: str, metric: str) -> float | None:
        """What the best constant answer reaches; None where run.json does not say it."""
        return number(mapping(mapping(self.facts.get("constant_answer")).get(split)).get(metric))

    def same_answer(self, split: str) -> str | None:
        """The answer that it gives to every example of a split; None where its answers differ."""
        told = mapping(self.facts.get("one_answer")).get(split)
        return None if told is None else printable(str(told))

    def read(self, name: str, errors: str = "strict") -> str:
        """The text of a file of the run; `Damaged` if it is missing or not what the run wrote, as run.json knows."""
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
        """The lines of such a file. Only "\\n" ends a line: Unicode's other line ends may be part of a text."""
        return [line for line in self.read(name, errors).split("\n") if line]


def collect(paths: Iterable[str | Path]) -> tuple[list[Run], dict[Path, str]]:
    """Every run at or below the given folders, and the damaged run folders with what is wrong.

    Hidden folders and runs that `--overwrite` has moved aside (`….old-<time>`) are left out, and so are first stages
    of runs that are there.
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
        detail = "".join(f"; {path}: {why}" for path, why in broken.items())
        raise UserError(f"no run found in {', '.join(map(str, paths))}{detail}")
    firsts = {run.first_stage for run in runs.values()} - {None}
    return _one_start([run for run in runs.values() if run.content not in firsts]), broken


def read_run(path: Path) -> Run:
    """One run folder; `Damaged` says what is wrong with it."""
    try:
        facts = run_facts(path)
    except UserError as error:
        raise Damaged(str(error)) from None
    if not facts:
        raise Damaged("no run.json")
    try:
        return _run(path, facts)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise Damaged(f"run.json is malformed ({type(error).__name__}: {error})") from None


def _run(path: Path, facts: dict[str, Any]) -> Run:
    status, told, identity = facts["status"], flatten(facts["recipe"]), flatten(facts["identity"])
    teachers = (one["model"] for some in (told, identity) for one in some["teachers"])
    names = (told["task.name"], told["method.name"], *teachers)
    if type(told["seed"]) is not int or not all(isinstance(name, str) for name in names):
        raise ValueError("the recipe has a seed or a name of the wrong type")
    if status not in STATUSES:
        raise ValueError(f"unknown status {status!r}")
    identity.pop("seed", None)
    status = UNTRAINED if status == "finished" and facts.get("head_trained") is False else status
    for split, digest in mapping(facts.get("data")).items():
        identity[f"data.{split}"] = told[f"data.{split}"] = str(digest)
    metrics, selection = (facts["metrics"], facts["selection"]) if status == "finished" else ({}, "")
    faulty = (selection not in split or None in map(number, split.values()) for split in metrics.values())
    if status == "finished" and (not metrics or any(faulty)):
        raise ValueError("a metric is missing or not a number")
    for fact, form in (("model_fingerprint", str), ("layers", int)):
        if not isinstance(facts.get(fact), form):
            facts.pop(fact, None)
    first, before = None, mapping(facts.get("stage_before"))
    if before:  # seeds of one experiment, though each goes on with a student of its own
        first = identity["student.model"]
        both = {**flatten(mapping(before.get("stages")), "stages."), "stage_before": before["digest"]}
        told |= {**flatten(before["student"], "student."), **both}
        identity |= {**flatten(before["start"], "student."), **both}
    return Run(path, status, told["seed"], told, identity, metrics, selection, facts, first_stage=first)


def _one_start(runs: list[Run]) -> list[Run]:
    """The runs; `student.layers=12` of a model of 12 layers and no `student.layers` are one start: its whole depth."""
    depths = {
        str(run.identity.get("student.model")): run.facts["layers"]
        for run in runs
        if run.told.get("student.layers") is None and "layers" in run.facts
    }
    found = []
    for run in runs:
        layers, kept = run.told.get("student.layers"), run.told.get("student.init")
        depth = depths.get(str(run.identity.get("student.model")))
        chosen = isinstance(kept, list) and kept != list(range(1, len(kept) + 1))
        whole = not chosen and layers in (None, depth)
        if whole and depth is not None:
            start = {"student.layers": depth, "student.init": "first"}
            run = replace(run, told={**run.told, **start}, identity={**run.identity, **start})
        found.append(replace(run, whole=whole))
    return found


def number(value: Any) -> float | None:
    """The value, if it is a finite number: a person may have edited the file."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def mapping(value: Any) -> Mapping[str, Any]:
    """The value, if it is a mapping, else an empty one: a person may have edited the file."""
    return value if isinstance(value, dict) else {}
