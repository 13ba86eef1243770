"""The ways a run can end badly, each with its exit code."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SHOWN_EXAMPLES = 8  # of those at which a run diverged


class KdbertError(Exception):
    """Something the program itself explains. `exit_code` is what the command ends with."""

    exit_code = 1


class UserError(KdbertError):
    """A person's mistake: one sentence that names the thing, what was expected and the cure."""

    exit_code = 2


class RunBusy(UserError):
    """Another process is writing the run."""


class Diverged(KdbertError):
    """A number became NaN or infinite; `where`: ids of the examples, and of a loss its step and term, for run.json."""

    exit_code = 4

    def __init__(self, message: str, where: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.where = dict(where or {})


class Interrupted(KdbertError):
    """The run was told to stop by a signal and has saved its state."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def few(examples: Sequence[str], rest: str = "") -> str:
    """The first `SHOWN_EXAMPLES` ids, and how many there are; `rest` says where all of them stand."""
    more = f", … ({len(examples)} in all{rest})" if len(examples) > SHOWN_EXAMPLES else ""
    return ", ".join(examples[:SHOWN_EXAMPLES]) + more


def printable(text: str) -> str:
    """The text without what steers a terminal or turns the direction of writing; labels and names may hold it."""
    bad = {letter for letter in text if not letter.isprintable() and letter not in "\n\r\t"}
    return text.translate({ord(one): " " if one.isspace() else "\N{REPLACEMENT CHARACTER}" for one in bad})


def without_credentials(text: str) -> str:
    """The text without the user names and passwords of the addresses in it (`https://user:password@host`)."""
    return re.sub(r"(\w://)[^/\s]*@", r"\1", text)


def out_of_memory(error: BaseException) -> bool:
    """Whether there was no more memory, of the machine (torch: a plain RuntimeError) or of a GPU."""
    words = ("can't allocate memory", "out of memory", "Unable to allocate")
    plain = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return plain or isinstance(error, MemoryError)


def _initials(word: str) -> str:
    """`train.lr` of `train.learning_rate`, `--lr` of `--learning-rate`."""
    name = word.rpartition(".")[2].removeprefix("--")
    parts = re.split("[-_]", name)
    return word.removesuffix(name) + "".join(part[:1] for part in parts) if len(parts) > 1 else word


def near_miss(word: str, known: Iterable[str]) -> str:
    """'; did you mean "x"?' for the `nearest` known word, or ''."""
    near = nearest(word, known)
    return "" if near is None else f"; did you mean {near!r}?"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The first known word of several parts that `word` abbreviates, or the one nearest to it in letters, if any is."""
    words = list(known)
    short = [one for one in words if _initials(one) == word]
    close = short or difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return close[0] if close else None
