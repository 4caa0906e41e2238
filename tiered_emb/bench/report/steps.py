"""The section on training and inference of a DLRM: peers, where a step's time goes, cache size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiered_emb.bench.report import drawing
from tiered_emb.bench.report.parts import (
    NOISE_MAX,
    Chart,
    Report,
    Section,
    Spread,
    Table,
    bytes_tick,
    noise_warning,
    number,
    percent,
    short,
    slug,
    source_line,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Run = Mapping[str, Any]
TIERED, LAYERS = "tiered", "layers alone"
_RESOURCES = {"layers": "the layers", "dram": "rows in dram", "ssd": "the drive", "hbm": "hbm",
              "link": "the link to the device"}  # fmt: skip
FACTORS = {
    "policy": "rows moved up that the best cache of this size (Belady's) would have had",
    "amplification": "whole blocks moved for single rows",
    "bandwidth": "resources that took longer than their measured limits need",
    "overlap": "resources that waited for one another",
}


@dataclass(frozen=True)
class Group:
    """Runs of one workload, by the share of rows in dram."""

    title: str
    slug: str
    runs: Sequence[Run]

    @property
    def main(self) -> Run:
        """The run that asks most of the tiers: the smallest share in dram."""
        return self.runs[0]

    @property
    def by_share(self) -> list[Run]:
        """One run, the last, of each share."""
        return list({run["tiers"]["dram_share"]: run for run in self.runs}.values())


def groups(runs: Sequence[Run]) -> list[Group]:
    """Runs that differ in their tiers only, together."""
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        load, training, tiers = run["workload"], run["training"], run["tiers"]
        device = tiers.get("device")
        hbm = f", hbm of {bytes_tick(tiers['hbm_bytes'])} ({device})" if device else ""
        key = (load["name"], load["rows"], load["dim"], load["batch_size"], training["optimizer"],
               training["dtype"], hbm)  # fmt: skip
        found.setdefault(key, []).append(run)
    result, slugs = [], set[str]()
    for (name, rows, dim, batch, optimizer, dtype, hbm), of_key in found.items():
        what = f"training with {optimizer}" if optimizer else "inference"
        title = f"{name}, {rows:,} rows of {dim} x {dtype}, batch {batch:,}, {what}{hbm}"
        own = slug(name) if slug(name) not in slugs else f"{slug(name)}-{len(slugs) + 1}"
        slugs.add(own)
        ordered = sorted(of_key, key=lambda run: run["tiers"]["dram_share"])
        result.append(Group(title, own, ordered))
    return result


def section(reports: Sequence[Report]) -> Section:
    """Of reports of one machine."""
    of_all = groups([run for report in reports for run in report["runs"]])
    charts, summary, warnings = [], [], []
    for group in of_all:
        charts += _charts(group)
        summary.append(_summary(group))
        warnings += _warnings(group)
    left_out = {
        f"{group.title.split(',')[0]}: {name}": why
        for group in of_all
        for name, why in group.main["left_out"].items()
    }
    tables = []
    if left_out:
        tables.append(("Left out", Table(("contender", "why"), list(left_out.items()))))
    return Section(
        title="Training and inference, end to end",
        summary=summary,
        warnings=warnings,
        charts=charts,
        sources=list(dict.fromkeys(source_line(report) for report in reports)),
        tables=tables,
    )


def _charts(group: Group) -> list[Chart]:
    charts = [_peers(group)]
    if len(group.by_share) > 1:
        charts.append(_cache_size(group))
        charts.append(_hits(group))
    return [*charts, _breakdown(group), _waterfall(group)]


def _in_dram(run: Run) -> str:
    return f"{percent(run['tiers']['dram_share'])} in dram"


def _round_ms(contender: Mapping[str, Any]) -> Spread:
    return Spread(*(contender[f"round_ms_{q}"] for q in ("p25", "p50", "p75")))


def _samples(run: Run, contender: Mapping[str, Any]) -> Spread:
    return _round_ms(contender).under(run["workload"]["batch_size"] * 1e3)


def _summary(group: Group) -> str:
    """The main run in a few sentences."""
    run = group.main
    load, e, tiered = run["workload"], run["efficiency"], run["contenders"][TIERED]
    ms = _round_ms(tiered)
    first = (
        f"{load['name']} with {_in_dram(run)} ({load['rows']:,} rows, "
        f"{bytes_tick(load['all_rows_bytes'])}, batch {load['batch_size']:,}): "
        f"{number(tiered['samples_per_s'])} samples/s, a step of {number(ms.p50)} ms (quartiles "
        f"{number(ms.p25)} to {number(ms.p75)})."
    )
    text = [first]
    peers = {
        name: tiered["samples_per_s"] / c["samples_per_s"]
        for name, c in run["contenders"].items()
        if not name.startswith(TIERED) and name != LAYERS
    }
    if peers:
        ratios = ", ".join(f"{ratio:.2f} times that of {name}" for name, ratio in peers.items())
        text.append(f"The throughput is {ratios}.")
    factor = min(FACTORS, key=lambda name: float(e[name]))
    binds = _RESOURCES.get(e["binding"], e["binding"])
    text.append(
        f"What binds is {binds}: no step could take less than {number(e['bound_s'] * 1e3)} ms "
        f"here, so eta is {e['eta']:.2f}."
    )
    if e[factor] < 0.995:
        text.append(f"The largest loss is {factor}, {e[factor]:.2f}: {FACTORS[factor]}.")
    a = run["accounting"]
    text.append(
        f"The parts of a step in line add up to {a['sum_over_step']:.0%} of it: the accounting "
        f"{'closes' if a['closes'] else 'does not close'} within 5%."
    )
    return " ".join(text)


def _warnings(group: Group) -> list[str]:
    """Noisy contenders, and medians that another run of the same did not give."""
    name = group.title.split(",")[0]
    spreads: dict[str, Spread] = {}
    medians: dict[str, list[float]] = {}
    for run in group.runs:
        for contender, c in run["contenders"].items():
            figure = f"{contender} with {_in_dram(run)}"
            spreads[figure] = max(
                _round_ms(c), spreads.get(figure, _round_ms(c)), key=lambda spread: spread.share
            )
            medians.setdefault(figure, []).append(c["round_ms_p50"])
    moved = {figure: max(of) / min(of) - 1 for figure, of in medians.items()}
    off = ", ".join(f"{figure} ({by:.0%})" for figure, by in moved.items() if by > NOISE_MAX)
    again = (
        f"{name}: the machine was too noisy: repeated, these medians moved by more than "
        f"{NOISE_MAX:.0%}: {off}."
    )
    return noise_warning(name, spreads) + [again] * bool(off)


def _peers(group: Group) -> Chart:
    """Contenders of the main run side by side."""
    run = group.main
    contenders = dict(sorted(run["contenders"].items(), key=lambda item: item[0] == LAYERS))
    values = {name: _samples(run, c) for name, c in contenders.items()}
    labels = [
        f"{short(values[name].p50)}/s, {number(c['round_ms_p50'])} ms"
        + (", noisy" if values[name].is_noisy else "")
        for name, c in contenders.items()
    ]

    def draw(axes: Axes) -> None:
        drawing.bars(axes, values, labels)
        axes.set_xlabel("samples/s (bars: median of rounds, whiskers: quartiles)")

    rows = []
    for each in group.runs:
        for name, c in each["contenders"].items():
            step = c["step_ms"]
            rows.append((
                name, _in_dram(each), *_round_ms(c).cells, number(step["p95"]),
                number(step["p99"]), number(c["samples_per_s"]), number(c["lookups_per_s"] / 1e6),
            ))  # fmt: skip
    header = ("contender", "tiered", "step ms", "quartiles", "p95 ms", "p99 ms", "samples/s",
              "M lookups/s")  # fmt: skip
    limited = f" The mapped peer: {run['limited_by']}." if run.get("limited_by") else ""
    return Chart(
        name=f"dlrm-{group.slug}-peers",
        title=f"Peers side by side, {_in_dram(run)}",
        subject=group.title,
        caption="Contenders take turns in one process on the same batches. Peers without tiers "
        f"hold every row in memory; the layers alone look nothing up.{limited}",
        draw=draw,
        table=Table(header, rows),
        height=drawing.rows_height(len(values)),
    )


def _cache_size(group: Group) -> Chart:
    """Throughput against the share of rows in dram."""
    series: dict[str, list[tuple[float, Spread]]] = {}
    bounds = []
    for run in group.by_share:
        share, batch = run["tiers"]["dram_share"] * 100, run["workload"]["batch_size"]
        for name, c in run["contenders"].items():
            series.setdefault(name, []).append((share, _samples(run, c)))
        bounds.append((share, batch / run["efficiency"]["bound_s"]))
    series["bound"] = [(share, Spread(rate, rate, rate)) for share, rate in bounds]

    def draw(axes: Axes) -> None:
        drawing.lines(axes, series, log_x=True)
        drawing.y_axis(axes, series, "samples/s")
        size = bytes_tick(group.main["workload"]["all_rows_bytes"])
        axes.set_xlabel(f"rows in dram, % of {size} (log scale)")

    names = list(series)
    found = {name: dict(points) for name, points in series.items()}
    rows = [
        (f"{share:.3g}", *(number(found[n][share].p50) if share in found[n] else "" for n in names))
        for share, _ in bounds
    ]
    return Chart(
        name=f"dlrm-{group.slug}-cache-size",
        title="Throughput against cache size",
        subject=group.title,
        caption="Peers that hold every row in memory do not depend on the share; they were run "
        "beside each. The bound is what this machine's limits and the best cache allow.",
        draw=draw,
        table=Table(("% in dram", *(f"{n}, samples/s" for n in names)), rows),
        height=3.3,
    )


def _hits(group: Group) -> Chart:
    """Hit ratio beside Belady's."""
    runs = group.by_share
    names = {"tiered": "row_hit_ratio", "optimum": "optimal_hit_ratio"}

    def draw(axes: Axes) -> None:
        of = drawing.styles(names)
        for name, field in names.items():
            x = [run["tiers"]["dram_share"] * 100 for run in runs]
            style = of[name]
            axes.plot(
                x, [run[field] * 100 for run in runs], color=style.colour, marker=style.marker,
                linestyle=style.line, label={"optimum": "Belady's optimum"}.get(name, name),
            )  # fmt: skip
        drawing.log_ticks(axes, "x", [run["tiers"]["dram_share"] * 100 for run in runs])
        axes.set_ylim(0, 102)
        size = bytes_tick(group.main["workload"]["all_rows_bytes"])
        axes.set_xlabel(f"rows in dram, % of {size} (log scale)")
        axes.set_ylabel("rows of a batch found in dram, %")
        axes.grid(axis="y")

    rows = [
        (
            f"{run['tiers']['dram_share'] * 100:.3g}",
            f"{run['row_hit_ratio']:.1%}",
            f"{run['optimal_hit_ratio']:.1%}",
            number(run["work"]["misses"]),
            number(run["work"]["optimal_misses"]),
        )
        for run in runs
    ]
    header = ("% in dram", "hits", "optimum", "misses a step", "optimal misses a step")
    return Chart(
        name=f"dlrm-{group.slug}-hits",
        title="Hits against Belady's optimum",
        subject=group.title,
        caption="Of the distinct rows of a batch. The optimum is Belady's on the same ids, which "
        "knows the future; no cache of that size finds more.",
        draw=draw,
        table=Table(header, rows),
    )


