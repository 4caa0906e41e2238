"""The section on the memory wall: a model on machines of other years, and what was predicted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tiered_emb.bench.report import drawing
from tiered_emb.bench.report.parts import Chart, Report, Section, Table, number, source_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ORDER = ("layers", "hbm", "link", "dram", "ssd")


def section(report: Report) -> Section:
    """Projection, trends and validation."""
    projection, trends = report["projection"], report.get("trends") or []
    validation = report.get("validation")
    rated = [
        p for p in projection if p.get("model_flop_per_byte") and p.get("machine_flop_per_byte")
    ]
    charts = [_wall_chart(rated)] if rated else []
    charts.append(_busy_chart(projection))
    summary = []
    bound: dict[str, list[str]] = {}
    for p in projection:
        bound.setdefault(p["binding"], []).append(p["platform"])
    told = "; ".join(f"{what} on {', '.join(names)}" for what, names in bound.items())
    summary.append(f"By the model of the machine the step is bound by {told}.")
    if rated:
        worst = max(rated, key=_gap)
        summary.append(
            f"{worst['platform']} does {number(worst['machine_flop_per_byte'])} flop in the time "
            f"of a byte, the model needs {number(worst['model_flop_per_byte'])}: "
            f"{number(_gap(worst))} times fewer."
        )
    if len({t["year"] for t in trends}) > 1:
        editions = dict.fromkeys(str(t["edition"]) for t in trends)
        charts += [_trend_chart(edition, trends) for edition in editions]
    if validation is not None:
        charts.append(validation_chart(validation))
        summary.append(
            f"Predictions were within 15% of the measured step in "
            f"{validation['within_15_percent']:g} of {len(validation['predicted'])} cases."
        )
    return Section("The memory wall", summary, [], charts, [source_line(report)])


def _gap(p: Mapping[str, Any]) -> float:
    return float(p["machine_flop_per_byte"]) / float(p["model_flop_per_byte"])


def _platform(p: Mapping[str, Any]) -> str:
    return f"{p['platform']} ({p['year']:g})"


def _resources(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names that are busy at all, in order."""
    found = dict.fromkeys(name for p in items for name, s in p["busy_s"].items() if s > 0)
    return sorted(found, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


def _wall_chart(rated: Sequence[Mapping[str, Any]]) -> Chart:
    """Flop for a byte: what machines could do, and what the model needs."""
    ordered = sorted(rated, key=lambda p: float(p["year"]))

    def draw(axes: Axes) -> None:
        for i, p in enumerate(ordered):
            model, machine = p["model_flop_per_byte"], p["machine_flop_per_byte"]
            axes.plot([model, machine], [i, i], color=drawing.GRID, linewidth=6, zorder=1)
            axes.plot(
                model, i, "D", color=drawing.VERMILLION, label=None if i else "the model needs"
            )
            axes.plot(
                machine, i, "o", color=drawing.BLUE, markersize=8,
                label=None if i else "the machine can do",
            )  # fmt: skip
            drawing.tag(axes, f"{number(_gap(p))}x", (max(machine, model), i), 9)
        drawing.log_ticks(axes, "x")
        low, high = axes.get_xlim()
        axes.set_xlim(low, high * 2)
        drawing.rows(axes, [_platform(p) for p in ordered])
        axes.set_xlabel("flop for a byte of memory moved (log scale)")
        axes.grid(axis="x")

    rows = [
        (
            _platform(p),
            number(p["machine_flop_per_byte"]),
            number(p["model_flop_per_byte"]),
            number(_gap(p)),
        )
        for p in ordered
    ]
    return Chart(
        name="wall-intensity",
        title="The memory wall: flop for a byte",
        caption="Where the machine's point is right of the model's, arithmetic waits for memory, "
        "so many times over.",
        draw=draw,
        table=Table(("platform", "machine flop/byte", "model flop/byte", "ratio"), rows),
        height=drawing.rows_height(len(ordered)),
    )


def _busy_chart(projection: Sequence[Mapping[str, Any]]) -> Chart:
    """Each resource's time for a step."""
    ordered = sorted(projection, key=lambda p: float(p["year"]))
    names = _resources(ordered)

    def draw(axes: Axes) -> None:
        of = drawing.styles(names)
        for name in names:
            places = [(p["busy_s"].get(name, 0) * 1e3, i) for i, p in enumerate(ordered)]
            shown = [place for place in places if place[0] > 0]
            axes.plot(
                [ms for ms, _ in shown], [i for _, i in shown], of[name].marker, markersize=8,
                color=of[name].colour, label=name,
            )  # fmt: skip
        for i, p in enumerate(ordered):
            longest = max([s * 1e3 for s in p["busy_s"].values()] + [p["step_s"] * 1e3])
            axes.axhline(i, color=drawing.GRID, linewidth=0.8, zorder=0)
            axes.plot(
                p["step_s"] * 1e3, i, "|", color=drawing.INK, markersize=20, markeredgewidth=2
            )  # fmt: skip
            text = f"{drawing.clip(p['binding'], 12)}, {number(p['step_s'] * 1e3)} ms"
            drawing.tag(axes, text, (longest, i), 9)
        axes.plot([], [], "|", color=drawing.INK, markersize=11, markeredgewidth=2, label="step")
        drawing.log_ticks(axes, "x")
        low, high = axes.get_xlim()
        axes.set_xlim(low, high * (high / low) ** 0.4)
        drawing.rows(axes, [_platform(p) for p in ordered])
        axes.set_xlabel("ms of a step that a resource is busy (log scale)")
        axes.grid(axis="x")

    rows = [
        (
            _platform(p),
            number(p["step_s"] * 1e3),
            p["binding"],
            number(p["samples_per_s"]),
            *(number(p["busy_s"].get(name, 0) * 1e3) for name in names),
        )
        for p in ordered
    ]
    header = ("platform", "step ms", "binds", "samples/s", *(f"{name} ms" for name in names))
    return Chart(
        name="wall-projection",
        title="The step on other machines, by resource",
        caption="Predicted from each machine's limits. The slowest resource binds; its name and "
        "the step's time stand on the right.",
        draw=draw,
        table=Table(header, rows),
        height=drawing.rows_height(len(ordered)),
    )


def _trend_chart(edition: str, trends: Sequence[Mapping[str, Any]]) -> Chart:
    """Each resource's time over the years, as one edition of the article has them grow."""
    ordered = sorted(
        (t for t in trends if str(t["edition"]) == edition), key=lambda t: float(t["year"])
    )
    names = _resources(ordered)

    def draw(axes: Axes) -> None:
        of = drawing.styles(names)
        for name in names:
            points = [(t["year"], t["busy_s"].get(name, 0) * 1e3) for t in ordered]
            shown = [point for point in points if point[1] > 0]
            axes.plot(
                [year for year, _ in shown], [ms for _, ms in shown], color=of[name].colour,
                marker=of[name].marker, label=name,
            )  # fmt: skip
        drawing.log_ticks(axes, "y")
        years = sorted({t["year"] for t in ordered})
        if len(years) <= 9:
            axes.set_xticks(years, [f"{year:g}" for year in years])
        axes.set_xlabel("year of the machine")
        axes.set_ylabel("ms of a step (log scale)")
        axes.grid(axis="y", which="both")

    rows = [
        (
            f"{t['year']:g}",
            t["binding"],
            *(number(t["busy_s"].get(name, 0) * 1e3) for name in names),
        )
        for t in ordered
    ]
    return Chart(
        name=f"wall-trends-{re.sub('[^a-z0-9]+', '-', edition.lower()).strip('-')}",
        title=f"The same step as machines get faster: {edition}",
        caption="Resources get faster at different rates, so what binds changes. Time that each "
        "needs for the step, by the year of the machine.",
        draw=draw,
        table=Table(("year", "binds", *(f"{name} ms" for name in names)), rows),
    )


def validation_chart(validation: Mapping[str, Any]) -> Chart:
    """What was predicted beside what was measured."""
    cases = validation["predicted"]

    def draw(axes: Axes) -> None:
        for i, case in enumerate(cases):
            measured, predicted = case["measured_ms"], case["predicted_ms"]
            axes.fill_betweenx(
                [i - 0.3, i + 0.3], measured * 0.85, measured * 1.15, color="#dcebf5", linewidth=0,
                label=None if i else "within 15%",
            )  # fmt: skip
            axes.plot(measured, i, "o", color=drawing.BLUE, label=None if i else "measured")
            axes.plot(
                predicted, i, "D", color=drawing.VERMILLION, fillstyle="none", markersize=8,
                markeredgewidth=1.8, label=None if i else "predicted",
            )  # fmt: skip
            end = max(measured * 1.15, predicted)
            drawing.tag(axes, f"{predicted / measured - 1:+.0%}", (end, i), 9)
        values = [case[f"{what}_ms"] for case in cases for what in ("measured", "predicted")]
        if max(values) > 20 * min(values):
            drawing.log_ticks(axes, "x")
        else:
            axes.set_xlim(0, max(values) * 1.3)
            drawing.ticks(axes, "x")
        drawing.rows(axes, [case["name"] for case in cases])
        axes.set_xlabel("ms of a step")
        axes.grid(axis="x")

    rows = [
        (
            case["name"],
            number(case["measured_ms"]),
            number(case["predicted_ms"]),
            f"{case['predicted_ms'] / case['measured_ms'] - 1:+.1%}",
        )
        for case in cases
    ]
    return Chart(
        name="wall-validation",
        title="The prediction beside what was measured here",
        caption="The same formula with this machine's limits, on steps that were measured.",
        draw=draw,
        table=Table(("case", "measured ms", "predicted ms", "error"), rows),
        height=drawing.rows_height(len(cases)),
    )
