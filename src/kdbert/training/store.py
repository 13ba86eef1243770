"""Teacher outputs on disk: computed once, read by every run of the same runs folder that would compute the same.

One folder per teacher, data and way of computing (`<runs>/.teacher-outputs/<key>/`), in it one file per
quantity and `about.json`, which says what the key stands for. Delete them at any time; they are made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
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
    quantity: str,
    about: Mapping[str, Any],
    rows: int,
    compute: Callable[[], np.ndarray],
    accelerator: Accelerator,
) -> np.ndarray:
    """A teacher's output for every example of a split: read from the store, or computed and kept there.

    While one process computes, others that want the same wait for it. A file that is damaged or does not
    fit is named and made again; where nothing can be written, the run goes on without a store.

    Args:
        root: the runs folder.
        quantity: `logits`.
        about: everything that the values depend on; equal values mean equal outputs.
        rows: number of examples.
        compute: gives float32 [rows, ...]; called by all processes together.
    """
    about = {"store_version": VERSION, **about}
    text = json.dumps(about, sort_keys=True)
    folder = root / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:16]
    path = folder / f"{quantity}.safetensors"
    lock = None
    values = None
    if accelerator.is_main_process:
        lock = _lock(folder / f"{quantity}.lock")
        values = _read(path, quantity, rows)
    try:
        if accelerator.num_processes > 1:
            found = torch.tensor([values is not None], dtype=torch.int32, device=accelerator.device)
            if bool(accelerator.reduce(found, "sum").item()) and values is None:
                values = _read(path, quantity, rows)  # the first process has found it whole
                assert values is not None
        if values is not None:
            log.info("teacher's %s: read from %s", quantity, path)
            return values
        values = compute()
        if lock is not None:
            _write(path, quantity, values, about)
        return values
    finally:
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
    if values.shape[:1] != (rows,) or digest != hashlib.sha256(values.tobytes()).hexdigest():
        log.warning("%s is damaged (its content is not what was written); made again", path)
        return None
    return values


def _write(path: Path, quantity: str, values: np.ndarray, about: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    metadata = {"sha256": hashlib.sha256(values.tobytes()).hexdigest()}
    try:
        for litter in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed process: the lock is ours
            litter.unlink()
        write_json(path.parent / "about.json", about)
        atomic_write(path, lambda temporary: save_file({quantity: values}, temporary, metadata))
    except Exception as error:  # safetensors has an error of its own for a full disk
        log.warning("teacher outputs are not kept: cannot write %s (%s)", path, error)
    else:
        log.info("teacher's %s: kept in %s", quantity, path)
