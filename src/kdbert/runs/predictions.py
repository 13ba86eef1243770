"""Prediction files: one row per example, and the upload format of GLUE."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from kdbert.data.corpus import TextSplit
from kdbert.data.examples import Examples
from kdbert.disk.files import write_text
from kdbert.heads import Head


def write_predictions(path: Path, head: Head, part: Examples | TextSplit, logits: np.ndarray) -> None:
    """JSON lines with id, label, prediction and scores, as `Head.prediction_rows` gives them.

    Args:
        logits: of `Head.label_logits`.
    """
    rows = head.prediction_rows(part, logits)
    write_text(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")


def write_submission(path: Path, head: Head, logits: np.ndarray) -> None:
    """The file that gluebenchmark.com takes: header `index<TAB>prediction`, label words, scores from 0 to 5.

    Scores (STS-B) are limited to their range and written with three decimals.
    """
    rows = ["index\tprediction"]
    for index, answer in enumerate(head.predicted(logits)):
        word = head.written(answer)
        rows.append(f"{index}\t{word if isinstance(word, str) else f'{min(max(word, 0.0), 5.0):.3f}'}")
    write_text(path, "\n".join(rows) + "\n")
