"""How terms are weighed: no negative weight by default, no nonsense in `corrected`, nothing read for a weight of 0."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from feature_cases import METHODS, MODELS, batch_of, examples, make_method, run
from kdbert.heads import SingleLabel
from kdbert.methods import Context, LossTerms, Models, Needs, Outputs, Shape, all_methods, get_method

RELATIONS = "word_distance", "word_angle", "layer_distance", "layer_angle"
every_method = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS.keys())
PUBLISHED = {name: options for name, options in METHODS.items() if options["name"] != "distilbert"}  # with an original
KD_WEIGHTS = {"hard": 0.5, "soft": 0.5}
DEFAULTS: dict[str, dict[str, float]] = {
    "ics": {**KD_WEIGHTS, "feature": 0.32},
    "cka-i": {**KD_WEIGHTS, "intra": 30},
    "cka-l": {**KD_WEIGHTS, "local": 30},
    "cka-g": {**KD_WEIGHTS, "distance": 0.15, "cosine": 0.15, "memory_cka": 0.3},
    "cka-il": {**KD_WEIGHTS, "intra": 0.025, "local": 0.025},
    "cka-ilg": {
        **KD_WEIGHTS, "intra": 0.0125, "local": 0.0125, "distance": 0.025, "cosine": 0.025, "memory_cka": 0.05,
    },
    "pkd": {**KD_WEIGHTS, "patience": 0.13},
    "rkd": {**KD_WEIGHTS, "distance": 1, "angle": 2},
    "dist": {"hard": 1, "inter": 1, "intra": 1},
    "dkd": {"hard": 1, "tckd": 0, "nckd": 0},  # at the first step of the warm-up
    "sinkd": {"hard": 0.1, "soft": 0.9, "sinkhorn": 0.0128},
    "distilbert": {**KD_WEIGHTS, "cos": 1},
    "mgskd": {**KD_WEIGHTS, "token": 1, "sample": 4},
    "ckd": {**KD_WEIGHTS, **dict.fromkeys(RELATIONS, 1)},
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_default_weights_are_those_of_the_formula(name: str) -> None:
    terms = run(make_method({"name": name}), examples()).terms
    assert terms.weights == pytest.approx(DEFAULTS[name])
    total = sum(terms.weights[key] * float(value) for key, value in terms.terms.items())
    assert float(terms.total) == pytest.approx(total)


def test_every_method_has_defaults_that_are_no_nonsense() -> None:
    for name, method in all_methods().items():
        assert method.Options.model_validate({"name": name}).nonsense() == [], name
    assert {*DEFAULTS, "kd", "multi-kd", "finetune"} <= set(all_methods())


shares = st.floats(0, 1)


@settings(max_examples=30, deadline=None)
@given(shares, shares, shares, shares, st.floats(0, 100))
def test_weights_of_cka_ilg_are_those_of_the_formula(
    alpha: float, beta: float, gamma: float, sigma: float, epsilon: float
) -> None:
    given_ = {"alpha": alpha, "beta": beta, "gamma": gamma, "sigma": sigma, "epsilon": epsilon}
    terms = run(make_method({"name": "cka-ilg", **given_}), examples()).terms
    expected = {
        "hard": alpha,
        "soft": 1 - alpha,
        "intra": epsilon * (1 - sigma) / 2 * gamma,
        "local": epsilon * (1 - sigma) / 2 * (1 - gamma),
        "distance": epsilon * sigma * beta,
        "cosine": epsilon * sigma * (1 - beta),
        "memory_cka": epsilon * sigma,
    }
    assert terms.weights.keys() == terms.terms.keys()
    for name, weight in expected.items():
        assert terms.weights.get(name, 0) == pytest.approx(weight, abs=1e-12), name
        assert terms.weights.get(name, 0) >= 0
        assert name == "hard" or (name in terms.terms) == (terms.weights.get(name, 0) > 0)
    total = sum(terms.weights[name] * float(value) for name, value in terms.terms.items())
    assert float(terms.total) == pytest.approx(total)


@pytest.mark.parametrize("name", ["cka-i", "cka-l", "cka-g", "cka-il"])
def test_weights_of_one_structure_follow_beta_gamma_and_epsilon(name: str) -> None:
    if name == "cka-g":
        terms = run(make_method({"name": name, "beta": 8, "gamma": 0.25}), examples()).terms
        assert {k: terms.weights[k] for k in ("distance", "cosine", "memory_cka")} == {
            "distance": 2, "cosine": 6, "memory_cka": 8,
        }  # fmt: skip
    elif name == "cka-il":
        terms = run(make_method({"name": name, "epsilon": 8, "gamma": 0.25}), examples()).terms
        assert {k: terms.weights[k] for k in ("intra", "local")} == {"intra": 1, "local": 3}
    else:
        terms = run(make_method({"name": name, "beta": 8}), examples()).terms
        assert terms.weights["intra" if name == "cka-i" else "local"] == 8


def test_the_hate_speech_scripts_weights_are_independent() -> None:
    options = {"name": "ics", "alpha_ce": 0.7, "alpha_soft": 0.9, "beta": 0.2}
    assert run(make_method(options), examples()).terms.weights == {"hard": 0.7, "soft": 0.9, "feature": 0.2}


@pytest.mark.parametrize("variant", ["corrected", "original"])
@pytest.mark.parametrize(
    "options",
    [
        *PUBLISHED.values(),
        {"name": "ad-kd"},
        {"name": "ics", "alpha_ce": 0.7, "alpha_soft": 0.9, "beta": 0.2},
        {"name": "multi-kd"},
    ],
    ids=str,
)
def test_options_that_are_written_down_can_be_read_again(options: dict[str, Any], variant: str) -> None:
    """recipe.yaml of a run has every option with its value."""
    chosen = get_method(options["name"]).Options
    made = chosen.model_validate({**options, "variant": variant})
    assert chosen.model_validate(made.model_dump(mode="json")).model_dump() == made.model_dump()


NONSENSE: list[tuple[str, str, Any]] = [
    ("kd", "alpha", -0.1),
    ("kd", "alpha", 1.1),
    ("multi-kd", "alpha", 2.0),
    ("multi-kd", "weights", [-1.0, 2.0]),
    ("ics", "alpha", 1.5),
    ("ics", "beta", -0.01),
    ("ics", "alpha_ce", -0.5),
    ("ics", "alpha_soft", -0.5),
    ("cka-i", "alpha", -1.0),
    ("cka-i", "beta", -30.0),
    ("cka-l", "beta", -30.0),
    ("cka-g", "beta", -1.0),
    ("cka-g", "gamma", 1.01),
    ("cka-g", "gamma", -0.01),
    ("cka-il", "gamma", 1.5),
    ("cka-il", "epsilon", -0.1),
    ("cka-ilg", "alpha", 3.0),
    ("cka-ilg", "beta", 5.0),
    ("cka-ilg", "gamma", -1.0),
    ("cka-ilg", "sigma", 5.0),
    ("cka-ilg", "sigma", -0.5),
    ("cka-ilg", "epsilon", -0.1),
    ("pkd", "beta", -1.0),
    ("rkd", "distance_weight", -1.0),
    ("rkd", "angle_weight", -1.0),
    ("dist", "hard_weight", -1.0),
    ("dist", "beta", -1.0),
    ("dist", "gamma", -1.0),
    ("dkd", "alpha_d", -1.0),
    ("dkd", "beta_d", -1.0),
    ("dkd", "warmup", 1.5),
    ("sinkd", "alpha", 1.5),
    ("sinkd", "beta", -1.0),
    ("minilm", "beta", -1.0),
    ("minilm", "kd", -1.0),
    ("minilm", "relation_weights", [1.0, -1.0, 1.0]),
    ("tinybert", "attention_weight", -1.0),
    ("tinybert", "hidden_weight", -1.0),
    ("tinybert", "alpha", 1.5),
    ("mgskd", "prediction", -1.0),
    ("mgskd", "sample_weight", -1.0),
    ("mgskd", "token_weight", -1.0),
    ("ckd", "word_distance", -1.0),
    ("ckd", "layer_angle", -1.0),
    ("ad-kd", "alpha", 1.5),
    ("ad-kd", "beta", -1.0),
]


@pytest.mark.parametrize(("name", "key", "value"), NONSENSE)
def test_nonsense_is_refused_in_corrected_and_told_in_original(name: str, key: str, value: Any) -> None:
    options = get_method(name).Options
    with pytest.raises(ValidationError, match=key):
        options.model_validate({"name": name, key: value})
    taken = options.model_validate({"name": name, "variant": "original", key: value})
    assert getattr(taken, key) == value
    (sentence, *_) = [told for told in taken.nonsense() if key in told]
    assert sentence


@pytest.mark.parametrize(("name", "key", "value"), NONSENSE)
def test_numbers_that_are_none_are_refused_in_both(name: str, key: str, value: Any) -> None:
    for variant in ("corrected", "original"):
        for wrong in (float("nan"), float("inf")):
            with pytest.raises(ValidationError, match=key):
                get_method(name).Options.model_validate({
                    "name": name, "variant": variant, key: [wrong] * len(value) if isinstance(value, list) else wrong,
                })  # fmt: skip


def test_the_ends_of_a_share_are_allowed() -> None:
    for key in ("alpha", "beta", "gamma", "sigma"):
        for value in (0.0, 1.0):
            options = get_method("cka-ilg").Options.model_validate({"name": "cka-ilg", key: value})
            assert options.nonsense() == []


def test_the_scripts_own_defaults_are_the_originals_and_give_negative_weights() -> None:
    options = get_method("cka-ilg").Options.model_validate({"name": "cka-ilg", "variant": "original"})
    assert len(options.nonsense()) == 2  # beta and sigma 5 (F3)
    terms = run(make_method({"name": "cka-ilg", "variant": "original"}), examples(), extra=33).terms
    expected = {"hard": 0.0, "soft": 1.0, "local": -0.2, "distance": 2.5, "cosine": -2.0, "memory_cka": 0.5}
    assert terms.weights == pytest.approx(expected)
    total = sum(terms.weights[name] * float(value) for name, value in terms.terms.items())
    assert float(terms.total) == pytest.approx(total)


def test_how_many_teachers_are_read_is_known_without_models() -> None:
    expected = dict.fromkeys(all_methods(), (1, 1)) | {"finetune": (0, 0), "multi-kd": (2, None)}
    for name, method in all_methods().items():
        needs = method.needs(method.Options.model_validate({"name": name}), None)
        assert needs.teachers == expected[name], name
        assert needs.reads_centroids == (name in ("cka-g", "cka-ilg")), name


WITHOUT_HEAD: dict[str, dict[str, Any]] = {
    "minilm kd=0": {"name": "minilm", "kd": 0},
    "mgskd prediction=0": {"name": "mgskd", "prediction": 0},
    "tinybert prediction": {"name": "tinybert", "stage": "prediction"},
}


@pytest.mark.parametrize("options", [*METHODS.values(), *WITHOUT_HEAD.values()], ids=[*METHODS, *WITHOUT_HEAD])
def test_whether_a_head_is_trained_is_said_as_it_is(options: dict[str, Any]) -> None:
    method = make_method(options)
    assert method.options.trains_head == bool(run(method, examples()).logits.any())


# --- a weight of 0 needs nothing, and reads nothing ---

ZERO: list[tuple[dict[str, Any], set[str]]] = [
    ({"name": "kd", "alpha": 0.5}, {"hard", "soft"}),
    ({"name": "ics", "beta": 0}, {"hard", "soft"}),
    ({"name": "ics", "alpha": 1}, {"hard", "feature"}),
    ({"name": "ics", "alpha_soft": 0, "beta": 0.1}, {"hard", "feature"}),
    ({"name": "cka-i", "beta": 0}, {"hard", "soft"}),
    ({"name": "cka-i", "alpha": 1}, {"hard", "intra"}),
    ({"name": "cka-l", "beta": 0}, {"hard", "soft"}),
    ({"name": "cka-l", "alpha": 1}, {"hard", "local"}),
    ({"name": "cka-g", "beta": 0}, {"hard", "soft"}),
    ({"name": "cka-g", "alpha": 1}, {"hard", "distance", "cosine", "memory_cka"}),
    ({"name": "cka-g", "gamma": 0}, {"hard", "soft", "cosine", "memory_cka"}),
    ({"name": "cka-g", "gamma": 1}, {"hard", "soft", "distance", "memory_cka"}),
    ({"name": "cka-il", "epsilon": 0}, {"hard", "soft"}),
    ({"name": "cka-il", "gamma": 0}, {"hard", "soft", "local"}),
    ({"name": "cka-il", "gamma": 1, "alpha": 1}, {"hard", "intra"}),
    ({"name": "cka-ilg", "epsilon": 0}, {"hard", "soft"}),
    ({"name": "cka-ilg", "sigma": 0}, {"hard", "soft", "intra", "local"}),
    ({"name": "cka-ilg", "sigma": 1}, {"hard", "soft", "distance", "cosine", "memory_cka"}),
    ({"name": "cka-ilg", "sigma": 1, "beta": 0}, {"hard", "soft", "cosine", "memory_cka"}),
    ({"name": "cka-ilg", "gamma": 0}, {"hard", "soft", "local", "distance", "cosine", "memory_cka"}),
    ({"name": "distilbert", "cos_weight": 0}, {"hard", "soft"}),
    ({"name": "distilbert", "alpha": 1}, {"hard", "cos"}),
    ({"name": "mgskd", "token_weight": 0}, {"hard", "soft", "sample"}),
    ({"name": "mgskd", "sample_weight": 0, "prediction": 0}, {"hard", "token"}),
    ({"name": "ckd", "word_distance": 0, "layer_angle": 0}, {"hard", "soft", "word_angle", "layer_distance"}),
    ({"name": "ckd", "alpha": 1}, {"hard", *RELATIONS}),
]
STATES = {"feature", "local", "cos", "token", *RELATIONS}  # terms that read a teacher's hidden states as they are


@pytest.mark.parametrize(("options", "terms"), ZERO, ids=[str(options) for options, _ in ZERO])
def test_a_term_of_weight_0_needs_nothing_and_is_not_there(options: dict[str, Any], terms: set[str]) -> None:
    method = make_method(options)
    needs = method.needs(method.options, MODELS)
    assert needs.teacher_logits == ("soft" in terms)
    assert ("feature" in needs.pairs) == ("feature" in terms)
    assert ("intra" in needs.pairs) == ("intra" in terms)
    assert ("local" in needs.pairs) == ("local" in terms)
    among = bool(terms & {"distance", "cosine", "memory_cka"})
    assert ("global" in needs.pairs) == among == needs.reads_centroids == (needs.centroids_layer is not None)
    without_models = method.needs(method.options, None)
    assert (without_models.teachers, without_models.reads_centroids) == (needs.teachers, among)
    reduced = {quantity.name.partition(".")[0] for quantity in needs.reduced}
    made = {"gram": "intra" in terms, "global": among, "mean": "sample" in terms}
    assert reduced == {name for name, there in made.items() if there}
    assert bool(needs.teacher_hidden) == bool(terms & STATES)
    assert bool(needs.student_hidden) == bool(terms - {"hard", "soft"})
    assert bool(needs.compares_examples) == bool(terms & {"feature", "intra", "local", "sample"})
    assert needs.compares_tokens == bool(terms & {"feature", "intra", *STATES} - {"local"})
    assert not needs.reads_padding
    assert (list(method.parameters()) != []) == bool(among or terms & {"feature", "cos"})

    features = examples()
    if not needs.teacher_logits:  # as a stored teacher hands them out
        features = features.changed(teacher_logits=torch.empty(8, 0, dtype=torch.float64))
    assert run(method, features).terms.terms.keys() == terms


ZERO_OF_ANSWERS: list[tuple[dict[str, Any], set[str], set[str]]] = [
    ({"name": "pkd", "beta": 0}, {"hard", "soft"}, set()),
    ({"name": "pkd", "alpha": 1}, {"hard", "patience"}, {"first.2", "first.3"}),
    ({"name": "rkd", "distance_weight": 0, "angle_weight": 0}, {"hard", "soft"}, set()),
    ({"name": "rkd", "alpha": 1, "distance_weight": 0}, {"hard", "angle"}, {"cls.5"}),
    ({"name": "rkd", "angle_weight": 0, "features": "logits"}, {"hard", "soft", "distance"}, set()),
    ({"name": "dist", "beta": 0}, {"hard", "intra"}, set()),
    ({"name": "dist", "gamma": 0}, {"hard", "inter"}, set()),
    ({"name": "dkd", "alpha_d": 0}, {"hard", "nckd"}, set()),
    ({"name": "dkd", "beta_d": 0}, {"hard", "tckd"}, set()),
    ({"name": "sinkd", "beta": 0}, {"hard", "soft"}, set()),
    ({"name": "sinkd", "alpha": 1}, {"hard", "sinkhorn"}, set()),
]


@pytest.mark.parametrize(
    ("options", "terms", "reduced"), ZERO_OF_ANSWERS, ids=[str(options) for options, _, _ in ZERO_OF_ANSWERS]
)
def test_a_term_of_answers_of_weight_0_needs_nothing_and_is_not_there(
    options: dict[str, Any], terms: set[str], reduced: set[str]
) -> None:
    method = make_method(options)
    needs = method.needs(method.options, MODELS)
    assert {quantity.name for quantity in needs.reduced} == reduced
    assert bool(needs.student_hidden) == bool(reduced)
    assert needs.teacher_logits == (not {"soft", "inter", "intra", "tckd", "nckd", "sinkhorn"}.isdisjoint(terms))
    assert bool(needs.compares_examples) == (not {"distance", "angle", "intra", "sinkhorn"}.isdisjoint(terms))
    features = examples()
    if not needs.teacher_logits:
        features = features.changed(teacher_logits=torch.empty(8, 0, dtype=torch.float64))
    assert run(method, features).terms.terms.keys() == terms


@pytest.mark.parametrize(
    "options",
    [
        {"name": "kd", "alpha": 1},
        {"name": "multi-kd", "alpha": 1},
        {"name": "ics", "alpha": 1, "beta": 0},
        {"name": "ics", "alpha_soft": 0, "beta": 0},
        {"name": "cka-i", "alpha": 1, "beta": 0},
        {"name": "cka-l", "alpha": 1, "beta": 0},
        {"name": "cka-g", "alpha": 1, "beta": 0},
        {"name": "cka-il", "alpha": 1, "epsilon": 0},
        {"name": "cka-ilg", "alpha": 1, "epsilon": 0},
        {"name": "pkd", "alpha": 1, "beta": 0},
        {"name": "pkd", "alpha": 1, "variant": "original"},
        {"name": "rkd", "alpha": 1, "distance_weight": 0, "angle_weight": 0},
        {"name": "dist", "beta": 0, "gamma": 0},
        {"name": "dkd", "alpha_d": 0, "beta_d": 0},
        {"name": "sinkd", "alpha": 1, "beta": 0},
        {"name": "distilbert", "alpha": 1, "cos_weight": 0},
        {"name": "mgskd", "alpha": 1, "token_weight": 0, "sample_weight": 0},
        {"name": "ckd", "alpha": 1, **dict.fromkeys(RELATIONS, 0)},
        {"name": "ad-kd", "alpha": 1, "beta": 0},
    ],
    ids=str,
)
def test_without_a_weight_for_the_teacher_no_teacher_is_read(options: dict[str, Any]) -> None:
    chosen = get_method(options["name"])
    made = chosen.Options.model_validate(options)
    alone = Models(student=Shape(1, 4), teachers=())  # a single layer: no pair would fit
    assert chosen.needs(made, alone) == chosen.needs(made, None) == Needs()
    method = make_method(options, alone)
    assert made.warnings(Context(alone, method.head, 8)) == []
    features = examples()
    batch = batch_of(features.labels)
    terms = method(Outputs(features.student_logits, mask=batch.attention_mask), [], batch)
    assert terms.terms.keys() == {"hard"}


@pytest.mark.parametrize("options", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_original_reads_padding_and_corrected_does_not(options: dict[str, Any]) -> None:
    equal = Models(student=Shape(3, 6, 2, 3), teachers=(Shape(6, 6, 2, 3),))
    chosen = get_method(options["name"])
    for variant in ("corrected", "original"):
        made = chosen.Options.model_validate({**options, "variant": variant})
        published = options["name"].startswith(("ics", "cka", "ckd", "tinybert")) or options.get("features") == "flat"
        assert chosen.needs(made, equal).reads_padding == (variant == "original" and published)


def test_a_term_that_is_no_mean_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch\.mean"):
        LossTerms().add("mine", torch.ones(3), 1.0)


WITH_LABELS: dict[str, dict[str, Any]] = {
    **METHODS,
    **{name: {"name": name} for name in ("kd", "multi-kd", "finetune")},
    **{name: {"name": "tinybert", "stage": "prediction"} for name in METHODS if name.startswith("tinybert")},
}
# Of plain text, which has no classes; and those that need models: for them see tests/training/test_attributions.py and
# test_held_models.py.
WITHOUT = {"ve-kd", "hidden", "distilbert-mlm", "ad-kd", "theseus", "reptile"}


@pytest.mark.parametrize("options", WITH_LABELS.values(), ids=WITH_LABELS.keys())
@pytest.mark.parametrize(
    "changes", [{"class_weights": (0.5, 3.0, 2.0, 1.0, 1.0)}, {"label_smoothing": 0.2}], ids=["weights", "smoothing"]
)
def test_weights_of_classes_and_smoothing_change_the_hard_term_and_no_other(
    options: dict[str, Any], changes: dict[str, Any]
) -> None:
    head = SingleLabel(tuple("abcde"))
    assert {one["name"] for one in WITH_LABELS.values()} == {*all_methods()} - WITHOUT
    plain, changed = (run(make_method(options, head=one), examples()).terms for one in (head, replace(head, **changes)))
    assert plain.weights == changed.weights
    assert {name for name, value in plain.terms.items() if not torch.equal(value, changed.terms[name])} == {"hard"}
