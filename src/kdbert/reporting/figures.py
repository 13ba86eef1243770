"""Figures: drawn by matplotlib in light colours, and as SVG whose colours are those of the page around it."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

# After Okabe and Ito, darker where a line would not stand out from white (at least 3 : 1, also in dark mode).
INK, FAINT, RULE = "#1b1f24", "#59636e", "#d8dee4"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b5568f", "#a87400", "#6a6f76")
DASHES = ("solid", (0, (6, 2)), (0, (2, 2)), (0, (6, 2, 2, 2)))
# What stands for each colour on a page: a variable of its style sheet; and its value in dark mode.
VARIABLES = {INK: "--ink", FAINT: "--faint", RULE: "--rule", **{color: f"--s{i}" for i, color in enumerate(SERIES)}}
_DARK = ("#e6e9ec", "#a6b0ba", "#3a424b", "#56b4e9", "#f08c4a", "#2fc79a", "#e39cc4", "#e6b93a", "#b4bcc4")
DARK = dict(zip(VARIABLES, _DARK, strict=True))
WIDTH, HEIGHT = 5.0, 3.1  # inches; 360 x 223 units of an SVG, which is about the width of a phone
SIZE = 11  # of most letters; the page's style sheet says it, too
LATENCY, PARAMETERS = "latency of one call, median, ms", "parameters, millions"  # what quality is drawn over
LONGEST = 34  # characters of a name in a figure
_STYLE = {
    "font.size": SIZE, "text.color": INK, "text.parse_math": False, "figure.constrained_layout.use": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": RULE, "axes.labelcolor": FAINT,
    "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.6, "axes.formatter.useoffset": False,
    "xtick.color": RULE, "ytick.color": RULE, "xtick.labelcolor": FAINT, "ytick.labelcolor": FAINT,
    "xtick.bottom": False, "ytick.left": False, "xtick.minor.bottom": False, "ytick.minor.left": False,
    "svg.fonttype": "none", "svg.hashsalt": "kdbert",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A model in a figure of quality over cost."""

    name: str
    cost: float  # where it is on the x axis
    quality: float  # in the figure's metric
    size_mib: float | None  # its files on disk; None where that is not known
    backend: str = ""  # what runs it; points of one backend share a colour


@dataclass(frozen=True)
class Curve:
    """The mean over seeds, and the lowest and highest of them where there is a band."""

    x: Sequence[float]
    mean: Sequence[float]
    series: int  # which colour and dash it has, see `look`
    n: Sequence[int]  # of seeds at each point
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def look(series: int) -> tuple[str, Any]:
    """Colour and dash of a numbered series."""
    return SERIES[series % len(SERIES)], DASHES[series // len(SERIES) % len(DASHES)]


@contextlib.contextmanager
def _styled() -> Iterator[None]:
    """Our style, and no warning of characters that matplotlib's own font lacks."""
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing")
        yield


@_styled()
def lines(curves: Sequence[Curve], *, x_label: str, y_label: str, reference: float | None = None) -> Any:
    """A matplotlib figure of curves with their bands; `reference` is a dashed level.

    A curve is thinner where it is the mean of fewer seeds than elsewhere.
    """
    figure, axes = _axes()
    for curve in curves:
        color, dash = look(curve.series)
        if len(curve.low):
            axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.18, linewidth=0, clip_on=False)
        for few, part in groupby(range(len(curve.x)), key=lambda i: curve.n[i] < max(curve.n)):
            points = list(part)
            drawn = slice(max(points[0] - few, 0), points[-1] + 1 + few)  # up to the full line on both sides
            axes.plot(
                curve.x[drawn], curve.mean[drawn], color=color, linestyle=dash, linewidth=0.8 if few else 1.8,
                marker="o" if len(curve.x) <= 12 else None, markersize=3.5, clip_on=False,
            )  # fmt: skip
    if reference is not None:
        axes.axhline(reference, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2, clip_on=False)
    axes.set_xlabel(shown(x_label))
    axes.set_ylabel(shown(y_label))
    _few_ticks(axes)
    return figure


def _few_ticks(axes: Any, *, of_x: bool = True) -> None:
    """A few round numbers on the axes."""
    from matplotlib.ticker import MaxNLocator

    for axis, most in ((axes.yaxis, 6), *([(axes.xaxis, 5)] if of_x else [])):
        axis.set_major_locator(MaxNLocator(nbins=most, steps=[1, 2, 5, 10]))


def _axes(height: float = HEIGHT) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.add_subplot()


