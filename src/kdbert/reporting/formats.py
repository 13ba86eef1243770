"""Tables as Markdown, LaTeX (booktabs), CSV, or a part of an HTML page."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from kdbert.reporting.cells import Difference, ResultCell, ResultTable
from kdbert.reporting.collect import UNTRAINED
from kdbert.reporting.published import PublishedCell
from kdbert.reporting.statistics import CONFIDENCE, RESAMPLES, Summary

NOT_AVAILABLE = "not available"
ONE_ANSWER = "†"  # marks scores of models that give one answer to everything
# Shrinks what is wider than the line, and only that.
_FIT = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%"
FEW = 3  # rows that a note names
Grid = list[list[str]]


@dataclass(frozen=True)
class Style:
    """How numbers and their surroundings are written."""

    percent: bool  # scores times 100 with two decimals, instead of as they are with four
    escape: Callable[[str], str]  # makes a text safe
    bold: Callable[[str], str]  # marks the best
    plus_minus: str
    stack: Callable[[list[str]], str]  # several lines in one cell

    def number(self, value: float, sign: str = "") -> str:
        """A score or a difference of scores."""
        return f"{100 * value:{sign}.2f}" if self.percent else f"{value:{sign}.4f}"

    def summary(self, found: Summary, sign: str = "") -> str:
        """mean ± deviation."""
        spread = "" if found.deviation is None else f" {self.plus_minus} {self.number(found.deviation)}"
        return self.number(found.mean, sign) + spread

    def cell(self, cell: ResultCell | None, best: bool, place: bool) -> str:
        """mean ± deviation (n; what has no score); with its split and metric where the heading does not say them."""
        if cell is None or not (cell.scores or cell.diverged or cell.unfinished):
            return "-"
        counts = [str(len(cell.scores))]
        counts += [f"{cell.diverged} diverged"] if cell.diverged else []
        counts += [f"{cell.unfinished} unfinished"] if cell.unfinished else []
        text = "-" if cell.summary is None else self.summary(cell.summary)
        text = self.bold(text) if best else text
        text += self.escape(ONE_ANSWER) if cell.same else ""
        label = f" {self.escape(f'{cell.split} {cell.metric}')}" if place and cell.scores else ""
        return f"{text} ({'; '.join(counts)}){label}"

    def published(self, cell: PublishedCell | None) -> str:
        """A paper's number with the paper's digits."""
        if cell is None:
            return NOT_AVAILABLE
        parts = ", ".join(f"{self.escape(name)} {self.digits(value)}" for name, value in cell.parts.items())
        if cell.value is None:
            return f"{parts} ({cell.n})"
        return self.stack([f"{self.digits(cell.value)} ({cell.n})", *([f"[{parts}]"] if parts else [])])

    def digits(self, value: Decimal) -> str:
        """A published number."""
        return str(value.scaleb(2) if self.percent else value)

    def difference(self, found: Difference | None) -> str:
        """difference ± deviation (n), interval and p, in three lines."""
        if found is None:
            return "-"
        lines = [f"{self.summary(found.summary, '+')} ({found.summary.n})"]
        if found.interval is not None:
            lines.append(f"[{self.number(found.interval[0], '+')}, {self.number(found.interval[1], '+')}]")
        if found.p is not None:
            lines.append("p<0.001" if found.p < 0.0005 else f"p={found.p:.3f}")
        return self.stack(lines)

    def heading(self, table: ResultTable) -> list[str]:
        """The headings of all columns."""
        columns = [[self.escape(text) for text in (one, table.headings[one]) if text] for one in table.columns]
        return [*map(self.escape, table.keys), *map(self.stack, columns)]

    def body(self, table: ResultTable) -> Grid:
        """The rows, teachers first, published ones last."""
        grid = []
        for index, row in enumerate(table.rows):
            cells = (
                self.cell(row.cells.get(column), (index, column) in table.best, place=not table.headings[column])
                for column in table.columns
            )
            grid.append([*map(self.escape, row.labels), *cells])
        blanks = [""] * (len(table.keys) - 1)
        for published in table.published:
            cells = (self.published(published.cells.get(column)) for column in table.columns)
            grid.append([self.escape(published.label), *blanks, *cells])
        return grid

    def differences(self, table: ResultTable) -> Grid:
        """The rows that are compared with the baseline."""
        compared = [row for row in table.rows if row.baseline is not None]
        found = [[self.difference(row.differences.get(column)) for column in table.columns] for row in compared]
        return [[*map(self.escape, row.labels), *cells] for row, cells in zip(compared, found, strict=True)]


def _compared_with(table: ResultTable, tables: Sequence[ResultTable]) -> str:
    """The heading of a table's differences."""
    return f"Difference to {table.baseline}" + (f" on {table.columns[0]}" if len(tables) > 1 else "")


