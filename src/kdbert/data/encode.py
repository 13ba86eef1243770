"""Examples -> token ids, kept flat: one array of ids and the offsets of each example, no padding."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from kdbert.data.examples import Examples
from kdbert.data.masking import IGNORE_INDEX, Masking
from kdbert.errors import UserError

_CHUNK = 4096  # examples per tokenizer call: bounds RAM, and keeps every core busy


@dataclass(frozen=True)
class Encoded:
    """A tokenised split.

    Attributes:
        input_ids: int32, all examples one after the other.
        token_types: uint8 like `input_ids`, or None where the model has no segments.
        offsets: int64 [N + 1]; example i is `input_ids[offsets[i]:offsets[i + 1]]`.
        labels: as in `Examples`, or None.
        truncated: how many examples were cut to the maximum length.
        pad_id: the id that fills a batch.
        word_tokens: where each word has a tag, int64 [words]: the word's first token; -1 for a word that was cut off or
            has no token.
        masking: of plain text, which tokens are hidden and predicted.
        multiple: batches are padded to a multiple of so many tokens (or to the longest text), so that they come in few
            shapes: buffers of ever new sizes would leave memory in pieces.
        labelled: as in `Examples`.
    """

    input_ids: np.ndarray
    token_types: np.ndarray | None
    offsets: np.ndarray
    labels: np.ndarray | None
    truncated: int
    pad_id: int
    word_tokens: np.ndarray | None = None
    masking: Masking | None = None
    multiple: int = 1
    labelled: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [N]: tokens per example, special tokens included."""
        return np.diff(self.offsets)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return int(self.lengths.max())

    def width(self, rows: np.ndarray) -> int:
        """How many tokens a batch of some examples is padded to."""
        return min(-(-int(self.lengths[rows].max()) // self.multiple) * self.multiple, self.longest)

    def tokens(self, rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the tokens of some examples are in an array of all tokens, int64 [B, length] (0 at padding); and bool
        [B, length], true at real positions.
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

    @property
    def logits_of(self) -> Literal["example", "token"]:
        """What there is one row of logits for."""
        return "example" if self.word_tokens is None else "token"

    @cached_property
    def token_labels(self) -> np.ndarray:
        """int64 like `input_ids`: a word's tag at its first token, `IGNORE_INDEX` at all others."""
        assert self.word_tokens is not None
        assert self.labels is not None
        found = np.full(len(self.input_ids), IGNORE_INDEX, dtype=np.int64)
        kept = self.word_tokens >= 0
        found[self.word_tokens[kept]] = self.labels[kept]
        return found

    @cached_property
    def label_counts(self) -> np.ndarray:
        """int64 [N]: tokens with a label, where words have tags."""
        return np.add.reduceat(self.token_labels != IGNORE_INDEX, self.offsets[:-1], dtype=np.int64)

    @property
    def rows_with_label(self) -> int:
        """Examples that have a label, of a split with labels."""
        return len(self) if self.labelled is None else int(self.labelled.sum())

    def count_labels(self, rows: np.ndarray) -> int:
        """How many of some examples have a label; where words have tags, how many words that the model reads."""
        there = rows if self.labelled is None else rows[self.labelled[rows]]
        return len(there) if self.word_tokens is None else int(self.label_counts[there].sum())

    def pieces(self) -> np.ndarray:
        """int64, ascending: the token ids that occur in batches of this split, padding included."""
        seen = np.zeros(1 + max(self.pad_id, int(self.input_ids.max(initial=0))), dtype=bool)
        seen[self.pad_id] = True
        for start in range(0, len(self.input_ids), 1 << 20):  # it may be mapped from a file larger than RAM
            seen[self.input_ids[start : start + (1 << 20)]] = True
        return np.flatnonzero(seen)

    def fingerprint(self) -> str:
        """16 hex digits that change when any token or label does."""
        digest = hashlib.sha256()
        for part in (self.input_ids, self.token_types, self.offsets, self.labels, self.word_tokens, self.labelled):
            digest.update(b"" if part is None else np.ascontiguousarray(part).data)  # no copy: it may be mapped
        return digest.hexdigest()[:16]


def encode(examples: Examples, tokenizer: Any, max_length: int) -> Encoded:
    """Tokenise a split: [CLS] a [SEP] b [SEP], the longer sentence is cut first.

    Where words have tags, each word is tokenised by itself. `max_length` includes special tokens.
    """
    wants_types = "token_type_ids" in tokenizer.model_input_names
    ids, types, lengths = bytearray(), bytearray(), array("q")  # they grow in place, so nothing is held twice
    word_tokens = None if examples.words is None else np.full(examples.word_offsets[-1], -1, dtype=np.int64)
    truncated = 0
    position = 0
    for start in range(0, len(examples), _CHUNK):
        stop = start + _CHUNK
        coded = tokenizer(
            list(examples.text_a[start:stop]) if examples.words is None else [*map(list, examples.words[start:stop])],
            None if examples.text_b is None else list(examples.text_b[start:stop]),
            truncation="longest_first",
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=wants_types,
            is_split_into_words=examples.words is not None,
        )
        if word_tokens is not None:
            for number, encoding in enumerate(coded.encodings, start):
                words = np.array([-1 if word is None else word for word in encoding.word_ids])
                first = words >= 0
                first[1:] &= words[1:] != words[:-1]
                word_tokens[examples.word_offsets[number] + words[first]] = position + np.flatnonzero(first)
                position += len(words)
        lengths.extend(len(row) for row in coded["input_ids"])
        empty = next((number for number, row in enumerate(coded["input_ids"], start) if not row), None)
        if empty is not None:
            raise UserError(
                f"example {examples.ids[empty]} of {examples.split} has no tokens: its text is empty, and the "
                "tokenizer adds no special ones; leave it out"
            )
        truncated += sum(bool(encoding.overflowing) for encoding in coded.encodings)
        ids += np.concatenate([np.asarray(row, dtype=np.int32) for row in coded["input_ids"]]).tobytes()
        if wants_types:
            types += np.concatenate([np.asarray(row, dtype=np.uint8) for row in coded["token_type_ids"]]).tobytes()
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Encoded(
        input_ids=np.frombuffer(ids, np.int32),
        token_types=np.frombuffer(types, np.uint8) if types else None,
        offsets=offsets,
        labels=examples.labels,
        truncated=truncated,
        pad_id=tokenizer.pad_token_id or 0,
        word_tokens=word_tokens,
        labelled=examples.labelled,
    )
