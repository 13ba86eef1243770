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
from pydantic import (
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
)

from kdbert.errors import UserError, near_miss
from kdbert.methods import MethodOptions, all_methods, get_method, source_of
from kdbert.recipe.keys import FILES_BY_CONTENT, OUTSIDE_IDENTITY, put
from kdbert.recipe.sections import (
    LARGEST_SEED,
    MemorySection,
    OutputSection,
    Section,
    StudentSection,
    TaskSection,
    TeacherSection,
    TeacherTraining,
    TrainSection,
)
from kdbert.recipe.yaml_files import load_yaml, read_yaml
from kdbert.tasks import CUSTOM, get_task, task_name


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
    seed: int = Field(1, ge=0, le=LARGEST_SEED)
    output: OutputSection = Field(default_factory=OutputSection)

    @field_validator("method", mode="before")
    @classmethod
    def _choose_method(cls, value: Any) -> Any:
        try:
            return _method_options(value)
        except UserError as error:
            raise ValueError(str(error)) from None

    @classmethod
    def build(
        cls,
        config: str | Path | Mapping[str, Any] | None = None,
        flags: Mapping[str, Any] | None = None,
        sets: Iterable[str] = (),
    ) -> Recipe:
        """Defaults < task's defaults < YAML file < flags < `--set` texts.

        Args:
            config: YAML file, or what it would hold.
            flags: dotted key -> value; None values are left out.
            sets: texts such as `train.learning_rate=3e-5`, read as YAML values.

        Raises:
            UserError: a file that is no recipe, unknown keys, wrong values; all of them at once.
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
        with contextlib.suppress(UserError):  # an unknown task is told with the other problems, below
            if isinstance(name, str) and task_name(name) != CUSTOM:
                for key, value in get_task(name).defaults.items():
                    put(merged, key, value, [], keep=True)
        problems = []
        try:
            merged["method"] = _method_options(merged.get("method", "kd"))
        except UserError as error:
            problems.append(str(error))
            merged.pop("method")
        except ValidationError as error:
            problems += _explain(error, "method.", _named_method(merged.get("method")))
            merged.pop("method")
        try:
            recipe = cls.model_validate(merged)
        except ValidationError as error:
            problems += _explain(error)
        if problems:
            raise UserError("; ".join(dict.fromkeys(problems)))
        return recipe

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a YAML file."""
        return cls.build(config=path)

    def yaml(self) -> str:
        """The recipe as YAML, every key with its value."""
        tree = self.model_dump(mode="json")
        text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        if text.replace("\n", "").isprintable():
            return text
        return str(
            yaml.safe_dump(tree, sort_keys=False)
        )  # a line break of Unicode's in a name would be read as a space

    def with_(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with some dotted keys set."""
        tree = self.model_dump(mode="json")
        for key, value in changes.items():
            put(tree, key, value, [])
        return type(self).of(tree)

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
        source = source_of(get_method(self.method.name))
        if source:  # a method from outside counts by its code
            tree["method"]["source"] = source
        if self.memory is not None and self.memory.file is not None:
            tree["memory"] = {"file": fingerprints.get(self.memory.file, self.memory.file)}
        for key in FILES_BY_CONTENT:
            name = key.removeprefix("task.")
            if tree["task"][name] is not None:
                tree["task"][name] = fingerprints.get(tree["task"][name], tree["task"][name])
        for part in (*tree["teachers"], tree["student"]):  # MODELS_BY_CONTENT
            part["model"] = fingerprints.get(part["model"], part["model"])
        if self.student.tokenizer is not None:
            tree["student"]["tokenizer"] = fingerprints.get(self.student.tokenizer, self.student.tokenizer)
        return tree

    def digest(self, fingerprints: Mapping[str, str]) -> str:
        """8 hex digits of `identity`."""
        text = json.dumps(self.identity(fingerprints), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def _named_method(value: Any) -> str:
    return str(value.get("name", "kd")) if isinstance(value, Mapping) else str(value)


def _explain(error: ValidationError, prefix: str = "", method: str = "") -> list[str]:
    """Every problem that pydantic found, as a sentence with its key; `method` is whose options these are."""
    sentences = []
    for problem in error.errors():
        # pydantic adds the names of union members to the place; a person wrote none of them.
        places = [str(part) for part in problem["loc"] if not str(part).startswith(("literal", "list["))]
        key = prefix + ".".join(places)
        option = key.removeprefix(prefix)
        elsewhere = prefix and any(option in one.Options.model_fields for one in all_methods().values())
        if problem["type"] == "extra_forbidden" and elsewhere:
            told = f"method {method!r} has no option {option!r} (its options: kdbert methods show {method})"
            sentences.append(f"unknown key {key!r}: {told}")
            continue
        if problem["type"] == "extra_forbidden":
            sentences.append(f"unknown key {key!r}{near_miss(key, [known for known in _known_keys() if known != key])}")
            continue
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
            message = "expected keys below it, not one value"
        value = problem["input"]
        got = f" (got {value!r})" if isinstance(value, (str, int, float)) and repr(value) not in message else ""
        names_itself = "." not in key and message.startswith(("task ", "--"))
        about = "" if names_itself else f"{key.rstrip('.') or 'recipe'}: "
        sentences.append(f"{about}{message if names_itself else message[0].lower() + message[1:]}{got}")
    return sentences


def _known_keys() -> list[str]:
    keys = []
    for name, field in Recipe.model_fields.items():
        keys.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += [f"{name}.{key}" for key in field.annotation.model_fields]
    keys += [f"teacher_training.{key}" for key in TeacherTraining.model_fields]
    keys += [f"memory.{key}" for key in MemorySection.model_fields]
    keys += [f"method.{key}" for method in all_methods().values() for key in method.Options.model_fields]
    return keys
