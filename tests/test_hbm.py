"""The hbm tier as its users meet it, on an emulated device."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import pytest
import torch
from same_bits import assert_same_bits

import tiered_emb as te

ROWS, DIM = 500, 8
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")


def make(
    hbm_rows: int | None = 60,
    *,
    dram: str | None = None,
    path: Path | None = None,
    **options: object,
) -> te.TieredEmbedding:
    slot_bytes = DIM * 4 + 16
    hbm = None if hbm_rows is None else te.HBM(hbm_rows * slot_bytes, "cpu", buffer="4KiB")
    tiers = te.Tiers(hbm=hbm, dram=dram, ssd=None if path is None else str(path))
    optimizer = options.pop("optimizer", te.optim.RowwiseAdagrad(lr=0.1))
    return te.TieredEmbedding(
        ROWS, DIM, mode="sum", tiers=tiers, optimizer=optimizer, seed=5, **options
    )


def train(bag: te.TieredEmbedding, steps: int, seed: int = 0) -> None:
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids = torch.randint(0, ROWS, (8, 4), generator=random)
        bag(ids).backward(torch.randn(8, DIM, generator=random))


# ---- Configuration


@NO_CUDA
def test_without_cuda_it_says_how_to_emulate() -> None:
    for make_hbm in (lambda: te.HBM("8GiB"), lambda: te.HBM("8GiB", "cuda:0")):
        with pytest.raises(RuntimeError, match=r"no CUDA device.*device='cpu'"):
            make_hbm()
    with pytest.raises(RuntimeError, match=r"HBM\(8 GiB, 'cuda'\)"):
        te.Tiers(hbm="8GiB")


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="'meta'"):
        te.HBM("1MiB", "meta")
    with pytest.raises(ValueError, match=r"executor.*'numpy'"):
        te.HBM("1MiB", "cpu", executor="numpy")
    with pytest.raises(ValueError, match="size"):
        te.HBM("much", "cpu")
    with pytest.raises(ValueError, match="a row of each layout, 48 bytes; the budget is 10"):
        te.TieredEmbedding(9, 10, tiers=te.Tiers(hbm=te.HBM(10, "cpu")))


def test_the_device_is_that_of_the_tier() -> None:
    assert make(device="cpu")(torch.tensor([[1]])).device.type == "cpu"
    with pytest.raises(ValueError, match=r"'cuda'.*hbm tier is on 'cpu'"):
        make(device="cuda")
    with pytest.raises(ValueError, match=r"needs an hbm tier"):
        make(None, device="cuda")
    with pytest.raises(TypeError, match="meta"):
        make()(torch.zeros(2, 2, dtype=torch.int64, device="meta"))


def test_repr_and_stats_tell_of_it() -> None:
    bag = make(40)
    assert "hbm=1.88 KiB on cpu" in repr(bag)
    train(bag, 20)
    stats = bag.stats()
    assert (stats.hbm_slots, stats.hbm_rows) == (40, 40)
    assert stats.hbm_rows_hit + stats.hbm_rows_filled + stats.hbm_rows_in_dram == stats.unique_rows
    assert stats.hbm_rows_hit > 0
    assert stats.hbm_rows_spilled > 0
    assert stats.pinned_bytes == 8 * 4096
    assert "hbm 40 of 40 slots" in str(stats)


def test_hbm_never_takes_more_slots_than_dram_has(tmp_path: Path) -> None:
    bag = make(400, dram="8KiB", path=tmp_path / "s")
    assert bag.stats().hbm_slots <= 8192 // 48 + 1


# ---- Where rows are


def test_tiers_of_rows(tmp_path: Path) -> None:
    bag = make(3, dram="3KiB", path=tmp_path / "s")
    bag(torch.arange(3)[:, None])
    assert bag.tier_of(torch.arange(4)).tolist() == [3, 3, 3, 0]
    train(bag, 30)
    bag.flush()
    where = bag.tier_of(torch.arange(ROWS))
    assert set(where.tolist()) >= {1, 2, 3}
    assert int((where == 3).sum()) == 3


def test_reading_moves_nothing() -> None:
    bag = make(20)
    train(bag, 10)
    before = bag.tier_of(torch.arange(ROWS))
    bag.rows(torch.arange(ROWS))
    bag.to_dense()
    assert torch.equal(bag.tier_of(torch.arange(ROWS)), before)


def test_a_batch_that_does_not_fit_takes_the_rest_from_dram() -> None:
    small, all_in_dram = make(5), make(None)
    for bag in (small, all_in_dram):
        train(bag, 10)
    assert small.stats().hbm_rows_in_dram > 100
    assert_same_bits(small.to_dense(), all_in_dram.to_dense(), "rows")


def test_graphs_that_lose_their_slots_get_others(tmp_path: Path) -> None:
    """Dram holds the rows of two of the batches that wait at once."""
    bag, plain = make(60, dram="1700", path=tmp_path / "s"), make(None)
    for table in (bag, plain):
        outs = [table(torch.arange(i, i + 12)[None]) for i in range(0, 300, 9)]
        for i, out in enumerate(outs):
            if i % 5:
                out.sum().backward()
        del outs, out
    assert bag.stats().plans_revoked > 0
    assert_same_bits(bag.to_dense(), plain.to_dense(), "rows")


# ---- What else users do


def test_writes_and_steps_reach_rows_on_the_device() -> None:
    for fused in (True, False):
        dense = []
        for hbm_rows in (30, None):
            optimizer = te.optim.Adam(lr=0.1, fused=fused)
            bag = make(hbm_rows, optimizer=optimizer)
            train(bag, 5)
            bag.write_rows([1, 2, 3], torch.ones(3, DIM))
            train(bag, 5, seed=1)
            if not fused:
                optimizer.step()
            state = bag.state_rows([1, 2, 3])
            bag.write_rows([7, 8, 9], None, state)
            train(bag, 5, seed=2)
            dense.append(torch.cat([bag.to_dense(), *bag.state_rows(range(ROWS)).values()], 1))
        assert_same_bits(dense[0], dense[1], f"fused={fused}")


def test_autocast() -> None:
    bag = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = bag(torch.tensor([[1, 2]]))
        assert out.dtype == torch.bfloat16
        out.float().sum().backward()
    assert bag(torch.tensor([[1, 2]])).dtype == torch.float32
    assert bag.stats().hbm_dirty_rows == 2


def test_checkpoints(tmp_path: Path) -> None:
    """A cut has what is only on the device; it loads into other sizes, and goes on to the bit."""
    model = torch.nn.Sequential(make(60, dram="16KiB", path=tmp_path / "a"))
    train(model[0], 20)
    te.save(model, tmp_path / "cut")
    saved = model[0].to_dense()
    train(model[0], 5, seed=3)
    sizes = ((4, "20KiB", tmp_path / "b"), (500, None, None), (None, None, None))
    for hbm_rows, dram, path in sizes:
        other = torch.nn.Sequential(make(hbm_rows, dram=dram, path=path))
        train(other[0], 3, seed=9)
        te.load(other, tmp_path / "cut")
        assert_same_bits(other[0].to_dense(), saved, "loaded")
        train(other[0], 5, seed=3)
        assert_same_bits(other[0].to_dense(), model[0].to_dense(), "trained on")


def test_closing_keeps_what_was_on_the_device(tmp_path: Path) -> None:
    bag = make(60, dram="16KiB", path=tmp_path / "s")
    train(bag, 20)
    dense = bag.to_dense()
    bag.close()
    bag.close()
    with pytest.raises(ValueError, match="closed"):
        bag(torch.tensor([[1]]))
    resumed = te.TieredEmbedding(
        ROWS, DIM, mode="sum", tiers=te.Tiers(ssd=te.SSD(str(tmp_path / "s"), resume=True)),
        optimizer=te.optim.RowwiseAdagrad(lr=0.1), seed=5,
    )  # fmt: skip
    assert_same_bits(resumed.to_dense(), dense, "rows")


def test_prefetching_changes_nothing(tmp_path: Path) -> None:
    dense = []
    for path, prefetches in (("a", True), ("b", False)):
        bag = make(60, dram="16KiB", path=tmp_path / path)
        random = torch.Generator().manual_seed(2)
        batches = [torch.randint(0, ROWS, (8, 4), generator=random) for _ in range(30)]
        loop = te.Prefetcher(batches, bag, ids=lambda b: b, rows_ahead=3) if prefetches else batches
        for ids in loop:
            bag(ids).sum().backward()
        dense.append(bag.to_dense())
        if prefetches:
            assert bag.stats().prefetched_batches == 30
    assert_same_bits(dense[0], dense[1], "rows")


def test_errors_change_nothing() -> None:
    bag = make(optimizer=te.optim.SGD(lr=0.1, check_finite=True))
    train(bag, 3)
    before = bag.to_dense()
    with pytest.raises(IndexError, match=f"table 'embedding'.*{ROWS + 1}"):
        bag(torch.tensor([[1, ROWS + 1]]))
    out = bag(torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match="gradient of bag 0, column 3 is nan; nothing was updated"):
        out.backward(torch.tensor([[0.0, 0, 0, float("nan"), 0, 0, 0, 0]]))
    assert_same_bits(bag.to_dense(), before, "rows")
    train(bag, 3)


def test_collections_and_converted_models() -> None:
    tables = [te.Table("a", 200, 4), te.Table("b", 300, 4, "mean"), te.Table("c", 40, 16, "max")]
    random = torch.Generator().manual_seed(1)
    batches = [
        {t.name: torch.randint(0, t.num_embeddings, (6, 5), generator=random) for t in tables}
        for _ in range(8)
    ]
    found = []
    for hbm in (te.HBM("3KiB", "cpu"), None):
        coll = te.TieredEmbeddingCollection(
            tables, tiers=te.Tiers(hbm=hbm), optimizer=te.optim.Adagrad(lr=0.1)
        )
        for batch in batches:
            sum(out.square().sum() for out in coll(batch).values()).backward()
        found.append([coll.to_dense(t.name) for t in tables])
        torch.manual_seed(0)
        model = te.convert(
            torch.nn.ModuleList([torch.nn.EmbeddingBag(50, 4), torch.nn.EmbeddingBag(70, 6)]),
            tiers=te.Tiers(hbm=hbm), optimizer=te.optim.SGD(lr=0.1),
        )  # fmt: skip
        for _ in range(3):
            for bag in model:
                bag(torch.arange(40).view(8, 5)).sum().backward()
        found[-1] += [bag.to_dense() for bag in model]
    for a, b in zip(*found, strict=True):
        assert_same_bits(a, b, "rows")


def test_several_threads() -> None:
    bag, plain = make(50), make(None)
    with torch.no_grad():
        for table in (bag, plain):
            table.write_rows(range(ROWS), torch.zeros(ROWS, DIM))
    optimizer_steps = 40

    def work(seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        for i in range(optimizer_steps):
            ids = torch.randint(0, ROWS, (6, 4), generator=random)
            bag(ids).sum().backward()
            if i % 10 == 0:
                bag.rows(ids.reshape(-1))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bag.stats().steps == 3 * optimizer_steps
    assert bag.to_dense().isfinite().all()


def test_a_resumed_store_whose_rows_all_fit_in_dram(tmp_path: Path) -> None:
    """Only the device evicts; blocks on ssd have rows for later batches all the same."""
    first = make(None, dram="16KiB", path=tmp_path / "s")
    train(first, 40)
    dense = first.to_dense()
    first.close()
    bag = te.TieredEmbedding(
        ROWS, DIM, mode="sum", optimizer=te.optim.RowwiseAdagrad(lr=0.1), seed=5,
        tiers=te.Tiers(hbm=te.HBM(2000, "cpu"), ssd=te.SSD(str(tmp_path / "s"), resume=True)),
    )  # fmt: skip
    batches = list(torch.randperm(ROWS).view(-1, 5, 4)) * 2
    for ids in te.Prefetcher(batches, bag, ids=lambda b: b, rows_ahead=2, ids_ahead=20):
        with torch.no_grad():
            bag(ids)
    assert_same_bits(bag.to_dense(), dense, "rows")


@pytest.mark.parametrize("executor", ["core", "torch"])
def test_a_write_between_forward_and_backward(executor: str) -> None:
    dense = []
    for hbm in (te.HBM("4KiB", "cpu", executor=executor), None):
        bag = te.TieredEmbedding(
            9, 2, mode="sum", tiers=te.Tiers(hbm=hbm), optimizer=te.optim.SGD(lr=1.0)
        )
        out = bag(torch.arange(6)[None])
        bag.write_rows(range(6), torch.full((6, 2), 10.0))
        out.sum().backward()
        dense.append(bag.to_dense())
        assert dense[-1][:6].eq(9).all()
    assert_same_bits(dense[0], dense[1], "rows")


@pytest.mark.parametrize("executor", ["core", "torch"])
@pytest.mark.parametrize("at", range(1, 12))
def test_moves_that_fail_are_made_again(
    at: int, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch fails half way through a stage: what was decided is done by the next call."""
    found = []
    for fails in (True, False):
        hbm = te.HBM(30 * 48, "cpu", executor=executor, buffer=300)
        bag = te.TieredEmbedding(
            ROWS, DIM, mode="sum", tiers=te.Tiers(hbm=hbm), optimizer=te.optim.SGD(lr=0.1), seed=5
        )
        train(bag, 5)
        runtime = bag._engine._tier._runtime
        on_copy, calls = runtime.on_copy, 0

        def launch(*args: object, on_copy: object = on_copy, **options: object) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise RuntimeError("out of memory")
            on_copy(*args, **options)

        if fails:
            monkeypatch.setattr(runtime, "on_copy", launch)
        random = torch.Generator().manual_seed(8)
        for _ in range(6):
            ids = torch.randint(0, ROWS, (8, 4), generator=random)
            grad = torch.randn(8, DIM, generator=random)
            try:
                out = bag(ids)
            except RuntimeError:
                assert fails
                out = bag(ids)
            out.backward(grad)
        found.append(bag.to_dense())
        assert calls > at or not fails
    assert_same_bits(*found, "rows")


