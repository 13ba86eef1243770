"""Teacher outputs on disk: computed once, read by every run of the same runs folder that would compute the same.

One folder per teacher, data and way of computing (`<runs>/.teacher-outputs/<key>/`), in it one file per
quantity and `about.json`, which says what the key stands for. Delete them at any time; they are made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from kdbert.runs import FileLock, atomic_write, write_json

log = logging.getLogger("kdbert")
FOLDER = ".teacher-outputs"
VERSION = 1  # raise it when kdbert itself computes a teacher's outputs in another way


def stored(
    root: Path,
    rows: Mapping[str, int],
    about: Mapping[str, Any],
    compute: Callable[[list[str]], Mapping[str, np.ndarray]],
    accelerator: Accelerator,
    whose: str = "teacher's",
) -> dict[str, np.ndarray]:
    """A teacher's outputs for every example of a split: read from the store, or computed and kept there.

    While one process computes, others that want the same wait for it. A file that is damaged or does not
    fit is named and made again; where nothing can be written, the run goes on without a store.

    Args:
        root: the runs folder.
        rows: quantity (`logits`, `hidden.5`) -> its number of rows.
        about: everything that the values depend on; equal values mean equal outputs.
        compute: gives the quantities asked for, float32 [rows, ...]; called by all processes together.
        whose: how a line of the log begins.
    """
    about = {"store_version": VERSION, **about}
    text = json.dumps(about, sort_keys=True)
    folder = root / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:16]
    paths = {name: folder / f"{name}.safetensors" for name in sorted(rows)}
    locks: dict[str, FileLock | None] = {}
    values: dict[str, np.ndarray] = {}
    try:
        if accelerator.is_main_process:
            for name, path in paths.items():  # in one order, so that two processes never wait for each other
                locks[name] = _lock(folder / f"{name}.lock")
                kept = _read(path, name, rows[name])
                if kept is not None:
                    values[name] = kept
        if accelerator.num_processes > 1:
            have = torch.tensor([name in values for name in paths], dtype=torch.int32, device=accelerator.device)
            have = accelerator.reduce(have, "sum")  # the first process has found them whole
            for name, there in zip(paths, have.tolist(), strict=True):
                if there and name not in values:
                    kept = _read(paths[name], name, rows[name])
                    assert kept is not None
                    values[name] = kept
        for name in values:
            log.info("%s %s: read from %s", whose, name, paths[name])
        missing = [name for name in paths if name not in values]
        if missing:
            computed = compute(missing)
            for name in missing:
                values[name] = computed[name]
                if locks.get(name) is not None:
                    _write(paths[name], name, values[name], about, whose)
        return values
    finally:
        for lock in locks.values():
            if lock is not None:
                lock.release()


def _lock(path: Path) -> FileLock | None:
    lock = FileLock(path)
    try:
        if not lock.acquire():
            log.info("waiting for the teacher's outputs, which %s computes", lock.holder())
            lock.acquire(wait=True)
    except OSError as error:
        log.warning("teacher outputs are not kept: cannot write to %s (%s)", path.parent, error.strerror)
        return None
    return lock


def _read(path: Path, quantity: str, rows: int) -> np.ndarray | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            values = file.get_tensor(quantity)
            digest = (file.metadata() or {}).get("sha256")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        log.warning("%s is damaged (%s); made again", path, error)
        return None
    if values.shape[:1] != (rows,) or digest != _digest(values):
        log.warning("%s is damaged (its content is not what was written); made again", path)
        return None
    return values


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).view(np.uint8).data).hexdigest()


def _write(path: Path, quantity: str, values: np.ndarray, about: Mapping[str, Any], whose: str) -> None:
    from safetensors.numpy import save_file

    metadata = {"sha256": _digest(values)}
    try:
        free = shutil.disk_usage(path.parent).free
        if free < 1.1 * values.nbytes:
            raise OSError(f"{free / 2**20:.0f} MiB free, {values.nbytes / 2**20:.0f} MiB needed")
        for litter in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed process: the lock is ours
            litter.unlink()
        write_json(path.parent / "about.json", about)
        atomic_write(path, lambda temporary: save_file({quantity: values}, temporary, metadata))
    except Exception as error:  # safetensors has an error of its own for a full disk
        log.warning("teacher outputs are not kept: cannot write %s (%s)", path, error)
    else:
        log.info("%s %s: kept in %s", whose, quantity, path)
