"""Streams of ids on which caches are compared, each with what is asked of the lookahead policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from bench_ssd import BATCH, streams, trace
from data_folder import DATA

from tiered_emb.bench.streams import reuse_counts

# Of Meta's published embedding traces, 2021 (github.com/facebookresearch/dlrm_datasets, MIT): the
# shares of rows, and of lookups, whose row was looked up 1, 2, 3-4, 5-8, ... times in one batch of
# 65,536 samples (887 M lookups of 128 M rows in 856 tables, 6.9 a row).
META_LOOKUPS_PER_ROW = 6.9
META_ROWS = (0.473, 0.152, 0.139, 0.112, 0.072, 0.032, 0.011, 0.005, 0.002, 0.001)
META_LOOKUPS = (
    *(0.069, 0.044, 0.068, 0.101, 0.121, 0.104, 0.073, 0.058, 0.052),
    *(0.050, 0.049, 0.048, 0.048, 0.043, 0.031, 0.023, 0.019),
)


@dataclass(frozen=True)
class Stream:
    """Ids in order. The bars are limits of the misses relative to the optimum's."""

    name: str
    ids: np.ndarray
    rows: int
    bar: float  # with a window of eight times the capacity
    bar_small: float | None = None  # the same, for caches up to 5% of the rows

    def bar_at(self, share: float) -> float:
        return self.bar_small if self.bar_small is not None and share <= 0.05 else self.bar


def meta_curve(rows: int) -> np.ndarray:
    """Ids of about `rows` rows, looked up as often as the rows of Meta's traces, in random order.

    The traces say how often, not in which order: a random order favours no policy.
    """
    uses = reuse_counts(rows, META_ROWS, META_LOOKUPS, META_LOOKUPS_PER_ROW)
    return np.random.default_rng(5).permutation(np.repeat(np.arange(len(uses)), uses))


def meta_fit(ids: np.ndarray) -> float:
    """The largest difference of a share of lookups, or of rows, from what Meta's curve says."""
    uses = np.bincount(ids)
    bins = np.ceil(np.log2(uses[uses > 0])).astype(np.int64)
    of_rows = np.bincount(bins, minlength=len(META_LOOKUPS)) / len(bins)
    of_lookups = np.bincount(bins, uses[uses > 0], minlength=len(META_LOOKUPS)) / len(ids)
    wanted_rows = np.array([*META_ROWS, *[0.0] * (len(META_LOOKUPS) - len(META_ROWS))])
    return float(max(np.abs(of_rows - wanted_rows).max(), np.abs(of_lookups - META_LOOKUPS).max()))


def take(batches: Iterator[np.ndarray], lookups: int) -> np.ndarray:
    return np.concatenate(list(islice(batches, max(lookups // BATCH, 1)))).astype(np.int64)


def zipf_streams(rows: int, lookups: int) -> Iterator[Stream]:
    made = streams(rows, BATCH)
    yield Stream("zipf 1.05", take(made["zipf 1.05"](), lookups), rows, 1.15)
    # The popularity moves on by five ranks every BATCH lookups.
    yield Stream("zipf 1.05, drifting", take(made["zipf 1.05, drifting"](), lookups), rows, 1.20)


def real_streams(lookups: int) -> Iterator[Stream]:
    """At most `lookups` of each; those whose data are there."""
    traced = trace()
    if traced is not None:
        rows, batches = traced
        ids = take(batches(), min(lookups, 5_000_000))
        yield Stream("orm_busy_trace", ids, rows, 1.30, 1.20)
    path = DATA / "online_retail.parquet"
    if not path.is_file():
        print(f"customer x sku: left out, {path} is absent")
        return
    import pyarrow.parquet as pq

    columns = pq.read_table(path, columns=["customer", "sku"])
    pairs = columns["customer"].to_numpy().astype(np.int64) << 32 | columns["sku"].to_numpy()
    distinct, ids = np.unique(pairs, return_inverse=True)
    yield Stream("customer x sku", ids[:lookups].astype(np.int64), len(distinct), 1.03)
