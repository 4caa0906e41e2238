"""The memory wall: what a step would take on named platforms, and how that moves with the trends.

All of it is a projection from data sheets (`platforms.csv`, whose rows name the pages that they
were checked against, and when; one that was not checked is never used) with the cost model of
`predict`; nothing of it was measured. The trends (`trends.csv`) are the growth figures of "AI and
Memory Wall" (Gholami et al.) in its two editions. Neither says anything of drives: they are taken
to grow as the link that they hang on. The model and the tiers' shares of it stay as they are.

What of it can be checked is checked on a machine without a GPU: see `predict.validation`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from tiered_emb.bench.demand import Demand
from tiered_emb.bench.limits import Limits
from tiered_emb.bench.options import rates_of
from tiered_emb.bench.predict import (
    Host,
    Machine,
    Platform,
    bytes_by_tier,
    predict,
    validation,
)
from tiered_emb.data.errors import DataError

GIGA, TERA = 1e9, 1e12
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "wall.json"
FITTING_RUNS = 4  # of a file that does not say which ones
BASE = "H100"  # of the trends, and of the platforms with one part exchanged

# The parts that go together: device, link to it, dram of the host, one drive for each device.
PLATFORMS = {
    "A100-40": ("A100-40", "PCIe 4.0 x16", "DDR4-3200 x8", "NVMe gen4 D7-P5500"),
    "A100-80": ("A100-80", "PCIe 4.0 x16", "DDR4-3200 x8", "NVMe gen4 D7-P5500"),
    "H100": ("H100", "PCIe 5.0 x16", "DDR5-4800 x12", "NVMe gen5 9550"),
    "GH200": ("GH200", "NVLink-C2C", "LPDDR5X Grace", "NVMe gen5 9550"),
    "MI300X": ("MI300X", "PCIe 5.0 x16", "DDR5-4800 x12", "NVMe gen5 9550"),
    "H200": ("H200", "PCIe 5.0 x16", "DDR5-4800 x12", "NVMe gen5 9550"),
    "B200": ("B200", "PCIe 5.0 x16", "DDR5-6400 x12", "NVMe gen5 9550"),
    "MI355X": ("MI355X", "PCIe 5.0 x16", "DDR5-6400 x12", "NVMe gen5 9550"),
}
EXCHANGED = (
    "PCIe 3.0 x16", "PCIe 4.0 x16", "PCIe 6.0 x16", "DDR4-3200 x8", "DDR5-6400 x12",
    "NVMe gen3 P4500", "NVMe gen4 D7-P5500",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A row of platforms.csv; rates and sizes in units of 10^9 bytes, None where it has none.

    Args:
        kind: gpu, link, dram or ssd.
        bandwidth_gb_s: of a link in one direction; of a drive reading.
        reads_per_s: random reads of 4 KiB.
        tflops: in the precision that `tflops_of` names.
        source: of the pages that the row was checked against.
        checked: when, or "no".
    """

    part: str
    kind: str
    year: int
    capacity_gb: float | None
    bandwidth_gb_s: float
    write_gb_s: float | None
    reads_per_s: float | None
    tflops: float | None
    tflops_of: str
    source: str
    checked: str


def _rows(name: str) -> Iterator[dict[str, str]]:
    text = resources.files("tiered_emb.bench").joinpath(name).read_text(encoding="utf-8")
    yield from csv.DictReader(text.splitlines())


@cache
def parts() -> Mapping[str, Part]:
    """The parts that were checked, by name."""

    def number(text: str) -> float | None:
        return float(text) if text else None

    found = {}
    for row in _rows("platforms.csv"):
        if row["checked"] != "no":
            found[row["part"]] = Part(
                part=row["part"],
                kind=row["kind"],
                year=int(row["year"]),
                capacity_gb=number(row["capacity_gb"]),
                bandwidth_gb_s=float(row["bandwidth_gb_s"]),
                write_gb_s=number(row["write_gb_s"]),
                reads_per_s=number(row["reads_per_s"]),
                tflops=number(row["tflops"]),
                tflops_of=row["tflops_of"],
                source=row["source"],
                checked=row["checked"],
            )
    return found


def parts_of(name: str) -> tuple[Part, Part, Part, Part]:
    """Device, link, dram and drive of a platform."""
    if name not in PLATFORMS:
        raise DataError(f"no platform {name!r}; there is: {', '.join(PLATFORMS)}")
    gpu, link, dram, ssd = (parts()[part] for part in PLATFORMS[name])
    return gpu, link, dram, ssd


def platform(name: str, gpu: Part, link: Part, dram: Part, ssd: Part) -> Platform:
    """Of these parts."""
    assert gpu.tflops is not None
    assert ssd.reads_per_s is not None
    assert ssd.write_gb_s is not None
    return Platform(
        name=name,
        flops=gpu.tflops * TERA,
        hbm=gpu.bandwidth_gb_s * GIGA,
        link=link.bandwidth_gb_s * GIGA,
        dram=dram.bandwidth_gb_s * GIGA,
        reads_per_s=ssd.reads_per_s,
        write_bytes_per_s=ssd.write_gb_s * GIGA,
    )


