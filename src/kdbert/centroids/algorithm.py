"""Centroids of a teacher's features over the training split.

A feature is the flattened hidden states of one layer, one row of length x H per example. `kmeans` reads the features
batch by batch, anew in every pass, so that they never have to be in RAM at once. `legacy` is what the published script
computes (docs/quirks.md, F7 and F8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch


class FeatureBatch(NamedTuple):
    """Features of some examples: their numbers int64 [b], and values float [b, d].

    d may be less than the D of the centroids: the missing columns at the end are zero.
    """

    rows: torch.Tensor
    features: torch.Tensor


Features = Callable[[], Iterator[FeatureBatch]]


@dataclass(frozen=True)
class Clusters:
    """Centroids float [K, D]; the cluster of each example int64 [N]; passes done; sum of squared distances."""

    centroids: torch.Tensor
    assignments: torch.Tensor
    passes: int
    inertia: float

    @property
    def counts(self) -> torch.Tensor:
        """Examples of each cluster, int64 [K]."""
        return torch.bincount(self.assignments, minlength=len(self.centroids))


def squared_distances(features: torch.Tensor, centroids: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """[b, K] from features [b, d], centroids [K, D] with d <= D, and the centroids' squared norms [K]."""
    product = features @ centroids[:, : features.shape[1]].T
    return (features.square().sum(1)[:, None] - 2 * product + norms[None, :]).clamp(min=0)


def lloyd(
    features: Features,
    count: int,
    centroids: torch.Tensor,
    *,
    passes: int | None = None,
    tolerance: float = 1e-4,
    refill: bool = True,
    progress: Callable[[int, float], None] = lambda done, inertia: None,
) -> Clusters:
    """k-means by Lloyd's passes: every example to its nearest centroid, then every centroid to its cluster's mean.

    Stops after `passes`, or when the centroids hardly move: the sum of the lengths that they moved by, squared, is
    less than `tolerance`. The centroids returned are the true means of the clusters returned.

    Args:
        features: reads all N = `count` examples anew at every call, in any order.
        centroids: float [K, D], where they start.
        refill: an empty cluster takes the example that is farthest from its centroid (from a cluster that has
            others); if False it keeps its centroid, as in the published code (docs/quirks.md, F18).
        progress: called after each pass with the passes done and the sum of squared distances.
    """
    centroids = centroids.clone()
    done = 0
    while True:
        sums, numbers = torch.zeros_like(centroids), torch.zeros(len(centroids), dtype=torch.int64)
        assignments, away = torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=centroids.dtype)
        norms = centroids.square().sum(1)
        for rows, values in features():
            squares, nearest = squared_distances(values, centroids, norms).min(1)
            assignments[rows], away[rows] = nearest, squares
            numbers += torch.bincount(nearest, minlength=len(centroids))
            chosen = torch.nn.functional.one_hot(nearest, len(centroids)).to(values.dtype)
            sums[:, : values.shape[1]] += chosen.T @ values
        inertia = float(away.double().sum())
        if refill and not numbers.all():
            _refill(features, sums, numbers, assignments, away)
        moved = torch.where(numbers[:, None] > 0, sums / numbers.clamp(min=1)[:, None], centroids)
        shift = float((moved - centroids).norm(dim=1).sum())
        centroids = moved
        done += 1
        progress(done, inertia)
        if shift**2 < tolerance or done == passes:
            return Clusters(centroids, assignments, done, inertia)


def _refill(
    features: Features, sums: torch.Tensor, numbers: torch.Tensor, assignments: torch.Tensor, away: torch.Tensor
) -> None:
    """Give each empty cluster the farthest example of a cluster that has others, in place."""
    empty = (numbers == 0).nonzero().flatten().tolist()
    taken: dict[int, int] = {}
    for row in away.argsort(descending=True, stable=True).tolist():
        if len(taken) == len(empty):
            break
        old = int(assignments[row])
        if numbers[old] > 1:
            new = empty[len(taken)]
            taken[row] = old
            numbers[old] -= 1
            numbers[new] += 1
            assignments[row] = new
    for rows, values in features():
        for place, row in enumerate(rows.tolist()):
            if row in taken:
                sums[taken[row], : values.shape[1]] -= values[place]
                sums[assignments[row], : values.shape[1]] += values[place]