def _breakdown(group: Group) -> Chart:
    """Parts of a step in line, a bar a run."""
    runs = group.by_share
    parts = list(dict.fromkeys(p for run in runs for p in run["accounting"]["parts_s"]))
    rest = "not accounted for"

    def rest_s(run: Run) -> float:
        a = run["accounting"]
        return max(0.0, float(a["step_s"] - sum(a["parts_s"].values())))

    def draw(axes: Axes) -> None:
        of = drawing.styles([*parts, rest])
        longest = max(float(run["accounting"]["step_s"]) * 1e3 for run in runs)
        for i, run in enumerate(runs):
            left = 0.0
            a = run["accounting"]
            for name in [*parts, rest]:
                ms = (rest_s(run) if name == rest else a["parts_s"].get(name, 0.0)) * 1e3
                axes.barh(
                    i, ms, left=left, height=0.62, color=of[name].colour, hatch=of[name].hatch,
                    edgecolor=drawing.GREY if name == rest else "white",
                    label=name if i == 0 else None,
                )  # fmt: skip
                if ms > 0.09 * longest:
                    axes.text(
                        left + ms / 2, i, number(ms), ha="center", va="center", fontsize=9,
                        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
                    )  # fmt: skip
                left += ms
            step = a["step_s"] * 1e3
            axes.plot([step] * 2, [i - 0.42, i + 0.42], color=drawing.INK, linewidth=2.5)
        axes.plot([], [], color=drawing.INK, linewidth=2.5, label="step, measured")
        drawing.rows(axes, [_in_dram(run) for run in runs])
        drawing.ticks(axes, "x")
        axes.set_xlim(0, None)
        axes.set_xlabel("ms of a step in line (nothing fetched ahead)")
        axes.grid(axis="x")

    rows = []
    for run in runs:
        a = run["accounting"]
        cells = [number(a["parts_s"].get(name, 0.0) * 1e3) for name in parts]
        closes = f"{a['sum_over_step']:.0%}" + ("" if a["closes"] else " (does not close)")
        rows.append((_in_dram(run), *cells, number(a["step_s"] * 1e3), closes))
    header = ("run", *(f"{name} ms" for name in parts), "step ms", "sum / step")
    return Chart(
        name=f"dlrm-{group.slug}-breakdown",
        title="Where the time of a step goes",
        subject=group.title,
        caption="Parts are measured one by one in a step that waits for each; the layers are "
        "those of a model without lookups. A step with prefetching overlaps them.",
        draw=draw,
        table=Table(header, rows),
        height=drawing.rows_height(len(runs)),
    )


