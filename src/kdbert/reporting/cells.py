"""The parts of a result table: cells, differences, rows, the table itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdbert.reporting.collect import Run
from kdbert.reporting.published import PublishedRow
from kdbert.reporting.statistics import Summary, summarise

ROUNDING = 1e-9  # of a mean over seeds


@dataclass(frozen=True)
class ResultCell:
    """The runs of one row and column.

    Attributes:
        split, metric: what the scores are.
        scores: seed -> score of the finished runs.
        runs: seed -> run of these scores; empty for an average over tasks.
        diverged, unfinished: number of runs that have no score.
        dev_chose: whether dev chose the weights of some of the runs.
        constant: what the best constant answer reaches there; None where that is not known.
        same: seed -> the answer that its run gives to every example, for the runs that give only one.
    """

    split: str = ""
    metric: str = ""
    scores: Mapping[int, float] = field(default_factory=dict)
    runs: Mapping[int, Run] = field(default_factory=dict)
    diverged: int = 0
    unfinished: int = 0
    dev_chose: bool = False
    constant: float | None = None
    same: Mapping[int, str] = field(default_factory=dict)

    @property
    def summary(self) -> Summary | None:
        """Mean, spread and n; None without a finished run."""
        return summarise(self.scores) if self.scores else None

    @property
    def beats_constant(self) -> bool:
        """Whether the mean is better than the constant answer (True where that is not known)."""
        return self.summary is None or self.constant is None or self.summary.mean > self.constant + ROUNDING

    @property
    def may_be_best(self) -> bool:
        """Whether the mean and each of its runs show that something was learned."""
        return self.beats_constant and not self.same


@dataclass(frozen=True)
class Difference:
    """A cell against the baseline's cell of the same column, over the seeds that both have.

    Attributes:
        summary: of the differences.
        p: of a paired t-test over seeds; None where it is undefined.
        interval: 95 % bootstrap interval over examples; None where predictions are missing or do not fit.
    """

    summary: Summary
    p: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class ResultRow:
    """A row of the table.

    Attributes:
        labels: one text per leading column.
        name: the first label, and what tells the row from others that have it: "kd, lr 1e-4".
        cells: column label -> cell; a column without a run is missing.
        teacher: its models teach other rows' students, so it takes no part in the comparison.
        differences: column label -> difference to the baseline's row.
        baseline: name of that row; None for a baseline's own row.
    """

    labels: tuple[str, ...]
    name: str
    cells: Mapping[str, ResultCell]
    teacher: bool = False
    differences: Mapping[str, Difference] = field(default_factory=dict)
    baseline: str | None = None


@dataclass(frozen=True)
class ResultTable:
    """Everything that a format writes.

    Attributes:
        keys: headings of the leading columns.
        columns: column labels in order.
        headings: column label -> what is below it: "split metric" where all its cells share it, of an average what
            it is of, else "".
        averages: the columns that are averages over others.
        best: (row number, column label) of the best means among rows that can be compared.
        notes: further sentences below the table.
        runs: every run that is counted in it, teachers too.
        broken: the damaged run folders and what is wrong.
    """

    keys: tuple[str, ...]
    columns: tuple[str, ...]
    headings: Mapping[str, str]
    rows: tuple[ResultRow, ...]
    averages: frozenset[str] = frozenset()
    best: frozenset[tuple[int, str]] = frozenset()
    published: tuple[PublishedRow, ...] = ()
    notes: tuple[str, ...] = ()
    baseline: str | None = None
    runs: tuple[Run, ...] = ()
    broken: Mapping[Path, str] = field(default_factory=dict)
