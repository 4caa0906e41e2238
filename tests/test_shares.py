"""`Table.dram_share`: slots of dram of a table's own. Bits under random use: test_oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from same_bits import assert_same_bits

import tiered_emb as te

DIM = 8
ROW = DIM * 4
HOT, BIG = 500, 20_000  # rows
DRAM = 2
SSD = 1


def tables(hot: float | None, big: float | None = None) -> list[te.Table]:
    return [te.Table("hot", HOT, DIM, dram_share=hot), te.Table("big", BIG, DIM, dram_share=big)]


def collection(
    path: Path | None, hot: float | None, big: float | None = None, *, dram: int, **options: object
) -> te.TieredEmbeddingCollection:
    ssd = None if path is None else te.SSD(str(path), resume=bool(options.pop("resume", False)))
    tiers = te.Tiers(options.pop("hbm", None), dram, ssd, policy=options.pop("policy", "lookahead"))
    return te.TieredEmbeddingCollection(
        tables(hot, big), tiers=tiers, optimizer=te.optim.SGD(0.1), **options
    )


def step(coll: te.TieredEmbeddingCollection, rng: np.random.Generator, hot: int, big: int) -> None:
    """The hot table by Zipf's law, the big one uniformly."""
    batch = {
        "hot": torch.from_numpy(rng.zipf(1.3, hot).astype(np.int64) % HOT),
        "big": torch.from_numpy(rng.integers(0, BIG, big)),
    }
    batch = {name: ids for name, ids in batch.items() if len(ids)}
    out = coll(batch)
    sum((o * (1 + torch.arange(DIM))).sum() for o in out.values()).backward()


def warm_up(coll: te.TieredEmbeddingCollection) -> None:
    for ids in torch.arange(HOT).split(100):
        coll({"hot": ids})["hot"].sum().backward()


def all_bits(coll: te.TieredEmbeddingCollection) -> list[torch.Tensor]:
    return [coll.to_dense("hot"), coll.to_dense("big")]


@pytest.mark.parametrize("policy", ["lookahead", "lfu", "lru", "s3fifo"])
def test_a_whole_table_never_leaves_dram(policy: str, tmp_path: Path) -> None:
    dram = (HOT + 400) * ROW
    kept = collection(tmp_path / "kept", 1.0, dram=dram, policy=policy)
    shared = collection(tmp_path / "shared", None, dram=dram, policy=policy)
    hot = torch.arange(HOT)
    left = 0
    for coll in (kept, shared):
        warm_up(coll)
        rng = np.random.default_rng(1)
        for _ in range(60):
            step(coll, rng, 100, 300)
            where = coll.tier_of("hot", hot)
            if coll is kept:
                assert (where == DRAM).all()
            left += int((where != DRAM).sum())
    assert left > 0  # of the table without a share
    for mine, theirs in zip(all_bits(kept), all_bits(shared), strict=True):
        assert_same_bits(mine, theirs, "shares")
    assert kept.stats().slots == shared.stats().slots == HOT + 400
    kept.close()
    shared.close()


def test_prefetched_batches_leave_a_share_alone(tmp_path: Path) -> None:
    with collection(tmp_path / "store", 1.0, dram=(HOT + 400) * ROW) as coll:
        warm_up(coll)
        rng = np.random.default_rng(2)
        batches = [{"big": torch.from_numpy(rng.integers(0, BIG, 300))} for _ in range(40)]
        loop = te.Prefetcher(batches, coll, ids=lambda b: b, rows_ahead=8, ids_ahead=20)
        for batch in loop:
            coll(batch)["big"].sum().backward()
            assert (coll.tier_of("hot", torch.arange(HOT)) == DRAM).all()


