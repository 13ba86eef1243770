"""What `pkd`, `rkd`, `dist`, `dkd`, `sinkd` and standardised logits do not see, and where they equal the published."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from feature_cases import MODELS, Features, Seen, assert_same, batch_of, draw_features, examples, make_method, run
from kdbert.data.masking import IGNORE_INDEX
from kdbert.errors import UserError
from kdbert.heads import Head, MultiLabel, Regression, SingleLabel, Tokens
from kdbert.losses.decoupled import decoupled_loss
from kdbert.losses.hinton import soft_label_loss, standardised
from kdbert.losses.relational import relational_losses
from kdbert.methods import Context, LossTerms, Models, Outputs, Shape, all_methods, get_method

EQUAL = Models(student=Shape(3, 6), teachers=(Shape(5, 6),))
CLASSES = SingleLabel(tuple("abcde"))


def terms_of(options: dict[str, Any], features: Features, models: Models = MODELS) -> LossTerms:
    """The terms of a batch."""
    return run(make_method(options, models), features, models=models).terms


def of_logits(
    options: dict[str, Any], student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, head: Head = CLASSES,
    progress: float = 0.0, epochs: int = 1,
) -> tuple[LossTerms, torch.Tensor]:  # fmt: skip
    """The terms of answers alone, and the gradient of their total on the student's."""
    method = make_method(options, head=head, epochs=epochs)
    batch = replace(batch_of(labels), progress=progress)
    if labels.dim() == 2 and labels.dtype == torch.int64:
        batch.label_scale = 1 / max(int((labels != IGNORE_INDEX).sum()), 1)
    student = student.detach().clone().requires_grad_()
    terms = method(Outputs(student, mask=batch.attention_mask), [Outputs(teacher, mask=batch.attention_mask)], batch)
    terms.total.backward()
    assert student.grad is not None
    return LossTerms({name: value.detach() for name, value in terms.terms.items()}, terms.weights), student.grad


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 2, 1, 4, 2, 0])


# --- corrected and original are one where no quirk bites ---


def test_pkd_differs_from_the_published_by_its_divisions_and_the_rounding() -> None:
    features = draw_features([7, 3, 5, 2], [0, 1, 0, 2], EQUAL)
    for normalise in (True, False):
        corrected = terms_of({"name": "pkd", "normalise": normalise}, features, EQUAL).terms
        original = terms_of({"name": "pkd", "variant": "original", "normalise": normalise}, features, EQUAL).terms
        assert float(original["soft"]) * 5 == pytest.approx(float(corrected["soft"]))
        assert float(original["patience"]) * 6 == pytest.approx(float(corrected["patience"]), rel=2e-3)
        assert original["hard"] == corrected["hard"]


def test_the_published_rounding_has_no_part_in_the_gradient() -> None:
    features = draw_features([7, 3, 5, 2], [0, 1, 0, 2], EQUAL)
    corrected, original = (
        run(make_method(options, EQUAL), features, models=EQUAL)
        for options in (
            {"name": "pkd", "beta": 100 / 6, "alpha": 0.999}, {"name": "pkd", "variant": "original", "alpha": 0.999}
        )
    )  # fmt: skip
    for actual, expected in zip(original.hidden, corrected.hidden, strict=True):
        torch.testing.assert_close(actual, expected)


def test_rkd_differs_from_the_published_by_its_degenerate_entries() -> None:
    features = examples()
    count = len(features)
    for kind in ("cls", "mean", "logits"):
        corrected, original = (
            terms_of({"name": "rkd", "variant": variant, "features": kind}, features).terms
            for variant in ("corrected", "original")
        )
        share = {"distance": (count - 1) / count, "angle": (count - 1) * (count - 2) / count**2}
        for name, factor in share.items():
            assert float(original[name]) == pytest.approx(factor * float(corrected[name])), (kind, name)


@pytest.mark.parametrize("name", ["dist", "dkd"])
def test_dist_and_dkd_are_the_published_where_there_are_three_classes_or_more(name: str) -> None:
    options = {"name": name, **({"warmup": 0.0} if name == "dkd" else {})}
    features = examples()
    corrected, original = (
        run(make_method({**options, "variant": variant}), features) for variant in ("corrected", "original")
    )
    assert_same(corrected, original, rtol=1e-7)  # one adds 1e-8 to a product of norms


