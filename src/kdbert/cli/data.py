"""`kdbert data`: tasks, their files, and whether these are the published ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbert.cli import flags as f
from kdbert.cli import options as o

if TYPE_CHECKING:
    from kdbert.tasks import TaskSpec

DataDir = Annotated[
    str | None, typer.Option(help="Folder of the task's files. [$KDBERT_DATA_DIR, else glue_data for GLUE, or data]")
]
Tasks = Annotated[str, typer.Argument(help="Task, or glue for all of GLUE.")]


def list_tasks(data_dir: DataDir = None) -> None:
    """List all tasks and say which files are here.

    kdbert data list
    """
    from kdbert.tasks import get_task, task_names

    print(f"{'task':<19} {'kind':<12} {'classes':>7}  {'selected by':<20} {'files':<16} title")
    for name in task_names():
        spec = get_task(name)
        there = [split for split in spec.splits if spec.path(split, data_dir) is not None]
        files = "all" if len(there) == len(spec.splits) else ", ".join(there) or "none"
        classes = str(len(spec.labels)) if spec.labels else "-"
        print(f"{name:<19} {spec.kind:<12} {classes:>7}  {spec.metrics[0]:<20} {files:<16} {spec.title}")
    print("massive-LOCALE      MASSIVE in another of its 52 locales, such as massive-de-DE")
    print("corpus              your own plain text, for masked-LMs, ve-kd and hidden: --corpus")
    print("custom              your own files or a dataset of the Hub: --train-file, --dev-file")


@f.takes(f.TASK)
def describe(
    keys: dict[str, Any],
    name: Annotated[str | None, typer.Argument(metavar="TASK", help="The same as --task.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Count the tokens of this model. [the quickstart's; words if not installed]")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Show the first examples of each split.")] = 0,
    debug: o.Debug = False,
) -> None:
    """Show labels, lengths, duplicates and leakage of a task.

    kdbert data describe rte --max-length 128
    kdbert data describe custom --train-file train.csv --dev-file dev.csv
    """
    o.start(quiet=not examples)  # how own files are read is told with their first row
    from kdbert.errors import UserError, printable
    from kdbert.models.locate import QUICKSTART_MODEL
    from kdbert.recipe import Recipe
    from kdbert.recipe.defaults import task_of
    from kdbert.tasks import CORPUS, task_name
    from kdbert.tasks.describe import described

    given = {task_name(one) for one in (name, keys.get("task.name")) if one is not None}
    if not given:
        raise UserError("which task? name one, such as `kdbert data describe rte`; `kdbert data list` shows them")
    if len(given) == 2:
        raise UserError(f"{' and '.join(sorted(given))} are two tasks; name one")
    if given == {CORPUS}:
        print(
            "corpus: your own plain text; to see how kdbert reads it (docs/domain.md): kdbert finetune-teacher "
            "--corpus a.txt --model bert-base-uncased --dry-run"
        )
        return
    task = Recipe.build(flags={**keys, "task.name": given.pop()}).task
    spec = task_of(task)
    tokenizer = _tokenizer(model, spec.head.of_words)
    unit = "words" if tokenizer is None else f"tokens of {model or QUICKSTART_MODEL}"
    for line in described(spec, task.data_dir, tokenizer, unit, task.max_length or spec.max_length, examples):
        print(printable(line), flush=True)


def _tokenizer(model: str | None, words: bool) -> Any:
    """The tokenizer of the model, or of the quickstart's; None if that is not installed."""
    from kdbert.models.load import load_tokenizer
    from kdbert.models.locate import QUICKSTART_MODEL, locate, quickstart_installed

    if model is None and not quickstart_installed():
        return None
    return load_tokenizer(locate(model or QUICKSTART_MODEL), words=words)


def verify(task: Tasks, data_dir: DataDir = None, debug: o.Debug = False) -> None:
    """Check every row, row count and checksum of a task.

    kdbert data verify rte
    """
    from kdbert.errors import UserError

    faulty = []
    specs = _specs(task)
    for spec in specs:
        told = f"{spec.name} " if len(specs) > 1 else ""
        wrong = 0
        for split in spec.splits:
            try:
                fine, verdict = _verdict(spec, split, data_dir)
            except UserError as error:  # a faulty row; the other splits are looked at, too
                fine, verdict = False, f"FAULTY: {error}"
            print(f"{told}{split}: {verdict}")
            wrong += not fine
        if wrong:
            faulty.append(f"{wrong} of {len(spec.splits)} splits of {spec.name!r}")
    if faulty:
        raise UserError(
            f"{', '.join(faulty)} are missing, faulty or not those that were published; get them with `kdbert data "
            f"fetch {task}`, or name their folder with --data-dir"
        )


def _specs(task: str) -> list[TaskSpec]:
    """The task of that name, or all of GLUE's."""
    from kdbert.errors import UserError
    from kdbert.tasks import CORPUS, get_task, glue

    if task.lower() == CORPUS:
        raise UserError("task 'corpus' is plain text of your own; there is nothing to fetch or to compare it with")
    return list(glue.TASKS) if task.lower() == "glue" else [get_task(task)]


def _verdict(spec: TaskSpec, split: str, data_dir: str | None) -> tuple[bool, str]:
    """Whether a split is as published as far as can be told, and what was found."""
    from kdbert.data.files import unpacked_sha256
    from kdbert.tasks.describe import looked_for
    from kdbert.tasks.origins import known

    paths = spec.files(split, data_dir)
    if not paths:
        return False, f"missing: {looked_for(spec, split, data_dir)}"
    rows, expected = len(spec.load(split, data_dir)), spec.rows.get(split)
    fine = expected is None or rows == expected
    same_rows = "as kdbert divides the file" if spec.splits[split].tenths else "as published"
    verdict = same_rows if rows == expected else f"published: {expected}" if expected else "no published count"
    marks = []
    for path in paths:
        file = known(spec, path.name)
        same = not file.sha256 or unpacked_sha256(path) == file.sha256
        if not file.sha256:
            marks.append("no checksum is known")
        elif file.made_here:  # no official copy was at hand to compare with
            ours = f"the {file.made_here} file"
            marks.append(ours if same else f"no official checksum is known, not {ours}")
        else:
            marks.append("same checksum" if same else "ANOTHER CHECKSUM")
            fine &= same
    return fine, f"{rows} rows, {verdict}; {', '.join(dict.fromkeys(marks))} ({', '.join(map(str, paths))})"


def fetch(
    task: Tasks,
    data_dir: DataDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be fetched, and from where.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the files written.")] = False,
    debug: o.Debug = False,
) -> None:
    """Fetch a task's official files and check their sha256.

    kdbert data fetch rte

    Files that are already here are kept. An interrupted download continues.
    """
    from kdbert.errors import UserError
    from kdbert.tasks import origins

    o.start(quiet)
    for spec in _specs(task):
        if dry_run:
            origins.check_published(spec, data_dir)
        try:
            found = origins.missing_files(spec, data_dir) if dry_run else origins.fetch(spec, data_dir)
        except UserError as error:
            error.args = (str(error).replace("describe TASK`", f"describe {spec.name}`"),)
            raise
        for one in found:
            print(one)
        if not found and not quiet:
            print(f"{spec.name}: everything is there ({origins.base_folder(spec, data_dir)})")


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_tasks, "describe": describe, "fetch": fetch, "verify": verify
}  # fmt: skip
