"""What happens in one training step: teacher outputs, student, loss, backward, clip, optimiser step.

`forward_backward` is the first half, `training_step` the whole; `kdbert.training.loop` calls it once per global batch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from kdbert.data.batches import Batch, micro_batches
from kdbert.data.encode import Encoded
from kdbert.methods import LossTerms, OwnStep
from kdbert.recipe.sections import TrainSection
from kdbert.training.forward import StudentWithMethod
from kdbert.training.precision import LossScale
from kdbert.training.teacher import Teacher


@dataclass
class Training:
    """What a step reads and changes.

    Attributes:
        data: the tokenised training split.
        module: student and method, whose parameters are trained. wrapped: the same, for data parallel.
        own: the optimiser of what the method trains itself.
        scale: multiplies the loss in fp16.
        steps: of the optimiser, in the whole run.
        length: pad every batch to so many tokens (None: to its longest example).
    """

    options: TrainSection
    seed: int
    data: Encoded
    teachers: Sequence[Teacher]
    module: StudentWithMethod
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scale: LossScale
    accelerator: Accelerator
    steps: int
    own: torch.optim.Optimizer | None = None
    length: int | None = None


@dataclass
class StepResult:
    """This process's terms, the norm of the gradient before clipping, the learning rate that was used."""

    terms: LossTerms
    grad_norm: torch.Tensor
    learning_rate: float
    skipped: bool  # the gradient overflowed in fp16, so that no parameter was changed


def parts_of(run: Training, rows: np.ndarray, epoch: int, step: int) -> list[Batch]:
    """This process's micro-batches of a global batch, on the host. Of no model, so they may be made ahead."""
    accelerator = run.accelerator
    return list(
        micro_batches(
            run.data, rows, accumulation=run.options.accumulation, rank=accelerator.process_index,
            world=accelerator.num_processes, length=run.length, draw=(run.seed, epoch), progress=step / run.steps,
        )
    )  # fmt: skip


def training_step(
    run: Training, rows: np.ndarray, epoch: int, step: int, parts: Sequence[Batch] | None = None
) -> StepResult:
    """One optimiser step on one global batch.

    Args:
        rows: numbers of the batch's examples.
        epoch, step: from 0; with the seed they decide every random draw.
        parts: what `parts_of` makes of these (None: made here).
    """
    backward = functools.partial(
        forward_backward, run.wrapped, run.data, rows, run.teachers, run.accelerator,
        accumulation=run.options.accumulation, seed=run.seed, epoch=epoch, step=step, length=run.length,
        progress=step / run.steps, parts=parts,
    )  # fmt: skip
    longest = run.options.max_grad_norm or float("inf")
    if run.own is not None:
        run.module.method.before_step(OwnStep(run.optimizer, run.own, backward, longest))
    terms = backward(scaler=run.scale.scaler)
    run.scale.scaler.unscale_(run.optimizer)
    grad_norm = nn.utils.clip_grad_norm_(run.module.parameters(), longest)
    learning_rate = run.scheduler.get_last_lr()[0]
    skipped = run.scale.step(run.optimizer)
    run.scheduler.step()
    run.module.zero_grad(set_to_none=True)
    return StepResult(terms, grad_norm, learning_rate, skipped)


def forward_backward(
    wrapped: nn.Module,
    data: Encoded,
    rows: np.ndarray,
    teachers: Sequence[Teacher],
    accelerator: Accelerator,
    *,
    accumulation: int,
    seed: int,
    epoch: int = 0,
    step: int,
    length: int | None = None,
    scaler: torch.amp.GradScaler | None = None,
    progress: float = 0.0,
    parts: Sequence[Batch] | None = None,
) -> LossTerms:
    """Forward and backward of one global batch, micro-batch by micro-batch.

    Gradients are added to the parameters' `.grad`. Over processes they are averaged, and `Batch.mean` is scaled so
    that this average is the gradient of the mean over all examples.

    Args:
        scaler: multiplies the loss, and with it the gradients.
        progress: see `Batch.progress`.
        parts: the micro-batches, if they are made already.

    Returns:
        This process's terms, detached; their mean over processes is the value of the whole batch.
    """
    sums: dict[str, torch.Tensor] = {}
    monitors: dict[str, torch.Tensor] = {}
    weights: dict[str, float] = {}
    world, rank = accelerator.num_processes, accelerator.process_index
    if parts is None:
        parts = list(
            micro_batches(
                data, rows, accumulation=accumulation, rank=rank, world=world, length=length, draw=(seed, epoch),
                progress=progress,
            )
        )  # fmt: skip
    for number, batch in enumerate(parts):
        batch = batch.to(accelerator.device)
        batch.seed, batch.step = seed, step
        # Dropout is a function of (seed, step, micro-batch, process): nothing else has to be restored.
        torch.manual_seed(int(np.random.SeedSequence([seed, step, number, rank]).generate_state(1, np.uint64)[0] >> 1))
        last = number == len(parts) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
            terms = wrapped(batch, [teacher.outputs(batch) for teacher in teachers])  # StudentWithMethod.forward
            accelerator.backward(terms.total if scaler is None else scaler.scale(terms.total))
        for total, values in ((sums, terms.terms), (monitors, terms.monitors)):
            for name, value in values.items():
                total[name] = total[name] + value.detach() if name in total else value.detach()
        weights = terms.weights
    return LossTerms(sums, weights, monitors)
