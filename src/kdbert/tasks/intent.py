"""Intent classification.

CLINC150: Larson et al., EMNLP 2019, https://github.com/clinc/oos-eval. MASSIVE: FitzGerald et al., ACL 2023,
https://github.com/alexa/massive.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from kdbert.data.data_file import cell_text, open_data_file
from kdbert.data.examples import RawExample
from kdbert.data.files import read_lines
from kdbert.disk.sealed import parse_json
from kdbert.errors import UserError
from kdbert.tasks.readers import label_file, read_columns
from kdbert.tasks.spec import Split, TaskSpec, counts


def read_clinc(path: Path, parts: tuple[str, ...]) -> Iterator[RawExample]:
    """Rows of a `data_*.json` file: the lists named by `parts`, one after the other."""
    try:
        content = parse_json("\n".join(line for _, line in read_lines(path)))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); is the file truncated?") from None
    for part in parts:
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"{path}: no list {part!r}; it is not a CLINC150 data_*.json file")
        for number, entry in enumerate(content[part]):
            if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(x, str) for x in entry)):
                raise UserError(f"{path}, {part}[{number}]: expected [text, intent]")
            yield RawExample(f"{part}-{number}", entry[0], None, entry[1], f"{part}[{number}]")


def _clinc(name: str, file: str, rows: int, title: str) -> TaskSpec:
    """CLINC150; out of scope is a class of its own, the last."""
    parts = {"train": ("train", "oos_train"), "dev": ("val", "oos_val"), "test": ("test", "oos_test")}
    return TaskSpec(
        name=name,
        title=f"CLINC150 intents with out-of-scope queries ({title})",
        kind="single_label",
        labels=label_file("clinc150_labels.txt"),
        metrics=("accuracy", "in_scope_accuracy", "out_of_scope_recall"),
        splits={split: Split((file,), partial(read_clinc, parts=lists)) for split, lists in parts.items()},
        folder="clinc150",
        rows=counts(rows, 3100, 5500),
        max_length=64,
        licence="CC BY 3.0",
        source=f"https://github.com/clinc/oos-eval/blob/master/data/{file}",
    )


def read_massive(path: Path, partition: str) -> Iterator[RawExample]:
    """Rows of MASSIVE: a file of one split with `text` and `label_text`, or the authors' with all partitions."""
    table = open_data_file(path)
    if "partition" not in table.columns:
        yield from read_columns(path, ("text",), label="label_text")
        return
    for place, record in table.rows():
        if record.get("partition") == partition:
            text, label = cell_text(record, "utt", f"{path}, {place}"), record.get("intent")
            yield RawExample(str(record.get("id", place)), text, None, None if label is None else str(label), place)


# Of the data set's version 1.1 (1.0 has all but ca-ES).
LOCALES = (
    "af-ZA am-ET ar-SA az-AZ bn-BD ca-ES cy-GB da-DK de-DE el-GR en-US es-ES fa-IR fi-FI fr-FR he-IL hi-IN hu-HU "
    "hy-AM id-ID is-IS it-IT ja-JP jv-ID ka-GE km-KH kn-IN ko-KR lv-LV ml-IN mn-MN ms-MY my-MM nb-NO nl-NL pl-PL "
    "pt-PT ro-RO ru-RU sl-SL sq-AL sv-SE sw-KE ta-IN te-IN th-TH tl-PH tr-TR ur-PK vi-VN zh-CN zh-TW"
).split()


def _massive(name: str, locale: str) -> TaskSpec:
    """MASSIVE of one locale: the same utterances in every one."""
    parts = {"train": ("train.jsonl", "train"), "dev": ("validation.jsonl", "dev"), "test": ("test.jsonl", "test")}
    return TaskSpec(
        name=name,
        title=f"MASSIVE intents, {locale}",
        kind="single_label",
        labels=label_file("massive_labels.txt"),
        metrics=("accuracy", "macro_f1", "weighted_f1"),
        splits={
            split: Split((file, f"{locale}.jsonl"), partial(read_massive, partition=partition))
            for split, (file, partition) in parts.items()
        },
        folder=f"massive_{locale}",
        rows=counts(11514, 2033, 2974),
        max_length=64,
        licence="CC BY 4.0",
        source="https://github.com/alexa/massive",
    )


TASKS = (
    _clinc("clinc150", "data_oos_plus.json", 15250, "plus: 250 training queries out of scope"),
    _clinc("clinc150-full", "data_full.json", 15100, "full: 100 training queries out of scope"),
    _clinc("clinc150-small", "data_small.json", 7600, "small: 50 training queries an intent"),
    _clinc("clinc150-imbalanced", "data_imbalanced.json", 10625, "imbalanced: 25 to 100 training queries an intent"),
    _massive("massive", "en-US"),
)
# Not shown in lists.
MORE = tuple(_massive(f"massive-{locale.lower()}", locale) for locale in LOCALES if locale != "en-US")
ALIASES = {**dict.fromkeys(("clinc", "clinc_oos", "clinc150-plus"), "clinc150"), "massive-en-us": "massive"}