def spread_out(distances: torch.Tensor, clusters: int, generator: torch.Generator) -> list[int]:
    """k-means++ (Arthur & Vassilvitskii 2007): each example is drawn with probability proportional to its squared
    distance to the nearest one drawn before.

    From squared distances of all pairs of examples [m, m]; the numbers of distinct examples.
    """
    weights = torch.ones(len(distances), dtype=torch.float64)
    nearest = torch.full_like(weights, torch.inf)
    chosen: list[int] = []
    for _ in range(clusters):
        weights[chosen] = 0
        if not weights.sum() > 0:  # only copies of drawn examples are left
            weights = torch.ones_like(weights)
            weights[chosen] = 0
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        nearest = torch.minimum(nearest, distances[chosen[-1]].double())
        weights = nearest.clone()
    return chosen


def kmeans(
    features: Features,
    count: int,
    clusters: int,
    width: int,
    *,
    seed: int,
    passes: int,
    progress: Callable[[int, float], None] = lambda done, inertia: None,
) -> Clusters:
    """K = `clusters` centroids [K, width] of N = `count` examples: k-means++ on a random sample of 10 examples per
    cluster, then at most `passes` of `lloyd`.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(count, generator=generator)[: 10 * clusters]
    place = torch.full((count,), -1)
    place[sample] = torch.arange(len(sample))
    kept = torch.zeros(0, width)
    for rows, values in features():
        if not len(kept):
            kept = torch.zeros(len(sample), width, dtype=values.dtype)
        inside = place[rows] >= 0
        kept[place[rows][inside], : values.shape[1]] = values[inside]
    centroids = kept[spread_out(squared_distances(kept, kept, kept.square().sum(1)), clusters, generator)]
    del kept
    return lloyd(features, count, centroids, passes=passes, progress=progress)


def legacy_statistics(features: Features, batch_size: int) -> tuple[float, float]:
    """Mean and standard deviation of the normal that the published script draws its first centroids from.

    Its running sums are reset at every step, so only the last batch counts, divided by the number of steps
    (docs/quirks.md, F8).
    """
    steps, last = 0, torch.zeros(0)
    for batch in _cut(features, batch_size):
        steps, last = steps + 1, batch
    return float(last.mean() / steps), float((last.var(1).mean() / steps).sqrt())


def legacy(
    features: Features,
    count: int,
    centroids: torch.Tensor,
    *,
    passes: int,
    batch_size: int,
    progress: Callable[[int, float], None] = lambda done, inertia: None,
) -> Clusters:
    """The published procedure: odd passes assign, even passes update by an exponential average, not a mean.

    Within a batch, the q-th member x (from 0) of a cluster moves its centroid c to ((q + 1) c + x) / (q + 2). Each c
    is zero before the first update (docs/quirks.md, F7), and a centroid without examples stays zero.

    Args:
        features: reads the examples in the order of the file.
        centroids: float [K, D], the random draw that the first assignment uses.
        passes: number of passes, including number 0, `legacy_statistics`.
        batch_size: examples of a step; 1 in the published script.
    """
    assignments, inertia = torch.zeros(count, dtype=torch.int64), 0.0
    updated = torch.zeros_like(centroids)
    for number in range(1, passes):
        position = 0
        if number % 2:
            inertia = 0.0
            norms = centroids.square().sum(1)
            for batch in _cut(features, batch_size):
                squares, nearest = squared_distances(batch, centroids, norms).min(1)
                assignments[position : position + len(batch)] = nearest
                inertia += float(squares.double().sum())
                position += len(batch)
        else:
            for batch in _cut(features, batch_size):
                seen: dict[int, int] = {}
                for row, cluster in zip(batch, assignments[position : position + len(batch)].tolist(), strict=True):
                    before = seen.get(cluster, 0)
                    updated[cluster] = ((before + 1) * updated[cluster] + row) / (before + 2)
                    seen[cluster] = before + 1
                position += len(batch)
            centroids = updated.clone()
        progress(number, inertia)
    return Clusters(centroids, assignments, passes, inertia)


def _cut(features: Features, size: int) -> Iterator[torch.Tensor]:
    """The features in batches of `size`, in whatever batches they are read."""
    rest: list[torch.Tensor] = []
    for _, values in features():
        *whole, last = torch.cat([*rest, values]).split(size)
        yield from whole
        rest = [last]
    yield from rest
