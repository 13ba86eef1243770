"""Plain text becomes sequences: every token once where it is packed, one text each where it is not."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from conftest import WORDS
from kdbert.data.corpus import DEV_SHARE, is_dev, read_texts, tokenised
from kdbert.data.masking import Masking
from kdbert.errors import UserError


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Texts of 1 to 60 words."""
    draw = random.Random(1)
    return [" ".join(draw.choices([*WORDS, "unbelievable"], k=draw.randint(1, 60))) for _ in range(400)]


def test_packed_texts_keep_every_token_in_order_and_fill_their_sequences(
    tiny_bert: Path, lines: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    found = tokenised(str(tmp_path / "a.txt"), tokenizer, 32, folder=tmp_path / "kept", packed=True).encoded
    assert set(found.lengths[:-1].tolist()) == {32}
    sequences = np.split(np.asarray(found.input_ids), found.offsets[1:-1])
    assert all(one[0] == tokenizer.cls_token_id and one[-1] == tokenizer.sep_token_id for one in sequences)
    ids = tokenizer(lines, add_special_tokens=False)["input_ids"]
    inside = np.concatenate([one[1:-1] for one in sequences])
    assert inside[inside != tokenizer.sep_token_id].tolist() == [token for text in ids for token in text]
    # Texts are set apart, but for those that begin a sequence.
    assert len(lines) * 0.9 < (inside == tokenizer.sep_token_id).sum() < len(lines)


def test_unpacked_texts_are_read_as_the_tokenizer_reads_each(tiny_bert: Path, lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(lines) + "\n  \n", encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    found = tokenised(str(tmp_path / "a.txt"), tokenizer, 32, folder=tmp_path / "kept", packed=False).encoded
    expected = tokenizer(lines, truncation=True, max_length=32)["input_ids"]
    assert [one.tolist() for one in np.split(np.asarray(found.input_ids), found.offsets[1:-1])] == expected
    whole = tokenizer(lines)["input_ids"]
    assert found.truncated == sum(len(one) > 32 for one in whole) > 0


def test_every_text_is_of_one_part_whatever_the_order(tiny_bert: Path, lines: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "1.txt").write_text("\n".join(lines[:100]), encoding="utf-8")
    with gzip.open(folder / "2.text.gz", "wt", encoding="utf-8") as file:
        file.write("\r\n".join(lines[100:]))
    (folder / "notes.md").write_text("no text of the corpus", encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    parts = {
        part: tokenised(str(folder), tokenizer, 64, folder=tmp_path / "kept", packed=False, part=part)
        for part in ("train", "dev")
    }
    assert len(parts["train"]) + len(parts["dev"]) == len(lines)
    assert len(parts["dev"]) == sum(map(is_dev, lines)) == sum(map(is_dev, reversed(lines)))
    assert len(lines) / DEV_SHARE / 2.5 < len(parts["dev"]) < len(lines) / DEV_SHARE * 2.5


def test_what_is_kept_is_used_again_and_made_again_when_damaged(
    tiny_bert: Path, lines: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)

    def load() -> list[int]:
        found = tokenised(str(tmp_path / "a.txt"), tokenizer, 32, folder=tmp_path / "kept", packed=True).encoded
        return np.asarray(found.input_ids).tolist()

    with caplog.at_level("INFO", logger="kdbert"):
        first = load()
        assert caplog.text.count("tokenising") == 1
        assert load() == first
        assert caplog.text.count("tokenising") == 1
        (ids,) = (tmp_path / "kept").glob("*/ids.bin")
        content = bytearray(ids.read_bytes())
        for damaged in (content[:-4], bytes([content[0] ^ 1, *content[1:]]), b""):
            ids.write_bytes(damaged)
            assert load() == first
        assert caplog.text.count("tokenising") == 4
        assert "damaged" in caplog.text
    (tmp_path / "a.txt").write_text("\n".join(lines[:-1]), encoding="utf-8")
    assert load() != first
    assert not list((tmp_path / "kept").glob(".*"))  # nothing half made is left


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "is empty"), (b"\n \n\t\n", "all of its lines are blank"), (b"a\nna\xefve\n", "line 2: not UTF-8")],
)
def test_a_corpus_without_text_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=told):
        list(read_texts(str(tmp_path / "a.txt")))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 39), max_size=60), st.integers(0, 2**32), st.booleans(), st.booleans(),
    st.floats(0.01, 0.99),
)  # fmt: skip
def test_hidden_tokens_are_never_special_always_new_and_can_be_put_back(
    tokens: list[int], seed: int, words: bool, always: bool, probability: float
) -> None:
    special, continues = np.arange(40) < 3, np.arange(40) % 4 == 3
    masking = Masking(2, special, continues if words else None, 30, always, probability)
    ids = np.array(tokens, dtype=np.int64)
    chosen = masking.chosen(ids, (seed, 0, 1))
    assert not chosen[ids < 3].any()
    if always:
        assert chosen[ids >= 30].all()
    elif words:  # a word is hidden as a whole
        together = continues[ids[1:]] & ~special[ids[:-1]] & ~special[ids[1:]]
        assert (chosen[1:] == chosen[:-1])[together].all()
    hidden, labels, known = masking.hide(ids, chosen)
    assert (np.where(labels == -100, hidden, labels) == ids).all()
    assert (hidden[chosen] == 2).all()
    assert (known == ~(chosen & (ids >= 30))).all()


def test_a_text_is_a_line_a_document_or_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "1.txt").write_text("one\n two\r\n\n \nthree\n", encoding="utf-8")
    (folder / "2.txt").write_text("\nfour\nfive", encoding="utf-8")
    assert list(read_texts(str(folder))) == ["one", "two", "three", "four", "five"]
    assert list(read_texts(str(folder), "document")) == ["one two", "three", "four five"]
    assert list(read_texts(str(folder), "file")) == ["one two three", "four five"]
