"""`kdbert augment`: whole words are replaced by a masked-LM or word vectors; no repeats, no leakage, always alike."""

from __future__ import annotations

import gzip
import json
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from conftest import WORDS, make_bert
from kdbert.augmentation import STOP_WORDS, Seen, text_columns
from kdbert.data.vectors import WordVectors
from kdbert.data.words import words_of
from kdbert.models.vocabulary import whole_words
from kdbert.tasks import get_task, task_names
from kdbert.tasks.own.columns import TEXT_COLUMNS, TEXT_PAIRS, WORD_COLUMNS
from small_models import make_masked_roberta, make_masked_xlm_roberta

ONE_PIECE = sorted({word for word in WORDS if word not in STOP_WORDS})
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked-LM whose whole words are those of the texts, and single letters."""
    return make_bert(tmp_path_factory.mktemp("augment") / "bert", layers=2, masked_lm=True)


@pytest.fixture(scope="module")
def models(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A masked-LM of each kind of tokenizer."""
    folder = tmp_path_factory.mktemp("kinds")
    return {
        "wordpiece": bert,
        "byte-pair": make_masked_roberta(folder / "roberta"),
        "sentencepiece": make_masked_xlm_roberta(folder / "xlm-roberta"),
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sentence(draw: random.Random, length: int) -> str:
    return " ".join(draw.choices(WORDS, k=length))


def texts_of(count: int, seed: int = 0, length: int = 6) -> list[dict[str, Any]]:
    """Rows of a task with two classes."""
    draw = random.Random(seed)
    return [{"text": sentence(draw, length), "label": "ab"[number % 2]} for number in range(count)]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("single")
    return write(folder / "train.jsonl", texts_of(12, 0, 16)), write(folder / "dev.jsonl", texts_of(8, 1, 16))


def flags(train: Path, dev: Path, model: Path, output: Path, *more: object) -> tuple[object, ...]:
    """The command on own data."""
    return (
        "augment", "--task", "custom", "--train-file", train, "--dev-file", dev, "--model", model, "-o", output,
        "--precision", "fp32", *more,
    )  # fmt: skip


def made(kdbert: Command, *words: object) -> list[dict[str, Any]]:
    """The rows of a command's output."""
    done = kdbert(*words)
    assert done.code == 0, done.err
    return read(Path(str(words[words.index("-o") + 1])))


def plain(text: str) -> str:
    return " ".join(text.casefold().split())


def test_new_texts_have_their_row_differ_in_words_and_never_repeat(
    single: tuple[Path, Path], bert: Path, kdbert: Command, tmp_path: Path
) -> None:
    rows = made(kdbert, *flags(*single, bert, tmp_path / "new.jsonl"))
    train, texts = read(single[0]), [row["text"] for row in rows]
    assert len(texts) == len(set(map(plain, texts))) > 100
    assert not set(map(plain, texts)) & {plain(row["text"]) for file in single for row in read(file)}
    changed = same = 0
    for row in rows:
        assert row.keys() == {"text", "of"}
        old, new = train[int(row["of"])]["text"].split(), row["text"].split()
        assert len(old) == len(new)
        for before, after in zip(old, new, strict=True):
            if before in STOP_WORDS:
                assert before == after
            else:
                changed, same = changed + (before != after), same + (before == after)
    assert 0.3 < changed / (changed + same) < 0.5  # the threshold; texts without any change are left out
    counts = [sum(row["of"] == str(number) for row in rows) for number in range(len(train))]
    assert max(counts) <= 20


def test_the_threshold_and_the_count_are_obeyed(
    single: tuple[Path, Path], bert: Path, kdbert: Command, tmp_path: Path
) -> None:
    more = ("--threshold", "1", "--per-example", "3", "--candidates", "1")
    rows = made(kdbert, *flags(*single, bert, tmp_path / "new.jsonl", *more))
    assert len(rows) <= 12  # one candidate in every place: all draws of an example are alike
    assert len({row["of"] for row in rows}) == len(rows)


def test_no_text_of_dev_or_test_is_made(bert: Path, kdbert: Command, tmp_path: Path) -> None:
    """One word, a few candidates: without a look at dev and test some of them would be made."""
    train = write(tmp_path / "train.jsonl", [{"text": "good", "label": "a"}, {"text": "bad", "label": "b"}])
    dev = write(tmp_path / "dev.jsonl", [{"text": "zz zz", "label": "a"}])
    first = made(kdbert, *flags(train, dev, bert, tmp_path / "first.jsonl"))
    texts = sorted({row["text"] for row in first})
    assert len(texts) > 5
    dev = write(tmp_path / "dev2.jsonl", [{"text": texts[0].upper(), "label": "a"}, {"text": texts[1], "label": "a"}])
    test = write(tmp_path / "test.jsonl", [{"text": f" {texts[2]}  ", "label": "a"}])
    second = made(kdbert, *flags(train, dev, bert, tmp_path / "second.jsonl", "--test-file", test))
    assert sorted({row["text"] for row in second}) == texts[3:]


@pytest.mark.parametrize("kind", ["wordpiece", "byte-pair", "sentencepiece"])
def test_candidates_are_those_of_a_plain_loop(
    kind: str, models: dict[str, Path], single: tuple[Path, Path], kdbert: Command, tmp_path: Path
) -> None:
    """Each word that is one piece is masked by itself; the most probable whole words may take its place."""
    rows = made(kdbert, *flags(*single, models[kind], tmp_path / "new.jsonl", "--per-example", "200"))
    model = AutoModelForMaskedLM.from_pretrained(models[kind]).eval()
    tokenizer = AutoTokenizer.from_pretrained(models[kind])
    words = whole_words(tokenizer)
    ids = {word: number for number, word in enumerate(words) if word is not None}
    never = torch.tensor([word is None for word in words])
    taken = possible = 0
    for number, row in enumerate(read(single[0])):
        old = row["text"].split()
        new = [one["text"].split() for one in rows if one["of"] == str(number)]
        for place, word in enumerate(old):
            found = {text[place] for text in new} - {word}
            if word in STOP_WORDS or word not in ids:
                assert not found
                continue
            # The place of the word among the words is its place among the pieces, as all pieces are counted before it.
            before = tokenizer(" " + " ".join(old[:place]), add_special_tokens=False)["input_ids"] if place else []
            coded = tokenizer(" " + row["text"], return_tensors="pt")
            position = 1 + len(before)
            assert int(coded["input_ids"][0, position]) == ids[word]
            coded["input_ids"][0, position] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = model(**coded).logits[0, position, : len(words)]
            best = logits.masked_fill(never, -math.inf).topk(min(15, len(ids))).indices.tolist()
            allowed = {words[one] for one in best} - {word}
            assert found <= allowed
            taken, possible = taken + len(found), possible + len(allowed)
    assert taken > 0.9 * possible > 0


@pytest.mark.parametrize("kind", ["wordpiece", "byte-pair", "sentencepiece"])
def test_whole_words_are_pieces_that_are_words_of_letters(kind: str, models: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models[kind])
    words = whole_words(tokenizer)
    mark = {"wordpiece": "", "byte-pair": "Ġ", "sentencepiece": "▁"}[kind]
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(words))))
    assert sum(word is not None for word in words) > 20
    for piece, word in zip(pieces, words, strict=True):
        if word is not None:
            assert piece == mark + word
            assert word.isalpha()
    assert "good" in words
    assert not {"[CLS]", "<s>", "<mask>", "[UNK]", ".", "7"} & set(words)