def platforms() -> Iterator[tuple[Platform, tuple[Part, Part, Part, Part]]]:
    """All, and the base with one part exchanged for each other one."""
    for name in PLATFORMS:
        yield platform(name, *parts_of(name)), parts_of(name)
    for other in (parts()[name] for name in EXCHANGED):
        gpu, link, dram, ssd = (other if p.kind == other.kind else p for p in parts_of(BASE))
        yield platform(f"{BASE}, {other.part}", gpu, link, dram, ssd), (gpu, link, dram, ssd)


def projection(
    demand: Demand, hbm_bytes: float, dram_bytes: float, machine: Host | None = None
) -> list[dict[str, Any]]:
    """A row for each platform, for JSON.

    Args:
        hbm_bytes, dram_bytes: the tiers of the demand, to say where they do not fit.
        machine: this one, fitted, as the first row.
    """
    rows = []
    if machine is not None:
        this = {
            "platform": "the fitted machine",
            "parts": [],
            "year": date.today().year,
            "fits": True,
        }
        rows.append({**this, **_row(demand, machine)})
    for found, (gpu, link, dram, ssd) in platforms():
        sizes = ((hbm_bytes, gpu), (dram_bytes, dram))
        rows.append({
            "platform": found.name,
            "parts": [p.part for p in (gpu, link, dram, ssd)],
            "year": gpu.year,
            "flops_of": gpu.tflops_of,
            "fits": all(p.capacity_gb is None or n <= p.capacity_gb * GIGA for n, p in sizes),
            **_row(demand, found),
        })  # fmt: skip
    return rows


def _row(demand: Demand, machine: Machine) -> dict[str, Any]:
    found = predict(demand, machine)
    row = {
        "step_s": found.step_s,
        "in_line_s": found.in_line_s,
        "samples_per_s": demand.batch_size / found.step_s,
        "binding": found.binding,
        "busy_s": dict(found.busy_s),
    }
    if isinstance(machine, Platform):
        model, ratio = flop_per_byte(demand, machine, found.binding)
        row |= {"model_flop_per_byte": model, "machine_flop_per_byte": ratio}
    return row


def flop_per_byte(demand: Demand, machine: Platform, tier: str) -> tuple[float, float]:
    """Operations of the layers for each byte that moves through a tier, and those that the machine
    can do in the time: where the first is less, the tier takes longer than the arithmetic.

    Args:
        tier: "layers" stands for hbm, with the bytes of the layers' operators.
    """
    moved = demand.layers.bytes if tier == "layers" else bytes_by_tier(demand)[tier]
    busy_s = moved / machine.hbm if tier == "layers" else machine.busy_s(demand)[tier]
    if not moved or not busy_s:
        return 0.0, 0.0
    return demand.layers.flops / moved, machine.flops / (moved / busy_s)


def growth() -> dict[str, dict[str, float]]:
    """By edition of the article, the factor by which each thing grows in a year."""
    found: dict[str, dict[str, float]] = {}
    for row in _rows("trends.csv"):
        a_year = float(row["factor"]) ** (1 / float(row["years"]))
        found.setdefault(row["edition"], {})[row["of"]] = a_year
    return found


def grown(base: Platform, a_year: Mapping[str, float], years: float) -> Platform:
    """The platform so many years later."""
    compute, memory, link = (a_year[of] ** years for of in ("compute", "dram", "link"))
    return replace(
        base,
        flops=base.flops * compute,
        hbm=base.hbm * memory,
        dram=base.dram * memory,
        link=base.link * link,
        reads_per_s=base.reads_per_s * link,
        write_bytes_per_s=base.write_bytes_per_s * link,
    )


def trends(demand: Demand, years: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each edition and year, for JSON: the base platform, grown since its year."""
    base, year = platform(BASE, *parts_of(BASE)), parts_of(BASE)[0].year
    return [
        {
            "edition": edition,
            "year": then,
            "base": BASE,
            "capacity_factor": a_year["capacity"] ** (then - year),
            **_row(demand, grown(base, a_year, then - year)),
        }
        for edition, a_year in growth().items()
        for then in years
    ]


def years_of(text: str) -> range:
    """Every second year of ``2024-2036``."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 2000 <= int(first) <= int(last) <= 2100):
        raise DataError(f"--years {text}: expected two years, as 2024-2036")
    return range(int(first), int(last) + 1, 2)


def validated(path: Path) -> tuple[Host, dict[str, Any]]:
    """This machine, fitted to some runs of a report, and how well it predicts the others.

    Args:
        path: JSON of `benchmarks/bench_wall.py`, or of `tiered-emb bench dlrm`.

    Raises:
        DataError: it cannot be read, or is no such report.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        runs = report["runs"]
        marked = any("use" in run for run in runs)
        is_fit = [r["use"] == "fit" if marked else i < FITTING_RUNS for i, r in enumerate(runs)]
        fitting = [run for run, use in zip(runs, is_fit, strict=True) if use]
        others = [run for run, use in zip(runs, is_fit, strict=True) if not use]
        return validation(fitting, others, rates_of(Limits.from_json(report["limits"])))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise DataError(f"{path}: no report of DLRM runs: {error} is not there") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no report of DLRM runs: {error}") from error
