"""`stats().recommend()`: tier sizes from what an engine has looked up lately."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tuner_case import HERE, machine

import tiered_emb as te
from tiered_emb.bench import calibration
from tiered_emb.bench import limits as limits_file
from tiered_emb.bench.predict import Staging
from tiered_emb.tuner import online

ROWS, DIM, IDS = 50_000, 16, 400
ROW_BYTES = DIM * 4 + 4


def batches(count: int) -> Iterator[torch.Tensor]:
    rng = np.random.default_rng(0)
    of_rank = rng.permutation(ROWS)
    for _ in range(count):
        yield torch.from_numpy(of_rank[(ROWS ** rng.random((IDS // 4, 4))).astype(np.int64) - 1])


@pytest.fixture
def bag(tmp_path: Path) -> Iterator[te.TieredEmbedding]:
    with te.TieredEmbedding(
        ROWS, DIM, mode="sum", tiers=te.Tiers(dram="400KiB", ssd=tmp_path / "store"),
        optimizer=te.optim.RowwiseAdagrad(lr=0.1),
    ) as bag:  # fmt: skip
        yield bag


def train(bag: te.TieredEmbedding, count: int = 300) -> float:
    """Distinct rows of a batch."""
    distinct = []
    for ids in batches(count):
        bag(ids).sum().backward()
        distinct.append(len(np.unique(ids)))
    return float(np.mean(distinct))


def test_it_is_of_what_was_looked_up(bag: te.TieredEmbedding) -> None:
    unique = train(bag)
    advice = bag.stats().recommend(dram_max="20MiB", layers_ms=3, machine=HERE)
    assert advice.model.unique_rows == pytest.approx(unique, rel=0.1)
    assert advice.model.lookups == pytest.approx(IDS, rel=0.1)
    assert advice.model.layers_s == 0.003
    assert advice.model.bytes == ROWS * ROW_BYTES
    assert advice.rows == te_rows("rowwise-adagrad")
    assert 0 < advice.dram_bytes <= 20 << 20
    assert str(advice).startswith("te.Tiers(")
    # Less dram, more misses, by the same curves.
    least, most = advice.front[0], advice.front[-1]
    assert least.demand.step.misses > most.demand.step.misses
    bag(next(batches(1)))  # it goes on


def test_where_all_rows_are_to_be_in_dram_the_size_holds_them(tmp_path: Path) -> None:
    rows = 1_000_000
    with te.TieredEmbedding(
        rows, DIM, mode="sum", tiers=te.Tiers(dram="40MiB", ssd=tmp_path / "store"),
        optimizer=te.optim.RowwiseAdagrad(lr=0.1),
    ) as bag:  # fmt: skip
        train(bag, 60)
        advice = bag.stats().recommend(dram_max="1GiB", layers_ms=0, machine=HERE)
        assert advice.chosen.sizes.dram_bytes is None
        bag.resize(dram=advice.dram_bytes)
        assert bag.stats().slots == rows


def test_large_batches_of_few_rows() -> None:
    rows = 8000
    with te.TieredEmbedding(rows, DIM, mode="sum", optimizer=te.optim.SGD(0.1)) as bag:
        ids = torch.arange(rows).view(-1, 4)
        for _ in range(60):
            bag(ids).sum().backward()
        advice = bag.stats().recommend(layers_ms=0, machine=HERE)
        assert advice.model.unique_rows == pytest.approx(rows, rel=0.05)


def te_rows(optimizer: str | None) -> object:
    from tiered_emb.tuner.cost import RowFormat

    return RowFormat(optimizer)


def test_the_present_budget_bounds_it(bag: te.TieredEmbedding) -> None:
    train(bag)
    advice = bag.stats().recommend(layers_ms=0, machine=HERE)
    assert advice.dram_bytes <= 400 << 10


def test_layers_are_what_lookups_leave(bag: te.TieredEmbedding) -> None:
    train(bag, 40)
    free = replace(HERE, coefficients=replace(HERE.coefficients, miss_s=0.0, fetch_s=0.0))
    before = bag.stats()
    own_s = before.plan_ns + before.move_ns + before.upkeep_ns + before.forward_ns
    own_s = (own_s + before.backward_ns + before.prefetch_stall_ns) / 1e9 / before.steps
    # As if steps had been so long.
    engine = bag._engine
    engine.lookup_times.clear()
    engine.lookup_times.extend(np.arange(20) * 0.5)
    advice = bag.stats().recommend(machine=free)
    assert advice.model.layers_s == pytest.approx(0.5 - own_s, rel=0.01)


def test_with_an_hbm_tier(tmp_path: Path) -> None:
    tiers = te.Tiers(hbm=te.HBM("100KiB", "cpu"), dram="1MiB", ssd=tmp_path / "store")
    with te.TieredEmbedding(ROWS, DIM, mode="sum", tiers=tiers) as bag:
        for ids in batches(60):
            bag(ids)
        advice = bag.stats().recommend(layers_ms=1, machine=machine(device=True))
        assert advice.rows == te_rows(None)
        assert advice.hbm_bytes <= 100 << 10


def test_staging_is_not_layers() -> None:
    """What is fitted of the processor's part has no counter, and is not the model's."""
    tiers = te.Tiers(hbm=te.HBM("100KiB", "cpu"))
    with te.TieredEmbedding(ROWS, DIM, mode="sum", tiers=tiers) as bag:
        for ids in batches(40):
            bag(ids)
        engine, stats, there = bag._engine, bag.stats(), machine(device=True)
        engine.lookup_times.clear()
        engine.lookup_times.extend([0.0, 1.0, 2.0])
        staging = Staging(pass_s=0.1, lookup_s=1e-6, row_s=2e-6, move_s=3e-6)
        without, staged = (
            online._layers_s(engine, replace(there, staging=s)) for s in (None, staging)
        )
        moved = stats.hbm_rows_filled + stats.hbm_rows_spilled
        rows = stats.lookups * 1e-6 + stats.unique_rows * 2e-6 + moved * 3e-6
        taken = 0.1 + (rows - stats.plan_ns / 1e9) / stats.steps
        assert moved > 0
        assert without - staged == pytest.approx(taken, rel=1e-6)


def test_several_tables_keep_their_names(tmp_path: Path) -> None:
    tables = [te.Table("never", 100, 8), te.Table("a", ROWS, DIM), te.Table("b", 5, DIM)]
    tables.append(te.Table("own", 50, DIM, dram_share=0.5))
    tiers = te.Tiers(dram="1MiB", ssd=tmp_path / "store")
    with te.TieredEmbeddingCollection(tables, tiers=tiers) as coll:
        for ids in batches(60):
            coll({"a": ids, "b": ids % 5})
        advice = coll.stats().recommend(layers_ms=1, machine=HERE)
    pools = {pool.tables: pool for pool in advice.model.pools}
    assert set(pools) == {("never",), ("a", "b"), ("own",)}
    assert (pools[("own",)].share, pools[("a", "b")].share) == (0.5, None)
    assert pools[("never",)].unique_rows == 0


def test_what_it_needs(
    bag: te.TieredEmbedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="0 batches are in the sample of lookups; 16 or more"):
        bag.stats().recommend(machine=HERE)
    train(bag, 40)
    with pytest.raises(ValueError, match="tiered-emb bench limits --engine --dir"):
        bag.stats().recommend()
    with pytest.raises(ValueError, match="the rows of a batch"):
        bag.stats().recommend(dram_max="1KiB", machine=HERE)
    with pytest.raises(ValueError, match="units"):
        bag.stats().recommend(dram_max="much", machine=HERE)
    with pytest.raises(ValueError, match="not of tables in use"):
        replace(bag.stats()).recommend(machine=HERE)


def test_it_finds_what_was_saved_of_the_machine(
    bag: te.TieredEmbedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = limits_file.measure(tmp_path, smoke=True)
    limits_file.save(found, say=lambda _: None)
    monkeypatch.setattr(calibration, "ON_HOST", calibration.ON_HOST[1:] * 2)
    monkeypatch.setattr(calibration, "STEPS", calibration.SMOKE_STEPS)
    said: list[str] = []
    rates = HERE.rates
    for _ in range(2):
        engine = calibration.calibrated(
            tmp_path, found, rates, say=said.append, watch=lambda items, *_: items
        )
    assert "short runs" in said[0]
    assert "not fitted to" in said[1]
    assert len(engine.validation["predicted"]) == len(calibration.SMOKE_CHECKING)
    assert "saved coefficients" in said[-1]
    train(bag, 40)
    assert bag.stats().recommend(dram_max="20MiB").machine.coefficients == engine.host.coefficients


def test_what_is_saved_of_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured where one is asked for, and comes beside what is known of the host."""
    monkeypatch.setattr(calibration, "ON_HOST", calibration.ON_HOST[1:] * 2)
    monkeypatch.setattr(calibration, "ON_DEVICE", calibration.ON_DEVICE[1:] * 2)
    for steps in ("STEPS", "STEPS_HBM"):
        monkeypatch.setattr(calibration, steps, calibration.SMOKE_STEPS)
    found, path = limits_file.measure(tmp_path, smoke=True), tmp_path / "saved.json"
    with_device = machine(device=True).rates
    engines, said = [], []
    for device in (None, "cpu", "cpu", None):
        said.append([])
        engines.append(calibration.calibrated(
            tmp_path, found, with_device, device=device, path=path, say=said[-1].append,
            watch=lambda items, *_: items,
        ))  # fmt: skip
    assert ["engine on cpu" in " ".join(lines) for lines in said] == [False, True, False, False]
    host, fitted, read, again = (engine.host for engine in engines)
    assert host.staging is again.staging is None
    assert fitted.staging == read.staging is not None
    assert {e.coefficients for e in (host, fitted, read, again)} == {host.coefficients}
    names = [row["name"] for row in engines[2].validation["predicted"]]
    assert names == [setup.name for setup in calibration.SMOKE_CHECKING_HBM]
    assert calibration.saved_host(found, with_device, path) == fitted
    on_host = replace(with_device, device=None)
    assert calibration.saved_host(found, on_host, path) == host
    calibration.calibrated(
        tmp_path, found, HERE.rates, again=True, path=path, say=said[-1].append,
        watch=lambda items, *_: items,
    )  # fmt: skip
    again = calibration.saved_host(found, with_device, path)
    assert again is not None  # what was not asked for stays
    assert again.staging == fitted.staging
    entries = json.loads(path.read_text())
    del entries["engines"][0]["staging"]
    path.write_text(json.dumps(entries))
    assert calibration.saved_host(found, with_device, path) is None
