"""The cost of carrying a batch's answers, student's to teacher's (SinKD, Cui et al. 2024; docs/quirks.md, 9.6)."""

from __future__ import annotations

import torch

BLUR = 0.1  # epsilon: what distances are divided by
ROUNDS = 20


def sinkhorn_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """sum_ij K_ij W_ij, with W_ij = sum_c |student_i - teacher_j|, and K = exp(-W / 0.1) after 20 rounds.

    In a round rows (of the student) are divided by their sums, then columns, so that a column of K sums to 1. That is
    done with logarithms. The gradient goes through all rounds.

    Args:
        student, teacher: [n, C] distributions; no gradient flows into the teacher.
    """
    distances = (student[:, None] - teacher.detach()[None]).abs().sum(-1)
    plan = -distances / BLUR
    for _ in range(ROUNDS):
        plan = plan - plan.logsumexp(1, keepdim=True)
        plan = plan - plan.logsumexp(0, keepdim=True)
    return (plan.exp() * distances).sum()
