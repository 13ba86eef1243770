"""Tagged words in CoNLL files: a word on each line with its columns, a blank line after each sentence.

Columns are separated by tabs if the first row has one, else by spaces. The first is `tokens`, the last `tags`, those
between are called by their number. Lines of `-DOCSTART-`, comments, and CoNLL-U's ranges (`1-2`) are no words. A
comment is a line before a sentence that begins with `#` and is no row: its columns are fewer or more, or its last one
is no tag, of the file or as entities have it (`O`, `B-…`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kdbert.data.files import read_lines
from kdbert.errors import UserError

TOKENS, TAGS = "tokens", "tags"
_DOCUMENT = "-DOCSTART-"
_UD_COLUMNS = 10  # of CoNLL-U, which numbers words in the first
_ENTITY = re.compile(r"O|[BIESLU]-\S+")
_NO_WORD = re.compile(r"\d+[-.]\d+")  # there: several words written as one, or a word that is not written
_LONGEST = 10_000  # words of a sentence; more means that the sentences are not separated


def split(line: str, tabs: bool) -> list[str]:
    """The columns of a line. A no-break space is a part of a word."""
    return [cell.strip() for cell in line.split("\t")] if tabs else re.split("[ \t]+", line.strip(" \t"))


class _Layout(NamedTuple):
    """How the rows of a file are written."""

    tabs: bool
    width: int  # columns
    tags: frozenset[str]  # what the last column holds

    def cells(self, line: str) -> list[str]:
        return split(line, self.tabs)

    def is_tag(self, cell: str) -> bool:
        return cell in self.tags or _ENTITY.fullmatch(cell) is not None

    @property
    def columns(self) -> tuple[str, ...]:
        return (TOKENS, *map(str, range(2, self.width)), TAGS)[: self.width]


def sentences(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, column -> its cells) of each sentence. The file is read twice: first for its layout.

    Raises:
        UserError: a row with more or fewer columns than the first one, or without a word; sentences that never end.
    """
    layout = _layout(path)
    rows: list[list[str]] = []
    start = 0
    for number, line in read_lines(path):
        cells = layout.cells(line)
        if not line.strip() or cells[0] == _DOCUMENT:
            if rows:
                yield _sentence(layout, rows, start)
            rows = []
            continue
        if layout.width == _UD_COLUMNS and _NO_WORD.fullmatch(cells[0]):
            continue
        fits = len(cells) == layout.width
        if line.startswith("#") and not rows and not (fits and (layout.width == 1 or layout.is_tag(cells[-1]))):
            continue
        if not fits:
            raise UserError(
                f"{path}, line {number}: {len(cells)} column{'s' * (len(cells) != 1)} where the first word has "
                f"{layout.width} (a word and its tag on each line, a blank line after each sentence)"
            )
        if not cells[0] or not cells[-1]:
            raise UserError(f"{path}, line {number}: there is no {'tag' if cells[0] else 'word'}")
        if not rows:
            start = number
        rows.append(cells)
        if len(rows) > _LONGEST:
            raise UserError(
                f"{path}, line {start}: a sentence of more than {_LONGEST:,} words; is the blank line after each "
                "sentence missing?"
            )
    if rows:
        yield _sentence(layout, rows, start)


def _layout(path: Path) -> _Layout:
    """The layout, by the lines that cannot be comments; by all, if there are no others."""
    tabs, width, tags = False, 0, set()
    for sure in (True, False):
        for _, line in read_lines(path):
            if not line.strip() or (sure and line.startswith("#")):
                continue
            if not width:
                tabs = "\t" in line
            cells = split(line, tabs)
            if cells[0] == _DOCUMENT:
                continue
            width = width or len(cells)
            if len(cells) == width:
                tags.add(cells[-1])
        if width:
            break
    return _Layout(tabs, width, frozenset(tags))


def _sentence(layout: _Layout, rows: list[list[str]], start: int) -> tuple[str, dict[str, Any]]:
    place = f"lines {start} to {start + len(rows) - 1}" if len(rows) > 1 else f"line {start}"
    return place, {name: list(cells) for name, cells in zip(layout.columns, zip(*rows, strict=True), strict=True)}
