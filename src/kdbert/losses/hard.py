"""The loss against the gold labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def hard_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Loss of each example against its label (METHODS.md section 1, "CE").

    Args:
        logits: float [B, C].
        labels: int64 [B] for classes; float [B] for scores, with C = 1.

    Returns:
        [B], in nats (cross-entropy) or squared score units (squared error).
    """
    if labels.is_floating_point():
        return (logits.squeeze(-1) - labels.to(logits.dtype)) ** 2
    return F.cross_entropy(logits, labels, reduction="none")