def test_sinkd_differs_from_the_published_by_a_mean_and_the_scale_of_the_soft_loss() -> None:
    features = examples()
    corrected, original = (
        terms_of({"name": "sinkd", "variant": variant}, features).terms for variant in ("corrected", "original")
    )
    assert float(original["sinkhorn"]) == pytest.approx(1e-3 * len(features) * float(corrected["sinkhorn"]))
    teacher = (features.teacher_logits / 3).log_softmax(-1)
    entropy = float(-(teacher.exp() * teacher).sum(-1).mean())
    assert float(original["soft"]) == pytest.approx(float(corrected["soft"]) / 9 + entropy)


# --- what each does not see ---


def test_pkd_sees_directions_alone_where_it_normalises() -> None:
    features = draw_features([4, 3], [0, 1], Models(Shape(2, 6), (Shape(2, 6),)))
    scaled = features.changed(student=[3.5 * side for side in features.teacher])
    models = Models(Shape(2, 6), (Shape(2, 6),))
    options = {"name": "pkd", "layer_map": "1:1,2:2"}
    assert float(terms_of(options, scaled, models).terms["patience"]) == pytest.approx(0, abs=1e-12)
    assert float(terms_of({**options, "normalise": False}, scaled, models).terms["patience"]) > 1


def test_rkd_sees_no_rotation_and_no_shift_and_distances_no_scale() -> None:
    features, options = examples(), {"name": "rkd", "layer_map": "5:3"}
    plain = terms_of(options, features).terms
    rotation, _ = torch.linalg.qr(draw(4, 4))
    changes = {
        "turned": [side @ rotation for side in features.student],
        "shifted": [side + draw(4, seed=1) for side in features.student],
        "scaled": [2.5 * side for side in features.student],
    }
    for changed in changes.values():
        found = terms_of(options, features.changed(student=changed)).terms
        for name in ("distance", "angle"):
            assert float(found[name]) == pytest.approx(float(plain[name]))
    same = features.changed(student=features.teacher)
    found = terms_of({**options, "layer_map": "2:2"}, same, Models(Shape(5, 6), (Shape(5, 6),))).terms
    assert (float(found["distance"]), float(found["angle"])) == pytest.approx((0, 0), abs=1e-12)


def test_rkd_of_equal_rows_far_from_the_origin_is_exact_in_float32() -> None:
    """Inner products of such rows cancel."""
    student, teacher = (10 + 0.1 * draw(9, 768, seed=seed) for seed in (0, 1))
    student[3] = student[5]
    values, gradients = [], []
    for dtype in (torch.float64, torch.float32):
        rows = student.clone().to(dtype).requires_grad_()
        found = relational_losses(rows, teacher.to(dtype))
        values.append({name: float(value.detach()) for name, value in found.items()})
        (found["distance"] + found["angle"]).backward()
        gradients.append(rows.grad)
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    torch.testing.assert_close(gradients[1].double(), gradients[0], rtol=1e-3, atol=1e-6)


def test_dkd_puts_a_divergence_together_again() -> None:
    student, teacher = 3 * draw(6, 5), 3 * draw(6, 5, seed=1)
    for target in (LABELS, teacher.argmax(-1)):
        binary, among = decoupled_loss(student, teacher, target, 2.0)
        share = (teacher / 2).softmax(-1).gather(1, target[:, None])[:, 0]
        torch.testing.assert_close(binary + (1 - share) * among, soft_label_loss(student, teacher, 2.0))


def test_dkd_is_finite_where_the_published_is_not() -> None:
    student = torch.tensor([[0.0, 5000, 0, 0, 0]], dtype=torch.float64)
    labels = torch.tensor([0])
    found, gradient = of_logits({"name": "dkd", "warmup": 0.0}, student, draw(1, 5), labels)
    assert all(value.isfinite() for value in found.terms.values())
    assert gradient.isfinite().all()
    published, _ = of_logits({"name": "dkd", "variant": "original"}, student, draw(1, 5), labels)
    assert published.terms["tckd"].isinf()


