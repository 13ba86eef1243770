"""The recipe: the one validated description of a run, and nothing that does not decide it.

A recipe is made from defaults, a YAML file, flags and `--set key=value`, in this order; all errors
are told at once. The resolved recipe is written into the run, and running that file again gives the
same numbers.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator

from kdbert.errors import UserError, near_miss
from kdbert.methods import MethodOptions, all_methods, get_method, source_of
from kdbert.recipe.sections import (
    LARGEST_SEED,
    MemorySection,
    OutputSection,
    Section,
    StageSection,
    StudentSection,
    TaskSection,
    TeacherSection,
    TeacherTraining,
    TrainSection,
)
from kdbert.recipe.yaml_files import load_yaml, read_yaml
from kdbert.tasks import CORPUS, CUSTOM, get_task, task_name

# What two runs of one experiment may differ in: the seed, places, and how often something is told or saved. (What
# `stages` says of a stage is in the section `train` of its run.)
OUTSIDE_IDENTITY = (
    "seed", "output", "task.data_dir", "train.eval_batch_size", "train.logging_steps", "train.checkpoint_steps",
    "memory.train", "train.cache_gib", "stages",
)  # fmt: skip
# Keys that came later: at their defaults they are left out, so that earlier runs keep their names.
LATER = {
    "task": (
        "dev_share", "dev_seed", "split_names", "label_separator", "metrics", "labels", "unlabelled_file",
        "labelled_share", "labelled_seed",
    ),
    "train": ("class_weights", "label_smoothing", "batch_tokens", "unlabelled_share", "fused_layers"),
    "student": ("freeze_embeddings",),
    "method": ("standardise_logits",),
}  # fmt: skip
# Keys of models and of a person's own files: what counts is what is in them, wherever they lie.
BY_CONTENT = {"model", "tokenizer", "train_file", "dev_file", "test_file", "unlabelled_file", "file"}
# Of pydantic's problems, by their types: what a number must be, and what else was expected.
LIMITS = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "dict": "keys below it, not one value",
    "model": "keys below it, not one value",
}


def put(tree: dict[str, Any], key: str, value: Any, problems: list[str], keep: bool = False) -> None:
    """Set a dotted key in a nested dict; `keep` leaves a value that is already there."""
    parts = key.split(".")
    node = tree
    for part in parts[:-1]:
        child = node.get(part)
        if isinstance(child, str) and part in ("method", "task"):
            child = {"name": child}
        if child is None:
            child = {}
        if not isinstance(child, dict):
            problems.append(f"key {key!r}: {part!r} is not a section")
            return
        node[part] = node = child
    last = parts[-1]
    if keep and last in node:
        return
    if key in ("method", "task") and isinstance(value, str) and isinstance(node.get(last), dict):
        node[last]["name"] = value  # the section's other keys stay
    else:
        node[last] = value


def _method_options(value: Any) -> MethodOptions:
    """Choose the options class by the method's name, so that its keys and defaults are validated."""
    if isinstance(value, MethodOptions):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise UserError("method: expected a name, or a mapping with `name` and options")
    method = get_method(str(value.get("name", "kd")))
    return method.Options.model_validate({**value, "name": method.name})


