"""CLINC150, configuration plus, from the authors' JSON file."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from kdbert.errors import UserError
from kdbert.tasks import get_task

PARTS = {"train": ("train", "oos_train"), "dev": ("val", "oos_val"), "test": ("test", "oos_test")}


def test_the_151_labels_end_with_out_of_scope() -> None:
    spec = get_task("clinc150")
    assert spec.head.outputs == len(spec.labels) == len(set(spec.labels)) == 151
    assert spec.labels.index("oos") == 150
    assert get_task("clinc_oos") is spec


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("split", "rows", "outside"), [("train", 15250, 250), ("dev", 3100, 100), ("test", 5500, 1000)]
)
def test_every_split_equals_the_published_lists(data_dir: Path, split: str, rows: int, outside: int) -> None:
    spec = get_task("clinc150")
    examples = spec.load(split, str(data_dir))
    with gzip.open(data_dir / "clinc150" / "data_oos_plus.json.gz", "rt", encoding="utf-8") as file:
        content = json.load(file)
    expected = [entry for part in PARTS[split] for entry in content[part]]
    assert len(examples) == rows == spec.rows[split]
    assert examples.labels is not None
    assert list(zip(examples.text_a, (spec.labels[i] for i in examples.labels), strict=True)) == [
        tuple(entry) for entry in expected
    ]
    counts = Counter(examples.labels.tolist())
    assert counts[150] == outside
    assert len(counts) == 151
    assert {count for label, count in counts.items() if label != 150} == {(rows - outside) // 150}
    assert len(set(examples.ids)) == rows


@pytest.mark.real_data
def test_the_labels_are_the_intents_of_the_domain_list(data_dir: Path) -> None:
    domains = json.loads((data_dir / "clinc150" / "domains.json").read_text(encoding="utf-8"))
    intents = {intent for names in domains.values() for intent in names}
    assert set(get_task("clinc150").labels) == intents | {"oos"}


@pytest.mark.real_data
def test_the_folder_itself_may_be_named_and_the_file_unpacked(data_dir: Path, tmp_path: Path) -> None:
    spec = get_task("clinc150")
    packed = data_dir / "clinc150" / "data_oos_plus.json.gz"
    with gzip.open(packed) as source, open(tmp_path / "data_oos_plus.json", "wb") as target:
        shutil.copyfileobj(source, target)
    whole = spec.load("dev", str(data_dir)).fingerprint()
    assert spec.load("dev", str(data_dir / "clinc150")).fingerprint() == whole
    assert spec.load("dev", str(tmp_path)).fingerprint() == whole


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"val": [["hello", "greeting"', "not valid JSON"),
        ('{"train": []}', "no list 'val'"),
        ('{"val": [["hello", "greeting"], ["half"]]}', r"val\[1\]: expected \[text, intent\]"),
        ('{"val": [["hello", "gretting"]], "oos_val": []}', r"val\[0\]: label 'gretting'.*did you mean 'greeting'"),
    ],
)
def test_a_faulty_file_is_refused_with_its_place(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "data_oos_plus.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=told):
        get_task("clinc150").load("dev", str(tmp_path))
