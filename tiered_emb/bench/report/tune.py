"""The section on tier sizes: what the tuner found, and what speaks for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tiered_emb.bench.report import drawing
from tiered_emb.bench.report.parts import (
    Chart,
    Report,
    Section,
    Spread,
    Table,
    bytes_tick,
    number,
    percent,
    short,
    source_line,
)
from tiered_emb.bench.report.wall import validation_chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CURVES = {"policy": "lookahead", "lru": "lru", "optimum": "optimum"}  # drawn in their style
_TITLES = {"policy": "ours: lookahead", "lru": "LRU", "optimum": "Belady's optimum"}
_HBM_CLASSES_MAX = 4
_OF_HBM = ((drawing.BLUE, "o"), (drawing.VERMILLION, "^"), (drawing.GREEN, "P"),
           (drawing.PURPLE, "D"), (drawing.ORANGE, "v"))  # fmt: skip
_TICKS_MAX = 8


def section(report: Report) -> Section:
    """Curves, the Pareto front, the recommended sizes and what else there would be."""
    curves = report.get("curves") or []
    together = [found for found in curves if "lru" in found["curves"]]
    charts = [_curves_chart(found, report) for found in together[:1]]
    tables = [found for found in curves if "lru" not in found["curves"]]
    charts += [_tables_chart(tables)] if tables else []
    charts.append(_front_chart(report))
    if any(report["recommended"]["busy_ms"].values()):
        charts.append(_busy_chart(report))
    summary = _summary(report)
    validation = report.get("validation")
    if validation is not None and validation["predicted"]:
        chart = validation_chart(validation)
        charts.append(replace(chart, name="tune-validation"))
        summary.append(
            f"Of steps that the engine was not fitted to, predicted from what their layers take: "
            f"{validation['within_15_percent']:g} of {len(validation['predicted'])} within 15%."
        )
    warnings = []
    if report["is_projection"]:
        warnings.append(
            "Tier sizes are a projection: the device's figures are those of its data sheet, no "
            "device was measured."
        )
    return Section(
        title="Tier sizes from a trace",
        summary=summary,
        warnings=warnings,
        charts=charts,
        sources=[source_line(report)],
        tables=_tables(report),
    )


def _summary(report: Report) -> list[str]:
    best, model = report["recommended"], report["model"]
    how = "Projected" if report["is_projection"] else "Predicted"
    rate = f"{number(best['step_ms'])} ms a step, {_rate(report, best['step_ms'])}"
    of = f"{model['tables']:,} tables of {short(model['rows'])} rows ({bytes_tick(model['bytes'])})"
    told = [
        f"Recommended for {of}: {_sizes(best)}.",
        f"{how}: {rate}; what binds is {best['binding']}.",
    ]
    if best["dram_bytes"] is not None:
        life = report.get("life_years")
        lasts = "" if life is None else f", at which the drive lasts {years_text(life)}"
        told.append(
            f"The ssd is read {number(best['ssd_reads_per_s'])} times a second; "
            f"{_terabytes(best)} TB are written to it a day{lasts}."
        )
    return told


def _sizes(point: Mapping[str, Any]) -> str:
    """Of a point's tiers."""
    hbm = f"{bytes_tick(point['hbm_bytes'])} of hbm and " if point["hbm_bytes"] else ""
    if point["dram_bytes"] is None:
        return f"{hbm}all rows in dram"
    return f"{hbm}{bytes_tick(point['dram_bytes'])} of dram before an ssd"


def years_text(years: float) -> str:
    """A time as people say it."""
    if years < 1:
        return f"{number(years * 365.25)} days"
    return f"{number(years)} years" if years < 100 else "more than 100 years"


def _terabytes(point: Mapping[str, Any]) -> str:
    return number(point["ssd_written_bytes_a_day"] / 1e12)


def _rate(report: Report, step_ms: float) -> str:
    size = report["model"].get("batch_size")
    return f"{size / step_ms * 1e3:,.0f} samples/s" if size else f"{number(1e3 / step_ms)} steps/s"


def _points(curve: Mapping[str, Any], rows: float) -> list[tuple[float, Spread]]:
    """Misses in percent with their standard error, by the percentage of so many rows."""
    return [
        (size / rows * 100, Spread(miss - error, miss, miss + error).times(100))
        for size, miss, error in zip(curve["rows"], curve["misses"], curve["error"], strict=False)
    ]


