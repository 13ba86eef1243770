"""Where no quirk bites, `corrected` is `original`; and what must not change the relations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from feature_cases import MODELS, Features, draw_features, make_method, run
from kdbert.heads import SingleLabel
from kdbert.methods import Context, Models, Shape

TEXTS, LENGTH = 5, 6


def of_one_length() -> Features:
    """Without padding, and with as many tokens in each text."""
    return draw_features([LENGTH] * TEXTS, [0, 1, 2, 0, 1])


def both(options: dict[str, Any], features: Features) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The terms of `corrected` and of `original`."""
    found = [
        run(make_method({**options, "variant": variant}), features).terms.terms for variant in ("corrected", "original")
    ]
    return found[0], found[1]


def distinct(count: int, chosen: int) -> float:
    """The share of ordered choices, with repetition, of which all are different."""
    share = 1.0
    for number in range(chosen):
        share *= (count - number) / count
    return share


def test_mgskd_is_the_original_but_for_texts_that_are_their_own_neighbours() -> None:
    corrected, original = both({"name": "mgskd", "centres": 4, "ends": 3}, of_one_length())
    torch.testing.assert_close(corrected["token"], original["token"])
    torch.testing.assert_close(corrected["sample"] * distinct(TEXTS, 3), original["sample"])
    assert corrected["token"] > 0.01 < corrected["sample"]


def test_ckd_is_the_original_but_for_words_and_layers_with_themselves() -> None:
    options = {"name": "ckd", "window": None, "layer_map": "0:0,2:1,3:2,5:3"}
    corrected, original = both(options, of_one_length())
    shares = {
        "word_distance": distinct(LENGTH, 2), "word_angle": distinct(LENGTH, 3),
        "layer_distance": distinct(4, 2), "layer_angle": distinct(4, 3),
    }  # fmt: skip
    for name, share in shares.items():
        torch.testing.assert_close(corrected[name] * share, original[name], msg=lambda m, n=name: f"{n}: {m}")
        assert original[name] > 1e-3


def moved(features: Features, change: Any) -> Features:
    """Another student."""
    return features.changed(student=[change(side) for side in features.student])


@pytest.mark.parametrize("variant", ["corrected", "original"])
def test_a_scaled_student_has_the_same_distances_and_a_shifted_one_the_same_angles(variant: str) -> None:
    features = draw_features([6, 3, 5], [0, 1, 2])
    method = make_method({"name": "ckd", "layer_map": "0:0,2:1,5:3", "variant": variant})
    plain = run(method, features, garbage=0.0).terms.terms
    scaled = run(method, moved(features, lambda side: 3 * side), garbage=0.0).terms.terms
    shift = torch.linspace(-2, 2, 4, dtype=torch.float64)
    shifted = run(method, moved(features, lambda side: side + shift), extra=0, garbage=0.0).terms.terms
    for name in ("word_distance", "layer_distance", "word_angle", "layer_angle"):
        torch.testing.assert_close(scaled[name], plain[name])
    angles = ["layer_angle"] + (["word_angle"] if variant == "corrected" else [])  # padding, at 0, is not shifted
    for name in angles:
        torch.testing.assert_close(shifted[name], plain[name])
    assert abs(shifted["word_distance"] - plain["word_distance"]) > 1e-3 * plain["word_distance"]


def test_the_published_window_sees_padding() -> None:
    method = make_method({"name": "ckd", "window": 3, "variant": "original"})
    features = draw_features([6, 3, 5], [0, 1, 2])
    assert (
        run(method, features, garbage=1.0).terms.terms["word_angle"]
        != run(method, features, garbage=2.0).terms.terms["word_angle"]
    )


def test_equal_directions_cost_distilbert_nothing() -> None:
    features = draw_features([4, 2, 5], [0, 1, 2])
    equal = Models(student=Shape(3, 4), teachers=(Shape(3, 4),))
    same = features.changed(teacher=[3 * side for side in features.student])
    assert abs(run(make_method({"name": "distilbert"}, equal), same, models=equal).terms.terms["cos"]) < 1e-12


def test_mgskd_alone_leaves_labels_and_logits_alone_and_says_so() -> None:
    method = make_method({"name": "mgskd", "variant": "original"})
    context = Context(MODELS, SingleLabel(), batch_size=3)
    assert ["--student" in one for one in method.options.warnings(context)] == [True]
    assert make_method({"name": "mgskd"}).options.warnings(context) == []
    found = run(method, draw_features([4, 2, 5], [0, 1, 2]))
    assert found.terms.weights == {"hard": 0, "token": 1, "sample": 4}
    assert found.logits.abs().max() == 0
