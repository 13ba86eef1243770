"""The parts of a result table: cells, differences, rows, the table itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdbert.metrics import better
from kdbert.reporting.collect import Run
from kdbert.reporting.published import PublishedRow
from kdbert.reporting.statistics import Summary, summarise

ROUNDING = 1e-9  # of a mean over seeds


@dataclass(frozen=True)
class ResultCell:
    """The runs of one row and column."""

    split: str = ""
    metric: str = ""
    scores: Mapping[int, float] = field(default_factory=dict)  # of the finished runs, by seed
    runs: Mapping[int, Run] = field(default_factory=dict)  # of these scores; empty for an average over tasks
    diverged: int = 0
    unfinished: int = 0
    dev_chose: bool = False  # the epoch of some of the runs
    constant: float | None = None  # what the best constant answer reaches; None where that is not known
    same: Mapping[int, str] = field(default_factory=dict)  # the only answer of those runs that give only one, by seed

    @property
    def summary(self) -> Summary | None:
        """Mean, spread and n; None without a finished run."""
        return summarise(self.scores) if self.scores else None

    @property
    def beats_constant(self) -> bool:
        """Whether the mean is better than the constant answer (True where that is not known)."""
        if self.summary is None or self.constant is None:
            return True
        mean = self.summary.mean
        return better(self.metric, mean, self.constant) and abs(mean - self.constant) > ROUNDING


@dataclass(frozen=True)
class Difference:
    """A cell against the baseline's cell of the same column, over the seeds that both have."""

    summary: Summary
    p: float | None  # of a paired t-test over seeds; None where it is undefined
    interval: tuple[float, float] | None  # over examples; None where predictions are missing or do not fit
    besides: Mapping[str, str]  # the other keys in which the two differ, with both values: "1e-3, not 5e-5"


@dataclass(frozen=True)
class ResultRow:
    """A row of the table; cells and differences by column, missing where there is none."""

    labels: tuple[str, ...]  # one for each leading column
    name: str  # the first label, and what tells the row from others that have it: "kd, lr 1e-4"
    cells: Mapping[str, ResultCell]
    teacher: bool = False  # of other rows' students, so it takes no part in the comparison
    differences: Mapping[str, Difference] = field(default_factory=dict)
    baseline: str | None = None  # name of the row that it is compared with


@dataclass(frozen=True)
class ResultTable:
    """Everything that a format writes."""

    keys: tuple[str, ...]  # headings of the leading columns
    columns: tuple[str, ...]
    headings: Mapping[str, str]  # of a column: "split metric" if its cells share them; what an average is of; or ""
    rows: tuple[ResultRow, ...]
    averages: frozenset[str] = frozenset()  # the columns that are averages over others
    best: frozenset[tuple[int, str]] = frozenset()  # (row number, column) of the best means among comparable rows
    published: tuple[PublishedRow, ...] = ()
    notes: tuple[str, ...] = ()
    baseline: str | None = None
    runs: tuple[Run, ...] = ()  # all that were found, teachers too
    broken: Mapping[Path, str] = field(default_factory=dict)  # run folders, and what is wrong with them
