"""`kdbert expand-vocab`: pieces keep their ids, the corpus alone decides which ones come after them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from conftest import WORDS
from kdbert.models.vocabulary import count_words, pieces_of
from small_models import make_roberta

TERMS = ["cataract", "cataracts", "glaucoma", "retinopathy", "keratitis", "Sjögren"]


def write(path: Path, seed: int = 0, shuffled: bool = False) -> Path:
    """400 texts in which some terms are common."""
    draw = random.Random(seed)
    lines = [" ".join([*draw.choices(WORDS, k=8), *draw.choices(TERMS, k=2)]) for _ in range(400)]
    if shuffled:
        draw.shuffle(lines)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def vocabulary(folder: Path) -> dict[str, int]:
    """Piece -> id."""
    found: dict[str, int] = AutoTokenizer.from_pretrained(folder).get_vocab()
    return found


def test_new_pieces_come_after_the_old_ones_and_are_read(
    tiny_bert: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    corpus = write(tmp_path / "eyes.txt")
    words = ("expand-vocab", "--tokenizer", tiny_bert, "--corpus", corpus, "--add", "12", "--out", tmp_path / "out")
    done = kdbert(*words)
    assert done.code == 0, done.err
    before, after = vocabulary(tiny_bert), vocabulary(tmp_path / "out")
    assert {piece: after[piece] for piece in before} == before
    new = sorted(after.keys() - before.keys(), key=after.__getitem__)
    assert [after[piece] for piece in new] == list(range(max(before.values()) + 1, max(before.values()) + 1 + len(new)))
    assert {"cataract", "glaucoma", "retinopathy", "keratitis"} <= set(new)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("Cataracts and GLAUCOMA") in (
        ["cataracts", "and", "glaucoma"], ["cataract", "##s", "and", "glaucoma"],
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "expansion.json").read_text(encoding="utf-8"))
    assert report["new_pieces"] == len(new) <= 12
    told = report["words"]
    assert told["held_out"]
    assert told["after"]["pieces_per_word"] < told["before"]["pieces_per_word"]
    assert f"{told['before']['pieces_per_word']:.4f} -> {told['after']['pieces_per_word']:.4f}" in done.out
    # Every new piece is read in the corpus as often as was asked for.
    counts = count_words(corpus.read_text(encoding="utf-8").splitlines(), tokenizer)
    read = dict.fromkeys(new, 0)
    for word, often in counts.items():
        for piece in pieces_of(word, after, 100) or ():
            read[piece] = read.get(piece, 0) + often
    assert min(read[piece] for piece in new) >= 5
    # The same command again finds it; another one does not write over it.
    again = kdbert(*words)
    assert (again.code, "was made so before" in again.err) == (0, True)
    other = kdbert(*words[:-3], "8", *words[-2:])
    assert (other.code, "holds another expansion (add differ)" in other.err) == (2, True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    done = kdbert(*words[:-1], tmp_path / "mine")
    assert (done.code, "holds something else" in done.err) == (2, True)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_the_result_does_not_depend_on_the_order_of_lines_or_on_the_process(
    tiny_bert: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    found = []
    for number, shuffled in enumerate((False, True, False)):
        corpus = write(tmp_path / f"{number}.txt", shuffled=shuffled)
        out = tmp_path / f"out{number}"
        words = ["expand-vocab", "--tokenizer", tiny_bert, "--corpus", corpus, "--add", "40", "--min-count", "2"]
        if number:
            assert kdbert(*words, "--out", out).code == 0
        else:
            other = [sys.executable, "-m", "kdbert", *map(str, [*words, "--out", out])]
            subprocess.run(other, env={**os.environ, "PYTHONHASHSEED": "7"}, check=True)
        found.append(vocabulary(out))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > len(vocabulary(tiny_bert)) + 4


def test_adding_stops_where_it_gains_little(tiny_bert: Path, kdbert: Callable[..., Any], tmp_path: Path) -> None:
    corpus = write(tmp_path / "eyes.txt")
    sizes = []
    for gain in ("0.0001", "0.02", "0.9"):
        out = tmp_path / f"out{gain}"
        done = kdbert(
            "expand-vocab", "--tokenizer", tiny_bert, "--corpus", corpus, "--add", "60", "--min-gain", gain,
            "--min-count", "1", "--out", out,
        )  # fmt: skip
        sizes.append(len(vocabulary(out)) if done.code == 0 else 0)
    assert sizes[0] > 0 == sizes[2]  # nothing gains nine tenths
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (["--min-count", "1"], "give more text"),
        (["--min-count", "60"], "give more text, or a smaller --min-count"),
        (["--min-gain", "0.02", "--min-count", "1"], "--min-gain 0.02 ends after"),
    ],
)
def test_fewer_pieces_than_were_asked_for_are_told_with_the_reason(
    tiny_bert: Path, kdbert: Callable[..., Any], tmp_path: Path, limits: list[str], why: str
) -> None:
    corpus, out = write(tmp_path / "eyes.txt"), tmp_path / "out"
    add = 60 if "--min-gain" in limits else 1000
    words = ("expand-vocab", "--tokenizer", tiny_bert, "--corpus", corpus, "--add", add, *limits, "--out", out, "-q")
    for _ in range(2):  # when it was made, and when it is there
        done = kdbert(*words)
        assert done.code == 0, done.err
        report = json.loads((out / "expansion.json").read_text(encoding="utf-8"))
        assert 0 < report["new_pieces"] < add
        assert report["candidates"] >= report["new_pieces"]
        assert f"{report['new_pieces']} new pieces, fewer than the {add} of --add: {report['short']}" in done.err
        assert why in report["short"]
        if "--min-gain" not in limits:
            assert f" {report['candidates']} pieces" in report["short"]


def test_a_list_of_pieces_is_taken_but_for_what_cannot_be_read(
    tiny_bert: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    listed = tmp_path / "pieces.txt"
    listed.write_text("cat\nzebra\nZebra\n##zoo\nzebra\nsjögren\n\nbeta-blocker\n", encoding="utf-8")
    out = tmp_path / "out"
    done = kdbert("expand-vocab", "--tokenizer", tiny_bert, "--pieces", listed, "--out", out)
    assert done.code == 0, done.err
    first = max(vocabulary(tiny_bert).values()) + 1
    after = vocabulary(out)
    assert {piece: number for piece, number in after.items() if number >= first} == {"zebra": first, "##zoo": first + 1}
    for told in (
        "1 (the tokenizer has them already)", "1 (they are listed twice)",
        "2 (the tokenizer normalises them away (lower case, accents))",
        "1 (the tokenizer splits them into words)",
    ):  # fmt: skip
        assert f"left out: {told}" in done.out
    assert AutoTokenizer.from_pretrained(out).tokenize("zebra zebrazoo") == ["zebra", "zebra", "##zoo"]


@pytest.mark.long
@pytest.mark.real_data
def test_pieces_of_real_text_shorten_it(kdbert: Callable[..., Any], data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    corpus = data_dir / "corpora" / "pubmed_abstracts"
    done = kdbert(
        "expand-vocab", "--tokenizer", "all-MiniLM-L6-v2", "--corpus", corpus, "--add", "1000", "--out", out
    )  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads((out / "expansion.json").read_text(encoding="utf-8"))
    assert report["base_pieces"] == 30522
    assert report["words"]["after"]["pieces_per_word"] < report["words"]["before"]["pieces_per_word"] - 0.1
    assert "transcriptional" in report["words"]["became_one_piece"]["commonest"]
    assert AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("phosphorylation") >= 30522


def test_what_cannot_be_expanded_is_told(tiny_bert: Path, kdbert: Callable[..., Any], tmp_path: Path) -> None:
    corpus = write(tmp_path / "eyes.txt")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    (tmp_path / "known.txt").write_text("cat\ndog\n", encoding="utf-8")
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    more = AutoTokenizer.from_pretrained(tiny_bert)
    more.add_tokens(["<e1>", "<e2>"])
    more.save_pretrained(tmp_path / "added")
    base = ("expand-vocab", "--out", tmp_path / "out", "--tokenizer")
    for words, told in (
        ((tiny_bert,), "name text with --corpus"),
        ((tiny_bert, "--corpus", tmp_path / "empty.txt"), "is empty"),
        ((tiny_bert, "--corpus", tmp_path / "none"), "no corpus"),
        ((tiny_bert, "--pieces", tmp_path / "known.txt"), "the tokenizer has them already"),
        ((tiny_bert, "--corpus", corpus, "--min-count", "9999"), "no new piece is read 9999 times"),
        ((make_roberta(tmp_path / "roberta"), "--corpus", corpus), "is a byte-pair tokenizer, and only WordPiece"),
        ((tmp_path / "a/b/c", "--corpus", corpus), "no tokenizer folder"),
        ((tiny_bert, "--corpus", ""), "--corpus is empty"),
        ((tiny_bert, "--corpus", tmp_path), "is inside the corpus"),
        ((tiny_bert, "--corpus", corpus, "--min-gain", "0.9"), "--min-gain 0.9: the first tenth of --add, 3000 pieces"),
        ((tiny_bert, "--pieces", tmp_path / "known.txt", "--add", "3"), "--pieces takes all of a list"),
        ((tiny_bert, "--pieces", tmp_path / "none.txt"), "no such file"),
        ((tiny_bert, "--pieces", tmp_path / "blank.txt"), "blank.txt: it is blank"),
        ((tmp_path / "added", "--corpus", corpus), "has added tokens after its vocabulary (<e1>, <e2>)"),
    ):
        done = kdbert(*base, *words)
        assert (done.code, "Traceback" in done.err) == (2, False), (words, done.err)
        assert told in done.err, (words, done.err)
        assert not (tmp_path / "out").exists()


def test_a_tokenizer_expanded_twice_still_tells_its_first_size(
    tiny_bert: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "one.txt").write_text("zebra\n", encoding="utf-8")
    (tmp_path / "two.txt").write_text("zoo\n", encoding="utf-8")
    for source, name, out in ((tiny_bert, "one", "first"), (tmp_path / "first", "two", "second")):
        words = ("expand-vocab", "--tokenizer", source, "--pieces", tmp_path / f"{name}.txt", "--out", tmp_path / out)
        assert kdbert(*words).code == 0
    size = max(vocabulary(tiny_bert).values()) + 1
    settings = json.loads((tmp_path / "second" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["kdbert_base_vocabulary"] == size
    assert vocabulary(tmp_path / "second")["zoo"] == size + 1


def test_what_is_swallowed_is_replaced_until_all_that_was_asked_for_is_there(
    tiny_bert: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    draw = random.Random(0)
    terms = ["".join(draw.choices("aeioubdgklmnprst", k=draw.randint(4, 12))) for _ in range(60)]
    corpus = tmp_path / "terms.txt"
    corpus.write_text("\n".join(" ".join(draw.choices(terms, k=10)) for _ in range(300)), encoding="utf-8")
    words = ("expand-vocab", "--tokenizer", tiny_bert, "--corpus", corpus)
    for add in (3, 20, 60):
        done = kdbert(*words, "--add", add, "--out", tmp_path / str(add))
        assert (done.code, "fewer than" in done.err) == (0, False), done.err
        report = json.loads((tmp_path / str(add) / "expansion.json").read_text(encoding="utf-8"))
        assert (report["new_pieces"], report["short"]) == (add, "")
    assert report["dropped"]  # parts of words that are pieces now


def test_a_damaged_expansion_is_not_taken_for_a_finished_one(
    tiny_bert: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    words = ("expand-vocab", "--tokenizer", tiny_bert, "--corpus", write(tmp_path / "eyes.txt"), "--add", "5")
    assert kdbert(*words, "--out", tmp_path / "out").code == 0
    place = tmp_path / "out" / "tokenizer.json"
    place.write_text(place.read_text(encoding="utf-8").replace('"cat"', '"cut"'), encoding="utf-8")
    done = kdbert(*words, "--out", tmp_path / "out")
    assert done.code == 2
    assert "tokenizer.json is damaged" in done.err
