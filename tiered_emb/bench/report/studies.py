"""The sections on lookups alone, on caches, and on the drive through the store."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tiered_emb.bench.report import drawing
from tiered_emb.bench.report.parts import (
    Chart,
    Report,
    Section,
    Spread,
    Table,
    noise_warning,
    number,
    percent,
    place,
    slug,
    source_line,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POLICIES = {"optimum": "Belady's optimum", "lookahead": "ours: lookahead"}


def lookup_section(report: Report) -> Section:
    """How the cost of a lookup scales, beside peers."""
    warnings, charts = [], []
    ratios: dict[tuple[str, str], list[float]] = {}
    for name, study in report["studies"].items():
        charts.append(_study_chart(name, study))
        spreads = {
            f"{s['label']} at {place(p['x'])}": Spread.of(p)
            for s in study["series"]
            for p in s["points"]
        }
        warnings += noise_warning(study["title"], spreads)
        for other, found in _ratios(study).items():
            ratios.setdefault((other, study["series"][0]["label"]), []).extend(found)
    summary = [
        f"{other} takes {_range(found)} times as long as {ours}, over {len(found)} places in "
        f"{len(report['studies'])} studies."
        for (other, ours), found in ratios.items()
    ]
    title = "Lookups: scaling with rows, batch and more"
    return Section(title, summary, warnings, charts, [source_line(report)])


def _unit(name: str, unit: str) -> str:
    return f"{name}, {unit}" if unit else name


def _range(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def _ratios(study: Mapping[str, Any]) -> dict[str, list[float]]:
    """Every other series over the first, where both were measured."""
    ours, *others = study["series"]
    mine = {p["x"]: p["p50"] for p in ours["points"]}
    ratios = {
        other["label"]: [p["p50"] / mine[p["x"]] for p in other["points"] if p["x"] in mine]
        for other in others
    }
    return {label: found for label, found in ratios.items() if found}


def _study_chart(name: str, study: Mapping[str, Any]) -> Chart:
    series = {
        s["label"]: [(float(p["x"]), Spread.of(p)) for p in s["points"]] for s in study["series"]
    }
    places = sorted({x for points in series.values() for x, _ in points})
    log_x = study["log_x"] and places[0] > 0

    def draw(axes: Axes) -> None:
        drawing.lines(axes, series, log_x=log_x)
        drawing.y_axis(axes, series, _unit(study["y"], study["y_unit"]))
        if not log_x:
            drawing.ticks(axes, "x")
        by = " (log scale)" if log_x else ""
        axes.set_xlabel(_unit(study["x"], study["x_unit"]) + by)

    found = {label: dict(points) for label, points in series.items()}
    rows = [
        (
            f"{x:,.6g}",
            *(c for of in found.values() for c in (of[x].cells if x in of else ("", ""))),
        )
        for x in places
    ]
    header = [_unit(study["x"], study["x_unit"])]
    for label in series:
        header += [_unit(label, study["y_unit"]), "quartiles"]
    return Chart(
        name=f"lookup-{slug(name)}",
        title=study["title"],
        caption="Medians; whiskers are quartiles. Lower is better."
        + "".join(
            f" {other}: {_range(found)} times as long as {study['series'][0]['label']}."
            for other, found in _ratios(study).items()
        ),
        draw=draw,
        table=Table(header, rows),
    )


def cache_section(report: Report) -> Section:
    """Misses of policies beside the optimum's, a chart a stream of ids."""
    charts, names, over = [], set[str](), []
    for stream in report["streams"]:
        own = slug(stream["name"])
        own = own if own not in names else f"{own}-{len(names) + 1}"
        names.add(own)
        charts.append(_stream_chart(own, stream))
        beside = [p["misses"] for p in stream["points"] if p["misses"]["optimum"] > 0]
        ratios = [m["lookahead"] / m["optimum"] for m in beside if "lookahead" in m]
        over += [f"{_range(ratios)} with {stream['name']}"] if ratios else []
    summary = [f"Our cache's misses over the optimum's: {', '.join(over)}."] if over else []
    return Section("Caches against Belady's optimum", summary, [], charts, [source_line(report)])