def test_dist_sees_neither_scale_nor_shift_of_scores() -> None:
    """Of scores it is Pearson's correlation; of classes nothing else is, since a softmax is in between."""
    student, teacher, labels = draw(6, 1), draw(6, 1, seed=1), draw(6)
    found, _ = of_logits({"name": "dist"}, student, teacher, labels, Regression())
    assert found.terms.keys() == {"hard", "intra"}
    expected = 1 - torch.corrcoef(torch.cat([student, teacher], 1).T)[0, 1]
    assert float(found.terms["intra"]) == pytest.approx(float(expected))
    moved, _ = of_logits({"name": "dist"}, 7 * student + 3, teacher, labels, Regression())
    assert float(moved.terms["intra"]) == pytest.approx(float(expected))


@pytest.mark.parametrize("name", ["rkd", "dist", "sinkd", "pkd", "dkd"])
def test_the_order_of_a_batch_changes_nothing(name: str) -> None:
    features, rows = examples(), [3, 0, 7, 1, 5, 2, 6, 4]
    method = make_method({"name": name, **({"warmup": 0.0} if name == "dkd" else {})})
    assert_same(run(method, features.take(rows)), run(method, features), rows)


# --- degenerate entries ---


def finite(seen: Seen, limit: float = 100.0) -> bool:
    """Whether all values are finite and no gradient has exploded."""
    gradients = [seen.logits, *seen.hidden, *seen.own.values()]
    assert all(value.isfinite() for value in seen.terms.terms.values())
    return all(one.isfinite().all() and float(one.abs().max()) < limit for one in gradients)


@pytest.mark.parametrize("kind", ["cls", "mean", "flat", "logits"])
def test_rkd_leaves_out_what_is_equal_in_one_of_the_models(kind: str) -> None:
    features = examples()
    features.student[2] = features.student[4][:, :5].clone()  # of length 5, as it was
    features.student[4] = features.student[4][:, :5].clone()
    features.teacher[4] = features.teacher[4][:, :5].clone()
    logits = features.student_logits.clone()
    logits[2] = logits[4]
    features = features.changed(student_logits=logits)
    options = {"name": "rkd", "features": kind}
    assert finite(run(make_method(options), features))
    alone = {"name": "rkd", "features": kind, "variant": "original"}
    if kind in ("cls", "logits"):  # else rounding, or padding, keeps them apart
        assert not finite(run(make_method(alone), features), 1e6)


@pytest.mark.parametrize(("count", "terms"), [(1, ()), (2, ("distance",)), (3, ("distance", "angle"))])
def test_rkd_of_a_small_batch(count: int, terms: tuple[str, ...]) -> None:
    features = examples().take(list(range(count)))
    found = run(make_method({"name": "rkd"}), features)
    assert finite(found)
    for name in ("distance", "angle"):
        assert (float(found.terms.terms[name]) > 1e-6) == (name in terms and (name, count) != ("distance", 2)), name
    published = terms_of({"name": "rkd", "variant": "original"}, features).terms
    assert math.isnan(float(published["distance"])) == (count == 1)
    if count == 2:
        assert (float(published["distance"]), float(published["angle"])) == pytest.approx((0, 0), abs=1e-30)


def test_rkd_of_equal_examples_is_0() -> None:
    features = examples().take([3, 3, 3, 3])
    found = run(make_method({"name": "rkd"}), features)
    assert (float(found.terms.terms["distance"]), float(found.terms.terms["angle"])) == (0, 0)
    assert finite(found)


def test_dist_leaves_out_constant_rows_and_columns() -> None:
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    student[1] = 0.7
    whole, gradient = of_logits({"name": "dist"}, student, teacher, LABELS)
    rest, _ = of_logits({"name": "dist"}, student[[0, 2, 3, 4, 5]], teacher[[0, 2, 3, 4, 5]], LABELS[[0, 2, 3, 4, 5]])
    assert float(whole.terms["inter"]) == pytest.approx(5 / 6 * float(rest.terms["inter"]))
    assert float(gradient.abs().max()) < 10
    _, published = of_logits({"name": "dist", "variant": "original"}, student, teacher, LABELS)
    assert float(published.abs().max()) > 1e4
    alone, gradient = of_logits({"name": "dist"}, student[:1], teacher[:1], LABELS[:1])
    assert float(alone.terms["intra"]) == 0
    same, gradient = of_logits({"name": "dist"}, student, teacher[[0] * 6], LABELS)
    assert float(same.terms["intra"]) == 0
    assert gradient.isfinite().all()


