"""The task readers see the examples that the published GLUE processors see (METHODS.md section 7)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from golden_cases import GOLDEN, OURS, cases, must_have

from kdbert.tasks import get_task

FAMILIES = ("glue_processors",)
TASKS = {"sst-2": "sst2", "sts-b": "stsb", "mnli-mm": "mnli"}  # the originals' names that are not ours
DEV_SPLITS = {"mnli": "dev_matched", "mnli-mm": "dev_mismatched"}  # elsewhere it is `dev`


def tables() -> list[Any]:
    """Every case of every file of this family."""
    files = [case.values[0]["file"] for case in cases(*FAMILIES)]
    found = [case for file in files for case in json.loads((GOLDEN / file).read_text(encoding="utf-8"))["cases"]]
    return [pytest.param(case, id=case["task"]) for case in found]


@pytest.mark.parametrize("case", tables())
def test_examples_are_the_originals(case: dict[str, Any], tmp_path: Path) -> None:
    spec = get_task(TASKS.get(case["task"], case["task"]))
    for name, text in case["files"].items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert spec.kind == ("regression" if case["output_mode"] == "regression" else "single_label")
    assert list(spec.labels) == [label for label in case["label_list"] if label is not None]
    assert spec.head.outputs == len(case["label_list"])

    for split, expected in case["expected"].items():
        name = DEV_SPLITS.get(case["task"], "dev") if split == "dev" else split
        examples = spec.load(name, str(tmp_path))
        assert examples.text_a == [row["text_a"] for row in expected]
        assert (examples.text_b or [None] * len(examples)) == [row["text_b"] for row in expected]
        path = spec.path(name, str(tmp_path))
        assert path is not None
        assert [row.label for row in spec.splits[name].read(path)] == [row["label"] for row in expected]
        assert examples.labels is not None
        if spec.kind == "regression":
            assert examples.labels.tolist() == pytest.approx([float(row["label"]) for row in expected], rel=1e-6)
        else:
            assert [spec.labels[number] for number in examples.labels] == [row["label"] for row in expected]
        # Of a guid such as `dev_matched-7` only the number names the row. Its prefix is a quirk of the originals:
        # mismatched MNLI and QNLI say `dev_matched` too.
        assert examples.ids == [row["guid"].rsplit("-", 1)[1] for row in expected]


def test_the_family_has_cases(golden_dir: Path) -> None:
    must_have(golden_dir, *FAMILIES)
    if GOLDEN.resolve() == OURS.resolve():
        known = {"cola", "mnli", "mnli-mm", "mrpc", "sst-2", "sts-b", "qqp", "qnli", "rte", "wnli"}
        assert known <= {case.values[0]["task"] for case in tables()}
