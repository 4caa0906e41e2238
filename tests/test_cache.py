"""The simulation of caches, and the optimum that benchmarks/bench_cache.py compares it to."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache

import numpy as np
import pytest

from tiered_emb import _core
from tiered_emb.bench.optimum import optimal_misses


def optimum(ids: np.ndarray, rows: int, capacity: int, batch: int, warm_up: int = 0) -> int:
    """Reads of Belady's rule."""
    return optimal_misses(ids, rows, capacity, batch, warm_up)[0]


def simulate(
    policy: str,
    ids: np.ndarray,
    rows: int,
    capacity: int,
    batch: int,
    window: int = 0,
    warm_up: int = 0,
) -> dict[str, int]:
    assert ids.dtype == np.int64
    return _core.simulate_cache(
        policy, capacity, rows, ids.ctypes.data, len(ids), batch, window, warm_up
    )


def batches(ids: np.ndarray, batch: int) -> list[list[int]]:
    """The distinct rows of each batch, in the order of their first use."""
    starts = range(0, len(ids), batch)
    return [list(dict.fromkeys(ids[first : first + batch].tolist())) for first in starts]


def zipf(rows: int, lookups: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, rows + 1)
    return rng.choice(rows, lookups, p=weights / weights.sum()).astype(np.int64)


def fewest_misses(plans: list[list[int]], capacity: int) -> int:
    """Over all choices of victims; first touches included."""

    @cache
    def best(step: int, resident: frozenset[int]) -> int:
        if step == len(plans):
            return 0
        wanted = frozenset(plans[step])
        misses = len(wanted - resident)
        states = {resident | wanted}
        while any(len(state) > capacity for state in states):
            states = {state - {row} for state in states for row in state - wanted}
        return misses + min(best(step + 1, state) for state in states)

    return best(0, frozenset())


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_optimum_is_that_of_brute_force(batch: int) -> None:
    rng = np.random.default_rng(batch)
    for _ in range(30):
        ids = rng.integers(0, 7, 24)
        new = len(np.unique(ids))
        assert optimum(ids, 7, 4, batch) + new == fewest_misses(batches(ids, batch), 4)


def test_counts_of_lru() -> None:
    ids = zipf(300, 5000)
    warm_up, batch, capacity = 1000, 7, 40
    resident: OrderedDict[int, None] = OrderedDict()
    seen: set[int] = set()
    misses = first_touches = unique = 0
    for number, rows in enumerate(batches(ids, batch)):
        counted = number * batch >= warm_up
        unique += counted * len(rows)
        misses += counted * sum(row not in resident and row in seen for row in rows)
        first_touches += counted * sum(row not in seen for row in rows)
        seen.update(rows)
        for row in rows:
            resident.pop(row, None)
        while len(resident) + len(rows) > capacity:
            resident.popitem(last=False)
        resident.update(dict.fromkeys(rows))
    counts = simulate("lru", ids, 300, capacity, batch, warm_up=warm_up)
    assert counts["misses"] == misses
    assert counts["first_touches"] == first_touches
    assert counts["unique_rows"] == unique
    assert counts["lookups"] == 5000 - 143 * 7  # the first batch that begins after the warm-up


@pytest.mark.parametrize("policy", ["lru", "lfu", "s3fifo", "lookahead"])
@pytest.mark.parametrize("batch", [1, 16])
def test_no_policy_beats_the_optimum(policy: str, batch: int) -> None:
    ids = zipf(400, 4000)
    counts = simulate(policy, ids, 400, 30, batch, window=100 if policy == "lookahead" else 0)
    assert counts["misses"] >= optimum(ids, 400, 30, batch)
    assert counts["first_touches"] == len(np.unique(ids))
    assert (counts["window_bytes"] > 0) == (policy == "lookahead")


@pytest.mark.parametrize("batch", [1, 10, 25])
def test_lookahead_that_knows_everything_is_the_optimum(batch: int) -> None:
    for seed in range(5):
        ids = zipf(500, 4000, seed)
        counts = simulate("lookahead", ids, 500, 30, batch, window=1 << 30)
        assert counts["misses"] == optimum(ids, 500, 30, batch)


def test_a_longer_window_saves_misses() -> None:
    ids = zipf(2000, 40_000)
    windows = (0, 50, 400, 3000)
    misses = [simulate("lookahead", ids, 2000, 100, 10, window=w)["misses"] for w in windows]
    assert misses == sorted(misses, reverse=True)
    assert misses[0] == simulate("lfu", ids, 2000, 100, 10)["misses"]
    assert misses[-1] < 1.01 * optimum(ids, 2000, 100, 10)


def test_mistakes() -> None:
    ids = np.array([0, 1, 2, 9], dtype=np.int64)
    with pytest.raises(ValueError, match="no policy 'best'"):
        simulate("best", ids, 10, 4, 2)
    with pytest.raises(IndexError, match="id 9 at position 3: there are 9 rows"):
        simulate("lru", ids, 9, 4, 2)
    with pytest.raises(ValueError, match="a batch has 4 rows, the cache 3 slots"):
        simulate("lru", ids, 10, 3, 4)
    with pytest.raises(ValueError, match="at least one lookup"):
        simulate("lru", ids, 10, 3, 0)
    assert simulate("lru", ids[:0], 10, 3, 1)["lookups"] == 0
