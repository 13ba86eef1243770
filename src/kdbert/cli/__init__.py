"""The `kdbert` command: flags in, a recipe, the API function of the same name, a table out.

Nothing heavy is imported here or in the modules of this package at their top, so that `kdbert --help`
answers at once.
"""

from __future__ import annotations

import errno
import logging
import sys
import traceback
from typing import Annotated

import typer

from kdbert.cli import (
    benchmark,
    data,
    distill,
    doctor,
    evaluate,
    expand_vocab,
    export,
    finetune_teacher,
    methods,
    report,
    sweep,
    table,
    train_memory,
)
from kdbert.errors import Interrupted, KdbertError, out_of_memory, printable
from kdbert.signals import ended_by_signals
from kdbert.version import __version__

app = typer.Typer(
    name="kdbert",
    help="Distil BERT models: one data path, one training loop, every published objective.",
    epilog="Start with: kdbert distill --method kd   (a small task that is built in; a few minutes on two cores)",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("finetune-teacher")(finetune_teacher.finetune_teacher)
app.command("train-memory")(train_memory.train_memory)
app.command("expand-vocab")(expand_vocab.expand_vocab)
app.command("distill")(distill.distill)
app.command("sweep")(sweep.sweep)
app.command("table")(table.table)
app.command("report")(report.report)
app.command("evaluate")(evaluate.evaluate)
app.command("benchmark")(benchmark.benchmark)
app.command("export")(export.export)
app.add_typer(data.app, name="data")
app.add_typer(methods.app, name="methods")
app.command("doctor")(doctor.doctor)


def _version(asked: bool) -> None:
    if asked:
        print(f"kdbert {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Distil BERT models: one data path, one training loop, every published objective."""


def _of_the_disk(error: Exception) -> str | None:
    """What the system says of a path, wherever it was first looked at (it is none, may not be read, has a folder in its
    place), or of a disk that is full; None: another error.
    """
    if getattr(error, "errno", None) == errno.ELOOP or str(error).startswith("Symlink loop"):  # pathlib's, before 3.13
        return f"a link leads to itself ({error})"
    if not isinstance(error, OSError):
        return None
    place = error.filename2 or error.filename
    if error.errno == errno.ENAMETOOLONG:
        name = max(str(place).split("/"), key=len)
        return f"a path with {name[:40]!r}… in it is too long for this system"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if place is None and not full:
        return None
    cure = "; make room and run the same command again" if full else ""
    return f"{error.strerror or error}{f': {place}' if place else ''}{cure}"


def _to_go_on(sentence: str) -> str:
    """The very same command would move aside what was to be continued, if it had --overwrite."""
    return (
        sentence.replace("same command again", "same command again, without --overwrite,")
        if ("--overwrite" in sys.argv)
        else sentence
    )


def _of_the_memory(error: BaseException) -> str:
    """What to do where a machine or GPU has no more memory; the recipe may be right for a larger one."""
    reason = " ".join(str(error).split()).split(". ")[0] or "Python was given none"
    return (
        f"out of memory ({reason}): take a smaller --batch-size, or the same one in more parts "
        "(--set train.accumulation=4), or a smaller --max-length"
    )


def main() -> None:
    """Run the command; a person's mistake ends in one sentence, never in a traceback.

    Exit codes: 0 done, 1 failed, 2 wrong usage, recipe or data, 3 a sweep failed in part, 4 diverged,
    128 + n stopped by signal n.
    """
    debug = "--debug" in sys.argv
    try:
        with ended_by_signals():
            app(standalone_mode=True)
    except KdbertError as error:
        if debug and not isinstance(error, Interrupted):
            traceback.print_exc()
        logging.shutdown()
        told = _to_go_on(str(error)) if isinstance(error, Interrupted) else str(error)
        print(f"kdbert: {printable(told)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(_to_go_on("kdbert: stopped at once; run the same command again to continue"), file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except (OSError, RuntimeError, MemoryError) as error:
        full = out_of_memory(error)
        sentence = _of_the_memory(error) if full else _of_the_disk(error)
        if sentence is None:
            raise
        if debug:
            traceback.print_exc()
        logging.shutdown()
        print(f"kdbert: {printable(sentence)}", file=sys.stderr)
        sys.exit(1 if full else 2)
