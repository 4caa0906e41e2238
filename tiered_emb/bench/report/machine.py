"""The section on the machine: what memory, drive and link give, and what a run got out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiered_emb.bench.report import drawing
from tiered_emb.bench.report.parts import (
    Chart,
    Report,
    Section,
    Spread,
    Table,
    bytes_tick,
    noise_warning,
    number,
    source_line,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GB = 1e-9
_BLOCK_BYTES = 4096
_GATHER, _UPDATE, _DRIVE = "gather", "update", "drive"


@dataclass(frozen=True)
class Attained:
    """What a run got out of one resource: pieces of `size_bytes` at `rate` GB/s."""

    resource: str
    label: str
    size_bytes: float
    rate: float


def attained(run: Mapping[str, Any]) -> list[Attained]:
    """Of a dlrm run, from the parts of its step in line; each row of a batch counts once."""
    work, parts = run["work"], run["accounting"]["parts_s"]
    label = f"{run['workload']['name']}, {run['tiers']['dram_share']:.0%} in dram"
    asked = (
        (_GATHER, work["weight_bytes"], work["unique_rows"], parts.get("pooling")),
        (_UPDATE, work["row_bytes"], work["unique_rows"], parts.get("update")),
        (_DRIVE, _BLOCK_BYTES, work["blocks_read"], parts.get("ssd")),
    )
    return [
        Attained(resource, label, size, size * pieces / seconds * _GB)
        for resource, size, pieces, seconds in asked
        if pieces and seconds
    ]


def section(report: Report, runs: Sequence[Mapping[str, Any]]) -> Section:
    """Of a report's limits, with the runs that were measured against them."""
    limits = report["limits"]
    points = [point for run in runs for point in attained(run)]
    charts = [_tiers_chart(limits, points), _memory_chart(limits, points)]
    if limits.get("ssd") is not None:
        charts.append(_drive_chart(limits, points))
    order = max(limits["dram"]["streams"], key=lambda s: s["threads"])
    rows = _rows_of(limits)
    at = min(rows, key=lambda r: abs(r["row_bytes"] - 128))
    text = (
        f"Memory gives {_gb(order['sequential_read_bytes_per_s'])} GB/s in order and "
        f"{number(_gather(at).p50)} GB/s by rows of {at['row_bytes']} bytes in random order"
    )
    ssd = limits.get("ssd")
    if ssd is not None:
        best, written = _best_reads(limits), _gb(ssd["sequential_write_bytes_per_s"])
        size = min(best, key=lambda s: abs(s - _BLOCK_BYTES))
        text += (
            f"; the drive reads {number(best[size][0].p50 / size / _GB)} blocks of "
            f"{bytes_tick(size)} a second and writes {written} GB/s in order"
        )
    warnings = noise_warning("Limits", _spreads(limits))
    if ssd is not None and ssd.get("is_direct") is False:
        warnings.append(
            "Limits: the file system has no O_DIRECT, so the drive's figures are the page cache's."
        )
    return Section(
        title=f"Limits of the machine, measured {limits['date'][:16].replace('T', ' ')}",
        summary=[text + "."],
        warnings=warnings,
        charts=charts,
        sources=[source_line(report)],
        tables=_tables(limits),
    )


def _gb(figure: Mapping[str, float]) -> str:
    return number(figure["median"] * _GB)


def _rate(figure: Mapping[str, float]) -> Spread:
    return Spread.of(figure).times(_GB)


