"""Miss-ratio curves: which share of the lookups misses a cache, by the rows that it holds.

Three kinds, from a `Pyramid` of samples, whose only level may be the whole trace:

    LRU       exact for the lookups of a sample, all sizes in one pass (`stack`)
    optimum   Belady's rule, a pass a size: no cache misses less
    policy    the engine's own policies, run by the core on a sample with its share of the slots, of
              the batch and of the announced ids: a mini-simulation (Waldspurger et al., "Cache
              Modeling and Optimization using Miniature Simulations", ATC 2017)

A lookup of a row that came before in the same batch never misses. Misses are taken relative to the
lookups that the sampled rows should have had, not to those that they had: whether one of the
hottest rows is among them, whose lookups nearly all hit, then changes little ("SHARDS-adj").
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tiered_emb import _core
from tiered_emb.bench.optimum import optimal_misses
from tiered_emb.tuner.sample import GROUPS, Floats, Pyramid, Sample
from tiered_emb.tuner.stack import distance_counts

S = TypeVar("S")
T = TypeVar("T")
Misses = Callable[[Sample, float], float]

POINTS = 24
POLICY = "lookahead"


@dataclass(frozen=True)
class MissCurve:
    """Misses by size.

    Args:
        rows: that the cache holds, increasing.
        misses: a lookup, in [0, 1].
        error: standard error of each; 0 where all rows were simulated.
    """

    rows: Floats
    misses: Floats
    error: Floats

    def at(self, rows: float) -> float:
        """Between the sizes straight over their logarithm; that of the first below it."""
        return float(np.interp(np.log2(max(rows, 1.0)), np.log2(self.rows), self.misses))

    def error_at(self, rows: float) -> float:
        """Likewise."""
        return float(np.interp(np.log2(max(rows, 1.0)), np.log2(self.rows), self.error))


def sizes_of(pyramid: Pyramid, points: int = POINTS) -> Floats:
    """Sizes worth a look, in rows: from those of two batches to all of the trace, each larger than
    the last by the same factor."""
    most = max(2.0, pyramid.rows_seen)
    least = min(max(2.0, 2 * pyramid.rows_of_a_batch()[1]), most)
    return np.unique(np.round(np.geomspace(least, most, points)))


def lru_curve(pyramid: Pyramid, sizes: Floats) -> MissCurve:
    """Of LRU, each size on its sample."""
    known: dict[int, Floats] = {}  # by sample

    def misses(sample: Sample, rows: float) -> float:
        if id(sample) not in known:
            counts = distance_counts(
                sample.rows, len(sample.table_of), int(sample.begins[sample.warm_up])
            )
            known[id(sample)] = counts.sum() - np.concatenate([[0], np.cumsum(counts[1:])])
        every = known[id(sample)]
        return float(np.interp(rows * sample.rate, np.arange(len(every)), every))

    return _curve(pyramid, sizes, misses)


def policy_curve(
    pyramid: Pyramid,
    sizes: Floats,
    policy: str = POLICY,
    window: float = 0,
    with_error: bool = True,
) -> MissCurve:
    """Of one of the core's policies, simulated.

    Args:
        sizes: in rows; below the rows of a batch as many miss as the batch has.
        policy: "lookahead", "lru", "s3fifo" or "lfu".
        window: batches whose ids are known ahead.
        with_error: simulates parts of the samples, too, which doubles the time.
    """

    def misses(sample: Sample, rows: float) -> float:
        ids = sample.rows
        try:
            counts = _core.simulate_cache(
                policy, max(1, round(rows * sample.rate)), len(sample.table_of), ids.ctypes.data,
                len(ids), _batch_of(sample), round(window * len(ids) / sample.batches),
                int(sample.begins[sample.warm_up]),
            )  # fmt: skip
        except ValueError:
            return _all_miss(sample)
        return float(counts["misses"] + counts["first_touches"])

    return _curve(pyramid, sizes, misses, with_error)


def optimum_curve(pyramid: Pyramid, sizes: Floats) -> MissCurve:
    """Of Belady's rule."""

    def misses(sample: Sample, rows: float) -> float:
        try:
            found = optimal_misses(
                sample.rows, len(sample.table_of), max(1, round(rows * sample.rate)),
                _batch_of(sample), int(sample.begins[sample.warm_up]),
            )  # fmt: skip
        except ValueError:
            return _all_miss(sample)
        return float(sum(found))

    return _curve(pyramid, sizes, misses)


def _batch_of(sample: Sample) -> int:
    """Lookups of a batch of the sample, as if all had as many: that of a batch times the rate."""
    return max(1, round(len(sample.rows) / sample.batches))


def _all_miss(sample: Sample) -> float:
    """A batch has more rows than the cache: each of them is fetched for each batch."""
    return float(sample.rows_of_batches[sample.warm_up :].sum())


def _curve(pyramid: Pyramid, sizes: Floats, misses: Misses, with_error: bool = True) -> MissCurve:
    """Of `misses` of a sample at sizes in rows, not scaled."""
    levels = [pyramid.for_rows(rows) for rows in sizes]
    groups = {
        id(level): [[sample.of_group(g) for sample in level] for g in range(GROUPS)]
        for level in levels
        if with_error and (level[0].rate < 1 or len(level) > 1)
    }
    work = [
        (part, rows)
        for level, rows in zip(levels, sizes, strict=True)
        for part in [level, *groups.get(id(level), [])]
    ]

    def ratio(of: tuple[list[Sample], float]) -> float:
        part, rows = of
        lookups = sum(sample.counted_lookups * sample.rate for sample in part)
        return sum(misses(sample, rows) for sample in part) / lookups

    found = iter(each(work, ratio))
    ratios, errors = [], []
    for level in levels:
        ratios.append(next(found))
        scatter = [next(found) for _ in groups.get(id(level), [])]
        errors.append(np.std(scatter, ddof=1) / np.sqrt(GROUPS) if scatter else 0.0)
    rising_hits = np.minimum.accumulate(np.minimum(ratios, 1.0))
    return MissCurve(np.asarray(sizes, dtype=np.float64), rising_hits, np.array(errors))


def each(work: Iterable[S], function: Callable[[S], T]) -> list[T]:
    """`function` of each, on all cores: it lets go of the GIL."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, work))
