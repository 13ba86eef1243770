"""What the losses of `finetune` and `kd` must be by their definitions (docs/quirks.md, 1)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kdbert.data.batches import Batch
from kdbert.heads import Head, Regression, SingleLabel
from kdbert.losses.hard import cross_entropy, squared_error
from kdbert.losses.hinton import score_loss, soft_label_loss
from kdbert.methods import Context, LossTerms, Models, Outputs, Shape, get_method


def logits(rows: int, classes: int, seed: int = 0) -> torch.Tensor:
    """Random logits in float64."""
    return 3 * torch.randn(rows, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch_of(labels: torch.Tensor) -> Batch:
    """A batch with these labels; its tokens are read by no loss."""
    count = len(labels)
    ids = torch.zeros(count, 1, dtype=torch.int64)
    return Batch(ids, ids + 1, None, labels, torch.arange(count), torch.ones(count), 1 / count)


def terms_of(
    student: torch.Tensor,
    teachers: list[torch.Tensor],
    batch: Batch,
    head: Head = SingleLabel(),
    method: str = "kd",
    **options: Any,
) -> LossTerms:
    """The terms of a method on logits."""
    kind = get_method(method)
    made = kind(kind.Options.model_validate({"name": method, **options}))
    made.prepare(Context(Models(Shape(1, 1), (Shape(1, 1),) * len(teachers)), head, len(student)))
    mask = batch.attention_mask
    return made(Outputs(student, mask=mask), [Outputs(one, mask=mask) for one in teachers], batch)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_a_student_that_equals_its_teacher_has_no_soft_loss_and_no_gradient(temperature: float) -> None:
    student = logits(6, 4).requires_grad_()
    loss = soft_label_loss(student, logits(6, 4), temperature)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-12)


def test_soft_loss_ignores_a_constant_added_to_all_logits_of_an_example() -> None:
    student, teacher = logits(6, 4), logits(6, 4, seed=1)
    torch.testing.assert_close(soft_label_loss(student + 7, teacher - 3, 2.0), soft_label_loss(student, teacher, 2.0))


def test_soft_loss_by_hand() -> None:
    # teacher (3/4, 1/4), student (1/2, 1/2) at tau = 1
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert soft_label_loss(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, 20.0])
def test_gradient_is_temperature_times_the_difference_of_probabilities(temperature: float) -> None:
    student, teacher = logits(6, 4).requires_grad_(), logits(6, 4, seed=1)
    soft_label_loss(student, teacher, temperature).sum().backward()
    expected = temperature * (F.softmax(student / temperature, -1) - F.softmax(teacher / temperature, -1))
    torch.testing.assert_close(student.grad, expected.detach())


def test_gradient_keeps_its_size_at_high_temperature() -> None:
    # Its limit is (z_student - z_teacher) / C for centred logits: the reason for the factor tau^2.
    student, teacher = logits(6, 4).requires_grad_(), logits(6, 4, seed=1)
    soft_label_loss(student, teacher, 1e5).sum().backward()
    difference = (student - teacher).detach()
    expected = (difference - difference.mean(-1, keepdim=True)) / 4
    torch.testing.assert_close(student.grad, expected, rtol=1e-3, atol=1e-4)


def test_one_logit_has_no_soft_loss() -> None:
    student = logits(6, 1).requires_grad_()
    loss = soft_label_loss(student, logits(6, 1, seed=1), 5.0)
    loss.sum().backward()
    assert loss.tolist() == [0.0] * 6
    assert student.grad.abs().max() == 0


def test_extreme_logits_give_finite_losses_and_gradients() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0]])
    loss = soft_label_loss(student, teacher, 1.0).sum() + cross_entropy(student, torch.tensor([1])).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_hard_loss_is_cross_entropy_for_classes_and_squared_error_for_scores() -> None:
    student = logits(5, 3)
    labels = torch.tensor([0, 2, 1, 1, 0])
    expected = -F.log_softmax(student, -1)[torch.arange(5), labels]
    torch.testing.assert_close(cross_entropy(student, labels), expected)
    scores = torch.tensor([0.0, 1.5, 5.0, 2.2, 3.0])
    one = logits(5, 1)
    torch.testing.assert_close(squared_error(one, scores), (one[:, 0] - scores.double()) ** 2)


def test_score_loss_is_the_squared_error_between_scores() -> None:
    student, teacher = logits(7, 1), logits(7, 1, seed=1)
    loss = score_loss(student, teacher)
    assert loss.shape == (7,)
    torch.testing.assert_close(loss.mean(), F.mse_loss(student, teacher))


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_soft_loss_gradcheck(classes: int, temperature: float) -> None:
    teacher = logits(3, classes, seed=1)
    student = logits(3, classes).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: soft_label_loss(z, teacher, temperature), (student,))
    assert torch.autograd.gradgradcheck(lambda z: soft_label_loss(z, teacher, temperature), (student,))


def test_hard_and_score_loss_gradcheck() -> None:
    labels = torch.tensor([0, 2, 1])
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, labels), (logits(3, 4).requires_grad_(),))
    scores = torch.tensor([0.5, 1.0, 4.0])
    assert torch.autograd.gradcheck(lambda z: squared_error(z, scores), (logits(3, 1).requires_grad_(),))
    teacher = logits(3, 1, seed=1)
    assert torch.autograd.gradcheck(lambda z: score_loss(z, teacher), (logits(3, 1).requires_grad_(),))


@pytest.mark.parametrize("loss", [lambda s, t: soft_label_loss(s, t, 2.0), score_loss], ids=["soft", "score"])
def test_no_gradient_reaches_the_teacher(loss: Any) -> None:
    student, teacher = logits(4, 1).requires_grad_(), logits(4, 1, seed=1).requires_grad_()
    (loss(student, teacher).sum() + 0 * teacher.sum()).backward()
    assert teacher.grad.abs().max() == 0
    assert student.grad is not None


def kd_on_scores(variant: str) -> tuple[LossTerms, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`kd` on a regression batch: terms, student, teacher, labels."""
    student, teacher = logits(5, 1).requires_grad_(), logits(5, 1, seed=1)
    labels = torch.tensor([0.0, 1.0, 2.5, 4.0, 5.0])
    terms = terms_of(student, [teacher], batch_of(labels), Regression(), alpha=0.25, variant=variant)
    return terms, student, teacher, labels


