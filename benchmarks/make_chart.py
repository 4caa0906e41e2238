"""Draws the charts of README and docs and writes their tables from the checked-in results.

    python benchmarks/make_chart.py            redraw docs/*.svg and the tables of both
    python benchmarks/make_chart.py --check    exit status 1 if they and the results disagree

Charts are compared where the installed matplotlib is the release that drew them. Figures stand
between markers in the texts and are never typed.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import device_tables
import dlrm_tables
import tuner_tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# Okabe and Ito's palette: told apart by everybody.
BLUE, GREY = "#0072B2", "#999999"
COLOURS = (BLUE, "#D55E00", "#009E73", "#CC79A7")
# Simulated before the engine was there, uniform ids: (space, write) amplification; the first design
# of the log, greedy with a stream of survivors and skip-dirty.
SIMULATED = ((1.3, 2.0), (1.45, 1.7), (1.6, 1.5))


def load(name: str) -> dict[str, Any]:
    """A checked-in report."""
    report: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return report


def budget_row(report: dict[str, Any]) -> dict[str, Any]:
    """The row in which the budget shrinks."""
    return max(report["rows"], key=lambda row: len(row["contenders"]))


def provenance_line(report: dict[str, Any]) -> str:
    """Where a report's figures come from, in one line."""
    machine, versions = report["machine"], report["versions"]
    changes = ", with changes" if report["commit_changed"] else ""
    gpu = f"{report['gpu']}; " if "gpu" in report else ""
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; "
        f"torch {versions['torch']}; commit {(report['commit'] or 'not known')[:10]}{changes}, "
        f"{report['date'][:10]}; `{report['command']}`"
    )


def speed_table(report: dict[str, Any]) -> str:
    """Markdown: each workload with every row in dram, beside `nn.EmbeddingBag`."""
    lines = [
        "| tables | dim | batch x pooling | ids | step | `nn.EmbeddingBag` | tiered | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        if len(row["contenders"]) > 2:
            continue
        ids = f"Zipf {row['exponent']}" if row["exponent"] else "uniform"
        ours, torch = row["contenders"]["tiered 100%"], row["contenders"]["nn.EmbeddingBag"]
        lines.append(
            f"| {row['tables']} x {row['rows']:,} | {row['dim']} "
            f"| {row['batch']} x {row['pooling']} "
            f"| {ids} | {row['step']} | {torch['step_ms_p50']:.2f} ms "
            f"| {ours['step_ms_p50']:.2f} ms | {ours['speedup']:.1f}x |"
        )
    return "\n".join(lines)


def zipf_table(report: dict[str, Any]) -> str:
    """Markdown: the run that is larger than its budget."""
    step, tiers = report["step_ms_after_warm_up"], report["tiers"]
    values = {
        "table with optimizer state": f"{report['table_bytes'] / 1e9:.2f} GB",
        "dram budget": str(report["options"]["dram"]),
        "peak resident memory of the process": f"{report['peak_rss_bytes'] / 1e6:.0f} MB",
        "samples/s": f"{report['samples_per_second']:,.0f}",
        "step p50 / p95 / p99": f"{step['p50']:.0f} / {step['p95']:.0f} / {step['p99']:.0f} ms",
        "hit ratio": f"{tiers['hit_ratio']:.1%}",
        "ssd read / written": (
            f"{tiers['ssd_read_bytes'] / 1e9:.1f} / {tiers['ssd_written_bytes'] / 1e9:.1f} GB"
        ),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in values.items())])


def kernel_table(report: dict[str, Any]) -> str:
    """Markdown: how many times as fast as each peer, over all workloads of the grid."""
    names = {
        "fbgemm": "FBGEMM",
        "torch": "`nn.EmbeddingBag`",
        "limit": "the memory's limit, rows known in advance",
    }
    lines = ["| step | beside | least | median | most |", "|---|---|---|---|---|"]
    for kind, what in (("forward", "forward"), ("train", "train, rowwise Adagrad")):
        for name, peer in names.items():
            cells = [row for row in report["grid"] if kind in row]
            if name == "limit":  # what is said of it holds from here on
                cells = [row for row in cells if row["dim"] >= 32 and row["batch"] >= 2048]
            ratios = sorted(
                row[kind]["speedup"][name] for row in cells if name in row[kind]["speedup"]
            )
            if ratios:
                figures = (ratios[0], statistics.median(ratios), ratios[-1])
                lines.append(
                    f"| {what} | {peer} | " + " | ".join(f"{r:.2f}" for r in figures) + " |"
                )
    return "\n".join(lines)


