"""`kdbert data`: tasks, their files, and whether these are what they should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kdbert.cli import options as o

if TYPE_CHECKING:
    from kdbert.data.examples import Examples
    from kdbert.tasks import TaskSpec

app = typer.Typer(
    help="List tasks, describe one, fetch and check its files.", invoke_without_command=True, rich_markup_mode=None
)
SHOWN = 12  # labels of a distribution


@app.callback()
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_tasks()


@app.command("list")
def list_tasks(data_dir: o.DataDir = None) -> None:
    """Every task: kind, classes, selection metric, and whether its files are at hand."""
    from kdbert.tasks import get_task, task_names

    print(f"{'task':<19} {'kind':<12} {'classes':>7}  {'selected by':<20} {'files':<16} title")
    for name in task_names():
        spec = get_task(name)
        there = [split for split in spec.splits if spec.path(split, data_dir) is not None]
        files = "all" if len(there) == len(spec.splits) else ", ".join(there) or "none"
        classes = str(len(spec.labels)) if spec.labels else "-"
        print(f"{name:<19} {spec.kind:<12} {classes:>7}  {spec.metrics[0]:<20} {files:<16} {spec.title}")
    print("massive-LOCALE      MASSIVE in another of its 52 locales, such as massive-de-DE")
    print("custom              your own csv, tsv, jsonl, parquet or saved dataset: --train-file, --dev-file")


@app.command("describe")
def describe(
    task: Annotated[str, typer.Argument(help="Task.")],
    data_dir: o.DataDir = None,
    max_length: Annotated[int | None, typer.Option(min=4, help="Say how many examples are longer. [task's]")] = None,
    model: Annotated[
        str | None, typer.Option(help="Whose tokens are counted. [quickstart's, bert-base-uncased]")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Show the first examples of each split.")] = 0,
    debug: o.Debug = False,
) -> None:
    """Origin, licence, splits, rows, labels and lengths of a task."""
    from kdbert.tasks import CUSTOM, get_task

    if task.lower() == CUSTOM:
        print(
            "custom: your own files; to see what is made of them: "
            "kdbert distill --task custom --train-file a.csv --dev-file b.csv --dry-run"
        )
        return
    spec = get_task(task)
    kinds = {
        "single_label": f"one of {len(spec.labels)} classes",
        "multi_label": f"any of {len(spec.labels)} classes",
        "token": f"a tag of each word ({', '.join(spec.labels)})",
        "regression": "one score",
    }
    print(f"{spec.name}: {spec.title}")
    print(f"kind: {spec.kind}, {kinds[spec.kind]}")
    print(f"metrics: {', '.join(spec.metrics)} (selection by {spec.metrics[0]})")
    print(f"length: {spec.max_length} tokens\nsource: {spec.source}\nlicence: {spec.licence}")
    if spec.warning:
        print(f"mind: {spec.warning}")
    counter = _Lengths(model, max_length or spec.max_length)
    for split, where in spec.splits.items():
        path = spec.path(split, data_dir)
        if path is None:
            name = f"{spec.folder}/{where.files[0]}".lstrip("/")
            print(f"{split}: no file {name} (plain or .gz) below {data_dir or spec.data_dir}")
            continue
        part = spec.load(split, data_dir)
        print(f"{split}: {len(part)} rows in {path}")
        print(f"  {_labels(spec, part)}")
        print(f"  {counter.words(spec, part)}")
        for number in range(min(examples, len(part))):
            print(f"  {_example(spec, part, number)}")


def _labels(spec: TaskSpec, part: Examples) -> str:
    """The distribution of labels."""
    if part.labels is None:
        return "no labels"
    if not spec.labels:
        return f"scores {part.labels.min():.2f} to {part.labels.max():.2f}, mean {part.labels.mean():.3f}"
    if spec.kind == "multi_label":
        counts = part.labels.sum(0).tolist()
    else:
        counts = [int((part.labels == number).sum()) for number in range(len(spec.labels))]
    shown = ", ".join(f"{label} {count}" for label, count in list(zip(spec.labels, counts, strict=True))[:SHOWN])
    if spec.kind == "multi_label":
        shown += f", none {int((~part.labels.any(1)).sum())}"
    if spec.document is not None:
        shown += f" ({len({spec.document(name) for name in part.ids})} documents)"
    return shown + (f", … ({len(counts)} classes)" if len(counts) > SHOWN else "")


class _Lengths:
    """Counts tokens; words where no tokenizer is at hand and none was asked for."""

    def __init__(self, model: str | None, limit: int) -> None:
        from kdbert.errors import UserError
        from kdbert.models.load import load_tokenizer
        from kdbert.models.locate import QUICKSTART_MODEL, locate

        self.limit, self.tokenizer = limit, None
        try:
            place = locate(model or QUICKSTART_MODEL)
            self.tokenizer = load_tokenizer(place, words=False)
        except UserError:
            if model is not None:
                raise

    def words(self, spec: TaskSpec, part: Examples) -> str:
        """Percentiles of the lengths, and the share that is cut."""
        import numpy as np

        from kdbert.data.encode import encode

        if self.tokenizer is None:
            texts = zip(part.text_a, part.text_b or [""] * len(part), strict=True)
            lengths, unit = np.array([len(f"{a} {b}".split()) for a, b in texts]), "words"
        else:
            lengths, unit = encode(part, self.tokenizer, 1_000_000).lengths, "tokens"
        middle, most, nearly = np.percentile(lengths, [50, 90, 99])
        told = f"{unit}: median {middle:.0f}, 90 % up to {most:.0f}, 99 % up to {nearly:.0f}, longest {lengths.max()}"
        if unit == "tokens":
            cut = int((lengths > self.limit).sum())
            told += f"; {cut} ({100 * cut / len(lengths):.1f} %) longer than {self.limit}"
        return told


def _example(spec: TaskSpec, part: Examples, number: int) -> str:
    """One example on one line."""
    import json

    import numpy as np

    words = None if part.words is None else list(part.words[number])
    shown: dict[str, object] = {"text": part.text_a[number]} if words is None else {"words": words}
    if part.text_b is not None:
        shown["text_b"] = part.text_b[number]
    if part.labels is not None:
        if spec.kind == "token":
            start, end = part.word_offsets[number : number + 2]
            shown["tags"] = [spec.labels[tag] for tag in part.labels[start:end]]
        elif spec.kind == "multi_label":
            shown["labels"] = [spec.labels[i] for i in np.flatnonzero(part.labels[number])]
        else:
            label = part.labels[number]
            shown["label"] = float(label) if spec.kind == "regression" else spec.labels[label]
    return json.dumps(shown, ensure_ascii=False)


@app.command("verify")
def verify(
    task: Annotated[str, typer.Argument(help="Task.")],
    data_dir: o.DataDir = None,
) -> None:
    """Read every file of a task, check each row, and compare row counts and checksums with the published ones."""
    from kdbert.data.files import unpacked_sha256
    from kdbert.errors import UserError
    from kdbert.tasks import get_task
    from kdbert.tasks.origins import checksum

    spec = get_task(task)
    problems = 0
    for split in spec.splits:
        path = spec.path(split, data_dir)
        if path is None:
            print(f"{split}: missing")
            problems += 1
            continue
        rows = len(spec.load(split, data_dir))
        expected, sha256 = spec.rows.get(split), checksum(spec, path)
        same = sha256 is None or unpacked_sha256(path) == sha256
        verdict = "as published" if rows == expected else f"published: {expected}" if expected else "no published count"
        known = "no checksum is known" if sha256 is None else "same checksum" if same else "ANOTHER CHECKSUM"
        problems += (expected is not None and rows != expected) or not same
        print(f"{split}: {rows} rows, {verdict}; {known} ({path})")
    if problems:
        raise UserError(
            f"{problems} of {len(spec.splits)} splits of {spec.name!r} are missing or not those that were published"
        )


@app.command("fetch")
def fetch(
    task: Annotated[str, typer.Argument(help="Task, or glue for all of its tasks.")],
    data_dir: o.DataDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched, and from where.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the files written.")] = False,
    debug: o.Debug = False,
) -> None:
    """Fetch the official files of a task, check them by sha256, and put them where kdbert looks for them.

    Files that are there are kept; a transfer that broke off goes on where it was.
    """
    from pathlib import Path

    from kdbert.tasks import get_task, glue
    from kdbert.tasks.origins import fetch as fetch_files
    from kdbert.tasks.origins import missing_files

    o.start(quiet)
    specs = list(glue.TASKS) if task.lower() == "glue" else [get_task(task)]
    for spec in specs:
        folder = Path(data_dir or spec.data_dir)
        if dry_run:
            for file in missing_files(spec, folder):
                print(f"{folder / file.path} from {file.url or 'what is made here, see kdbert data describe'}")
            continue
        written = fetch_files(spec, folder)
        for path in written:
            print(path)
        if not written and not quiet:
            print(f"{spec.name}: everything is there ({folder / spec.folder})")