def test_words_are_replaced_where_they_stand_and_nothing_else_is_changed(
    bert: Path, kdbert: Command, tmp_path: Path
) -> None:
    text = "  GOOD people\u2014(Book), café; the cat's 42 x2 good-bad\tWOMAN_man! \U0001f600 यह film  "
    train = write(tmp_path / "train.jsonl", [{"text": text, "label": "a"}, {"text": "old", "label": "b"}])
    dev = write(tmp_path / "dev.jsonl", [{"text": "new", "label": "a"}])
    rows = made(kdbert, *flags(train, dev, bert, tmp_path / "new.jsonl", "--threshold", "1"))
    before = words_of(text)
    kept = {"café", "the", "s", "यह"}
    texts = [row["text"] for row in rows if row["of"] == "0"]
    assert len(texts) > 5
    for new in texts:
        after = words_of(new)
        assert len(before) == len(after)
        gaps = [text[one.end : two.start] for one, two in pairwise(before)]
        assert gaps == [new[one.end : two.start] for one, two in pairwise(after)]
        assert (new[: after[0].start], new[after[-1].end :]) == ("  ", "  ")
        for one, two in zip(before, after, strict=True):
            assert one.text not in kept or two.text == one.text
            assert not one.text.istitle() or two.text.istitle()


