"""A table as Markdown, LaTeX (booktabs), CSV, or a part of an HTML page."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from kdbert.reporting.cells import Cell, Difference, Row
from kdbert.reporting.published import PublishedCell
from kdbert.reporting.statistics import CONFIDENCE, RESAMPLES, Summary
from kdbert.reporting.table import AVERAGE, BLURB, Table

NOT_AVAILABLE = "not available"
ONE_ANSWER = "†"  # marks scores of models that give one answer to everything
# Shrinks what is wider than the line, and only that.
_FIT = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%"


@dataclass(frozen=True)
class Style:
    """How numbers and their surroundings are written.

    Attributes:
        percent: scores times 100 with two decimals, instead of as they are with four.
        escape: makes a text safe.
        bold: marks the best.
        plus_minus: between mean and deviation.
        stack: sets several lines into one cell.
    """

    percent: bool
    escape: Callable[[str], str]
    bold: Callable[[str], str]
    plus_minus: str
    stack: Callable[[list[str]], str]

    def number(self, value: float, sign: str = "") -> str:
        """A score or a difference of scores."""
        return f"{100 * value:{sign}.2f}" if self.percent else f"{value:{sign}.4f}"

    def summary(self, found: Summary, sign: str = "") -> str:
        """mean ± deviation."""
        spread = "" if found.deviation is None else f" {self.plus_minus} {self.number(found.deviation)}"
        return self.number(found.mean, sign) + spread

    def cell(self, cell: Cell | None, best: bool, place: bool) -> str:
        """mean ± deviation (n; what has no score); with its split and metric where the heading does not say them."""
        if cell is None:
            return "-"
        counts = [str(cell.summary.n)] if cell.summary else ["0"]
        counts += [f"{cell.diverged} diverged"] if cell.diverged else []
        counts += [f"{cell.unfinished} unfinished"] if cell.unfinished else []
        text = "-" if cell.summary is None else self.summary(cell.summary)
        text = self.bold(text) if best else text
        text += self.escape(ONE_ANSWER) if cell.same else ""
        if not cell.scores and not cell.diverged and not cell.unfinished:
            return "-"
        label = f" {self.escape(f'{cell.split} {cell.metric}')}" if place and cell.scores else ""
        return f"{text} ({'; '.join(counts)}){label}"

    def published(self, cell: PublishedCell | None) -> str:
        """A paper's number with the paper's digits."""
        if cell is None:
            return NOT_AVAILABLE
        parts = ", ".join(f"{self.escape(name)} {self._digits(value)}" for name, value in cell.parts.items())
        if cell.value is None:
            return f"{parts} ({cell.n})"
        return self.stack([f"{self._digits(cell.value)} ({cell.n})", *([f"[{parts}]"] if parts else [])])

    def _digits(self, value: Decimal) -> str:
        return str(value.scaleb(2) if self.percent else value)

    def difference(self, found: Difference | None) -> str:
        """difference ± deviation (n), interval, p, below each other."""
        if found is None:
            return "-"
        lines = [f"{self.summary(found.summary, '+')} ({found.summary.n})"]
        if found.interval is not None:
            lines.append(f"[{self.number(found.interval[0], '+')}, {self.number(found.interval[1], '+')}]")
        if found.p is not None:
            lines.append("p<0.001" if found.p < 0.0005 else f"p={found.p:.3f}")
        return self.stack(lines)


page_style = Style(False, html.escape, lambda text: f"<b>{text}</b>", "±", "<br>".join)  # of an HTML page


def markdown(table: Table, percent: bool = False) -> str:
    """GitHub-flavoured Markdown: the table, the differences, what the numbers are."""
    style = Style(percent, lambda text: text.replace("|", "\\|"), lambda text: f"**{text}**", "±", "<br>".join)

    def grid(heading: list[str], lines: list[list[str]], left: int) -> list[str]:
        rule = ["---"] * left + ["---:"] * (len(heading) - left)
        return ["| " + " | ".join(line) + " |" for line in (heading, rule, *lines)]

    heading = [*map(style.escape, table.keys), *(_heading(table, column, "<br>", style) for column in table.columns)]
    out = grid(heading, _body(table, style), len(table.keys))
    if table.baseline is not None:
        out += ["", f"Difference to {style.escape(table.baseline)}:", ""]
        out += grid(heading, _differences(table, style), len(table.keys))
    out += ["", *(f"- {style.escape(note)}" for note in _notes(table, style))]
    return "\n".join(out) + "\n"


def latex(table: Table, percent: bool = False) -> str:
    """A LaTeX table environment for the packages booktabs and graphicx, set smaller where the page is too narrow."""
    style = Style(percent, _escape_latex, lambda text: f"\\textbf{{{text}}}", "$\\pm$", _stacked)

    def tabular(heading: list[tuple[str, str]], groups: list[list[list[str]]]) -> list[str]:
        columns = "l" * len(table.keys) + "r" * len(table.columns)
        lines = [_FIT, f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
        lines.append(" & ".join(first for first, _ in heading) + " \\\\")
        if any(second for _, second in heading):
            lines.append(" & ".join(second for _, second in heading) + " \\\\")
        for group in groups:
            lines += ["\\midrule", *(" & ".join(_minus(cell) for cell in row) + " \\\\" for row in group)]
        return [*lines, "\\bottomrule", "\\end{tabular}}"]

    heading = [(style.escape(key), "") for key in table.keys]
    heading += [(style.escape(column), style.escape(table.headings[column])) for column in table.columns]
    body = _body(table, style)
    own = len(table.rows)
    teachers = sum(row.teacher for row in table.rows)
    groups = [group for group in (body[:teachers], body[teachers:own], body[own:]) if group]
    out = [
        "% needs \\usepackage{booktabs,graphicx}",
        "\\begin{table}[t]",
        "\\centering\\small\\setlength{\\tabcolsep}{4pt}",
    ]
    out += tabular(heading, groups)
    if table.baseline is not None:
        out += ["", "\\medskip", f"Difference to {style.escape(table.baseline)}", "", "\\smallskip"]
        out += tabular(heading, [_differences(table, style)])
    caption = " ".join(f"{style.escape(note[0].upper() + note[1:])}." for note in _notes(table, style))
    out += [f"\\caption{{{caption}}}", "\\label{tab:kdbert}", "\\end{table}"]
    return "\n".join(out) + "\n"


def html_text(table: Table) -> str:
    """HTML elements for a page: the table, the differences, what the numbers are; every text is escaped."""
    style = page_style

    def grid(lines: list[list[str]], teachers: int) -> list[str]:
        heading = [
            *map(style.escape, table.keys),
            *(_heading(table, column, "<br>", style) for column in table.columns),
        ]
        out = ['<div class="scroll"><table class="numbers"><thead><tr>']
        out += [f'<th scope="col">{cell}</th>' for cell in heading]
        out.append("</tr></thead><tbody>")
        for number, line in enumerate(lines):
            out.append('<tr class="teacher">' if number < teachers else "<tr>")
            out += [f'<th scope="row">{cell}</th>' for cell in line[: len(table.keys)]]
            out += [f"<td>{cell}</td>" for cell in line[len(table.keys) :]]
            out.append("</tr>")
        return [*out, "</tbody></table></div>"]

    out = grid(_body(table, style), sum(row.teacher for row in table.rows))
    differences = _differences(table, style)
    if table.baseline is not None and differences:
        out += [f"<h3>Difference to {style.escape(table.baseline)}</h3>", *grid(differences, 0)]
    out += ['<ul class="notes">', *(f"<li>{style.escape(note)}</li>" for note in _notes(table, style)), "</ul>"]
    return "".join(out)


def csv_text(table: Table, percent: bool = False) -> str:
    """One line per number, full precision: row keys, column, metric, split, mean, deviation, n, differences, source."""
    scale = 100 if percent else 1

    def number(value: float | None) -> str:
        return "" if value is None else repr(float(value) * scale)

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([
        *table.keys, "column", "split", "metric", "mean", "deviation", "n", "seeds", "diverged", "unfinished",
        "constant_answer", "one_answer", "best", "baseline", "difference", "difference_deviation", "difference_n", "p",
        "interval_low", "interval_high", "source",
    ])  # fmt: skip
    for index, row in enumerate(table.rows):
        for column in table.columns:
            cell = row.cells.get(column)
            if cell is None:
                continue
            found, delta = cell.summary, row.differences.get(column)
            low, high = delta.interval if delta is not None and delta.interval is not None else (None, None)
            writer.writerow([
                *row.labels, column, cell.split, cell.metric,
                number(found.mean if found else None), number(found.deviation if found else None),
                found.n if found else 0, " ".join(map(str, cell.scores)), cell.diverged, cell.unfinished,
                number(cell.constant), len(cell.same), int((index, column) in table.best),
                ", ".join(row.baseline) if row.baseline is not None and delta is not None else "",
                number(delta.summary.mean if delta else None), number(delta.summary.deviation if delta else None),
                delta.summary.n if delta else "", "" if delta is None or delta.p is None else repr(delta.p),
                number(low), number(high), "measured",
            ])  # fmt: skip
    blanks = [""] * (len(table.keys) - 1)
    for published in table.published:
        for column in table.columns:
            one = published.cells.get(column)
            split, _, metric = table.headings[column].partition(" ")
            source = f"published: {published.paper}" + (f" ({NOT_AVAILABLE})" if one is None else "")
            values: dict[str, Decimal | None] = {metric: None}
            if one is not None:
                values = {**({metric: one.value} if one.value is not None else {}), **one.parts}
            for name, value in values.items():
                shown = "" if value is None else str(value.scaleb(2) if percent else value)
                runs = "" if one is None or one.n == "?" else one.n
                label = f"{published.paper}: {published.model}"
                writer.writerow([label, *blanks, column, split, name, shown, "", runs, *[""] * 13, source])
    return out.getvalue()


FORMATS: dict[str, Callable[[Table, bool], str]] = {"markdown": markdown, "latex": latex, "csv": csv_text}


def _heading(table: Table, column: str, line_break: str, style: Style) -> str:
    under = table.headings[column]
    return style.escape(column) + (line_break + style.escape(under) if under else "")


def _body(table: Table, style: Style) -> list[list[str]]:
    lines = []
    for index, row in enumerate(table.rows):
        line = [style.escape(label) for label in row.labels]
        for column in table.columns:
            place = not column.startswith((AVERAGE, BLURB)) and not table.headings[column]
            line.append(style.cell(row.cells.get(column), (index, column) in table.best, place))
        lines.append(line)
    for published in table.published:
        label = style.escape(f"{published.paper}: {published.model}")
        blanks = [""] * (len(table.keys) - 1)
        lines.append([label, *blanks, *(style.published(published.cells.get(column)) for column in table.columns)])
    return lines


def _differences(table: Table, style: Style) -> list[list[str]]:
    return [
        [*map(style.escape, row.labels), *(style.difference(row.differences.get(column)) for column in table.columns)]
        for row in table.rows
        if row.baseline is not None
    ]


def _notes(table: Table, style: Style) -> list[str]:
    """What the numbers are, as sentences."""
    cells = [cell for row in table.rows for cell in row.cells.values()]
    scale = ", times 100" if style.percent else ""
    by = " and ".join(table.keys)
    notes = [f"runs by {by}: mean ± sample standard deviation over seeds (number of seeds){scale}"]
    if table.best:
        apart = ", teachers apart" * _has_teacher(table.rows)
        notes.append(
            f"bold: the best mean among rows measured alike{apart}, whatever the spread, if it beats the constant "
            "answer and none of its runs gives one answer to every example"
        )
    if AVERAGE in table.columns:
        notes.append("average: the mean over the tasks' figures, seed by seed, over the seeds that every task has")
    if table.baseline is not None:
        notes.append(
            "difference: mean ± deviation over the seeds that both have (their number); in brackets what other "
            f"examples would change: {CONFIDENCE:.0%} bootstrap interval over the examples for these very runs, "
            f"{RESAMPLES} resamples, without the spread over seeds; p: what other seeds would change, a paired t-test"
        )
    if any(cell.dev_chose for cell in cells):
        notes.append("dev figures of runs with train.selection=best are optimistic: dev chose their epoch")
    if any(cell.diverged or cell.unfinished for cell in cells):
        notes.append("diverged and unfinished runs have no score and are counted apart")
    notes += _same_answers(table)
    notes += [
        f"no better than the constant answer on {one.column} ({style.number(one.value)}): {'; '.join(one.rows)}"
        for one in table.constants
    ]
    if table.constants:
        notes.append("constant answer: the best that one and the same answer to every example of the split reaches")
    if table.broken:
        notes.append(f"{len(table.broken)} broken run folder{'s' * (len(table.broken) > 1)} left out")
    return [*notes, *table.notes]


def _same_answers(table: Table) -> list[str]:
    """Which runs give one answer to every example, column by column."""
    notes = []
    for column in table.columns:
        cells = [(row, row.cells[column]) for row in table.rows if column in row.cells and row.cells[column].runs]
        told = [
            f"{', '.join(row.labels)} ({len(cell.same)} of {len(cell.scores)}: {answers})"
            for row, cell in cells
            if (answers := ", ".join(sorted(set(cell.same.values()))))
        ]
        if told:
            notes.append(f"{ONE_ANSWER} on {column}, runs that give one answer to every example: {'; '.join(told)}")
    return notes


def _has_teacher(rows: tuple[Row, ...]) -> bool:
    return any(row.teacher for row in rows)


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
