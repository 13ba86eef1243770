"""Centroids of a description: read from their file, or computed from a teacher's features and written there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator

from kdbert.centroids.algorithm import Features, kmeans, legacy, legacy_statistics
from kdbert.centroids.file import Centroids, Description
from kdbert.disk.lock import FileLock
from kdbert.errors import Interrupted, UserError
from kdbert.models.locate import short_name

log = logging.getLogger("kdbert")


def centroids_path(runs_dir: str, teacher: str, description: Description) -> Path:
    """`<runs>/<task>/memory/<teacher>-layer5-k100-<8 hex>.safetensors`."""
    digest = hashlib.sha256(json.dumps(asdict(description), sort_keys=True).encode()).hexdigest()[:8]
    name = f"{short_name(teacher)}-layer{description.layer}-k{description.centroids}-{digest}.safetensors"
    return Path(runs_dir) / description.task / "memory" / name


def find_or_build(
    path: Path,
    description: Description,
    features: Callable[[], Features],
    *,
    examples: int,
    length: int,
    accelerator: Accelerator,
) -> Centroids:
    """The centroids in `path`; if there are none, or damaged ones, they are computed and written first.

    All processes of a run call it together, and the first of them computes. Another run that wants the same file
    waits. Nothing is kept of an interrupted computation.

    Args:
        features: called by all processes together, only if there is something to compute; what it returns is read by
            the first process, once per pass.
        examples: N of the training split.
        length: tokens of a feature: a feature is [length x H], flattened.
    """
    main = accelerator.is_main_process
    with _alone(path) if main else contextlib.nullcontext():
        reused = main and _is_whole(path)
        if accelerator.num_processes > 1:
            reused = bool(accelerator.reduce(torch.tensor(int(reused), device=accelerator.device), "sum"))
        if not reused:
            read = features()
            if main:
                _build(path, description, read, examples, length)
            accelerator.wait_for_everyone()
    found = Centroids.load(path)
    how = "reused: " if reused else ""
    log.info("memory: %d centroids of layer %d, %s%s", len(found.values), description.layer, how, path)
    return found


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Inside, no other run computes this file."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.wait_for("the memory")
    except OSError as error:
        raise UserError(f"cannot write a memory to {path.parent}: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def _is_whole(path: Path) -> bool:
    """Whether there is a file that can be read; a damaged one is named."""
    if not path.exists():
        return False
    try:
        Centroids.load(path)
    except UserError as error:
        log.warning("%s; made again", error)
        return False
    return True


def _build(path: Path, wanted: Description, features: Features, examples: int, length: int) -> None:
    width = length * wanted.width

    def progress(done: int, inertia: float) -> None:
        log.info("memory: pass %d, mean squared distance %.4g", done, inertia / examples)

    log.info(
        "memory: %d centroids of %d examples, layer %d, at most %d passes",
        wanted.centroids, examples, wanted.layer, wanted.passes,
    )  # fmt: skip
    try:
        if wanted.algorithm == "legacy":
            generator = torch.Generator().manual_seed(wanted.seed)
            mean, std = legacy_statistics(features, wanted.batch_size)
            start = torch.randn(wanted.centroids, width, generator=generator) * std + mean
            how = {"passes": wanted.passes, "batch_size": wanted.batch_size}
            found = legacy(features, examples, start, **how, progress=progress)
        else:
            how = {"seed": wanted.seed, "passes": wanted.passes}
            found = kmeans(features, examples, wanted.centroids, width, **how, progress=progress)
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted(
            "stopped while the memory was made; nothing of it is kept: the same command starts it again",
            error.exit_code - 128 if isinstance(error, Interrupted) else signal.SIGINT,
        ) from None
    counts = found.counts
    log.info(
        "memory: %d pass%s, %d to %d examples per centroid%s",
        found.passes, "es" if found.passes > 1 else "", int(counts.min()), int(counts.max()),
        f", {int((counts == 0).sum())} with none" if not counts.all() else "",
    )  # fmt: skip
    about = {**asdict(wanted), "examples": examples, "passes_done": found.passes, "inertia": found.inertia}
    Centroids(found.centroids.view(-1, length, wanted.width), counts, about).save(path, found.assignments)