def _rows_of(limits: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rows in random order, by all threads."""
    rows = limits["dram"]["rows"]
    threads = max(r["threads"] for r in rows)
    return sorted((r for r in rows if r["threads"] == threads), key=lambda r: r["row_bytes"])


def _gather(rows: Mapping[str, Any]) -> Spread:
    """Prefetched or not, whichever is faster."""
    both = (_rate(rows["gather_bytes_per_s"]), _rate(rows["gather_prefetched_bytes_per_s"]))
    return max(both, key=lambda spread: spread.p50)


def _best_reads(limits: Mapping[str, Any]) -> dict[int, tuple[Spread, int]]:
    """GB/s and queue depth of the fastest random reads of each block size."""
    best: dict[int, tuple[Spread, int]] = {}
    for read in limits["ssd"]["reads"]:
        size = read["block_bytes"]
        rate = Spread.of(read["reads_per_s"]).times(size * _GB)
        if size not in best or rate.p50 > best[size][0].p50:
            best[size] = (rate, read["queue_depth"])
    return best


def _spreads(limits: Mapping[str, Any]) -> dict[str, Spread]:
    tiers = {name: spread for name, spread, _ in _tiers(limits, 128)}
    for rows in _rows_of(limits):
        tiers[f"gather of {rows['row_bytes']} bytes"] = _gather(rows)
    return tiers


def _tiers(limits: Mapping[str, Any], row_bytes: float) -> list[tuple[str, Spread, str]]:
    """(name, limit in GB/s, resource), from the fastest tier down."""
    order = max(limits["dram"]["streams"], key=lambda s: s["threads"])
    rows = min(_rows_of(limits), key=lambda r: abs(r["row_bytes"] - row_bytes))
    size = rows["row_bytes"]
    link, ssd = limits.get("link"), limits.get("ssd")
    found: list[tuple[str, Spread, str]] = []
    if link is not None:
        found += [
            ("hbm, copy", _rate(link["device_copy_bytes_per_s"]), ""),
            ("link, host to device", _rate(link["host_to_device_bytes_per_s"]), ""),
            ("link, device to host", _rate(link["device_to_host_bytes_per_s"]), ""),
        ]
    found += [
        ("dram, read in order", _rate(order["sequential_read_bytes_per_s"]), ""),
        (f"dram, {size}-byte rows gathered", _gather(rows), _GATHER),
        (f"dram, {size}-byte rows updated", _rate(rows["update_bytes_per_s"]), _UPDATE),
    ]
    if ssd is not None:
        found += [
            ("ssd, read in order", _rate(ssd["sequential_read_bytes_per_s"]), ""),
            ("ssd, written in order", _rate(ssd["sequential_write_bytes_per_s"]), ""),
        ]
        best = _best_reads(limits)
        size = min(best, key=lambda s: abs(s - _BLOCK_BYTES))
        found.append((f"ssd, {bytes_tick(size)} random reads", best[size][0], _DRIVE))
    return found


def _tiers_chart(limits: Mapping[str, Any], points: Sequence[Attained]) -> Chart:
    """Every tier on one scale."""
    gathered = [p.size_bytes for p in points if p.resource == _GATHER]
    tiers = _tiers(limits, gathered[0] if gathered else 128)
    runs = list(dict.fromkeys(p.label for p in points))
    places = {(p.resource, p.label): p.rate for p in points}

    def draw(axes: Axes) -> None:
        styles = drawing.styles(runs)
        low = min([s.p50 for _, s, _ in tiers] + [p.rate for p in points]) / 2
        for i, (name, spread, resource) in enumerate(tiers):
            shade = {"h": "#e7d3df", "l": "#f3e2bd", "d": "#bcd7e8", "s": "#f2cdb4"}[name[0]]
            axes.barh(i, spread.p50 - low, left=low, color=shade, edgecolor="white", height=0.7)
            axes.plot([spread.p50] * 2, [i - 0.35, i + 0.35], color=drawing.INK, linewidth=2)
            drawing.tag(axes, number(spread.p50), (spread.p50, i))
            for run in runs:
                if (resource, run) in places:
                    style = styles[run]
                    axes.plot(
                        places[resource, run], i, style.marker, color=style.colour,
                        markeredgecolor="white", markersize=9,
                    )  # fmt: skip
        axes.plot([], [], color=drawing.INK, linewidth=2, label="limit")
        for run in runs:
            style = styles[run]
            axes.plot([], [], style.marker, color=style.colour, label=drawing.clip(run, 40))
        drawing.log_ticks(axes, "x")
        axes.set_xlim(low, max(s.p50 for _, s, _ in tiers) * 3)
        drawing.rows(axes, [name for name, _, _ in tiers])
        axes.set_xlabel("GB/s (log scale)")
        axes.grid(axis="x")

    table = [
        (name, *spread.cells, *_attained_cells(places, resource, run, spread))
        for name, spread, resource in tiers
        for run in ([r for r in runs if (resource, r) in places] or [""])
    ]
    return Chart(
        name="limits-tiers",
        title="Roofline of each tier, and what a step got out of it",
        caption="The end of a bar is what this machine was measured to give. Points are what the "
        "parts of a training step in line moved, each row of a batch counted once. The processor's "
        "caches serve a row that is used again: that takes time and moves no byte of memory, and "
        "where they hold a row from before, a point may lie beyond its bar.",
        draw=draw,
        table=Table(("tier", "limit GB/s", "quartiles", "run", "GB/s", "of limit"), table),
        height=drawing.rows_height(len(tiers)),
    )


def _attained_cells(
    places: Mapping[tuple[str, str], float], resource: str, run: str, limit: Spread
) -> tuple[str, str, str]:
    rate = places.get((resource, run))
    return ("", "", "") if rate is None else (run, number(rate), f"{rate / limit.p50:.0%}")


def _mark(axes: Axes, points: Sequence[Attained], resource: str, colour: str) -> None:
    """What runs got out of a resource."""
    found = [p for p in points if p.resource == resource]
    for p in found:
        axes.plot(
            p.size_bytes,
            p.rate,
            "*",
            color=colour,
            markersize=14,
            markeredgecolor="white",
            zorder=5,
        )
    if found:
        verb = {_GATHER: "pooling", _UPDATE: "update", _DRIVE: "fetching"}[resource]
        axes.plot([], [], "*", color=colour, markersize=11, label=f"{verb} of a step")


def _level(axes: Axes, figure: Mapping[str, float], text: str, line: str) -> None:
    axes.axhline(figure["median"] * _GB, color=drawing.INK, linestyle=line, linewidth=1.4)
    axes.plot([], [], color=drawing.INK, linestyle=line, label=text)


def _memory_chart(limits: Mapping[str, Any], points: Sequence[Attained]) -> Chart:
    """Bytes a second by the size of rows."""
    rows = _rows_of(limits)
    order = max(limits["dram"]["streams"], key=lambda s: s["threads"])
    names = {
        "gather": "gather_bytes_per_s",
        "gather, prefetched": "gather_prefetched_bytes_per_s",
        "update": "update_bytes_per_s",
    }
    series = {
        name: [(float(r["row_bytes"]), _rate(r[field])) for r in rows]
        for name, field in names.items()
    }
    threads = rows[0]["threads"]

    def draw(axes: Axes) -> None:
        _level(axes, order["sequential_read_bytes_per_s"], "read in order", "--")
        _level(axes, order["copy_bytes_per_s"], "copy, read + written", ":")
        _mark(axes, points, _GATHER, drawing.BLUE)
        _mark(axes, points, _UPDATE, drawing.VERMILLION)
        coloured = {"gather": drawing.SKY, "gather, prefetched": drawing.BLUE,
                    "update": drawing.VERMILLION}  # fmt: skip
        for (name, found), marker in zip(series.items(), "sov", strict=True):
            axes.errorbar(
                [x for x, _ in found], [s.p50 for _, s in found],
                yerr=drawing.errors([s for _, s in found]), color=coloured[name], marker=marker,
                capsize=3, linewidth=1.6, label=name,
            )  # fmt: skip
        drawing.log_ticks(axes, "x", [r["row_bytes"] for r in rows])
        drawing.log_ticks(axes, "y")
        axes.set_xlabel("bytes of a row (log scale)")
        axes.set_ylabel("GB/s (log scale)")
        axes.grid(axis="y", which="both")

    cells = [
        (str(r["row_bytes"]), *(cell for field in names.values() for cell in _rate(r[field]).cells))
        for r in rows
    ]
    header = ["row bytes"] + [c for name in names for c in (f"{name} GB/s", "quartiles")]
    return Chart(
        name="limits-memory",
        title=f"Memory: rows in random order, {threads} threads",
        caption="Lookups do little arithmetic for a byte, so their roof is the bandwidth of rows "
        "of their size, far below that of memory in order. Stars are what a step got.",
        draw=draw,
        table=Table(header, cells),
        height=3.3,
    )


def _drive_chart(limits: Mapping[str, Any], points: Sequence[Attained]) -> Chart:
    """Bytes a second by the size of blocks and the queue depth."""
    ssd = limits["ssd"]
    series: dict[str, list[tuple[float, Spread]]] = {}
    for r in sorted(ssd["reads"], key=lambda r: (r["queue_depth"], r["block_bytes"])):
        rate = Spread.of(r["reads_per_s"]).times(r["block_bytes"] * _GB)
        name = f"random reads, depth {r['queue_depth']}"
        series.setdefault(name, []).append((float(r["block_bytes"]), rate))

    def draw(axes: Axes) -> None:
        _level(axes, ssd["sequential_read_bytes_per_s"], "read in order", "--")
        _level(axes, ssd["sequential_write_bytes_per_s"], "written in order", ":")
        _mark(axes, points, _DRIVE, drawing.PURPLE)
        drawing.lines(axes, series)
        sizes = {x for found in series.values() for x, _ in found}
        drawing.log_ticks(axes, "x", sizes, bytes_tick)
        drawing.log_ticks(axes, "y")
        axes.set_xlabel("bytes of a read (log scale)")
        axes.set_ylabel("GB/s (log scale)")
        axes.grid(axis="y", which="both")

    cells = [
        (
            bytes_tick(r["block_bytes"]),
            str(r["queue_depth"]),
            *Spread.of(r["reads_per_s"]).cells,
            _gb({"median": r["reads_per_s"]["median"] * r["block_bytes"]}),
            number(r["latency_p50_us"]["median"]),
            number(r["latency_p99_us"]["median"]),
        )
        for r in ssd["reads"]
    ]
    header = ("read", "depth", "reads/s", "quartiles", "GB/s", "p50 \u00b5s", "p99 \u00b5s")
    where = f" ({limits['device']})" if limits.get("device") else ""
    return Chart(
        name="limits-drive",
        title="Drive: random reads by size and queue depth",
        caption=f"The package's own I/O engine, on the drive under the stores{where}. The star is "
        "what fetching in line got; it counts only blocks read, though it writes as well.",
        draw=draw,
        table=Table(header, cells),
        height=3.3,
    )


def _tables(limits: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """What no chart shows."""
    streams = [
        (str(s["threads"]), *(_gb(s[f]) for f in (
            "sequential_read_bytes_per_s", "copy_bytes_per_s", "triad_bytes_per_s"
        )))
        for s in limits["dram"]["streams"]
    ]  # fmt: skip
    header = ("threads", "read GB/s", "copy GB/s", "triad GB/s")
    tables = [("Memory in order", Table(header, streams))]
    if limits.get("ssd") is not None:
        syncs = [(p, *Spread.of(limits["ssd"]["fsync_us"][p]).cells) for p in ("p50", "p99")]
        tables.append(
            ("Sync after an append", Table(("", "\u00b5s", "quartiles"), syncs))
        )  # fmt: skip
    return tables
