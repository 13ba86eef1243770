"""The task readers see the examples that the published GLUE processors see (METHODS.md section 7)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kdbert.tasks import get_task

FAMILIES = ("glue_processors",)
GOLDEN = Path(os.environ.get("KDBERT_GOLDEN_DIR", Path(__file__).parents[2].parent / "shared" / "golden"))
TASKS = {"sst-2": "sst2", "sts-b": "stsb", "mnli-mm": "mnli"}  # the originals' names that are not ours
DEV_SPLITS = {"mnli": "dev_matched", "mnli-mm": "dev_mismatched"}  # elsewhere it is `dev`


def cases() -> list[dict[str, Any]]:
    """Every case of every file of this family; none where the manifest is not there."""
    manifest = GOLDEN / "manifest.json"
    if not manifest.is_file():
        return []
    found = json.loads(manifest.read_text(encoding="utf-8"))["cases"]
    files = [case["file"] for case in found if case["method"] in FAMILIES]
    return [case for file in files for case in json.loads((GOLDEN / file).read_text(encoding="utf-8"))["cases"]]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["task"]) for case in cases()])
def test_examples_are_the_originals(case: dict[str, Any], tmp_path: Path) -> None:
    spec = get_task(TASKS.get(case["task"], case["task"]))
    for name, text in case["files"].items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert spec.kind == ("regression" if case["output_mode"] == "regression" else "single_label")
    assert list(spec.labels) == [label for label in case["label_list"] if label is not None]
    assert spec.num_outputs == len(case["label_list"])

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
    assert golden_dir.resolve() == GOLDEN.resolve()
    assert {"cola", "mnli", "mnli-mm", "mrpc", "sst-2", "sts-b", "qqp", "qnli", "rte", "wnli"} <= {
        case["task"] for case in cases()
    }
