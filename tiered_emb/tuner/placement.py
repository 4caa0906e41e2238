"""Shares of dram for single tables, where a budget that all share is not the best.

Each table's misses are simulated with slots of its own. From the rows of a few batches for each
table, slots go where they spare the most misses for their bytes, along the convex hulls of the
curves: the best division, up to the curves' own bends (Fox, "Discrete Optimization via Marginal
Analysis", 1966). A policy that sees all tables at once often does as well: what is proposed is
measured against that.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tiered_emb.bench.demand import SLOT_BYTES
from tiered_emb.bench.predict import Machine
from tiered_emb.data.errors import DataError
from tiered_emb.tuner.cost import Model, Outlook, Pool, RowFormat, outlook
from tiered_emb.tuner.model import Progress, no_progress, pool_of
from tiered_emb.tuner.sample import Pyramid

GAIN_MIN = 0.05
"""Of the steps a second: no placement is proposed for less, which predictions may be off by."""
_SPARE = 1 / 32
"""Of dram, that is not divided: predictions of what the engine keeps for itself are not exact."""
_BATCHES = 3  # whose rows every table has room for


@dataclass(frozen=True)
class Placement:
    """Shares of their rows that tables have in dram.

    Args:
        shares: by table.
        before, after: the step with one budget for all, and with these shares.
    """

    shares: Mapping[str, float]
    before: Outlook
    after: Outlook

    @property
    def gain(self) -> float:
        """Of the steps a second."""
        return self.before.step_s / self.after.step_s - 1

    @property
    def is_worth_it(self) -> bool:
        """Whether it is to be proposed."""
        return self.gain >= GAIN_MIN


def placement(
    pyramid: Pyramid,
    model: Model,
    rows: RowFormat,
    point: Outlook,
    machine: Machine,
    progress: Progress = no_progress,
) -> Placement | None:
    """The best division of a point's dram; None where there is nothing to divide.

    `progress` is called after each curve.
    """
    if point.sizes.dram_bytes is None or sum(len(pool.tables) for pool in model.pools) < 2:
        return None
    window = point.sizes.ids_ahead
    windows = sorted({model.windows[0], window})
    tables = [
        pool_of(pyramid, [name], pool.dim, rows, windows, with_error=False, progress=progress)
        for pool in model.pools
        for name in pool.tables
    ]
    kept = sum(
        (pool.row_bytes + SLOT_BYTES) * point.slots * pool.rows / model.rows for pool in model.pools
    )
    kept -= _SPARE * point.sizes.dram_bytes
    shares = _divide(tables, kept, window)
    if shares is None:
        return None
    pools = [replace(pool, share=shares.get(pool.tables[0])) for pool in tables]
    try:
        after = outlook(replace(model, pools=pools), point.sizes, machine)
    except DataError:
        return None
    return Placement(shares, point, after)


def _divide(tables: list[Pool], nbytes: float, window: int) -> dict[str, float] | None:
    """Shares of the tables' rows, of so many bytes; None if these are too few for some batches."""
    slots: dict[str, float] = {}
    steps: list[tuple[float, int, int]] = []
    hulls = []
    for number, pool in enumerate(tables):
        hull = _hull(pool, window)
        hulls.append(hull)
        slots[pool.tables[0]] = hull[0][0]
        nbytes -= hull[0][0] * (pool.row_bytes + SLOT_BYTES)
        if len(hull) > 1:
            heapq.heappush(steps, (-_worth(pool, hull, 0), number, 0))
    if nbytes < 0:
        return None
    while steps and nbytes > 0:
        _, number, at = heapq.heappop(steps)
        pool, hull = tables[number], hulls[number]
        wanted = hull[at + 1][0] - hull[at][0]
        taken = min(wanted, nbytes / (pool.row_bytes + SLOT_BYTES))
        slots[pool.tables[0]] += taken
        nbytes -= taken * (pool.row_bytes + SLOT_BYTES)
        if at + 2 < len(hull):
            heapq.heappush(steps, (-_worth(pool, hull, at + 1), number, at + 1))
    found = {
        pool.tables[0]: slots[pool.tables[0]] / pool.rows
        for pool in tables
        if pool.rows > 0 and pool.lookups > 0
    }
    return {name: share if share < 1 - 1e-9 else 1.0 for name, share in found.items()}


def _worth(pool: Pool, hull: list[tuple[float, float]], at: int) -> float:
    """Misses spared a byte, from one point of the hull to the next."""
    (slots, misses), (more, fewer) = hull[at], hull[at + 1]
    return (misses - fewer) / ((more - slots) * (pool.row_bytes + SLOT_BYTES))


def _hull(pool: Pool, window: int) -> list[tuple[float, float]]:
    """Slots and misses, from those of a few batches to all rows: the lower convex hull."""
    least = min(float(pool.rows), max(1.0, _BATCHES * pool.unique_rows))
    sizes = [float(s) for s in pool.curves[window].rows if least < s < pool.rows]
    points = [(s, pool.misses(s, window)) for s in [least, *sizes, float(pool.rows)]]
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) >= 2 and _is_above(hull[-2], hull[-1], point):
            hull.pop()
        if not hull or point[0] > hull[-1][0]:
            hull.append(point)
    return hull


def _is_above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