page_style = Style(False, html.escape, lambda text: f"<b>{text}</b>", "±", "<br>".join)  # of an HTML page


def markdown(tables: Sequence[ResultTable], percent: bool = False) -> str:
    """GitHub-flavoured Markdown: each table and its differences, then what the numbers are."""
    style = Style(percent, lambda text: text.replace("|", "\\|"), lambda text: f"**{text}**", "±", "<br>".join)

    def grid(table: ResultTable, lines: Grid) -> list[str]:
        rule = ["---"] * len(table.keys) + ["---:"] * len(table.columns)
        return ["| " + " | ".join(line) + " |" for line in (style.heading(table), rule, *lines)] + [""]

    out = []
    for table in tables:
        out += grid(table, style.body(table))
        if (lines := style.differences(table)) and table.baseline is not None:
            out += [f"{style.escape(_compared_with(table, tables))}:", "", *grid(table, lines)]
    out += [f"- {style.escape(note)}" for note in _notes(tables, style)]
    return "\n".join(out) + "\n"


def latex(tables: Sequence[ResultTable], percent: bool = False) -> str:
    """LaTeX table environments for the packages booktabs and graphicx, shrunk where the page is too narrow."""
    style = Style(percent, _escape_latex, lambda text: f"\\textbf{{{text}}}", "$\\pm$", _stacked)
    out = ["% needs \\usepackage{booktabs,graphicx}"]
    for number, table in enumerate(tables):
        body = style.body(table)
        own = len(table.rows)
        teachers = sum(row.teacher for row in table.rows)
        out += ["\\begin{table}[t]", "\\centering\\small\\setlength{\\tabcolsep}{4pt}"]
        out += _tabular(table, style, [body[:teachers], body[teachers:own], body[own:]])
        if (lines := style.differences(table)) and table.baseline is not None:
            out += ["", "\\medskip", f"Difference to {style.escape(table.baseline)}", "", "\\smallskip"]
            out += _tabular(table, style, [lines])
        caption = " ".join(f"{style.escape(note[0].upper() + note[1:])}." for note in _notes([table], style))
        label = "tab:kdbert" if len(tables) == 1 else f"tab:kdbert-{number + 1}"
        out += [f"\\caption{{{caption}}}", f"\\label{{{label}}}", "\\end{table}"]
    return "\n".join(out) + "\n"


def _tabular(table: ResultTable, style: Style, groups: Sequence[Grid]) -> list[str]:
    blanks = [""] * len(table.keys)
    headings = [[*table.keys, *table.columns], [*blanks, *(table.headings[column] for column in table.columns)]]
    lines = [_FIT, f"\\begin{{tabular}}{{{'l' * len(table.keys)}{'r' * len(table.columns)}}}", "\\toprule"]
    lines += [" & ".join(map(style.escape, heading)) + " \\\\" for heading in headings if any(heading)]
    for group in filter(None, groups):
        lines += ["\\midrule", *(" & ".join(_minus(cell) for cell in row) + " \\\\" for row in group)]
    return [*lines, "\\bottomrule", "\\end{tabular}}"]


def html_text(tables: Sequence[ResultTable]) -> str:
    """HTML elements for a page: the tables, the differences, what the numbers are; every text is escaped."""
    style = page_style

    def grid(table: ResultTable, lines: Grid, teachers: int) -> list[str]:
        out = ['<div class="scroll"><table class="numbers"><thead><tr>']
        out += [f'<th scope="col">{cell}</th>' for cell in style.heading(table)]
        out.append("</tr></thead><tbody>")
        for number, line in enumerate(lines):
            out.append('<tr class="teacher">' if number < teachers else "<tr>")
            out += [f'<th scope="row">{cell}</th>' for cell in line[: len(table.keys)]]
            out += [f"<td>{cell}</td>" for cell in line[len(table.keys) :]]
            out.append("</tr>")
        return [*out, "</tbody></table></div>"]

    out = []
    for table in tables:
        out += grid(table, style.body(table), sum(row.teacher for row in table.rows))
        if (lines := style.differences(table)) and table.baseline is not None:
            out += [f"<h3>{style.escape(_compared_with(table, tables))}</h3>", *grid(table, lines, 0)]
    out += ['<ul class="notes">', *(f"<li>{style.escape(note)}</li>" for note in _notes(tables, style)), "</ul>"]
    return "".join(out)


