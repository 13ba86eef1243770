"""The optimiser and its learning-rate schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kdbert.recipe.sections import TrainSection, warmup_steps


def build_optimizer(module: nn.Module, options: TrainSection) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only (no bias, no LayerNorm), as BERT is trained.

    The method's own parameters are in it too.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        fused=all(p.device.type in ("cpu", "cuda") for p in trained),
    )


def build_schedule(options: TrainSection, optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    from transformers import get_scheduler

    name = "constant_with_warmup" if options.schedule == "constant" else options.schedule
    return get_scheduler(name, optimizer, warmup_steps(options.warmup, total_steps), total_steps)
