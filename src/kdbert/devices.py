"""Everything that is decided by the type of the device (docs/speed.md has it as a table), but for model types and keys.

Nothing else in kdbert asks for a device's type to decide by.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


def _decided(what: str, yes: str = "yes", no: str = "no") -> Any:
    """A decision, and how the table has it."""
    return field(metadata={"what": what, "yes": yes, "no": no})


@dataclass(frozen=True)
class ByDevice:
    """What is decided by the device."""

    own_attention: bool = _decided("`train.attention=auto` of proved model types", "kdbert's", "torch's (sdpa)")
    packing: bool = _decided("packing (`train.packing`)")
    own_dropout: bool = _decided("dropout (`train.fast_dropout`)", "from 16 bits an element", "torch's")
    own_mask: bool = _decided("mask of `train.attention=eager`", "kdbert's", "the library's")
    few_texts: bool = _decided(
        "scores of attention (`minilm`, `tinybert`, `mgskd`)",
        "a few texts of like length at once",
        "a whole batch at once",
    )
    fused: bool = _decided("AdamW", "fused", "torch's default")
    pinned: bool = _decided("batches go to the device from pinned memory")
    watched: bool = _decided("numbers that are not finite stop a run", "at their step", "at the next logged step")
    ahead: bool = _decided("the next batch is made in a side thread during a step")
    gathered: int = _decided("outputs of a teacher's pass are copied to the host", "256 MiB at a time", "each batch")
    kept_there: float = _decided("stored outputs of tokens lie", "on the device, if a quarter is enough", "on the host")


CPU = ByDevice(
    own_attention=True, packing=True, own_dropout=True, own_mask=False, few_texts=True, fused=True, pinned=False,
    watched=True, ahead=False, gathered=0, kept_there=0.0,
)  # fmt: skip
CUDA = ByDevice(
    own_attention=False, packing=False, own_dropout=False, own_mask=True, few_texts=False, fused=True, pinned=True,
    watched=False, ahead=True, gathered=2**28, kept_there=0.25,
)  # fmt: skip
OTHER = ByDevice(
    own_attention=False, packing=False, own_dropout=False, own_mask=True, few_texts=False, fused=False, pinned=False,
    watched=False, ahead=True, gathered=2**28, kept_there=0.0,
)  # fmt: skip


def by_device(device: torch.device | str) -> ByDevice:
    """What is decided by a device, or by the name of its type."""
    return {"cpu": CPU, "cuda": CUDA}.get(device if isinstance(device, str) else device.type, OTHER)


def has_bf16_units(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself (emulation would be slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        cpu = torch.cpu
        return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    return False


def room_for_outputs(device: torch.device) -> float:
    """Bytes of a teacher's outputs that may be kept on the device: a share of what is free there now."""
    share = by_device(device).kept_there
    return share * torch.cuda.mem_get_info(device)[0] if share else 0.0
