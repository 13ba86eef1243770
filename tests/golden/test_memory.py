"""The published memory and its k-means, through the functions that `train-memory` uses (docs/quirks.md, 3.5)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from golden_cases import Case, Values, golden

from kdbert.centroids.algorithm import FeatureBatch, Features, legacy, legacy_statistics, lloyd


def in_batches(features: torch.Tensor, size: int) -> Features:
    """The features, some at a time."""

    def read() -> Iterator[FeatureBatch]:
        for rows in torch.arange(len(features)).split(size):
            yield FeatureBatch(rows, features[rows])

    return read


@golden("memory")
def test_the_published_memory(case: Case) -> Iterator[Values]:
    hyper = case.hyper
    features = case.inputs["teacher_hidden_11"].flatten(1)
    step, passes = hyper["per_gpu_memory_train_batch_size"], hyper["memory_num_train_epochs"]
    start = case.expected["init_centroids"]
    yield {"init_centroids": None}  # a random draw: given
    for size in (2, 5, 100):
        read = in_batches(features, size)
        mean, std = legacy_statistics(read, step)
        whole = legacy(read, len(features), start, passes=passes, batch_size=step)
        assert whole.centroids.shape == (hyper["num_centroid"], features.shape[1])
        yield {
            "init_mean": torch.tensor(mean, dtype=torch.float64),
            "init_std": torch.tensor(std, dtype=torch.float64),
            "assignments": legacy(read, len(features), start, passes=2, batch_size=step).assignments,
            "centroids": whole.centroids,
        }


@golden("kmeans")
def test_the_published_kmeans(case: Case) -> Iterator[Values]:
    data, hyper = case.inputs["X"], case.hyper
    start = case.inputs["init"] if "init" in case.inputs else data[case.inputs["init_indices"]]
    snapped = data[torch.cdist(start, data).argmin(1)]  # as the published code does before its first pass
    for size in (3, 100):
        found = lloyd(
            in_batches(data, size), len(data), snapped,
            passes=hyper["iter_limit"] or None, tolerance=hyper["tol"], refill=False,
        )  # fmt: skip
        yield {"assignments": found.assignments, "centers": found.centroids}
