"""Intent classification: CLINC150 (Larson et al., EMNLP 2019, https://github.com/clinc/oos-eval)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from importlib import resources
from pathlib import Path

from kdbert.data.examples import Row
from kdbert.data.files import read_text
from kdbert.errors import UserError
from kdbert.tasks.spec import Split, TaskSpec

OUT_OF_SCOPE = "oos"


def read_clinc(path: Path, parts: tuple[str, ...]) -> Iterator[Row]:
    """Rows of a `data_*.json` file: the lists named by `parts`, one after the other."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON (is the file truncated?)") from None
    for part in parts:
        if not isinstance(content, dict) or part not in content:
            raise UserError(f"{path}: no list {part!r}; it is not a CLINC150 data_*.json file")
        for number, entry in enumerate(content[part]):
            if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(x, str) for x in entry)):
                raise UserError(f"{path}, {part}[{number}]: expected [text, intent]")
            yield Row(f"{part}-{number}", entry[0], None, entry[1], f"{part}[{number}]")


def _clinc_labels() -> tuple[str, ...]:
    text = resources.files("kdbert.tasks").joinpath("clinc150_labels.txt").read_text(encoding="utf-8")
    return tuple(text.split())


def _clinc(file: str, *parts: str) -> Split:
    return Split((file, f"clinc150/{file}"), partial(read_clinc, parts=parts))


# The configuration "plus" has 250 out-of-scope training queries; out of scope is a class of its own.
CLINC150 = TaskSpec(
    name="clinc150",
    title="CLINC150 intents with out-of-scope queries (configuration plus)",
    kind="single_label",
    labels=_clinc_labels(),
    metrics=("accuracy", "in_scope_accuracy", "out_of_scope_recall"),
    splits={
        "train": _clinc("data_oos_plus.json", "train", "oos_train"),
        "dev": _clinc("data_oos_plus.json", "val", "oos_val"),
        "test": _clinc("data_oos_plus.json", "test", "oos_test"),
    },
    folder="clinc150",
    rows={"train": 15250, "dev": 3100, "test": 5500},
    max_length=64,
    licence="CC BY 3.0",
    source="https://github.com/clinc/oos-eval/blob/master/data/data_oos_plus.json",
)

TASKS = (CLINC150,)
ALIASES = {"clinc": "clinc150", "clinc_oos": "clinc150"}
