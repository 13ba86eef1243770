"""The loss against a teacher's logits (Hinton, Vinyals & Dean 2015, arXiv:1503.02531, section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def soft_label_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """tau^2 * KL(softmax(teacher / tau) || softmax(student / tau)) of each example.

    From logits [..., C], in nats; scaled by tau^2, so that gradients keep their size when tau changes. The mean over
    examples is `kl_div(..., reduction="batchmean") * tau**2`, as published code has it (docs/quirks.md, section 1).
    With one logit both softmaxes are 1 and the loss is 0.
    """
    log_teacher = F.log_softmax(teacher.detach() / temperature, dim=-1)
    log_student = F.log_softmax(student / temperature, dim=-1)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(-1)


def soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy of softmax(student / tau) under softmax(teacher / tau), of each example, in nats; no tau^2.

    From logits [..., C]. It is the KL divergence plus the teacher's entropy, so it is not 0 where both agree.
    """
    shares = F.softmax(teacher.detach() / temperature, dim=-1)
    return -(shares * F.log_softmax(student / temperature, dim=-1)).sum(-1)


def standardised(logits: torch.Tensor, constant: float = 0.0) -> torch.Tensor:
    """(z - mean) / (std + 1e-7) of the logits [..., C] of each example (Sun et al. 2024); std with C - 1.

    Args:
        constant: logits whose std is below it become 0, without a gradient. (As published, that of logits which hardly
            differ is a million times as large as what comes in.)
    """
    centred, deviation = logits - logits.mean(-1, keepdim=True), logits.std(-1, keepdim=True)
    flat = deviation < constant
    return torch.where(flat, 0.0, centred / (torch.where(flat, 1.0, deviation) + 1e-7))


def bernoulli_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """tau^2 * mean over classes of KL(Bern(sigmoid(teacher / tau)) || Bern(sigmoid(student / tau))).

    From logits [B, C], in nats. For tasks whose examples have any number of classes; no published code distils those.
    """
    teacher, student = teacher.detach() / temperature, student / temperature
    share = torch.sigmoid(teacher)
    yes = share * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (1 - share) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return temperature**2 * (yes + no).mean(-1)


def score_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared difference of the scores [B, 1] of each example; the published loss is 0 (docs/quirks.md, I5)."""
    return (student - teacher.detach()).squeeze(-1) ** 2