def test_a_batch_may_take_what_it_needs(tmp_path: Path) -> None:
    """More of a table than its share, and slots of a share that all others do not have."""
    room = HOT + 400
    with collection(tmp_path / "a", 1.0, dram=room * ROW) as coll:
        warm_up(coll)
        rng = np.random.default_rng(3)
        ids = torch.from_numpy(rng.permutation(BIG)[: room - 1])
        coll({"big": ids})["big"].sum().backward()
        assert (coll.tier_of("hot", torch.arange(HOT)) == SSD).sum() >= HOT - 1
        with pytest.raises(ValueError, match="raise dram"):
            coll({"big": torch.arange(room)})
        for _ in range(4):  # of five batches: it has its slots back after 16
            warm_up(coll)
        assert (coll.tier_of("hot", torch.arange(HOT)) == DRAM).all()
    with collection(tmp_path / "b", 0.1, dram=room * ROW) as coll:
        out = coll({"hot": torch.arange(HOT), "big": torch.arange(400)})
        assert out["hot"].shape == (HOT, DIM)
        assert (coll.tier_of("hot", torch.arange(HOT)) == DRAM).all()


def test_a_share_bounds_a_table(tmp_path: Path) -> None:
    with collection(tmp_path / "store", None, 0.01, dram=600 * ROW) as coll:
        rng = np.random.default_rng(4)
        for _ in range(20):
            step(coll, rng, 50, 150)
        assert (coll.tier_of("big", torch.arange(BIG)) == DRAM).sum() == 0.01 * BIG


def test_a_store_is_resumed_with_other_shares(tmp_path: Path) -> None:
    path, rng = tmp_path / "store", np.random.default_rng(5)
    expected = None
    for hot, big in [(None, None), (1.0, None), (0.5, 0.02), (None, 0.01), (None, None)]:
        with collection(path, hot, big, dram=1000 * ROW, resume=expected is not None) as coll:
            if expected is not None:
                for mine, theirs in zip(all_bits(coll), expected, strict=True):
                    assert_same_bits(mine, theirs, f"shares {hot}, {big}")
            for _ in range(5):
                step(coll, rng, 100, 300)
            te.save(coll, tmp_path / "saved")
            expected = all_bits(coll)
    with collection(None, 0.3, dram=1 << 24) as coll:
        te.load(coll, tmp_path / "saved")
        for mine, theirs in zip(all_bits(coll), expected, strict=True):
            assert_same_bits(mine, theirs, "loaded")


def test_rows_of_one_block_belong_to_either_table(tmp_path: Path) -> None:
    """The store packs rows by their layout alone; what a block brings along has its own slots."""
    size = {"dram": 1500 * ROW}
    shared = collection(tmp_path / "a", None, **size)
    kept = collection(tmp_path / "b", 0.5, 0.04, **size)
    for coll in (shared, kept):
        for ids in torch.arange(BIG).split(500):
            coll({"big": ids, "hot": ids % HOT})["big"].sum().backward()
        rng = np.random.default_rng(6)
        batches = [
            {
                "big": torch.from_numpy(rng.integers(0, 2000, 200)),
                "hot": torch.from_numpy(rng.integers(0, HOT, 100)),
            }
            for _ in range(60)
        ]
        for batch in te.Prefetcher(batches, coll, ids=lambda b: b, rows_ahead=2, ids_ahead=30):
            sum(o.sum() for o in coll(batch).values()).backward()
    for mine, theirs in zip(all_bits(kept), all_bits(shared), strict=True):
        assert_same_bits(mine, theirs, "shares")
    kept.close()
    shared.close()


def test_without_an_ssd_tier_a_share_means_nothing() -> None:
    for dram in (None, 1 << 24):
        with collection(None, 0.01, 0.9, dram=dram) as coll:
            step(coll, np.random.default_rng(7), 200, 200)
            assert coll.stats().slots == HOT + BIG


@pytest.mark.parametrize("executor", ["core", "torch"])
def test_shares_are_of_dram_only(executor: str, tmp_path: Path) -> None:
    """The device holds the same part of each table's rows, at most its share."""
    hbm_slots = (HOT + BIG) // 10
    dram = (HOT + 3000) * ROW
    results = []
    for hot, big in [(None, None), (1.0, None), (0.02, None)]:
        hbm = te.HBM(hbm_slots * ROW, "cpu", executor=executor, buffer=1024)
        with collection(tmp_path / f"{hot}", hot, big, dram=dram, hbm=hbm) as coll:
            rng = np.random.default_rng(8)
            for _ in range(30):
                step(coll, rng, 100, 300)
            part = {None: 1, 1.0: 0.1, 0.02: 0.02}[hot]
            on_device = int((coll.tier_of("hot", torch.arange(HOT)) == 3).sum())
            assert 0 < on_device <= part * HOT
            assert coll.stats().hbm_rows > hbm_slots // 2
            results.append(all_bits(coll))
    for other in results[1:]:
        for mine, theirs in zip(other, results[0], strict=True):
            assert_same_bits(mine, theirs, "shares")


