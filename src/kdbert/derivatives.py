"""Autograd functions whose backward pass is computed by hand have a first derivative and no second one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable as torch_once_differentiable


class _Refusal(torch.autograd.Function):
    """Its first input, tied to all of them: whoever differentiates by any of them is refused."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(
            "a function of kdbert's that is once_differentiable was differentiated twice; for second derivatives load "
            'the model with attn_implementation="eager" (train.attention=eager, train.packing=false)'
        )


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """torch's decorator of the same name, for a `backward`, without its gap.

    torch's own refuses `loss.backward()`, but is passed over by `torch.autograd.grad(loss, inputs)` where another way
    leads to the inputs, which then gives wrong numbers.

    Raises:
        RuntimeError: (of the decorated function's result) its derivative is asked for.
    """
    inner = torch_once_differentiable(backward)

    @functools.wraps(backward)
    def refusing(context: Any, *gradients: torch.Tensor) -> Any:
        found = inner(context, *gradients)
        if not torch.is_grad_enabled():  # nobody keeps a graph for a second derivative
            return found
        sources = [one for one in (*gradients, *context.saved_tensors) if one is not None and one.requires_grad]
        values = found if isinstance(found, tuple) else (found,)
        return tuple(None if value is None else _Refusal.apply(value, *sources) for value in values)

    return refusing