def _stream_chart(own: str, stream: Mapping[str, Any]) -> Chart:
    points = sorted(stream["points"], key=lambda p: float(p["share"]))
    policies = list(dict.fromkeys(name for p in points for name in p["misses"]))

    def draw(axes: Axes) -> None:
        of = drawing.styles(policies)
        for name in policies:
            found = [(p["share"], p["misses"][name]) for p in points if name in p["misses"]]
            axes.plot(
                [share * 100 for share, _ in found], [miss * 100 for _, miss in found],
                color=of[name].colour, marker=of[name].marker, linestyle=of[name].line,
                label=_POLICIES.get(name, drawing.clip(name, 30)),
            )  # fmt: skip
        drawing.log_ticks(axes, "x", [p["share"] * 100 for p in points])
        axes.set_ylim(0, None)
        axes.set_xlabel(f"cache, % of {stream['rows']:,} rows (log scale)")
        axes.set_ylabel("lookups that miss, %")
        axes.grid(axis="y")

    rows = [
        (
            percent(p["share"]),
            *(f"{p['misses'][n]:.2%}" if n in p["misses"] else "" for n in policies),
        )
        for p in points
    ]
    header = ("cache", *(_POLICIES.get(n, n) for n in policies))
    return Chart(
        name=f"cache-{own}",
        title=f"Misses by cache size: {stream['name']}",
        subject=f"{stream['about']}; {stream['lookups']:,} lookups of {stream['rows']:,} rows",
        caption="No cache misses less than Belady's optimum, which knows the future.",
        draw=draw,
        table=Table(header, rows),
    )


def ssd_section(report: Report) -> Section:
    """The store beside the drive's limit."""
    points = report["points"]
    limited = [p for p in points if p.get("of_limit")]
    spreads = {p["title"]: Spread.of(p["ours"]) for p in points}
    summary = []
    if limited:
        shares = {p["title"]: float(p["of_limit"]) for p in limited}
        low = min(shares, key=lambda name: shares[name])
        summary.append(
            f"The store reaches {statistics.median(shares.values()):.0%} (median of {len(shares)} "
            f"tasks) of what the drive gives; least in {low}, {shares[low]:.0%}."
        )
    rows = [
        (
            p["title"],
            p["unit"],
            *spreads[p["title"]].cells,
            number(p["limit"]) if p.get("limit") else "",
            f"{p['of_limit']:.0%}" if p.get("of_limit") else "",
        )
        for p in points
    ]
    table = Table(("", "unit", "ours", "quartiles", "limit", "of limit"), rows)
    charts = [_limited_chart(limited, table)] if limited else []
    return Section(
        title="The drive through the store",
        summary=summary,
        warnings=noise_warning("The drive", spreads),
        charts=charts,
        sources=[source_line(report)],
        tables=[] if limited else [("The store", table)],
    )


def _limited_chart(points: Sequence[Mapping[str, Any]], table: Table) -> Chart:
    shares = {}
    for p in points:
        ours, of = Spread.of(p["ours"]), float(p["of_limit"])
        # Of a time the limit is the least: its share is the other way round.
        is_rate = not p.get("limit") or math.isclose(ours.p50 / p["limit"], of, rel_tol=0.02)
        shares[p["title"]] = ours.times(of / ours.p50) if is_rate else ours.under(of * ours.p50)
    percents = {name: spread.times(100) for name, spread in shares.items()}
    labels = [f"{s.p50:.0f}%, {number(p['ours']['p50'])} {p['unit']}"
              for s, p in zip(percents.values(), points, strict=True)]  # fmt: skip

    def draw(axes: Axes) -> None:
        end = max(102.0, *(max(s.p75, s.p50) for s in percents.values()))
        for i, (spread, label) in enumerate(zip(percents.values(), labels, strict=True)):
            axes.barh(
                i, spread.p50, xerr=[[e[0]] for e in drawing.errors([spread])],
                color=drawing.SKY, capsize=3, height=0.62, ecolor=drawing.INK,
            )  # fmt: skip
            drawing.tag(axes, drawing.clip(label, 30), (end, i))
        axes.axvline(100, color=drawing.INK, linestyle="--", linewidth=1.4)
        axes.plot([], [], "--", color=drawing.INK, label="the drive's limit")
        drawing.rows(axes, list(percents))
        axes.set_xlim(0, end * 1.65)
        axes.set_xlabel("% of the limit measured in the same run")
        axes.grid(axis="x")

    return Chart(
        name="ssd-limit",
        title="The store beside what the drive gives",
        caption="Whiskers are quartiles.",
        draw=draw,
        table=table,
        height=drawing.rows_height(len(percents)),
    )
