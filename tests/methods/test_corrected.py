"""The feature methods in `corrected`: their definitions, and what must not change a loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_cases import (
    METHODS,
    STUDENT,
    Features,
    assert_same,
    draw_centroids,
    draw_features,
    examples,
    make_method,
    plain_terms,
    run,
)
from kdbert.heads import Regression
from kdbert.methods import Models, Shape

every_method = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS.keys())
# Of one width, so that ics has no projection.
EQUAL = Models(student=Shape(3, 6, 2, 3), teachers=(Shape(5, 6, 2, 3),))


@every_method
def test_every_term_is_that_of_its_definition(options: dict[str, Any]) -> None:
    method, features = make_method(options), examples()
    expected = plain_terms(method, features)
    found = run(method, features).terms
    assert found.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found.terms[name], value.detach(), msg=lambda m, n=name: f"{n}: {m}")
    whole = sum(found.weights[name] * value for name, value in expected.items())
    torch.testing.assert_close(found.total, whole.detach())
    assert all(float(value.detach()) > 1e-4 for value in expected.values())  # nothing is equal for being nothing


@every_method
def test_gradients_are_those_of_the_definition(options: dict[str, Any]) -> None:
    method, features = make_method(options), examples()
    found = run(method, features)
    method.zero_grad(set_to_none=True)
    leaves = features.changed(
        student=[side.clone().requires_grad_() for side in features.student],
        student_logits=features.student_logits.clone().requires_grad_(),
    )
    sum(found.terms.weights[name] * value for name, value in plain_terms(method, leaves).items()).backward()
    if leaves.student_logits.grad is not None:
        torch.testing.assert_close(found.logits, leaves.student_logits.grad)
    for actual, side in zip(found.hidden, leaves.student, strict=True):
        expected_gradient = torch.zeros_like(side) if side.grad is None else side.grad
        torch.testing.assert_close(actual, expected_gradient, rtol=1e-6, atol=1e-10)
    expected = {name: value.grad for name, value in method.named_parameters()}
    assert found.own.keys() == expected.keys()
    for name, value in found.own.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-10)


@every_method
@pytest.mark.parametrize("extra", [1, 16])
@pytest.mark.parametrize("garbage", [0.0, 100.0], ids=["zeros", "garbage"])
def test_padding_changes_nothing(options: dict[str, Any], extra: int, garbage: float) -> None:
    method, features = make_method(options), examples()
    found = run(method, features, extra=extra, garbage=garbage)
    assert_same(found, run(method, features))
    assert found.padding == 0


@pytest.mark.parametrize("name", ["cka-g", "cka-ilg"])
def test_padding_beyond_the_centroids_length_changes_nothing(name: str) -> None:
    """Centroids end where the longest training example does; a batch may be padded further all the same."""
    method, features = make_method({"name": name}, centroids=draw_centroids(length=9)), examples()
    assert_same(run(method, features, extra=16), run(method, features))


@every_method
def test_the_order_of_examples_changes_nothing(options: dict[str, Any]) -> None:
    method, features = make_method(options), examples()
    for rows in ([7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 7, 1, 5, 2, 6, 4]):
        assert_same(run(method, features.take(rows)), run(method, features), rows)


@every_method
def test_a_smaller_last_batch_is_not_cut_into_pieces(options: dict[str, Any]) -> None:
    """8 x 3 x 4 numbers of three samples could be viewed as eight rows, as the published code does (F1)."""
    ragged = draw_features([8, 5, 8], [0, 0, 1])
    method = make_method(options, batch_size=8)
    found = run(method, ragged)
    assert_same(found, run(make_method(options, batch_size=3), ragged))
    for name, value in plain_terms(method, ragged).items():
        torch.testing.assert_close(found.terms.terms[name], value.detach(), msg=lambda m, n=name: f"{n}: {m}")


def test_the_original_does_cut_it() -> None:
    ragged = draw_features([8, 8, 8], [0, 0, 1])
    terms = [
        run(make_method({"name": "cka-l", "variant": "original"}, batch_size=size), ragged).terms.terms["local"]
        for size in (8, 3)
    ]
    assert terms[0].item() != pytest.approx(terms[1].item(), rel=0.01)


# --- independent of batch size where a mean is meant ---


@pytest.mark.parametrize("neighbors", [1, 2, 5])
def test_ics_of_two_batches_without_a_common_class_is_their_mean_together(neighbors: int) -> None:
    features = draw_features([7, 3, 5, 2, 6, 4], [0, 1, 0, 2, 2, 3])
    parts = [[0, 1, 2], [3, 4, 5]]
    method = make_method({"name": "ics", "neighbors": neighbors})
    apart = [float(run(method, features.take(rows)).terms.terms["feature"]) for rows in parts]
    assert float(run(method, features).terms.terms["feature"]) == pytest.approx(sum(apart) / 2)


def test_the_published_ics_is_a_sum() -> None:
    features = draw_features([4] * 6, [0, 1, 1, 2, 2, 3], EQUAL)
    method = make_method({"name": "ics", "neighbors": 1, "variant": "original"}, EQUAL)
    whole, first, second = (
        float(run(method, features.take(rows), models=EQUAL).terms.terms["feature"])
        for rows in ([0, 1, 2, 3, 4, 5], [0, 1, 2], [3, 4, 5])
    )
    assert whole == pytest.approx(first + second)


def test_the_mean_cka_of_two_batches_is_that_of_both_together() -> None:
    features, method = examples(), make_method({"name": "cka-i"})

    def mean(rows: list[int]) -> float:
        return math.exp(-float(run(method, features.take(rows)).terms.terms["intra"])) - 1e-8

    assert mean(list(range(8))) == pytest.approx((3 * mean([0, 1, 2]) + 5 * mean([3, 4, 5, 6, 7])) / 8)


def test_distances_and_cosines_are_means_over_examples() -> None:
    features, method = examples(), make_method({"name": "cka-g"})
    whole, first, second = (
        run(method, features.take(rows)).terms.terms for rows in (list(range(8)), [0, 1, 2], [3, 4, 5, 6, 7])
    )
    for name in ("distance", "cosine"):
        assert float(whole[name]) == pytest.approx(float(3 * first[name] + 5 * second[name]) / 8)
    assert whole["memory_cka"] == first["memory_cka"]  # no example is in it


# --- ics ---


@pytest.mark.parametrize("neighbors", [1, 3, 50])
def test_an_example_without_another_of_its_class_is_drawn_to_its_own_teacher(neighbors: int) -> None:
    features = draw_features([7, 3, 5], [0, 1, 2], EQUAL)
    found = run(make_method({"name": "ics", "neighbors": neighbors}, EQUAL), features, models=EQUAL).terms
    own = [(s[3] - t[5]).square().mean() for s, t in zip(features.student, features.teacher, strict=True)]
    torch.testing.assert_close(found.terms["feature"], torch.stack(own).mean())
    assert found.monitors["ics/neighbors"] == 0
    assert found.monitors["ics/alone"] == 1


def test_no_class_shortens_the_neighbours_of_another() -> None:
    """In the published code k shrinks to 1 at the first example that is alone in its class (I1)."""
    features = draw_features([4] * 6, [4, 0, 0, 0, 1, 1], EQUAL)
    last = [1, 2, 3, 4, 5, 0]

    def neighbours(variant: str, rows: list[int]) -> tuple[float, float]:
        method = make_method({"name": "ics", "neighbors": 3, "variant": variant}, EQUAL)
        terms = run(method, features.take(rows), models=EQUAL).terms
        return float(terms.monitors["ics/neighbors"]), float(terms.terms["feature"])

    # With k = 3: one example has its own teacher alone, three have three, two have two.
    inside = neighbours("corrected", list(range(6)))
    assert neighbours("corrected", last) == pytest.approx(inside)
    # Of three nearest in the class, the own teacher is always one.
    assert inside[0] == pytest.approx((0 + 3 * 2 + 2 * 1) / 6)
    assert neighbours("original", list(range(6)))[0] < neighbours("original", last)[0]


def test_a_shared_class_brings_more_neighbours_up_to_k() -> None:
    features = draw_features([3, 4, 5, 6, 2, 7], [1] * 6, EQUAL)
    terms = [
        run(make_method({"name": "ics", "neighbors": k}, EQUAL), features, models=EQUAL).terms.terms["feature"]
        for k in (1, 2, 6, 7)
    ]
    assert terms[0] < terms[1] < terms[2]
    assert terms[2] == terms[3]


def test_scores_of_one_half_are_a_class() -> None:
    features = draw_features([4] * 4, [0, 0, 0, 0], EQUAL)
    scores = features.changed(
        labels=torch.tensor([1.9, 2.2, 2.3, 4.0]),
        teacher_logits=features.teacher_logits[:, :1],
        student_logits=features.student_logits[:, :1],
    )
    terms = run(make_method({"name": "ics"}, EQUAL, head=Regression()), scores, models=EQUAL).terms
    assert float(terms.monitors["ics/alone"]) == pytest.approx(0.5)  # 1.9 and 2.2 lie around 2.0
    grouped = features.changed(labels=torch.tensor([0, 0, 1, 2]))
    expected = run(make_method({"name": "ics"}, EQUAL), grouped, models=EQUAL).terms.terms["feature"]
    torch.testing.assert_close(terms.terms["feature"], expected)


# --- models of other depths and widths ---


@every_method
@pytest.mark.parametrize(
    "models",
    [
        Models(Shape(2, 3, 1, 3), (Shape(12, 7, 1, 7),)),
        Models(Shape(6, 7, 1, 7), (Shape(3, 3, 1, 3),)),
        EQUAL,
    ],
    ids=["12 and 2 layers", "a deeper, wider student", "of one width"],
)
def test_depths_and_widths_may_differ_and_some_have_a_projection(options: dict[str, Any], models: Models) -> None:
    depths = models.teachers[0].layers, models.student.layers
    if "layer_map" in options:
        more = ",1:1" if options["name"] != "minilm" else ""
        options = {**options, "layer_map": f"{depths[0]}:{depths[1]}{more}"}
    method = make_method(options, models)
    features = draw_features([7, 3, 5, 2], [0, 1, 0, 0], models)
    found = run(method, features, models=models)
    pairs = method.needs(method.options, models).pairs
    same_width = models.teachers[0].width == models.student.width
    names = {name for name, _ in method.named_parameters()}
    if options["name"] in ("ics", "pkd", "tinybert", "distilbert"):
        compared = [pairs["hidden"]] if options["name"] == "tinybert" else pairs.values()
        count = 0 if same_width else sum(map(len, compared))
        assert names == {f"projections.{i}.{kind}" for i in range(count) for kind in ("weight", "bias")}
    else:
        assert names == ({"centroids.student"} if "global" in pairs else set())
    assert found.own.keys() == names
    assert all(value.abs().max() > 0 for value in found.own.values())
    # Attention is made of the hidden states below.
    read = {layer - (name in ("attention", "relation")) for name, some in pairs.items() for _, layer in some}
    for layer in range(depths[1] + 1):
        reached = any(side[layer].abs().max() > 0 for side in found.hidden)
        assert reached == (layer in read), layer


def test_a_projection_learns_to_match_the_teacher() -> None:
    method = make_method({"name": "ics", "neighbors": 1, "alpha": 1.0, "beta": 1.0})
    features = draw_features([7, 3, 5, 2], [0, 1, 2, 3])
    optimizer = torch.optim.Adam(method.parameters(), lr=0.1)
    before = float(run(method, features).terms.terms["feature"])
    for _ in range(60):
        run(method, features)
        optimizer.step()
    assert float(run(method, features).terms.terms["feature"]) < 0.8 * before


def test_student_centroids_begin_as_berts_weights_do() -> None:
    for variant, std in (("corrected", 0.02), ("original", 1.0)):
        centroids: Any = make_method({"name": "cka-g", "variant": variant}).centroids.student
        assert centroids.shape == (4, 40, STUDENT.width)
        assert float(centroids.detach().std()) == pytest.approx(std, rel=0.15)


# --- degenerate batches ---


def constant(features: Features, *sides: str) -> Features:
    """Every token of every example alike, in student or teacher."""
    changes = {side: [torch.full_like(one, 0.7) for one in getattr(features, side)] for side in sides}
    return features.changed(**changes)


DEGENERATE: dict[str, Features] = {
    "student constant": constant(examples(), "student"),
    "teacher constant": constant(examples(), "teacher"),
    "both constant": constant(examples(), "student", "teacher"),
    "one sample constant": examples().changed(
        student=[torch.full_like(one, 0.7) if i == 2 else one for i, one in enumerate(examples().student)]
    ),
    "all zero": examples().changed(
        student=[torch.zeros_like(one) for one in examples().student],
        teacher=[torch.zeros_like(one) for one in examples().teacher],
    ),
    "one sample": examples().take([2]),
    "one token": draw_features([1, 1, 1, 1], [0, 0, 1, 1]),
    "one sample of one token": draw_features([1], [2]),
    "two samples": examples().take([0, 2]),
    "one class": examples().changed(labels=torch.ones(8, dtype=torch.int64)),
    "no two of a class": examples().take([0, 1, 3]),
    "copies of one sample": examples().take([4, 4, 4, 4]),
    "a student that is its teacher": examples().changed(student=[one[:4, :, :4] for one in examples().teacher]),
}


@every_method
@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_degenerate_batch_is_never_nan(options: dict[str, Any], kind: str, dtype: torch.dtype) -> None:
    method = make_method(options)
    features = DEGENERATE[kind].to(dtype)
    method.to(dtype)
    found = run(method, features)
    for name, value in found.terms.terms.items():
        assert torch.isfinite(value), name
        assert float(value) >= -1e-6, name
    assert all(torch.isfinite(value) for value in found.terms.monitors.values())
    for gradient in (found.logits, *found.hidden, *found.own.values()):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["cka-g", "cka-ilg"])
def test_one_centroid_or_equal_ones_are_never_nan(name: str) -> None:
    drawn = draw_centroids()
    for centroids in (draw_centroids(clusters=1), drawn[:1].repeat(len(drawn), 1, 1)):
        method: Any = make_method({"name": name}, centroids=centroids)
        found = run(method, examples())
        assert float(found.terms.terms["memory_cka"]) == pytest.approx(0, abs=1e-7)
        assert all(torch.isfinite(value) for value in found.terms.terms.values())
        assert all(torch.isfinite(gradient).all() for gradient in (*found.hidden, *found.own.values()))


def test_a_batch_that_cannot_be_compared_has_no_structure_term() -> None:
    for options, term, kind in (
        ({"name": "cka-i"}, "intra", "one token"),
        ({"name": "cka-l"}, "local", "one sample"),
        ({"name": "cka-l"}, "local", "copies of one sample"),
        ({"name": "cka-i", "internal": False}, "local", "teacher constant"),
        ({"name": "cka-i"}, "intra", "teacher constant"),
    ):
        features = DEGENERATE[kind]
        if kind == "teacher constant":  # all of one length, so that padding is no structure either
            features = constant(draw_features([5] * 4, [0, 0, 1, 1]), "teacher")
        found = run(make_method(options), features)
        assert float(found.terms.terms[term]) == pytest.approx(0, abs=1e-7)
        assert all(gradient.abs().max() == 0 for gradient in found.hidden)


def test_the_original_gives_nan_where_it_was_published_to() -> None:
    features = draw_features([4, 4, 4], [0, 0, 1])
    features.student[1].fill_(0.5)
    found = run(make_method({"name": "cka-i", "variant": "original"}), features)
    assert torch.isnan(found.terms.terms["intra"])


# --- hypothesis: any batch ---


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=7), st.integers(1, 4))
def test_ics_of_any_batch_is_the_plain_loop(rows: list[tuple[int, int]], neighbors: int) -> None:
    features = draw_features([length for length, _ in rows], [label for _, label in rows])
    method = make_method({"name": "ics", "neighbors": neighbors})
    found = run(method, features, extra=2).terms
    torch.testing.assert_close(found.terms["feature"], plain_terms(method, features)["feature"].detach())
    sizes = [sum(label == other for _, other in rows) for _, label in rows]
    alone = sum(min(size, neighbors) == 1 for size in sizes)
    assert 0 <= float(found.monitors["ics/alone"]) <= 1
    if neighbors >= max(sizes):  # everyone of the class is chosen
        assert float(found.monitors["ics/alone"]) == pytest.approx(alone / len(rows))
        assert float(found.monitors["ics/neighbors"]) == pytest.approx(sum(size - 1 for size in sizes) / len(rows))
