"""How charts look, and charts as PNG. The only module of the package that imports matplotlib.

Colours are Okabe and Ito's, told apart by everybody (jfly.uni-koeln.de/color); each series has a
marker or a hatching of its own beside its colour. Charts are light whatever the page is.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tiered_emb.bench.report.parts import Chart, Spread, place, short
from tiered_emb.data.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES = 6.0
DPI = 150
INK, SOFT, GREY, GRID = "#222222", "#666666", "#8a8a8a", "#dddddd"
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE = "#56B4E9", "#E69F00"
_RC: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # matplotlib brings it
    "font.size": 10.5,
    "grid.color": GRID,
    "hatch.linewidth": 0.8,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "lines.markersize": 6,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
}


@dataclass(frozen=True)
class Style:
    """Of one series."""

    colour: str
    marker: str
    hatch: str = ""
    line: str = "-"


_KNOWN = {
    "tiered": Style(BLUE, "o"),
    "tiered, in line": Style(SKY, "s", "//"),
    "tiered, all in dram": Style(GREEN, "P", "\\\\"),
    "nn.EmbeddingBag": Style(VERMILLION, "^", ".."),
    "FBGEMM": Style(PURPLE, "D", "xx"),
    "FBGEMM (CPU)": Style(PURPLE, "D", "xx"),
    "nn.EmbeddingBag, mmap": Style(ORANGE, "v", "--"),
    "layers alone": Style(GREY, "x", "oo", ":"),
    "bound": Style(INK, "", "", "--"),
    "optimum": Style(INK, "*", "", "--"),
    "lookahead": Style(BLUE, "o"),
    "lfu": Style(ORANGE, "v"),
    "lru": Style(VERMILLION, "^"),
    "s3fifo": Style(GREEN, "P"),
    "layers": Style(GREY, "X", "oo"),
    "hbm": Style(PURPLE, "D", "xx"),
    "link": Style(ORANGE, "v", "--"),
    "dram": Style(BLUE, "o"),
    "ssd": Style(VERMILLION, "^", "//"),
    "planning": Style(GREEN, "P", "\\\\"),
    "pooling": Style(SKY, "s", ".."),
    "update": Style(BLUE, "o"),
    "not accounted for": Style("#ffffff", "", ".."),
}
_SPARE = (
    Style(BLUE, "o"), Style(VERMILLION, "^", "//"), Style(GREEN, "P", "\\\\"),
    Style(PURPLE, "D", "xx"), Style(ORANGE, "v", "--"), Style(SKY, "s", ".."),
    Style(INK, "*", "++"), Style(GREY, "X", "oo"),
)  # fmt: skip


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name: its own where it is known, else one that nothing here has."""
    wanted = list(dict.fromkeys(names))
    taken = {_KNOWN[name].colour for name in wanted if name in _KNOWN}
    spare = [s for s in _SPARE if s.colour not in taken] or list(_SPARE)
    found, i = {}, 0
    for name in wanted:
        found[name] = _KNOWN.get(name) or replace(
            spare[i % len(spare)], line=("-", ":")[i // len(spare) % 2]
        )
        i += name not in _KNOWN
    return found


def require() -> None:
    """Raises `DataError` where matplotlib is absent."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise DataError(
            "a report needs matplotlib: pip install matplotlib (or tiered-emb[bench])"
        ) from error


def render(chart: Chart, source: str) -> bytes:
    """The chart as PNG: title, legend, plot, and a line on where its figures come from."""
    require()
    import matplotlib
    from matplotlib.figure import Figure

    title = textwrap.wrap(clip(chart.title, 120), 60)
    subject = textwrap.wrap(clip(chart.subject, 160), 88)
    footer = textwrap.wrap(clip(source, 400), 118)
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # names in any script
        figure = Figure(dpi=DPI, layout="constrained")
        axes = figure.subplots()
        chart.draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        columns = max(1, min(4, 72 // (max(map(len, labels), default=0) + 7)))
        # Inches of what is above and below the plot; the plot's height is the chart's.
        head = 0.12 + 0.21 * len(title) + 0.17 * len(subject)
        top = head + 0.05 + 0.195 * -(-len(labels) // columns)
        bottom = 0.1 + 0.105 * len(footer)
        height = chart.height + top + bottom
        figure.set_size_inches(WIDTH_INCHES, height)
        layout: Any = figure.get_layout_engine()
        layout.set(rect=(0, bottom / height, 1, chart.height / height), w_pad=0.08, h_pad=0.04)
        at: dict[str, Any] = {"x": 0.015, "ha": "left", "va": "top", "linespacing": 1.25}
        figure.text(
            y=1 - 0.1 / height,
            s="\n".join(title),
            fontsize=11.5,
            fontweight="bold",
            color=INK,
            **at,
        )
        under = 1 - (0.11 + 0.21 * len(title)) / height
        figure.text(y=under, s="\n".join(subject), fontsize=8.5, color=SOFT, **at)
        figure.text(y=(bottom - 0.04) / height, s="\n".join(footer), fontsize=5.8, color=SOFT, **at)
        if labels:
            figure.legend(
                handles, labels, loc="upper left", bbox_to_anchor=(0.003, 1 - head / height),
                ncols=columns, borderaxespad=0, columnspacing=1.4, handletextpad=0.5,
                labelspacing=0.35,
            )  # fmt: skip
        return _png(figure, {"Title": chart.title, "Source": source})


def _png(figure: Figure, texts: Mapping[str, str]) -> bytes:
    """With a palette, a third of the size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image, PngImagePlugin  # of matplotlib's requirements

    canvas: Any = FigureCanvasAgg(figure)
    png = io.BytesIO()
    canvas.draw()
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    image = (
        Image.fromarray(np.asarray(canvas.buffer_rgba()))
        .convert("RGB")
        .quantize(256, dither=Image.Dither.NONE)
    )
    image.save(png, format="png", optimize=True, pnginfo=info)
    return png.getvalue()


def clip(text: str, length: int) -> str:
    """Printable, in one line, and no longer than that."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= length else line[: length - 1] + "\u2026"


def lines(
    axes: Axes, series: Mapping[str, Sequence[tuple[float, Spread]]], log_x: bool = False
) -> None:
    """Series of medians with their quartiles."""
    of = styles(series)
    for name, points in series.items():
        found = sorted(points, key=lambda point: point[0])
        spreads = [spread for _, spread in found]
        axes.errorbar(
            [x for x, _ in found],
            [s.p50 for s in spreads],
            yerr=errors(spreads) if any(s.p75 > s.p25 for s in spreads) else None,
            color=of[name].colour,
            marker=of[name].marker or None,
            linestyle=of[name].line,
            capsize=3,
            linewidth=1.6,
            elinewidth=1,
            label=clip(name, 40),
        )
    if log_x:
        log_ticks(axes, "x", {x for points in series.values() for x, _ in points})
    axes.grid(axis="y")


def y_axis(axes: Axes, series: Mapping[str, Sequence[tuple[float, Spread]]], label: str) -> None:
    """A y axis from 0, or by its logarithm where values are far apart."""
    values = [spread.p50 for points in series.values() for _, spread in points]
    if max(values) > 20 * min(values):
        log_ticks(axes, "y")
        label += " (log scale)"
    else:
        axes.set_ylim(0, None)
        ticks(axes, "y")
    axes.set_ylabel(label)


def errors(spreads: Sequence[Spread]) -> tuple[list[float], list[float]]:
    """Bars from the medians to the quartiles."""
    below = [max(s.p50 - s.p25, 0.0) for s in spreads]
    return below, [max(s.p75 - s.p50, 0.0) for s in spreads]


def bars(axes: Axes, values: Mapping[str, Spread], labels: Sequence[str]) -> None:
    """Bars from the left with quartiles, the first on top, each with a text behind it."""
    of = styles(values)
    names = list(values)
    for i, (name, style) in enumerate(zip(names, of.values(), strict=True)):
        spread = values[name]
        axes.barh(
            i, spread.p50, xerr=[[e[0]] for e in errors([spread])], color=style.colour,
            hatch=style.hatch, edgecolor="white", capsize=3, height=0.66, ecolor=INK,
        )  # fmt: skip
        end = max(spread.p75, spread.p50)
        tag(axes, labels[i], (end, i))
    rows(axes, names)
    axes.set_xlim(0, max(max(s.p75, s.p50) for s in values.values()) * 1.55)
    ticks(axes, "x")
    axes.grid(axis="x")


def rows(axes: Axes, names: Sequence[str]) -> None:
    """Names of rows on the y axis, from the top."""
    axes.set_yticks(range(len(names)), [textwrap.fill(clip(n, 44), 24) for n in names])
    axes.set_ylim(len(names) - 0.45, -0.6)
    axes.tick_params(axis="y", length=0)


def rows_height(count: int) -> float:
    """Inches of a chart of so many rows."""
    return 0.65 + 0.4 * count


def ticks(axes: Axes, which: str, text: Callable[[float], str] = short) -> None:
    """Ticks of an axis as short numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(lambda value, _: text(value))


def log_ticks(
    axes: Axes, which: str, at: Iterable[float] = (), text: Callable[[float], str] = place
) -> None:
    """A logarithmic axis with ticks at these places, or at round ones if they are none or many."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axis: Any = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    places = sorted(at)
    if 0 < len(places) <= 9:
        (axes.set_xticks if which == "x" else axes.set_yticks)(places, [text(p) for p in places])
        axis.set_minor_locator(NullLocator())
        return
    low, high = sorted(axes.get_xlim() if which == "x" else axes.get_ylim())
    dense = high / max(low, 1e-300) < 1000
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if dense else (1,), numticks=14))
    axis.set_major_formatter(lambda value, _: text(value))
    axis.set_minor_formatter(NullFormatter())


def tag(axes: Axes, text: str, at: tuple[float, float], offset: float = 7) -> None:
    """A text right of a point, so many typographic points away."""
    axes.annotate(
        text, at, (offset, 0), textcoords="offset points", fontsize=9, color=INK, va="center",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
    )  # fmt: skip
