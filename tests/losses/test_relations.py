"""Relations of tokens and attention scores: what must not change them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from kdbert.errors import UserError
from kdbert.losses import attention
from kdbert.losses.attention import padded_relation_loss, padded_score_error, relation_loss, score_error, scores
from kdbert.methods import Models, Shape, get_method

LENGTHS = torch.tensor([5, 3, 1])


def drawn(heads: int, units: int, seed: int, count: int = 2) -> list[torch.Tensor]:
    """Random states [3, heads, 5, units]."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, 3, heads, 5, units, dtype=torch.float64, generator=generator))


def mask(left: bool = False) -> torch.Tensor:
    """Real tokens of three texts, behind which, or before which, there is padding."""
    found = (torch.arange(5) < LENGTHS[:, None]).long()
    return found.flip(1) if left else found


def options(name: str, **given: Any) -> Any:
    return get_method(name).Options.model_validate({"name": name, **given})


def needs(name: str, models: Models, **given: Any) -> Any:
    return get_method(name).needs(options(name, **given), models)


def test_a_rotation_within_each_relation_head_changes_no_relation() -> None:
    (values,), (theirs,) = drawn(2, 6, 0, 1), drawn(4, 5, 1, 1)  # 12 and 20 wide: 4 relation heads of 3 and 5 units
    turns = torch.linalg.qr(torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))[0]
    whole = values.transpose(1, 2).flatten(2).unflatten(2, (4, 3))
    turned = torch.einsum("blhd,hde->blhe", whole, turns).flatten(2).unflatten(2, (2, 6)).transpose(1, 2)
    assert not torch.allclose(values, turned)
    losses = [relation_loss((one, one), (theirs, theirs), mask(), 4) for one in (values, turned)]
    torch.testing.assert_close(*losses)
    assert float(losses[0][:2].min()) > 0.01


def test_a_constant_added_to_all_keys_changes_nothing_and_gets_no_gradient() -> None:
    (query, key), teacher = drawn(2, 3, 0), drawn(2, 3, 1)
    shift = torch.zeros(2, 1, 3, dtype=torch.float64, requires_grad=True)
    plain = relation_loss((query, key + shift), tuple(teacher), mask(), 2)
    plain.sum().backward()
    assert shift.grad is not None
    assert float(shift.grad.abs().max()) < 1e-12
    torch.testing.assert_close(relation_loss((query, key + 7.0), tuple(teacher), mask(), 2), plain.detach())


def relations(student: Any, teacher: Any, mask: torch.Tensor) -> torch.Tensor:
    return relation_loss(student, teacher, mask, 2)


both = pytest.mark.parametrize("loss", [relations, score_error])


@both
@pytest.mark.parametrize("left", [False, True])
def test_padding_on_either_side_is_never_seen(loss: Any, left: bool) -> None:
    student, teacher = drawn(2, 3, 0), drawn(2, 4, 1)
    found = loss(tuple(student), tuple(teacher), mask(left))
    for row, length in enumerate(LENGTHS.tolist()):
        part = slice(5 - length, 5) if left else slice(0, length)
        alone = [tuple(one[row : row + 1, :, part] for one in side) for side in (student, teacher)]
        torch.testing.assert_close(found[row : row + 1], loss(*alone, torch.ones(1, length)))
    assert (found[2] == 0) == (loss is relations)  # one token, which has no relation


@both
def test_its_gradient_is_that_of_differences(loss: Any) -> None:
    student, teacher = [one.requires_grad_() for one in drawn(2, 3, 0)], tuple(drawn(2, 4, 1))
    assert torch.autograd.gradcheck(lambda *states: loss(states, teacher, mask()), student)


