"""Order, sharing and padding of batches: every example once, whatever the processes, micro-batches and lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbert.data.batches import Batch, _Gather, collate, epoch_batches, evaluation_batches, micro_batches
from kdbert.data.encode import Encoded, encode
from kdbert.data.examples import Examples
from kdbert.heads import Regression
from kdbert.recipe.sections import TrainSection
from kdbert.tasks import get_task
from kdbert.training.loop import epoch_order

PAD = 99
few = settings(max_examples=60, deadline=None)
lengths_of = st.lists(st.integers(1, 12), min_size=1, max_size=70)


def encoded(lengths: list[int], *, types: bool = True, scores: bool = False) -> Encoded:
    """A split whose example i holds the tokens 1000 * i, 1000 * i + 1, …"""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.concatenate([1000 * i + np.arange(n) for i, n in enumerate(lengths)]).astype(np.int32)
    labels = np.arange(len(lengths), dtype=np.float32 if scores else np.int64)
    return Encoded(ids, (ids % 2).astype(np.uint8) if types else None, offsets, labels, 0, PAD)


@few
@given(lengths_of, st.integers(1, 20), st.integers(0, 2**31), st.integers(0, 9), st.booleans())
def test_an_epoch_has_every_example_once_in_batches_of_the_asked_size(
    lengths: list[int], size: int, seed: int, epoch: int, bucketing: bool
) -> None:
    batches = epoch_batches(np.array(lengths), size, seed=seed, epoch=epoch, bucketing=bucketing)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    sizes = sorted((len(rows) for rows in batches), reverse=True)
    full, rest = divmod(len(lengths), size)
    assert sizes == [size] * full + [rest] * (rest > 0)
    again = epoch_batches(np.array(lengths), size, seed=seed, epoch=epoch, bucketing=bucketing)
    assert [rows.tolist() for rows in batches] == [rows.tolist() for rows in again]


@pytest.mark.parametrize("bucketing", [True, False])
def test_seed_and_epoch_change_the_order_and_the_companions_in_a_batch(bucketing: bool) -> None:
    lengths = np.random.default_rng(0).integers(3, 60, size=500)
    orders = {
        (seed, epoch): [
            tuple(sorted(rows.tolist()))
            for rows in epoch_batches(lengths, 16, seed=seed, epoch=epoch, bucketing=bucketing)
        ]
        for seed, epoch in [(1, 0), (1, 1), (2, 0), (2, 1)]
    }
    assert len({tuple(order) for order in orders.values()}) == 4
    assert not set(orders[1, 0]) & set(orders[1, 1])  # no batch comes again as it was


def test_the_order_does_not_depend_on_global_random_state() -> None:
    lengths = np.arange(1, 51)
    np.random.seed(0)
    torch.manual_seed(0)
    first = epoch_batches(lengths, 8, seed=3, epoch=2, bucketing=True)
    np.random.seed(1)
    torch.manual_seed(1)
    second = epoch_batches(lengths, 8, seed=3, epoch=2, bucketing=True)
    assert [rows.tolist() for rows in first] == [rows.tolist() for rows in second]


def test_buckets_hold_examples_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 128, size=4000)

    def padded(bucketing: bool) -> int:
        batches = epoch_batches(lengths, 32, seed=1, epoch=0, bucketing=bucketing)
        return sum(len(rows) * int(lengths[rows].max()) for rows in batches)

    assert padded(True) < 1.1 * lengths.sum() < padded(False)


# --- batches of whole classes ---

labels_of = st.lists(st.integers(0, 6), min_size=1, max_size=80)


def balanced(classes: list[int], size: int, per_class: int, *, seed: int = 1, epoch: int = 0) -> list[np.ndarray]:
    """The class-balanced batches of one epoch."""
    return epoch_batches(
        np.ones(len(classes), dtype=np.int64),
        size,
        seed=seed,
        epoch=epoch,
        bucketing=True,
        classes=np.array(classes),
        per_class=per_class,
    )


@few
@given(labels_of, st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31), st.integers(0, 9))
def test_class_balanced_batches_have_every_example_once_in_groups_of_one_class(
    classes: list[int], groups: int, per_class: int, seed: int, epoch: int
) -> None:
    size = groups * per_class
    batches = balanced(classes, size, per_class, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(classes)))
    full, rest = divmod(len(classes), size)
    assert sorted((len(rows) for rows in batches), reverse=True) == [size] * full + [rest] * (rest > 0)
    # Cut into parts of K, as many are of one class as can be; what is left of the classes is in the others.
    parts = [rows[start : start + per_class] for rows in batches for start in range(0, len(rows), per_class)]
    whole = [part for part in parts if len(part) == per_class and len({classes[n] for n in part}) == 1]
    assert len(whole) == sum(classes.count(one) // per_class for one in set(classes))
    again = balanced(classes, size, per_class, seed=seed, epoch=epoch)
    assert [rows.tolist() for rows in batches] == [rows.tolist() for rows in again]


def test_class_balanced_batches_differ_by_seed_and_epoch_and_by_nothing_else() -> None:
    classes = (np.arange(600) % 20).tolist()
    orders = {}
    for seed, epoch in [(1, 0), (1, 1), (2, 0)]:
        np.random.seed(seed + 10 * epoch)
        orders[seed, epoch] = [
            tuple(sorted(rows.tolist())) for rows in balanced(classes, 16, 4, seed=seed, epoch=epoch)
        ]
    assert len({tuple(order) for order in orders.values()}) == 3
    assert not set(orders[1, 0]) & set(orders[1, 1])
    np.random.seed(99)
    again = [tuple(sorted(rows.tolist())) for rows in balanced(classes, 16, 4, seed=1, epoch=0)]
    assert again == orders[1, 0]


def classes_in_full_batches(classes: list[int], groups: int, per_class: int, seed: int) -> set[int]:
    """How many classes there are in a full batch."""
    batches = balanced(classes, groups * per_class, per_class, seed=seed)
    return {len({classes[n] for n in rows}) for rows in batches if len(rows) == groups * per_class}


@few
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31))
def test_a_batch_is_of_p_classes_where_they_divide_into_batches(
    groups: int, per_class: int, times: int, count: int, seed: int
) -> None:
    classes = [one for one in range(times * groups) for _ in range(count * per_class)]
    assert classes_in_full_batches(classes, groups, per_class, seed) == {groups}


@few
@given(st.integers(2, 5), st.integers(1, 4), st.integers(0, 9), st.integers(1, 6), st.integers(0, 2**31))
def test_a_batch_is_of_p_classes_where_there_are_so_many_of_one_size(
    groups: int, per_class: int, more: int, count: int, seed: int
) -> None:
    """As the recipe has it: P classes x K examples."""
    classes = [one for one in range(groups + more) for _ in range(count * per_class)]
    assert classes_in_full_batches(classes, groups, per_class, seed) <= {groups}


def test_an_example_meets_its_class_in_class_balanced_batches_of_150_classes() -> None:
    """CLINC150 at batch 32: with random batches an example meets hardly any other of its class."""
    classes = np.repeat(np.arange(150), 100)
    found = {}
    for name, given_classes in (("random", None), ("balanced", classes)):
        batches = epoch_batches(np.ones(15000), 32, seed=1, epoch=0, bucketing=False, classes=given_classes)
        met = [(classes[rows][:, None] == classes[rows][None, :]).sum(1) - 1 for rows in batches]
        found[name] = np.concatenate(met)
    assert found["random"].mean() < 0.3
    assert found["balanced"].min() == 3


def test_scores_are_put_together_by_their_bin() -> None:
    scores = np.random.default_rng(0).uniform(0, 5, size=400).astype(np.float32)
    split = encoded([3] * 400, scores=True)
    split = Encoded(split.input_ids, split.token_types, split.offsets, scores, 0, PAD)
    options = TrainSection(batch_size=16, batch_sampler="class-balanced", examples_per_class=4)
    batches = epoch_order(options, split, Regression(), 1, 0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(400))
    bins = np.floor(2 * scores + 0.5).astype(int)
    groups = [bins[rows[start : start + 4]] for rows in batches for start in range(0, len(rows), 4)]
    whole = sum(len(part) == 4 and len(set(part.tolist())) == 1 for part in groups)
    assert whole == sum(int((bins == one).sum()) // 4 for one in range(11)) > 90


@few
@given(lengths_of, st.integers(1, 20))
def test_evaluation_sees_every_example_once_longest_first(lengths: list[int], size: int) -> None:
    batches = evaluation_batches(np.array(lengths), size)
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (np.diff(np.array(lengths)[order]) <= 0).all()


@few
@given(st.data(), lengths_of, st.integers(1, 5), st.integers(1, 6))
def test_processes_and_micro_batches_share_a_batch_without_loss_or_repeat(
    data: st.DataObject, lengths: list[int], world: int, accumulation: int
) -> None:
    split = encoded(lengths)
    rows = np.array(data.draw(st.permutations(range(len(lengths))))[: data.draw(st.integers(1, len(lengths)))])
    shares = [list(micro_batches(split, rows, accumulation=accumulation, rank=r, world=world)) for r in range(world)]

    # Processes work in step: as many micro-batches everywhere, of the same shape.
    assert len({len(parts) for parts in shares}) == 1
    assert 1 <= len(shares[0]) <= accumulation
    for parts in zip(*shares, strict=True):
        assert len({tuple(batch.input_ids.shape) for batch in parts}) == 1

    batches = [batch for parts in shares for batch in parts]
    seen = [n for batch in batches for n in batch.example[batch.valid > 0].tolist()]
    assert sorted(seen) == sorted(rows.tolist())
    assert sum(batch.share for batch in shares[0]) == pytest.approx(1)

    # The mean over processes of what each adds up is the plain mean over the batch.
    value = torch.linspace(-3, 7, len(lengths), dtype=torch.float64)
    total = sum(batch.mean(value[batch.example]) for batch in batches) / world
    torch.testing.assert_close(total, value[torch.from_numpy(rows)].mean())

    # Within a micro-batch process 0 has the first rows, process 1 the next.
    for number, parts in enumerate(zip(*shares, strict=True)):
        joined = [n for batch in parts for n in batch.example[batch.valid > 0].tolist()]
        assert joined == np.array_split(rows, accumulation)[number].tolist()


def test_padded_length_is_that_of_the_longest_example_of_the_whole_micro_batch() -> None:
    split = encoded([3, 9, 2, 4])
    first, second = (next(micro_batches(split, np.arange(4), rank=rank, world=2)) for rank in (0, 1))
    assert first.input_ids.shape == second.input_ids.shape == (2, 9)


def unpadded(batch: Batch) -> list[tuple[list[int], list[int] | None]]:
    """(ids, types) of each row without padding."""
    rows = []
    for i, mask in enumerate(batch.attention_mask.bool()):
        types = None if batch.token_type_ids is None else batch.token_type_ids[i][mask].tolist()
        rows.append((batch.input_ids[i][mask].tolist(), types))
    return rows


@few
@given(lengths_of, st.booleans(), st.booleans(), st.integers(0, 5))
def test_collate_pads_behind_the_tokens(lengths: list[int], types: bool, scores: bool, extra: int) -> None:
    split = encoded(lengths, types=types, scores=scores)
    rows = np.arange(len(lengths))[::-1].copy()
    batch = collate(split, rows, length=max(lengths) + extra if extra else None)
    assert batch.input_ids.shape == batch.attention_mask.shape == (len(lengths), max(lengths) + extra)
    for (ids, kinds), number in zip(unpadded(batch), rows, strict=True):
        assert ids == [1000 * number + i for i in range(lengths[number])]
        assert kinds == ([i % 2 for i in ids] if types else None)
    assert (batch.attention_mask.diff(dim=1) <= 0).all()  # ones, then zeros
    padding = batch.attention_mask == 0
    assert (batch.input_ids[padding] == PAD).all()
    if batch.token_type_ids is not None:
        assert (batch.token_type_ids[padding] == 0).all()
    assert batch.labels is not None
    assert batch.labels.dtype == (torch.float32 if scores else torch.int64)
    assert batch.labels.tolist() == batch.example.tolist() == rows.tolist()
    assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64
    torch.testing.assert_close(batch.mean(torch.ones(len(lengths))), torch.tensor(1.0))


def test_gathering_has_a_right_first_derivative_and_refuses_a_second() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        part = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(_Gather.apply, (part,))
        (first,) = torch.autograd.grad(_Gather.apply(part).square().sum(), part, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            torch.autograd.grad(first.sum(), part)
    finally:
        torch.distributed.destroy_process_group()


def test_an_unlabelled_split_has_no_labels() -> None:
    split = encoded([2, 3])
    split = Encoded(split.input_ids, None, split.offsets, None, 0, PAD)
    batch = collate(split, np.arange(2))
    assert batch.labels is None
    assert batch.token_type_ids is None
    assert batch.to(torch.device("cpu")).labels is None


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> Any:
    """The tiny BERT's tokenizer: it spells most words letter by letter, so many examples are cut."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.mark.real_data
