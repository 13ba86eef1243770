"""The KL divergence of two softmaxes in two parts (Decoupled KD, Zhao et al. 2022; docs/quirks.md, 9.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

FAR = 1000.0  # subtracted from a logit to leave its class out, as published


def decoupled_loss(
    student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """tau^2 times the divergences of (target or not), and of the other classes among themselves: [...] each.

    KL(teacher || student) is the first plus 1 - p_target of the teacher times the second. Both are formed from
    logarithms, so that they are finite for all logits. With two classes the second is 0.

    Args:
        student, teacher: logits [..., C]; no gradient flows into the teacher.
        target: class number [...].
    """
    is_target = F.one_hot(target, student.shape[-1]).bool()
    logs, others = [], []
    for logits in (teacher.detach(), student):
        whole = F.log_softmax(logits / temperature, dim=-1)
        rest = whole.masked_fill(is_target, -torch.inf)
        total = rest.logsumexp(-1)
        logs.append(torch.stack([whole.gather(-1, target[..., None])[..., 0], total], -1))
        others.append((rest - total[..., None]).masked_fill(is_target, 0.0))
    binary = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
    among = (others[0].exp() * (others[0] - others[1])).masked_fill(is_target, 0.0).sum(-1)
    return temperature**2 * binary, temperature**2 * among


def published_decoupled_loss(
    student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As published: the logarithm of sums of probabilities, infinite where one of the student's underflows."""
    is_target = F.one_hot(target, student.shape[-1]).bool()
    shares, others = [], []
    for logits in (teacher.detach(), student):
        whole = F.softmax(logits / temperature, dim=-1)
        shares.append(torch.stack([(whole * part).sum(-1) for part in (is_target, ~is_target)], -1))
        others.append(F.log_softmax(logits / temperature - FAR * is_target, dim=-1))
    binary = F.kl_div(shares[1].log(), shares[0], reduction="none").sum(-1)
    among = F.kl_div(others[1], others[0].exp(), reduction="none").sum(-1)
    return temperature**2 * binary, temperature**2 * among
