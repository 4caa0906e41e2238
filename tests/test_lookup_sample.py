"""The sample of lookups that an engine keeps: what is in it, computed from the whole stream."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiered_emb as te
from tiered_emb.lookup_sample import LookupSample, lookup_sample


def sample_hash(rows: np.ndarray) -> np.ndarray:
    """cpp/rows/sample_hash.h, in 64 bits of which the low 32 count."""
    low = np.uint64(0xFFFFFFFF)
    rows = rows.astype(np.uint64)
    h = ((rows & low) + ((rows >> np.uint64(32)) * np.uint64(0x9E3779B9) & low)) & low
    h = h * np.uint64(0x21F0AAAD) & low
    return (h ^ h >> np.uint64(15)) * np.uint64(0xD35A2D97) & low


def entries_of(
    batches: list[list[np.ndarray]], rows: list[int], sample: LookupSample
) -> list[tuple[int, int, int]]:
    """(batch, table, id) that the sample should have of these ids of each batch and table."""
    first = np.cumsum([0, *rows])
    expected = []
    for number in range(len(batches) - sample.batches_spanned, len(batches)):
        for table, ids in enumerate(batches[number]):
            unique = np.unique(ids)
            is_sampled = sample_hash(first[table] + unique) < sample.rate * 2**32
            expected += [(number, table, id_) for id_ in unique[is_sampled].tolist()]
    return expected


def check(batches: list[list[np.ndarray]], rows: list[int], sample: LookupSample) -> None:
    assert sample.batches.dtype == sample.ids.dtype == np.int64
    assert sample.tables.dtype == np.int32
    assert (np.diff(sample.batches) >= 0).all()
    entries = zip(sample.batches.tolist(), sample.tables.tolist(), sample.ids.tolist(), strict=True)
    assert sorted(entries) == entries_of(batches, rows, sample)


def zipf(rng: np.random.Generator, rows: int, lookups: int) -> np.ndarray:
    """Exponent 1, about; the popular ids are all over the table."""
    rank = (float(rows) ** rng.random(lookups)).astype(np.int64) - 1
    return rank * 7919 % rows


def bag_of(rows: int, share: float | None, folder: Path) -> te.TieredEmbedding:
    """Rows of 4, all in dram or that share of them."""
    tiers = None
    if share is not None:
        tiers = te.Tiers(dram=int(share * rows * 4 * 4), ssd=te.SSD(str(folder / "store")))
    return te.TieredEmbedding(rows, 4, mode="sum", optimizer=te.optim.SGD(0.1), tiers=tiers)


@pytest.mark.parametrize("share", [None, 0.2])
def test_every_batch_of_a_sampled_row_is_there(tmp_path: Path, share: float | None) -> None:
    rng = np.random.default_rng(5)
    rows = 60_000
    bag = bag_of(rows, share, tmp_path)
    bag._engine._core.hold_lookup_sample(True)  # watches all of them
    sample = lookup_sample(bag._engine)
    assert (sample.rate, sample.batches_spanned, len(sample.ids)) == (1, 0, 0)
    batches = []
    for step in range(400):
        ids = zipf(rng, rows, 3000)
        index = torch.from_numpy(ids.astype(np.int32) if step % 3 == 0 else ids)
        if step % 4 == 0:  # no plan where all rows are in dram
            with torch.no_grad():
                bag(index.view(-1, 3))
        else:
            bag(index.view(-1, 3)).sum().backward()
        batches.append([ids])
        if step in (0, 30, 200):
            check(batches, [rows], lookup_sample(bag._engine))
    sample = lookup_sample(bag._engine)
    check(batches, [rows], sample)
    assert sample.rate < 1 < sample.batches_spanned < len(batches) == bag.stats().steps
    assert len(np.unique(sample.ids)) > 3800
    bag.close()
    assert (lookup_sample(bag._engine).ids == sample.ids).all()


@pytest.mark.parametrize(
    ("trains", "share", "most"), [(False, None, 0.02), (True, None, 0.1), (True, 0.98, 0.1)]
)
def test_few_batches_are_watched(
    tmp_path: Path, trains: bool, share: float | None, most: float
) -> None:
    te.set_num_threads(1)  # thousands of small batches
    rng = np.random.default_rng(8)
    rows = 60_000
    bag = bag_of(rows, share, tmp_path)
    ids = [rng.integers(0, rows, 12_000) for _ in range(61)]
    watched: list[list[np.ndarray]] = []
    rests, in_a_row, steps = 0, 0, 0
    while rests < 2:
        steps += 1
        assert steps < 100_000
        index = torch.from_numpy(ids[steps % 61]).view(-1, 4)
        if trains:
            bag(index).sum().backward()
        else:
            with torch.no_grad():
                bag(index)
        if bag._engine._core.hold_lookup_sample(None) == len(watched):
            rests += in_a_row > 0
            in_a_row = 0
            continue
        watched.append([ids[steps % 61]])
        in_a_row += 1
        if in_a_row == 10:
            sample = lookup_sample(bag._engine)  # in the middle of a burst
            assert int(sample.batches[-1]) + 1 == (10 if rests == 0 else len(watched) - 10)
            check(watched[: int(sample.batches[-1]) + 1], [rows], sample)
    sample = lookup_sample(bag._engine)
    check(watched, [rows], sample)
    assert sample.batches_spanned >= 48
    assert len(watched) < most * steps


def lru_miss_ratio(sample: LookupSample, slots: int) -> float:
    """Of a cache of so many slots of all rows, over the sample's second half."""
    cache: OrderedDict[int, None] = OrderedDict()
    half, misses = len(sample.ids) // 2, 0
    for i, row in enumerate(sample.ids.tolist()):
        misses += i >= half and row not in cache
        cache[row] = None
        cache.move_to_end(row)
        if len(cache) > slots * sample.rate:
            cache.popitem(last=False)
    return misses / (len(sample.ids) - half)


