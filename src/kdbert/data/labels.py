"""Labels as text: one rule for the training, dev and test file and for a model's own labels."""

from __future__ import annotations

import ast
import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, time, timedelta
from typing import Any

from kdbert.errors import UserError

NO_LABEL = "-1"  # in published files: the label is withheld; in a training file with other labels: a class
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))\.0*")
_TAG = re.compile(r"O|[BIESLU]-\S+")
_SHOWN = 60  # characters of a label in a list
_LONGEST = 10_000  # characters of a text that may be parsed as a list


def label_text(value: Any) -> str | None:
    """A label as text without surrounding space; None if it is missing.

    A whole number has no decimals: 0, 0.0, "0" and "0.0" are "0". True and False in any case are "true" and "false",
    not 1 and 0. None, NaN, "nan" and an empty text are missing.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None else str(value).strip()
    lower = text.lower()
    if lower in ("", "nan"):
        return None
    if lower in ("true", "false"):
        return lower
    whole = _WHOLE.fullmatch(text)
    text = whole[1] if whole else text
    return "0" if text == "-0" else text


def number(text: str) -> float | None:
    """The finite number that a text is, or None."""
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    return value if math.isfinite(value) else None


def plain(label: str) -> str:
    """A label for comparison with a model's: case-folded, with `-`, `_` and space alike."""
    return re.sub(r"[-_\s]+", " ", (label_text(label) or label.strip()).casefold())


def clear(name: str) -> str:
    """A label for a list of labels: in quotes where it has a comma itself, and cut where it is long."""
    name = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
    return repr(name) if "," in name else name


def alike(labels: Iterable[str]) -> tuple[str, str] | None:
    """Two of these labels that are the same number, or the same name up to case, `-`, `_` and space; else None."""
    seen: dict[float | str, str] = {}
    for label in labels:
        value = number(label)
        other = seen.setdefault(plain(label) if value is None else value, label)
        if other != label:
            return other, label
    return None


def class_number(name: str, numbers: Mapping[str, int], where: str) -> int:
    """The number of a class; `where` is file and line, for the message."""
    if name not in numbers:
        known = ", ".join(list(numbers)[:8]) + (", …" if len(numbers) > 8 else "")
        raise UserError(
            f"{where}: label {name!r} is not one of the task's labels ({known}){_spelled(name, list(numbers))}"
        )
    return numbers[name]


def _spelled(name: str, known: Sequence[str]) -> str:
    """'; did you mean "x"?' for a label that is a known one in another spelling.

    Short labels and numbers that only look alike (`neu` and `neg`, 1 and -1) are other classes, not slips.
    """
    value = number(name)
    same = [one for one in known if plain(one) == plain(name) or (value is not None and number(one) == value)]
    if not same and value is None:
        same = difflib.get_close_matches(name, [one for one in known if len(one) > 3], n=1, cutoff=0.8)
    return f"; did you mean {same[0]!r}?" if same else ""


def no_class(value: Any) -> str | None:
    """What a value looks like if it is neither the name of a class nor a score; else None."""
    if isinstance(value, str):
        text = value.strip()
        if len(text) > _LONGEST:
            return None
        if text[:1] + text[-1:] not in ("[]", "{}", "()"):
            return _in_a_row(text)
        value = _parsed(text)
    if isinstance(value, (date, time, timedelta)):
        return "a date or time"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, dict):
        soft = value and all(isinstance(one, (int, float)) for one in value.values())
        return "soft labels (a number for each class)" if soft else "a JSON object"
    if not isinstance(value, (list, tuple, set)):
        return None
    if value and all(isinstance(one, str) for one in value):
        return "several classes (a list of names)"
    if not value or not all(isinstance(one, (int, float)) for one in value):
        return "a list"
    if all(float(one).is_integer() for one in value):
        ones = len(value) > 1 and all(one in (0, 1) for one in value)
        return "several classes (a list of 0 and 1)" if ones else "several classes (a list of numbers)"
    return "soft labels (a list of numbers, one for each class)"


def listed(value: Any) -> list[Any] | None:
    """The list that a value is, or that a text is as JSON, Python or numpy write one; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        value = _parsed(text) if len(text) <= _LONGEST and text[:1] + text[-1:] in ("[]", "{}", "()") else None
    if isinstance(value, set):
        return sorted(value, key=str)
    return list(value) if isinstance(value, (list, tuple)) else None


def _in_a_row(text: str) -> str | None:
    """What several numbers or tags in one text look like; None for another text."""
    parts = re.split(r"[,;|\s]+", text)
    if len(parts) < 2:
        return None
    if all(number(part) is not None for part in parts):
        if re.fullmatch(r"[+-]?\d+,\d+", text):
            return "two numbers, or one with a decimal comma (write a point)"
        return no_class([float(part) for part in parts])
    tags = all(_TAG.fullmatch(part) for part in parts)
    return "tags of words" if tags else None


def _parsed(text: str) -> Any:
    """The list or mapping in a text, as JSON, Python or numpy write it; else None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        pass
    parts = re.split(r"[,\s]+", text[1:-1].strip())
    if all(number(part) is not None for part in parts):
        return [float(part) for part in parts]
    return parts if "," in text else None
