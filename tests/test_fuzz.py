"""No reader of a file ends in an exception that nobody explains, whatever stands in the file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from fuzzing import fuzz, targets
from kdbert.models.load import load_tokenizer
from kdbert.models.locate import locate

NAMES = (
    "recipe", "sets", "csv", "csv.gz", "tsv", "json lines", "parquet", "glue tsv", "tagged", "multi-label",
    "clinc", "corpus", "vocabulary", "memory", "teacher's outputs", "weights of a checkpoint", "state of a checkpoint",
    "manifest of a checkpoint", "run", "predictions", "log", "benchmark", "expansion", "archive",
)  # fmt: skip
NEVER = {"expansion"}  # its files are not there, so that it is always refused
# Never refused: what is damaged is made again, the checkpoint before it is taken, a line of a log is left out.
WITH_ANOTHER = {name for name in NAMES if "checkpoint" in name or "outputs" in name or name == "log"}


@pytest.fixture(scope="module")
def known(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The readers."""
    return targets(tmp_path_factory.mktemp("samples"), load_tokenizer(locate(str(tiny_bert))))


def test_there_are_20000_inputs(known: dict[str, Any]) -> None:
    assert set(known) == set(NAMES)
    assert sum(target.count for target in known.values()) >= 20_000


@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.long), 20], ids=["all", "a twentieth"])
@pytest.mark.parametrize("name", NAMES)
def test_a_reader_takes_its_file_or_says_why_not(
    known: dict[str, Any], name: str, share: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="kdbert")
    count = known[name].count // share
    taken = fuzz(known[name], tmp_path, count)
    if name in WITH_ANOTHER:
        assert taken == count
    else:  # both happen, so that neither is the answer to everything
        assert taken < count
        assert taken > 0 or name in NEVER or share > 1  # of a few, all may be wrong
