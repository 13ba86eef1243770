"""Losses against the gold labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats of each example or token: logits float [B, C] or [B, L, C], labels int64 [B] or [B, L] with
    -100 where there is no label; it is 0 there.
    """
    return F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none", ignore_index=-100)


def binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy in nats of each example [B], mean over classes: logits float [B, C], labels bool [B, C]."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").mean(-1)


def squared_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Squared error of each score [B], in squared score units: logits float [B, 1], labels float [B]."""
    return (logits.squeeze(-1) - labels.to(logits.dtype)) ** 2
