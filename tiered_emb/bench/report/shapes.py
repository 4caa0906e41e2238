"""Reads the JSON of benchmarks, and says in one line what a damaged or foreign file lacks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiered_emb.bench.report.parts import Report
from tiered_emb.data.errors import DataError


@dataclass(frozen=True)
class _Kind:
    what: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class _Maybe:
    """The shape, or null, or absent."""

    shape: Any


@dataclass(frozen=True)
class _Each:
    """An object of any keys, these among them, whose values have the shape."""

    shape: Any
    needs: Sequence[str] = ()


@dataclass(frozen=True)
class _Some:
    """A list of one or more."""

    shape: Any


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


TEXT = _Kind("a text", lambda value: isinstance(value, str))
FLAG = _Kind("true or false", lambda value: isinstance(value, bool))
ANY = _Kind("a value", lambda _: True)
NUMBER = _Kind("a number", _is_number)
ABOVE_0 = _Kind("a number above 0", lambda value: _is_number(value) and value > 0)
AT_LEAST_0 = _Kind("a number of 0 or more", lambda value: _is_number(value) and value >= 0)

_SPREAD = {"p25": NUMBER, "p50": ABOVE_0, "p75": NUMBER}
_FIGURE = {"p25": NUMBER, "median": ABOVE_0, "p75": NUMBER}
_STREAM = {
    "threads": ABOVE_0,
    "sequential_read_bytes_per_s": _FIGURE,
    "copy_bytes_per_s": _FIGURE,
    "triad_bytes_per_s": _FIGURE,
}
_ROWS = {
    "row_bytes": ABOVE_0,
    "threads": ABOVE_0,
    "gather_bytes_per_s": _FIGURE,
    "gather_prefetched_bytes_per_s": _FIGURE,
    "update_bytes_per_s": _FIGURE,
}
_READS = {
    "block_bytes": ABOVE_0,
    "queue_depth": ABOVE_0,
    "threads": ABOVE_0,
    "reads_per_s": _FIGURE,
    "latency_p50_us": _FIGURE,
    "latency_p99_us": _FIGURE,
}
LIMITS = {
    "date": TEXT,
    "machine": _Each(ANY),
    "device": _Maybe(TEXT),
    "dram": {"arena_bytes": ABOVE_0, "streams": _Some(_STREAM), "rows": _Some(_ROWS)},
    "ssd": _Maybe({
        "reads": _Some(_READS),
        "sequential_read_bytes_per_s": _FIGURE,
        "sequential_write_bytes_per_s": _FIGURE,
        "fsync_us": {"p50": _FIGURE, "p99": _FIGURE},
    }),
    "link": _Maybe({
        "device": TEXT,
        "host_to_device_bytes_per_s": _FIGURE,
        "device_to_host_bytes_per_s": _FIGURE,
        "device_copy_bytes_per_s": _FIGURE,
    }),
}  # fmt: skip
_CONTENDER = {
    "step_ms": {"p50": ABOVE_0, "p95": ABOVE_0, "p99": ABOVE_0},
    "round_ms_p25": NUMBER,
    "round_ms_p50": ABOVE_0,
    "round_ms_p75": NUMBER,
    "samples_per_s": ABOVE_0,
    "lookups_per_s": ABOVE_0,
}
_RUN = {
    "workload": {
        "name": TEXT,
        "about": TEXT,
        "rows": ABOVE_0,
        "dim": ABOVE_0,
        "batch_size": ABOVE_0,
        "lookups_a_step": ABOVE_0,
        "all_rows_bytes": ABOVE_0,
    },
    "training": {"optimizer": _Maybe(TEXT), "dtype": TEXT, "trains": FLAG},
    "tiers": {"dram_bytes": ABOVE_0, "dram_share": ABOVE_0, "ssd": FLAG},
    "contenders": _Each(_CONTENDER, needs=("tiered",)),
    "left_out": _Each(TEXT),
    "work": {
        "unique_rows": AT_LEAST_0,
        "weight_bytes": ABOVE_0,
        "row_bytes": ABOVE_0,
        "optimal_misses": AT_LEAST_0,
        "misses": AT_LEAST_0,
        "blocks_read": AT_LEAST_0,
    },
    "efficiency": {
        "step_s": ABOVE_0,
        "bound_s": ABOVE_0,
        "policy": ABOVE_0,
        "amplification": ABOVE_0,
        "bandwidth": ABOVE_0,
        "overlap": ABOVE_0,
        "binding": TEXT,
        "no_overlap_s": ABOVE_0,
        "eta": ABOVE_0,
    },
    "accounting": {
        "step_s": ABOVE_0,
        "parts_s": _Each(AT_LEAST_0),
        "sum_over_step": NUMBER,
        "closes": FLAG,
    },
    "row_hit_ratio": NUMBER,
    "optimal_hit_ratio": NUMBER,
}
_STUDY = {
    "title": TEXT,
    "x": TEXT,
    "x_unit": TEXT,
    "y": TEXT,
    "y_unit": TEXT,
    "log_x": FLAG,
    "series": _Some({"label": TEXT, "points": _Some({"x": NUMBER, **_SPREAD})}),
}
_CACHE = {
    "name": TEXT,
    "rows": ABOVE_0,
    "lookups": ABOVE_0,
    "about": TEXT,
    "points": _Some({"share": ABOVE_0, "misses": _Each(AT_LEAST_0, needs=("optimum",))}),
}
_POINT = {
    "title": TEXT,
    "unit": TEXT,
    "ours": _SPREAD,
    "limit": _Maybe(ABOVE_0),
    "of_limit": _Maybe(ABOVE_0),
}
_PLATFORM = {
    "platform": TEXT,
    "year": NUMBER,
    "step_s": ABOVE_0,
    "binding": TEXT,
    "busy_s": _Each(AT_LEAST_0),
    "model_flop_per_byte": _Maybe(ABOVE_0),
    "machine_flop_per_byte": _Maybe(ABOVE_0),
    "samples_per_s": ABOVE_0,
}
_TREND = {"edition": TEXT, "year": NUMBER, "busy_s": _Each(AT_LEAST_0), "binding": TEXT}
_TIER_SIZES = {
    "hbm_bytes": AT_LEAST_0,
    "dram_bytes": _Maybe(ABOVE_0),
    "step_ms": ABOVE_0,
    "binding": TEXT,
    "dram_row_hit_ratio": NUMBER,
    "ssd_reads_per_s": AT_LEAST_0,
    "ssd_written_bytes_a_day": AT_LEAST_0,
}
_MISSES = {"rows": _Some(ABOVE_0), "misses": _Some(AT_LEAST_0), "error": _Some(AT_LEAST_0)}
_TUNE = {
    "model": {
        "tables": ABOVE_0,
        "rows": ABOVE_0,
        "bytes": ABOVE_0,
        "all_in_dram_bytes": ABOVE_0,
        "optimizer": _Maybe(TEXT),
        "dtype": TEXT,
        "batch_size": _Maybe(ABOVE_0),
    },
    "recommended": {
        **_TIER_SIZES,
        "slots": AT_LEAST_0,
        "busy_ms": _Each(AT_LEAST_0),
        "groups": _Some(_Some(TEXT)),
    },
    "front": _Some(_TIER_SIZES),
    "extra": [{"tier": TEXT, "bytes": AT_LEAST_0, "gain": NUMBER}],
    "what_if": [
        {"optimizer": _Maybe(TEXT), "dtype": TEXT, "bytes": ABOVE_0, "step_ms": _Maybe(ABOVE_0)}
    ],
    "placement": _Maybe({
        "gain": NUMBER,
        "worth_it": FLAG,
        "shares": _Each(AT_LEAST_0),
        "misses_shared": AT_LEAST_0,
        "misses": AT_LEAST_0,
    }),
    "life_years": _Maybe(AT_LEAST_0),
    "is_projection": FLAG,
    "curves": _Maybe([
        {
            "table": TEXT,
            "rows": ABOVE_0,
            "lookups_a_step": AT_LEAST_0,
            "unique_rows_a_step": AT_LEAST_0,
            "curves": _Each(_MISSES, needs=("policy",)),
        }
    ]),
}  # fmt: skip
_PREDICTED = {"name": TEXT, "measured_ms": ABOVE_0, "predicted_ms": ABOVE_0, "error": NUMBER}
_VALIDATION = {"predicted": _Some(_PREDICTED), "within_15_percent": NUMBER}
_RESULTS: dict[str, Mapping[str, Any]] = {
    "limits": {"limits": LIMITS},
    "dlrm": {"runs": _Some(_RUN)},
    "lookup": {"studies": _Each(_STUDY)},
    "cache": {"streams": _Some(_CACHE)},
    "ssd": {"points": _Some(_POINT)},
    "wall": {
        "projection": _Some(_PLATFORM),
        "trends": _Maybe([_TREND]),
        "validation": _Maybe(_VALIDATION),
    },
    "tune": {**_TUNE, "validation": _Maybe(_VALIDATION)},
}
_HEAD = {
    "machine": _Each(ANY),
    "versions": _Each(TEXT),
    "commit": _Maybe(TEXT),
    "date": TEXT,
    "command": TEXT,
    "smoke": _Maybe(FLAG),
    "limits": _Maybe(LIMITS),
}
NAMES = tuple(_RESULTS)  # of benchmarks that a report shows, in its order


def _faults(shape: Any, value: Any, where: str) -> Iterator[str]:
    """What `value`, found at `where`, lacks to be of a shape."""
    if isinstance(shape, _Kind):
        if not shape.holds(value):
            yield f"{where} is not {shape.what}"
    elif isinstance(shape, _Maybe):
        if value is not None:
            yield from _faults(shape.shape, value, where)
    elif isinstance(shape, _Some | list):
        inner = shape.shape if isinstance(shape, _Some) else shape[0]
        if not isinstance(value, list) or (isinstance(shape, _Some) and not value):
            yield f"{where} is not a list" + (" of one or more" if value == [] else "")
            return
        for i, item in enumerate(value):
            yield from _faults(inner, item, f"{where}[{i}]")
    elif not isinstance(value, dict):
        yield f"{where} is not an object"
    elif isinstance(shape, _Each):
        yield from (f"{where} has no {name!r}" for name in shape.needs if name not in value)
        for name, item in value.items():
            yield from _faults(shape.shape, item, f"{where}[{name!r}]")
    else:
        for name, inner in shape.items():
            here = f"{where}.{name}" if where else name
            if name in value or isinstance(inner, _Maybe):
                yield from _faults(inner, value.get(name), here)
            else:
                yield f"{here} is missing"


def checked(data: Any, name: str) -> list[Report]:
    """The reports of one file's data, or of several under "reports"; `DataError` names `name`."""
    if not isinstance(data, dict):
        raise DataError(f"{name}: no report of tiered-emb bench: not an object")
    if isinstance(data.get("reports"), list):
        several = [checked(d, f"{name}: reports[{i}]") for i, d in enumerate(data["reports"])]
        return [report for found in several for report in found]
    kind = data.get("benchmark", "limits" if "limits" in data else None)
    if not isinstance(kind, str) or kind not in _RESULTS:
        what = "benchmark is missing" if kind is None else f"benchmark is {kind!r:.60}"
        raise DataError(f"{name}: no report of tiered-emb bench: {what}")
    fault = next(_faults({**_HEAD, **_RESULTS[kind]}, data, ""), None)
    if fault is not None:
        raise DataError(f"{name}: damaged report of bench {kind}: {fault:.200}")
    return [{**data, "benchmark": kind}]


def read(path: Path) -> list[Report]:
    """The reports of a JSON file; `DataError` where it holds none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    return checked(data, str(path))
