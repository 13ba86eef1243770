"""Which arithmetic the encoder runs in, and why."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator

from kdbert.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def make_accelerator(**options: Any) -> Accelerator:
    """The process's device and its place among the processes that torchrun started.

    Told that there is no accelerator, the library joins processes on CPU by gloo; left to itself it starts
    as many single processes as there are.

    Raises:
        UserError: torchrun started several processes, but they did not find each other.
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
        # While the first process clusters a memory the others wait, longer than torch's 10 to 30 minutes if need be.
        # A process that has died is seen by its closed connection; and told to the library above, this would also be
        # the time for which processes look for a starter that is gone.
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(days=7))
    return accelerator


def keep_buffers() -> bool:
    """Keep freed buffers of up to 1 GiB for the next step, where the C library is glibc.

    By default it hands each one above 32 MiB back to the system, which gives it anew, page by page and zeroed, a
    moment later: with logits of a whole vocabulary that took more than half of a step (docs/speed.md).

    Returns:
        Whether the C library took it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system's
        return False
    return all(
        mallopt(option, value) == 1 for option, value in ((_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, 2**31 - 1))
    )


def has_bf16_units(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself (emulation would be slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        cpu = torch.cpu
        return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    return False


def choose_precision(asked: str, device: torch.device) -> Precision:
    """`auto` is bf16 where the hardware has it, else fp32; fp16 is for who asks for it.

    Raises:
        UserError: another word.
    """
    if asked == "auto":
        return "bf16" if has_bf16_units(device) else "fp32"
    for known in get_args(Precision):
        if asked == known:
            return known
    raise UserError(f"--precision {asked!r} is unknown: expected auto, fp32, bf16 or fp16")


class LossScale:
    """In fp16, whose smallest number is 6e-8: the loss multiplied before the backward pass, gradients divided after it.

    A gradient that overflows leaves its step out and halves the factor; 2,000 steps without one double it. In other
    precisions nothing is multiplied and no step is left out.

    Attributes:
        skipped: steps that were left out.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.skipped = 0

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Step, unless a gradient overflowed; `self.scaler.unscale_` comes before.

        Returns:
            Whether the step was left out and a smaller factor may help the next one.
        """
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        overflowed = self.scaler.get_scale() < before
        self.skipped += overflowed
        return overflowed and before > 1

    def numbers(self) -> dict[str, float]:
        """What a log says of it; nothing in other precisions."""
        if not self.scaler.is_enabled():
            return {}
        return {"loss_scale": self.scaler.get_scale(), "skipped_steps": self.skipped}

    def state(self) -> dict[str, Any]:
        """What a run needs to go on with it."""
        return {**self.scaler.state_dict(), "skipped": self.skipped}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state` gave."""
        self.skipped = state.get("skipped", 0)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict({key: value for key, value in state.items() if key != "skipped"})