@pytest.mark.parametrize("shift", [0, 20])
def test_bursts_tell_what_all_batches_would(shift: int) -> None:
    te.set_num_threads(1)
    rows = 50_000
    ratios = []
    for watches in (True, None):  # all, and as users have it
        rng = np.random.default_rng(9)
        bag = te.TieredEmbedding(rows, 4, mode="sum", optimizer=te.optim.SGD(0.1))
        bag._engine._core.hold_lookup_sample(watches)
        for step in range(900):
            ids = (zipf(rng, rows, 4000) + shift * step) % rows  # rows in use move on
            bag(torch.from_numpy(ids).view(-1, 4)).sum().backward()
        watched = bag._engine._core.hold_lookup_sample(None)
        assert watched == 900 if watches else watched < 450
        ratios.append(lru_miss_ratio(lookup_sample(bag._engine), 10_000))
    assert ratios[1] == pytest.approx(ratios[0], abs=0.015)
    assert 0.2 < ratios[0] < 0.95


def test_tables_of_a_collection_and_ids_beyond_32_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    rows = [500, 6_000_000_000, 20_000]
    tables: Any = te.TieredEmbeddingCollection(
        [te.Table(name, n, 2) for name, n in zip("abc", rows, strict=True)],
        optimizer=te.optim.SGD(0.1),
        tiers=te.Tiers(dram="8MiB", ssd=te.SSD(str(tmp_path / "store"))),
    )
    batches = []
    for _ in range(60):
        ids = [
            zipf(rng, 500, 400),
            rng.integers(0, 20_000, 2000) * 300_007 % rows[1],
            zipf(rng, 20_000, 800),
        ]
        out = tables(
            {name: torch.from_numpy(i)[:, None] for name, i in zip("abc", ids, strict=True)}
        )
        sum(o.sum() for o in out.values()).backward()
        batches.append(ids)
    sample = lookup_sample(tables._engine)
    check(batches, rows, sample)
    assert sample.rate < 1
    assert sample.ids.max() > 2**32
    assert set(sample.tables.tolist()) == {0, 1, 2}


def test_prefetched_batches_are_noted_once_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    bag = te.TieredEmbedding(
        2000, 4, mode="sum", optimizer=te.optim.SGD(0.1),
        tiers=te.Tiers(dram=1000 * 16, ssd=te.SSD(str(tmp_path / "store"))),
    )  # fmt: skip
    batches = [[zipf(rng, 2000, 120)] for _ in range(80)]
    inputs = [torch.from_numpy(ids[0]).view(-1, 4) for ids in batches]
    for batch in te.Prefetcher(inputs, bag, ids=lambda batch: batch, rows_ahead=5):
        bag(batch).sum().backward()
    sample = lookup_sample(bag._engine)
    assert sample.rate == 1
    assert sample.batches_spanned == len(batches)
    check(batches, [2000], sample)
