"""Sentiment and emotion (SST-2 is in `glue`).

Emotion: Saravia et al., EMNLP 2018, https://github.com/dair-ai/emotion_dataset. TweetEval: Barbieri et al., Findings of
EMNLP 2020, https://github.com/cardiffnlp/tweeteval.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from kdbert.data.examples import RawExample
from kdbert.data.files import read_lines
from kdbert.errors import UserError
from kdbert.tasks.readers import read_beside
from kdbert.tasks.spec import Split, TaskSpec, counts

SLURS = "it holds slurs and abuse"


def read_emotion(path: Path) -> Iterator[RawExample]:
    """Rows of `text;label` lines."""
    for number, line in read_lines(path):
        text, found, label = line.rpartition(";")
        if not found:
            raise UserError(f"{path}, line {number}: expected text;label (is the file truncated?)")
        yield RawExample(str(number - 1), text, None, label, f"line {number}")


EMOTION = TaskSpec(
    name="emotion",
    title="Emotion: six basic emotions of English tweets",
    kind="single_label",
    labels=("sadness", "joy", "love", "anger", "fear", "surprise"),
    metrics=("accuracy", "macro_f1", "weighted_f1"),
    splits={
        name: Split((f"{file}.txt",), read_emotion)
        for name, file in (("train", "train"), ("dev", "val"), ("test", "test"))
    },
    folder="emotion",
    rows=counts(16000, 2000, 2000),
    licence="educational and research use",
    source="https://github.com/dair-ai/emotion_dataset",
)


def _tweet_eval(name: str, labels: tuple[str, ...], rows: tuple[int, int, int], metrics: tuple[str, ...]) -> TaskSpec:
    read = partial(read_beside, labels=labels)
    files = {"train": "train", "dev": "val", "test": "test"}
    return TaskSpec(
        name=f"tweeteval-{name}",
        title=f"TweetEval: {name}",
        kind="single_label",
        labels=labels,
        metrics=metrics,
        splits={
            split: Split((f"{name}_text.txt",), read, beside=(f"{name}_labels.txt",)) for split, name in files.items()
        },
        folder=f"tweeteval/{name}",
        rows=counts(*rows),
        licence="as TweetEval: each task keeps its own terms and Twitter's",
        source=f"https://github.com/cardiffnlp/tweeteval/tree/main/datasets/{name}",
        warning=SLURS,
    )


# The metrics are the benchmark's: F1 of the positive class or the mean over classes.
TASKS = (
    EMOTION,
    _tweet_eval("emotion", ("anger", "joy", "optimism", "sadness"), (3257, 374, 1421), ("macro_f1", "accuracy")),
    _tweet_eval("hate", ("not-hate", "hate"), (9000, 1000, 2970), ("macro_f1", "f1", "accuracy")),
    _tweet_eval("offensive", ("not-offensive", "offensive"), (11916, 1324, 860), ("macro_f1", "f1", "accuracy")),
)