def test_pairs_change_one_text_at_a_time(bert: Path, kdbert: Command, tmp_path: Path) -> None:
    draw = random.Random(3)
    pairs = [{"premise": sentence(draw, 8), "hypothesis": sentence(draw, 7), "label": "ab"[n % 2]} for n in range(6)]
    train, dev = write(tmp_path / "train.jsonl", pairs), write(tmp_path / "dev.jsonl", pairs[:1])
    rows = made(kdbert, *flags(train, dev, bert, tmp_path / "new.jsonl", "--per-example", "21"))
    sides = {"premise": 0, "hypothesis": 0}
    for row in rows:
        assert row.keys() == {"premise", "hypothesis", "of"}
        changed = [name for name in sides if row[name] != pairs[int(row["of"])][name]]
        assert len(changed) == 1
        sides[changed[0]] += 1
    assert 40 < sides["premise"] <= 6 * 11
    assert 40 < sides["hypothesis"] <= 6 * 10


def test_tagged_words_stay_as_many(bert: Path, kdbert: Command, tmp_path: Path) -> None:
    tokens = ["Good", "man", "New York", "", "x2", "cat-dog", "happy."]
    train = write(tmp_path / "train.jsonl", [{"tokens": tokens, "tags": ["O", "B-A", "O", "O", "O", "O", "O"]}])
    dev = write(tmp_path / "dev.jsonl", [{"tokens": ["sad"], "tags": ["O"]}])
    rows = made(kdbert, *flags(train, dev, bert, tmp_path / "new.jsonl", "--threshold", "1"))
    assert len(rows) > 5
    for row in rows:
        assert row.keys() == {"tokens", "of"}
        assert len(row["tokens"]) == len(tokens)
        assert row["tokens"][3:5] == ["", "x2"]
        assert row["tokens"][5].count("-") == 1
        assert row["tokens"][6].endswith(".")


@pytest.mark.parametrize("pair", [False, True])
def test_rows_are_a_function_of_seed_and_text(pair: bool, bert: Path, kdbert: Command, tmp_path: Path) -> None:
    """Another order of rows and other neighbours change nothing; another seed does."""
    draw = random.Random(5)
    data = [
        {**({"premise": sentence(draw, 5)} if pair else {}), "hypothesis": sentence(draw, 8 + number % 3)}
        for number in range(10)
    ]
    names = list(data[0])
    dev = write(tmp_path / "dev.jsonl", [{**dict.fromkeys(names, "zz"), "label": "a"}])

    def made_of(rows: list[dict[str, Any]], name: str, *more: object) -> dict[str, list[Any]]:
        train = write(tmp_path / f"{name}.jsonl", [{**row, "label": "ab"[n % 2]} for n, row in enumerate(rows)])
        new = made(kdbert, *flags(train, dev, bert, tmp_path / f"{name}.new", *more, "--text-columns", ",".join(names)))
        found: dict[str, list[Any]] = {}
        for row in new:
            key = " / ".join(rows[int(row["of"])][column] for column in names)
            found.setdefault(key, []).append([row[column] for column in names])
        return found

    first = made_of(data, "first")
    assert made_of(data[::-1], "backwards") == first
    some = made_of(data[2:6], "some")
    assert some == {key: first[key] for key in some}
    assert len(some) == 4
    other = made_of(data, "other", "--seed", "2")
    assert all(other[key] != first[key] for key in first)


