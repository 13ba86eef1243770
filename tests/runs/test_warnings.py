"""What is refused, or said before training, because it would teach nothing: --dry-run shows it, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbert.heads import SingleLabel
from kdbert.methods import Context, Models, Shape, get_method
from kdbert.runs.job import Job
from kdbert.runs.plan import plan
from small_run import Setting

NONE_LEFT = {
    "mgskd": {"method.prediction": 0, "method.sample_weight": 0, "method.token_weight": 0},
    "dist": {"method.hard_weight": 0, "method.beta": 0, "method.gamma": 0},
    "dkd": {"method.hard_weight": 0, "method.alpha_d": 0},  # of two classes beta_d teaches nothing
}
UNUSED = {
    "even window": ("ckd", {"method.window": 20}),
    "normalize": ("ckd", {"method.normalize": True}),
    "layers of logits": ("rkd", {"method.features": "logits", "method.layer_map": "4:2"}),
    "growth of a constant": ("theseus", {"method.schedule": "constant", "method.replacing_k": 0.1}),
    "part of a step": ("theseus", {"method.full_at": 1.5}),
    "two followers": ("reptile", {"method.layer_map": "1:1,1:2"}),
}


def dry(setting: Setting, kdbert: Callable[..., Any], tmp_path: Path, method: str, **keys: Any) -> Any:
    keys = {"student.model": None} | keys if method in ("theseus", "reptile") else keys
    return kdbert(*setting.words(tmp_path / "run", **{"method.name": method, **keys}), "--dry-run")


@pytest.mark.parametrize("method", NONE_LEFT)
def test_a_recipe_that_leaves_nothing_to_learn_is_refused(
    method: str, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    refused = dry(setting, kdbert, tmp_path, method, **NONE_LEFT[method])
    assert refused.code == 2
    assert next(iter(NONE_LEFT[method])).removeprefix("method.") in refused.err


@pytest.mark.parametrize("case", UNUSED)
def test_an_option_that_would_not_be_used_is_refused(
    case: str, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    method, keys = UNUSED[case]
    refused = dry(setting, kdbert, tmp_path, method, **keys)
    assert refused.code == 2, refused.out
    assert len(refused.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("method", "keys", "told"),
    [
        ("theseus", {"max_steps": 5, "method.full_at": 2500}, "never trained alone"),
        ("theseus", {"max_steps": 5, "method.variant": "original"}, "never trained alone"),
        ("theseus", {"max_steps": 5}, ""),
        ("theseus", {"max_steps": 5, "method.full_at": 1}, ""),
        ("ckd", {"method.layer_map": "0:0,4:2"}, "layer_distance and layer_angle need 3"),
        ("ckd", {"method.layer_map": "0:0,4:2", "method.distance_error": "l2"}, "layer_angle needs 3"),
        ("ckd", {}, ""),
        ("mgskd", {"method.token_layers": 9}, "sample_weight has no effect"),
        ("mgskd", {"method.prediction": 0}, "nothing trains the student's head"),
        ("mgskd", {"batch_size": 2}, "compares 3 examples or more"),
        ("rkd", {"batch_size": 1}, "compares 2 examples or more"),
        ("rkd", {}, ""),
        ("minilm", {"method.kd": 0}, "nothing trains the student's head"),
        ("dist", {"method.gamma": 0}, "what teaches is the hard loss"),
    ],
)
def test_what_teaches_nothing_is_said_before(
    method: str, keys: dict[str, Any], told: str, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    done = dry(setting, kdbert, tmp_path, method, **keys)
    assert done.code == 0, done.err
    words = "teaches nothing", "never trained", "no effect", "nothing trains", "nothing is learned", "what teaches"
    assert told in done.out
    assert bool(told) == any(word in done.out for word in words)


@pytest.mark.parametrize(("batch_size", "code"), [(101, 2), (1, 2), (100, 0), (16, 0)])
def test_a_published_term_that_is_nan_for_the_last_batch_is_refused(
    batch_size: int, code: int, setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    """Of 203 rows the last batch of 101 has one; with corrected there is no such thing."""
    done = dry(setting, kdbert, tmp_path, "rkd", **{"method.variant": "original", "batch_size": batch_size})
    assert done.code == code, done.err
    assert ("--variant corrected" in done.err) == bool(code)
    assert dry(setting, kdbert, tmp_path, "rkd", batch_size=batch_size).code == 0


def test_ad_kd_takes_rows_without_a_label_where_it_looks_at_every_class() -> None:
    ad_kd, two, three = get_method("ad-kd"), SingleLabel(("a", "b")), SingleLabel(("a", "b", "c"))
    found = [
        ad_kd.takes_unlabelled(ad_kd.Options(name="ad-kd", **{"views": views} if views else {}), head)
        for views in (None, "label", "classes")
        for head in (two, three)
    ]
    assert found == [False, True, False, False, True, True]


def test_theseus_takes_one_as_the_whole_run() -> None:
    options = get_method("theseus").Options
    whole, half = (options(name="theseus", full_at=share, replacing_rate=0.2) for share in (1.0, 0.5))
    assert [whole.rate(step, step / 100) for step in (0, 50)] == pytest.approx([0.2, 0.6])
    assert [half.rate(step, step / 100) for step in (25, 50)] == pytest.approx([0.6, 1.0])


def test_on_plain_text_the_methods_that_fit_are_named(
    kdbert: Callable[..., Any], tiny_bert: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("the good film\n" * 50, encoding="utf-8")
    done = kdbert("distill", "--corpus", tmp_path / "a.txt", "--method", "pkd", "--teacher", tiny_bert)
    assert done.code == 2
    assert all(name in done.err for name in ("hidden", "minilm", "tinybert", "distilbert-mlm", "ve-kd"))


def test_theseus_cannot_take_the_place_of_a_file(kdbert: Callable[..., Any], setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "soft.jsonl").write_text('{"text": "a", "logits": {"negative": 1, "positive": 0}}\n', encoding="utf-8")
    files = ("--task", "custom", "--train-file", setting.train, "--dev-file", setting.dev)
    done = kdbert("distill", *files, "--method", "theseus", "--teacher", tmp_path / "soft.jsonl")
    assert done.code == 2
    assert "--student" not in done.err


@pytest.mark.parametrize(
    ("classes", "unlabelled", "options", "told"),
    [
        (150, 0.9, {}, True),
        (150, 0.3, {}, False),
        (20, 0.9, {}, False),
        (150, 0.9, {"temperature": 1}, False),
        (150, 0.9, {"alpha": 1}, False),
        (150, 0.9, {"standardise_logits": True}, False),
    ],
)
def test_even_soft_labels_are_said_where_rows_have_nothing_else(
    classes: int, unlabelled: float, options: dict[str, Any], told: bool
) -> None:
    head = SingleLabel(tuple(map(str, range(classes))))
    context = Context(models=Models(Shape(3, 24), (Shape(6, 24),)), head=head, batch_size=8, unlabelled=unlabelled)
    found = get_method("kd").Options(name="kd", **options).warnings(context)
    assert [f"{classes} classes" in sentence for sentence in found] == [True] * told


@pytest.mark.parametrize(
    ("keys", "share"),
    [
        ({}, 0.0),
        ({"task.labelled_share": 0.25}, 0.75),
        ({"task.labelled_share": 0.25, "unlabelled_share": 0.5}, 0.5),
        ({"task.labelled_share": 0.25, "unlabelled_share": 0}, 0.0),
    ],
)
def test_a_method_is_told_how_many_rows_have_no_label(
    keys: dict[str, Any], share: float, setting: Setting, tmp_path: Path
) -> None:
    *_, job = plan(setting.recipe(tmp_path / "run", **keys))
    assert isinstance(job, Job)
    assert job.context.unlabelled == pytest.approx(share, abs=0.01)
