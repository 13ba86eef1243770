"""The `kdbert` command: flags in, a recipe, the API function of the same name, a table out.

A command is a file here; flags that set a recipe key are in `flags.py`. Heavy imports are inside the commands, so that
`kdbert --help` answers at once.
"""

from __future__ import annotations

import errno
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Annotated, NoReturn

import typer

from kdbert.cli import (
    augment,
    benchmark,
    data,
    distill,
    doctor,
    evaluate,
    expand_vocab,
    export,
    finetune_teacher,
    methods,
    predict,
    report,
    sweep,
    table,
    train_memory,
    usage,
)
from kdbert.errors import Interrupted, KdbertError, out_of_memory, printable
from kdbert.signals import ended_by_signals
from kdbert.version import __version__

app = typer.Typer(
    name="kdbert",
    help="""\b
kdbert distill --method kd                    a built-in task, offline, minutes
kdbert distill --method kd --task rte         a GLUE task, from bert-base-uncased
kdbert table runs --baseline finetune         what the runs found

Distil BERT models: every published objective with one data path and one training loop.
""",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(group: typer.Typer, name: str, command: Callable[..., None]) -> None:
    """Add a command; its docstring is a summary, examples and remarks, of which the help shows the examples first."""
    summary, examples, *remarks = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    told = "\n\n".join([f"\b\n{examples}", " ".join([summary, *remarks])])
    group.command(name, help=told, short_help=summary)(command)


def _add_group(name: str, summary: str, example: str, commands: Mapping[str, Callable[..., None]]) -> None:
    """Add a group of commands; its name alone lists what there is."""
    group = typer.Typer(invoke_without_command=True, rich_markup_mode=None)

    @group.callback()
    def _default(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            commands["list"]()

    for one, command in commands.items():
        _add(group, one, command)
    app.add_typer(group, name=name, help=f"{example}\n\n{summary}", short_help=summary)


COMMANDS: dict[str, Callable[..., None]] = {
    "distill": distill.distill,
    "finetune-teacher": finetune_teacher.finetune_teacher,
    "train-memory": train_memory.train_memory,
    "expand-vocab": expand_vocab.expand_vocab,
    "augment": augment.augment,
    "sweep": sweep.sweep,
    "table": table.table,
    "report": report.report,
    "evaluate": evaluate.evaluate,
    "predict": predict.predict,
    "benchmark": benchmark.benchmark,
    "export": export.export,
    "doctor": doctor.doctor,
}
for _name, _command in COMMANDS.items():
    _add(app, _name, _command)
_add_group("data", "List tasks; describe, fetch and verify their files.", "kdbert data describe rte", data.COMMANDS)
_add_group("methods", "List methods, or show one.", "kdbert methods show kd", methods.COMMANDS)


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
    """A sentence about a path that cannot be used or a disk that is full; None for any other error."""
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


def _of_the_memory(error: BaseException) -> str:
    """What to do when a machine or GPU is out of memory; the recipe may be right for a larger one."""
    reason = " ".join(str(error).split()).split(". ")[0] or "Python got none"
    return (
        f"out of memory ({reason}): take a smaller --batch-size, or the same one in more parts "
        "(--set train.accumulation=4), or a smaller --max-length"
    )


def _end(sentence: str, code: int, debug: bool = False) -> NoReturn:
    """Print what went wrong, and exit."""
    if code > 128 and "--overwrite" in sys.argv:  # which would move aside the run that is to be continued
        sentence = sentence.replace("same command again", "same command again, without --overwrite,")
    elif debug:
        traceback.print_exc()
    logging.shutdown()
    print(f"kdbert: {printable(sentence)}", file=sys.stderr)
    sys.exit(code)


def main() -> None:
    """Run the command; a person's mistake ends in one sentence, never in a traceback.

    Exit codes: 0 done, 1 failed, 2 wrong usage, recipe or data, 3 a sweep failed in part, 4 diverged,
    128 + n stopped by signal n.
    """
    debug = "--debug" in sys.argv
    try:
        with ended_by_signals():
            code = app(prog_name="kdbert", standalone_mode=False)
        sys.exit(code or 0)
    except usage.UsageError as error:
        if len(sys.argv) == 1:  # the help is asked for
            error.show()
            sys.exit(2)
        _end(usage.sentence(error), 2)
    except typer.Abort:
        sys.exit(1)
    except KdbertError as error:
        _end(str(error), error.exit_code, debug and not isinstance(error, Interrupted))
    except KeyboardInterrupt:
        _end("stopped at once; run the same command again to continue", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except (OSError, RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            _end(_of_the_memory(error), 1, debug)
        sentence = _of_the_disk(error)
        if sentence is None:
            raise
        _end(sentence, 2, debug)
