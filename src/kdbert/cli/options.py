"""Flags that several commands share. A flag that decides a run has the name of its recipe key in `FLAGS`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbert.errors import UserError, printable

if TYPE_CHECKING:
    from kdbert.recipe import Recipe
    from kdbert.runs.folder import RunResult

log = logging.getLogger("kdbert")
Task = Annotated[str | None, typer.Option(help="Task; `kdbert data list` shows them. [quickstart]")]
DataDir = Annotated[str | None, typer.Option(help="Folder with the task's files. [glue_data for GLUE, else data]")]
RunsDataDir = Annotated[str | None, typer.Option(help="Folder with the task's files. [the runs' own]")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens per example; longer ones are cut. [task's]")]
TrainFile = Annotated[str | None, typer.Option(help="--task custom: csv, tsv, jsonl, parquet, or a saved dataset.")]
DevFile = Annotated[str | None, typer.Option(help="--task custom: dev file of the same form.")]
TestFile = Annotated[str | None, typer.Option(help="--task custom: test file of the same form.")]
Corpus = Annotated[
    str | None, typer.Option(help="Plain text, one text per line: a file or a folder of .txt files (task corpus).")
]
Tokenizer = Annotated[
    str | None, typer.Option(help="Tokenizer of the model, such as one of `kdbert expand-vocab`. [the model's own]")
]
TextColumns = Annotated[str | None, typer.Option(help="--task custom: one or two columns, a,b. [by name]")]
LabelColumn = Annotated[str | None, typer.Option(help="--task custom: the label's column. [by name]")]
Kind = Annotated[
    str | None, typer.Option(help="--task custom: single-label, or regression. [scores if some are not whole]")
]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training data. [3; quickstart 8]")]
BatchSize = Annotated[int | None, typer.Option(help="Examples per step, over all processes. [32]")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate. [5e-5; quickstart 3e-4; corpus 5e-4]")]
Precision = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16, of the encoder. [auto]")]
Bucketing = Annotated[bool | None, typer.Option("--bucketing/--no-bucketing", help="Batches of like length. [off]")]
Seed = Annotated[int | None, typer.Option(help="Seed of head, data order and dropout. [1]")]
Config = Annotated[Path | None, typer.Option(help="Recipe (YAML); flags and --set come on top.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set any recipe key: train.warmup=0.1")
]
More = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="More recipe keys, as after --set.")]
RunsDir = Annotated[str | None, typer.Option(help="Root of the run folders. [runs]")]
OutputDir = Annotated[str | None, typer.Option(help="This run's folder, instead of a name made from the recipe.")]
TeacherLabels = Annotated[str | None, typer.Option(help="The teacher's labels in its order, a,b,c.")]
TeacherModel = Annotated[
    str | None,
    typer.Option(help="Without --teacher: the model to fine-tune first. [bert-base-uncased; quickstart: its own]"),
]
BatchSampler = Annotated[
    str | None, typer.Option(help="random, or class-balanced: groups of examples of one class. [random]")
]
Plugin = Annotated[
    list[str] | None, typer.Option(help="Python file that defines methods; it is run. (May be repeated.)")
]
Tracker = Annotated[
    list[str] | None, typer.Option(help="Also log to wandb, mlflow, … (what accelerate offers; may be repeated).")
]
PushToHub = Annotated[
    str | None, typer.Option(metavar="OWNER/NAME", help="Upload the model to the Hub at the end; private if it is new.")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check everything, print the resolved recipe and cost, train nothing."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Move an existing run of this name aside and train again.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the run folder.")]
Where = Annotated[
    list[str] | None, typer.Option(metavar="KEY=A,…", help="Only runs with one of these values; may be repeated.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class _Printable(logging.Formatter):
    """Names of labels and files come from data, and a terminal does what is in them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def start(quiet: bool) -> None:
    """Send progress to stderr: everything, or warnings only."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Printable("%(message)s"))
    logging.getLogger("kdbert").setLevel(logging.WARNING if quiet or not main_process() else logging.INFO)


def split_list(text: str | None) -> list[str] | None:
    """`a,b` as a list."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def where_of(words: list[str] | None) -> dict[str, str]:
    """The values by which --where chooses runs, key -> value.

    Raises:
        UserError: a word without an equals sign.
    """

    wanted = {}
    for text in words or []:
        key, sign, value = text.partition("=")
        if not sign:
            raise UserError(f"--where {text!r}: expected KEY=VALUE, such as train.learning_rate=0.0002")
        wanted[key.strip()] = value.strip()
    return wanted


def teachers(paths: list[str] | None, labels: str | None, model: str | None) -> list[dict[str, Any]] | None:
    """The recipe's teachers from the flags --teacher, --teacher-labels, --teacher-model.

    Raises:
        typer.BadParameter: flags that do not go together.
    """
    if labels is not None and not paths:
        raise typer.BadParameter("goes with --teacher", param_hint="--teacher-labels")
    if model is not None and paths:
        raise typer.BadParameter("is for making a teacher; with --teacher there is one", param_hint="--teacher-model")
    return [{"model": path, "labels": split_list(labels)} for path in paths] if paths else None


