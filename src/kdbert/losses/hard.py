"""Losses against the gold labels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None, smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy in nats of each example or token: logits float [B, C] or [B, L, C], labels int64 [B] or [B, L] with
    -100 where there is no label; it is 0 there.

    Args:
        weights: float [C]; a loss is multiplied by the weight of its label.
        smoothing: this share of a label is spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567).
    """
    loss = F.cross_entropy(
        logits.movedim(-1, 1), labels, reduction="none", ignore_index=-100, label_smoothing=smoothing
    )
    return loss if weights is None else loss * weights[labels.clamp(min=0)]


def binary_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None, smoothing: float = 0.0
) -> torch.Tensor:
    """Binary cross-entropy in nats of each example [B], mean over classes: logits float [B, C], labels bool [B, C].

    Args:
        weights: float [C, 2], of each class where an example does not have it, and where it has it.
        smoothing: this share of each yes or no is spread evenly over both.
    """
    targets = labels.to(logits.dtype)
    if smoothing:
        targets = targets * (1 - smoothing) + smoothing / 2
    factors = None if weights is None else torch.where(labels, weights[:, 1], weights[:, 0])
    return F.binary_cross_entropy_with_logits(logits, targets, factors, reduction="none").mean(-1)


def squared_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Squared error of each score [B], in squared score units: logits float [B, 1], labels float [B]."""
    return (logits.squeeze(-1) - labels.to(logits.dtype)) ** 2


def balanced_weights(labels: np.ndarray, classes: int) -> list[float]:
    """Weights with which all classes that occur count alike: N / (K n) for one with n of the N labels, where K occur.

    They average 1 over the labels. A class that does not occur has 1. (scikit-learn's `class_weight="balanced"`.)
    """
    counts = np.bincount(labels, minlength=classes)
    weights: list[float] = np.where(counts, len(labels) / np.maximum((counts > 0).sum() * counts, 1), 1.0).tolist()
    return weights
