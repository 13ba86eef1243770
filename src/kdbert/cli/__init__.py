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

from kdbert import __version__
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
from kdbert.errors import Interrupted, KdbertError

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


def _no_path(error: Exception) -> str | None:
    """What is wrong with a path that no system call takes, wherever it was first looked at; None: another error."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = max(str(error.filename).split("/"), key=len)
        return f"a path with {name[:40]!r}… in it is too long for this system"
    if (isinstance(error, OSError) and error.errno == errno.ELOOP) or str(error).startswith("Symlink loop"):
        return f"a link leads to itself ({error})"
    return None


def main() -> None:
    """Run the command; a person's mistake ends in one sentence, never in a traceback.

    Exit codes: 0 done, 1 failed, 2 wrong usage, recipe or data, 3 a sweep failed in part, 4 diverged,
    128 + n stopped by signal n.
    """
    debug = "--debug" in sys.argv
    try:
        app(standalone_mode=True)
    except KdbertError as error:
        if debug and not isinstance(error, Interrupted):
            traceback.print_exc()
        logging.shutdown()
        print(f"kdbert: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("kdbert: stopped at once; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except (OSError, RuntimeError) as error:
        sentence = _no_path(error)
        if sentence is None:
            raise
        print(f"kdbert: {sentence}", file=sys.stderr)
        sys.exit(2)
