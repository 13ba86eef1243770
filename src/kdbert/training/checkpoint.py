"""Checkpoints that are whole or absent.

A checkpoint is a folder `step-N`: tensors in safetensors, counters in JSON, and a manifest with size and sha256 of each
file. It is filled under a temporary name, the manifest last, flushed, then renamed; only then older ones are removed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import nn

from kdbert.disk.files import damaged, fsync, full_disk, sha256
from kdbert.disk.sealed import parse_json
from kdbert.errors import UserError

log = logging.getLogger("kdbert")
KEEP = 2  # the newest, and one to fall back to if that is damaged
_NONE = "none"  # marks a parameter that has no optimiser state yet


@dataclass
class Checkpoint:
    """A state read back: tensor groups (`weights`, `optimizer`, …) and counters."""

    path: Path
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write `step-N` in `folder`, then remove older ones, except the newest `KEEP - 1`.

    A later one is left alone: it is damaged, so the run went back to before it, and will be replaced.

    Raises:
        UserError: it cannot be written (a full disk, say); earlier checkpoints are untouched.
    """
    target, temporary = folder / f"step-{step}", folder / f".step-{step}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with full_disk(target):
            for name, group in tensors.items():
                save_file({key: value.contiguous() for key, value in group.items()}, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        files = {}
        for file in sorted(temporary.iterdir()):
            fsync(file)
            files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
        (temporary / "manifest.json").write_text(json.dumps(files), encoding="utf-8")
        fsync(temporary / "manifest.json")
        fsync(temporary)
        replaced = folder / f".step-{step}.old"
        if target.is_dir():  # renamed first: a kill while it is removed must not leave half of it under this name
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
        target.unlink(missing_ok=True)
        temporary.rename(target)
        fsync(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = next(iter(_steps(folder)), None)
        intact = f"{kept.name} is intact: " if kept else ""
        raise UserError(
            f"cannot save a checkpoint in {folder}: {error}; {intact}make room and run the same command again"
        ) from None
    for old in [path for path in _steps(folder) if _number(path) <= step][KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are all as its manifest says; damaged ones are named and skipped.

    Raises:
        UserError: all checkpoints are damaged (starting again without a word would hide the loss).
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; move it away to start from the first step")
    skipped = []
    for path in _steps(folder):
        try:
            return _read(path)
        except ValueError as error:
            skipped.append(f"{path.name} ({error})")
            log.warning("skipping checkpoint %s: %s", path, error)
    if skipped:
        raise UserError(
            f"every checkpoint in {folder} is damaged: {', '.join(skipped)}; pass --overwrite to start afresh"
        )
    return None


def _steps(folder: Path) -> list[Path]:
    """All checkpoints, newest first, damaged or not."""
    try:
        found = [folder / name for name in os.listdir(folder) if re.fullmatch(r"step-\d+", name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}; make it readable, or pass --overwrite") from None
    return sorted(found, key=_number, reverse=True)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _read(path: Path) -> Checkpoint:
    """A checkpoint whose files are all as its manifest says.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        listed = parse_json((path / "manifest.json").read_text(encoding="utf-8"))
        other = [name for name, facts in listed.items() if (path / name).stat().st_size != facts["bytes"]]
        fault = damaged(path, {name: facts["sha256"] for name, facts in listed.items()})
        fault = f"{other[0]} is damaged (its size is wrong)" if other else fault
    except OSError as error:
        raise ValueError(f"{Path(error.filename or path).name} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"manifest.json is damaged ({error})") from None
    if fault:
        raise ValueError(fault)
    needed = {"weights.safetensors", "optimizer.safetensors", "state.json"} - set(listed)
    if needed:
        raise ValueError(f"{', '.join(sorted(needed))} not listed")
    try:
        tensors = {name: load((path / name).read_bytes()) for name in sorted(listed) if name.endswith(".safetensors")}
    except SafetensorError as error:  # as its manifest says, but not a checkpoint
        raise ValueError(str(error)) from None
    state = parse_json((path / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(path, {name.removesuffix(".safetensors"): group for name, group in tensors.items()}, state)


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as named tensors: `<parameter>|exp_avg` and so on.

    A parameter without a gradient so far (XLNet's vector for masked tokens, say) has an empty `<parameter>|none`.
    """
    found: dict[str, torch.Tensor] = {}
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in module.named_parameters():
        state = optimizer.state.get(parameter, {})
        found.update({f"{name}|{key}": value for key, value in state.items() if isinstance(value, torch.Tensor)})
        if not state and parameter in trained:
            found[f"{name}|{_NONE}"] = torch.zeros(0)
    return found


def load_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], where: Path
) -> None:
    """Put a saved optimiser state back.

    Raises:
        UserError: the state of a trained parameter is missing; training never restarts it silently.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, field = key.rpartition("|")
        by_name.setdefault(name, {})[field] = value
    current = optimizer.state_dict()
    order = [p for group in optimizer.param_groups for p in group["params"]]
    missing = [names[p] for p in order if names[p] not in by_name]
    if missing:
        raise UserError(f"{where}: the optimiser state of {missing[0]} is missing; pass --overwrite to start afresh")
    current["state"] = {i: by_name[names[p]] for i, p in enumerate(order) if _NONE not in by_name[names[p]]}
    optimizer.load_state_dict(current)
