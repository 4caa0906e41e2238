"""Which sizes are worth having: all of a grid are predicted, and some stand out.

A step's time falls with each tier's size, in curves with knees that depend on the ids; a few
hundred points of a grid take less time than any cleverness, and leave nothing out between them that
matters (neighbours differ by less than a tenth in size).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tiered_emb.bench.demand import SLOT_BYTES, SPACE
from tiered_emb.bench.predict import Machine
from tiered_emb.data.errors import DataError
from tiered_emb.tiers import format_bytes
from tiered_emb.tuner.cost import Model, Outlook, Sizes, dram_for_all, outlook

GIB = float(1 << 30)
TIERS = ("hbm", "dram", "ssd")
WITHIN = 0.01
"""Of the fastest step that may be had, the smallest tiers within this are recommended."""
_DRAM_STEP, _HBM_STEP = 1.08, 1.25
_DRAM_POINTS_MAX, _HBM_POINTS_MAX = 64, 16
_SMALL = 5e-3  # of a step's time: no reason to look farther ahead
_DEPTHS = (4, 2, 1)


@dataclass(frozen=True)
class Bounds:
    """Of the tiers; bytes.

    Args:
        hbm_max: 0: no device.
        dram_max: of the budget.
        ssd_max: capacity; None: no ssd.
    """

    hbm_max: float
    dram_max: float
    ssd_max: float | None


@dataclass(frozen=True)
class Wish:
    """What is to be recommended: the fastest within the bounds, with as little as gives it.

    Args:
        steps_per_s: rather the cheapest that does so many.
        cheapest: rather the lowest price for each step a second.
        prices: of a GiB of each tier, by name; without them hbm is dearer than any dram.
    """

    steps_per_s: float | None = None
    cheapest: bool = False
    prices: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Extra:
    """What more of a tier would buy: `gain` of the steps a second for `bytes` more."""

    tier: str
    bytes: float
    gain: float


def explore(model: Model, machine: Machine, bounds: Bounds) -> list[Outlook]:
    """A point of each pair of sizes within the bounds, with the lookahead that suits it best.

    Raises:
        DataError: no size works: dram does not hold the rows of a batch, or the ssd all rows.
    """
    needed, every = model.bytes * SPACE, dram_for_all(model)
    drams: list[float | None] = [None] if bounds.dram_max >= every else []
    if bounds.ssd_max is not None and bounds.ssd_max < needed and not drams:
        raise DataError(
            f"ssd: the rows need {format_bytes(int(needed))} there, there are "
            f"{format_bytes(int(bounds.ssd_max))}"
        )
    if bounds.ssd_max is not None and bounds.ssd_max >= needed:
        drams += _steps(
            _least_dram(model), min(bounds.dram_max, every), _DRAM_STEP, _DRAM_POINTS_MAX
        )
    if not drams:
        raise DataError(
            f"dram: all rows need {format_bytes(int(every))}, {format_bytes(int(bounds.dram_max))} "
            "may be used, and there is no ssd for the others"
        )
    hbms = [0.0]
    if bounds.hbm_max > 0:
        most = min(bounds.hbm_max, float(model.hbm_bytes))
        hbms += _steps(min(most, model.hbm_bytes / 1000), most, _HBM_STEP, _HBM_POINTS_MAX)
    found = []
    for dram in drams:
        for hbm in hbms:
            if dram is not None and hbm > dram:
                continue  # a row on the device keeps its place in dram
            if dram is None and dram_for_all(model, hbm) > bounds.dram_max:
                continue
            best = _best(model, machine, Sizes(hbm, dram))
            if best is None:
                continue
            if dram is None or drams[0] is not None or best.slots < model.rows:
                found.append(best)
    if not found:
        raise DataError(
            f"dram of {format_bytes(int(bounds.dram_max))} does not hold the rows of a batch: up "
            f"to {model.largest_batch:,.0f}"
        )
    return found


def _least_dram(model: Model) -> float:
    """Two batches, below which the curves say nothing."""
    return 2 * model.largest_batch * (model.per_row("row_bytes") + SLOT_BYTES)


def _steps(least: float, most: float, factor: float, points_max: int) -> list[float]:
    """From the most down to the least, by a factor, or a larger one that takes fewer points."""
    if most <= least:
        return [most]
    points = min(points_max, 2 + int(np.log(most / least) / np.log(factor)))
    return [float(size) for size in np.geomspace(most, least, points)]


def _best(model: Model, machine: Machine, sizes: Sizes) -> Outlook | None:
    """Of sizes the lookahead with the shortest step, and no more than helps."""
    best: Outlook | None = None
    in_dram = sizes.dram_bytes is None
    for window in model.windows[:1] if in_dram else model.windows:
        for depth in _DEPTHS:
            try:
                found = outlook(model, replace(sizes, rows_ahead=depth, ids_ahead=window), machine)
            except DataError:
                continue
            if best is None or found.step_s < best.step_s * (1 - _SMALL):
                best = found
    return best


def front(points: Iterable[Outlook]) -> list[Outlook]:
    """Those that no other beats with no more of either tier; slowest first."""
    kept: list[Outlook] = []
    for point in sorted(points, key=lambda p: (p.step_s, p.sizes.hbm_bytes, p.dram_bytes)):
        if not any(
            other.sizes.hbm_bytes <= point.sizes.hbm_bytes and other.dram_bytes <= point.dram_bytes
            for other in kept
        ):
            kept.append(point)
    return _thinned(kept)


def _thinned(kept: Sequence[Outlook]) -> list[Outlook]:
    """Without points that are hardly faster than the one before, of the same hbm."""
    shown: list[Outlook] = []
    for point in reversed(kept):
        last = shown[-1] if shown else None
        same_hbm = last is not None and last.sizes.hbm_bytes == point.sizes.hbm_bytes
        if last is None or not same_hbm or point.step_s <= last.step_s * (1 - _SMALL):
            shown.append(point)
    return shown


def price_of(point: Outlook, model: Model, prices: Mapping[str, float]) -> float:
    """Of its tiers."""
    ssd = 0.0 if point.sizes.dram_bytes is None else model.bytes * SPACE
    sizes = (point.sizes.hbm_bytes, point.dram_bytes, ssd)
    return sum(prices.get(t, 0.0) * size / GIB for t, size in zip(TIERS, sizes, strict=True))


def recommended(points: Sequence[Outlook], model: Model, wish: Wish) -> Outlook:
    """The point that the wish is for.

    Raises:
        DataError: none reaches the target; the best is named.
    """

    def expense(point: Outlook) -> tuple[float, ...]:
        if wish.prices is not None:
            return (price_of(point, model, wish.prices), point.step_s)
        return (point.sizes.hbm_bytes, point.dram_bytes, point.step_s)

    if wish.cheapest:
        assert wish.prices is not None
        prices = wish.prices
        return min(points, key=lambda p: price_of(p, model, prices) * p.step_s)
    fastest = min(point.step_s for point in points)
    if wish.steps_per_s is None:
        return min((p for p in points if p.step_s <= fastest * (1 + WITHIN)), key=expense)
    enough = [p for p in points if p.steps_per_s >= wish.steps_per_s]
    if not enough:
        size = model.batch_size or 1
        raise DataError(
            f"target of {wish.steps_per_s * size:,.0f} samples/s: the fastest within these sizes "
            f"does {size / fastest:,.0f}"
        )
    return min(enough, key=expense)


def extras(point: Outlook, model: Model, machine: Machine, bounds: Bounds) -> list[Extra]:
    """What a GiB more of each tier would buy, or a tenth more where a GiB is more than that."""
    found = []
    hbm, dram = point.sizes.hbm_bytes, point.sizes.dram_bytes
    for tier, size in (("hbm", point.sizes.hbm_bytes), ("dram", dram)):
        if size is None or (tier == "hbm" and bounds.hbm_max == 0):
            continue
        more = min(GIB, max(size, model.bytes / 100) / 10)
        sizes = Sizes(size + more, dram) if tier == "hbm" else Sizes(hbm, size + more)
        if tier == "hbm" and sizes.hbm_bytes > (bounds.dram_max if dram is None else dram):
            continue  # a row on the device keeps its place in dram
        bigger = _best(model, machine, sizes)
        if bigger is not None and (dram is not None or bigger.dram_bytes <= bounds.dram_max):
            gain = point.step_s / bigger.step_s - 1
            found.append(Extra(tier, more, max(gain, 0.0) if tier == "dram" else gain))
    return found