FIELDS = (
    "column", "split", "metric", "mean", "deviation", "n", "seeds", "diverged", "unfinished", "constant_answer",
    "one_answer", "best", "baseline", "difference", "difference_deviation", "difference_n", "p", "interval_low",
    "interval_high", "also_differs", "source",
)  # fmt: skip


def csv_text(tables: Sequence[ResultTable], percent: bool = False) -> str:
    """One line per number, at full precision; `tables` is one, of all tasks together."""
    (table,) = tables

    def number(value: float | None) -> str:
        return "" if value is None else repr(float(value) * (100 if percent else 1))

    lines: list[dict[str, Any]] = []
    for index, row in enumerate(table.rows):
        for column in filter(row.cells.__contains__, table.columns):
            cell, delta = row.cells[column], row.differences.get(column)
            line = {
                **dict(zip(table.keys, row.labels, strict=True)), "column": column, "split": cell.split,
                "metric": cell.metric, "n": len(cell.scores), "seeds": " ".join(map(str, cell.scores)),
                "diverged": cell.diverged, "unfinished": cell.unfinished, "constant_answer": number(cell.constant),
                "one_answer": len(cell.same), "best": int((index, column) in table.best), "source": "measured",
            }  # fmt: skip
            if (found := cell.summary) is not None:
                line |= {"mean": number(found.mean), "deviation": number(found.deviation)}
            if delta is not None:
                low, high = delta.interval or (None, None)
                line |= {
                    "baseline": row.baseline, "difference": number(delta.summary.mean), "difference_n": delta.summary.n,
                    "difference_deviation": number(delta.summary.deviation), "interval_low": number(low),
                    "interval_high": number(high), "p": "" if delta.p is None else repr(delta.p),
                    "also_differs": " ".join(delta.besides),
                }  # fmt: skip
            lines.append(line)
    for published in table.published:
        for column in table.columns:
            one = published.cells.get(column)
            split, _, metric = table.headings[column].partition(" ")
            source = f"published: {published.paper}" + (f" ({NOT_AVAILABLE})" if one is None else "")
            values: dict[str, Decimal | None] = {metric: None}
            if one is not None:
                values = {**({metric: one.value} if one.value is not None else {}), **one.parts}
            for name, value in values.items():
                lines.append({
                    table.keys[0]: published.label, "column": column, "split": split, "metric": name,
                    "mean": "" if value is None else value.scaleb(2) if percent else value,
                    "n": "" if one is None or one.n == "?" else one.n, "source": source,
                })  # fmt: skip
    out = io.StringIO()
    writer = csv.DictWriter(out, [*table.keys, *FIELDS], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


FORMATS: dict[str, Callable[[Sequence[ResultTable], bool], str]] = {
    "markdown": markdown, "latex": latex, "csv": csv_text,
}  # fmt: skip


# ---- what the numbers are


def _notes(tables: Sequence[ResultTable], style: Style) -> list[str]:
    """Sentences on what the numbers are, each once."""
    cells = [cell for table in tables for row in table.rows for cell in row.cells.values()]
    by = f"runs by {' and '.join(tables[0].keys)}" if len(tables) == 1 else "runs of each task by what differs in them"
    scale = ", times 100" if style.percent else ""
    notes = [f"{by}: mean ± sample standard deviation over seeds (number of seeds){scale}"]
    if any(table.best for table in tables):
        teachers = ", teachers apart" if any(row.teacher for table in tables for row in table.rows) else ""
        notes.append(
            f"bold: the best mean among rows measured alike{teachers}, whatever the spread, if it beats the constant "
            "answer and none of its runs gives one answer to every example"
        )
    if any(table.averages for table in tables):
        notes.append("average: the mean over the tasks' figures, seed by seed, over the seeds that every task has")
    differences = [found for table in tables for row in table.rows for found in row.differences.values()]
    if differences:
        parts = ["difference: mean ± deviation over the seeds that both have (their number)"]
        if any(found.interval is not None for found in differences):
            parts.append(
                f"in brackets what other examples would change: {CONFIDENCE:.0%} bootstrap interval over the examples "
                f"for these very runs, {RESAMPLES} resamples, without the spread over seeds"
            )
        if any(found.p is not None for found in differences):
            parts.append("p: what other seeds would change, a paired t-test")
        notes.append("; ".join(parts))
    notes += _by_table(tables, _besides)
    if any(cell.dev_chose for cell in cells):
        notes.append("dev figures of runs with train.selection=best are optimistic: dev chose their epoch")
    if any(cell.diverged or cell.unfinished for cell in cells):
        notes.append("diverged and unfinished runs have no score and are counted apart")
    if any(run.status == UNTRAINED for table in tables for run in table.runs):
        notes.append("a run that trained no head, such as a first stage, counts as unfinished")
    notes += [note for table in tables for note in _same_answers(table)]
    constants = [note for table in tables for note in _constants(table, style)]
    if constants:
        notes += constants
        notes.append("constant answer: the best that one and the same answer to every example of the split reaches")
    broken = len(tables[0].broken)
    if broken:
        notes.append(f"{broken} broken run folder{'s' * (broken > 1)} left out")
    return [*dict.fromkeys([*notes, *_by_table(tables, lambda table: table.notes)])]


def _by_table(tables: Sequence[ResultTable], notes: Callable[[ResultTable], Sequence[str]]) -> list[str]:
    """The notes of each table; what holds of some tables only begins with their task."""
    found = [(table.columns[0], notes(table)) for table in tables]
    return [
        note if all(note in others for _, others in found) or f" {task}" in note else f"{task}: {note}"
        for task, some in found
        for note in some
    ]


def _besides(table: ResultTable) -> list[str]:
    """Which rows differ from the row that they are compared with in other keys too."""
    columns: dict[tuple[str, str, str], list[str]] = {}  # by row, baseline and what differs
    for row in table.rows:
        for column, found in row.differences.items():
            if found.besides and column not in table.averages:
                told = ", ".join(f"{key} ({values})" if values else key for key, values in found.besides.items())
                columns.setdefault((row.name, str(row.baseline), told), []).append(column)
    rows: dict[tuple[str, str, str], list[str]] = {}
    for (name, baseline, told), some in columns.items():
        everywhere = len(some) + len(table.averages) == len(table.columns)
        rows.setdefault((baseline, told, "" if everywhere else f" on {', '.join(some)}"), []).append(name)
    return [
        f"{'; '.join(names)} and {baseline} also differ{where} in {told}"
        for (baseline, told, where), names in rows.items()
    ]


def _same_answers(table: ResultTable) -> list[str]:
    """Which runs give one answer to every example, column by column."""
    notes = []
    for column in table.columns:
        cells = {row.name: cell for row in table.rows if (cell := row.cells.get(column)) and cell.runs}
        same = {name: cell for name, cell in cells.items() if cell.same}

        def told(name: str, some: Sequence[ResultCell]) -> str:
            answers = ", ".join(sorted({answer for cell in some for answer in cell.same.values()}))
            counts = [
                sum(len(part) for part in parts) for parts in zip(*((x.same, x.scores) for x in some), strict=True)
            ]
            return f"{name} ({' of '.join(map(str, counts))}: {answers})"

        rows = _most_rows([*same], [*cells])
        words = [told(rows, [*same.values()])] if rows else [told(name, [cell]) for name, cell in same.items()]
        if words:
            notes.append(f"{ONE_ANSWER} on {column}, runs that give one answer to every example: {'; '.join(words)}")
    return notes


def _constants(table: ResultTable, style: Style) -> list[str]:
    """The rows, teachers too, whose mean is no better than a constant answer, column by column."""
    found: dict[tuple[str, float], list[str]] = {}
    scored: dict[str, list[str]] = {}
    for row in table.rows:
        for column, cell in row.cells.items():
            if cell.scores:
                scored.setdefault(column, []).append(row.name)
            if not cell.beats_constant and cell.constant is not None and column not in table.averages:
                found.setdefault((column, cell.constant), []).append(row.name)
    return [
        f"no better than the constant answer on {column} ({style.number(value)}): "
        f"{_most_rows(rows, scored[column]) or '; '.join(rows)}"
        for (column, value), rows in found.items()
    ]


def _most_rows(rows: Sequence[str], of: Sequence[str]) -> str:
    """Many rows in few words: all of them, or all but a few; "" where it is shorter to list them."""
    others = [name for name in of if name not in rows]
    if len(rows) <= FEW or len(others) > FEW:
        return ""
    return f"all {len(of)} rows but {'; '.join(others)}" if others else f"all {len(of)} rows"


# ---- LaTeX


def _escape_latex(text: str) -> str:
    special = {
        "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "{": "\\{", "}": "\\}",
        "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}",
        "±": "$\\pm$", ONE_ANSWER: "$^\\dagger$", "…": "\\dots{}", "|": "\\textbar{}",
    }  # fmt: skip
    return re.sub("|".join(map(re.escape, special)), lambda found: special[found.group()], text)


def _stacked(lines: list[str]) -> str:
    """Lines below each other; an empty group keeps a [ from being read as an option of the line break."""
    if len(lines) == 1:
        return lines[0]
    return "\\begin{tabular}[t]{@{}r@{}}" + " \\\\ ".join("{}" + line for line in lines) + "\\end{tabular}"


def _minus(text: str) -> str:
    """A true minus sign before numbers."""
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", text)