@_styled()
def quality_over(points: Sequence[Point], x_label: str, *, metric: str, split: str, task: str) -> Any:
    """A matplotlib figure: each model by its cost (logarithmic where it ranges over more than a factor of 5) and
    quality, the area of its bubble by its size on disk, with its name beside it.

    Args:
        x_label: what the cost is, such as `LATENCY`.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, axes = _axes(height=4.0)
    backends = list(dict.fromkeys(point.backend for point in points))
    largest = max(point.size_mib or 0 for point in points)
    for number, backend in enumerate(backends):
        some = [point for point in points if point.backend == backend]
        axes.scatter(
            [point.cost for point in some], [point.quality for point in some],
            s=[_area(point.size_mib, largest) for point in some],
            color=look(number)[0], alpha=0.55, linewidth=1, clip_on=False, label=shown(backend) or None,
        )  # fmt: skip
    costs = [point.cost for point in points]
    if min(costs) > 0 and max(costs) / min(costs) > 5:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    _few_ticks(axes, of_x=axes.get_xscale() == "linear")
    axes.margins(x=0.12, y=0.16)
    axes.set_xlabel(shown(x_label))
    axes.set_ylabel(shown(f"{split} {metric}"))
    axes.set_title(shown(task), loc="left", fontsize=11)
    if len(backends) > 1:
        figure.legend(loc="outside lower center", ncols=min(3, len(backends)), frameon=False, markerscale=0.6)
    _name_points(figure, axes, points, [_area(point.size_mib, largest) for point in points])
    return figure


def _area(size: float | None, largest: float) -> float:
    """Square points of a bubble."""
    return 30.0 if not size or not largest else 20 + 280 * size / largest


def _name_points(figure: Any, axes: Any, points: Sequence[Point], areas: Sequence[float]) -> None:
    """Write each name where it covers little else, with a thin line to its point where that is not beside it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # the layout, and with it where the points are
    scale = figure.dpi / 72
    centres = axes.transData.transform([(point.cost, point.quality) for point in points])
    radii = [scale * (area / 3.14) ** 0.5 for area in areas]
    taken = [Bbox([centre - radius, centre + radius]) for centre, radius in zip(centres, radii, strict=True)]
    frame = axes.get_window_extent(renderer)
    for centre, radius, point in sorted(
        zip(centres, radii, points, strict=True), key=lambda one: (one[0][1], one[0][0])
    ):
        places: list[tuple[float, tuple[float, float], Bbox, float]] = []  # cost, shift, place, distance
        text = axes.annotate(
            shown(point.name), (point.cost, point.quality), xytext=(0, 0), textcoords="offset points", fontsize=10,
            ha="center", va="center", annotation_clip=False,
        )  # fmt: skip
        text.set_in_layout(False)
        extent = text.get_window_extent(renderer).padded(2 * scale)
        for away in (3.0, 10.0, 20.0, 32.0, 46.0, 62.0):
            for right, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
                step = (radius + away * scale) * (1 if not right or not up else 0.75)
                shift = (right * (step + extent.width / 2), up * (step + extent.height / 2))
                place = extent.translated(*shift)
                covered = sum(_overlap(place, other) for other in taken)
                outside = place.width * place.height - _overlap(place, frame)
                places.append((covered + 3 * outside + 2 * away, shift, place, away))
        _, shift, place, away = min(places, key=itemgetter(0))
        text.set_position((shift[0] / scale, shift[1] / scale))
        taken.append(place)
        if away > 3.0:
            edge = (min(max(centre[0], place.x0), place.x1), min(max(centre[1], place.y0), place.y1))
            ends = axes.transData.inverted().transform([centre, edge])
            axes.plot(ends[:, 0], ends[:, 1], color=FAINT, linewidth=0.6, zorder=0.9, clip_on=False)


def _overlap(one: Any, other: Any) -> float:
    """Square pixels that two boxes share."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)


def shown(text: str) -> str:
    """A name as a figure can write it: short, one line, and nothing that XML cannot hold."""
    text = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", text).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def svg(figure: Any, *, label: str, prefix: str) -> str:
    """A figure as an `<svg>` element for a page: its colours are the page's variables, coordinates have one decimal.

    Args:
        label: what a screen reader says instead of it.
        prefix: put before its ids, so that those of two figures on a page differ.
    """
    file = io.BytesIO()
    with _styled():
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(file.getvalue())
    for node in root.iter():
        for child in list(node):
            if child.tag.rpartition("}")[2] in ("metadata", "style", "clipPath"):  # nothing is drawn outside
                node.remove(child)
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        node.tail = None
        if node.tag not in ("text", "tspan"):
            node.text = None
        node.attrib = {
            name: kept
            for full, value in node.attrib.items()
            if (kept := _for_page(node.tag, name := full.rpartition("}")[2], value, prefix))
        }
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label, "class": "figure"}
    return ElementTree.tostring(root, encoding="unicode")


def _for_page(tag: str, name: str, value: str, prefix: str) -> str:
    """An attribute as the page has it; "" where it is not needed there."""
    if name == "id":
        return f"{prefix}-{value}" if tag == "path" else ""  # a shape that is drawn several times
    if name == "href":
        return f"#{prefix}-{value[1:]}"
    if name == "style":
        return _page_style(value)
    if name in ("d", "x", "y", "transform", "points"):
        short = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found.group()):.1f}".removesuffix(".0"), value)
        return re.sub(r"\s*\n?\s*([A-Za-z])\s+", r"\1", short).strip()
    return "" if name == "clip-path" else value


def _page_style(style: str) -> str:
    """A style with variables for colours; the page says which font."""
    kept = []
    for part in style.split(";"):
        name, _, value = (word.strip() for word in part.partition(":"))
        if name == "font":  # of older matplotlib: all in one
            name, value = "font-size", next((word for word in value.split() if word.endswith("px")), "")
        if name != "font-family" and (name, value) != ("font-size", f"{SIZE}px"):
            kept.append(f"{name}:{f'var({VARIABLES[value]})' if value in VARIABLES else value}")
    return ";".join(kept)
