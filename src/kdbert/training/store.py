"""Teacher outputs on disk: computed once, read by every run of the same runs folder that would compute the same.

One folder per teacher, data and way of computing (`<runs>/.teacher-outputs/<key>/`), in it one file per
quantity and `about.json`, which says what the key stands for. Delete them at any time; they are made again.
Files are filled and read through memory maps, so what is kept may be larger than the machine's memory.
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
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from kdbert.disk.files import atomic_write, fsync
from kdbert.disk.lock import FileLock
from kdbert.disk.sealed import parse_json

log = logging.getLogger("kdbert")
FOLDER = ".teacher-outputs"
VERSION = 3  # raise it when kdbert itself computes a teacher's outputs in another way
# numpy has no bfloat16; its bits are kept as int16.
_NAMES = {np.dtype(np.float32): "F32", np.dtype(np.int16): "BF16"}

# (quantity, shape) -> an array to fill; None where another process keeps it.
Allocate = Callable[[str, tuple[int, ...]], "np.ndarray | None"]


class NoRoom(Exception):
    """A quantity fits neither into the store nor into memory."""


def used_bytes(root: Path) -> int:
    """What the store of a runs folder takes on the disk, files that are being filled among it."""
    total = 0
    for pattern in ("*/*.safetensors", "*/.*.tmp"):
        for file in (root / FOLDER).glob(pattern):
            with contextlib.suppress(OSError):  # removed meanwhile
                total += file.stat().st_size
    return total


def in_memory(share: float, types: Mapping[str, np.dtype[Any]] = MappingProxyType({})) -> Allocate:
    """Allocates in memory, up to so many bytes; float32, where `types` does not say otherwise.

    Raises:
        NoRoom: beyond them.
    """

    def allocate(name: str, shape: tuple[int, ...]) -> np.ndarray:
        nonlocal share
        dtype = types.get(name, np.dtype(np.float32))
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
    also: Mapping[str, int] = MappingProxyType({}),
    halves: frozenset[str] = frozenset(),
    budget: float = float("inf"),
    memory: float = float("inf"),
) -> dict[str, np.ndarray]:
    """A teacher's outputs for every example of a split: read from the store, or computed and kept there.

    While one process computes, others that want the same wait for it. A file that is damaged or does not
    fit is named and made again; where nothing can be written, the run goes on without a store.

    Args:
        root: the runs folder.
        rows: quantity (`logits`, `hidden.5`) -> its number of rows.
        about: everything that the values depend on; equal values mean equal outputs.
        compute: fills arrays of the quantities asked for, [rows, ...], that it gets from its second argument;
            called by all processes together.
        whose: how a line of the log begins.
        also: further quantities and their rows. Where something has to be computed, these are computed and kept along
            with it if there is room for them; not over several processes.
        halves: the quantities that are kept in bf16 (as int16); the others are float32.
        budget: the store of the runs folder takes no more bytes than these.
        memory: what finds no room there is kept in memory, if it takes no more bytes than these.

    Raises:
        NoRoom: in all processes, where a quantity fits neither there nor here.
    """
    about = {"store_version": VERSION, **about}
    text = json.dumps(about, sort_keys=True)
    folder = root / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:16]
    paths = {name: folder / f"{name}.safetensors" for name in sorted(rows)}
    types = {name: np.dtype(np.int16 if name in halves else np.float32) for name in (*rows, *also)}
    locks: dict[str, FileLock | None] = {}
    files: dict[str, _File] = {}
    otherwise = in_memory(memory, types)
    values: dict[str, np.ndarray] = {}

    def allocate(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        wanted = int(np.prod(shape)) * types[name].itemsize
        if locks.get(name) is not None:
            try:
                if used_bytes(root) + wanted > budget or 1.1 * wanted > shutil.disk_usage(folder).free:
                    raise OSError(0, f"no room for {wanted / 2**20:.0f} MiB on the disk or in train.cache_gib")
                atomic_write(
                    folder / "about.json",
                    lambda file: file.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8"),
                )
                files[name] = _File(paths[name], name, shape, types[name])
            except OSError as error:
                if name in also:
                    log.info("%s %s: not kept for other methods (%s)", whose, name, error.strerror)
                else:
                    log.warning("teacher outputs are not kept: cannot write %s (%s)", paths[name], error.strerror)
        if name in also:
            return files[name].values if name in files else None
        if accelerator.num_processes > 1:  # where the first process keeps them in a file, the others read that later
            kept = torch.tensor(int(name in files), device=accelerator.device)
            if int(accelerator.reduce(kept, "sum")) and not accelerator.is_main_process:
                return None
        return files[name].values if name in files else otherwise(name, shape)

    try:
        if accelerator.is_main_process:
            for name, path in paths.items():  # in one order, so that two processes never wait for each other
                locks[name] = _lock(folder / f"{name}.lock")
                kept = _read(path, name, rows[name], types[name])
                if kept is not None:
                    values[name] = kept
        _share(values, paths, rows, types, accelerator)
        for name in values:
            log.info("%s %s: read from %s", whose, name, paths[name])
        missing = [name for name in paths if name not in values]
        if missing and accelerator.num_processes == 1:
            for name in sorted(set(also) - set(rows)):
                path = folder / f"{name}.safetensors"
                free = FileLock(folder / f"{name}.lock")
                with contextlib.suppress(OSError):
                    if not path.exists() and free.acquire():  # whoever else has it computes it
                        locks[name], paths[name] = free, path
        if missing:
            computed = compute([name for name in paths if name not in values], allocate)
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
        return {name: values[name] for name in rows}
    finally:
        for file in files.values():
            file.discard()
        for lock in locks.values():
            if lock is not None:
                lock.release()


def _share(
    values: dict[str, np.ndarray],
    paths: Mapping[str, Path],
    rows: Mapping[str, int],
    types: Mapping[str, np.dtype[Any]],
    accelerator: Accelerator,
) -> None:
    """Let the other processes read what the first has found whole, or has kept."""
    if accelerator.num_processes == 1:
        return
    main = accelerator.is_main_process
    have = torch.tensor([main and name in values for name in paths], dtype=torch.int32, device=accelerator.device)
    for name, there in zip(paths, accelerator.reduce(have, "sum").tolist(), strict=True):
        if there and name not in values:
            kept = _read(paths[name], name, rows[name], types[name])
            assert kept is not None
            values[name] = kept


def _lock(path: Path) -> FileLock | None:
    lock = FileLock(path)
    try:
        lock.wait_for("the teacher's outputs")
    except OSError as error:
        log.warning("teacher outputs are not kept: cannot write to %s (%s)", path.parent, error.strerror)
        return None
    return lock


class _File:
    """A safetensors file of one tensor, filled through a memory map, then sealed: checksum, flush, rename.

    Raises:
        OSError: there is no room for it; all of it is taken at once, since a map of a file without room ends in a
            signal, not in an error.
    """

    def __init__(self, path: Path, quantity: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        for litter in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed process: the lock is ours
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
        """The finished file's values."""
        if isinstance(self.values, np.memmap):
            self.values.flush()
        header = self._header(_digest(self.values))
        with self.temporary.open("r+b") as file:
            file.write(header)
        fsync(self.temporary)
        os.replace(self.temporary, self.path)
        return _mapped(self.path, "r", len(header), self.shape, self.dtype)

    def discard(self) -> None:
        """Remove what is not sealed."""
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
                raise ValueError("its header is not whole")
            header = parse_json(file.read(length))
        entry, digest = header[quantity], header["__metadata__"]["sha256"]
        shape = tuple(map(int, entry["shape"]))
        wanted = int(np.prod(shape)) * dtype.itemsize
        if entry["dtype"] != _NAMES[dtype] or entry["data_offsets"] != [0, wanted] or size != 8 + length + wanted:
            raise ValueError("it is not whole")
        values = _mapped(path, "r", 8 + length, shape, dtype)
        if shape[:1] != (rows,) or digest != _digest(values):
            raise ValueError("its content is not what was written")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        log.warning("%s is damaged (%s); made again", path, error)
        return None
    return values


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).view(np.uint8).data).hexdigest()
