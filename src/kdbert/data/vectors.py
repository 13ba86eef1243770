"""Word vectors from a text file such as GloVe's, and the words nearest to a word."""

from __future__ import annotations

import math
from array import array
from pathlib import Path

import numpy as np

from kdbert.data.files import read_lines
from kdbert.data.words import is_word
from kdbert.errors import UserError

FIRST_LINES = 100_000  # are read, as by TinyBERT's code; such files begin with the commonest words


class WordVectors:
    """The words of letters in the first lines of a file, with their vectors divided by their lengths.

    A line is a word and its numbers, separated by spaces (`house 0.1 -0.2 …`), plain or gzip; a first line of two
    numbers (word2vec, fastText) is passed over.

    Raises:
        UserError: a line has fewer or more numbers than the first, or something else than a number; no word is there.
    """

    def __init__(self, path: Path) -> None:
        self.words: list[str] = []
        numbers = array("f")
        width = 0
        for line, text in read_lines(path):
            if line > FIRST_LINES:
                break
            head, *rest = text.rstrip().split(" ")
            if line == 1 and len(rest) == 1:
                continue
            width = width or len(rest)
            # Some files have words with spaces in them; a number among these is one too many.
            extra, rest = rest[: len(rest) - width], rest[len(rest) - width :]
            values = [_number(cell) for cell in rest]
            odd = any(not cell or math.isfinite(_number(cell)) for cell in extra)
            if not width or len(rest) < width or not all(map(math.isfinite, values)) or odd:
                raise UserError(
                    f"{path}, line {line}: expected a word and {width or 'its'} finite numbers, separated by "
                    "single spaces"
                )
            if is_word(head) and not extra and any(values):
                self.words.append(head)
                numbers.extend(values)
        if not self.words:
            raise UserError(f"{path} holds no vectors of words: expected a word and its numbers on each line")
        vectors = np.frombuffer(numbers, dtype=np.float32).reshape(len(self.words), width)
        self.units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # float32 [N, width]
        self._place = {word: place for place, word in reversed(list(enumerate(self.words)))}  # the first of each

    def nearest(self, word: str, count: int) -> tuple[str, ...]:
        """The `count` other words of the highest cosine, nearest first; () of a word that is not there.

        A word with capitals that is not there is looked up in lower case.
        """
        place = self._place.get(word, self._place.get(word.lower()))
        if place is None:
            return ()
        cosines = self.units @ self.units[place]
        cosines[place] = -np.inf
        order = np.argsort(-cosines, kind="stable")[: min(count, len(self.words) - 1)]
        return tuple(self.words[number] for number in order.tolist())


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
