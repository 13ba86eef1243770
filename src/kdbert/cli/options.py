"""What several commands share: flags that set no recipe key (the others are in `flags.py`), the recipe, the output."""

from __future__ import annotations

import logging
import os
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
Strings = list[str] | None
# Of commands that train.
Config = Annotated[Path | None, typer.Option(help="A recipe (YAML); flags and --set override it.")]
Set = Annotated[Strings, typer.Option("--set", metavar="KEY=VALUE", help="Set any recipe key: train.warmup=0.1")]
More = Annotated[Strings, typer.Argument(metavar="KEY=VALUE", help="More recipe keys, as after --set.")]
Plugin = Annotated[Strings, typer.Option(help="A Python file that defines methods; it is executed. May be repeated.")]
PushToHub = Annotated[
    str | None, typer.Option(metavar="OWNER/NAME", help="Upload the model to the Hub at the end; a new one is private.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print what would run; train nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Move an existing result aside and make a new one.")]
# Of commands that read finished runs.
Model = Annotated[str, typer.Argument(help="Run folder or handle, model folder or Hub id.")]
Runs = Annotated[Strings, typer.Argument(metavar="RUN", help="Runs, or folders that hold runs. [RUNS_DIR]")]
RunsTask = Annotated[str | None, typer.Option("--task", help="Task. [the run's own]")]
DataDir = Annotated[str | None, typer.Option(help="Folder of the data. [the run's own, else as in `distill`]")]
RunsDir = Annotated[str, typer.Option(help="Root of the run folders, where handles such as @last are looked up.")]
Labels = Annotated[str | None, typer.Option(help="The model's labels in the order of its outputs: a,b,c.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="Tokens per example. [the run's]")]
Where = Annotated[Strings, typer.Option(metavar="KEY=A,…", help="Only runs with one of these values. May be repeated.")]
# Of commands that run a model over texts.
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
AsScored = Annotated[str, typer.Option(help="auto (fp32 if its run was scored so), fp32, bf16 or fp16.")]
ReplaceFile = Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")]
# Of all.
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the paths of the results.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class _Printable(logging.Formatter):
    """Names of labels and files come from data, and a terminal obeys control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def start(quiet: bool = False) -> None:
    """Send progress to stderr: everything, or warnings only."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Printable("%(message)s"))
    logging.getLogger("kdbert").setLevel(logging.WARNING if quiet or not main_process() else logging.INFO)


def main_process() -> bool:
    """Whether this is the process that prints (the first one, under torchrun)."""
    return os.environ.get("RANK", "0") == "0"


def split_list(text: str | None) -> list[str] | None:
    """`a,b` as a list."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def where_of(words: Strings) -> dict[str, str]:
    """The values by which --where chooses runs, key -> value."""
    wanted = {}
    for text in words or []:
        key, sign, value = text.partition("=")
        if not sign:
            raise UserError(f"--where {text!r}: expected KEY=VALUE, such as train.learning_rate=0.0002")
        if key.strip() in wanted:
            raise UserError(f"--where names {key.strip()} twice; give its values with commas: {key.strip()}=A,B")
        wanted[key.strip()] = value.strip()
    return wanted


def load_plugins(paths: Strings) -> None:
    """Register the methods of the files that the person names."""
    for path in paths or []:
        from kdbert.methods import load_plugin

        load_plugin(path)


def run_path(name: str, runs_dir: str, *, teacher: bool = False) -> str:
    """A model or run as typed, but of a run's handle the folder; see `find_run`."""
    from kdbert.models.locate import find_run

    return find_run(name, runs_dir, teacher=teacher)


def build_recipe(config: Path | None, keys: Mapping[str, Any], sets: Strings, more: Strings) -> Recipe:
    """The recipe of a command line."""
    from kdbert.recipe import Recipe

    return with_run_paths(Recipe.build(config=config, flags=keys, sets=[*(sets or []), *(more or [])]))


def with_run_paths(recipe: Recipe) -> Recipe:
    """The recipe with the folder in place of each run's handle; see `find_run`."""

    def renamed(section: Any, *names: str, teacher: bool = False) -> Any:
        given = {name: path for name in names if section is not None and (path := getattr(section, name))}
        found = {name: run_path(path, recipe.output.runs_dir, teacher=teacher) for name, path in given.items()}
        return section.model_copy(update=found) if found else section

    return recipe.model_copy(
        update={
            "teachers": [renamed(teacher, "model", teacher=True) for teacher in recipe.teachers],
            "teacher_training": renamed(recipe.teacher_training, "model"),
            "student": renamed(recipe.student, "model", "tokenizer"),
        }
    )


def check_push(repository: str | None) -> None:
    """Refuse early what `push` would refuse."""
    if repository is not None:
        from kdbert.hub import check_repository

        check_repository(repository)


def push(folder: Path, repository: str | None) -> None:
    """Upload a model folder, if that was asked for."""
    if repository is not None and main_process():
        from kdbert.hub import push as upload

        upload(folder, repository)


def print_results(title: str, rows: list[Any], result: RunResult, quiet: bool, note: str = "") -> None:
    """The closing table with its remarks, and the run's handle and path; only the path with `--quiet`."""
    if not main_process():
        return
    print_scores(title, rows, result.manifest.get("constant_answer", {}), result.selection, quiet)
    if quiet:
        print(result.path)
        return
    from kdbert.models.locate import handle_of

    if note:
        print(note)
    if handle := handle_of(result.path):
        print(f"handle: {handle}")
    print(f"run: {result.path}")


def print_scores(
    title: str, rows: list[Any], constant: Mapping[str, Mapping[str, float]], selection: str, quiet: bool
) -> None:
    """A table of models, and which of them learned nothing; with `--quiet` only the latter, on stderr."""
    from kdbert.reporting.summary import SummaryRow, print_table, remarks, summary_tables

    if not quiet and any(row.metrics for row in rows):
        print_table(*summary_tables(title, [*rows, *([SummaryRow("constant answer", constant)] if constant else [])]))
    for remark in remarks(rows, constant, selection):
        if quiet:
            log.warning("%s", remark)
        else:
            print(printable(remark))


def row_of(name: str, facts: Mapping[str, Any]) -> Any:
    """What run.json says of a run, or of a run's teacher, as a row of the closing table."""
    from kdbert.reporting.summary import SummaryRow

    layers, parameters, size = (facts[key] for key in ("layers", "parameters", "size_mib"))
    return SummaryRow(name, facts["metrics"], layers, parameters, size, facts.get("one_answer", {}))