def _curves_chart(found: Mapping[str, Any], report: Report) -> Chart:
    """Misses of all tables together, by size."""
    best, model = report["recommended"], report["model"]
    of = {
        kind: _points(found["curves"][kind], found["rows"])
        for kind in _CURVES
        if kind in found["curves"]
    }
    marked = {"dram": min(1.0, best["slots"] / found["rows"])}
    if best["hbm_bytes"]:
        marked["hbm"] = min(1.0, best["hbm_bytes"] / model["bytes"])

    def draw(axes: Axes) -> None:
        style = drawing.styles(_CURVES.values())
        for kind, points in of.items():
            own = style[_CURVES[kind]]
            spreads = [spread for _, spread in points]
            axes.errorbar(
                [x for x, _ in points], [s.p50 for s in spreads],
                yerr=drawing.errors(spreads) if any(s.p75 > s.p25 for s in spreads) else None,
                color=own.colour, marker=own.marker, linestyle=own.line, markersize=4.5,
                capsize=2, linewidth=1.4, elinewidth=1, label=_TITLES[kind],
            )  # fmt: skip
        top = max(spread.p75 for points in of.values() for _, spread in points)
        axes.set_ylim(0, max(top, 1.0) * 1.12)
        for tier, share in marked.items():
            line = "-." if tier == "dram" else ":"
            axes.axvline(
                share * 100, color=drawing.GREY, linestyle=line, linewidth=1.6, zorder=0,
                label=f"recommended {tier}: {percent(share)}",
            )  # fmt: skip
        drawing.log_ticks(axes, "x", text=lambda share: f"{share:.6g}")
        axes.set_xlabel(f"rows held, % of {found['rows']:,} (log scale)")
        axes.set_ylabel("lookups that miss, %")
        axes.grid(axis="y")

    policy = found["curves"]["policy"]
    others = [kind for kind in of if kind != "policy"]
    rows = [
        (
            f"{size:,.0f}",
            percent(size / found["rows"]),
            f"{spread.p50:.2f}%",
            f"{(spread.p75 - spread.p25) / 2:.2f}%",
            *(f"{of[kind][i][1].p50:.2f}%" if i < len(of[kind]) else "" for kind in others),
        )
        for i, (size, (_, spread)) in enumerate(zip(policy["rows"], of["policy"], strict=False))
    ]
    header = ("rows", "of all", _TITLES["policy"], "standard error", *(_TITLES[k] for k in others))
    return Chart(
        name="tune-curves",
        title="Misses by the rows that a tier holds, all tables together",
        subject=f"{number(found['lookups_a_step'])} lookups of "
        f"{number(found['unique_rows_a_step'])} rows a step",
        caption="From a sample of the trace; whiskers are the standard error of sampling. No "
        "cache misses less than Belady's optimum, which knows the future.",
        draw=draw,
        table=Table(header, rows),
    )


def _tables_chart(found: Sequence[Mapping[str, Any]]) -> Chart:
    """Misses of each table by itself."""
    of: dict[str, tuple[Mapping[str, Any], list[tuple[float, float]]]] = {}
    for i, table in enumerate(found):
        curve = table["curves"]["policy"]
        points = list(zip(curve["rows"], curve["misses"], strict=False))
        name = drawing.clip(table["table"], 24)
        of[name if name not in of else f"{name} ({i + 1})"] = (table, points)

    def draw(axes: Axes) -> None:
        styles = drawing.styles(of)
        for name, (_, points) in of.items():
            own = styles[name]
            axes.plot(
                [x for x, _ in points], [miss * 100 for _, miss in points], color=own.colour,
                marker=own.marker, linestyle=own.line, markersize=4.5, linewidth=1.4, label=name,
                markevery=2, clip_on=False,
            )  # fmt: skip
        drawing.log_ticks(axes, "x", text=short)
        axes.set_ylim(0, None)
        axes.set_xlabel("rows of the table that are held (log scale)")
        axes.set_ylabel("its lookups that miss, %")
        axes.grid(axis="y")

    rows = [
        (
            name,
            f"{table['rows']:,}",
            number(table["lookups_a_step"]),
            number(table["unique_rows_a_step"]),
            *(_miss_at(points, table["rows"] * share) for share in (0.01, 0.1, 0.5)),
        )
        for name, (table, points) in of.items()
    ]
    header = ("table", "rows", "lookups a step", "rows a step", "misses with 1%", "with 10%",
              "with 50%")  # fmt: skip
    return Chart(
        name="tune-tables",
        title="Misses of single tables, each with a cache of its own",
        caption="The tables with the most lookups. A curve that falls early is of a table with few "
        "hot rows; one that stays level gains little from more room.",
        draw=draw,
        table=Table(header, rows),
        height=3.2,
    )


