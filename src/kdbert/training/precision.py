"""The device and its processes, and the arithmetic that the encoder runs in."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator

from kdbert.devices import has_bf16_units
from kdbert.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def make_accelerator(**options: Any) -> Accelerator:
    """This process's device, and its rank among the processes that torchrun started.

    `cpu=True` makes accelerate join CPU processes by gloo; without it each of them would run alone.
    """
    keep_buffers()
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), **options)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != world:
        raise UserError(
            f"{world} processes were started, but each runs alone; start them with "
            "`torchrun --standalone --nproc-per-node N -m kdbert …`"
        )
    if world > 1:
        # While the first process computes centroids the others wait, perhaps longer than torch's 10 to 30 minutes. (A
        # dead process is noticed by its closed connection. Given to Accelerator, the timeout would also be how long
        # processes look for a torchrun that is gone.)
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(days=7))
    return accelerator


def keep_buffers() -> bool:
    """Make glibc keep freed buffers of up to 1 GiB for the next step.

    By default it returns buffers above 32 MiB to the system, which hands them out again a moment later, page by page
    and zeroed: with logits of a whole vocabulary that took more than half of a step (docs/speed.md).

    Returns:
        Whether the C library did so.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
    return all(
        mallopt(option, value) == 1 for option, value in ((_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, 2**31 - 1))
    )


def choose_precision(asked: str, device: torch.device) -> Precision:
    """`auto` is bf16 if the hardware has it, else fp32; never fp16."""
    if asked == "auto":
        return "bf16" if has_bf16_units(device) else "fp32"
    for known in get_args(Precision):
        if asked == known:
            return known
    raise UserError(f"--precision {asked!r} is unknown: expected auto, fp32, bf16 or fp16")


class LossScale:
    """Loss scaling for fp16, whose smallest number is 6e-8; in other precisions nothing is scaled.

    The loss is multiplied by a factor before the backward pass, and gradients are divided by it. If a gradient
    overflows, the step is skipped and the factor halved; after 2,000 steps without overflow it is doubled.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.skipped = 0  # steps

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Step, unless a gradient overflowed; call `self.scaler.unscale_` before.

        Returns whether the step was skipped and a smaller factor may help the next one.
        """
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        overflowed = self.scaler.get_scale() < before
        self.skipped += overflowed
        return overflowed and before > 1

    def numbers(self) -> dict[str, float]:
        """What is logged of it; nothing in other precisions."""
        if not self.scaler.is_enabled():
            return {}
        return {"loss_scale": self.scaler.get_scale(), "skipped_steps": self.skipped}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"scaler": self.scaler.state_dict(), "skipped": self.skipped}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.skipped = state["skipped"]
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
