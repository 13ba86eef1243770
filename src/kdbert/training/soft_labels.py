"""A teacher that is a file: probabilities or logits for each training text, made elsewhere.

Each line is a JSON object with `logits` or `probabilities`, label -> number (of tagged words a list of such, one for
each word), and with what says which text it is of: `text_sha256` (as `kdbert predict --scores` writes it), `text` (a
pair: a list of two) or `tokens`, or, where there is none of these, `id` (of the example, as in prediction files). Rows
may be in any order, and more than are needed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdbert.data.data_file import rows_of
from kdbert.data.encode import Encoded
from kdbert.data.examples import Examples
from kdbert.disk.files import content_digest
from kdbert.errors import UserError, few
from kdbert.heads import Head
from kdbert.methods import Method, Needs
from kdbert.models.labels import label_permutation
from kdbert.recipe import Recipe
from kdbert.tasks import TaskSpec
from kdbert.training.frozen_teacher import Session
from kdbert.training.store import Allocate, stored
from kdbert.training.teacher import StoredTeacher

log = logging.getLogger("kdbert")
FLOOR = 1e-7  # a probability below it counts as this, so that its logarithm is finite
_SUM = 1e-3  # by how much probabilities may miss a sum of 1
_SAME = 1e-3  # by how much the logits of two rows of one text may differ
SCORES = ("logits", "probabilities")
_LARGEST = float(np.finfo(np.float32).max)


def text_digest(*texts: str) -> str:
    """What a text, or a pair, is known by: 16 hex digits of the SHA-256 of its UTF-8, a pair joined by a zero byte."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class SoftLabels:
    """A file of soft labels, as a teacher whose answers to the training texts are all that is known of it.

    Attributes:
        given: the file as a person named it.
        renormalise: divide probabilities by their sum; else those that do not sum to 1 are refused.
    """

    given: str
    renormalise: bool = False

    def fingerprint(self) -> str:
        """What its content is known by."""
        path = Path(self.given)
        if not path.is_file():
            raise UserError(f"no file {self.given!r}: check the path of the soft labels")
        return content_digest(path)

    def logits(self, spec: TaskSpec, part: Examples, data: Encoded) -> np.ndarray:
        """Logits in the task's order of classes, float32 [N, C]; of tagged words [tokens, C], 0 at all other tokens.

        Of one class for each text (or word) a probability p becomes ln p, of several classes ln p - ln(1 - p); p is at
        least `FLOOR`, and there at most 1 - `FLOOR`.

        Raises:
            UserError: a faulty row; two rows of one text that differ; a label that the task does not have, or lacks; a
                text without a row.
        """
        if not spec.labels:
            raise UserError(f"{self.given}: task {spec.name!r} {spec.head.takes}, and soft labels are of classes")
        wanted, rows = _keys(part), len(part) if data.word_tokens is None else len(data.input_ids)
        values = np.zeros((rows, len(spec.labels)), dtype=np.float32)
        found = np.zeros(len(part), dtype=bool)
        columns: dict[tuple[str, ...], list[int]] = {}
        both = False
        for place, record in rows_of(Path(self.given), "jsonl"):
            where = f"{self.given}, {place}"
            both = both or ("id" in record and "text" in record)
            its = self._row(record, spec, columns, where)
            for number in wanted.get(_key(record, where), []):
                its_rows, its_places = _placed(number, its, part, data, where)
                if not found[number]:
                    values[its_places] = its_rows
                    found[number] = True
                elif not np.allclose(values[its_places], its_rows, atol=_SAME):
                    raise UserError(
                        f"{where}: a row before has other soft labels of the same text (id {part.ids[number]})"
                    )
        if not found.all():
            missing = [part.ids[number] for number in np.flatnonzero(~found).tolist()]
            cure = "; a row that has a text is matched by it: leave the text out to match by id" * both
            raise UserError(
                f"{self.given} has no soft labels for {len(missing)} of {len(part)} training texts (id {few(missing)})"
                + cure
            )
        return values

    def _row(
        self, record: Mapping[str, Any], spec: TaskSpec, columns: dict[tuple[str, ...], list[int]], where: str
    ) -> np.ndarray:
        """The logits of a row, float32 [1, C] or [words, C]."""
        given = [name for name in SCORES if name in record]
        if len(given) != 1:
            raise UserError(f"{where}: expected either 'logits' or 'probabilities', label -> number")
        named = record[given[0]] if spec.head.of_words else [record[given[0]]]
        if not isinstance(named, list) or not all(isinstance(one, Mapping) for one in named):
            each = "a list of objects, one for each word" if spec.head.of_words else "an object"
            raise UserError(f"{where}: {given[0]!r} must be {each}, label -> number")
        rows = np.empty((len(named), len(spec.labels)))
        for row, one in zip(rows, named, strict=True):
            labels = tuple(map(str, one))
            if labels not in columns:
                try:
                    columns[labels] = label_permutation(spec.labels, spec.aliases, labels)
                except ValueError as error:
                    raise UserError(f"{where}: other labels than task {spec.name!r}: {error}") from None
            odd = [value for value in one.values() if not _is_number(value)]
            if odd:
                raise UserError(f"{where}: {given[0]!r} holds {str(odd[0])[:40]}, which is no finite number of 32 bits")
            row[:] = np.array([*one.values()], dtype=np.float64)[columns[labels]]
        return (self._log(rows, spec.head, where) if given[0] == "probabilities" else rows).astype(np.float32)

    def _log(self, rows: np.ndarray, head: Head, where: str) -> np.ndarray:
        """Logits of probabilities."""
        if (rows < 0).any():
            raise UserError(f"{where}: a probability is negative ({rows.min():g})")
        if head.kind == "multi_label":
            if (rows > 1).any():
                raise UserError(f"{where}: a probability is above 1 ({rows.max():g})")
            clipped = rows.clip(FLOOR, 1 - FLOOR)
            return np.log(clipped) - np.log1p(-clipped)
        sums = rows.sum(axis=1, keepdims=True)
        if (sums == 0).any():
            raise UserError(f"{where}: the probabilities sum to 0")
        if self.renormalise:
            rows = rows / sums
        elif (np.abs(sums - 1) > _SUM).any():
            wrong = sums[np.abs(sums - 1) > _SUM][0]
            raise UserError(
                f"{where}: the probabilities sum to {wrong:g}, not to 1; to divide by the sum, write "
                "`renormalise: true` below its `model` in a recipe"
            )
        found: np.ndarray = np.log(rows.clip(FLOOR))
        return found


