"""Hate speech and offensive language, as the second half of the ICS paper evaluates them.

Scored by macro-F1 and F1 of the positive class. OLID, AbuseEval and Davidson have no dev split; a tenth of the training
file, chosen by a hash of each example's id, is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kdbert.data.examples import RawExample
from kdbert.data.files import find_file, read_lines
from kdbert.errors import UserError
from kdbert.tasks.readers import Columns, read_columns, read_tsv
from kdbert.tasks.sentiment import SLURS
from kdbert.tasks.spec import Split, TaskSpec, counts

BINARY = ("macro_f1", "f1", "accuracy")
SEVERAL = ("macro_f1", "weighted_f1", "accuracy")
DEV, TEST = frozenset({0}), frozenset({1})  # tenths of a file that has no such split
TRAIN = frozenset(range(10)) - DEV - TEST


def _hate(name: str, **spec: Any) -> TaskSpec:
    return TaskSpec(name=name, kind="single_label", warning=SLURS, **spec)


HATEVAL = _hate(
    "hateval",
    title="HatEval 2019 (SemEval task 5), English: hate against women and immigrants",
    labels=("not-hate", "hate"),
    metrics=BINARY,
    splits={
        split: Split(
            (f"hateval2019_en_{split}.csv",),
            partial(read_columns, text=("text",), label="HS", names={"0": "not-hate", "1": "hate"}),
        )
        for split in ("train", "dev", "test")
    },
    folder="hateval2019",
    rows=counts(9000, 1000, 3000),
    licence="none stated; the organisers hand the files out on request (tweeteval-hate is openly distributed)",
    source="https://github.com/msang/hateval",
)


def read_olid(path: Path, level: str) -> Iterator[RawExample]:
    """Rows of OLID's training file with a label at level a, b or c, or of a test file with its labels beside it."""
    if path.name.startswith("olid-training"):
        rows = read_tsv(path, Columns(a=1, label=2 + "abc".index(level), id=0))
        return (row for row in rows if row.label != "NULL")
    return _with_labels(path, path.parent, f"labels-level{level}.csv", ",")


def _with_labels(path: Path, folder: Path, name: str, separator: str) -> Iterator[RawExample]:
    """Rows of a file `id, tweet` with the labels of a file `id, label`, in the order of the former."""
    labels_path = find_file(folder, (name,))
    if labels_path is None:
        raise UserError(f"{path} has no file of labels {name!r} in {str(folder)!r}")
    labels = {}
    for number, line in read_lines(labels_path):
        identity, found, label = line.partition(separator)
        if line.strip() and not found:
            raise UserError(f"{labels_path}, line {number}: expected id{separator}label")
        labels[identity] = label
    for row in read_tsv(path, Columns(a=1, id=0)):
        if row.id not in labels:
            raise UserError(f"{path}, {row.place}: {labels_path.name} has no label for id {row.id!r}")
        yield row._replace(label=labels[row.id])


def _olid(
    level: str, title: str, labels: tuple[str, ...], rows: tuple[int, int, int], metrics: tuple[str, ...]
) -> TaskSpec:
    read = partial(read_olid, level=level)
    return _hate(
        f"olid-{level}",
        title=f"OLID level {level} (OffensEval 2019): {title}",
        labels=labels,
        metrics=metrics,
        splits={
            "train": Split(("olid-training-v1.0.tsv",), read, tenths=TRAIN | TEST),
            "dev": Split(("olid-training-v1.0.tsv",), read, tenths=DEV),
            "test": Split((f"testset-level{level}.tsv",), read, beside=(f"labels-level{level}.csv",)),
        },
        folder="olid",
        rows=counts(*rows),
        licence="research; cite Zampieri et al. 2019",
        source="https://sites.google.com/site/offensevalsharedtask/olid",
    )


def read_abuseval(path: Path, split: str, binary: bool) -> Iterator[RawExample]:
    """Rows of AbuseEval: `id, tweet, abuse`, or the authors' `id, abuse`, whose tweets are OLID's."""
    _, header = next(read_lines(path))
    if "tweet" in header.split("\t"):
        rows = read_tsv(path, Columns(a=1, label=2, id=0))
    else:
        name = "olid-training-v1.0.tsv" if split == "train" else "testset-levela.tsv"
        tweets = find_file(path.parent.parent / "olid", (name,)) or find_file(path.parent, (name,))
        if tweets is None:
            raise UserError(f"{path} has labels only; their tweets are in OLID's {name!r}: put it into {path.parent}")
        rows = _with_labels(tweets, path.parent, path.name.removesuffix(".gz"), "\t")
    for row in rows:
        abusive = binary and row.label in ("EXP", "IMP")
        yield row._replace(label="ABU" if abusive else row.label)


def _abuseval(name: str, title: str, labels: tuple[str, ...], metrics: tuple[str, ...]) -> TaskSpec:
    def split(which: str) -> Split:
        files = (f"abuseval_{which}_joined.tsv", f"abuseval_offenseval_{which}.tsv")
        return Split(files, partial(read_abuseval, split=which, binary="ABU" in labels))

    return _hate(
        name,
        title=f"AbuseEval 1.0: {title}",
        labels=labels,
        metrics=metrics,
        splits={
            "train": replace(split("train"), tenths=TRAIN | TEST),
            "dev": replace(split("train"), tenths=DEV),
            "test": split("test"),
        },
        folder="abuseval",
        rows=counts(11958, 1282, 860),
        licence="CC BY-NC-SA 4.0; tweets as OLID",
        source="https://github.com/tommasoc80/AbuseEval",
    )


_DAVIDSON = ("hate_speech", "offensive_language", "neither")
_davidson = partial(
    read_columns, text=("tweet",), label="class", names={str(i): name for i, name in enumerate(_DAVIDSON)}, id=""
)
DAVIDSON = _hate(
    "davidson",
    title="Davidson et al. 2017: hate speech, offensive language or neither",
    labels=_DAVIDSON,
    metrics=SEVERAL,
    splits={
        split: Split(("labeled_data.csv",), _davidson, tenths=tenths)
        for split, tenths in (("train", TRAIN), ("dev", DEV), ("test", TEST))
    },
    folder="davidson",
    rows=counts(19768, 2513, 2502),
    licence="MIT (the repository)",
    source="https://github.com/t-davidson/hate-speech-and-offensive-language",
)

TASKS = (
    HATEVAL,
    _olid("a", "offensive or not", ("NOT", "OFF"), (11958, 1282, 860), BINARY),
    _olid("b", "targeted or not", ("UNT", "TIN"), (3997, 403, 240), BINARY),
    _olid("c", "target: individual, group or other", ("IND", "GRP", "OTH"), (3524, 352, 213), SEVERAL),
    _abuseval("abuseval", "abusive or not", ("NOTABU", "ABU"), BINARY),
    _abuseval("abuseval-kinds", "not abusive, explicit or implicit", ("NOTABU", "EXP", "IMP"), SEVERAL),
    DAVIDSON,
)
ALIASES = {"olid": "olid-a", "offenseval": "olid-a", "hateval2019": "hateval"}
