"""Numbers that papers report, shown beside measured ones and never mixed with them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from importlib import resources

from kdbert.errors import UserError, near_miss

SOURCES = {
    "pkd": (
        "PKD: result files in the authors' repository (result/glue/result_summary), GLUE dev; a mean over runs, each "
        "the best of at most 4 epochs on dev; (?): their number is not stated"
    ),
    "minilm": "MiniLM: the authors' README, GLUE dev; (?): the number of runs is not stated",
    "distilbert": (
        "DistilBERT: the authors' README, GLUE dev; its MRPC and STS-B figures are left out, since it does not say of "
        "which metric they are; (?): the number of runs is not stated"
    ),
    "metadistil": (
        "MetaDistil: the authors' README, GLUE dev, their teacher and their 6-layer students that start from "
        "well-read ones; (?): the number of runs is not stated"
    ),
    "reptile": "ReptileDistil: the authors' README, 6-layer student; (?): the number of runs is not stated",
    "ics": (
        "ICS: results slide in the authors' repository (a picture), 6-layer students, the other systems as quoted "
        "there; GLUE dev; (?): the number of runs is not stated"
    ),
    "bert-and-friends": (
        "BERT-and-Friends: output cells of the authors' notebooks, seed 33, best-dev checkpoint, one run; DistilBERT "
        "on sst2: verified evaluation on its public model card"
    ),
    "clinc": (
        "CLINC report: NJIT report on CLINC-OOS plus and the same group's public model cards; one run each; with "
        "alpha = 1 the reported student is in effect fine-tuned without its teacher"
    ),
    "linkbert": (
        "LinkBERT: the authors' README, BLURB test; (?): the number of runs is not stated; VE-KD's own scores could "
        "not be obtained"
    ),
}
# A mean that our tables use, of two figures that papers report separately.
MEANS = {"accuracy_and_f1": ("f1", "accuracy"), "pearson_and_spearman": ("pearson", "spearman")}


@dataclass(frozen=True)
class PublishedCell:
    """What a paper reports where our table has a number."""

    value: Decimal | None  # in the column's own metric, with the digits of the paper; None where it reports only a part
    parts: Mapping[str, Decimal]  # by metric, where the column's is a mean of two that are reported separately
    n: str  # of runs; "?" where the paper does not say


@dataclass(frozen=True)
class PublishedRow:
    """A model of a paper: column label -> its number; a missing column is not available."""

    paper: str
    model: str
    cells: Mapping[str, PublishedCell]

    @property
    def label(self) -> str:
        return f"{self.paper}: {self.model}"


def published_rows(paper: str, wanted: Mapping[str, tuple[str, str, str]]) -> list[PublishedRow]:
    """Every model of a paper, with what it reports for the wanted columns.

    Args:
        paper: a key of `SOURCES`.
        wanted: column label -> task, split, metric.
    """
    if paper not in SOURCES:
        raise UserError(f"no published numbers of {paper!r}{near_miss(paper, SOURCES)} (known: {', '.join(SOURCES)})")
    table = resources.files("kdbert.reporting").joinpath("published.tsv").read_text(encoding="utf-8")
    reported: dict[str, dict[tuple[str, str, str], tuple[Decimal, str]]] = {}
    for line in csv.DictReader(table.splitlines(), delimiter="\t"):
        if line["paper"] == paper:
            place = line["task"], line["split"], line["metric"]
            reported.setdefault(line["model"], {})[place] = Decimal(line["value"]), line["n"]
    rows = []
    for model, numbers in reported.items():
        cells = {column: cell for column, place in wanted.items() if (cell := _cell(numbers, *place)) is not None}
        rows.append(PublishedRow(paper, model, cells))
    return rows


def _cell(
    numbers: Mapping[tuple[str, str, str], tuple[Decimal, str]], task: str, split: str, metric: str
) -> PublishedCell | None:
    if (task, split, metric) in numbers:
        value, n = numbers[task, split, metric]
        return PublishedCell(value, {}, n)
    parts = {part: numbers[task, split, part] for part in MEANS.get(metric, ()) if (task, split, part) in numbers}
    if not parts:
        return None
    values = {part: value for part, (value, _) in parts.items()}
    whole = sum(values.values(), Decimal(0)) / 2 if len(values) == 2 else None
    return PublishedCell(whole, values, next(iter(parts.values()))[1])
