"""Odd and wrong files of the registered tasks: read as the originals read them, or refused with file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from kdbert.data.examples import Examples
from kdbert.errors import UserError
from kdbert.tasks import get_task
from kdbert.tasks.hate_speech import read_olid


def load(tmp_path: Path, task: str, files: dict[str, str | bytes], split: str = "train") -> Examples:
    """A split of a task whose files have this content."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return get_task(task).load(split, str(tmp_path))


def lines(*records: Any) -> str:
    """JSON lines."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def test_byte_order_mark_crlf_and_missing_last_line_end(tmp_path: Path) -> None:
    found = load(tmp_path, "emotion", {"train.txt": b"\xef\xbb\xbfi feel fine;joy\r\nso sad; indeed;sadness"})
    assert found.text_a == ["i feel fine", "so sad; indeed"]
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0]


def test_quotes_emoji_and_other_scripts_are_text(tmp_path: Path) -> None:
    texts = ['"@USER" said "no 🙈', "نعم 東京"]
    text = "id\ttweet\ta\tb\tc\n" + "".join(f"{number}\t{one}\tNOT\tNULL\tNULL\n" for number, one in enumerate(texts))
    found = load(tmp_path, "abuseval", {"abuseval_test_joined.tsv": 'id\ttweet\tabuse\n7\t"a 🙈\tEXP\n'}, "test")
    assert found.text_a == ['"a 🙈']
    rows = read_olid(_write(tmp_path / "olid-training-v1.0.tsv", text), "a")
    assert [row.text_a for row in rows] == texts


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_quotes_may_span_lines_and_hold_commas(tmp_path: Path) -> None:
    content = 'id,text,HS,TR,AG\n1,"one, ""two""\nthree",1,0,0\n2,plain,0,0,0\n'
    found = load(tmp_path, "hateval", {"hateval2019_en_train.csv": content})
    assert found.text_a == ['one, "two"\nthree', "plain"]
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0]


def test_an_empty_tweet_is_an_example(tmp_path: Path) -> None:
    found = load(tmp_path, "tweeteval-hate", {"train_text.txt": "one \n \nthree\n", "train_labels.txt": "0\n1\n1\n"})
    assert found.text_a == ["one ", " ", "three"]


def test_one_file_of_all_partitions_is_read_like_files_of_one_each(tmp_path: Path) -> None:
    records = [
        {"id": "1", "locale": "en-US", "partition": "train", "intent": "alarm_set", "utt": "wake me"},
        {"id": "2", "locale": "en-US", "partition": "dev", "intent": "play_music", "utt": "sing"},
    ]
    assert load(tmp_path, "massive", {"en-US.jsonl": lines(*records)}, "dev").text_a == ["sing"]
    one = {"id": "2", "label": 45, "text": "sing", "label_text": "play_music"}
    (tmp_path / "one").mkdir()
    other = load(tmp_path / "one", "massive", {"validation.jsonl": lines(one)}, "dev")
    assert other.fingerprint() == get_task("massive").load("dev", str(tmp_path)).fingerprint()


def test_tags_of_words(tmp_path: Path) -> None:
    content = lines(
        {"tokens": ["breast", "cancer", "!"], "ner_tags": ["B", "I", "O"]},
        {"tokens": ["odd"], "ner_tags": ["I"]},  # an I without a B begins an entity, as in seqeval
    )
    found = load(tmp_path, "ncbi-disease", {"train.json": content})
    assert found.words == [("breast", "cancer", "!"), ("odd",)]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 1]
    assert found.first(1).labels is not None
    assert found.first(1).labels.tolist() == [0, 1, 2]  # type: ignore[union-attr]
    assert found.first(1).fingerprint() != found.fingerprint()


def test_sets_of_classes(tmp_path: Path) -> None:
    marks = [0] * 10
    both = [1, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    content = lines(
        {"sentence": "none", "label": marks, "id": "12_s0"}, {"sentence": "two", "label": both, "id": "12_s1"},
        {"sentence": "two", "label": both, "id": "13_s0"},
    )  # fmt: skip
    found = load(tmp_path, "hoc", {"dev.json": content}, "dev")
    assert found.labels is not None
    assert found.labels.astype(int).tolist() == [marks, both, both]
    groups = get_task("hoc").label_groups(found.ids, found.words)
    assert groups is not None
    assert groups.tolist() == [0, 0, 1]


GOOD = {"tokens": ["a", "b"], "ner_tags": ["B", "I"]}


@pytest.mark.parametrize(
    ("task", "split", "files", "told"),
    [
        ("emotion", "train", {"train.txt": "fine;joy\nno label here\n"}, "train.txt, line 2: expected text;label"),
        ("emotion", "train", {"train.txt": "fine;\n"}, "train.txt, line 1: the label is missing"),
        ("emotion", "dev", {"val.txt": "fine;sadnes\n"}, "line 1: label 'sadnes' is not one .*did you mean 'sadness'"),
        ("emotion", "train", {"train.txt": b"caf\xe9;joy\n"}, "line 1: not UTF-8"),
        ("tweeteval-hate", "train", {"train_text.txt": "a\nb\n", "train_labels.txt": "0\n"}, "2 lines, .* has 1"),
        ("tweeteval-hate", "train", {"train_text.txt": "a\n", "train_labels.txt": "2\n"}, "line 1: '2' is not a class"),
        ("tweeteval-hate", "train", {"train_text.txt": "a\n", "train_labels.txt": "\n"}, "line 1: the label is miss"),
        ("tweeteval-hate", "train", {"train_text.txt": "a\n"}, "has no file of labels beside it"),
        ("hateval", "train", {"hateval2019_en_train.csv": 'id,text,HS\n1,"open,1\n'}, "line 2: .*quote not closed"),
        ("hateval", "train", {"hateval2019_en_train.csv": "id,tweet,HS\n1,a,1\n"}, "has no column 'text'"),
        ("hateval", "train", {"hateval2019_en_train.csv": "id,text,HS\n1,a\n"}, "line 2: 2 columns where"),
        ("hateval", "train", {"hateval2019_en_train.csv": "id,text,HS\n"}, "has no examples"),
        ("abuseval", "test", {"abuseval_test_joined.tsv": "id\ttweet\tabuse\n1\ta\tb\tEXP\n"}, "line 2: label 'b'"),
        ("abuseval", "test", {"abuseval_test_joined.tsv": "id\ttweet\tabuse\n1\ta\n"}, "line 2: 2 columns where 3"),
        ("abuseval", "test", {"abuseval_offenseval_test.tsv": "id\tabuse\n1\tEXP\n"}, "tweets are in OLID's"),
        ("olid-a", "test", {"testset-levela.tsv": "id\ttweet\n1\ta\n"}, "no file of labels 'labels-levela.csv'"),
        (
            "olid-a", "test", {"testset-levela.tsv": "id\ttweet\n1\ta\n2\tb\n", "labels-levela.csv": "1,OFF\n"},
            "line 3: labels-levela.csv has no label for id '2'",
        ),
        ("massive", "train", {"train.jsonl": '{"text": "a"'}, "line 1: not a JSON object"),
        ("massive", "train", {"train.jsonl": lines({"text": None, "label_text": "alarm_set"})}, "line 1: .* no text"),
        ("massive", "train", {"train.jsonl": lines({"text": "a", "label_text": None})}, "line 1: the label is missing"),
        ("ncbi-disease", "train", {"train.json": lines(GOOD, {"tokens": ["a"], "ner_tags": ["B", "I"]})},
         "line 2: 1 words, but 2 tags"),
        ("ncbi-disease", "train", {"train.json": lines({"tokens": [], "ner_tags": []})}, "line 1: there are no tokens"),
        ("ncbi-disease", "train", {"train.json": lines({"tokens": ["a"], "ner_tags": ["B-Gene"]})}, "label 'B-Gene'"),
        ("ncbi-disease", "train", {"train.json": lines({"tokens": "a b", "ner_tags": ["B"]})}, "line 1: expected"),
        ("ncbi-disease", "train", {"train.json": '{"tokens": ["a\\ud83d"], "ner_tags": ["O"]}\n'}, "half a character"),
        ("hoc", "train", {"train.json": '{"sentence": "a\\ud83d", "label": [0,0,0,0,0,0,0,0,0,0]}'}, "half a char"),
        ("massive", "dev", {"en-US.jsonl": lines({"partition": "dev", "utt": "a", "intent": 48})}, "label '48' is not"),
        ("hoc", "train", {"train.json": lines({"sentence": "a", "label": [1, 0]})}, "line 1: .*list of 10 numbers"),
        ("hoc", "train", {"train.json": lines({"sentence": "a", "label": "x"})}, "line 1: .*list of 10 numbers"),
        ("gad", "train", {"train.json": lines({"sentence": 5, "label": "1"})}, "line 1: column 'sentence' holds no te"),
    ],
)  # fmt: skip
def test_a_faulty_file_is_refused_with_its_place(
    tmp_path: Path, task: str, split: str, files: dict[str, str | bytes], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        load(tmp_path, task, files, split)


def test_a_truncated_gzip_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b"fine;joy\n" * 10_000)
    with pytest.raises(UserError, match="truncated"):
        load(tmp_path, "emotion", {"train.txt.gz": whole[: len(whole) // 2]})