def _miss_at(points: Sequence[tuple[float, float]], rows: float) -> str:
    """Misses with so many rows: those of the largest size up to that; nothing below the first."""
    below = [miss for size, miss in points if size <= rows]
    return f"{below[-1]:.1%}" if below else ""


def _hbm_classes(points: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Points by the size of hbm: each size by itself, or a few ranges if there are many."""
    sizes = sorted({float(p["hbm_bytes"]) for p in points if p["hbm_bytes"]})
    none = [p for p in points if not p["hbm_bytes"]]
    classes = [("no hbm", none)] if none else []
    if not sizes:
        return classes
    ends = sizes
    if len(sizes) > _HBM_CLASSES_MAX:
        step = math.log(sizes[-1] / sizes[0]) / _HBM_CLASSES_MAX
        ends = [sizes[0] * math.exp(step * (i + 1)) for i in range(_HBM_CLASSES_MAX)]
        ends[-1] = sizes[-1]
    up_to = "hbm up to" if len(sizes) > _HBM_CLASSES_MAX else "hbm"
    for low, high in zip([0.0, *ends[:-1]], ends, strict=True):
        inside = [p for p in points if low < float(p["hbm_bytes"]) <= high]
        if inside:
            classes.append((f"{up_to} {bytes_tick(high)}", inside))
    return classes


def _front_chart(report: Report) -> Chart:
    """Step time by dram, a series for each class of hbm."""
    front, best, model = report["front"], report["recommended"], report["model"]
    everything = model["all_in_dram_bytes"]

    def dram_of(point: Mapping[str, Any]) -> float:
        return float(everything if point["dram_bytes"] is None else point["dram_bytes"])

    def draw(axes: Axes) -> None:
        classes = _hbm_classes(front)
        for (name, points), (colour, marker) in zip(classes, _OF_HBM, strict=False):
            found = sorted((dram_of(p), p["step_ms"]) for p in points)
            of_one_size = len({p["hbm_bytes"] for p in points}) == 1
            axes.plot(
                [x for x, _ in found], [ms for _, ms in found], color=colour, marker=marker,
                linestyle="-" if of_one_size else "", markersize=5, linewidth=1.4,
                label=name if len(classes) > 1 or classes[0][0] != "no hbm" else "sizes",
            )  # fmt: skip
        axes.plot(
            dram_of(best), best["step_ms"], "o", markersize=13, markerfacecolor="none",
            markeredgecolor=drawing.INK, markeredgewidth=2, linestyle="", label="recommended",
        )  # fmt: skip
        drawing.log_ticks(axes, "x", _powers_of_two(map(dram_of, [*front, best])), bytes_tick)
        times = [p["step_ms"] for p in front]
        far_apart = max(times) > 20 * min(times)
        if far_apart:
            drawing.log_ticks(axes, "y")
        else:
            axes.set_ylim(0, None)
            drawing.ticks(axes, "y")
        axes.set_xlabel("dram (log scale)")
        axes.set_ylabel("ms of a step" + " (log scale)" * far_apart)
        axes.grid(axis="y")

    rows = [
        (
            "all rows" if p["dram_bytes"] is None else bytes_tick(p["dram_bytes"]),
            bytes_tick(p["hbm_bytes"]) if p["hbm_bytes"] else "",
            number(p["step_ms"]),
            _rate(report, p["step_ms"]),
            f"{p['dram_row_hit_ratio']:.1%}",
            number(p["ssd_reads_per_s"]),
            _terabytes(p),
            p["binding"],
        )
        for p in front
    ]
    header = ("dram", "hbm", "step ms", "rate", "rows found in dram", "ssd reads/s", "TB/day",
              "binds")  # fmt: skip
    return Chart(
        name="tune-front",
        title="Sizes that no others beat: the step by the size of its tiers",
        caption="Each point is the fastest with no more of either tier. The recommended one is "
        f"marked: {_sizes(best)}.",
        draw=draw,
        table=Table(header, rows),
    )


def _powers_of_two(sizes: Any) -> list[float]:
    """Ticks between sizes and one on each side, at most `_TICKS_MAX`."""
    logs = [math.log2(size) for size in sizes]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    step = max(1, -(-(high - low) // (_TICKS_MAX - 1)))
    return [2.0**power for power in range(low, high + 1, step)]


def _busy_chart(report: Report) -> Chart:
    """What the recommended step is made of: a bar for each group of resources."""
    best = report["recommended"]
    busy: Mapping[str, float] = best["busy_ms"]
    grouped = [name for group in best["groups"] for name in group]
    groups = [*best["groups"], *([name] for name in busy if name not in grouped)]
    shown = [[name for name in group if busy.get(name, 0.0) > 0] for group in groups]
    shown = [group for group in shown if group]
    names = list(dict.fromkeys(name for group in shown for name in group))
    longest = max(sum(busy[name] for name in group) for group in shown)
    is_in_line = abs(best["step_ms"] / longest - 1) > 0.001

    def draw(axes: Axes) -> None:
        of = drawing.styles(names)
        for i, group in enumerate(shown):
            left = 0.0
            for name in group:
                axes.barh(
                    i, busy[name], left=left, height=0.62, color=of[name].colour,
                    hatch=of[name].hatch, edgecolor="white", label=drawing.clip(name, 20),
                )  # fmt: skip
                if busy[name] > 0.09 * best["step_ms"]:
                    axes.text(
                        left + busy[name] / 2, i, number(busy[name]), ha="center", va="center",
                        fontsize=9, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
                    )  # fmt: skip
                left += busy[name]
        axes.axvline(best["step_ms"], color=drawing.INK, linewidth=2.5, label="step")
        drawing.rows(axes, [", ".join(group) for group in shown])
        axes.set_xlim(0, max(best["step_ms"], longest) * 1.08)
        drawing.ticks(axes, "x")
        axes.set_xlabel("ms of a step")
        axes.grid(axis="x")

    bars = {
        name: ", ".join(str(i + 1) for i, group in enumerate(shown) if name in group)
        for name in names
    }
    rows = [
        (name, bars[name], number(busy[name]), f"{busy[name] / best['step_ms']:.0%}")
        for name in names
    ]
    how = (
        "Nothing overlaps here: the step takes as long as all but fetch, which slows nothing then."
        if is_in_line
        else "The longest bar is the step."
    )
    return Chart(
        name="tune-busy",
        title="What a step of the recommended sizes is made of",
        subject=_sizes(best),
        caption=f"Resources of one bar take turns, bars go on side by side. {how} Predicted.",
        draw=draw,
        table=Table(("resource", "bar", "busy ms", "of the step"), rows),
        height=drawing.rows_height(len(shown)),
    )


def _tables(report: Report) -> list[tuple[str, Table]]:
    """What no chart shows."""
    model = report["model"]
    own = (model.get("optimizer"), model["dtype"])
    other_rows = [
        (
            f"{other.get('optimizer') or 'inference'}, {other['dtype']}"
            + (" (as now)" if (other.get("optimizer"), other["dtype"]) == own else ""),
            bytes_tick(other["bytes"]),
            number(other["step_ms"]) if other.get("step_ms") else "too small",
            _rate(report, other["step_ms"]) if other.get("step_ms") else "",
        )
        for other in report["what_if"]
    ]
    tables = [(
        "What if: the same tiers with rows kept otherwise",
        Table(("rows", "all of them", "step ms", "rate"), other_rows),
    )]  # fmt: skip
    extra = [
        (extra["tier"], bytes_tick(extra["bytes"]), f"{extra['gain']:+.1%}")
        for extra in report["extra"]
    ]
    if extra:
        tables.append(("What more of a tier would buy", Table(("tier", "more", "rate"), extra)))
    placement = report.get("placement")
    if placement is not None:
        told = "worth it" if placement["worth_it"] else "not worth it"
        heading = (
            f"Shares of dram for single tables: {placement['gain']:+.1%}, {told} "
            f"({number(placement['misses'])} rows read a step instead of "
            f"{number(placement['misses_shared'])})"
        )
        shares = [(name, percent(share)) for name, share in placement["shares"].items()]
        tables.append((heading, Table(("table", "of its rows"), shares)))
    return tables