class Recipe(Section):
    """Everything that decides a run."""

    task: TaskSection = Field(default_factory=TaskSection)
    teachers: list[TeacherSection] = Field(default_factory=list)
    teacher_training: TeacherTraining | None = None
    student: StudentSection = Field(default_factory=StudentSection)
    method: SerializeAsAny[MethodOptions] = Field(default_factory=lambda: _method_options("kd"))
    memory: MemorySection | None = None
    train: TrainSection = Field(default_factory=TrainSection)
    stages: dict[str, StageSection] = Field(default_factory=dict)
    seed: int = Field(1, ge=0, le=LARGEST_SEED)
    output: OutputSection = Field(default_factory=OutputSection)

    @field_validator("method", mode="before")
    @classmethod
    def _choose_method(cls, value: Any) -> Any:
        try:
            return _method_options(value)
        except UserError as error:
            raise ValueError(str(error)) from None

    @field_validator("stages")
    @classmethod
    def _of_the_method(cls, value: dict[str, StageSection], info: ValidationInfo) -> dict[str, StageSection]:
        stages = get_method(info.data["method"].name).stages if "method" in info.data else ()
        unknown = [name for name in value if name not in stages]
        if stages and unknown:
            raise ValueError(f"stages.{unknown[0]}: the stages of {info.data['method'].name} are {', '.join(stages)}")
        return value

    @classmethod
    def build(
        cls,
        config: str | Path | Mapping[str, Any] | None = None,
        flags: Mapping[str, Any] | None = None,
        sets: Iterable[str] = (),
    ) -> Recipe:
        """Defaults < task's defaults < YAML file < flags < `--set` texts. All problems are told at once.

        Args:
            config: YAML file, or what it would hold.
            flags: dotted key -> value; None values are left out.
            sets: texts such as `train.learning_rate=3e-5`, read as YAML values.
        """
        tree = read_yaml(Path(config)) if isinstance(config, (str, Path)) else copy.deepcopy(dict(config or {}))
        name = (flags or {}).get("method.name")
        if name is not None and isinstance(tree.get("method"), Mapping) and tree["method"].get("name", "kd") != name:
            tree["method"] = {}  # another method's options mean nothing to this one
        if (flags or {}).get("memory.file") is not None:
            tree["memory"] = {}  # how another memory was made means nothing to this one
        problems: list[str] = []
        for key, value in (flags or {}).items():
            if value is not None:
                put(tree, key, value, problems)
        for text in sets:
            key, sign, value = text.partition("=")
            if not sign or not key.strip():
                problems.append(f"{text!r}: expected key=value, such as train.learning_rate=3e-5, or a flag")
                continue
            try:
                put(tree, key.strip(), load_yaml(value), problems)
            except ValueError:
                problems.append(f"--set {text!r}: the value is not valid YAML")
        try:
            recipe = cls.of(tree)
        except UserError as error:
            problems.append(str(error))
        if problems:
            raise UserError("; ".join(problems))
        return recipe

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Recipe:
        """Validate a plain mapping; the task's own defaults fill what it leaves open."""
        merged: dict[str, Any] = {key: dict(v) if isinstance(v, Mapping) else v for key, v in tree.items()}
        task = merged.get("task")
        if isinstance(task, str):
            merged["task"] = task = {"name": task}
        name = task.get("name", "quickstart") if isinstance(task, Mapping) else "quickstart"
        problems = []
        try:
            merged["method"] = _method_options(merged.get("method", "kd"))
        except UserError as error:
            problems.append(str(error))
            merged.pop("method")
        except ValidationError as error:
            given = merged.pop("method")
            problems += _explain(error, "method.", str(given.get("name", "kd")) if isinstance(given, dict) else given)
        with contextlib.suppress(UserError):  # an unknown task is told with the other problems, below
            if isinstance(name, str) and task_name(name) != CUSTOM:
                kind = _kind_of_text(merged) if task_name(name) == CORPUS else None
                for key, value in get_task(name, kind).defaults.items():
                    put(merged, key, value, [], keep=True)
        try:
            recipe = cls.model_validate(merged)
        except ValidationError as error:
            problems += _explain(error)
        if problems:
            raise UserError("; ".join(dict.fromkeys(problems)))
        return recipe

    @property
    def stage(self) -> str | None:
        """The stage of the method that it is of; None: of all of them, or the method has one only."""
        return getattr(self.method, "stage", None)

    def yaml(self) -> str:
        """The recipe as YAML, every key with its value."""
        tree = self.model_dump(mode="json")
        text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        if not text.replace("\n", "").isprintable():  # a line break of Unicode's in a name would be read as a space
            text = yaml.safe_dump(tree, sort_keys=False)
        return text

    def identity(self, fingerprints: Mapping[str, str]) -> dict[str, Any]:
        """What makes two runs the same experiment: the recipe without seed, output and places.

        Args:
            fingerprints: path -> what its content is known by; a model or data file counts by what
                is in it, wherever it lies.
        """
        tree = self.model_dump(mode="json")
        for key in OUTSIDE_IDENTITY:
            section, _, name = key.partition(".")
            part = tree[section] if name else tree
            if part is not None:
                part.pop(name or section)
        for section, keys in LATER.items():
            fields = type(getattr(self, section)).model_fields
            for key in keys:
                if key in fields and tree[section][key] == fields[key].default:
                    del tree[section][key]
        for teacher in tree["teachers"]:
            if not teacher["renormalise"]:
                del teacher["renormalise"]
        source = source_of(get_method(self.method.name))
        if source:  # a method from outside counts by its code
            tree["method"]["source"] = source
        if self.memory is not None and self.memory.file is not None:
            tree["memory"] = {"file": self.memory.file}
        for part in (tree["task"], tree["student"], tree["memory"] or {}, *tree["teachers"]):
            for key in BY_CONTENT & part.keys():
                part[key] = fingerprints.get(part[key], part[key])
        return tree

    def digest(self, fingerprints: Mapping[str, str]) -> str:
        """8 hex digits of `identity`."""
        return digest_of(self.identity(fingerprints))