def ratio_text(ratios: dict[str, Any], name: str) -> str:
    """Median of a ratio, or a dash where the peer was not there."""
    return "-" if ratios.get(name) is None else f"{ratios[name]['p50']:.2f}"


Line = tuple[str, str, str, str]  # what, ours, beside, ratio


def read_lines(get: dict[str, Any]) -> list[Line]:
    """Random reads of rows of one size."""
    ratios, mine = get["ratios"], get["figures"]["io_uring"]
    what = f"random reads, {get['row_bytes']}-byte rows"
    ours = f"{mine['rows_per_s']['p50']:,.0f} rows/s, {mine['cores']['p50']:.2f} cores"
    beside = {
        "our engine without io_uring": "rows/s, ours / portable",
        "RocksDB": "rows/s, ours / rocksdb",
        "RocksDB, processor time a row": "cpu a row, ours / rocksdb",
        "mmap, a thread a core": "rows/s, ours / mmap, a thread a core",
        f"mmap, {get['settings']['mmap']['threads']} threads": "rows/s, ours / mmap",
    }
    first = (what, ours, "the drive: fio, 4 KiB", ratio_text(ratios, "blocks/s, ours / fio"))
    return [first, *(("", "", peer, ratio_text(ratios, name)) for peer, name in beside.items())]


def churn_lines(part: dict[str, Any]) -> list[Line]:
    """Reads and evictions of one stream."""
    figures, ratios, key = part["figures"], part["ratios"], "written_per_evicted_byte"
    written = figures["ours"][key]["p50"]
    theirs = [figures[name][key]["p50"] for name in figures if name.startswith("rocksdb")]
    sparing = f"{min(theirs) / written:.2f}" if theirs else "-"
    in_place = ratio_text(ratios, "bytes written, in place / ours")
    drive = ratio_text(ratios, "blocks/s, ours / fio")
    fastest = ratio_text(ratios, "rows/s, ours / rocksdb")
    rate = f"{figures['ours']['rows_per_s']['p50']:,.0f} rows/s"
    a_byte = f"{written:.2f} bytes written a byte evicted"
    return [
        (f"reads and evictions, {part['stream']}", rate, "RocksDB at its fastest", fastest),
        ("", "", "blocks read/s: the drive alone, fio, 4 KiB", drive),
        ("", a_byte, "bytes written: RocksDB at its most sparing / ours", sparing),
        ("", "", "bytes written: pages in place / ours", in_place),
    ]


def store_table(store: dict[str, Any], churn: dict[str, Any], ssd: dict[str, Any]) -> str:
    """Markdown: the store beside its peers, ours divided by theirs unless it says otherwise."""
    lines: list[Line] = [("", "ours", "beside", "ratio"), ("---", "---", "---", "---")]
    for get in store["get"]:
        lines += read_lines(get)
    put = store["put"]
    mine, share = put["figures"]["io_uring"], ratio_text(put["ratios"], "bytes/s, ours / fio")
    ours = f"{mine['rows_per_s']['p50']:,.0f} rows/s, {mine['cores']['p50']:.2f} cores"
    what = f"writes, {put['row_bytes']}-byte rows"
    lines.append((what, ours, "the drive: fio, 1 MiB, bytes/s", share))
    for part in churn["churn"]:
        lines += churn_lines(part)
    update = store["update"]
    rate = f"{update['figures']['ours']['lookups_per_s']['p50']:,.0f} lookups/s"
    a_core = "mmap, a thread a core"
    ratio = ratio_text(update["ratios"], f"rows/s, ours / {a_core}")
    lines.append(("reads and updates, uniform", rate, a_core, ratio))
    best = f"mmap, {update['mmap_settings']['threads']} threads"
    lines.append(("", "", best, ratio_text(update["ratios"], "rows/s, ours / mmap")))
    saves, opening = ssd["saves"], ssd["opening"]
    pause, written = saves["pause_ms"]["p50"], saves["written_per_changed_byte"]["p50"]
    what = f"save of {saves['store_bytes'] / 1e9:.1f} GB, 1% changed"
    wait = f"training waits {pause:.0f} ms; {written:.2f} bytes written a byte changed"
    lines.append((what, wait, "", ""))
    opened = f"{opening['open_s']['p50']:.2f} s"
    lines.append((f"opening {opening['store_bytes'] / 1e9:.1f} GB", opened, "", ""))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def prefetch_table(report: dict[str, Any]) -> str:
    """Markdown: the step with rows fetched ahead, beside its bounds."""
    contenders, result = report["contenders"], report["result"]
    lines = ["| step | ms (quartiles) | reads | waited, ms |", "|---|---|---|---|"]
    for name, figures in contenders.items():
        spread = f"{figures['step_ms_p25']:.1f}-{figures['step_ms_p75']:.1f}"
        lines.append(
            f"| {name} | {figures['step_ms']:.1f} ({spread}) | {figures['blocks']:,.0f} "
            f"| {figures['stall_ms']:.2f} |"
        )
    bounds = ", ".join(f"{name} {ms:.1f} ms" for name, ms in result["bounds_ms"].items())
    lines.append(f"| prefetch / its largest bound | {result['step_over_bound']:.2f} | | {bounds} |")
    return "\n".join(lines)


