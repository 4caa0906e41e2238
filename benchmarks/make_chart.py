"""Draws the README's chart and writes its table from the checked-in results.

    python benchmarks/make_chart.py            redraw docs/step_time.svg and the tables of README.md
    python benchmarks/make_chart.py --check    exit status 1 if README.md and the results disagree

Figures stand between markers in README.md and are never typed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# Okabe and Ito's palette: told apart by everybody.
BLUE, GREY = "#0072B2", "#999999"


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
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB; "
        f"torch {versions['torch']}; commit {(report['commit'] or 'none')[:10]}, "
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


def render(readme: str) -> str:
    """`readme` with every marked block made anew."""
    bags, zipf = load("embedding_bag"), load("zipf_train")
    blocks = {
        "speed": speed_table(bags),
        "speed-source": provenance_line(bags),
        "zipf": zipf_table(zipf),
        "zipf-source": provenance_line(zipf),
    }
    for name, text in blocks.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        if not re.search(pattern, readme, re.DOTALL):
            raise SystemExit(f"README.md has no block '{name}'")
        replacement = f"{begin}\n{text}\n{end}"
        readme = re.sub(pattern, lambda _, r=replacement: r, readme, flags=re.DOTALL)
    return readme


def draw(path: Path) -> None:
    """Step time of one training workload against the share of rows in dram."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tiered_emb"
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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text()
    rendered = render(text)
    if args.check:
        return int(rendered != text)
    readme.write_text(rendered)
    draw(ROOT / "docs" / "step_time.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
