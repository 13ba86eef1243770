"""Any number of several classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kdbert.data.labels import class_number
from kdbert.errors import few
from kdbert.heads.head import Head, Variant
from kdbert.losses.hard import balanced_weights, binary_cross_entropy
from kdbert.losses.hinton import bernoulli_loss


class MultiLabel(Head):
    """Labels are sets of classes, bool [N, C]; logits [N, C]."""

    kind = "multi_label"
    takes = "takes any number of classes"
    makes = "text classifier (any number of classes)"
    problem_type = "multi_label_classification"
    label_type = np.bool_
    published = False

    @property
    def answers(self) -> str:
        return f"any of {len(self.classes)} classes"

    def read_label(self, label: str | tuple[str, ...], words: Sequence[str] | None, where: str) -> list[Any]:
        there = {class_number(name, self.numbers, where) for name in label}
        return [[number in there for number in range(len(self.classes))]]

    def no_label(self, words: Sequence[str] | None) -> list[Any]:
        return [[False] * len(self.classes)]

    def answered(self, logits: torch.Tensor) -> torch.Tensor:
        return logits > 0

    def example_classes(self, labels: torch.Tensor) -> torch.Tensor:
        """A number for each set of classes: a sum of powers of 3."""
        powers = torch.tensor([pow(3, i, 2**63) for i in range(labels.shape[1])], device=labels.device)
        return (labels * powers).sum(1)

    def hard_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return binary_cross_entropy(logits, labels, self._weights(logits), self.label_smoothing)

    def balanced_weights(self, labels: np.ndarray) -> tuple[Any, ...]:
        """Of each class: where an example does not have it, and where it has it."""
        return tuple(tuple(balanced_weights(column, 2)) for column in labels.T)

    def given_weights(self, given: Mapping[str, float]) -> tuple[Any, ...]:
        return tuple((1.0, weight) for weight in super().given_weights(given))

    @property
    def weights_by_class(self) -> dict[str, Any]:
        pairs = zip(self.classes, self.class_weights, strict=False)
        return {name: {"without": without, "with": there} for name, (without, there) in pairs}

    @property
    def weights_in_words(self) -> str:
        pairs = zip(self.classes, self.class_weights, strict=False)
        told = [f"{name} {there:.4g} (without it {without:.4g})" for name, (without, there) in pairs]
        return few(told, ", see run.json")

    def soft_loss(
        self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float, variant: Variant
    ) -> torch.Tensor:
        return bernoulli_loss(student, teacher, temperature)

    def softened(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """The probability of each class by itself."""
        return (logits / temperature).sigmoid()

    def predicted(self, logits: np.ndarray) -> np.ndarray:
        """The classes with a probability above a half."""
        return logits > 0

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Of each class by itself."""
        from scipy.special import expit

        return np.asarray(expit(logits.astype(np.float64)))

    def in_words(self, answer: Any) -> str:
        return ", ".join(self.written(answer)) or "none of the classes"

    def written(self, answer: Any) -> Any:
        return [self.classes[number] for number in np.flatnonzero(answer)]

    def constants(self, labels: np.ndarray, groups: np.ndarray | None) -> list[Any]:
        """The set that most examples have; and the k classes that most have, of which no k find more.

        k is 0, 1, all, that of the best F1 of all decisions, or as many as more than half of the examples have. Where
        examples are in documents, the same of the classes of documents.
        """
        sets, times = np.unique(labels, axis=0, return_counts=True)
        found = [sets[times.argmax()]]
        for numbers in (np.arange(len(labels)), *([] if groups is None else [groups])):
            there = np.zeros((int(numbers.max()) + 1, labels.shape[1]), dtype=bool)
            np.logical_or.at(there, numbers, labels)
            counts = -np.sort(-there.sum(0))
            sizes = np.arange(1, len(counts) + 1)
            best_f1 = int((counts.cumsum() / (sizes * len(there) + counts.sum())).argmax()) + 1
            rank = np.argsort(np.argsort(-there.sum(0), kind="stable"))
            found += [rank < k for k in {0, 1, best_f1, int((2 * counts > len(there)).sum()), len(counts)}]
        return found

    def shares(self, labels: np.ndarray) -> np.ndarray:
        return labels.mean(axis=0)

    def agreement(self, first: np.ndarray, second: np.ndarray) -> float:
        """The share of examples with equal sets of classes."""
        return float((first == second).all(axis=1).mean())
