"""The method that docs/methods.md adds step by step, proved as that page says."""

from __future__ import annotations

import pytest
import torch

from conftest import ROOT
from feature_cases import assert_same, examples, make_method, run
from kdbert import methods as registry


def test_it_is_what_its_formula_says_whatever_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "plugins", {})  # other tests do not have it
    registry.load_plugin(ROOT / "examples" / "plugins" / "hint.py")
    features = examples()
    method = make_method({"name": "hint", "beta": 0.5, "layer_map": "5:3,2:1"})
    by_pair = []
    for project, (teacher_layer, student_layer) in zip(method.projections, [(5, 3), (2, 1)], strict=True):
        errors = [
            (project(own[student_layer]) - other[teacher_layer]).square().mean(1) / 2
            for own, other in zip(features.student, features.teacher, strict=True)
        ]
        by_pair.append(torch.cat(errors).mean().detach())
    seen = run(method, features)
    torch.testing.assert_close(seen.terms.terms["hint"], torch.stack(by_pair).mean())
    assert seen.terms.weights == {"hard": 0.5, "soft": 0.5, "hint": 0.5}
    assert seen.padding == 0
    assert_same(run(method, features, extra=16), seen)
