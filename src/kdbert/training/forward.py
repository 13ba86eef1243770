"""Running a model on a batch: the encoder in the chosen precision, what comes out in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from kdbert.data.batches import Batch, evaluation_batches, micro_batches
from kdbert.data.encode import Encoded
from kdbert.methods import LossTerms, Method, Outputs
from kdbert.training.precision import Precision


def encoder_autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """Autocast for the encoder; nothing where it runs in float32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def run_model(model: Any, batch: Batch, precision: Precision) -> Outputs:
    """Forward one batch. Half-precision outputs are turned into float32 before any loss sees them."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": _attention_mask(model, batch)}
    if batch.token_type_ids is not None:
        inputs["token_type_ids"] = batch.token_type_ids
    with encoder_autocast(batch.input_ids.device, precision):
        out = model(**inputs)
    return Outputs(logits=_at_least_float32(out.logits))


def _attention_mask(model: Any, batch: Batch) -> torch.Tensor | None:
    """The mask in the form that the attention kernel takes.

    The library turns a 2-D mask into this very one, but first asks the device whether the batch has
    padding at all, which on a GPU makes the host wait at every step.
    """
    if model.config._attn_implementation != "sdpa":
        return batch.attention_mask
    if not batch.padded:
        return None
    rows, length = batch.attention_mask.shape
    return batch.attention_mask.bool()[:, None, None, :].expand(rows, 1, length, length)


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class StudentWithMethod(nn.Module):
    """Student and method as one module: what is trained, wrapped for data parallel, and saved in checkpoints."""

    def __init__(self, student: nn.Module, method: Method, precision: Precision) -> None:
        super().__init__()
        self.student = student
        self.method = method
        self.precision = precision

    def forward(self, batch: Batch, teachers: Sequence[Outputs]) -> LossTerms:
        """The loss terms of this process's micro-batch; losses run with autocast off."""
        student = run_model(self.student, batch, self.precision)
        with torch.autocast(batch.input_ids.device.type, enabled=False):
            return self.method(student, teachers, batch)


@torch.inference_mode()
def predict(
    model: Any, data: Encoded, *, batch_size: int, precision: Precision, accelerator: Accelerator
) -> np.ndarray:
    """Logits of every example, float32 [N, C], in the order of the split, the same on every process.

    Each process computes its slice of each batch; (example number, logits) are gathered and rows that
    only filled up a slice are dropped.
    """
    training = model.training
    model.eval()
    numbers, logits = [], []
    for rows in evaluation_batches(data.lengths, batch_size):
        (batch,) = micro_batches(data, rows, rank=accelerator.process_index, world=accelerator.num_processes)
        batch = batch.to(accelerator.device)
        out = run_model(model, batch, precision).logits
        number = torch.where(batch.valid > 0, batch.example, -1)
        if accelerator.num_processes > 1:
            number, out = accelerator.gather((number, out))
        numbers.append(number)
        logits.append(out)
    model.train(training)
    flat, values = torch.cat(numbers).cpu().numpy(), torch.cat(logits).float().cpu().numpy()
    result = np.full((len(data), values.shape[1]), np.nan, dtype=np.float32)
    result[flat[flat >= 0]] = values[flat >= 0]
    return result