def test_original_keeps_the_zero_kd_term_of_sts_b() -> None:
    terms, student, _, labels = kd_on_scores("original")
    assert terms.terms["soft"].item() == 0
    torch.testing.assert_close(terms.total, 0.25 * F.mse_loss(student[:, 0], labels.double()))
    terms.total.backward()
    torch.testing.assert_close(student.grad[:, 0], 0.25 * 2 / 5 * (student[:, 0] - labels.double()).detach())


def test_corrected_distils_scores_by_their_squared_difference() -> None:
    terms, student, teacher, labels = kd_on_scores("corrected")
    torch.testing.assert_close(terms.terms["soft"], F.mse_loss(student, teacher))
    expected = 0.25 * F.mse_loss(student[:, 0], labels.double()) + 0.75 * F.mse_loss(student, teacher)
    torch.testing.assert_close(terms.total, expected)


def test_alpha_weighs_the_hard_loss_and_the_variants_agree_on_classes() -> None:
    student, teacher, labels = logits(5, 3), logits(5, 3, seed=1), torch.tensor([0, 1, 2, 2, 1])
    for variant in ("corrected", "original"):
        terms = terms_of(student, [teacher], batch_of(labels), alpha=0.9, temperature=3, variant=variant)
        hard = F.cross_entropy(student, labels)
        soft = 9 * F.kl_div(
            F.log_softmax(student / 3, -1), F.log_softmax(teacher / 3, -1), reduction="batchmean", log_target=True
        )
        torch.testing.assert_close(terms.total, 0.9 * hard + 0.1 * soft)


def test_alpha_one_is_fine_tuning_and_needs_no_teacher() -> None:
    student, labels = logits(5, 3), torch.tensor([0, 1, 2, 2, 1])
    terms = terms_of(student, [], batch_of(labels), alpha=1.0)
    plain = terms_of(student, [], batch_of(labels), method="finetune")
    assert terms.total == plain.total
    kd = get_method("kd")
    assert kd.needs(kd.Options.model_validate({"name": "kd", "alpha": 1.0}), None).teachers == (0, 0)


def test_rows_that_only_fill_up_a_batch_do_not_count() -> None:
    student, teacher, labels = logits(4, 3), logits(4, 3, seed=1), torch.tensor([0, 1, 2, 0])
    whole = terms_of(student, [teacher], batch_of(labels))
    filled = batch_of(torch.cat([labels, labels[:1]]))
    filled.valid[4] = 0
    filled.scale = 1 / 4
    more = terms_of(torch.cat([student, student[:1]]), [torch.cat([teacher, teacher[:1]])], filled)
    torch.testing.assert_close(more.total, whole.total)
