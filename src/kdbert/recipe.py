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
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from kdbert.errors import UserError, near_miss
from kdbert.keys import ADDED_LATER, FILES_BY_CONTENT, OUTSIDE_IDENTITY, put
from kdbert.methods import MethodOptions, all_methods, get_method, source_of
from kdbert.tasks import CORPUS, CUSTOM, get_task, task_name

MOST_YAML = 1_000_000  # values and characters of a YAML text, each alias counted as what it stands for

LARGEST_SEED = 2**32 - 1  # of numpy and torch alike


class Section(BaseModel):
    """A part of the recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def split_names(value: Any) -> Any:
    """`a, b` as a list; anything else as it is."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class TaskSection(Section):
    """Which examples are learned and scored."""

    name: str = Field("quickstart", description="task; `kdbert data list` shows them, `custom` is your own files")
    data_dir: str | None = Field(None, description="folder of the task's files")
    max_length: int | None = Field(None, ge=4, description="tokens per example, longer ones are cut (task's default)")
    max_train_examples: int | None = Field(None, ge=1, description="use the first N training examples only")
    train_file: str | None = Field(
        None, description="custom: training file; corpus: a text file, or a folder of such (flag --corpus)"
    )
    dev_file: str | None = Field(None, description="custom: dev file; corpus: text of its own (one in 20 of corpus)")
    test_file: str | None = Field(None, description="custom: test file")
    text_columns: list[str] | None = Field(None, description="custom: one or two columns")
    label_column: str | None = Field(None, description="custom: the label's column")
    kind: Literal["single-label", "regression"] | None = Field(
        None, description="custom: how labels are read, single-label or regression (scores if some are not whole)"
    )
    text_unit: Literal["line", "document", "file"] = Field(
        "line", description="corpus: what one text is: a line, a document (lines up to a blank one), or a file"
    )
    mask_probability: float = Field(0.15, gt=0, lt=1, description="corpus: share of the tokens that are hidden")
    mask_words: bool = Field(False, description="corpus: hide whole words instead of single tokens")

    @field_validator("text_columns", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return split_names(value)

    @field_validator("kind", mode="before")
    @classmethod
    def _hyphen(cls, value: Any) -> Any:
        return value.replace("_", "-") if isinstance(value, str) else value  # `kdbert data list` says single_label

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            return task_name(value)
        except UserError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _files(self) -> TaskSection:
        files = {"train_file": self.train_file, "dev_file": self.dev_file}
        of_tables = ("test_file", "text_columns", "label_column", "kind")
        if self.name == CORPUS:
            if self.train_file is None:
                raise ValueError("task 'corpus' is plain text of yours: name a file or folder with --corpus")
            tables = [k for k in of_tables if getattr(self, k) is not None]
            if tables:
                raise ValueError(f"--{tables[0].replace('_', '-')} says nothing of plain text (task 'corpus')")
        elif self.name == CUSTOM:
            missing = [key.replace("_", "-") for key, value in files.items() if value is None]
            if missing:
                raise ValueError(f"task 'custom' needs {' and '.join('--' + key for key in missing)}")
        else:
            given = [k for k in (*files, *of_tables) if getattr(self, k) is not None]
            if given:
                raise ValueError(
                    f"--{given[0].replace('_', '-')} goes with --task custom; task {self.name!r} has its own files"
                )
        return self


class TeacherSection(Section):
    """A fine-tuned model whose outputs are learned."""

    model: str = Field(description="run folder of finetune-teacher, model folder, or Hub id")
    labels: list[str] | None = Field(None, description="its labels in order, where its config has only LABEL_0, …")


class TeacherTraining(Section):
    """How a teacher is made when none is given.

    It is one for all students of a task: of `train` it takes only how things are computed (precision,
    bucketing, accumulation, eval_batch_size), so that another batch size, warm-up or rate of the student does not mean
    another teacher. For anything else, make it with `finetune-teacher` and name it with `--teacher`.
    """

    model: str | None = Field(
        None, description="pretrained model to fine-tune (bert-base-uncased; the quickstart's own)"
    )
    epochs: int = Field(3, ge=1, le=1_000_000, description="passes over the training data")
    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate")
    batch_size: int = Field(32, ge=1, description="examples per optimiser step")
    seed: int = Field(1, ge=0, le=LARGEST_SEED, description="its own, so that all seeds of a student share one teacher")


class MemorySection(Section):
    """The memory that the global CKA methods read: centroids of the teacher's features over the training split."""

    file: str | None = Field(
        None, description="a memory that `kdbert train-memory` made; else one is made by these keys"
    )
    train: Literal["auto", "never"] = Field("auto", description="make a missing memory, or refuse the run")
    centroids: int | None = Field(None, ge=1, description="K (100; 300 for mnli and qqp)")
    algorithm: Literal["kmeans", "legacy"] | None = Field(
        None, description="kmeans, or legacy: the published procedure (kmeans; legacy for variant original)"
    )
    passes: int | None = Field(
        None, ge=1, description="passes over the training split, at most (kmeans: 20; legacy: 3, as published)"
    )
    batch_size: int = Field(1, ge=1, description="legacy: examples that count as one step of the running average")
    seed: int = Field(
        1,
        ge=0,
        le=LARGEST_SEED,
        description="of the first centroids; its own, so that all seeds of a student share one",
    )

    @model_validator(mode="after")
    def _file_or_how(self) -> MemorySection:
        given = self.model_fields_set - {"file"}
        made = [key for key in sorted(given) if getattr(self, key) != type(self).model_fields[key].default]
        if self.file is not None and made:
            raise ValueError(f"memory.file names a memory, so memory.{made[0]} says nothing; keep one of them")
        return self


class StudentSection(Section):
    """The model that is trained."""

    model: str | None = Field(
        None,
        description="model folder, run folder or Hub id it starts from; or a configuration (.json), drawn at random",
    )
    tokenizer: str | None = Field(
        None, description="tokenizer folder or Hub id, such as `kdbert expand-vocab` makes (the model's own)"
    )
    layers: int | None = Field(None, ge=1, description="keep this many encoder layers")
    init: Literal["first", "last", "even"] | list[int] = Field(
        "first", description="which layers are kept: first, last, even, or their numbers from 1"
    )

    @field_validator("init", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("first", "last", "even"):
            parts = [part.strip() for part in value.split(",")]
            if not all(part.isdigit() for part in parts):
                raise ValueError("expected first, last, even or layer numbers such as 1,3,5")
            return [int(part) for part in parts]
        return [value] if isinstance(value, int) else value

    @model_validator(mode="after")
    def _agree(self) -> StudentSection:
        if isinstance(self.init, list):
            if self.layers is not None and self.layers != len(self.init):
                raise ValueError(f"layers is {self.layers}, but init names {len(self.init)} layers")
            if len(set(self.init)) != len(self.init) or min(self.init, default=0) < 1:
                raise ValueError("init: layer numbers start at 1 and stand once each")
        return self


class TrainSection(Section):
    """The optimisation. Defaults follow the published GLUE scripts of BERT distillation."""

    epochs: int = Field(3, ge=1, le=1_000_000, description="passes over the training data")
    batch_size: int = Field(32, ge=1, description="examples per optimiser step, over all processes")
    accumulation: int = Field(1, ge=1, description="micro-batches that a step is cut into")
    eval_batch_size: int = Field(64, ge=1, description="examples per batch of evaluation and of the teacher pass")
    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate")
    schedule: Literal["linear", "constant", "cosine"] = Field("linear", description="linear and cosine fall to 0")
    warmup: float = Field(
        0.0, ge=0, description="steps in which the rate rises from 0: a share of all (below 1), or their number"
    )
    weight_decay: float = Field(0.0, ge=0, description="not applied to biases and LayerNorm")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of AdamW's mean of gradients")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of AdamW's mean of squared gradients")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are scaled down to this norm; 0: never")
    dropout: float | None = Field(None, ge=0, lt=1, description="set every dropout rate of the student; else its own")
    max_steps: int | None = Field(None, ge=1, description="stop after this many steps; the schedule ends there too")
    selection: Literal["last", "best"] = Field("last", description="which weights are kept: last, or best on dev")
    patience: int | None = Field(
        None, ge=1, description="stop after so many epochs without a better dev score (goes with selection=best)"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the encoder; losses are always fp32 (fp16: with the loss scaled; auto never takes it)"
    )
    bucketing: bool = Field(False, description="batches of like length: less padding, but less random batches")
    batch_sampler: Literal["random", "class-balanced"] = Field(
        "random", description="class-balanced: batches are put together from groups of one class (of any length)"
    )
    examples_per_class: int = Field(4, ge=1, description="class-balanced: size of a group")
    teacher_cache: bool = Field(True, description="one teacher pass before training instead of one per step")
    attention: Literal["auto", "kdbert", "eager", "sdpa"] = Field(
        "auto", description="attention function; auto: kdbert's on a CPU, torch's sdpa elsewhere"
    )
    fast_dropout: bool = Field(True, description="on a CPU: dropout by 15 random bits an element (rate to 1/32768)")
    used_rows: bool = Field(
        True, description="train the word embedding's rows that the data uses; the same result (not with weight_decay)"
    )
    first_token: bool = Field(
        True, description="the last layer computes the first token only, where nothing else of it is read"
    )
    packing: bool = Field(
        True, description="on a CPU: between embeddings and head compute real tokens only, no padding"
    )
    cache_precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of a teacher's hidden states on the disk; bf16 takes half the room and rounds them"
    )
    cache_gib: float = Field(20.0, ge=0, description="GiB that the teacher outputs of a runs folder may take")
    cache_for: list[str] = Field(
        default_factory=list,
        description="kdbert's methods whose share of a teacher pass is kept, too, at their defaults (a sweep sets it)",
    )
    logging_steps: int = Field(20, ge=1, description="write losses every so many steps")
    checkpoint_steps: int = Field(500, ge=1, description="save a checkpoint this often, and after every epoch")

    @field_validator("cache_for", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return split_names(value)

    @field_validator("warmup")
    @classmethod
    def _share_or_steps(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError(f"expected a share below 1 or a whole number of steps (got {value:g})")
        return value

    @model_validator(mode="after")
    def _micro(self) -> TrainSection:
        if self.patience is not None and self.selection != "best":
            raise ValueError("patience waits for a better dev score, so it goes with selection=best")
        if self.accumulation > self.batch_size:
            raise ValueError(f"accumulation ({self.accumulation}) is larger than batch_size ({self.batch_size})")
        if self.batch_sampler == "class-balanced" and self.examples_per_class > self.batch_size // self.accumulation:
            raise ValueError(
                f"examples_per_class ({self.examples_per_class}) is larger than a batch "
                f"({self.batch_size // self.accumulation})"
            )
        if self.batch_sampler == "class-balanced" and self.batch_size % (self.accumulation * self.examples_per_class):
            raise ValueError(
                f"class-balanced batches are made of groups of examples_per_class ({self.examples_per_class}), so "
                f"batch_size ({self.batch_size}) must be a multiple of it"
                + (f" in each of {self.accumulation} micro-batches" if self.accumulation > 1 else "")
            )
        return self


def warmup_steps(warmup: float, total: int) -> int:
    """Steps of warm-up: `warmup` itself, or that share of all steps where it is below 1."""
    return round(warmup if warmup >= 1 else warmup * total)


class OutputSection(Section):
    """Where results go. Nothing here changes a number."""

    runs_dir: str = Field("runs", description="root of the run folders")
    dir: str | None = Field(None, description="this very run's folder, instead of a name made from the recipe")
    tracker: list[str] = Field(default_factory=list, description="accelerate trackers besides TensorBoard")
    keep_checkpoints: bool = Field(False, description="keep checkpoints of a finished run")
    diagnose: bool = Field(
        False, description="log how alike student and teacher are inside; draw a heat map at the end"
    )


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
        for key, default in ADDED_LATER.items():
            section, _, name = key.partition(".")
            part = tree[section] if name else tree
            if part[name or section] == default:
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


class _StrictLoader(yaml.SafeLoader):
    """YAML's plain values; a key that stands twice in a mapping is an error instead of the last one winning, and so is
    text that says far more than it is long, through aliases (`*a`) of aliases.
    """

    def get_single_node(self) -> yaml.Node | None:
        """The whole of the text, each alias counted as often as it is reached, before anything is made of it."""
        root = super().get_single_node()
        left, waiting = MOST_YAML, [] if root is None else [root]
        while waiting:
            node = waiting.pop()
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in node.value for part in pair]
            left -= len(parts) or len(node.value) + 1
            if left < 0:
                raise ValueError(
                    f"written out it has more than {MOST_YAML:,} values and characters (does an alias stand for a "
                    "value that holds itself, or for very many others?)"
                )
            waiting += parts
        return root

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
        for name, count in names.items():
            if count > 1:
                raise ValueError(f"the key {name!r} stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """YAML text as plain values; no tag constructs an object.

    Raises:
        ValueError: it is no YAML, a value holds itself (`&a [*a]`), or aliases make it longer than `MOST_YAML`.
    """
    try:
        value = yaml.load(text, Loader=_StrictLoader)
        json.dumps(value, default=str, skipkeys=True)  # what cannot be written down later is refused now
    # PyYAML raises more than its own errors: `2001-99-99` is a ValueError, `!!bool x` a KeyError, and so on.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of keys and values.

    Raises:
        UserError: no such file, not readable, not YAML, not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no recipe {str(path)!r}: check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"cannot read recipe {str(path)!r}: it is no text in UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read recipe {str(path)!r}: {error.strerror}") from None
    try:
        content = load_yaml(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} is not a recipe: expected keys such as task, method, train")
    return content


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
        others = [one.name for one in all_methods().values() if prefix and option in one.Options.model_fields]
        if problem["type"] == "extra_forbidden" and others:
            sentences.append(
                f"unknown key {key!r}: method {method!r} has no option {option!r} ({', '.join(others)} has)"
            )
            continue
        if problem["type"] == "extra_forbidden":
            sentences.append(f"unknown key {key!r}{near_miss(key, [known for known in _known_keys() if known != key])}")
            continue
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
            message = "expected keys below it, not one value"
        value = problem["input"]
        got = f" (got {value!r})" if isinstance(value, (str, int, float)) and repr(value) not in message else ""
        sentences.append(f"{key.rstrip('.') or 'recipe'}: {message[0].lower() + message[1:]}{got}")
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
