"""Run folders as records for tables: found below some folders, checked, the broken ones named.

It reads run.json itself: `kdbert.runs` comes with torch, and a table should not wait for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdbert.data.examples import Kind
from kdbert.disk.sealed import parse_json, unsealed
from kdbert.errors import UserError, printable
from kdbert.heads import head_of
from kdbert.heads.masked_lm import HIDDEN
from kdbert.metrics import score
from kdbert.recipe.keys import ADDED_LATER, FILES_BY_CONTENT, MODELS_BY_CONTENT, OUTSIDE_IDENTITY, flatten
from kdbert.tasks import TaskSpec, get_task, task_names

UNFINISHED = ("running", "interrupted", "failed")
SMALL_FILE = 16 * 2**20  # bytes of predictions that a table may read of each run
_TRACES = ("recipe.yaml", "metrics.jsonl", "checkpoints")  # what a run writes besides run.json


class Damaged(ValueError):
    """What is wrong with a file of a run, with its name."""


@dataclass(frozen=True)
class Run:
    """What a table needs of one run folder.

    Attributes:
        path: the run folder.
        status: finished, diverged, or one of `UNFINISHED`.
        seed: the run's seed.
        told: recipe keys, as the person gave them.
        identity: recipe keys that make it this experiment: no seed, no places; models and files by content; and
            `data.<split>`, what the content of a registered task's file is known by.
        metrics: split -> metric -> value; empty unless finished.
        selection: the metric by which runs of its task are compared ("" unless finished).
        facts: the rest of run.json.
    """

    path: Path
    status: str
    seed: int
    told: Mapping[str, Any]
    identity: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]
    selection: str
    facts: Mapping[str, Any]

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
        """The lines of such a file; what else Unicode takes for an end of a line may stand within one.

        Raises:
            Damaged: see `read`.
        """
        return [line for line in self.read(name, errors).split("\n") if line]

    @property
    def task(self) -> str:
        """Its task's name."""
        return str(self.told["task.name"])

    @property
    def teachers(self) -> list[str]:
        """What its teachers are known by."""
        return [str(teacher["model"]) for teacher in self.identity["teachers"]]

    @property
    def dev_chose(self) -> bool:
        """Whether the weights are those of the epoch that was best on dev."""
        return self.told.get("train.selection") == "best"


@dataclass(frozen=True)
class Predictions:
    """A run's answers on one split, sorted by the example's id, in the forms of `kdbert.metrics.score`.

    `classes` are the task's, in its order; `groups` those of its metrics.
    """

    kind: Kind
    ids: list[str]
    predictions: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None
    classes: tuple[str, ...] = ()


