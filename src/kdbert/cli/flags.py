"""Every flag that sets a recipe key, in one table: to find the flag of a key, or the key of a flag, search this file.

`distill`, `finetune-teacher`, `train-memory`, `sweep` and `data describe` take their flags from here. A new flag is one
line.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from kdbert.cli.options import split_list
from kdbert.errors import UserError


@dataclass(frozen=True)
class Flag:
    """A flag and the recipe key that it sets."""

    names: str  # what is typed: `--flag`, with a short form `--flag -f`, or a pair `--flag/--no-flag`
    key: str  # dotted
    type: Any  # of its value; a flag of a list may be repeated
    help: str  # one sentence, with the default in brackets

    @property
    def name(self) -> str:
        """Its first name: `--flag`."""
        return self.names.split()[0].partition("/")[0]

    @property
    def parameter(self) -> str:
        """Its name in Python."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def option(self) -> Any:
        """The type that typer reads."""
        return Annotated[self.type | None, typer.Option(*self.names.split(), help=self.help)]


METHOD = (
    Flag("--method -m", "method.name", str, "Objective; `kdbert methods` lists them. [kd]"),
    Flag("--variant", "method.variant", str, "corrected, or original: the published code with its quirks. [corrected]"),
    Flag("--layer-map", "method.layer_map", str, "Layers to compare, teacher:student: 2:1,4:2. [the method's]"),
    Flag("--memory", "memory.file", str, "For cka-g and cka-ilg: a file of `kdbert train-memory`. [made first]"),
)
TASK = (
    Flag("--task", "task.name", str, "Task; `kdbert data list` shows them. [quickstart]"),
    Flag("--data-dir", "task.data_dir", str, "Folder of the data. [$KDBERT_DATA_DIR, else data; glue_data for GLUE]"),
    Flag("--max-length", "task.max_length", int, "Tokens per example; longer texts are cut. [the task's]"),
    Flag("--train-file", "task.train_file", str, "--task custom: csv, tsv, jsonl, parquet, conll, or a saved dataset."),
    Flag("--dev-file", "task.dev_file", str, "--task custom: dev data, in the same form."),
    Flag("--dev-share", "task.dev_share", float, "--task custom: take this share of the training file as dev data."),
    Flag("--test-file", "task.test_file", str, "--task custom: test data, in the same form."),
    Flag("--split-names", "task.split_names", str, "--task custom: of a saved dataset. [train,validation,test]"),
    Flag("--text-columns", "task.text_columns", str, "--task custom: one or two columns, a,b. [by name]"),
    Flag("--label-column", "task.label_column", str, "--task custom: of the labels; several: a 0 or 1 each. [by name]"),
    Flag("--label-separator", "task.label_separator", str, "--task custom: the sign between several classes: '|'."),
    Flag("--labels", "task.labels", str, "--task custom: the classes in order, a,b. [those of the training file]"),
    Flag("--kind", "task.kind", str, "--task custom: single-label, multi-label, regression, or token. [by form]"),
)
UNLABELLED = (
    Flag("--unlabelled-file", "task.unlabelled_file", str, "More training texts, without labels; or a folder of them."),
)
CORPUS = (Flag("--corpus", "task.train_file", str, "--task corpus: a text file or a folder of them, a text per line."),)
TEACHER = (
    Flag("--teacher", "teachers", list[str], "Run, model, Hub id or soft labels (.jsonl); repeatable. [made first]"),
    Flag("--teacher-labels", "teachers", str, "The teacher's labels in the order of its outputs: a,b,c."),
    Flag("--teacher-model", "teacher_training.model", str, "The model to fine-tune first. [bert-base-uncased]"),
)
TEACHER_CACHE = (
    Flag("--teacher-cache/--no-teacher-cache", "train.teacher_cache", bool, "Run the teacher once, keep outputs. [on]"),
)
STUDENT = (
    Flag("--student", "student.model", str, "Run, model folder, Hub id, or a config.json. [the teacher's base, cut]"),
    Flag("--student-layers", "student.layers", int, "Encoder layers to keep. [half, or every one of --student]"),
    Flag("--student-init", "student.init", str, "Which layers to keep: first, last, even, or 1,3,5. [first]"),
)
MODEL = (Flag("--model", "student.model", str, "Run, model folder or Hub id to fine-tune. [quickstart: its own]"),)
TOKENIZER = (Flag("--tokenizer", "student.tokenizer", str, "Such as `kdbert expand-vocab` makes. [the model's own]"),)
PRECISION = (Flag("--precision", "train.precision", str, "Of the encoder: auto, fp32, bf16 or fp16. [auto]"),)
TRAINING = (
    Flag("--labelled-share", "task.labelled_share", float, "Hide the labels of all other training rows. [1]"),
    Flag("--metrics", "task.metrics", str, "Metrics of docs/metrics.md, a,b; the first selects. [the task's]"),
    Flag("--epochs", "train.epochs", int, "Passes over the training data. [3; quickstart 8]"),
    Flag("--batch-size", "train.batch_size", int, "Examples per step, over all processes. [32]"),
    Flag("--learning-rate", "train.learning_rate", float, "Peak rate. [5e-5; quickstart 3e-4; corpus 5e-4]"),
    *PRECISION,
    Flag("--bucketing/--no-bucketing", "train.bucketing", bool, "Batch examples of similar length. [off]"),
    Flag("--batch-sampler", "train.batch_sampler", str, "random, or class-balanced: groups of one class. [random]"),
    Flag("--class-weights", "train.class_weights", str, "Of the hard loss: balanced, or no=1,yes=3. [all alike]"),
    Flag("--label-smoothing", "train.label_smoothing", float, "Of the hard loss: from 0 to below 1. [0]"),
)
SEED = (Flag("--seed", "seed", int, "Seed of the head, the data order and dropout. [1]"),)
RUNS_DIR = (Flag("--runs-dir", "output.runs_dir", str, "Root of the run folders; handles are looked up here. [runs]"),)
OUTPUT_DIR = (Flag("--output-dir", "output.dir", str, "This run's folder. [a name made from the recipe]"),)
TRACKER = (Flag("--tracker", "output.tracker", list[str], "Also log to wandb, mlflow, …; may be repeated."),)
DIAGNOSE = (Flag("--diagnose", "output.diagnose", bool, "Compare student and teacher inside; draw a heat map."),)
CENTROIDS = (
    Flag("--centroids", "memory.centroids", int, "Number of clusters. [100; 300 for mnli and qqp]"),
    Flag("--algorithm", "memory.algorithm", str, "kmeans, or legacy: as published, padding included. [kmeans]"),
    Flag("--passes", "memory.passes", int, "Passes over the examples, at most. [20; legacy 3]"),
    Flag("--seed", "memory.seed", int, "Seed of the first centroids. [1]"),
)
STUDENTS_RUN = (
    *METHOD, *TASK, *UNLABELLED, *CORPUS, *TEACHER, *TEACHER_CACHE, *STUDENT, *TOKENIZER, *TRAINING, *RUNS_DIR,
    *TRACKER, *DIAGNOSE,
)  # fmt: skip


