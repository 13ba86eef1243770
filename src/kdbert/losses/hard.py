"""The loss against the gold labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def hard_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Loss of each example, or token, against its label (METHODS.md section 1, "CE" and "Other heads").

    Args:
        logits: float [B, C], or [B, L, C] of tokens.
        labels: int64 [B] for classes; bool [B, C] for any number of them; int64 [B, L] for tokens, -100 where there is
            no label; float [B] for scores, with C = 1.

    Returns:
        [B], or [B, L] with 0 where there is no label: in nats (cross-entropy; binary cross-entropy, mean over
        classes) or squared score units (squared error).
    """
    if labels.dtype == torch.bool:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").mean(-1)
    if labels.is_floating_point():
        return (logits.squeeze(-1) - labels.to(logits.dtype)) ** 2
    return F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none", ignore_index=-100)