def test_batches_are_what_the_tokenizer_would_have_padded(glue_dir: Path, tokenizer: Any) -> None:
    examples = get_task("rte").load("dev", str(glue_dir))
    split = encode(examples, tokenizer, 128)
    assert len(split) == len(examples)
    rows = np.random.default_rng(0).permutation(len(examples))[:64]
    batch = collate(split, rows, length=128)
    assert examples.text_b is not None
    expected = tokenizer(
        [examples.text_a[i] for i in rows],
        [examples.text_b[i] for i in rows],
        truncation="longest_first",
        max_length=128,
        padding="max_length",
        return_tensors="pt",
    )
    assert torch.equal(batch.input_ids, expected["input_ids"])
    assert torch.equal(batch.attention_mask, expected["attention_mask"])
    assert batch.token_type_ids is not None
    assert torch.equal(batch.token_type_ids, expected["token_type_ids"])
    assert examples.labels is not None
    assert batch.labels is not None
    assert batch.labels.tolist() == examples.labels[rows].tolist()


@pytest.mark.real_data
def test_truncation_is_counted_and_the_fingerprint_sees_every_token(glue_dir: Path, tokenizer: Any) -> None:
    examples = get_task("rte").load("dev", str(glue_dir)).first(50)
    whole = encode(examples, tokenizer, 100_000)
    assert whole.truncated == 0
    cut = encode(examples, tokenizer, 64)
    assert cut.truncated == int((whole.lengths > 64).sum()) > 0
    assert cut.lengths.max() == 64
    assert len({whole.fingerprint(), cut.fingerprint(), encode(examples, tokenizer, 65).fingerprint()}) == 3
    assert encode(examples, tokenizer, 64).fingerprint() == cut.fingerprint()


