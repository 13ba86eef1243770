"""A tag for each word, predicted at the word's first token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from kdbert.data.corpus import TextSplit
from kdbert.data.encode import Encoded
from kdbert.data.examples import Examples
from kdbert.data.labels import class_number
from kdbert.data.masking import IGNORE_INDEX
from kdbert.errors import UserError
from kdbert.heads.head import Head, Variant
from kdbert.losses.hinton import soft_label_loss
from kdbert.metrics.grouped import OUTSIDE


class Tokens(Head):
    """Labels are tag numbers of all words, int64 [W]; in a batch int64 [B, L], -100 at all other tokens.

    Logits of a batch are [B, L, C], of a split [tokens, C]; `label_logits` makes [W, C] of them.
    """

    kind = "token"
    takes = "tags words"
    makes = "tagger of words"
    auto_class = "AutoModelForTokenClassification"
    saved_as = ("ForTokenClassification",)
    pipeline = "token-classification"
    of_words = True
    reads_first_token = False
    has_example_classes = False
    published = False

    @property
    def answers(self) -> str:
        return f"a tag of each word ({', '.join(self.classes)})"

    def read_label(self, label: str | tuple[str, ...], words: Sequence[str] | None, where: str) -> list[Any]:
        if words is not None and len(words) != len(label):
            raise UserError(f"{where}: {len(words)} words, but {len(label)} tags")
        return [class_number(tag, self.numbers, where) for tag in label]

    def soft_loss(
        self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float, variant: Variant
    ) -> torch.Tensor:
        return soft_label_loss(student, teacher, temperature).masked_fill(labels == IGNORE_INDEX, 0.0)

    def label_logits(self, logits: np.ndarray, data: Encoded, columns: Sequence[int] | None = None) -> np.ndarray:
        """Logits of words, [W, C], from those of tokens.

        A word that was cut off, or has no token, counts as one outside of all entities (tag "O"); where no tag means
        that, as the first tag.
        """
        assert data.word_tokens is not None
        found = (logits if columns is None else logits[:, columns])[data.word_tokens]
        lost = data.word_tokens < 0
        found[lost] = 0.0
        found[lost, self.numbers.get(OUTSIDE, 0)] = 1.0
        return found

    def written(self, answer: Any) -> Any:
        """The tags of an example's words."""
        return [self.classes[tag] for tag in answer]

    def places(self, part: Examples | TextSplit) -> Sequence[int | slice]:
        assert isinstance(part, Examples)
        return [slice(*both) for both in pairwise(part.word_offsets.tolist())]

    def constants(self, labels: np.ndarray, groups: np.ndarray | None) -> list[Any]:
        """Every tag: one may be the best that no word has."""
        return list(range(len(self.classes)))