def collect(paths: Iterable[str | Path]) -> tuple[list[Run], dict[Path, str]]:
    """Every run at or below the given folders, and the broken run folders with what is wrong.

    Hidden folders and runs that `--overwrite` has moved aside (`….old-<time>`) are left out.

    Raises:
        UserError: a given folder is not there, or there is no run at all.
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
            path = Path(folder)
            if "run.json" not in files and "run.json" not in inside:
                if any(name in files or name in inside for name in _TRACES):
                    broken[path] = "no run.json"
                    inside.clear()
                inside[:] = sorted(
                    name for name in inside if not name.startswith(".") and not re.search(r"\.old-\d{8}-\d{6}", name)
                )
                continue
            inside.clear()
            key = path.absolute()
            if key in runs or path in broken:
                continue
            try:
                runs[key] = read_run(path)
            except ValueError as error:
                broken[path] = str(error)
    if not runs:
        places = ", ".join(str(path) for path in paths)
        detail = "".join(f"; {path}: {why}" for path, why in broken.items())
        raise UserError(f"no run found in {places}{detail}")
    return list(runs.values()), broken


def read_run(path: Path) -> Run:
    """One run folder.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    try:
        content = unsealed((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"run.json cannot be read ({error})") from None
    recipe, identity, status = content.get("recipe"), content.get("identity", {}), content.get("status")
    if not isinstance(recipe, dict) or not isinstance(identity, dict):
        raise ValueError("run.json has no recipe")
    told = flatten(recipe)
    content_keys = (*FILES_BY_CONTENT, *MODELS_BY_CONTENT)
    same = {
        key: value
        for key, value in told.items()
        if not key.startswith(OUTSIDE_IDENTITY) and not (key in ADDED_LATER and value == ADDED_LATER[key])
    }
    same.update({key: value for key, value in flatten(identity).items() if key in content_keys})
    if not isinstance(told.get("task.name"), str) or not isinstance(told.get("method.name"), str):
        raise ValueError("run.json's recipe names no task or no method")
    if type(told.get("seed")) is not int:
        raise ValueError("run.json's recipe has no seed")
    if status not in ("finished", "diverged", *UNFINISHED):
        raise ValueError(f"run.json has the unknown status {status!r}")
    for teachers in (told.setdefault("teachers", []), same.setdefault("teachers", [])):
        if not isinstance(teachers, list) or not all(isinstance(one, dict) and "model" in one for one in teachers):
            raise ValueError("run.json's teachers are malformed")
    data = content.get("data")
    for split, digest in data.items() if isinstance(data, dict) else ():
        same[f"data.{split}"] = told[f"data.{split}"] = str(digest)
    metrics, selection = content.get("metrics", {}), content.get("selection", "")
    if status == "finished":
        _check_metrics(metrics, selection)
    else:
        metrics, selection = {}, ""
    if "constant_answer" in content and not _is_numbers(content["constant_answer"]):
        content["constant_answer"] = {}
    for fact, form in (("model_fingerprint", str), ("layers", int)):
        if not isinstance(content.get(fact), form):
            content.pop(fact, None)
    return Run(path, status, told["seed"], told, same, metrics, selection, content)


def number(value: Any) -> float | None:
    """The value, if it is a finite number; of files that somebody may have damaged."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def mapping(value: Any) -> Mapping[str, Any]:
    """The value, or nothing where somebody has put something else there."""
    return value if isinstance(value, dict) else {}


def _check_metrics(metrics: Any, selection: Any) -> None:
    if not isinstance(metrics, dict) or not metrics or not isinstance(selection, str):
        raise ValueError("run.json is finished but has no metrics")
    for split, values in metrics.items():
        if not isinstance(values, dict) or selection not in values:
            raise ValueError(f"run.json has no {selection or 'selected metric'} on {split}")
        for name, value in values.items():
            if number(value) is None:
                raise ValueError(f"run.json has {name} = {value!r} on {split}")


def _is_numbers(scores: Any) -> bool:
    """Whether it is split -> metric -> number."""
    return isinstance(scores, dict) and all(
        isinstance(values, dict) and all(number(value) is not None for value in values.values())
        for values in scores.values()
    )


@dataclass(frozen=True)
class Reference:
    """What a finished run's score on a split is held against.

    Attributes:
        constant: what the best constant answer reaches; None where that is not known.
        same: the answer that the run gives to every example; None where its answers differ, or are not known.
    """

    constant: float | None = None
    same: str | None = None


def reference(run: Run, split: str, metric: str) -> Reference:
    """From run.json; of a run that was made before it was noted there, from its predictions, if they are not large."""
    if "constant_answer" in run.facts:
        told = mapping(run.facts.get("one_answer")).get(split)
        return Reference(
            mapping(run.facts["constant_answer"].get(split)).get(metric), None if told is None else printable(str(told))
        )
    try:
        if (run.path / "predictions" / f"{split}.jsonl").stat().st_size > SMALL_FILE:
            return Reference()
        found = read_predictions(run, split)
        if found.kind == "masked_lm":
            return Reference()
        head = head_of(found.kind, found.classes)
        constant = (head.constant_answer((metric,), found.labels, found.groups) or {})[metric]
    except (OSError, ValueError, KeyError, AssertionError):
        return Reference()
    same = head.same_answer(found.predictions)
    return Reference(constant, None if same is None else printable(same))


def read_predictions(run: Run, split: str) -> Predictions:
    """A finished run's predictions of a split, classes numbered in the task's order.

    Raises:
        ValueError: no file, or one that is damaged.
    """
    try:
        rows = [_row(line) for line in run.json_lines(f"predictions/{split}.jsonl")]
        rows.sort(key=lambda row: str(row["id"]))
        ids = [str(row["id"]) for row in rows]
        predictions, labels = [row["prediction"] for row in rows], [row["label"] for row in rows]
        if not rows or len(set(ids)) < len(ids):
            raise ValueError("no row, or an id twice")
        if isinstance(predictions[0], dict):  # plain text
            sums = np.array([[row[name] for name in HIDDEN] for row in predictions], dtype=np.float64)
            return Predictions("masked_lm", ids, sums, np.zeros(len(ids)), np.arange(len(ids)))
        if isinstance(predictions[0], list):
            return _of_lists(get_task(run.task), ids, predictions, labels)
        if any(isinstance(value, str) for value in predictions):
            names = _label_names(run, {*predictions, *labels})
            number = {name: index for index, name in enumerate(names)}
            kind = np.int16 if len(names) < 2**15 else np.int64
            found, gold = (np.array([number[word] for word in words], dtype=kind) for words in (predictions, labels))
            return Predictions("single_label", ids, found, gold, classes=tuple(names))
        scores, gold = (np.array(values, dtype=np.float64) for values in (predictions, labels))
        return Predictions("regression", ids, scores, gold)
    except Damaged:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise ValueError(f"predictions/{split}.jsonl is damaged ({type(error).__name__}: {error})") from None


def _of_lists(spec: TaskSpec, ids: list[str], predictions: list[list[str]], labels: list[list[str]]) -> Predictions:
    """Answers that are lists of classes, or of tags."""
    number = {name: index for index, name in enumerate(spec.labels)}
    if spec.kind == "token":
        counts = [len(tags) for tags in labels]
        if counts != [len(tags) for tags in predictions]:
            raise ValueError("another number of tags predicted than there are")
        found, gold = (np.array([number[tag] for tags in rows for tag in tags]) for rows in (predictions, labels))
        return Predictions("token", ids, found, gold, np.repeat(np.arange(len(ids)), counts), spec.labels)
    found, gold = (np.array([[name in row for name in spec.labels] for row in rows]) for rows in (predictions, labels))
    groups = spec.label_groups(ids, None)
    return Predictions("multi_label", ids, found, gold, groups, spec.labels)


def scored_predictions(run: Run, split: str, metric: str) -> Predictions:
    """A finished run's predictions of a split, which give the score that its run.json has.

    Raises:
        ValueError: no file, a damaged one, or one that gives another score.
    """
    found = read_predictions(run, split)
    try:
        value = score((metric,), found.predictions, found.labels, found.groups, found.classes)[metric]
    except (KeyError, AssertionError, ValueError):
        raise ValueError(f"predictions/{split}.jsonl gives no {metric}") from None
    if abs(value - run.metrics[split][metric]) > 1e-6:
        raise ValueError(f"predictions/{split}.jsonl gives {value:.6f}, run.json says {run.metrics[split][metric]:.6f}")
    return found


def read_scores(run: Run, split: str, ids: Collection[str]) -> dict[str, np.ndarray]:
    """id -> logits of these examples (float64 [classes]; tags: [words, classes]); a damaged line has none."""
    found = {}
    for line in run.json_lines(f"predictions/{split}.jsonl"):
        name = str(_row(line)["id"])
        if name in ids:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                found[name] = np.array(parse_json(line)["scores"], dtype=np.float64)
    return found


def _row(line: str) -> Any:
    """A line of a predictions file without its scores, which may be hundreds and are not wanted here."""
    head, found, _ = line.partition(', "scores": [')  # inside a JSON string its quotes would be escaped
    return parse_json(head + "}" if found else line)


def _label_names(run: Run, words: set[Any]) -> list[str]:
    """The classes in the task's order: the registered task's, else those of the run's model."""
    if run.task in task_names() and words <= set(get_task(run.task).labels):
        return list(get_task(run.task).labels)
    config = parse_json(run.read("model/config.json"))
    return sorted(config["label2id"], key=lambda name: int(config["label2id"][name]))