def test_a_write_that_fails_half_way_leaves_tiers_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bag = make()
    bag(torch.arange(4)[None])
    tier = bag._engine._tier
    with_room = tier.with_room

    def fails(call: object) -> None:
        with_room(call)
        raise OSError("the disk has gone")

    with monkeypatch.context() as patch:
        patch.setattr(tier, "with_room", fails)
        with pytest.raises(OSError, match="gone"):
            bag.write_rows([1, 2], torch.full((2, DIM), 7.0))
    assert bag(torch.tensor([[1]])).eq(bag.rows([1])).all()


def test_tables_without_rows_and_huge_rows() -> None:
    empty = te.TieredEmbedding(0, 4, mode="sum", tiers=te.Tiers(hbm=te.HBM("1KiB", "cpu")))
    assert empty(torch.zeros(3, 0, dtype=torch.int64)).shape == (3, 4)
    wide = te.TieredEmbedding(
        3, 3000, mode="sum", tiers=te.Tiers(hbm=te.HBM("13KiB", "cpu", buffer=16))
    )
    ids = torch.tensor([[0, 1], [2, 0]])
    assert torch.equal(wide(ids), wide.rows([0, 2]) + wide.rows([1, 0]))


def test_loading_gives_the_memory_of_the_device_back(tmp_path: Path) -> None:
    model = torch.nn.Sequential(make())
    train(model[0], 3)
    te.save(model, tmp_path / "cut")
    old = weakref.ref(model[0]._engine._tier)
    te.load(model, tmp_path / "cut")
    gc.collect()
    assert old() is None
    assert model[0]._engine._tier is not None
    model[0].close()
    with pytest.raises(ValueError, match="closed"):
        model[0].write_rows([1], torch.ones(1, DIM))


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupted_backward_loses_no_update(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without room are updated as guests: they come back to dram by the next call."""
    found = []
    for interrupted in (True, False):
        hbm = te.HBM(4 * 48, "cpu", executor="torch", buffer=200)
        bag = te.TieredEmbedding(
            ROWS, DIM, mode="sum", tiers=te.Tiers(hbm=hbm), optimizer=te.optim.SGD(lr=0.1), seed=5
        )
        out = bag(torch.arange(20)[None])
        transfers = bag._engine._tier._transfers
        scatter, calls = transfers._scatter, 0

        def interrupt(chunk: object, scatter: object = scatter) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            scatter(chunk)

        if interrupted:
            with monkeypatch.context() as patch:
                patch.setattr(transfers, "_scatter", interrupt)
                with pytest.raises(KeyboardInterrupt):
                    out.backward(torch.ones(1, DIM))
        else:
            out.backward(torch.ones(1, DIM))
        found.append(bag.to_dense())
    assert_same_bits(*found, "rows")


def test_a_broken_device_keeps_no_store_open(tmp_path: Path) -> None:
    def breaks() -> None:
        raise RuntimeError("the device has gone")

    path = str(tmp_path / "store")
    tiers = te.Tiers(hbm=te.HBM(20 * 48, "cpu"), ssd=te.SSD(path))
    bag = te.TieredEmbedding(ROWS, DIM, tiers=tiers)
    bag._engine._tier._runtime.finish = breaks
    with pytest.raises(RuntimeError, match="gone"):
        bag._engine.discard()
    assert bag._engine.is_closed
    te.TieredEmbedding(ROWS, DIM, tiers=te.Tiers(ssd=te.SSD(path, resume=True))).close()
