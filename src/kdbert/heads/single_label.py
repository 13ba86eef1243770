"""One of several classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kdbert.data.labels import class_number
from kdbert.heads.head import Head, Variant
from kdbert.losses.hinton import soft_label_loss
from kdbert.metrics import CLINC150_OUT_OF_SCOPE, NO_RELATION, POSITIVE


class SingleLabel(Head):
    """Labels are class numbers, int64 [N]; logits [N, C]."""

    kind = "single_label"
    takes = "takes one of several classes"
    makes = "text classifier"
    problem_type = "single_label_classification"

    def read_label(self, label: str | tuple[str, ...], words: Sequence[str] | None, where: str) -> list[Any]:
        return [class_number(str(label), self.numbers, where)]

    def soft_loss(
        self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float, variant: Variant
    ) -> torch.Tensor:
        return soft_label_loss(student, teacher, temperature)

    def written(self, answer: Any) -> Any:
        return self.classes[answer]

    def constants(self, labels: np.ndarray, groups: np.ndarray | None) -> list[Any]:
        """A metric treats all classes alike but for one that it names: the best is that one or the commonest other."""
        commonest = np.argsort(-np.bincount(labels), kind="stable")[:2].tolist()
        return sorted({*commonest, NO_RELATION, POSITIVE, CLINC150_OUT_OF_SCOPE})
