"""The memory of a run: found where an earlier one put it, or made from the teacher's features."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from kdbert.centroids.algorithm import Clusters, FeatureBatch, Features, kmeans, legacy, legacy_statistics
from kdbert.centroids.file import Memory
from kdbert.data.batches import evaluation_batches, micro_batches
from kdbert.data.encode import Encoded
from kdbert.disk.lock import FileLock
from kdbert.errors import Interrupted, UserError
from kdbert.models.locate import short_name
from kdbert.recipe.sections import MemorySection
from kdbert.training.forward import run_model
from kdbert.training.precision import Precision

log = logging.getLogger("kdbert")
VERSION = 1  # raise it when kdbert computes a memory in another way


def about_memory(section: MemorySection, of: Mapping[str, Any], *, data: str, precision: str) -> dict[str, Any]:
    """What a memory is of, and how it is made: equal descriptions mean one memory.

    Args:
        of: task, teacher, layer, width and length (see `Plan.memory_of`).
        data: fingerprint of the training split as the teacher reads it.
    """
    how = section.model_dump(exclude={"file", "train"})
    return {"version": VERSION, **of, "data": data, "precision": precision, **how}


def memory_path(runs_dir: str, teacher: str, about: Mapping[str, Any]) -> Path:
    """`<runs>/<task>/memory/<teacher>-layer5-k100-<8 hex>.safetensors`."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{short_name(teacher)}-layer{about['layer']}-k{about['centroids']}-{digest}.safetensors"
    return Path(runs_dir) / str(about["task"]) / "memory" / name


def make_memory(
    path: Path,
    section: MemorySection,
    about: Mapping[str, Any],
    data: Encoded,
    hidden: Callable[[], np.ndarray | None],
    model: Callable[[], Any],
    accelerator: Accelerator,
    precision: Precision,
    batch_size: int,
) -> Memory:
    """Read a memory of this description, or make it; a second process that wants the same waits.

    Args:
        hidden: the teacher's layer for every token of the split, float32 [tokens, H]; None if that is too large to
            keep, so that the teacher runs in every pass. Called by all processes together.
        model: the teacher's model.
        batch_size: examples per batch of the teacher's pass.
    """
    assert section.centroids is not None
    if section.centroids > len(data):
        raise UserError(
            f"memory.centroids is {section.centroids}, but there are {len(data)} training examples; set fewer with "
            "memory.centroids="
        )
    lock = None
    if accelerator.is_main_process:
        lock = FileLock(path.with_suffix(".lock"))
        try:
            if not lock.acquire():
                log.info("waiting for the memory, which %s makes", lock.holder())
                lock.acquire(wait=True)
        except OSError as error:
            raise UserError(f"cannot write a memory to {path.parent}: {error.strerror}") from None
    try:
        there = torch.tensor([accelerator.is_main_process and _whole(path)], dtype=torch.int32)
        if accelerator.num_processes > 1:
            there = accelerator.reduce(there.to(accelerator.device), "sum")
        reused = bool(there.item())
        if not reused:
            values = hidden() if section.algorithm == "kmeans" else None
            if accelerator.is_main_process:
                _make(path, section, about, data, values, model, accelerator.device, precision, batch_size)
            accelerator.wait_for_everyone()
    finally:
        if lock is not None:
            lock.release()
    memory = Memory.load(path)
    log.info(
        "memory: %d centroids of layer %d, %s%s",
        len(memory.centroids),
        about["layer"],
        "reused: " if reused else "",
        path,
    )
    return memory


def _whole(path: Path) -> bool:
    """Whether there is a memory that can be read; one that cannot is named."""
    if not path.exists():
        return False
    try:
        Memory.load(path)
    except UserError as error:
        log.warning("%s; made again", error)
        return False
    return True


def _make(
    path: Path,
    section: MemorySection,
    about: Mapping[str, Any],
    data: Encoded,
    values: np.ndarray | None,
    model: Callable[[], Any],
    device: torch.device,
    precision: Precision,
    batch_size: int,
) -> None:
    assert section.centroids is not None
    width, layer = int(about["width"]), int(about["layer"])
    original = section.algorithm == "legacy"
    # Trained positions end where the longest example does; the published memory has them all.
    length = int(about["max_length"]) if original else int(data.lengths.max())
    passes = section.passes
    assert passes is not None

    def progress(done: int, inertia: float) -> None:
        log.info("memory: pass %d, mean squared distance %.4g", done, inertia / len(data))

    def shown(batches: Sequence[np.ndarray]) -> Iterable[np.ndarray]:
        """The batches of a pass, with a bar."""
        return tqdm(
            batches, desc="memory", unit="batch", leave=False, disable=not log.isEnabledFor(logging.INFO),
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )  # fmt: skip

    def live() -> Iterator[FeatureBatch]:
        network = model().eval()
        batches = np.array_split(np.arange(len(data)), -(-len(data) // batch_size)) if original else None
        for rows in shown(batches or evaluation_batches(data.lengths, batch_size)):
            (batch,) = micro_batches(data, rows, length=length if original else None)
            with torch.no_grad():
                found = run_model(network, batch.to(device), precision, (layer,)).hidden[layer]
                if not original:
                    found = found * batch.attention_mask.to(device).unsqueeze(-1)
            yield FeatureBatch(torch.from_numpy(rows), found.flatten(1).cpu())

    def kept() -> Iterator[FeatureBatch]:
        assert values is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a map cannot be written to, and nobody does
            tokens = torch.from_numpy(values)
        for rows in shown(evaluation_batches(data.lengths, batch_size)):
            index, real = data.tokens(rows, int(data.lengths[rows].max()))
            found = tokens[torch.from_numpy(index.reshape(-1))].view(*index.shape, width)
            yield FeatureBatch(torch.from_numpy(rows), (found * torch.from_numpy(real).unsqueeze(-1)).flatten(1))

    features: Features = live if values is None else kept
    log.info(
        "memory: %d centroids of %d examples, layer %d, at most %d passes%s",
        section.centroids, len(data), layer, passes, "" if values is not None else "; the teacher runs in every pass",
    )  # fmt: skip
    found: Clusters
    try:
        if original:
            generator = torch.Generator().manual_seed(section.seed)
            mean, std = legacy_statistics(features, section.batch_size)
            start = torch.randn(section.centroids, length * width, generator=generator) * std + mean
            found = legacy(features, len(data), start, passes=passes, batch_size=section.batch_size, progress=progress)
        else:
            found = kmeans(
                features,
                len(data),
                section.centroids,
                length * width,
                seed=section.seed,
                passes=passes,
                progress=progress,
            )
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted(
            "stopped while the memory was made; nothing of it is kept: the same command starts it again",
            error.exit_code - 128 if isinstance(error, Interrupted) else signal.SIGINT,
        ) from None
    counts = found.counts
    log.info(
        "memory: %d pass%s, %d to %d examples a centroid%s",
        found.passes, "es" if found.passes > 1 else "", int(counts.min()), int(counts.max()),
        f", {int((counts == 0).sum())} with none" if not counts.all() else "",
    )  # fmt: skip
    facts = {**about, "examples": len(data), "passes_done": found.passes, "inertia": found.inertia}
    Memory(found.centroids.view(-1, length, width), counts, facts).save(path, found.assignments)
