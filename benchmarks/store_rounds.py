"""Rounds of bench_store.py: contenders in turn, figures of each answer, ratios round by round."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from bench_ssd import spread
from store_contenders import Answer, Contender

Report = dict[str, Any]
SHOWN = (
    "rows_per_s",
    "blocks_per_s",
    "bytes_per_s",
    "lookups_per_s",
    "rows_per_cpu_s",
    "cores",
    "written_per_evicted_byte",
)


def figures(answer: Answer, rows: str) -> Report:
    """Rates of one answer; `rows` names the count that is the work done."""
    done = answer[rows]
    report: Report = {
        "rows_per_s": done / answer["seconds"],
        "cores": answer["cpu_s"] / answer["seconds"],
        "caller_cores": answer["caller_cpu_s"] / answer["seconds"],
        "cpu_us_per_row": answer["cpu_s"] / done * 1e6,
    }
    if answer["counters"].get("blocks_read"):
        report["blocks_per_s"] = answer["counters"]["blocks_read"] / answer["seconds"]
    return report


class Rounds:
    """Figures of all contenders, round by round."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, list[float]]] = {}

    def add(self, name: str, report: Report | None) -> None:
        for key, value in (report or {}).items():
            self.values.setdefault(name, {}).setdefault(key, []).append(float(value))

    def report(self) -> Report:
        return {
            name: {key: spread(values) for key, values in keys.items()}
            for name, keys in self.values.items()
        }

    def most(self, names: Iterable[str], key: str) -> str:
        """The one with the highest median: a best of every round would be its luck, too."""
        return max(names, key=lambda name: self.median(name, key))

    def least(self, names: Iterable[str], key: str) -> str:
        """The one with the lowest median."""
        return min(names, key=lambda name: self.median(name, key))

    def median(self, name: str, key: str) -> float:
        return float(spread(self.values.get(name, {}).get(key, [0]))["p50"])

    def ratio(self, over: tuple[str, str], under: tuple[str, str]) -> Report | None:
        """Spread of a figure (contender, key) over another, round by round; None without one."""
        above = self.values.get(over[0], {}).get(over[1])
        below = self.values.get(under[0], {}).get(under[1])
        if above is None or below is None:
            return None
        return spread([a / b for a, b in zip(above, below, strict=True)])


def take_turns(rounds: int, turns: dict[str, Callable[[], Report | None]]) -> Rounds:
    """Runs every turn once a round; each round begins with another."""
    result = Rounds()
    names = list(turns)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            result.add(name, turns[name]())
    return result


def show(title: str, report: Report) -> None:
    """Prints medians of the main figures, and ratios with their quartiles."""
    print(f"-- {title}")
    for name, keys in report["figures"].items():
        print(
            f"   {name:24s}"
            + "  ".join(f"{k} {v['p50']:.4g}" for k, v in keys.items() if k in SHOWN)
        )
    for name, value in report["ratios"].items():
        said = "left out"
        if value is not None:
            said = f"{value['p50']:.2f}  ({value['p25']:.2f} to {value['p75']:.2f})"
        print(f"   {name:48s}{said}")
    sys.stdout.flush()


def sweep_threads(
    contender: Contender, threads: tuple[int, ...], rows: str, *command: Any
) -> list[Report]:
    """Figures of the command for each number of threads; leaves the contender at the fastest."""
    done = []
    for count in threads:
        contender.set_threads(count)
        answer = contender.ask(*command)
        done.append({**contender.options, "threads": count, **figures(answer, rows)})
    contender.set_threads(max(done, key=lambda d: d["rows_per_s"])["threads"])
    return done


def churn_figures(answer: Answer, row_bytes: int) -> Report:
    evicted = answer["rows_put"] * row_bytes
    counters = answer["counters"]
    own = counters.get("device_written_bytes")
    if own is None:
        own = counters.get("flush_written_bytes", 0) + counters.get("compact_written_bytes", 0)
    return {
        **figures(answer, "rows_got"),
        "written_per_evicted_byte": answer["written_bytes"] / evicted,
        "written_per_evicted_byte_own_count": own / evicted,
        "settle_s": answer["settle_s"],
        "lookups_per_s": answer["lookups"] / answer["seconds"],
        "store_bytes": counters.get("used_bytes_now", counters.get("table_bytes_now", 0)),
    }