def test_a_repeated_row_gives_its_texts_once(bert: Path, kdbert: Command, tmp_path: Path) -> None:
    rows = texts_of(2)
    train = write(tmp_path / "train.jsonl", [*rows, *rows])
    dev = write(tmp_path / "dev.jsonl", [{"text": "zz", "label": "a"}])
    new = made(kdbert, *flags(train, dev, bert, tmp_path / "new.jsonl"))
    assert {row["of"] for row in new} == {"0", "1"}


def test_columns_of_registered_tasks_are_those_that_are_recognised_in_a_file() -> None:
    for name in task_names():
        spec = get_task(name)
        columns = text_columns(spec)
        known = TEXT_PAIRS if spec.pair else [(one,) for one in (WORD_COLUMNS if spec.head.of_words else TEXT_COLUMNS)]
        assert columns in known, name


# ---- stopped, continued, done


def test_the_same_command_again_does_nothing_and_another_is_refused(
    single: tuple[Path, Path], bert: Path, kdbert: Command, tmp_path: Path
) -> None:
    output = tmp_path / "new.jsonl"
    words = flags(*single, bert, output)
    first = made(kdbert, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.jsonl", "new.jsonl.about.json"]
    before = output.stat().st_mtime_ns
    again = kdbert(*words)
    assert (again.code, "so before" in again.err) == (0, True)
    assert output.stat().st_mtime_ns == before
    refused = kdbert(*words, "--seed", "2")
    assert (refused.code, "seed" in refused.err) == (2, True)
    assert kdbert(*words, "--seed", "2", "--overwrite").code == 0
    assert read(output) != first
    assert made(kdbert, *words, "--overwrite") == first
    (tmp_path / "glove.txt").write_text("house\n", encoding="utf-8")
    assert kdbert(*words, "--overwrite", "--vectors", tmp_path / "glove.txt").code == 2
    assert read(output) == first
    output.write_text("{}\n", encoding="utf-8")
    refused = kdbert(*words)
    assert (refused.code, "changed" in refused.err) == (2, True)


@pytest.mark.long
def test_a_stopped_command_continues_and_ends_with_the_same_bytes(bert: Path, kdbert: Command, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", texts_of(1500, 7, 12))
    dev = write(tmp_path / "dev.jsonl", texts_of(3, 8))
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    words = flags(train, dev, bert, stopped)
    part = tmp_path / "stopped.jsonl.part"
    with subprocess.Popen(
        [sys.executable, "-m", "kdbert", *map(str, words)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 120
        while not (part.exists() and part.stat().st_size) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, "again to continue" in told) == (143, True)
    assert not stopped.exists()
    about = json.loads((tmp_path / "stopped.jsonl.about.json").read_text(encoding="utf-8"))
    assert 0 < about["counts"]["examples"] < 1500
    with open(part, "a", encoding="utf-8") as stream:  # as a kill between two notes leaves it
        stream.write('{"text": "half a li')
    done = kdbert(*words)
    assert (done.code, "continued after" in done.err) == (0, True)
    made(kdbert, *flags(train, dev, bert, whole))
    assert stopped.read_bytes() == whole.read_bytes()
    both = [json.loads((tmp_path / f"{name}.jsonl.about.json").read_text()) for name in ("stopped", "whole")]
    assert both[0] == both[1]


@pytest.mark.parametrize("after", ["nothing", "the last note"])
def test_a_kill_at_the_beginning_or_the_end_costs_nothing(
    after: str, single: tuple[Path, Path], bert: Path, kdbert: Command, tmp_path: Path
) -> None:
    output, part = tmp_path / "new.jsonl", tmp_path / "new.jsonl.part"
    words = flags(*single, bert, output)
    made(kdbert, *words)
    expected = output.read_bytes()
    output.rename(part)
    if after == "nothing":
        (tmp_path / "new.jsonl.about.json").unlink()
    assert kdbert(*words).code == 0
    assert output.read_bytes() == expected
    assert not part.exists()


def test_digests_are_remembered_beyond_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbert.augmentation._RECENT", 10)
    draw, seen = random.Random(0), Seen()
    added: set[int] = set()
    for _ in range(95):
        number = draw.choice([draw.randrange(2**64), draw.randrange(50), 2**64 - 1 - draw.randrange(50)])
        assert (number in seen) == (number in added)
        seen.add(number)
        added.add(number)
    assert all(number in seen for number in added)


# ---- word vectors


def vectors_file(path: Path, words: list[str], seed: int = 0) -> np.ndarray:
    """Write vectors of words; float32 [N, 8]."""
    values = np.random.default_rng(seed).normal(size=(len(words), 8)).round(4).astype(np.float32)
    lines = "".join(
        f"{word} {' '.join(map(str, row.tolist()))}\n" for word, row in zip(words, values.round(4), strict=True)
    )
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w", encoding="utf-8") as stream:
        stream.write(lines)
    return values


@pytest.mark.parametrize("name", ["glove.txt", "glove.txt.gz"])
def test_neighbours_are_those_of_a_brute_force(name: str, tmp_path: Path) -> None:
    words = [f"w{a}{b}".translate(str.maketrans("0123456789", "abcdefghij")) for a in range(10) for b in range(10)]
    values = vectors_file(tmp_path / name, words).astype(np.float64)
    found = WordVectors(tmp_path / name)
    for number, word in enumerate(words):
        cosines = values @ values[number] / np.linalg.norm(values, axis=1) / np.linalg.norm(values[number])
        cosines[number] = -2
        assert found.nearest(word, 7) == tuple(words[one] for one in np.argsort(-cosines)[:7])
    assert found.nearest(words[5].upper(), 3) == found.nearest(words[5], 3)
    assert found.nearest("nowhere", 3) == ()
    assert len(found.nearest(words[0], 1000)) == 99


def test_words_of_several_pieces_are_replaced_by_neighbours(bert: Path, kdbert: Command, tmp_path: Path) -> None:
    known = ["castle", "palace", "fortress", "tower", "good", "kiln"]
    vectors_file(tmp_path / "glove.txt", [*known, ".", "x2"])
    train = write(tmp_path / "train.jsonl", [{"text": "Castle castle unknownish good", "label": n} for n in "ab"])
    dev = write(tmp_path / "dev.jsonl", [{"text": "zz", "label": "a"}])
    words = flags(train, dev, bert, tmp_path / "new.jsonl", "--threshold", "1", "--candidates", "3")
    near = set(WordVectors(tmp_path / "glove.txt").nearest("castle", 3))
    with_vectors = made(kdbert, *words, "--vectors", tmp_path / "glove.txt")
    assert {row["text"].split()[1] for row in with_vectors} == near
    assert {row["text"].split()[0] for row in with_vectors} == {word.title() for word in near}
    assert {row["text"].split()[2] for row in with_vectors} == {"unknownish"}
    without = made(kdbert, *words, "--overwrite")
    assert {tuple(row["text"].split()[:3]) for row in without} == {("Castle", "castle", "unknownish")}


def test_forms_of_vector_files(tmp_path: Path) -> None:
    """Words with spaces are in GloVe's largest file, a first line of two numbers in fastText's."""
    file = tmp_path / "vectors.txt"
    file.write_text("3 2\nhouse 1 0\n. . 0 1\nof her 1 1\nhome 0.9 0.1\nnone 0 0\nhouse 0 1\n", encoding="utf-8")
    assert WordVectors(file).words == ["house", "home", "house"]
    assert WordVectors(file).nearest("house", 1) == ("home",)


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        (["house 1 2", "home 1"], "line 2"),
        (["house 1 2", "home 1 2 3"], "line 2"),
        (["house 1 2", "home 1 x"], "line 2"),
        (["house 1 2", "cat 1 3", "home 1 nan"], "line 3"),
        (["house 1 2", "home  1 2"], "line 2"),
        (["house 1 2", ""], "line 2"),
        (["house", "home"], "line 1"),
        (["1 2 3"], "holds no"),
        ([], "empty"),
    ],
    ids=str,
)
def test_a_faulty_vectors_file_is_refused_with_its_line(
    lines: list[str], place: str, single: tuple[Path, Path], bert: Path, kdbert: Command, tmp_path: Path
) -> None:
    file = tmp_path / "glove.txt"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    refused = kdbert(*flags(*single, bert, tmp_path / "new.jsonl", "--vectors", file))
    assert refused.code == 2
    assert place in refused.err
    assert "glove.txt" in refused.err
    assert not (tmp_path / "new.jsonl").exists()


# ---- what is refused, and what is told


def test_a_model_without_a_masked_lm_head_is_refused_with_the_cure(
    single: tuple[Path, Path], tiny_bert: Path, kdbert: Command, tmp_path: Path
) -> None:
    headless = make_bert(tmp_path / "headless", layers=2)
    config = json.loads((headless / "config.json").read_text())
    config["architectures"] = ["BertForMaskedLM"]  # says what its weights do not have
    (headless / "config.json").write_text(json.dumps(config))
    for model in (tiny_bert, headless):
        refused = kdbert(*flags(*single, model, tmp_path / "new.jsonl"))
        assert refused.code == 2
        assert "finetune-teacher" in refused.err
        assert len(refused.err.strip().splitlines()[-1:]) == 1
        assert not (tmp_path / "new.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--threshold", "0"), "--threshold"),
        (("--threshold", "1.5"), "--threshold"),
        (("--per-example", "0"), "--per-example"),
        (("--candidates", "0"), "--candidates"),
        (("--precision", "int8"), "--precision"),
        (("--vectors", "nowhere.txt"), "nowhere.txt"),
        (("--max-length", "65"), "--max-length"),
        (("--model", "nowhere/at/all"), "nowhere/at/all"),
        (("--task", "corpus"), "plain text"),
    ],
    ids=str,
)
def test_wrong_values_are_refused(
    more: tuple[str, str], told: str, single: tuple[Path, Path], bert: Path, kdbert: Command, tmp_path: Path
) -> None:
    refused = kdbert(*flags(*single, bert, tmp_path / "new.jsonl", *more))
    assert refused.code == 2
    assert told in refused.err
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_replace_and_a_file_that_is_there_are_refused(
    single: tuple[Path, Path], bert: Path, kdbert: Command, tmp_path: Path
) -> None:
    train = write(tmp_path / "train.jsonl", [{"text": "the of 42", "label": "a"}, {"text": "zzzz", "label": "b"}])
    refused = kdbert(*flags(train, single[1], bert, tmp_path / "new.jsonl"))
    assert (refused.code, "--vectors" in refused.err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]
    (tmp_path / "there.jsonl").write_text("mine", encoding="utf-8")
    refused = kdbert(*flags(*single, bert, tmp_path / "there.jsonl"))
    assert (refused.code, "--overwrite" in refused.err) == (2, True)
    assert (tmp_path / "there.jsonl").read_text(encoding="utf-8") == "mine"


def test_the_cost_is_told_before_and_the_result_after(bert: Path, kdbert: Command, tmp_path: Path) -> None:
    """On the built-in task, whose files are part of the package."""
    words = ("augment", "--model", bert, "--per-example", 2, "--max-length", 32)
    done = kdbert(*words, "-o", tmp_path / "new.jsonl")
    assert done.code == 0, done.err
    assert "forward passes" in done.err
    rows = read(tmp_path / "new.jsonl")
    assert f"{len(rows):,} of " in done.out
    quiet = kdbert(*words, "-o", tmp_path / "quiet.jsonl", "--quiet")
    assert (quiet.out, quiet.err) == (f"{tmp_path / 'quiet.jsonl'}\n", "")
    assert read(tmp_path / "quiet.jsonl") == rows
