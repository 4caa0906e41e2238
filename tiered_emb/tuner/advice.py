"""What the tuner says of a model: the recommended sizes, and what speaks for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tiered_emb.bench.demand import CHANGES, FREE_BYTES, HEADROOM, SPACE
from tiered_emb.bench.predict import Machine
from tiered_emb.data.errors import DataError
from tiered_emb.trace.format import TraceTable
from tiered_emb.tuner.cost import (
    DTYPES,
    Model,
    Outlook,
    RowFormat,
    as_dict,
    dims_of,
    dram_for_all,
    outlook,
)
from tiered_emb.tuner.curves import MissCurve, lru_curve, optimum_curve, policy_curve, sizes_of
from tiered_emb.tuner.model import WINDOWS, Load, Progress, model_of, no_progress, with_format
from tiered_emb.tuner.placement import Placement, placement
from tiered_emb.tuner.sample import Pyramid
from tiered_emb.tuner.search import (
    Bounds,
    Extra,
    Wish,
    explore,
    extras,
    front,
    recommended,
)

_UNITS = ("GiB", "MiB", "KiB")
_OPTIMIZERS = ("sgd", "rowwise-adagrad", "adagrad", "adam")
_CURVE_TABLES_MAX = 12


@dataclass(frozen=True)
class WhatIf:
    """The recommended tiers with rows kept otherwise; `step_s` None: they do not hold a batch,
    or not all rows."""

    rows: RowFormat
    bytes: int
    step_s: float | None


@dataclass(frozen=True)
class Advice:
    """Of one model and machine.

    Args:
        model, machine: what was predicted with.
        chosen: the recommended point.
        front: Pareto's, slowest first.
        extras: what more of each tier would buy there.
        what_if: other formats of rows there.
        placement: shares of single tables; None where there is nothing to divide.
    """

    model: Model
    machine: Machine
    rows: RowFormat
    chosen: Outlook
    front: Sequence[Outlook]
    extras: Sequence[Extra]
    what_if: Sequence[WhatIf]
    placement: Placement | None

    @property
    def dram_bytes(self) -> int:
        """Of the recommended point; where all rows are to be in dram, a budget that holds them."""
        if self.chosen.sizes.dram_bytes is not None:
            return math.ceil(self.chosen.dram_bytes)
        return math.ceil(self.chosen.dram_bytes * (1 + 2 * (CHANGES + HEADROOM))) + FREE_BYTES

    @property
    def hbm_bytes(self) -> int:
        """Likewise."""
        return math.ceil(self.chosen.sizes.hbm_bytes)

    def __str__(self) -> str:
        size, step_s = self.model.batch_size, self.chosen.step_s
        rate = f", {size / step_s:,.0f} samples/s" if size else ""
        return (
            f"{tiers_text(self.chosen)}\n"
            f"predicted: {step_s * 1e3:.1f} ms a step{rate}; {self.chosen.binding} binds"
        )


def advise(
    pyramid: Pyramid,
    load: Load,
    machine: Machine,
    bounds: Bounds,
    wish: Wish,
    progress: Progress = no_progress,
) -> Advice:
    """Simulates, explores and chooses.

    `progress` is called after each curve, up to `curves_of` times.

    Raises:
        DataError: nothing fits the bounds or reaches the target; a table's dim is not known.
    """
    model = model_of(pyramid, load, progress=progress)
    points = explore(model, machine, bounds)
    chosen = recommended(points, model, wish)
    return Advice(
        model=model,
        machine=machine,
        rows=load.rows,
        chosen=chosen,
        front=front(points),
        extras=extras(chosen, model, machine, bounds),
        what_if=_what_if(model, chosen, machine, bounds),
        placement=placement(pyramid, model, load.rows, chosen, machine, progress),
    )


def curves_of(tables: Mapping[str, TraceTable], load: Load) -> int:
    """How many curves advice on these tables takes, at most."""
    return len(WINDOWS) * (len(dims_of(tables, load.dim)) + len(load.shares)) + 2 * len(tables)


def _what_if(model: Model, chosen: Outlook, machine: Machine, bounds: Bounds) -> list[WhatIf]:
    found = []
    for optimizer in _OPTIMIZERS if model.trains else (None,):
        for dtype in DTYPES:
            rows = RowFormat(optimizer, dtype)
            other = with_format(model, rows)
            step_s: float | None = None
            if _fits(other, chosen, bounds):
                with suppress(DataError):
                    step_s = outlook(other, chosen.sizes, machine).step_s
            found.append(WhatIf(rows, other.bytes, step_s))
    return found


def _fits(model: Model, chosen: Outlook, bounds: Bounds) -> bool:
    """Whether all rows have room where they are to be: in dram, or on the ssd."""
    sizes = chosen.sizes
    if sizes.dram_bytes is None:
        return dram_for_all(model, sizes.hbm_bytes) <= bounds.dram_max
    return bounds.ssd_max is None or model.bytes * SPACE <= bounds.ssd_max


def size_text(nbytes: float) -> str:
    """A size for `te.Tiers`, of four digits, and no more than it was."""
    power = next((3 - i for i in range(3) if nbytes >= 1024.0 ** (3 - i)), 0)
    if power == 0:
        return str(math.floor(nbytes))
    value = nbytes / 1024.0**power
    digits = max(0, 3 - int(math.log10(value)))
    return f"{math.floor(value * 10**digits + 1e-9) / 10**digits:.15g}{_UNITS[3 - power]}"


def share_text(share: float) -> str:
    """A share for `te.Table`, of three digits, and no more than it was: the shares fill dram."""
    if share >= 1:
        return "1"
    digits = 2 - math.floor(math.log10(share)) if share > 0 else 0
    return f"{math.floor(share * 10**digits + 1e-9) / 10**digits:.15g}"


def tiers_text(point: Outlook, ssd: str = "/path/on/the/drive") -> str:
    """Python that makes the tiers of a point, and its prefetcher."""
    sizes = point.sizes
    parts = [f'hbm="{size_text(sizes.hbm_bytes)}"'] if sizes.hbm_bytes else []
    if sizes.dram_bytes is None:
        return f"te.Tiers({', '.join(parts)})  # all rows in dram"
    parts += [f'dram="{size_text(sizes.dram_bytes)}"', f'ssd="{ssd}"']
    return (
        f"te.Tiers({', '.join(parts)})\n"
        f"te.Prefetcher(loader, model, rows_ahead={sizes.rows_ahead}, ids_ahead={sizes.ids_ahead})"
    )


def advice_dict(advice: Advice) -> dict[str, Any]:
    """For JSON."""
    model, chosen = advice.model, advice.chosen
    shares = advice.placement
    return {
        "model": {
            "tables": sum(len(pool.tables) for pool in model.pools),
            "rows": model.rows,
            "bytes": model.bytes,
            "all_in_dram_bytes": round(dram_for_all(model)),
            "optimizer": advice.rows.optimizer,
            "dtype": advice.rows.dtype,
            "lookups_a_step": model.lookups,
            "unique_rows_a_step": model.unique_rows,
            "largest_batch_rows": model.largest_batch,
            "layers_ms": model.layers_s * 1e3,
            "batch_size": model.batch_size,
        },
        "recommended": {
            **as_dict(chosen, model),
            "groups": [list(group) for group in advice.machine.groups],
            "tiers": _tiers_dict(chosen),
            "python": tiers_text(chosen),
            "ssd_bytes": 0 if chosen.sizes.dram_bytes is None else round(model.bytes * SPACE),
        },
        "front": [as_dict(point, model) for point in advice.front],
        "extra": [
            {"tier": extra.tier, "bytes": round(extra.bytes), "gain": extra.gain}
            for extra in advice.extras
        ],
        "what_if": [
            {
                "optimizer": other.rows.optimizer,
                "dtype": other.rows.dtype,
                "bytes": other.bytes,
                "step_ms": None if other.step_s is None else other.step_s * 1e3,
            }
            for other in advice.what_if
        ],
        "placement": None
        if shares is None
        else {
            "gain": shares.gain,
            "worth_it": shares.is_worth_it,
            "shares": dict(shares.shares),
            "misses_shared": shares.before.demand.step.misses,
            "misses": shares.after.demand.step.misses,
        },
    }


def _tiers_dict(point: Outlook) -> dict[str, Any]:
    dram = point.sizes.dram_bytes
    return {
        "hbm": round(point.sizes.hbm_bytes) or None,
        "dram": None if dram is None else math.ceil(dram),
        "ssd": dram is not None,
    }


def curves_dict(pyramid: Pyramid, window: int) -> list[dict[str, Any]]:
    """Miss-ratio curves for JSON: of all tables together, and of those that are looked up most."""
    names = list(pyramid.tables)
    busiest = sorted(range(len(names)), key=lambda t: -pyramid.lookups[t])[:_CURVE_TABLES_MAX]
    chosen = [("all tables", pyramid, True)]
    if len(names) > 1:
        chosen += [(names[t], pyramid.of_tables([t]), False) for t in sorted(busiest)]
    found = []
    for name, part, is_all in chosen:
        if part.lookups.sum() == 0:
            continue
        sizes = sizes_of(part)
        curves = {"policy": policy_curve(part, sizes, window=window, with_error=is_all)}
        if is_all:
            curves |= {"lru": lru_curve(part, sizes), "optimum": optimum_curve(part, sizes)}
        total = (
            sum(t.rows for t in pyramid.tables.values()) if is_all else pyramid.tables[name].rows
        )
        found.append({
            "table": name,
            "rows": total,
            "lookups_a_step": part.lookups_a_batch,
            "unique_rows_a_step": part.rows_of_a_batch()[0],
            "curves": {kind: _curve_dict(curve) for kind, curve in curves.items()},
        })  # fmt: skip
    return found


def _curve_dict(curve: MissCurve) -> Mapping[str, list[float]]:
    return {
        "rows": curve.rows.tolist(),
        "misses": curve.misses.tolist(),
        "error": curve.error.tolist(),
    }
