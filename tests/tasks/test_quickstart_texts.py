"""The texts without labels that the quickstart teaches on."""

from __future__ import annotations

import re

from conftest import ROOT
from kdbert.tasks import get_task


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


def test_no_text_without_a_label_is_one_of_dev_or_test_or_nearly() -> None:
    """So that what is learned of them says something about texts that nobody has seen."""
    task = get_task("quickstart")
    texts = (ROOT / "configs/quickstart/unlabelled.txt").read_text(encoding="utf-8").splitlines()
    new = [words(text) for text in texts]
    assert len(texts) == len({*new}) == 2100
    for split in ("dev", "test"):
        for held in map(words, task.load(split, None).text_a):
            assert max(len(text & held) / len(text | held) for text in new) < 0.8, held
