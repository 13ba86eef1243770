"""Which tokens of plain text are hidden and have to be predicted: masked language modelling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

IGNORE_INDEX = -100  # the label of a token without a label
BASE_SIZE = "kdbert_base_vocabulary"  # key of tokenizer_config.json: number of pieces before the expansion


@dataclass(frozen=True, eq=False)
class Masking:
    """How tokens are hidden. Every hidden token becomes `[MASK]` (docs/quirks.md, V4).

    BERT keeps a tenth of them and turns another tenth into random tokens; Wettig et al. (2023, "Should you mask 15 % in
    masked language modeling?", arXiv:2202.08005) find that this does not help.

    Attributes:
        mask_id: id of `[MASK]`.
        special: bool [V], tokens that are never hidden (`[CLS]`, `[SEP]`, padding).
        continues: bool [V], tokens that continue a word, where whole words are hidden; None: token by token.
        known: ids from this one on are new: pieces that the teacher's vocabulary lacks.
        new_always: new tokens are always hidden, so that a teacher never reads one.
        probability: share of tokens, or words, that are hidden.
    """

    mask_id: int
    special: np.ndarray
    continues: np.ndarray | None
    known: int
    new_always: bool = True
    probability: float = 0.15

    def chosen(self, ids: np.ndarray, draw: Sequence[int]) -> np.ndarray:
        """Which tokens of a text (int [n]) are hidden: bool [n], a pure function of the text and `draw`, such as
        (seed, epoch, number of the text).
        """
        random = np.random.default_rng([int(number) for number in draw])
        if self.continues is None:
            drawn = random.random(len(ids)) < self.probability
        else:
            after_special = np.concatenate([[True], self.special[ids[:-1]]]) if len(ids) else np.zeros(0, bool)
            word = np.cumsum(~self.continues[ids] | after_special) - 1
            drawn = (random.random(len(ids)) < self.probability)[word] if len(ids) else np.zeros(0, bool)
        return self.with_new(ids, drawn & ~self.special[ids])

    def with_new(self, ids: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """The drawn tokens, and every new one if these are always hidden: bool like `ids`."""
        return drawn | (ids >= self.known) if self.new_always else drawn

    def hide(self, ids: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A text with its chosen tokens hidden.

        Returns:
            The ids with `[MASK]`; labels: the hidden ids, and `IGNORE_INDEX` elsewhere; whether the teacher knows the
            token (hidden or not).
        """
        labels = np.where(chosen, ids, IGNORE_INDEX)
        return np.where(chosen, self.mask_id, ids), labels, labels < self.known


def masking_of(
    tokenizer: Any, *, known: int | None = None, probability: float = 0.15, words: bool = False, new_always: bool = True
) -> Masking:
    """The masking of texts that are read by a tokenizer; with `words`, of whole words.

    `known` is the size of the vocabulary before it was expanded (None: as noted in the tokenizer, else all of it).

    Raises:
        ValueError: the tokenizer has no mask token; with `words`, its pieces do not show where words begin.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError("it has no mask token")
    pieces = tokenizer.convert_ids_to_tokens(list(range(vocabulary_size(tokenizer))))
    special = np.zeros(len(pieces), dtype=bool)
    special[[number for number in tokenizer.all_special_ids if number != tokenizer.unk_token_id]] = True
    continues = None
    if words:
        continues = np.array([piece is not None and piece.startswith("##") for piece in pieces])
        if not continues.any():
            raise ValueError("no piece is marked as continuing a word (##), so whole words cannot be hidden")
    size = known if known is not None else base_size(tokenizer)
    return Masking(tokenizer.mask_token_id, special, continues, size, new_always, probability)


def base_size(tokenizer: Any) -> int:
    """Pieces of a tokenizer before `kdbert expand-vocab` expanded it; all of them if it did not."""
    return int(tokenizer.init_kwargs.get(BASE_SIZE) or vocabulary_size(tokenizer))


def vocabulary_size(tokenizer: Any) -> int:
    """Rows that an embedding must have: the highest id plus one, as some ids may be unused."""
    return 1 + int(max(tokenizer.get_vocab().values()))


def tokenizer_digest(tokenizer: Any) -> str:
    """16 hex digits of everything that decides how a fast tokenizer reads a text."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for key in ("truncation", "padding"):  # set by every call
        state.pop(key)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]
