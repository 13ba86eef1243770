"""Words of a text: what stands between white space and punctuation."""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

from tokenizers.pre_tokenizers import BertPreTokenizer

_SPLITTER = BertPreTokenizer()


class Word(NamedTuple):
    """A word of a text, and where it stands there."""

    text: str
    start: int
    end: int


def words_of(text: str) -> list[Word]:
    """The words of letters alone in a text, as BERT's tokenizer splits it; no numbers, nothing like `x2`."""
    return [Word(word, *place) for word, place in _SPLITTER.pre_tokenize_str(text) if is_word(word)]


def is_word(text: str) -> bool:
    """Whether a text consists of letters, and of marks that belong to letters."""
    return bool(text) and (text.isalpha() or all(unicodedata.category(letter)[0] in "LM" for letter in text))