@pytest.mark.parametrize("share", [0, 0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_a_share_out_of_range(share: float) -> None:
    with pytest.raises(ValueError, match=r"table 'a': dram_share must be in \(0, 1\], got"):
        te.TieredEmbeddingCollection([te.Table("a", 10, 4, dram_share=share)])


@pytest.mark.parametrize("share", ["x", True, [0.5]])
def test_a_share_that_is_no_number(share: object) -> None:
    with pytest.raises(TypeError, match="table 'a': dram_share must be a number, got"):
        te.TieredEmbeddingCollection([te.Table("a", 10, 4, dram_share=share)])


def test_a_budget_that_cannot_hold_the_shares(tmp_path: Path) -> None:
    """It is refused before there is a store; the smallest that can is in the message."""
    path = tmp_path / "store"
    needed = (HOT + BIG // 2) * ROW
    message = (
        rf"table 'big': dram_share 0\.5 of its rows takes {BIG // 2 * ROW} bytes; all shares and "
        rf"a row of each other layout take {needed} bytes of dram, the budget is {needed - 1}: "
        "raise dram or lower the share"
    )
    with pytest.raises(ValueError, match=message):
        collection(path, 1.0, 0.5, dram=needed - 1)
    assert not path.exists()
    collection(path, 1.0, 0.5, dram=needed).close()
    with pytest.raises(ValueError, match=r"dram_share 0\.5"):
        collection(path, 1.0, 0.5, dram=needed - 1, resume=True)
    collection(path, 0.5, 0.5, dram=needed - 1, resume=True).close()


def test_a_share_outlives_a_resize(tmp_path: Path) -> None:
    """A smaller budget takes from the others; below the share it is refused."""
    rng = np.random.default_rng(5)
    with (
        collection(tmp_path, 1.0, dram=1 << 20) as coll,
        collection(None, None, dram=1 << 30) as all_in_dram,
    ):
        for c in (coll, all_in_dram):
            warm_up(c)
        with pytest.raises(
            ValueError, match="too small: table 'hot': dram_share 1 of its rows takes 16000"
        ):
            coll.resize(dram=HOT * ROW // 2)
        coll.resize(dram=(HOT + 400) * ROW)
        for _ in range(200):
            state = rng.bit_generator.state
            step(coll, rng, 20, 100)
            rng.bit_generator.state = state
            step(all_in_dram, rng, 20, 100)
        assert coll.stats().slots < HOT + 500
        assert bool((coll.tier_of("hot", torch.arange(HOT)) == DRAM).all())
        for found, wanted in zip(all_bits(coll), all_bits(all_in_dram), strict=True):
            assert_same_bits(found, wanted, "rows")


def test_a_resize_ends_though_every_batch_borrows(tmp_path: Path) -> None:
    """The share leaves the other table few slots, and each of its batches takes more."""
    rng = np.random.default_rng(6)
    with collection(tmp_path, None, 0.05, dram=(BIG // 20 + 400) * ROW) as coll:
        for dram in ((BIG // 20 + 200) * ROW, (BIG // 20 + 400) * ROW, (BIG // 20 + 40) * ROW):
            coll.resize(dram=dram)
            for _ in range(300):
                coll({"hot": torch.from_numpy(rng.integers(0, HOT, 450))})
                if not coll.stats().dram_resizing:
                    break
            assert not coll.stats().dram_resizing
            assert coll.stats().dram_bytes <= dram
            coll({"big": torch.from_numpy(rng.integers(0, BIG, 300))})