def test_two_classes_are_told_and_the_idle_term_is_left_out() -> None:
    student, teacher, labels = draw(6, 2), draw(6, 2, seed=1), LABELS % 2
    two = SingleLabel(("no", "yes"))
    found, _ = of_logits({"name": "dist"}, student, teacher, labels, two)
    assert found.terms.keys() == {"hard", "intra"}
    found, _ = of_logits({"name": "dkd", "warmup": 0.0}, student, teacher, labels, two)
    assert found.terms.keys() == {"hard", "tckd"}
    for name in ("dist", "dkd"):
        options = get_method(name).Options(name=name)
        said = [options.warnings(Context(MODELS, head, batch_size=6)) for head in (two, CLASSES)]
        assert [len(one) for one in said] == [1, 0]


# --- the warm-up and the temperature ---


@pytest.mark.parametrize(("progress", "rise"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.9, 1.0)])
def test_dkd_rises_from_step_to_step(progress: float, rise: float) -> None:
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    found, _ = of_logits({"name": "dkd", "warmup": 0.1}, student, teacher, LABELS, progress=progress, epochs=3)
    assert found.weights == pytest.approx({"hard": 1, "tckd": rise, "nckd": 8 * rise})


def test_dkd_as_published_rises_from_epoch_to_epoch() -> None:
    options = get_method("dkd").Options(name="dkd", variant="original", warmup=0.5)
    assert [options.rise(step / 16, 8) for step in range(0, 16, 3)] == [0.25, 0.5, 1, 1, 1, 1]


def test_sinkd_lets_the_temperature_of_the_soft_loss_fall() -> None:
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    annealed, _ = of_logits({"name": "sinkd", "anneal": True}, student, teacher, LABELS, progress=0.5)
    plain, _ = of_logits({"name": "sinkd", "temperature": 2.0}, student, teacher, LABELS)
    assert float(annealed.terms["soft"]) == pytest.approx(float(plain.terms["soft"]))
    assert float(annealed.terms["sinkhorn"]) == pytest.approx(float(plain.terms["sinkhorn"]))


# --- other tasks ---


def test_dkd_and_dist_read_tags_at_labelled_tokens_only() -> None:
    student, teacher = draw(2, 4, 3), draw(2, 4, 3, seed=1)
    labels = torch.tensor([[0, IGNORE_INDEX, 2, 1], [1, 1, IGNORE_INDEX, IGNORE_INDEX]])
    there = labels != IGNORE_INDEX
    head = Tokens(("O", "B", "I"))
    for name in ("dkd", "dist"):
        options = {"name": name, **({"warmup": 0.0} if name == "dkd" else {})}
        found, gradient = of_logits(options, student, teacher, labels, head)
        expected, _ = of_logits(options, student[there], teacher[there], labels[there])
        assert found.terms.keys() == expected.terms.keys()
        for key, value in expected.terms.items():
            torch.testing.assert_close(found.terms[key], value)
        assert float(gradient[~there].abs().max()) == 0


@pytest.mark.parametrize("name", ["pkd", "rkd", "sinkd", "dist"])
def test_sets_of_classes_have_each_class_by_itself(name: str) -> None:
    features = draw_features([7, 3, 5], [0, 0, 0])
    features = features.changed(labels=torch.tensor([[True, False] * 2 + [True]] * 3))
    found = run(make_method({"name": name}, head=MultiLabel(tuple("abcde"))), features)
    assert finite(found)
    assert all(float(value) > 0 for value in found.terms.terms.values())


