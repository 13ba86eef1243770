"""Losses of heads that no published code distils: any number of classes, tags of words (docs/quirks.md, 1)."""

from __future__ import annotations

import pytest
import torch

from kdbert.data.batches import Batch
from kdbert.methods import Outputs, get_method


def terms(
    method: str, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, count: int
) -> dict[str, float]:
    """The terms of a batch of which `count` tokens have a label."""
    kind = get_method(method)
    made = kind(kind.Options.model_validate({"name": method, "temperature": 2.0}))
    rows, length = labels.shape
    ids = torch.zeros(rows, length, dtype=torch.int64)
    batch = Batch(ids, ids + 1, None, labels, torch.arange(rows), torch.ones(rows), 1 / rows, label_scale=1 / count)
    return {name: value.item() for name, value in made(Outputs(student), [Outputs(teacher)], batch).terms.items()}


@pytest.mark.parametrize("method", ["kd", "multi-kd"])
def test_tags_by_hand_and_only_where_there_is_one(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([[-100, 2, -100, 0], [-100, 1, -100, -100]])
    places = [(0, 1, 2), (0, 3, 0), (1, 1, 1)]
    hard = -sum(student[i, j].log_softmax(0)[k].item() for i, j, k in places) / 3
    soft = 0.0
    for i, j, _ in places:
        p, q = (teacher[i, j] / 2).softmax(0), (student[i, j] / 2).softmax(0)
        soft += 4 * (p * (p / q).log()).sum().item() / 3
    found = terms(method, student, teacher, labels, 3)
    assert [found["hard"], list(found.values())[1]] == pytest.approx([hard, soft])
    student[labels == -100] = 7.0  # what the head says elsewhere changes nothing
    teacher[labels == -100] = -3.0
    assert terms(method, student, teacher, labels, 3) == pytest.approx(found)


def test_a_batch_without_any_tag_has_no_loss() -> None:
    labels = torch.full((2, 3), -100)
    found = terms("kd", torch.randn(2, 3, 4), torch.randn(2, 3, 4), labels, 1)
    assert found == {"hard": 0.0, "soft": 0.0}
