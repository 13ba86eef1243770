"""`kdbert data`: tasks, their files, and whether these are the published ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbert.cli import options as o

if TYPE_CHECKING:
    from kdbert.data.examples import Examples
    from kdbert.tasks import TaskSpec

DataDir = Annotated[
    str | None, typer.Option(help="Folder of the task's files. [$KDBERT_DATA_DIR, else glue_data for GLUE, or data]")
]
Tasks = Annotated[str, typer.Argument(help="Task, or glue for all of GLUE.")]
SHOWN = 12  # labels of a distribution


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
    print("corpus              your own plain text, for masked-LMs and ve-kd: --corpus")
    print("custom              your own csv, tsv, jsonl, parquet or saved dataset: --train-file, --dev-file")


def describe(
    task: Annotated[str, typer.Argument(help="Task.")],
    data_dir: DataDir = None,
    max_length: Annotated[int | None, typer.Option(min=4, help="Count longer examples. [the task's length]")] = None,
    model: Annotated[
        str | None, typer.Option(help="Count the tokens of this model. [the quickstart's; words if not installed]")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Show the first examples of each split.")] = 0,
    debug: o.Debug = False,
) -> None:
    """Show origin, licence, labels and lengths of a task.

    kdbert data describe rte --max-length 128
    """
    from kdbert.models.locate import QUICKSTART_MODEL
    from kdbert.tasks import CORPUS, CUSTOM, get_task
    from kdbert.tasks.origins import missing_files

    own = {
        CUSTOM: "your own files; to see how kdbert reads them (docs/tasks.md): "
        "kdbert distill --task custom --train-file a.csv --dev-file b.csv --dry-run",
        CORPUS: "your own plain text; to see how kdbert reads it (docs/domain.md): "
        "kdbert finetune-teacher --corpus a.txt --model bert-base-uncased --dry-run",
    }
    if task.lower() in own:
        print(f"{task.lower()}: {own[task.lower()]}")
        return
    spec = get_task(task)
    print(f"{spec.name}: {spec.title}")
    print(f"kind: {spec.kind}, {spec.head.answers}")
    print(f"metrics: {', '.join(spec.metrics)} (selection by {spec.metrics[0]})")
    if "f1" in spec.metrics:
        print(f"f1: of class {spec.labels[1]}")
    print(f"length: {spec.max_length} tokens\nsource: {spec.source}\nlicence: {spec.licence}")
    for wanted in missing_files(spec, data_dir) if spec.folder else []:
        if wanted.by_hand:
            print(f"not fetched: {wanted}")
    if spec.warning:
        print(f"warning: {spec.warning}")
    tokenizer = _tokenizer(model, spec.head.of_words)
    unit, limit = f"tokens of {model or QUICKSTART_MODEL}", max_length or spec.max_length
    for split in spec.splits:
        path = spec.path(split, data_dir)
        if path is None:
            print(f"{split}: {_looked_for(spec, split, data_dir)}")
            continue
        part = spec.load(split, data_dir)
        print(f"{split}: {len(part)} rows in {path}")
        print(f"  {_labels(spec, part)}")
        print(f"  {_lengths(part, tokenizer, unit, limit)}")
        for number in range(min(examples, len(part))):
            print(f"  {_example(spec, part, number)}")


def _looked_for(spec: TaskSpec, split: str, data_dir: str | None) -> str:
    """Which file of a split is not there, and where it was looked for."""
    root = spec.root(data_dir)
    folders = [str(root / spec.folder), str(root)]
    return f"no file {spec.splits[split].files[0]} (plain or .gz) in {' or '.join(dict.fromkeys(folders))}"


def _labels(spec: TaskSpec, part: Examples) -> str:
    """The distribution of labels."""
    if part.labels is None:
        return "no labels"
    if not spec.labels:
        return f"scores {part.labels.min():.2f} to {part.labels.max():.2f}, mean {part.labels.mean():.3f}"
    sets = part.labels.ndim == 2  # of classes
    counts = [int((part.labels[:, i] if sets else part.labels == i).sum()) for i in range(len(spec.labels))]
    shown = ", ".join(f"{label} {count}" for label, count in list(zip(spec.labels, counts, strict=True))[:SHOWN])
    if sets:
        shown += f", none {int((~part.labels.any(1)).sum())}"
    if spec.document is not None:
        shown += f" ({len({spec.document(name) for name in part.ids})} documents)"
    return shown + (f", … ({len(counts)} classes)" if len(counts) > SHOWN else "")


def _tokenizer(model: str | None, words: bool) -> Any:
    """The tokenizer of the model, or of the quickstart's; None if that is not installed."""
    from kdbert.models.load import load_tokenizer
    from kdbert.models.locate import QUICKSTART_MODEL, locate, quickstart_installed

    if model is None and not quickstart_installed():
        return None
    return load_tokenizer(locate(model or QUICKSTART_MODEL), words=words)


def _lengths(part: Examples, tokenizer: Any, unit: str, limit: int) -> str:
    """Percentiles of the lengths, and the share that is cut; in words if there is no tokenizer."""
    import numpy as np

    from kdbert.data.encode import encode

    if tokenizer is None:
        texts = zip(part.text_a, part.text_b or [""] * len(part), strict=True)
        lengths, unit = np.array([len(f"{a} {b}".split()) for a, b in texts]), "words"
    else:
        lengths = encode(part, tokenizer, 1_000_000).lengths
    middle, most, nearly = np.percentile(lengths, [50, 90, 99])
    told = f"{unit}: median {middle:.0f}, 90 % up to {most:.0f}, 99 % up to {nearly:.0f}, longest {lengths.max()}"
    cut = int((lengths > limit).sum())
    return told if tokenizer is None else f"{told}; {cut} ({100 * cut / len(lengths):.1f} %) longer than {limit}"


def _example(spec: TaskSpec, part: Examples, number: int) -> str:
    """One example on one line."""
    import json

    words = None if part.words is None else list(part.words[number])
    shown: dict[str, object] = {"text": part.text_a[number]} if words is None else {"words": words}
    if part.text_b is not None:
        shown["text_b"] = part.text_b[number]
    if part.labels is not None:
        shown["label"] = spec.head.written(part.labels[spec.head.places(part)[number]])
    return json.dumps(shown, ensure_ascii=False)


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
    from kdbert.tasks.origins import known

    paths = spec.files(split, data_dir)
    if not paths:
        return False, f"missing: {_looked_for(spec, split, data_dir)}"
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
