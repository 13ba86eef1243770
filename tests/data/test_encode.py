"""Texts and words as token ids: what stands for a word, and what has no tokens at all."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kdbert.data.encode import encode
from kdbert.data.examples import Examples
from kdbert.errors import UserError


@pytest.fixture
def bare() -> PreTrainedTokenizerFast:
    """A tokenizer that adds no special tokens."""
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "dog": 1, "##s": 2, "cat": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def test_the_first_token_of_each_word_stands_for_it(bare: PreTrainedTokenizerFast) -> None:
    words = [("dog",), ("dogs", "cat"), ("cat", "cat"), ("dogs",)]
    texts = [" ".join(one) for one in words]
    labels = np.zeros(6, dtype=np.int64)
    data = encode(Examples("dev", ["0", "1", "2", "3"], texts, None, labels, words), bare, 8)
    assert data.input_ids.tolist() == [1, 1, 2, 3, 3, 3, 1, 2]
    assert data.word_tokens is not None
    assert data.word_tokens.tolist() == [0, 1, 3, 4, 5, 6]


def test_a_text_without_tokens_is_refused_with_its_id(bare: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="seven"):
        encode(Examples("dev", ["six", "seven"], ["dog", " "], None, None), bare, 8)
