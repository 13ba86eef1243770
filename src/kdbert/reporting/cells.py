"""What stands in a table: cells, differences, rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kdbert.reporting.collect import Run
from kdbert.reporting.statistics import Summary, summarise

ROUNDING = 1e-9  # of a mean over seeds


@dataclass(frozen=True)
class Cell:
    """One row and column.

    Attributes:
        split, metric: what the scores are.
        scores: seed -> score of the finished runs.
        runs: seed -> run of these scores; empty for an average over tasks.
        diverged, unfinished: number of runs that have no score.
        dev_chose: whether dev chose the weights of some of the runs.
        constant: what the best constant answer reaches there; None where that is not known.
        same: seed -> the answer that its run gives to every example, for the runs that give one only.
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
        """Whether it shows that something was learned: by its mean, and by each of its runs."""
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
class Row:
    """A line of the table.

    Attributes:
        labels: one text per leading column.
        cells: column label -> cell; a missing one has no run.
        teacher: its models teach other rows' students, so it takes no part in the comparison.
        differences: column label -> difference to the baseline's row.
        baseline: labels of that row; None for a baseline's own row.
    """

    labels: tuple[str, ...]
    cells: Mapping[str, Cell]
    teacher: bool = False
    differences: Mapping[str, Difference] = field(default_factory=dict)
    baseline: tuple[str, ...] | None = None