@both
def test_all_texts_at_once_as_on_a_gpu_are_as_one_by_one(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(attention, "AT_ONCE", 1)
    one_by_one = attention.text_parts(mask(), 2)
    assert [rows.tolist() for rows, _ in one_by_one] == [[2], [1], [0]]
    for parts in (one_by_one, [(torch.arange(3), slice(0, 5))]):
        monkeypatch.setattr(attention, "text_parts", lambda mask, heads, parts=parts: parts)
        student = [one.requires_grad_() for one in drawn(2, 3, 0)]
        value = loss(tuple(student), tuple(drawn(2, 4, 1)), mask())
        found.append((value.detach(), *torch.autograd.grad(value.sum(), student)))
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(together, alone)


def test_equal_models_have_no_loss_and_no_gradient() -> None:
    student = [one.requires_grad_() for one in drawn(2, 3, 0)]
    teacher = tuple(one.detach() for one in student)
    for loss in (
        relation_loss(tuple(student), teacher, mask(), 2),
        score_error(tuple(student), teacher, mask()),
        padded_score_error(scores(tuple(student)), scores(teacher), mask()),
    ):
        assert float(loss.detach().abs().max()) < 1e-12
        gradients = torch.autograd.grad(loss.sum(), student)
        assert all(float(one.abs().max()) < 1e-12 for one in gradients)


def test_without_padding_published_and_corrected_are_the_same() -> None:
    student, teacher, whole = drawn(2, 3, 0), drawn(2, 3, 1), torch.ones(3, 5)
    ours, theirs = scores(tuple(student)), scores(tuple(teacher))
    torch.testing.assert_close(
        padded_score_error(ours, theirs, whole), score_error(tuple(student), tuple(teacher), whole) / 25
    )
    torch.testing.assert_close(
        padded_relation_loss(ours, theirs, whole), relation_loss(tuple(student), tuple(teacher), whole, 2)
    )


def test_large_scores_are_finite_in_float32() -> None:
    student, teacher = ([100 * one.float() for one in drawn(2, 3, seed)] for seed in (0, 1))
    student[0].requires_grad_()
    found = relation_loss(tuple(student), tuple(teacher), mask(), 3)
    found.sum().backward()
    assert found.isfinite().all()
    assert student[0].grad is not None
    assert student[0].grad.isfinite().all()


BASE, SMALL, LARGE = Shape(12, 768, 12, 64), Shape(6, 384, 12, 32), Shape(24, 1024, 16, 64)


@pytest.mark.parametrize(
    ("teacher", "student", "given", "layers", "heads"),
    [
        (BASE, SMALL, {}, (12, 6), 48),
        (LARGE, SMALL, {}, (21, 6), 32),
        (BASE, Shape(4, 312, 12, 26), {}, (12, 4), 24),
        (BASE, SMALL, {"relations": "qk,vv"}, (12, 6), 12),
        (BASE, SMALL, {"relation_heads": 96, "layer_map": "10:5"}, (10, 5), 96),
        (Shape(12, 768, 12, 32), SMALL, {}, (12, 6), 48),  # whose heads are not as wide together as its hidden states
    ],
)  # fmt: skip
def test_layers_and_relation_heads_of_published_models(
    teacher: Shape, student: Shape, given: dict[str, Any], layers: tuple[int, int], heads: int
) -> None:
    models = Models(student, (teacher,))
    made = options("minilm", **given)
    assert (made.pair(models), made.heads(models)) == (layers, heads)
    found = needs("minilm", models, **given)
    assert (set(found.teacher_attention), set(found.student_attention)) == ({layers[0]}, {layers[1]})


def test_what_cannot_be_compared_is_refused() -> None:
    for given, named in (
        ({"relation_heads": 7}, "relation_heads"),
        ({"layer_map": "0:1"}, "--layer-map"),
        ({"layer_map": "13:1"}, "--layer-map"),
    ):
        with pytest.raises(UserError, match=named):
            needs("minilm", Models(SMALL, (BASE,)), **given)
    fewer = Models(Shape(6, 384, 6, 64), (BASE,))
    with pytest.raises(UserError, match="relation_heads"):
        needs("minilm", fewer, relations="qk")
    needs("minilm", fewer, relations="qk", relation_heads=12)
    with pytest.raises(UserError, match="attention_weight"):
        needs("tinybert", fewer)
    assert not needs("tinybert", fewer, attention_weight=0).teacher_attention
    five = Models(Shape(5, 768, 12, 64), (BASE,))
    needs("tinybert", five)
    with pytest.raises(UserError, match="--layer-map"):
        needs("tinybert", five, variant="original")
    needs("tinybert", five, variant="original", layer_map="12:5")


@pytest.mark.parametrize(
    ("name", "given", "key"),
    [
        ("minilm", {"relations": "qq,qq"}, "relations"),
        ("minilm", {"relations": "xx"}, "relations"),
        ("minilm", {"relations": []}, "relations"),
        ("minilm", {"relation_weights": "1,2"}, "relation_weights"),
        ("minilm", {"kd": 0, "beta": 0}, "kd"),
        ("minilm", {"reduction": "padded"}, "reduction"),
        ("minilm", {"reduction": "padded", "variant": "original"}, "reduction"),
        ("minilm", {"layer_map": "1:1,2:2"}, "layer_map"),
        ("tinybert", {"attention_weight": 0, "hidden_weight": 0}, "hidden_weight"),
        ("tinybert", {"teacher_dropout": True}, "teacher_dropout"),
        ("hidden", {"variant": "original"}, "original"),
    ],
)
def test_options_that_contradict_each_other_are_refused(name: str, given: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        options(name, **given)


def test_nothing_is_read_for_a_weight_of_0() -> None:
    models = Models(SMALL, (BASE,))
    assert needs("minilm", models, beta=0).teacher_attention == {}
    assert needs("minilm", models, relation_weights="1,0,0").teacher_attention == {12: "q"}
    assert not needs("minilm", models, kd=0).teacher_logits
    assert needs("minilm", models, relations="vv").student_attention == {6: "v"}
    assert needs("tinybert", models, hidden_weight=0).teacher_hidden == ()
    assert needs("tinybert", models).teacher_hidden == (0, 2, 4, 6, 8, 10, 12)
    assert set(needs("tinybert", models).teacher_attention) == {2, 4, 6, 8, 10, 12}
    assert needs("tinybert", models, stage="prediction") == get_method("tinybert").needs(
        options("tinybert", stage="prediction"), None
    )
