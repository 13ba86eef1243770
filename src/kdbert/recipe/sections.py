"""The sections of a recipe, each key with its default and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from kdbert.data.data_file import form_of
from kdbert.data.labels import alike, label_text, number
from kdbert.errors import UserError
from kdbert.metrics import our_name
from kdbert.tasks import CORPUS, CUSTOM, task_name

LARGEST_SEED = 2**32 - 1  # of numpy and torch alike


class Section(BaseModel):
    """A part of the recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TaskSection(Section):
    """Which examples are learned and scored."""

    name: str = Field("quickstart", description="task; `kdbert data list` shows them, `custom` is your own files")
    data_dir: str | None = Field(None, description="folder of the task's files")
    max_length: int | None = Field(None, ge=4, description="tokens per example; the rest is cut (default: the task's)")
    max_train_examples: int | None = Field(
        None, ge=1, description="use the first N training examples only, and all of unlabelled_file"
    )
    unlabelled_file: str | None = Field(
        None, description="further training rows, without labels: a file of texts, a folder of text files"
    )
    labelled_share: float | None = Field(
        None, ge=0, le=1, description="hide the labels of all but this share of the training rows, label by label"
    )
    labelled_seed: int = Field(1, ge=0, le=LARGEST_SEED, description="which rows labelled_share leaves their labels")
    train_file: str | None = Field(None, description="custom: training file; corpus: text file or folder (--corpus)")
    dev_file: str | None = Field(None, description="custom: dev file; corpus: dev text (default: one text in 20)")
    test_file: str | None = Field(None, description="custom: test file")
    dev_share: float | None = Field(
        None, gt=0, le=0.5, description="custom: take this share of the training file as the dev split, label by label"
    )
    dev_seed: int = Field(1, ge=0, le=LARGEST_SEED, description="which rows dev_share takes; the same for all runs")
    split_names: list[str] | None = Field(
        None, description="custom: what a saved dataset calls its training, dev and test split"
    )
    text_columns: list[str] | None = Field(None, description="custom, or of unlabelled_file: one or two columns")
    label_column: str | list[str] | None = Field(
        None, description="custom: the label's column; several columns of 0 and 1: one for each class"
    )
    label_separator: str | None = Field(None, description="custom: the sign between the classes of one text")
    kind: Literal["single-label", "multi-label", "regression", "token", "encoder"] | None = Field(
        None,
        description="custom: how to read labels (default: by their form; regression if some are fractions); corpus: "
        "encoder for general distillation, as the method says",
    )
    labels: list[str] | None = Field(
        None, min_length=2,
        description="custom: classes or tags in order (default: the training file's; where it has none, the teacher's)",
    )  # fmt: skip
    metrics: list[str] | None = Field(
        None, min_length=1, description="names of docs/metrics.md; the first selects (default: the task's own)"
    )
    text_unit: Literal["line", "document", "file"] = Field(
        "line", description="corpus: one text is a line, a document (ends at a blank line), or a file"
    )
    mask_probability: float = Field(0.15, gt=0, lt=1, description="corpus: fraction of tokens to mask")
    mask_words: bool = Field(False, description="corpus: mask whole words instead of single tokens")

    @field_validator("text_columns", "split_names", "metrics", "labels", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("labels", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return [label_text(one) or "" for one in value] if isinstance(value, list) else value

    @field_validator("labels")
    @classmethod
    def _different(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and ("" in value or len(set(value)) < len(value)):
            raise ValueError("a name is empty" if "" in value else "a name occurs twice")
        if same := alike(value or ()):
            raise ValueError(f"{same[0]!r} and {same[1]!r} count as one label")
        return value

    @field_validator("label_column", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        return parts[0] if isinstance(parts, list) and len(parts) == 1 else parts

    @field_validator("metrics")
    @classmethod
    def _exact(cls, value: list[str] | None) -> list[str] | None:
        try:
            return None if value is None else [*dict.fromkeys(map(our_name, value))]
        except UserError as error:
            raise ValueError(str(error)) from None

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
        own: tuple[str, ...] = (
            "train_file", "dev_file", "test_file", "dev_share", "split_names", "text_columns", "label_column",
            "label_separator", "kind", "labels",
        )  # fmt: skip
        if self.name not in (CUSTOM, CORPUS) and self.unlabelled_file is not None:
            own = tuple(key for key in own if key != "text_columns")
        given = [f"--{key.replace('_', '-')}" for key in own if getattr(self, key) is not None]
        if self.name == CORPUS:
            if self.train_file is None:
                raise ValueError("task 'corpus' needs your text: name a file or folder with --corpus")
            given += ["--metrics"] * (self.metrics is not None)
            given += ["--unlabelled-file"] * (self.unlabelled_file is not None)
            given += ["--labelled-share"] * (self.labelled_share is not None)
            if self.kind == "encoder":
                given.remove("--kind")
            if tables := [flag for flag in given if flag not in ("--train-file", "--dev-file")]:
                raise ValueError(f"{tables[0]} does not apply to plain text (task 'corpus')")
        elif self.name == CUSTOM:
            if self.train_file is None:
                raise ValueError("task 'custom' needs --train-file, and --dev-file or --dev-share")
            if self.kind == "encoder":
                raise ValueError("--kind encoder is of plain text (--corpus); your own rows have labels")
            if self.labels is not None and self.kind == "regression":
                raise ValueError("--labels names classes, and --kind regression has none")
        elif given:
            raise ValueError(f"{given[0]} goes with --task custom; task {self.name!r} has its own files")
        return self


class TeacherSection(Section):
    """A fine-tuned model whose outputs are learned."""

    model: str = Field(description="run folder of finetune-teacher, model folder, Hub id, or .jsonl of soft labels")
    labels: list[str] | None = Field(None, description="its labels in order, if its config has only LABEL_0, …")
    renormalise: bool = Field(False, description="soft labels: divide probabilities by their sum")

    @property
    def soft(self) -> bool:
        """Whether it is a file of soft labels, not a model."""
        return form_of(Path(self.model)) == "jsonl"

    @model_validator(mode="after")
    def _of_a_file(self) -> TeacherSection:
        if self.labels is not None and self.soft:
            raise ValueError("labels: a file of soft labels names them in every row")
        if self.renormalise and not self.soft:
            raise ValueError("renormalise: a model's outputs are no probabilities; it is for a file of soft labels")
        return self


class TeacherTraining(Section):
    """How a teacher is made when none is given.

    All students of a task share it: of `train` it takes only how things are computed (precision, bucketing, ...), not
    the student's batch size or learning rate. For anything else, use `finetune-teacher` and `--teacher`.
    """

    model: str | None = Field(None, description="model to fine-tune (default: bert-base-uncased; quickstart: its own)")
    epochs: int = Field(3, ge=1, le=1_000_000, description="passes over the training data")
    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate")
    batch_size: int = Field(32, ge=1, description="examples per optimiser step")
    seed: int = Field(1, ge=0, le=LARGEST_SEED, description="its own seed: all seeds of a student share one teacher")


class MemorySection(Section):
    """The memory that the global CKA methods read: centroids of the teacher's features over the training split."""

    file: str | None = Field(None, description="a file of `kdbert train-memory` (default: made with the keys below)")
    train: Literal["auto", "never"] = Field("auto", description="auto: make a missing memory; never: refuse the run")
    centroids: int | None = Field(None, ge=1, description="number of centroids (default: 100; 300 for mnli and qqp)")
    algorithm: Literal["kmeans", "legacy"] | None = Field(
        None,
        description="kmeans, or legacy: the published procedure (default: legacy for variant original, else kmeans)",
    )
    passes: int | None = Field(None, ge=1, description="passes over the examples, at most (default: 20; legacy: 3)")
    batch_size: int = Field(1, ge=1, description="legacy: examples per step of the running average")
    seed: int = Field(1, ge=0, le=LARGEST_SEED, description="its own seed: all seeds of a student share one memory")

    @model_validator(mode="after")
    def _file_or_how(self) -> MemorySection:
        given = self.model_fields_set - {"file"}
        made = [key for key in sorted(given) if getattr(self, key) != type(self).model_fields[key].default]
        if self.file is not None and made:
            raise ValueError(f"memory.file already names a memory, so memory.{made[0]} has no effect; keep one of them")
        return self


class StudentSection(Section):
    """The model that is trained."""

    model: str | None = Field(None, description="run, model folder or Hub id; a config.json: random weights")
    tokenizer: str | None = Field(None, description="such as `kdbert expand-vocab` makes (default: the model's own)")
    layers: int | None = Field(None, ge=1, description="keep this many encoder layers")
    init: Literal["first", "last", "even"] | list[int] = Field(
        "first", description="which layers to keep: first, last, even, or their numbers from 1"
    )

    freeze_embeddings: bool = Field(False, description="do not train what comes before the first layer")

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
                raise ValueError("init: layer numbers start at 1, each at most once")
        return self


def _share_or_steps(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError(f"expected a share below 1 or a whole number of steps (got {value:g})")
    return value


Warmup = Annotated[float, Field(ge=0), AfterValidator(_share_or_steps)]
Schedule = Literal["linear", "constant", "cosine"]


class TrainSection(Section):
    """The optimisation. Defaults follow the published GLUE scripts of BERT distillation."""

    epochs: int = Field(3, ge=1, le=1_000_000, description="passes over the training data")
    batch_size: int = Field(32, ge=1, description="examples per optimiser step, over all processes")
    batch_tokens: int | None = Field(
        None, ge=1, description="about so many tokens per step, in place of batch_size examples"
    )
    accumulation: int = Field(1, ge=1, description="micro-batches per step")
    eval_batch_size: int = Field(64, ge=1, description="examples per batch of evaluation and of the teacher pass")
    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate")
    schedule: Schedule = Field("linear", description="linear and cosine decay to 0")
    warmup: Warmup = Field(0.0, description="warm-up: a fraction of all steps if below 1, else a number of steps")
    weight_decay: float = Field(0.0, ge=0, description="not applied to biases and LayerNorm")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of AdamW's mean of gradients")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of AdamW's mean of squared gradients")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    max_grad_norm: float = Field(1.0, ge=0, description="clip gradients to this norm; 0: never")
    dropout: float | None = Field(None, ge=0, lt=1, description="every dropout rate of the student (default: its own)")
    max_steps: int | None = Field(None, ge=1, description="stop after this many steps, where the schedule ends too")
    selection: Literal["last", "best"] = Field("last", description="weights to keep: the last, or the best on dev")
    patience: int | None = Field(
        None, ge=1, description="stop after this many epochs without a better dev score (with selection=best)"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the encoder; losses are always fp32 (fp16 scales the loss and is never chosen by auto)"
    )
    bucketing: bool = Field(False, description="batch examples of similar length: less padding, less random batches")
    batch_sampler: Literal["random", "class-balanced"] = Field(
        "random", description="class-balanced: groups of one class"
    )
    unlabelled_share: float | None = Field(
        None, ge=0, lt=1, description="of each batch, rows without a label; an epoch is then a pass over the labelled "
        "rows, and 0 leaves the others out (default: as the rows lie)"
    )  # fmt: skip
    examples_per_class: int = Field(4, ge=1, description="class-balanced: examples per group")
    class_weights: Literal["balanced"] | dict[str, float] | None = Field(
        None, description="of the hard loss: balanced, or a weight for each label: {no: 1, yes: 3}"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="of the hard loss: share of a label that is spread evenly over all classes"
    )
    teacher_cache: bool = Field(True, description="run the teacher once before training instead of at every step")
    attention: Literal["auto", "kdbert", "eager", "sdpa"] = Field(
        "auto", description="attention function; auto: kdbert's on a CPU, torch's sdpa elsewhere"
    )
    fast_dropout: bool = Field(True, description="on a CPU: dropout from 16 random bits (rate rounded to 1/65536)")
    used_rows: bool = Field(True, description="train only word vectors that occur; same result (off with weight_decay)")
    first_token: bool = Field(True, description="the last layer computes only the first token, where no other is read")
    packing: bool = Field(True, description="on a CPU: compute no padding between embeddings and head")
    fused_layers: bool = Field(True, description="where padding is not computed: each encoder layer in one piece")
    cache_precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of a teacher's hidden states on disk; bf16 takes half the space and rounds them"
    )
    cache_gib: float = Field(20.0, ge=0, description="GiB that stored teacher outputs may take in a runs folder")
    logging_steps: int = Field(20, ge=1, description="log losses every this many steps")
    checkpoint_steps: int = Field(500, ge=1, description="save a checkpoint every so many steps, and after every epoch")

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        return value if value in (None, "balanced") else weights_of(value)

    @model_validator(mode="after")
    def _micro(self) -> TrainSection:
        if self.patience is not None and self.selection != "best":
            raise ValueError("patience needs selection=best")
        if self.batch_tokens is not None and self.batch_sampler == "class-balanced":
            raise ValueError(
                "batch_tokens does not go with batch_sampler=class-balanced, whose batches have batch_size"
            )
        if self.batch_tokens is not None and self.unlabelled_share:
            raise ValueError("batch_tokens does not go with unlabelled_share, which is a part of batch_size")
        if self.unlabelled_share and not 0 < self.unlabelled_rows < self.batch_size:
            raise ValueError(
                f"unlabelled_share={self.unlabelled_share:g} of batch_size={self.batch_size} is {self.unlabelled_rows} "
                "rows; a batch needs rows with a label and rows without"
            )
        if self.accumulation > self.batch_size and self.batch_tokens is None:
            raise ValueError(f"accumulation ({self.accumulation}) is larger than batch_size ({self.batch_size})")
        if self.batch_sampler == "class-balanced" and self.batch_size % (self.accumulation * self.examples_per_class):
            micro = f" in each of {self.accumulation} micro-batches" if self.accumulation > 1 else ""
            per_class = f"examples_per_class ({self.examples_per_class}){micro}"
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of {per_class}")
        return self

    @property
    def unlabelled_rows(self) -> int:
        """Rows without a label in each batch, where `unlabelled_share` says how many."""
        return round((self.unlabelled_share or 0) * self.batch_size)


class StageSection(Section):
    """How one stage of a method with two stages is trained, where that differs from `train`."""

    epochs: int | None = Field(None, ge=1, le=1_000_000, description="passes over the training data")
    learning_rate: float | None = Field(None, gt=0, description="peak learning rate")
    schedule: Schedule | None = Field(None, description="linear and cosine decay to 0")
    warmup: Warmup | None = Field(None, description="as train.warmup")


def weights_of(value: Any) -> dict[str, float]:
    """Label -> weight, from a mapping or from a text such as `no=1,yes=3`; labels are matched as in data files."""
    if isinstance(value, str):
        pairs = [tuple(part.split("=")) for part in value.split(",")]
    else:
        pairs = [*value.items()] if isinstance(value, Mapping) else []
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            "expected balanced, or a weight for each label such as no=1,yes=3 (labels with a comma or = go into a "
            'recipe: class_weights: {"a,b": 1, c: 3})'
        )
    found: dict[str, float] = {}
    for given, weight in pairs:
        label, factor = label_text(given), number(str(weight).strip())
        if label is None or label in found:
            raise ValueError("a label is empty" if label is None else f"label {label!r} is named twice")
        if factor is None or factor < 0:
            raise ValueError(f"the weight of {label!r} is {weight!r}; expected a finite number, 0 or more")
        found[label] = factor
    if not any(found.values()):
        raise ValueError("every weight is 0, so that nothing would be learned from labels")
    return found


def warmup_steps(warmup: float, total: int) -> int:
    """Steps of warm-up: `warmup` itself, or that share of all steps where it is below 1."""
    return round(warmup if warmup >= 1 else warmup * total)


class OutputSection(Section):
    """Where results go. Nothing here changes a number."""

    runs_dir: str = Field("runs", description="root of the run folders")
    dir: str | None = Field(None, description="folder of this run (default: a name made from the recipe)")
    tracker: list[str] = Field(default_factory=list, description="accelerate trackers besides TensorBoard")
    keep_checkpoints: bool = Field(False, description="keep checkpoints of a finished run")
    diagnose: bool = Field(False, description="compare student and teacher inside; draw a heat map at the end")