def render(readme: str) -> str:
    """`readme` with every marked block made anew."""
    bags, zipf, kernels = load("embedding_bag"), load("zipf_train"), load("kernels")
    get, churn, ssd = load("store_get"), load("store_churn"), load("ssd_saves")
    store = {**load("store"), "get": get["get"]}
    prefetch, device, hbm = load("prefetch"), load("device"), load("hbm")
    dlrm, gpu = load("bench/dlrm"), load("gpu/tables")
    blocks = {
        "speed": speed_table(bags),
        "speed-source": provenance_line(bags),
        "kernels": kernel_table(kernels),
        "kernels-source": provenance_line(kernels),
        "prefetch": prefetch_table(prefetch),
        "prefetch-source": provenance_line(prefetch),
        "hbm": device_tables.emulated_table(hbm),
        "hbm-source": provenance_line(hbm),
        "gpu": device_tables.gpu_table(gpu, load("gpu/dlrm_kaggle"), load("gpu/dlrm_meta")),
        "gpu-source": provenance_line(gpu),
        "device": device_tables.device_table(device),
        "device-source": provenance_line(device),
        "bench": dlrm_tables.dlrm_table(dlrm),
        "bench-source": provenance_line(dlrm),
        "zipf": zipf_table(zipf),
        "zipf-source": provenance_line(zipf),
        "store": store_table(store, churn, ssd),
        "store-source": "; ".join(map(provenance_line, (get, store, churn, ssd))),
    }
    return fill_blocks(readme, blocks, "README.md")


def render_architecture(text: str) -> str:
    """docs/ARCHITECTURE.md, likewise."""
    compiled = json.loads((ROOT / "tests" / "compiled_kernels.json").read_text())
    blocks = {
        "compiled": device_tables.kernel_table(compiled),
        "projection": device_tables.projection_table(),
    }
    return fill_blocks(text, blocks, "docs/ARCHITECTURE.md")


def fill_blocks(text: str, blocks: dict[str, str], name: str) -> str:
    for block, content in blocks.items():
        begin, end = f"<!-- begin {block} -->", f"<!-- end {block} -->"
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        if not re.search(pattern, text, re.DOTALL):
            raise SystemExit(f"{name} has no block '{block}'")
        replacement = f"{begin}\n{content}\n{end}"
        text = re.sub(pattern, lambda _, r=replacement: r, text, flags=re.DOTALL)
    return text


def render_tuning(text: str) -> str:
    """docs/TUNING.md, likewise."""
    reports = [load(f"tuner{part}") for part in ("_curves", "_speed", "", "_placement")]
    curves, speed, tuner, placement = reports
    hbm, sample = load("tuner_hbm"), load("lookup_sample")
    blocks = {
        "tuner-curves": tuner_tables.curves_table(curves),
        "tuner-speed": tuner_tables.speed_text(speed),
        "tuner-predict": tuner_tables.predict_table(tuner),
        "tuner-within": tuner_tables.within_text(tuner),
        "tuner-recommended": tuner_tables.recommended_table(tuner),
        "tuner-placement": tuner_tables.placement_table(placement),
        "tuner-sample": tuner_tables.sample_table(sample),
        "tuner-hbm": tuner_tables.hbm_table(hbm),
        "tuner-hbm-source": provenance_line({**hbm, "gpu": hbm["hbm"]["device"]}),
        "tuner-source": "; ".join(map(provenance_line, [*reports, sample])),
    }
    return fill_blocks(text, blocks, "docs/TUNING.md")


PAGES = {
    "README.md": render,
    "docs/ARCHITECTURE.md": render_architecture,
    "docs/TUNING.md": render_tuning,
}


