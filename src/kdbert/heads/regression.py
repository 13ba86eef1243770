"""A score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kdbert.data.labels import number
from kdbert.errors import UserError
from kdbert.heads.head import Head, Variant
from kdbert.losses.hard import squared_error
from kdbert.losses.hinton import score_loss, soft_label_loss
from kdbert.metrics import pearson

SAME_SCORE = 1e-3  # of the largest score: below it lies what half precision rounds away


class Regression(Head):
    """Labels are scores, float32 [N]; logits [N, 1]."""

    kind = "regression"
    takes = "takes a score"
    makes = "model that scores texts"
    problem_type = "regression"
    label_type = np.float32

    @property
    def answers(self) -> str:
        return "one score"

    def read_label(self, label: str | tuple[str, ...], words: Sequence[str] | None, where: str) -> list[Any]:
        value = number(str(label).strip())
        if value is None:
            raise UserError(f"{where}: score {label!r} is not a finite number")
        return [value]

    def answered(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 0]

    def example_classes(self, labels: torch.Tensor) -> torch.Tensor:
        """The score rounded to 0.5."""
        return (labels * 2 + 0.5).floor()

    def hard_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return squared_error(logits, labels)

    def soft_loss(
        self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float, variant: Variant
    ) -> torch.Tensor:
        """Squared difference; `original` softens a single score into the constant 1, so that the loss is 0."""
        if variant == "original":
            return soft_label_loss(student, teacher, temperature)
        return score_loss(student, teacher)

    def softened(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """The scores as they are."""
        return logits

    def predicted(self, logits: np.ndarray) -> np.ndarray:
        return logits[:, 0]

    def in_words(self, answer: Any) -> str:
        return f"{float(answer):.4g}"

    def written(self, answer: Any) -> Any:
        return float(answer)

    def constants(self, labels: np.ndarray, groups: np.ndarray | None) -> list[Any]:
        """The mean, the median and the middle of the range, which are best by squared, absolute and largest error."""
        scores = labels.astype(np.float64)
        return [scores.mean(), np.median(scores), (scores.min() + scores.max()) / 2]

    def same_answer(self, answers: np.ndarray) -> str | None:
        """Scores within a thousandth of the largest are one: what is left is rounding."""
        same = len(answers) > 1 and np.ptp(answers) <= SAME_SCORE * np.abs(answers).max()
        return self.in_words(answers[0]) if same else None

    def agreement(self, first: np.ndarray, second: np.ndarray) -> float:
        """The Pearson correlation of the scores."""
        return float(pearson(first, second))
