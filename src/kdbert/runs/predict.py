"""`kdbert predict`: what a model answers to new texts, which have no labels. Texts are read and answered in parts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kdbert.data.data_file import Record
from kdbert.data.examples import RawExample, examples_of
from kdbert.errors import UserError
from kdbert.runs.answers import SavedModel, answers, saved_model
from kdbert.tasks.texts import is_empty, of_texts, of_words, text_rows
from kdbert.training.forward import check_runs
from kdbert.training.loggers import progress_bar
from kdbert.training.precision import make_accelerator
from kdbert.training.soft_labels import SCORES, text_digest

log = logging.getLogger("kdbert")

AT_A_TIME = 2048  # texts that are in RAM, sorted by length into batches, and answered before the next are read
Text = str | Sequence[str]


def predict(
    model: str,
    texts: Iterable[Text],
    *,
    task: str | None = None,
    scores: str | None = None,
    labels: list[str] | None = None,
    max_length: int | None = None,
    batch_size: int = 64,
    precision: str = "auto",
    runs_dir: str = "runs",
) -> list[dict[str, Any]]:
    """What a fine-tuned model answers to texts, in their order.

    Args:
        model: run folder or handle, model folder, or Hub id.
        texts: strings; pairs of strings where the task has two texts; of a tagger, lists of words (or strings, which
            are split at white space).
        task: a registered task, where the model is not a run.
        scores: also give the logits, or the probabilities, by label.
        labels: the model's labels in order, where its configuration does not name them.
        precision: of the encoder. `auto`: fp32 where the model's run was scored so, else what suits the device.

    Returns:
        For each text a dict: `prediction` (a label, a list of labels, a score, or a tag for each word), and with
        `scores` its `logits` or `probabilities`, label -> value (a list of such for words).

    Raises:
        UserError: no such model or task, or texts of another form.
        Diverged: an output is not finite.
    """
    from kdbert.models.locate import find_run

    predictor = Predictor.of(
        find_run(model, runs_dir), task, scores=scores, labels=labels, max_length=max_length, batch_size=batch_size,
        precision=precision,
    )  # fmt: skip
    if isinstance(texts, str):
        raise UserError("predict takes a list of texts, not one text")
    return [row for _, row in predictor.rows(predictor.given(texts), "texts")]


@dataclass
class Predictor:
    """A model that answers texts.

    Attributes:
        cut: how many texts were longer than it reads, so far.
        empty: how many were empty.
    """

    saved: SavedModel
    scores: str | None
    batch_size: int
    precision: str
    cut: int = field(default=0, init=False)
    empty: int = field(default=0, init=False)

    @classmethod
    def of(
        cls,
        model: str,
        task: str | None,
        *,
        scores: str | None,
        labels: list[str] | None,
        max_length: int | None,
        batch_size: int,
        precision: str,
    ) -> Predictor:
        """Open nothing yet, but refuse what cannot work."""
        if scores is not None and scores not in SCORES:
            raise UserError(f"--scores {scores!r}: expected {' or '.join(SCORES)}")
        saved = saved_model(model, task, labels=labels, max_length=max_length)
        saved.check_task()
        head = saved.spec.head
        if scores is not None and not head.classes:
            raise UserError(f"task {saved.spec.name!r} {head.takes}, which is the prediction itself: omit --scores")
        saved.check()
        return cls(saved, scores, batch_size, precision)

    def given(self, texts: Iterable[Text]) -> Iterator[tuple[RawExample, Mapping[str, Any]]]:
        """Texts from Python as rows."""
        spec = self.saved.spec
        for number, text in enumerate(texts):
            place = f"text {number}"
            parts: Sequence[Any] = (text,) if isinstance(text, str) else text
            if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
                raise UserError(f"{place} is no text: {text!r}")
            if spec.head.of_words:
                yield of_words(text.split() if isinstance(text, str) else parts, number, place), {}
                continue
            if len(parts) != 1 + spec.pair:
                wanted = "a pair of texts" if spec.pair else "one text"
                raise UserError(f"{place} has {len(parts)} part(s), and task {spec.name!r} takes {wanted}")
            yield of_texts(parts, number, place), {}

    def read(
        self, records: Iterator[Record], source: str, text_columns: list[str] | None
    ) -> Iterator[tuple[RawExample, Mapping[str, Any]]]:
        """Rows of a file, with their columns."""
        return text_rows(records, source, self.saved.spec, text_columns)

    def rows(
        self, texts: Iterator[tuple[RawExample, Mapping[str, Any]]], source: str
    ) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
        """(columns, what is answered) of each text, in order.

        Raises:
            UserError: a text that cannot be read.
            Diverged: an output is not finite.
        """
        saved, spec = self.saved, self.saved.spec
        accelerator = make_accelerator()
        precision = saved.precision(self.precision, accelerator.device)
        network = None
        with progress_bar(None, saved.given, "text", True) as bar:
            while some := list(islice(texts, AT_A_TIME)):
                self.empty += sum(is_empty(row) for row, _ in some)
                part = examples_of((row for row, _ in some), path=Path(source), split=source, read_label=None)
                data = saved.encode(part)
                self.cut += data.truncated
                if network is None:
                    network = saved.network().to(accelerator.device)
                    check_runs(network, data, saved.given)
                found = answers(
                    network, spec, part, data, columns=saved.columns, batch_size=self.batch_size, precision=precision,
                    accelerator=accelerator, whose=f"the outputs of {saved.given}",
                )  # fmt: skip
                predicted = spec.head.predicted(found.logits)
                for (row, record), place in zip(some, spec.head.places(part), strict=True):
                    answer = {"prediction": spec.head.written(predicted[place])}
                    yield record, {**answer, **self._scores(row, found.logits[place])}
                bar.update(len(some))

    def _scores(self, row: RawExample, logits: np.ndarray) -> dict[str, Any]:
        """What is asked for of the logits of one text, [C] or [words, C], and which text it was (`soft_labels`)."""
        if self.scores is None:
            return {}
        head = self.saved.spec.head
        rows = np.atleast_2d(logits)
        if self.scores == "probabilities":
            values = np.round(head.probabilities(rows), 6).tolist()
        else:  # with all digits of float32, so that a student of the file is one of the model
            values = [[float(str(value)) for value in one] for one in rows.astype(np.float32)]
        named = [dict(zip(head.classes, one, strict=True)) for one in values]
        digest = text_digest(*(row[1:2] if row.text_b is None else row[1:3]))
        return {"text_sha256": digest, self.scores: named if head.of_words else named[0]}