def draw_amplification(path: Path) -> None:
    """Write against space amplification, and against the size of the cache in front."""
    from matplotlib import pyplot as plt

    rows = [row for row in load("ssd")["amplification"] if row["rows"] < 1_000_000]
    streams = list(dict.fromkeys(row["stream"] for row in rows))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for stream, colour in zip(streams, COLOURS, strict=False):
        of_stream = [row for row in rows if row["stream"] == stream]
        bounds = {r["space_bound"]: r for r in of_stream if abs(r["cache_share"] - 0.1) < 0.002}
        shares = {r["cache_share"]: r for r in of_stream if r["space_bound"] == 1.45}
        for axes, points in ((left, bounds), (right, shares)):
            x = sorted(points)
            y = [points[key]["write_amplification"] for key in x]
            axes.plot(x, y, "o-", color=colour, label=stream, markersize=4)
    left.plot(*zip(*SIMULATED, strict=True), "kx", label="uniform, simulated")
    left.set_xlabel("space bound, cache of 10% of the rows")
    right.set_xlabel("share of rows in the cache, space bound 1.45")
    right.set_xscale("log")
    right.set_xticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5], ["1%", "2%", "5%", "10%", "20%", "50%"])
    right.minorticks_off()
    left.set_ylabel("bytes written for a byte evicted")
    left.set_ylim(1, None)
    left.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def draw_step_time(path: Path) -> None:
    """Step time of one training workload against the share of rows in dram."""
    from matplotlib import pyplot as plt

    row = budget_row(load("embedding_bag"))
    names = ["nn.EmbeddingBag", *(n for n in row["contenders"] if n.startswith("tiered"))]
    figures = [row["contenders"][name] for name in names]
    medians = [f["step_ms_p50"] for f in figures]
    spread = [
        [f["step_ms_p50"] - f["step_ms_p25"] for f in figures],
        [f["step_ms_p75"] - f["step_ms_p50"] for f in figures],
    ]
    labels = ["nn.EmbeddingBag,\ntorch Adagrad"]
    labels += [f"{name.split()[1]} of rows\nin dram" for name in names[1:]]
    figure, axes = plt.subplots(figsize=(8, 3.4))
    axes.bar(labels, medians, yerr=spread, color=[GREY] + [BLUE] * (len(names) - 1), capsize=4)
    for x, (value, above) in enumerate(zip(medians, spread[1], strict=True)):
        place = (x, value + above)
        axes.annotate(f"{value:.1f} ms", place, (0, 5), textcoords="offset points", ha="center")
    axes.tick_params(axis="x", labelsize=9)
    axes.set_ylabel("training step, ms\n(median, quartiles)")
    axes.set_ylim(0, max(medians) * 1.25)
    axes.set_title(
        f"{row['tables']} tables x {row['rows']:,} rows x {row['dim']}, batch {row['batch']}, "
        f"Zipf {row['exponent']} ids, Adagrad; the other rows on ssd",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def draw_rows(path: Path) -> None:
    """Nanoseconds a lookup against the rows of the table, beside the limit."""
    from matplotlib import pyplot as plt

    rows = load("kernels_parts")["rows"]
    figure, axes = plt.subplots(figsize=(6, 3.2))
    for kind, colour in (("train", COLOURS[1]), ("forward", COLOURS[0])):
        for name, style in (("ours", "o-"), ("limit", "x--")):
            y = [row[kind]["ns_per_lookup"][name] for row in rows]
            label = f"{kind}, {'tiered' if name == 'ours' else 'rows known in advance'}"
            axes.plot([row["rows"] for row in rows], y, style, color=colour, label=label)
    axes.set_xscale("log")
    axes.set_ylim(0, None)
    axes.set_xlabel(f"rows of the table, dim {rows[0]['dim']}, uniform ids")
    axes.set_ylabel("ns a lookup")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


CHARTS = {
    "step_time.svg": draw_step_time,
    "write_amplification.svg": draw_amplification,
    "rows.svg": draw_rows,
}


def draw_charts(folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tiered_emb"
    for name, draw in CHARTS.items():
        draw(folder / name)


def stale_charts(folder: Path) -> list[str]:
    """Charts in a folder that the results would draw otherwise."""
    import matplotlib

    stale = []
    with tempfile.TemporaryDirectory() as made:
        draw_charts(Path(made))
        for name in CHARTS:
            have = (folder / name).read_bytes()
            if f"Matplotlib v{matplotlib.__version__}," not in have.decode():
                print(f"{name}: not compared, drawn by another matplotlib")
            elif have != (Path(made) / name).read_bytes():
                stale.append(name)
    return stale


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    args = parser.parse_args()
    texts = {name: (ROOT / name).read_text() for name in PAGES}
    rendered = {name: PAGES[name](text) for name, text in texts.items()}
    if args.check:
        stale = [name for name, text in texts.items() if rendered[name] != text]
        stale += stale_charts(ROOT / "docs")
        for name in stale:
            print(f"{name} and the results disagree")
        return int(bool(stale))
    for name, text in rendered.items():
        (ROOT / name).write_text(text)
    draw_charts(ROOT / "docs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