def test_what_has_no_meaning_is_refused_by_its_key() -> None:
    for options, head, key in (
        ({"name": "kd", "standardise_logits": True}, Regression(), "standardise_logits"),
        ({"name": "cka-l", "standardise_logits": True}, MultiLabel(tuple("abc")), "standardise_logits"),
        ({"name": "pkd", "variant": "original"}, Regression(), "pkd"),
        ({"name": "dist", "variant": "original"}, Regression(), "dist"),
    ):
        made = get_method(options["name"]).Options.model_validate(options)
        with pytest.raises(UserError, match=key):
            made.check(head)
        made.check(CLASSES)


# --- standardised logits ---

PLAIN = {"variant": "original"}  # of methods whose published soft loss is another than that of kd
STANDARDISED: list[dict[str, Any]] = [
    *({"name": name} for name in ("kd", "ics", "cka-i", "cka-l", "cka-g", "cka-il", "cka-ilg", "pkd", "rkd", "sinkd")),
    *({"name": name} for name in ("minilm", "distilbert", "mgskd", "ckd")),
    {"name": "dkd", "warmup": 0.0},
    {"name": "tinybert", "stage": "prediction"},
    {"name": "tinybert", "stage": "prediction", **PLAIN},
    {"name": "sinkd", **PLAIN},
    {"name": "ckd", "alpha": 0.5, **PLAIN},
    {"name": "ad-kd", "beta": 0.0},
    {"name": "ad-kd", "beta": 0.0, **PLAIN},
]


def test_every_method_with_the_option_is_looked_at() -> None:
    having = {name for name, method in all_methods().items() if "standardise_logits" in method.Options.model_fields}
    held = {"reptile"}  # a loss of kd, by the same function; it needs models
    assert {options["name"] for options in STANDARDISED} == having - {"multi-kd"} - held


@pytest.mark.parametrize("options", STANDARDISED, ids=lambda one: f"{one['name']} {one.get('variant', 'corrected')}")
def test_the_soft_loss_and_no_other_term_reads_standardised_logits(options: dict[str, Any]) -> None:
    features = examples()
    plain = terms_of(options, features).terms
    changed = terms_of({**options, "standardise_logits": True}, features).terms
    other = {"soft"} if options["name"] != "dkd" else {"tckd", "nckd"}
    assert {term for term in plain if not torch.equal(plain[term], changed[term])} == other
    ready = features.changed(
        student_logits=standardised(features.student_logits), teacher_logits=standardised(features.teacher_logits)
    )
    expected = terms_of(options, ready).terms
    for term in other:
        torch.testing.assert_close(changed[term], expected[term])


def test_standardised_logits_see_neither_scale_nor_shift() -> None:
    logits = draw(4, 5)
    torch.testing.assert_close(standardised(7 * logits - 2), standardised(logits), rtol=1e-6, atol=1e-6)


def test_logits_that_hardly_differ_are_0_without_a_gradient() -> None:
    student, teacher = draw(4, 5), draw(4, 5, seed=1)
    student[1] = 2 + 1e-6 * student[1]
    student[2] = 2
    labels = torch.tensor([0, 1, 2, 3])
    options = {"name": "kd", "standardise_logits": True}
    _, gradient = of_logits({**options, "alpha": 0.0}, student, teacher, labels)
    assert float(gradient[1:3].abs().max()) == 0
    assert float(gradient[[0, 3]].abs().max()) > 0
    _, published = of_logits({**options, "alpha": 0.0, "variant": "original"}, student, teacher, labels)
    assert float(published[1].abs().max()) > 1e3


def test_several_teachers_are_standardised_too() -> None:
    method = make_method({"name": "multi-kd", "standardise_logits": True}, head=CLASSES)
    student, teachers, batch = draw(6, 5), [draw(6, 5, seed=1), draw(6, 5, seed=2)], batch_of(LABELS)
    outputs = [Outputs(logits, mask=batch.attention_mask) for logits in (student, *teachers)]
    found = method(outputs[0], outputs[1:], batch)
    for number, teacher in enumerate(teachers, 1):
        expected = soft_label_loss(standardised(student), standardised(teacher), 3.0).mean()
        torch.testing.assert_close(found.terms[f"soft.{number}"], expected)
