"""Feature losses written as loops and formulas, the way published scripts do; METHODS as in docs/methods.md."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def loop_ics(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """Sample by sample, neighbour by neighbour."""
    total = torch.zeros(())
    for i in range(len(student)):
        candidates = [j for j in range(len(teacher)) if labels[j] == labels[i]]
        distances = torch.stack([((student[i] - teacher[j]) ** 2).sum() for j in candidates])
        for position in distances.argsort()[: min(k, len(candidates))].tolist():
            total = total + F.mse_loss(student[i], teacher[candidates[position]])
    return total / len(student)


def loop_hsic(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Gram matrices and centring matrix written out."""
    n = len(first)
    centring = torch.eye(n) - torch.ones(n, n) / n
    return torch.trace(centring @ (first @ first.T) @ centring @ (second @ second.T) @ centring)


def loop_cka(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Three HSICs from the features."""
    return loop_hsic(first, second).abs() / (loop_hsic(first, first).sqrt() * loop_hsic(second, second).sqrt())


def loop_intra(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Sample by sample."""
    values = [loop_cka(teacher[i], student[i]) for i in range(len(student))]
    return -(torch.stack(values).mean() + 1e-8).log()


def loop_inter(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The samples of the batch."""
    return -(loop_cka(teacher.flatten(1), student.flatten(1)) + 1e-8).log()


def loop_global(
    student: torch.Tensor, teacher: torch.Tensor, own: torch.Tensor, memory: torch.Tensor, gamma: float
) -> torch.Tensor:
    """Sample by sample, both sides at every step."""
    distance, cosine = torch.zeros(()), torch.zeros(())
    for i in range(len(student)):
        s, t = student[i].flatten(), teacher[i].flatten()
        near = ((s[None] - own) ** 2).sum(1).sqrt() - ((t[None] - memory) ** 2).sum(1).sqrt()
        angle = F.cosine_similarity(s[None], own) - F.cosine_similarity(t[None], memory)
        distance = distance + (near**2).mean()
        cosine = cosine + (angle**2).mean()
    structure = -(loop_cka(memory, own) + 1e-8).log()
    return gamma * distance / len(student) + (1 - gamma) * cosine / len(student) + structure


def batch_global(
    student: torch.Tensor, teacher: torch.Tensor, own: torch.Tensor, memory: torch.Tensor, gamma: float
) -> torch.Tensor:
    """As the published scripts have it: the whole batch by `cdist`, both sides and both memories at every step."""
    s, t = student.flatten(1), teacher.flatten(1)
    near = F.mse_loss(torch.cdist(s, own), torch.cdist(t, memory))
    angle = F.mse_loss(F.normalize(s) @ F.normalize(own).T, F.normalize(t) @ F.normalize(memory).T)
    structure = -(loop_cka(memory, own) + 1e-8).log()
    return gamma * near + (1 - gamma) * angle + structure