def _waterfall(group: Group) -> Chart:
    """From the bound to the step."""
    run = group.main
    e = run["efficiency"]
    times = [float(e["bound_s"]) * 1e3]
    for factor in FACTORS:
        times.append(times[-1] / e[factor])

    def draw(axes: Axes) -> None:
        axes.barh(0, times[0], color=drawing.GREEN, hatch="\\\\", edgecolor="white", height=0.62)
        drawing.tag(axes, f"{number(times[0])} ms, bound by {e['binding']}", (times[0], 0))
        for i, factor in enumerate(FACTORS, 1):
            before, after = times[i - 1], times[i]
            gains = after < before
            axes.barh(
                i, after - before, left=before, height=0.62, edgecolor="white",
                color=drawing.SKY if gains else drawing.VERMILLION, hatch=".." if gains else "//",
            )  # fmt: skip
            axes.plot([before] * 2, [i - 1.31, i + 0.31], color=drawing.GREY, linewidth=0.8)
            text = f"{after - before:+.2f} ms, factor {e[factor]:.2f}"
            drawing.tag(axes, text, (max(before, after), i))
        last = len(FACTORS) + 1
        axes.plot([times[-1]] * 2, [last - 1.31, last + 0.31], color=drawing.GREY, linewidth=0.8)
        axes.barh(last, times[-1], color=drawing.BLUE, edgecolor="white", height=0.62)
        eta = f"{number(times[-1])} ms, eta {e['eta']:.2f}"
        drawing.tag(axes, eta, (times[-1], last))
        drawing.rows(axes, ["bound, T_min", *FACTORS, "step, measured"])
        axes.set_xlim(0, max(times) * 1.5)
        drawing.ticks(axes, "x")
        axes.set_xlabel("ms of a step")
        axes.grid(axis="x")

    rows = [
        (
            _in_dram(r),
            number(r["efficiency"]["bound_s"] * 1e3),
            r["efficiency"]["binding"],
            *(f"{r['efficiency'][factor]:.2f}" for factor in FACTORS),
            f"{r['efficiency']['eta']:.2f}",
            number(r["efficiency"]["step_s"] * 1e3),
            number(r["efficiency"]["no_overlap_s"] * 1e3),
        )
        for r in group.runs
    ]
    header = ("run", "T_min ms", "binds", *FACTORS, "eta", "step ms", "T_min without overlap ms")
    return Chart(
        name=f"dlrm-{group.slug}-bound",
        title=f"From the bound to the step, {_in_dram(run)}",
        subject=group.title,
        caption="The bound divided by each factor in turn gives the step; eta is their product. A "
        "factor above 1 is a gain on what the bound assumes, as where one block holds many rows.",
        draw=draw,
        table=Table(header, rows),
        height=drawing.rows_height(6),
    )
