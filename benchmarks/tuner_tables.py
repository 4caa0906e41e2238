"""Tables of docs/TUNING.md, from `results/tuner*.json`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from tiered_emb.cli.report import table_text

Report = dict[str, Any]
APART = 0.05  # measured steps: closer ones are one as far as two runs can tell


def in_order(rows: Sequence[Report]) -> list[bool]:
    """Of each pair of steps that are apart, whether the one predicted to be shorter is."""
    return [
        (a["measured_ms"] < b["measured_ms"]) == (a["predicted_ms"] < b["predicted_ms"])
        for a, b in combinations(rows, 2)
        if abs(math.log(a["measured_ms"] / b["measured_ms"])) > math.log1p(APART)
    ]


def runs_text(rows: Sequence[Report], tier: str, moved: str) -> str:
    """Predicted beside measured steps, for a terminal."""
    return table_text(
        ("", tier, "measured ms", "predicted ms", "error", moved.replace("_", " "), "predicted"),
        [(r["model"], f"{r[f'{tier}_share']:.1%}", f"{r['measured_ms']:.2f}",
          f"{r['predicted_ms']:.2f}", f"{r['error']:+.0%}", f"{r[f'{moved}_measured']:,.0f}",
          f"{r[f'{moved}_predicted']:,.0f}") for r in rows],
    )  # fmt: skip


def curves_table(report: Report) -> str:
    """Errors of sampled curves."""
    lines = [
        "| stream | lookups | rows | sampled | LRU | engine's policy | optimum | at most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["curves"]:
        error = row["mean_absolute_error"]
        mark = "" if row["pass"] else " (short)"
        lines.append(
            f"| {row['stream']} | {row['lookups']:,} | {row['rows']:,} | {row['share']:.1%} "
            f"| {error['lru']:.4f} | {error['policy']:.4f} | {error['optimum']:.4f} "
            f"| {row['bar']}{mark} |"
        )
    return "\n".join(lines)


def speed_text(report: Report) -> str:
    """What the tuner itself takes."""
    speed = report["speed"]
    tune = speed["tune"]
    return (
        f"Exact stack distances: {speed['exact_lookups_per_core_s'] / 1e6:.1f} M lookups a second "
        f"and core. A sampled curve of the engine's policy at 24 sizes, reading the file included: "
        f"{speed['sampled_lookups_per_core_s'] / 1e6:.0f} M. A trace of "
        f"{tune['lookups'] / 1e6:.0f} M lookups of 26 tables, from the file to the recommendation: "
        f"{tune['seconds']:.0f} s and {tune['peak_bytes'] / 2**30:.2f} GiB."
    )


def predict_table(report: Report) -> str:
    """Predicted beside measured steps."""
    lines = [
        "| model | dram | layers | measured | quartiles | predicted | error | rows read | said |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model in report["predict"]["models"]:
        rows = all_runs(model)
        for row in sorted(rows, key=lambda r: r["dram_share"]):
            low, high = row["measured_ms_quartiles"]
            mark = f", {row['mark']}" if "mark" in row else ""
            short = " **" if abs(row["error"]) > 0.15 else " "
            lines.append(
                f"| {row['model'].replace(', 100% in dram', '')} | {row['dram_share']:.1%}{mark} "
                f"| {row['layers_ms']:.1f} ms | {row['measured_ms']:.1f} ms | {low:.1f}-{high:.1f} "
                f"| {row['predicted_ms']:.1f} ms |{short}{row['error']:+.0%}{short.strip()} "
                f"| {row['misses_measured']:,.0f} | {row['misses_predicted']:,.0f} |"
            )
    return "\n".join(lines)


def hbm_table(report: Report) -> str:
    """Predicted beside measured steps with an hbm tier."""
    lines = [
        "| model | hbm | layers | measured | quartiles | predicted | error | rows up | said |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["hbm"]["rows"]:
        low, high = row["measured_ms_quartiles"]
        short = " **" if abs(row["error"]) > 0.15 else " "
        lines.append(
            f"| {row['model'].replace(', 100% in dram', '')} | {row['hbm_share']:.1%} "
            f"| {row['layers_ms']:.1f} ms | {row['measured_ms']:.1f} ms | {low:.1f}-{high:.1f} "
            f"| {row['predicted_ms']:.1f} ms |{short}{row['error']:+.0%}{short.strip()} "
            f"| {row['rows_up_measured']:,.0f} | {row['rows_up_predicted']:,.0f} |"
        )
    found = report["hbm"]
    lines += ["", (
        f"{found['within_15_percent']} of {len(found['rows'])} within 15%; of "
        f"{found['pairs_apart']} pairs of sizes more than 5% apart {found['pairs_in_order']} are "
        "in order. The three runs that check the fit itself: "
        + ", ".join(f"{row['error']:+.0%}" for row in found["validation"]["predicted"]) + "."
    )]  # fmt: skip
    return "\n".join(lines)


def sample_table(report: Report) -> str:
    """What the engine's sample of lookups costs."""

    def percent(row: Report, name: str, places: int) -> str:
        low, high = row[f"{name}_within_95pct"]
        return f"{row[name]:.{places}%} ({low:.{places}%} to {high:.{places}%})"

    lines = [
        "| batches | one takes | watching | one in | cost | measured | burst and rest |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["cases"]:
        lines.append(
            f"| {row['name']} | {row['batch_us']:,.0f} us | {percent(row, 'watching', 1)} "
            f"| {1 / row['share']:,.0f} | **{row['cost']:.2%}** "
            f"({row['cost_within_95pct'][1]:.2%} at most) | {percent(row, 'measured', 1)} "
            f"| {row['cycle_batches']:,} |"
        )
    return "\n".join(lines)


def recommended_table(report: Report) -> str:
    """Recommended sizes beside the best of a measured grid."""
    lines = [
        "| model | recommended | its step | best of the grid | its step | slower | in order |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in report["predict"]["models"]:
        own, best = model["recommended"], model["best_of_grid"]
        steps = [
            ", ".join(f"{ms:.1f}" for ms in model[which])
            for which in ("recommended_ms", "best_of_grid_ms")
        ]
        lines.append(
            f"| {model['model'].replace(', 100% in dram', '')} | {own['dram_share']:.1%} in dram, "
            f"{own['rows_ahead']} batches fetched ahead | {steps[0]} ms "
            f"| {best['dram_share']:.1%} in dram, {best['rows_ahead']} ahead | {steps[1]} ms "
            f"| {slower_than_best(model):+.1%} "
            f"| {model['pairs_in_order']} of {model['pairs_apart']} |"
        )
    return "\n".join(lines)


def slower_than_best(model: Report) -> float:
    """Median over the turns, in each of which both ran one after the other: minutes later the
    machine may be half as fast."""
    turns = zip(model["recommended_ms"], model["best_of_grid_ms"], strict=True)
    return statistics.median(own / best for own, best in turns) - 1


def placement_table(report: Report) -> str:
    """What shares of single tables were predicted to give, and gave."""
    lines = [
        "| model | shares of their rows | rows read a step | predicted | step | gain | predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["placement"]:
        shares = ", ".join(f"{name} {share:.2g}" for name, share in row["shares"].items())
        misses, told = (
            " -> ".join(f"{x:,.0f}" for x in row[key]) for key in ("misses", "predicted_misses")
        )
        took = " -> ".join(f"{ms:.1f}" for ms in row["measured_ms"])
        low, high = row["gain_quartiles"]
        lines.append(
            f"| {row['model']} | {shares} | {misses} | {told} | {took} ms "
            f"| {row['gain']:+.1%} ({low:+.1%} to {high:+.1%}) | {row['predicted_gain']:+.1%} |"
        )
    return "\n".join(lines)


def all_runs(model: Report) -> list[Report]:
    """The grid; the recommended size and, once more, the best of the grid, in their first turn."""
    return [
        *model["grid"],
        {**model["recommended"], "mark": "recommended"},
        {**model["best_of_grid"], "mark": "again"},
    ]


def within_text(report: Report) -> str:
    """How many predictions were near."""
    errors = [row["error"] for model in report["predict"]["models"] for row in all_runs(model)]
    within = sum(abs(error) <= 0.15 for error in errors)
    return f"{within} of {len(errors)} within 15%."
