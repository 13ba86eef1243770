"""Every registered task against the inventory of the data sets: rows and labels of each file that is there."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kdbert.data.examples import Examples
from kdbert.tasks import TaskSpec, get_task, task_names

# Split of a task -> its line of the inventory (data set, split).
FILES = {
    "clinc150": "clinc150/data_oos_plus",
    "clinc150-full": "clinc150/data_full",
    "clinc150-small": "clinc150/data_small",
    "clinc150-imbalanced": "clinc150/data_imbalanced",
    "massive": "massive_en-US",
    "emotion": "emotion",
    "tweeteval-emotion": "tweeteval/emotion",
    "tweeteval-hate": "tweeteval/hate",
    "tweeteval-offensive": "tweeteval/offensive",
    "hateval": "hateval2019",
    "abuseval-kinds": "abuseval",
    "pubmedqa": "blurb/seqcls/pubmedqa_hf",
    "bioasq": "blurb/seqcls/bioasq_hf",
    "hoc": "blurb/seqcls/HoC_hf",
    "chemprot": "blurb/seqcls/chemprot_hf",
    "ddi": "blurb/seqcls/DDI_hf",
    "gad": "blurb/seqcls/GAD_hf",
    "bc2gm": "blurb/tokcls/BC2GM_hf",
    "bc5cdr-chem": "blurb/tokcls/BC5CDR-chem_hf",
    "bc5cdr-disease": "blurb/tokcls/BC5CDR-disease_hf",
    "ncbi-disease": "blurb/tokcls/NCBI-disease_hf",
    "jnlpba": "blurb/tokcls/JNLPBA_hf",
    "ebm-pico": "blurb/tokcls/ebmnlp_hf",
}
WORDS = {"not-hate": "0", "hate": "1"}  # what hateval's file calls them


@pytest.fixture(scope="module")
def inventory(data_dir: Path) -> dict[tuple[str, str], dict[str, str]]:
    """(data set, split) -> its row of inventory.tsv."""
    with open(data_dir / "inventory.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = {"val": "dev", "validation": "dev", "train (HS)": "train", "dev (HS)": "dev", "test (HS)": "test"}
    return {(row["dataset"], names.get(row["split"], row["split"])): row for row in rows}


def counts(spec: TaskSpec, examples: Examples) -> Counter[str]:
    """How often each label occurs."""
    labels = examples.labels
    assert labels is not None
    if labels.dtype == bool:
        found = {str(number): int(count) for number, count in enumerate(labels.sum(0))}
        return Counter(found | {"none": int((~labels.any(1)).sum())})
    return Counter(spec.labels[number] for number in labels.tolist())


@pytest.mark.real_data
@pytest.mark.parametrize("task", FILES)
def test_rows_and_labels_are_those_of_the_inventory(
    task: str, data_dir: Path, inventory: dict[tuple[str, str], dict[str, str]]
) -> None:
    spec = get_task(task)
    total: Counter[str] = Counter()
    for split in spec.splits:
        expected = inventory.get((FILES[task], split))
        if spec.path(split, str(data_dir)) is None:
            assert expected is None, f"{task}: the {split} file is there and was not found"
            continue
        examples = spec.load(split, str(data_dir))
        assert len(examples) == spec.rows[split]
        assert len(set(examples.ids)) == len(examples)
        found = counts(spec, examples)
        if "abuseval" in task and split != "test":
            total += found
            continue
        assert expected is not None
        assert len(examples) == int(expected["rows"])
        _compare(found, expected["label_distribution"], task)
    if total:
        _compare(total, inventory["abuseval", "train"]["label_distribution"], task)


def _compare(found: Counter[str], told: str, task: str) -> None:
    """Against `a=3, b=4`, or `60 classes; min=4 max=810; top: a=810, …`."""
    if ";" in told:
        classes, spread, top = told.split("; ")
        assert len(found) == int(classes.split()[0])
        assert f"min={min(found.values())} max={max(found.values())}" == spread
        assert max(found.values()) == int(top.partition("=")[2].split(",")[0])
        return
    pairs = told.removeprefix("tags: ").removeprefix("multi-label, 10 positions: ").split(", ")
    expected = {
        name.split(":")[-1] if "tweeteval" in task else name: int(n) for name, n in (p.split("=") for p in pairs)
    }
    if task == "hateval":
        found = Counter({WORDS[name]: count for name, count in found.items()})
    assert dict(found) == expected


@pytest.mark.real_data
def test_held_out_parts_share_no_example_and_lose_none(data_dir: Path) -> None:
    for task, whole in (
        ("davidson", 24783),
        ("olid-a", 13240),
        ("abuseval", 13240),
        ("olid-b", 4400),
        ("olid-c", 3876),
    ):
        spec = get_task(task)
        parts = ["train", "dev", "test"] if task == "davidson" else ["train", "dev"]
        ids = [spec.load(split, str(data_dir)).ids for split in parts]
        assert sum(map(len, ids)) == whole == len(set().union(*ids))
        assert [len(part) for part in ids] == [spec.rows[split] for split in parts]
    offensive = get_task("olid-a").load("test", str(data_dir))
    assert offensive.labels is not None
    assert np.bincount(offensive.labels).tolist() == [620, 240]


@pytest.mark.real_data
def test_abuseval_from_the_authors_files_and_olid_equals_the_joined_one(data_dir: Path, tmp_path: Path) -> None:
    for folder, names in (
        ("abuseval", ("abuseval_offenseval_train.tsv.gz", "abuseval_offenseval_test.tsv")),
        ("olid", ("olid-training-v1.0.tsv.gz", "testset-levela.tsv.gz")),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes((data_dir / folder / name).read_bytes())
    spec = get_task("abuseval-kinds")
    for split in spec.splits:
        joined, ours = spec.load(split, str(data_dir)), spec.load(split, str(tmp_path))
        assert (ours.ids, ours.fingerprint()) == (joined.ids, joined.fingerprint())


def test_every_task_says_where_it_comes_from_and_what_may_be_done_with_it() -> None:
    for name in task_names():
        spec = get_task(name)
        assert spec.title, name
        assert spec.licence, name
        assert spec.source, name
        assert set(spec.rows) <= set(spec.splits), name
    slurs = {name for name in task_names() if get_task(name).warning}
    assert slurs == {
        "tweeteval-emotion", "tweeteval-hate", "tweeteval-offensive", "hateval", "olid-a", "olid-b", "olid-c",
        "abuseval", "abuseval-kinds", "davidson",
    }  # fmt: skip


def test_configurations_and_locales_have_names_of_their_own() -> None:
    assert get_task("clinc150/small").name == "clinc150-small"
    assert get_task("clinc150-plus") is get_task("clinc_oos") is get_task("clinc150")
    assert get_task("massive/en-US") is get_task("massive")
    assert get_task("massive/de-DE").folder == "massive_de-DE"
    assert "massive-de-de" not in task_names()
