"""The published memory and its k-means, through the functions that `train-memory` uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import arrays, cases, compare, must_have

from kdbert.centroids.algorithm import FeatureBatch, Features, legacy, legacy_statistics, lloyd

FAMILIES = ("memory", "kmeans")


def in_batches(features: torch.Tensor, size: int) -> Features:
    """The features, some at a time."""

    def read() -> Iterator[FeatureBatch]:
        for rows in torch.arange(len(features)).split(size):
            yield FeatureBatch(rows, features[rows])

    return read


@pytest.mark.parametrize("case", cases("memory"))
@pytest.mark.parametrize("size", [2, 5, 100], ids=lambda size: f"read by {size}")
def test_the_published_memory(case: dict[str, Any], size: int) -> None:
    inputs, expected = arrays(case)
    hyper = case["hyper"]
    features = inputs["teacher_hidden_11"].flatten(1)
    read, step = in_batches(features, size), hyper["per_gpu_memory_train_batch_size"]
    mean, std = legacy_statistics(read, step)
    start, passes = expected["init_centroids"], hyper["memory_num_train_epochs"]
    first = legacy(read, len(features), start, passes=2, batch_size=step)
    whole = legacy(read, len(features), start, passes=passes, batch_size=step)
    assert whole.centroids.shape == (hyper["num_centroid"], features.shape[1])
    compare(
        case,
        {
            "init_mean": torch.tensor(mean, dtype=torch.float64),
            "init_std": torch.tensor(std, dtype=torch.float64),
            "assignments": first.assignments,
            "centroids": whole.centroids,
        },
        expected,
    )


@pytest.mark.parametrize("case", cases("kmeans"))
@pytest.mark.parametrize("size", [3, 100], ids=lambda size: f"read by {size}")
def test_the_published_kmeans(case: dict[str, Any], size: int) -> None:
    inputs, expected = arrays(case)
    data, hyper = inputs["X"], case["hyper"]
    start = inputs["init"] if "init" in inputs else data[inputs["init_indices"]]
    snapped = data[torch.cdist(start, data).argmin(1)]  # as the published code does before its first pass
    found = lloyd(
        in_batches(data, size), len(data), snapped,
        passes=hyper["iter_limit"] or None, tolerance=hyper["tol"], refill=False,
    )  # fmt: skip
    compare(case, {"assignments": found.assignments, "centers": found.centroids}, expected)


def test_the_families_have_cases(golden_dir: Path) -> None:
    must_have(golden_dir, *FAMILIES)
