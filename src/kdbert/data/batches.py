"""Batches: which examples, in which order, and as tensors.

The order of an epoch is a pure function of (seed, epoch), whatever the number of processes, so two integers are the
whole state of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from kdbert.data.encode import Encoded
from kdbert.data.masking import IGNORE_INDEX
from kdbert.derivatives import once_differentiable
from kdbert.devices import by_device

# A pool holds this many batches, or half of a small data set. Sorting by length happens only inside a randomly drawn
# pool, so an example meets others every epoch.
POOL_BATCHES = 50
EVALUATION = (0x6576616C,)  # the draw of hidden tokens in evaluations: without seed and epoch, so always the same


def epoch_batches(
    lengths: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    bucketing: bool,
    classes: np.ndarray | None = None,
    per_class: int = 4,
    tokens: int | None = None,
    labelled: np.ndarray | None = None,
    unlabelled: int | None = None,
) -> list[np.ndarray]:
    """The global batches of one epoch: every example exactly once, in random order.

    Args:
        lengths: int [N], tokens per example.
        batch_size: examples per batch; one batch of the epoch may have fewer.
        bucketing: batch examples of similar length: sort by length inside random pools of at most `POOL_BATCHES`
            batches, then shuffle the batches.
        classes: int [N]; if given, batches consist of groups of `per_class` examples of one class (see
            `_class_groups`), and lengths do not matter.
        tokens: if given, a batch has about so many tokens, however many examples these are (see `batches_of_tokens`).
        labelled, unlabelled: if given, bool [N], and how many of the rest each batch has: then an epoch is every
            labelled example once, and of the rest as many as there is room for (see `_mixed`).

    Returns:
        int64 arrays of example numbers.
    """
    if labelled is not None and unlabelled is not None:
        return _mixed(lengths, batch_size, labelled, unlabelled, seed=seed, epoch=epoch, bucketing=bucketing)
    random = np.random.default_rng([seed, epoch])
    count = None if tokens is None else batches_of_tokens(lengths, tokens)
    if count is not None:
        batch_size = max(1, len(lengths) // count)
    if classes is not None:
        order = _class_groups(classes, per_class, random)
    else:
        order = random.permutation(len(lengths))
        if bucketing:
            pool = batch_size * min(POOL_BATCHES, -(-len(order) // (2 * batch_size)))
            pools = [order[start : start + pool] for start in range(0, len(order), pool)]
            parts = [part[np.argsort(lengths[part], kind="stable")] for part in pools]
            if count is not None:  # batches cross the borders of pools: there long texts must meet long ones
                parts[1::2] = [part[::-1] for part in parts[1::2]]
            order = np.concatenate(parts)
    if count is None:
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    else:
        # An example is in the batch in which its first token falls.
        first = np.concatenate([[0], np.cumsum(lengths[order])])
        places = first[:-1] * count // first[-1]
        batches = np.split(order, np.searchsorted(places, np.arange(1, count)))
    if bucketing or classes is not None:
        batches = [batches[i] for i in random.permutation(len(batches))]
    return batches


def batches_of_tokens(lengths: np.ndarray, tokens: int) -> int:
    """How many batches of about so many tokens an epoch has, the same in every epoch.

    `tokens` must be at least the longest example's, so that none is empty; a small data set has batches of up to twice
    as many.
    """
    return max(1, int(lengths.sum()) // tokens)


def _class_groups(classes: np.ndarray, per_class: int, random: np.random.Generator) -> np.ndarray:
    """Every example once, in groups of `per_class` of one class; a class's groups are spread over the epoch.

    With a batch size of P * `per_class`, a batch holds P groups, of P classes if at least P classes are of similar
    size. The rest of each class (fewer than `per_class`) comes at the end.
    """
    groups: list[np.ndarray] = []
    places: list[float] = []
    rest: list[np.ndarray] = []
    for one in np.unique(classes):
        members = random.permutation(np.flatnonzero(classes == one))
        count = len(members) // per_class
        groups.extend(members[: count * per_class].reshape(count, per_class))
        places.extend((np.arange(count) + random.random()) / max(count, 1))
        rest.append(members[count * per_class :])
    ordered = [groups[i] for i in np.argsort(places, kind="stable")]
    return np.concatenate([*ordered, *(rest[i] for i in random.permutation(len(rest)))]).astype(np.int64)


def _mixed(
    lengths: np.ndarray, batch_size: int, labelled: np.ndarray, count: int, *, seed: int, epoch: int, bucketing: bool
) -> list[np.ndarray]:
    """Batches of which each has `count` examples without a label.

    Those with a label are batched as by `epoch_batches`. The others follow each other, over the epochs, in one endless
    sequence, in which every one comes once before any comes again.
    """
    own, rest = np.flatnonzero(labelled), np.flatnonzero(~labelled)
    batches = epoch_batches(lengths[own], batch_size - count, seed=seed, epoch=epoch, bucketing=bucketing)
    wanted = len(batches) * count  # of this epoch
    first, last = epoch * wanted, (epoch + 1) * wanted
    rounds = range(first // len(rest), (last - 1) // len(rest) + 1)
    every = [np.random.default_rng([seed, number, 1]).permutation(rest) for number in rounds]
    taken = np.concatenate(every)[first % len(rest) :][:wanted]
    if bucketing:  # in each pool of batches the longest ones get the longest texts
        for start in range(0, len(batches), POOL_BATCHES):
            pool = batches[start : start + POOL_BATCHES]
            part = taken[start * count : (start + len(pool)) * count]
            part = part[np.argsort(lengths[part], kind="stable")].reshape(len(pool), count)
            rank = np.argsort(np.argsort([lengths[own[rows]].mean() for rows in pool], kind="stable"))
            taken[start * count : (start + len(pool)) * count] = part[rank].reshape(-1)
    random = np.random.default_rng([seed, epoch, 2])  # so that micro-batches and processes are mixed, too
    return [
        random.permutation(np.concatenate([own[rows], taken[number * count : (number + 1) * count]]))
        for number, rows in enumerate(batches)
    ]


def evaluation_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Every example once, longest first: hardly any padding, and the peak of RAM comes at the start."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@dataclass
class Batch:
    """What one process works on in one forward pass.

    Attributes:
        input_ids, attention_mask: int64 [B, L]. token_type_ids: int64 [B, L] or None.
        labels: int64 [B] (classes), bool [B, C] (sets of classes), float32 [B] (scores), int64 [B, L] (of tokens,
            `IGNORE_INDEX` where there is none), or None.
        example: int64 [B], numbers of the examples in their split.
        valid: float32 [B], 0 for rows that only fill up this process's part.
        scale: factor of a sum over this process's examples, such that the mean of the results over processes is the
            mean over the examples of the whole step. label_scale: the same for tokens with a label; token_scale: for
            real tokens. pair_scale: for pairs of real tokens of one example.
        labelled: bool [B], which examples have a label (of the others `labels` means nothing); None: all of them.
        labelled_scale: as `scale`, for the examples that have a label, or their tokens with a label; read where some
            lack one.
        share: this micro-batch's share of the step (1 without accumulation), for terms that every process computes on
            the whole micro-batch.
        padded: whether any row may be shorter than L (known on the host, without asking the device).
        rows: `example` on the host. lengths: int64 [B], tokens of each, on the host.
        everyone: the examples of this micro-batch over all processes, on the host.
        start: where this process's part begins in `everyone`.
        world: number of processes.
        known: of plain text, bool [B, L], real tokens (hidden or not) that the teacher's vocabulary has.
        known_count: their number in this micro-batch, over all processes. known_scale: as `scale`, for them.
        seed, step: of the run, and the number of its optimiser step, from 0: what a draw is made of that all processes
            and micro-batches of a step share.
        progress: share of the run's optimiser steps that were made before this one, in [0, 1).
        on_host: of a batch on another device, the same on the host.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor | None
    labels: torch.Tensor | None
    example: torch.Tensor
    valid: torch.Tensor
    scale: float
    share: float = 1.0
    padded: bool = True
    rows: np.ndarray | None = None
    everyone: np.ndarray | None = None
    start: int = 0
    label_scale: float = 0.0
    token_scale: float = 0.0
    pair_scale: float = 0.0
    known: torch.Tensor | None = None
    known_count: int = 0
    known_scale: float = 0.0
    world: int = 1
    lengths: np.ndarray | None = None
    labelled: torch.Tensor | None = None
    labelled_scale: float = 0.0
    progress: float = 0.0
    seed: int = 0
    step: int = 0
    on_host: Batch | None = None

    def alike(self, rows: np.ndarray) -> Batch:
        """The inputs of some rows of equal length, without padding."""
        assert self.lengths is not None
        place, length = moved(torch.from_numpy(rows), self.input_ids.device), int(self.lengths[rows[0]])
        types = self.token_type_ids
        return replace(
            self,
            input_ids=self.input_ids[place, :length],
            attention_mask=self.attention_mask[place, :length],
            token_type_ids=None if types is None else types[place, :length],
            lengths=self.lengths[rows],
            padded=False,
            on_host=None,
        )

    @property
    def count(self) -> int:
        """Examples of this micro-batch, over all processes."""
        return len(self.example) if self.everyone is None else len(self.everyone)

    def gather(self, per_example: torch.Tensor) -> torch.Tensor:
        """A per-example quantity [B, ...] of all processes' parts, in their order: [count, ...].

        Gradients flow back to every process's own part. If all processes compute the same from the result, the mean of
        their gradients is that of one process with the whole micro-batch.
        """
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return per_example
        # Only the last part can have rows that fill it up, so the first `count` rows are real.
        return _Gather.apply(per_example)[: self.count]

    def mean(self, per_example: torch.Tensor) -> torch.Tensor:
        """Mean of a quantity of examples or tokens over the whole optimiser step.

        It divides by the global count, so that neither the number of processes nor that of micro-batches changes a loss
        or a gradient. `per_example` is [B], or [B, L] with 0 at tokens without a label.
        """
        if per_example.dim() == 2:
            return (per_example.sum(1) * self.valid.to(per_example.dtype)).sum() * self.label_scale
        return (per_example * self.valid.to(per_example.dtype)).sum() * self.scale

    def mean_of_labelled(self, per_example: torch.Tensor) -> torch.Tensor:
        """`mean` over the examples that have a label (or their tokens that have one); 0 if the step has none."""
        if self.labelled is None:
            return self.mean(per_example)
        counted = (self.valid * self.labelled).to(per_example.dtype)
        return ((per_example.sum(1) if per_example.dim() == 2 else per_example) * counted).sum() * self.labelled_scale

    def token_mean(self, per_token: torch.Tensor) -> torch.Tensor:
        """As `mean`, of a quantity of all real tokens: [B, L], with any value at padding, or sums over them, [B]."""
        sums = per_token
        if per_token.dim() > 1:
            sums = per_token.masked_fill(self.attention_mask == 0, 0.0).sum(1)
        return (sums * self.valid.to(sums.dtype)).sum() * self.token_scale

    def pair_mean(self, sums: torch.Tensor) -> torch.Tensor:
        """As `mean`, of a quantity of all pairs of real tokens of an example, whose sums over them are given: [B]."""
        return (sums * self.valid.to(sums.dtype)).sum() * self.pair_scale

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over the processes of a value of this micro-batch, without gradient."""
        value = value.detach().clone()
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(value)
        return value

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        if device.type == self.input_ids.device.type:
            return self
        tensors: dict[str, Any] = {
            name: moved(value, device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors, on_host=self)

    def places(self, choose: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
        """The numbers in the flattened batch [B * L] of some tokens: where `choose(batch)`, bool [B, L], is true.

        Chosen on the host, since on a GPU the host would have to wait to know how many there are.
        """
        return moved(choose(self.on_host or self).reshape(-1).nonzero()[:, 0], self.input_ids.device)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on a device. From memory that is not pinned, a copy to a GPU would make the host wait."""
    return (tensor.pin_memory() if by_device(device).pinned else tensor).to(device, non_blocking=True)


