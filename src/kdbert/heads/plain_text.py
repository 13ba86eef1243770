"""What tasks of plain text share: no labels, and a few numbers of each text as its answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from kdbert.data.corpus import TextSplit
from kdbert.data.examples import Examples
from kdbert.heads.head import Head, Variant
from kdbert.metrics import score


class PlainText(Head):
    """Texts without labels. A model's answer to a text is not its outputs, which are many, but a few numbers.

    Attributes:
        numbers_of: their names, in order; the metrics are made of their sums.
    """

    takes = "is plain text"
    plain_text = True
    reads_first_token = False
    has_example_classes = False
    numbers_of: ClassVar[tuple[str, ...]]

    def configure(self, config: Any) -> None:
        """Nothing: there is no head, or one as wide as the vocabulary."""

    def read_label(self, label: str | tuple[str, ...], words: Sequence[str] | None, where: str) -> list[Any]:
        raise TypeError("plain text has no labels")

    def soft_loss(
        self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float, variant: Variant
    ) -> torch.Tensor:
        raise TypeError("plain text has no classes")

    @abstractmethod
    def outcome(self, outputs: Any, batch: Any) -> torch.Tensor:
        """The numbers of each text, [B, len(numbers_of)]."""

    def predicted(self, logits: np.ndarray) -> np.ndarray:
        """The outcomes as they are."""
        return logits

    def written(self, answer: Any) -> Any:
        return dict(zip(self.numbers_of, np.round(np.asarray(answer, dtype=np.float64), 6).tolist(), strict=True))

    def prediction_rows(self, examples: Examples | TextSplit, logits: np.ndarray) -> Iterator[dict[str, Any]]:
        """The rows of a predictions file: the number of the text, and its numbers."""
        for identity, row in zip(examples.ids, logits, strict=True):
            yield {"id": identity, "label": None, "prediction": self.written(row)}

    def scores(
        self,
        metrics: Sequence[str],
        answers: np.ndarray,
        labels: np.ndarray | None,
        groups: np.ndarray | None = None,
        logits: np.ndarray | None = None,
    ) -> dict[str, float]:
        """The named metrics of a split."""
        nothing = np.zeros(len(answers))
        return score(metrics, np.asarray(answers, dtype=np.float64), nothing, nothing)

    def constants(self, labels: np.ndarray, groups: np.ndarray | None) -> list[Any]:
        return []

    def same_answer(self, answers: np.ndarray) -> str | None:
        return None
