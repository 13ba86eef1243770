"""A CUDA device without a GPU: tensors on it have shapes, types and a device, and no values."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import absent

GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>)
"""
CUDA = torch.device("cuda", 0)
aten: Any = torch.ops.aten


def register_guard(folder: Path) -> None:
    """Give a CPU build of torch what asks nothing of a CUDA device; compiled once for each version, below `folder`."""
    if torch.version.cuda is not None:
        return  # FakeTensorMode does it
    library = folder / f"cuda-guard-{torch.__version__}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        own, place = folder / f"guard-{os.getpid()}.so", Path(torch.__file__).parent
        command = [
            "g++", "-shared", "-fPIC", "-std=c++17", "-x", "c++", "-", f"-I{place}/include", f"-L{place}/lib", "-lc10",
            f"-Wl,-rpath,{place}/lib", "-o", str(own),
        ]  # fmt: skip
        try:
            subprocess.run(command, input=GUARD, text=True, capture_output=True, check=True)
        except FileNotFoundError:
            absent("the fake CUDA tests compile three lines of C++, and there is no g++ here: install one")
        own.rename(library)
    ctypes.CDLL(str(library))


class HostWaits(Exception):
    """The host waited for the device where it must not."""


class FakeCuda(TorchDispatchMode):
    """Inside, what is computed on `cuda` is computed on shapes alone; what the host computes is computed as ever.

    The two are never mixed. The host waits for a GPU where it reads a value, where a shape depends on values, where
    tensors are copied to it, or to the device from memory that is not pinned: `waits` counts that, and in `running` it
    is an error. What the host sees instead of values: true, 1.0, and -1 of integers (in FiniteWatch that is never).
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits: Counter[str] = Counter()
        self.strict = False
        self.free = 2**33  # bytes

    def __enter__(self) -> Any:
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, the host must not wait."""
        self.strict = True
        try:
            yield
        finally:
            self.strict = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        kwargs, target = kwargs or {}, (kwargs or {}).get("device")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = sum(isinstance(tensor, FakeTensor) for tensor in tensors)
        if not there and (target is None or torch.device(target).type == "cpu"):
            with unset_fake_temporarily():
                if func is not aten._pin_memory.default:
                    return func(*args, **kwargs)
                copy = args[0].clone()
                copy.pinned = True
                return copy
        if func in (aten._local_scalar_dense.default, aten.item.default):
            return self.wait("reads a value", args[0].dtype)
        if func is aten.nonzero.default:
            self.wait("asks how many places there are")
            return args[0].new_ones(args[0].numel(), args[0].dim(), dtype=torch.int64)
        if func is aten._to_copy.default and target is not None and target.type == "cpu":
            dtype = kwargs.get("dtype") or args[0].dtype
            value = self.wait("copies to the host", dtype)
            with unset_fake_temporarily():
                return torch.full(args[0].shape, value, dtype=dtype)
        if func is aten._to_copy.default and not there and not (kwargs.get("non_blocking") and pinned(args[0])):
            self.wait("copies to the device from memory that is not pinned")
        if func is aten.copy_.default and there == 1 and tensors[1].dim():
            self.wait("copies between host and device")
        if func in (aten.index.Tensor, aten.index_put_.default):
            if there < len(tensors):
                self.wait("copies an index to the device")
            if any(tensor.dtype == torch.bool for tensor in tensors[1:]):
                self.wait("asks how many places there are")
        return func(*args, **kwargs)

    def wait(self, why: str, dtype: torch.dtype = torch.bool) -> float:
        """Here the host waits for a GPU; what it sees of a value."""
        if self.strict:
            raise HostWaits(why)
        self.waits[why] += 1
        return 1.0 if dtype.is_floating_point else True if dtype == torch.bool else -1


def pinned(tensor: torch.Tensor) -> bool:
    """Whether a tensor of the host came from `pin_memory`."""
    return hasattr(tensor, "pinned")


def on_cuda(module: nn.Module) -> Any:
    """The same module with its parameters and buffers on the fake device, as `module.to` would have it."""
    moved: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for values in (part._parameters, part._buffers):
            for name, value in values.items():
                if value is None:
                    continue
                if id(value) not in moved:
                    there = value.detach().to(CUDA)
                    if isinstance(value, nn.Parameter):
                        there = nn.Parameter(there, value.requires_grad)
                    moved[id(value)] = there
                values[name] = moved[id(value)]
    return module


def backward(loss: torch.Tensor, inputs: Sequence[torch.Tensor] = (), create_graph: bool = False) -> list[Any]:
    """Gradients of a loss by `inputs`, or without any added to the parameters' `.grad`; node by node.

    Torch's own engine asks the device for a stream, and there is none.
    """
    places = {(one.grad_fn, one.output_nr): number for number, one in enumerate(inputs)}
    found: list[Any] = [None] * len(inputs)
    order: list[Any] = []
    waiting: list[tuple[Any, bool]] = [(loss.grad_fn, False)]
    known = set()
    while waiting:  # every node behind all that it hands gradients to
        node, done = waiting.pop()
        if done:
            order.append(node)
        elif node not in known:
            known.add(node)
            waiting += [(node, True), *((after, False) for after, _ in node.next_functions if after is not None)]
    coming: dict[Any, dict[int, torch.Tensor]] = defaultdict(dict)
    coming[loss.grad_fn][loss.output_nr] = torch.ones_like(loss)
    with torch.set_grad_enabled(create_graph):
        for node in reversed(order):
            if not (gradients := coming.pop(node, {})):
                continue
            for number, gradient in gradients.items():
                if (node, number) in places:
                    found[places[node, number]] = gradient
            if hasattr(node, "variable"):
                if not inputs:
                    leaf, (gradient,) = node.variable, gradients.values()
                    leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
                continue
            given = [gradients.get(number) for number in range(len(node._input_metadata))]
            own = isinstance(node, torch.autograd.function.BackwardCFunction)
            made = node.apply(*given) if own else node(*given)
            for (after, number), gradient in zip(
                node.next_functions, made if isinstance(made, tuple) else (made,), strict=False
            ):
                if after is None or gradient is None:
                    continue
                of = after.variable if hasattr(after, "variable") else after._input_metadata[number]
                assert gradient.device == of.device, node.name()
                gradient = gradient.sum_to_size(of.shape).to(of.dtype)
                before = coming[after].get(number)
                coming[after][number] = gradient if before is None else before + gradient
    return found


class FakeAccelerator(Accelerator):
    """A process on the fake device that writes no files."""

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_main_process(self) -> bool:
        return False

    def backward(self, loss: torch.Tensor, **options: Any) -> None:
        assert loss.device == CUDA
        backward(loss)
