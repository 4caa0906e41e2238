"""`resize()`: another dram budget while training goes on; test_oracle.py has random programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from same_bits import assert_same_bits

import tiered_emb as te

ROWS, DIM = 4000, 8
SLOTS_BYTES = ROWS * DIM * 8  # a row has a weight and a state of the same size
POLICIES = ("lookahead", "lfu", "lru", "s3fifo")


def make_bag(path: Path | None, dram: int | None, **options: object) -> te.TieredEmbedding:
    tiers = te.Tiers(dram=dram, ssd=None if path is None else te.SSD(str(path)), **options)
    return te.TieredEmbedding(
        ROWS, DIM, mode="sum", tiers=tiers, optimizer=te.optim.Adagrad(lr=0.1), name="t"
    )


def batches(count: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        yield torch.randint(0, ROWS, (12, 4), generator=generator)


def train(bag: te.TieredEmbedding, sizes: dict[int, int], prefetched: bool) -> torch.Tensor:
    """All weights after some batches, before which the dram budget changes."""
    loader = batches(60)
    for i, ids in enumerate(te.Prefetcher(loader, bag) if prefetched else loader):
        if i in sizes:
            bag.resize(sizes[i])
        out = bag(ids)
        if i in (20, 21):  # between forward and backward, too
            bag.resize(SLOTS_BYTES // (i - 17))
        out.sum().backward()
    return bag.to_dense()


@pytest.mark.parametrize("prefetched", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_same_bits(tmp_path: Path, policy: str, prefetched: bool) -> None:
    expected = train_all_in_dram()
    sizes = {5: SLOTS_BYTES // 4, 9: SLOTS_BYTES, 12: SLOTS_BYTES // 3, 40: 2 * SLOTS_BYTES}
    for start in (None, SLOTS_BYTES // 2):
        bag = make_bag(tmp_path / f"{start}", start, policy=policy)
        assert_same_bits(train(bag, sizes, prefetched), expected, f"{policy}, from {start}")
        assert bag.tiers.dram == 2 * SLOTS_BYTES
        bag.close()


def train_all_in_dram() -> torch.Tensor:
    bag = make_bag(None, None)
    for ids in batches(60):
        bag(ids).sum().backward()
    return bag.to_dense()


def test_progress_is_seen(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "s", None)
    bag.write_rows(torch.arange(ROWS), torch.randn(ROWS, DIM))
    before = bag.stats()
    assert before.resident_rows == ROWS
    assert (before.dram_target_bytes, before.dram_resizing) == (0, False)
    bag.resize(SLOTS_BYTES // 4)
    at_once = bag.stats()
    assert at_once.dram_resizing
    assert at_once.dram_target_bytes == SLOTS_BYTES // 4
    assert at_once.resident_rows == ROWS
    assert "on the way to" in str(at_once)
    for ids in batches(40):
        bag(ids)
    after = bag.stats()
    assert not after.dram_resizing
    assert after.dram_bytes <= SLOTS_BYTES // 4
    assert after.resident_rows <= after.slots == ROWS // 4
    bag.resize(SLOTS_BYTES // 2)
    assert bag.stats().slots == ROWS // 2


def test_what_a_store_opened_again_has(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "s", SLOTS_BYTES // 2)
    for ids in batches(5):
        bag(ids).sum().backward()
    bag.resize(SLOTS_BYTES // 4)
    rows = bag.to_dense()
    te.save(bag, tmp_path / "checkpoint")
    te.load(bag, tmp_path / "checkpoint")
    assert bag.stats().slots == ROWS // 4  # a load takes the size of the tables at hand
    bag.close()
    tiers = te.Tiers(dram=SLOTS_BYTES // 8, ssd=te.SSD(str(tmp_path / "s"), resume=True))
    again = te.TieredEmbedding(
        ROWS, DIM, mode="sum", tiers=tiers, optimizer=te.optim.Adagrad(lr=0.1), name="t"
    )
    assert again.stats().slots == ROWS // 8
    assert_same_bits(again.to_dense(), rows, "rows")


def test_collection_with_device(tmp_path: Path) -> None:
    tables = [te.Table("a", 2000, 8), te.Table("b", 1000, 16)]

    def run(tiers: te.Tiers, resize: bool) -> list[torch.Tensor]:
        model = te.TieredEmbeddingCollection(tables, tiers=tiers, optimizer=te.optim.SGD(lr=0.1))
        generator = torch.Generator().manual_seed(1)
        for i in range(200):
            ids = {t.name: torch.randint(0, t.num_embeddings // 2, (20, 3), generator=generator)
                   for t in tables}  # fmt: skip
            if resize and i % 70 == 20:
                model.resize([48_000, 200_000, 60_000][i // 70])
            out = model(ids)
            (out["a"].sum() + out["b"].sum()).backward()
        if resize:
            stats = model.stats()
            assert not stats.dram_resizing
            assert stats.dram_bytes <= 60_000
        dense = [model.to_dense(t.name) for t in tables]
        model.close()
        return dense

    hbm = te.HBM(16_000, "cpu", buffer=1024)
    expected = run(te.Tiers(), resize=False)
    for start in (None, 100_000):
        tiers = te.Tiers(hbm=hbm, dram=start, ssd=te.SSD(str(tmp_path / f"{start}")))
        for got, want in zip(run(tiers, resize=True), expected, strict=True):
            assert_same_bits(got, want, f"from {start}")


def test_errors(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "s", SLOTS_BYTES // 2)
    slots = bag.stats().slots
    with pytest.raises(TypeError, match="size must be an int of bytes"):
        bag.resize(None)
    with pytest.raises(TypeError, match=r"got 1\.5"):
        bag.resize(1.5)
    with pytest.raises(ValueError, match="'8GB!' is not a number"):
        bag.resize("8GB!")
    with pytest.raises(ValueError, match="at least one byte, got 0"):
        bag.resize(0)
    with pytest.raises(ValueError, match=r"dram of 1 bytes is too small: .* are needed now"):
        bag.resize(1)
    out = bag(torch.arange(1000).view(-1, 10))  # 1000 rows that a backward will need
    with pytest.raises(ValueError, match="1000 rows of batches in flight"):
        bag.resize(999 * DIM * 8)
    assert (bag.stats().slots, bag.tiers.dram) == (slots, SLOTS_BYTES // 2)
    bag.resize(1000 * DIM * 8)
    with pytest.raises(ValueError, match="this batch needs 1001 rows"):
        bag(torch.arange(1001).view(-1, 7))
    out.sum().backward()
    bag.close()
    with pytest.raises(ValueError, match="closed"):
        bag.resize(SLOTS_BYTES)
    all_in_dram = make_bag(None, None)
    with pytest.raises(ValueError, match="without an ssd tier all rows are in dram"):
        all_in_dram.resize(SLOTS_BYTES)