def student_model(model: str | None, configuration: str | None) -> str | None:
    """The recipe key for --student or --student-config.

    Raises:
        typer.BadParameter: both are given.
    """
    if model is not None and configuration is not None:
        raise typer.BadParameter("and --student both say what the student starts from", param_hint="--student-config")
    return model if configuration is None else configuration


def load_plugins(paths: list[str] | None) -> None:
    """Register the methods of the files that the person names."""
    if paths:
        from kdbert.methods import load_plugin

        for path in paths:
            load_plugin(path)


def build_recipe(
    config: Path | None, flags: Mapping[str, Any], sets: list[str] | None, more: list[str] | None
) -> Recipe:
    """The recipe of a command line.

    Raises:
        UserError: all problems at once.
    """
    from kdbert.recipe import Recipe

    return Recipe.build(config=config, flags=flags, sets=[*(sets or []), *(more or [])])


def check_push(repository: str | None) -> None:
    """Refuse early what `push` would refuse.

    Raises:
        UserError: no `owner/name`, no network wanted, or nobody is logged in.
    """
    if repository is not None:
        from kdbert.hub import check_repository

        check_repository(repository)


def push(folder: Path, repository: str | None) -> None:
    """Upload a model folder, if that was asked for.

    Raises:
        PushFailed: the Hub refused.
    """
    if repository is not None and main_process():
        from kdbert.hub import push as upload

        upload(folder, repository)


def main_process() -> bool:
    """Whether this is the process that prints (the first one, under torchrun)."""
    import os

    return os.environ.get("RANK", "0") == "0"


def print_results(title: str, rows: list[Any], result: RunResult, quiet: bool) -> None:
    """The closing table, what has to be said of it, and the path of the run; only the path with `--quiet`."""
    if not main_process():
        return
    print_scores(title, rows, result.manifest.get("constant_answer", {}), result.selection, quiet)
    print(result.path if quiet else f"run: {result.path}")


def print_scores(
    title: str, rows: list[Any], constant: Mapping[str, Mapping[str, float]], selection: str, quiet: bool
) -> None:
    """A table of models with the constant answer below, and which of them show nothing learned; with `--quiet` only
    that, on stderr.
    """
    from kdbert.reporting.summary import constant_row, print_table, remarks, summary_tables

    if not quiet and any(row.metrics for row in rows):
        print_table(*summary_tables(title, [*rows, *constant_row(constant)]))
    for remark in remarks(rows, constant, selection):
        if quiet:
            log.warning("%s", remark)
        else:
            print(printable(remark))


def run_flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that every training command has, as recipe keys; `given` is the command's `locals()`."""
    flags = {
        f"{section}.{name}": given[name]
        for section, names in {
            "task": ("data_dir", "max_length", "train_file", "dev_file", "test_file", "label_column", "kind"),
            "train": ("epochs", "batch_size", "learning_rate", "precision", "bucketing", "batch_sampler"),
            "output": ("runs_dir", "tracker"),
        }.items()
        for name in names
        if name in given
    }
    flags["task.text_columns"] = split_list(given["text_columns"])
    if given["corpus"] is not None:
        flags["task.name"], flags["task.train_file"] = _of_corpus(given)
    flags["student.tokenizer"] = given["tokenizer"]
    flags["output.dir"] = given["output_dir"]
    flags["seed"] = given["seed"]
    return flags


def _of_corpus(given: Mapping[str, Any]) -> tuple[str, str]:
    """Task and training file where plain text is named.

    Raises:
        typer.BadParameter: another task is named, too.
    """
    if given["task"] not in (None, "corpus"):
        raise typer.BadParameter(f"is plain text, which is task corpus, not {given['task']}", param_hint="--corpus")
    if given["train_file"] is not None:
        raise typer.BadParameter("and --train-file both name the training text", param_hint="--corpus")
    return "corpus", given["corpus"]


def row_of(name: str, result: RunResult) -> Any:
    """A finished run as a row of the closing table."""
    from kdbert.reporting.summary import SummaryRow

    facts = result.manifest
    return SummaryRow(
        name, result.metrics, facts["layers"], result.parameters, result.size_mib, facts.get("one_answer", {})
    )


def teacher_row(facts: Mapping[str, Any], number: int | None = None) -> Any:
    """A teacher as a row: how it scored in the student's run; with its number where there are several."""
    from kdbert.reporting.summary import SummaryRow

    return SummaryRow(
        "teacher" if number is None else f"teacher {number}",
        facts["metrics"],
        facts["layers"],
        facts["parameters"],
        facts["size_mib"],
        facts.get("one_answer", {}),
    )
