"""The embedded quickstart task: customer-service requests in 16 intents, written for kdbert (CC0)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import resources
from pathlib import Path

from kdbert.data.examples import RawExample
from kdbert.data.files import read_lines
from kdbert.errors import UserError
from kdbert.tasks.spec import Split, TaskSpec, counts

LABELS = (
    "block_card", "book_ticket", "cancel_booking", "change_booking", "change_delivery", "dispute_charge",
    "explain_bill", "meter_reading", "move_house", "payment_plan", "raise_limit", "refund_status",
    "replace_card", "report_missing", "return_item", "track_parcel",
)  # fmt: skip


def read_quickstart(path: Path, split: str) -> Iterator[RawExample]:
    """Rows of `quickstart.tsv` (columns split, intent, sentence) that belong to `split`."""
    for number, line in read_lines(path):
        cells = line.split("\t")
        if number == 1:
            continue
        if len(cells) != 3:
            raise UserError(f"{path}, line {number}: expected split, intent, sentence")
        if cells[0] == split:
            yield RawExample(f"{split}-{number}", cells[2], None, cells[1], f"line {number}")


PLACE = Path(str(resources.files("kdbert.tasks").joinpath("quickstart.tsv")))
QUICKSTART = TaskSpec(
    name="quickstart",
    title="Customer-service requests in 16 intents with near misses (made for kdbert)",
    kind="single_label",
    labels=LABELS,
    metrics=("accuracy", "macro_f1"),
    splits={name: Split((), partial(read_quickstart, split=name), place=PLACE) for name in ("train", "dev", "test")},
    rows=counts(896, 224, 320),
    max_length=64,
    # Small data and a small model want higher rates than the published GLUE scripts'.
    defaults={
        "train.epochs": 8, "train.learning_rate": 3e-4, "train.warmup": 0.1,
        "teacher_training.epochs": 6, "teacher_training.learning_rate": 2e-4,
    },
    licence="CC0-1.0",
    source="shipped with kdbert",
)  # fmt: skip

TASKS = (QUICKSTART,)