def takes(*groups: tuple[Flag, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these flags; its first parameter, `keys`, is what was typed, by recipe key."""
    flags = {flag.parameter: flag for group in groups for flag in group}

    def with_flags(command: Callable[..., None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            typed = {flag: value for name, flag in flags.items() if (value := values.pop(name)) not in (None, [])}
            try:
                command(recipe_keys(typed), **values)
            except UserError as error:
                error.args = (as_typed(str(error), typed),)
                raise

        _, *others = inspect.signature(command, eval_str=True).parameters.values()
        keyword = inspect.Parameter.KEYWORD_ONLY
        own = [inspect.Parameter(name, keyword, default=None, annotation=one.option) for name, one in flags.items()]
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*own, *(one.replace(kind=keyword) for one in others)]
        )
        run.__doc__ = command.__doc__
        return run

    return with_flags


def as_typed(sentence: str, flags: Iterable[Flag]) -> str:
    """A sentence about recipe keys with the flags that set them: `--epochs=0: …` for `train.epochs=0: …`."""
    for flag in flags:
        sentence = sentence.replace(f"unknown key {flag.key!r}:", f"{flag.name}:")
        sentence = re.sub(rf"(?<![\w.]){re.escape(flag.key)}(?=[=:])", flag.name, sentence)
    return sentence


def recipe_keys(typed: Mapping[Flag, Any]) -> dict[str, Any]:
    """Recipe key -> value, of the flags that were given; those that exclude each other are refused."""
    given = {flag.parameter: value for flag, value in typed.items()}
    keys = {flag.key: value for flag, value in typed.items()}
    if "corpus" in given:
        if "train_file" in given:
            raise typer.BadParameter("cannot be combined with --train-file", param_hint="--corpus")
        if given.get("task", "corpus") != "corpus":
            raise typer.BadParameter(f"is for --task corpus, not {given['task']}", param_hint="--corpus")
        keys["task.name"] = "corpus"
    if "teacher" in given:
        if "teacher_model" in given:
            raise typer.BadParameter("cannot be combined with --teacher", param_hint="--teacher-model")
        labels = split_list(given.get("teacher_labels"))
        keys["teachers"] = [{"model": model, "labels": labels} for model in given["teacher"]]
    elif "teacher_labels" in given:
        raise typer.BadParameter("needs --teacher", param_hint="--teacher-labels")
    return keys
