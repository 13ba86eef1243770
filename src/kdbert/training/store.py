"""Teacher outputs on disk: computed once, read by every run of a runs folder that would compute the same.

`<runs>/.teacher-outputs/<key>/` has one file per quantity, and `about.json`, which says what the key is a digest of.
Delete any of them at any time; they are made again. Files are filled and read through memory maps, so they may be
larger than the machine's memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from kdbert.disk.files import fsync, write_json
from kdbert.disk.lock import FileLock
from kdbert.disk.sealed import parse_json

log = logging.getLogger("kdbert")
FOLDER = ".teacher-outputs"
VERSION = 3  # raise it when kdbert itself computes a teacher's outputs in another way
# numpy has no bfloat16; its bits are kept as int16.
_NAMES = {np.dtype(np.float32): "F32", np.dtype(np.int16): "BF16"}

# (quantity, shape) -> an array to fill; None if another process keeps it.
Allocate = Callable[[str, tuple[int, ...]], "np.ndarray | None"]


class NoRoom(Exception):
    """A quantity fits neither on the disk nor in memory."""


def used_bytes(root: Path) -> int:
    """What the store of a runs folder takes on the disk, including files that are being filled."""
    total = 0
    for file in (*(root / FOLDER).glob("*/*.safetensors"), *(root / FOLDER).glob("*/.*.tmp")):
        with contextlib.suppress(OSError):  # removed meanwhile
            total += file.stat().st_size
    return total


def in_memory(share: float, types: Mapping[str, np.dtype[Any]] | None = None) -> Allocate:
    """Allocates in memory, up to `share` bytes (beyond: `NoRoom`); float32 unless `types` says otherwise."""

    def allocate(name: str, shape: tuple[int, ...]) -> np.ndarray:
        nonlocal share
        dtype = types[name] if types else np.dtype(np.float32)
        share -= int(np.prod(shape)) * dtype.itemsize
        if share < 0:
            raise NoRoom(name)
        return np.zeros(shape, dtype)

    return allocate


def stored(
    root: Path,
    rows: Mapping[str, int],
    about: Mapping[str, Any],
    compute: Callable[[list[str], Allocate], Mapping[str, np.ndarray | None]],
    accelerator: Accelerator,
    whose: str = "teacher's",
    *,
    halves: frozenset[str] = frozenset(),
    budget: float = float("inf"),
    memory: float = float("inf"),
) -> dict[str, np.ndarray]:
    """A teacher's outputs for every example of a split: read from the store, or computed and kept there.

    While one run computes, others that want the same wait. A damaged file is named and made again. If nothing can be
    written, the run goes on without a store.

    Args:
        root: the runs folder.
        rows: quantity (`logits`, `hidden.5`) -> its number of rows.
        about: everything that the values depend on: equal descriptions mean equal outputs.
        compute: fills arrays of the quantities asked for, [rows, ...], which its second argument allocates; called by
            all processes together.
        whose: beginning of a line of the log.
        halves: quantities that are kept in bf16 (as int16); the others are float32.
        budget: most bytes on the disk, for the whole store of the runs folder.
        memory: most bytes in memory, for what has no room on the disk.

    Raises:
        NoRoom: in all processes, if a quantity fits in neither.
    """
    about = {"store_version": VERSION, **about}
    folder = root / FOLDER / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    paths = {name: folder / f"{name}.safetensors" for name in sorted(rows)}
    types = {name: np.dtype(np.int16 if name in halves else np.float32) for name in rows}
    locks: dict[str, FileLock] = {}
    files: dict[str, _File] = {}
    values: dict[str, np.ndarray] = {}
    otherwise = in_memory(memory, types)

    def allocate(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        wanted = int(np.prod(shape)) * types[name].itemsize
        if name in locks:
            try:
                if used_bytes(root) + wanted > budget or 1.1 * wanted > shutil.disk_usage(folder).free:
                    raise OSError(0, f"no room for {wanted / 2**20:.0f} MiB on the disk or in train.cache_gib")
                write_json(folder / "about.json", about)
                files[name] = _File(paths[name], name, shape, types[name])
            except OSError as error:
                log.warning("teacher outputs are not kept: cannot write %s (%s)", paths[name], error.strerror)
        if accelerator.num_processes > 1:  # if the first process keeps them in a file, the others read that later
            kept = torch.tensor(int(name in files), device=accelerator.device)
            if int(accelerator.reduce(kept, "sum")) and not accelerator.is_main_process:
                return None
        return files[name].values if name in files else otherwise(name, shape)

    try:
        if accelerator.is_main_process:
            for name, path in paths.items():  # in one order, so that two processes never wait for each other
                lock = FileLock(folder / f"{name}.lock")
                try:
                    lock.wait_for("the teacher's outputs")
                    locks[name] = lock
                except OSError as error:
                    log.warning("teacher outputs are not kept: cannot write to %s (%s)", folder, error.strerror)
                kept = _read(path, name, rows[name], types[name])
                if kept is not None:
                    values[name] = kept
        _share(values, paths, rows, types, accelerator)
        for name in values:
            log.info("%s %s: read from %s", whose, name, paths[name])
        missing = [name for name in paths if name not in values]
        if missing:
            computed = compute(missing, allocate)
            values.update({name: array for name in missing if (array := computed[name]) is not None})
            for name, file in files.items():
                try:
                    values[name] = file.seal()
                except OSError as error:
                    if accelerator.num_processes > 1:  # the others would look for it there
                        raise
                    log.warning("%s %s: cannot be kept in %s (%s); used for this run", whose, name, paths[name], error)
                    values[name] = file.values
                else:
                    log.info("%s %s: kept in %s", whose, name, paths[name])
            _share(values, paths, rows, types, accelerator)
        return values
    finally:
        for file in files.values():
            file.discard()
        for lock in locks.values():
            lock.release()


def _share(
    values: dict[str, np.ndarray],
    paths: Mapping[str, Path],
    rows: Mapping[str, int],
    types: Mapping[str, np.dtype[Any]],
    accelerator: Accelerator,
) -> None:
    """Let the other processes read what the first has found, or has kept."""
    if accelerator.num_processes == 1:
        return
    main = accelerator.is_main_process
    have = torch.tensor([main and name in values for name in paths], dtype=torch.int32, device=accelerator.device)
    for name, there in zip(paths, accelerator.reduce(have, "sum").tolist(), strict=True):
        if there and name not in values:
            kept = _read(paths[name], name, rows[name], types[name])
            assert kept is not None
            values[name] = kept


class _File:
    """A safetensors file of one tensor, filled through a memory map, then sealed: checksum, flush, rename.

    Raises:
        OSError: there is no room for it. The room is taken at once, since writing to a map of a file that cannot grow
            ends in a signal, not in an error.
    """

    def __init__(self, path: Path, quantity: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        for litter in path.parent.glob(f".{path.name}.*.tmp"):  # left by a killed process: the lock is ours
            litter.unlink()
        self.path, self.quantity, self.shape, self.dtype = path, quantity, shape, dtype
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        header = self._header("0" * 64)
        size = int(np.prod(shape)) * dtype.itemsize
        try:
            with self.temporary.open("wb") as file:
                file.write(header)
                file.flush()
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, len(header) + size)
                else:  # macOS
                    file.truncate(len(header) + size)
        except OSError:
            self.discard()
            raise
        self.values = _mapped(self.temporary, "r+", len(header), shape, dtype)

    def _header(self, digest: str) -> bytes:
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        entry = {"dtype": _NAMES[self.dtype], "shape": list(self.shape), "data_offsets": [0, size]}
        text = json.dumps({"__metadata__": {"sha256": digest}, self.quantity: entry}).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def seal(self) -> np.ndarray:
        """Finish the file; returns its values, read-only."""
        if isinstance(self.values, np.memmap):
            self.values.flush()
        header = self._header(_digest(self.values))
        with self.temporary.open("r+b") as file:
            file.write(header)
        fsync(self.temporary)
        os.replace(self.temporary, self.path)
        return _mapped(self.path, "r", len(header), self.shape, self.dtype)

    def discard(self) -> None:
        """Remove an unfinished file."""
        with contextlib.suppress(OSError):
            self.temporary.unlink()


def _mapped(path: Path, mode: Any, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    if not np.prod(shape):
        return np.zeros(shape, dtype)  # nothing can be mapped
    return np.memmap(path, dtype, mode, offset, shape)


def _read(path: Path, quantity: str, rows: int, dtype: np.dtype[Any]) -> np.ndarray | None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(size - 8, 1 << 20):
                raise ValueError("its header is cut off")
            header = parse_json(file.read(length))
        entry, digest = header[quantity], header["__metadata__"]["sha256"]
        shape = tuple(map(int, entry["shape"]))
        wanted = int(np.prod(shape)) * dtype.itemsize
        if entry["dtype"] != _NAMES[dtype] or entry["data_offsets"] != [0, wanted] or size != 8 + length + wanted:
            raise ValueError("its size or type is wrong")
        values = _mapped(path, "r", 8 + length, shape, dtype)
        if shape[:1] != (rows,) or digest != _digest(values):
            raise ValueError("its checksum is wrong")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        log.warning("%s is damaged (%s); made again", path, error)
        return None
    return values


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).view(np.uint8).data).hexdigest()