class _Gather(torch.autograd.Function):
    """Concatenation of all processes' tensors; the gradient is summed over processes and split again."""

    @staticmethod
    def forward(context: Any, part: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()  # contiguous, and owned here
        torch.distributed.all_reduce(total)
        return total.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]


def micro_batches(
    data: Encoded,
    rows: np.ndarray,
    *,
    accumulation: int = 1,
    rank: int = 0,
    world: int = 1,
    length: int | None = None,
    draw: tuple[int, ...] = EVALUATION,
    progress: float = 0.0,
) -> Iterator[Batch]:
    """Cut one global batch into micro-batches and take this process's share of each.

    Rank r takes a contiguous slice. All ranks get the same number of rows and the same padded length (see
    `Encoded.width`, unless `length` is given); missing rows are copies of the first example and marked invalid.
    The draw of hidden tokens in plain text depends on `draw`: (seed, epoch).
    """
    parts = [part for part in np.array_split(rows, accumulation) if len(part)]
    hidden = hide(data, rows, draw)
    label_count = sum(int((one.labels != IGNORE_INDEX).sum()) for one in hidden.values())
    known_counts = {row: int(one.known.sum()) for row, one in hidden.items()}
    for part in parts:
        share = -(-len(part) // world)
        mine = part[rank * share : (rank + 1) * share]
        valid = np.zeros(share, dtype=np.float32)
        valid[: len(mine)] = 1.0
        filled = np.concatenate([mine, np.repeat(part[:1], share - len(mine))])
        batch = collate(data, filled, length=length or data.width(part), hidden=hidden)
        batch.valid = torch.from_numpy(valid)
        batch.scale = world / len(rows)
        batch.token_scale = world / int(data.lengths[rows].sum())
        batch.pair_scale = world / int(np.square(data.lengths[rows].astype(np.int64)).sum())
        if data.logits_of == "token" and data.labels is not None:
            batch.label_scale = world / max(1, int(data.label_counts[rows].sum()))
        if data.labelled is not None:
            batch.labelled_scale = world / max(1, data.count_labels(rows))
        if hidden:
            batch.label_scale = world / max(1, label_count)
            batch.known_scale = world / max(1, sum(known_counts.values()))
            batch.known_count = sum(known_counts[row] for row in part.tolist())
        batch.share, batch.world = len(part) / len(rows), world
        batch.everyone, batch.start = part, rank * share
        batch.progress = progress
        yield batch


class Hidden(NamedTuple):
    """A text with some tokens hidden, from `Masking.hide`: int [n], int [n], bool [n]."""

    ids: np.ndarray
    labels: np.ndarray
    known: np.ndarray


def hide(data: Encoded, rows: np.ndarray, draw: tuple[int, ...]) -> dict[int, Hidden]:
    """Texts with tokens hidden by a draw that depends on `draw` and the text's number; {} without masking."""
    if data.masking is None:
        return {}
    found = {}
    for row in np.unique(rows).tolist():
        ids = np.asarray(data.input_ids[data.offsets[row] : data.offsets[row + 1]])
        found[row] = Hidden(*data.masking.hide(ids, data.masking.chosen(ids, (*draw, row))))
    return found


def collate(
    data: Encoded, rows: np.ndarray, length: int | None = None, hidden: dict[int, Hidden] | None = None
) -> Batch:
    """Pad the given examples to a common length (that of the longest, unless `length` is given).

    `hidden` is from `hide`; by default tokens of plain text are hidden as in an evaluation.
    """
    length = int(data.lengths[rows].max()) if length is None else length
    source, real = data.tokens(rows, length)
    ids = np.where(real, data.input_ids[source], data.pad_id).astype(np.int64)
    types = None
    if data.token_types is not None:
        types = torch.from_numpy(np.where(real, data.token_types[source], 0).astype(np.int64))
    labels, label_scale = None, 0.0
    if data.labels is not None and data.logits_of == "token":
        labels = torch.from_numpy(np.where(real, data.token_labels[source], IGNORE_INDEX))
        label_scale = 1.0 / max(1, int(data.label_counts[rows].sum()))
    elif data.labels is not None:
        labels = torch.from_numpy(data.labels[rows])
    labelled, labelled_scale = None, 0.0
    if data.labelled is not None:
        labelled, labelled_scale = torch.from_numpy(data.labelled[rows]), 1.0 / max(1, data.count_labels(rows))
    known = None
    if data.masking is not None:
        hidden = hidden or hide(data, rows, EVALUATION)
        targets, there = np.full(real.shape, IGNORE_INDEX, dtype=np.int64), np.zeros(real.shape, dtype=bool)
        for place, row in enumerate(rows.tolist()):
            one = hidden[row]
            place_of = (place, slice(len(one.ids)))
            ids[place_of], targets[place_of], there[place_of] = one.ids, one.labels, one.known
        labels, known = torch.from_numpy(targets), torch.from_numpy(there)
    return Batch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(real.astype(np.int64)),
        token_type_ids=types,
        labels=labels,
        example=torch.from_numpy(np.asarray(rows, dtype=np.int64)),
        valid=torch.ones(len(rows)),
        scale=1.0 / len(rows),
        padded=not bool(real.all()),
        rows=rows,
        lengths=data.lengths[rows],
        label_scale=label_scale,
        token_scale=1.0 / int(data.lengths[rows].sum()),
        pair_scale=1.0 / int(np.square(data.lengths[rows].astype(np.int64)).sum()),
        known=known,
        labelled=labelled,
        labelled_scale=labelled_scale,
    )
