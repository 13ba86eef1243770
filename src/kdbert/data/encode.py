"""Examples -> token ids, kept flat: one array of ids and the offsets of each example, no padding."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kdbert.data.examples import Examples

_CHUNK = 4096  # examples per tokenizer call: bounds memory, large enough to keep every core busy


@dataclass(frozen=True)
class Encoded:
    """A tokenised split.

    Attributes:
        input_ids: int32, all examples one after the other.
        token_types: uint8 like `input_ids`, or None where the model has no segments.
        offsets: int64 [N + 1]; example i is `input_ids[offsets[i]:offsets[i + 1]]`.
        labels: int64 [N], float32 [N], or None.
        truncated: how many examples were cut to the maximum length.
        pad_id: the id that fills a batch.
    """

    input_ids: np.ndarray
    token_types: np.ndarray | None
    offsets: np.ndarray
    labels: np.ndarray | None
    truncated: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [N]: tokens per example, special tokens included."""
        return np.diff(self.offsets)

    def tokens(self, rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the tokens of some examples stand in an array of all tokens, padded to a common length.

        Returns:
            int64 [B, length] (0 at padding), and bool [B, length], true at real positions.
        """
        position = np.arange(length)
        real = position[None, :] < self.lengths[rows][:, None]
        return np.where(real, self.offsets[rows][:, None] + position[None, :], 0), real

    @cached_property
    def pair_offsets(self) -> np.ndarray:
        """int64 [N + 1]; the token pairs of example i, row by row, are `pair_offsets[i]:pair_offsets[i + 1]`."""
        return np.concatenate([[0], np.cumsum(self.lengths.astype(np.int64) ** 2)])

    def token_pairs(self, rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """As `tokens`, for the pairs of an example's tokens: [B, length, length] each."""
        counts = self.lengths[rows]
        position = np.arange(length)
        real = position[None, :] < counts[:, None]
        both = real[:, :, None] & real[:, None, :]
        source = position[None, :, None] * counts[:, None, None] + position[None, None, :]
        return np.where(both, self.pair_offsets[rows][:, None, None] + source, 0), both

    def fingerprint(self) -> str:
        """16 hex digits that change when any token or label does."""
        digest = hashlib.sha256(self.input_ids.tobytes())
        for part in (self.token_types, self.offsets, self.labels):
            digest.update(b"" if part is None else part.tobytes())
        return digest.hexdigest()[:16]


def encode(examples: Examples, tokenizer: Any, max_length: int) -> Encoded:
    """Tokenise a split: [CLS] a [SEP] b [SEP], longest sentence cut first (METHODS.md section 7).

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        max_length: the most tokens an example may have, special tokens included.
    """
    wants_types = "token_type_ids" in tokenizer.model_input_names
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths: list[int] = []
    truncated = 0
    for start in range(0, len(examples), _CHUNK):
        stop = start + _CHUNK
        coded = tokenizer(
            examples.text_a[start:stop],
            None if examples.text_b is None else examples.text_b[start:stop],
            truncation="longest_first",
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=wants_types,
        )
        lengths.extend(len(row) for row in coded["input_ids"])
        truncated += sum(bool(encoding.overflowing) for encoding in coded.encodings)
        ids.append(np.concatenate([np.asarray(row, dtype=np.int32) for row in coded["input_ids"]]))
        if wants_types:
            types.append(np.concatenate([np.asarray(row, dtype=np.uint8) for row in coded["token_type_ids"]]))
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Encoded(
        input_ids=np.concatenate(ids),
        token_types=np.concatenate(types) if types else None,
        offsets=offsets,
        labels=examples.labels,
        truncated=truncated,
        pad_id=tokenizer.pad_token_id or 0,
    )