def test_more_examples_than_one_tokenizer_call_keep_their_order(tokenizer: Any) -> None:
    words = ["good", "bad", "cat", "dog", "red"]
    texts = [f"{words[i % 5]} {words[i % 3]}" for i in range(9000)]
    split = encode(Examples("train", [str(i) for i in range(9000)], texts, None, None), tokenizer, 16)
    for number in (0, 4095, 4096, 8999):
        ids = split.input_ids[split.offsets[number] : split.offsets[number + 1]].tolist()
        assert ids == tokenizer(texts[number])["input_ids"]


# --- batches with a share of rows without a label ---


@few
@given(
    st.lists(st.booleans(), min_size=2, max_size=60), st.integers(1, 6), st.integers(1, 6), st.booleans(),
    st.integers(0, 9),
)  # fmt: skip
def test_mixed_batches_have_every_labelled_row_once_and_take_turns_with_the_others(
    labelled: list[bool], own: int, others: int, bucketing: bool, seed: int
) -> None:
    mask = np.array([True, False, *labelled])
    lengths = np.arange(1, len(mask) + 1)

    def batches(epoch: int) -> list[np.ndarray]:
        return epoch_batches(
            lengths, own + others, seed=seed, epoch=epoch, bucketing=bucketing, labelled=mask, unlabelled=others
        )

    seen: list[int] = []
    for epoch in range(4):
        found = batches(epoch)
        assert [rows.tolist() for rows in found] == [rows.tolist() for rows in batches(epoch)]
        assert all((~mask[rows]).sum() == others for rows in found)
        every = np.concatenate(found)
        assert sorted(every[mask[every]].tolist()) == np.flatnonzero(mask).tolist()
        seen += every[~mask[every]].tolist()
    counts = np.bincount(seen, minlength=len(mask))[~mask]
    assert counts.max() - counts.min() <= 1  # none comes again before all have come
