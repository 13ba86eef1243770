"""The task readers see the examples that the published GLUE processors see (docs/quirks.md, 7)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden_cases import Case, Values, golden

from kdbert.tasks import TaskSpec, get_task

TASKS = {"sst-2": "sst2", "sts-b": "stsb", "mnli-mm": "mnli"}  # the originals' names that are not ours
DEV_SPLITS = {"mnli": "dev_matched", "mnli-mm": "dev_mismatched"}  # elsewhere it is `dev`


@golden("glue_processors")
def test_examples_are_the_originals(case: Case) -> Iterator[Values]:
    for task, table in case.inputs.items():
        spec = get_task(TASKS.get(task, task))
        assert spec.kind == ("regression" if table["output_mode"] == "regression" else "single_label")
        assert list(spec.labels) == [label for label in table["label_list"] if label is not None]
        assert spec.head.outputs == len(table["label_list"])
        with tempfile.TemporaryDirectory() as folder:
            for name, text in table["files"].items():
                Path(folder, name).write_text(text, encoding="utf-8", newline="")
            for split in table["expected"]:
                name = DEV_SPLITS.get(task, "dev") if split == "dev" else split
                yield {f"{task} {split}": examples_of(spec, name, folder, table["expected"][split])}


def examples_of(spec: TaskSpec, split: str, folder: str, expected: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A split's examples as the originals write them down.

    Of a guid such as `dev_matched-7` only the number names the row. Its prefix, a quirk of the originals (mismatched
    MNLI and QNLI say `dev_matched` too), is taken from the expected row.
    """
    examples = spec.load(split, folder)
    path = spec.path(split, folder)
    assert path is not None
    labels = [row.label for row in spec.splits[split].read(path)]
    assert examples.labels is not None
    if spec.kind == "regression":
        assert examples.labels.tolist() == pytest.approx([float(label) for label in labels], rel=1e-6)
    else:
        assert [spec.labels[number] for number in examples.labels] == labels
    prefixes = [row["guid"].rsplit("-", 1)[0] for row in expected]
    columns = zip(
        prefixes, examples.ids, examples.text_a, examples.text_b or [None] * len(examples), labels, strict=True
    )
    return [{"guid": f"{p}-{i}", "text_a": a, "text_b": b, "label": label} for p, i, a, b, label in columns]
