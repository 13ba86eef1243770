"""How similar two models' representations are: logged, never optimised (docs/quirks.md, section 3.6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

COMPARED = ("difference", "teacher_mean", "teacher_std", "student_mean", "student_std")


def patience(pairs: list[tuple[torch.Tensor, torch.Tensor]], half: bool = False) -> torch.Tensor:
    """Sum over layer pairs of the mean squared difference of normalised features (the loss of Patient KD).

    Args:
        pairs: (teacher, student), float [B, D] each, of one width.
        half: round each addend and add in float16, as published.
    """
    total = torch.zeros((), dtype=torch.float16 if half else pairs[0][0].dtype, device=pairs[0][0].device)
    for teacher, student in pairs:
        value = F.mse_loss(F.normalize(student, dim=-1), F.normalize(teacher, dim=-1))
        total = total + value.to(total.dtype)
    return total


def compare_distances(teacher: torch.Tensor, student: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Euclidean distances of every two rows, in both models: `COMPARED`, [5].

    That is mean |teacher - student|, then mean and standard deviation of each. Rows are [n, d] or [B, n, d], of any
    width; those where `mask` [B, n] is 0 do not count.
    """
    return _compare(torch.cdist(teacher, teacher), torch.cdist(student, student), mask)


def compare_cosines(teacher: torch.Tensor, student: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """As `compare_distances`, for cosines; means and deviations are those of their absolute values, as published."""
    first, second = F.normalize(teacher, dim=-1), F.normalize(student, dim=-1)
    return _compare(first @ first.transpose(-1, -2), second @ second.transpose(-1, -2), mask)


def _compare(teacher: torch.Tensor, student: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is not None:
        both = mask.bool().unsqueeze(-1) & mask.bool().unsqueeze(-2)
        teacher, student = teacher[both], student[both]
    first, second = teacher.abs(), student.abs()
    return torch.stack([(teacher - student).abs().mean(), first.mean(), first.std(), second.mean(), second.std()])