def label_names(given: str) -> list[str]:
    """The labels of the first row of a file of soft labels, in its order; none where it does not say them."""
    for _, record in rows_of(Path(given), "jsonl"):
        named = next((record[name] for name in SCORES if name in record), None)
        first = named[0] if isinstance(named, list) and named else named
        return [*map(str, first)] if isinstance(first, Mapping) else []
    return []


def _is_number(value: Any) -> bool:
    """Whether it is a number, and finite in float32."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


def _keys(part: Examples) -> dict[tuple[str, str], list[int]]:
    """What a row of a file may know an example by -> the numbers of such examples."""
    found: dict[tuple[str, str], list[int]] = {}
    for number, name in enumerate(part.ids):
        found.setdefault(("id", name), []).append(number)
        found.setdefault(("text", text_digest(*part.texts(number))), []).append(number)
    return found


def _key(record: Mapping[str, Any], where: str) -> tuple[str, str]:
    """What a row says of its text."""
    text = record.get("text", record.get("tokens"))
    if "text_sha256" in record:
        return "text", str(record["text_sha256"])
    if text is None and "id" in record:
        return "id", str(record["id"])
    parts = [text] if isinstance(text, str) else text
    if not isinstance(parts, list) or not all(isinstance(one, str) for one in parts) or not parts:
        raise UserError(f"{where}: nothing says which text it is of; expected 'id', 'text' or 'text_sha256'")
    return "text", text_digest(" ".join(parts)) if "text" not in record else text_digest(*parts)


def _placed(number: int, rows: np.ndarray, part: Examples, data: Encoded, where: str) -> tuple[np.ndarray, np.ndarray]:
    """A row's logits, and where its example has them."""
    if data.word_tokens is None:
        return rows, np.array([number])
    first, last = part.word_offsets[number : number + 2]
    if len(rows) != last - first:
        raise UserError(f"{where}: soft labels of {len(rows)} words, and the text has {last - first}")
    tokens = data.word_tokens[first:last]
    return rows[tokens >= 0], tokens[tokens >= 0]


@dataclass(eq=False)
class SoftTeacher:
    """Soft labels in a run: read once, kept with the outputs of other teachers.

    Attributes:
        part, data: the training split, and as the student reads it.
    """

    known: SoftLabels
    spec: TaskSpec
    part: Examples
    data: Encoded
    recipe: Recipe
    session: Session
    whose: str = "teacher"

    def for_training(self, needs: Needs, method: Method, made_with: str = "") -> StoredTeacher:
        """The teacher in training. It has logits only (see `kdbert.runs.checks`)."""

        def compute(wanted: list[str], allocate: Allocate) -> dict[str, np.ndarray | None]:
            values = self.known.logits(self.spec, self.part, self.data)
            kept = allocate("logits", values.shape)
            if kept is not None:
                kept[:] = values
            return {"logits": kept}

        about = {
            "soft_labels": self.known.fingerprint(), "renormalise": self.known.renormalise, "form": 1,
            "data": self.data.fingerprint(), "labels": list(self.spec.labels), "ids": _digest_of(self.part),
        }  # fmt: skip
        rows = len(self.part) if self.data.word_tokens is None else len(self.data.input_ids)
        found = {}
        if needs.teacher_logits:
            found = stored(
                Path(self.recipe.output.runs_dir), {"logits": rows}, about, compute, self.session.accelerator,
                f"{self.whose} on train:", budget=self.recipe.train.cache_gib * 2**30,
            )  # fmt: skip
        columns = list(range(len(self.spec.labels)))
        return StoredTeacher(found, self.data, columns, self.session.accelerator.device, needs)

    def release(self) -> None:
        """There is no network."""


def _digest_of(part: Examples) -> str:
    """What the names and texts of examples are known by."""
    digest = hashlib.sha256()
    for number, name in enumerate(part.ids):
        digest.update("\0".join((name, *part.texts(number))).encode("utf-8", "surrogatepass") + b"\1")
    return digest.hexdigest()[:16]