def digest_of(identity: Mapping[str, Any]) -> str:
    """8 hex digits of what `Recipe.identity` gives."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def _kind_of_text(tree: dict[str, Any]) -> Any:
    """How task `corpus` is read: as the recipe says, else as its method reads it, which is then said in the recipe."""
    method = tree.get("method")
    heads = get_method(method.name).heads if isinstance(method, MethodOptions) else ()
    if tree["task"].get("kind") is None and "encoder" in heads and "masked_lm" not in heads:
        tree["task"]["kind"] = "encoder"
    return tree["task"].get("kind")


def _explain(error: ValidationError, prefix: str = "", method: str = "") -> list[str]:
    """Every problem that pydantic found, as a sentence with its key; `method` is whose options these are."""
    sentences = []
    for problem in error.errors():
        # pydantic adds the names of union members to the place; a person wrote none of them.
        option = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("literal", "list[")))
        key, value = prefix + option, problem["input"]
        if problem["type"] == "extra_forbidden":
            elsewhere = prefix and any(option in one.Options.model_fields for one in all_methods().values())
            why = f": method {method!r} has no option {option!r} (its options: kdbert methods show {method})"
            close = near_miss(key, [known for known in known_keys() if known != key])
            sentences.append(f"unknown key {key!r}{why if elsewhere else close}")
            continue
        message = plain(problem)
        if "." not in key and message.startswith(("task ", "--", f"{key}.")):  # it says itself what it is about
            sentences.append(message)
            continue
        told = problem["type"] == "value_error" and repr(value) in message
        shown = f"={value!r}" if isinstance(value, (str, int, float)) and not told else ""
        sentences.append(f"{key.rstrip('.') or 'recipe'}{shown}: {message}")
    return sentences


def plain(problem: Any) -> str:
    """What one of pydantic's problems is, in plain words."""
    kind, expected = problem["type"], problem["type"].partition("_")[0]
    if kind in LIMITS:
        (limit,) = problem["ctx"].values()
        return f"must be {LIMITS[kind]} {str(limit).removesuffix('.0')}"
    if kind == "literal_error":
        return f"must be {problem['ctx']['expected']}"
    if expected in TYPES:
        return f"expected {TYPES[expected]}"
    message: str = problem["msg"].removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def is_name(section: str, word: str) -> bool:
    """Whether this is the name of a method or of a task."""
    try:
        get_method(word) if section == "method" else task_name(word)
    except UserError:
        return False
    return True


def known_keys() -> list[str]:
    sections = {name: field.annotation for name, field in Recipe.model_fields.items()}
    sections |= {"teacher_training": TeacherTraining, "memory": MemorySection}
    found = [f"{name}.{key}" for name, one in sections.items() for key in getattr(one, "model_fields", ())]
    found += [f"method.{key}" for method in all_methods().values() for key in method.Options.model_fields]
    return [*sections, *found]
