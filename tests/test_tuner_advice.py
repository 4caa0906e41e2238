"""What the tuner advises: its cost model, the search, and shares of tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tuner_case import HERE, MIB, machine, write_trace

import tiered_emb as te
from tiered_emb.bench.bound import BLOCK_BYTES
from tiered_emb.bench.demand import FREE_BYTES, SLOT_BYTES, SPACE, WRITTEN, blocks_of
from tiered_emb.data.errors import DataError
from tiered_emb.trace.format import TraceTable
from tiered_emb.trace.reader import Trace
from tiered_emb.tuner.advice import WhatIf, advise, size_text, tiers_text
from tiered_emb.tuner.cost import (
    DTYPES,
    Model,
    Outlook,
    Pool,
    RowFormat,
    Sizes,
    dims_of,
    format_of,
    outlook,
)
from tiered_emb.tuner.curves import MissCurve
from tiered_emb.tuner.model import Load, model_of, with_format
from tiered_emb.tuner.placement import placement
from tiered_emb.tuner.sample import Pyramid, take_sample
from tiered_emb.tuner.search import (
    Bounds,
    Wish,
    dram_for_all,
    explore,
    extras,
    front,
    price_of,
    recommended,
)

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: te.optim.SGD(lr=0.1),
    "rowwise-adagrad": lambda: te.optim.RowwiseAdagrad(lr=0.1),
    "adagrad": lambda: te.optim.Adagrad(lr=0.1),
    "adam": lambda: te.optim.Adam(lr=0.1),
}


def curve(rows: float, floor: float = 0.02, windows: tuple[int, ...] = (16, 64)) -> Any:
    """Misses that fall with the logarithm of the slots, less with a longer window."""
    sizes = np.geomspace(1000, rows, 12)
    share = np.log(sizes / 1000) / np.log(rows / 1000)
    return {
        w: MissCurve(sizes, 0.4 * (1 - 0.02 * i) * (1 - share) + floor, np.full(12, 0.01))
        for i, w in enumerate(windows)
    }


def pool(
    name: str, rows: int, dim: int, lookups: float = 4000, kept: RowFormat | None = None
) -> Pool:
    weight_bytes, row_bytes = (kept or RowFormat()).bytes_of(dim)
    return Pool((name,), rows, dim, weight_bytes, row_bytes, lookups, lookups * 0.6, curve(rows))


def model(*pools: Pool, **changes: Any) -> Model:
    given = pools or (pool("a", 400_000, 32), pool("b", 100_000, 128, 1000))
    unique = sum(p.unique_rows for p in given)
    return Model(given, largest_batch=unique * 1.1, trains=True, **changes)


@pytest.mark.parametrize("optimizer", [None, *OPTIMIZERS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_have_as_many_bytes_as_the_engine_says(optimizer: str | None, dtype: str) -> None:
    rows = RowFormat(optimizer, dtype)
    for dim in (1, 3, 8, 33):
        with te.TieredEmbeddingCollection(
            [te.Table("t", 10, dim)],
            optimizer=None if optimizer is None else OPTIMIZERS[optimizer](),
            dtype=getattr(torch, dtype),
        ) as tables:
            assert rows.bytes_of(dim)[1] * 10 == tables.row_bytes
        tables_of = {"t": TraceTable(10, dim, rows.bytes_of(dim)[1])}
        found = format_of(tables_of)
        assert found is not None
        assert found.bytes_of(dim)[1] == rows.bytes_of(dim)[1]
    assert format_of({"t": TraceTable(10, 8, 7)}) is None
    assert format_of({"t": TraceTable(10)}) is None


def test_dims() -> None:
    tables = {"a": TraceTable(10, 8), "b": TraceTable(10), "c": TraceTable(5, 8)}
    assert dims_of(tables, 4) == {8: ["a", "c"], 4: ["b"]}
    with pytest.raises(DataError, match="table 'b': the trace does not say"):
        dims_of(tables, None)


def test_more_dram_never_misses_more() -> None:
    for trained in (True, False):
        of = replace(model(layers_s=1e-3), trains=trained)
        for window in (16, 64):
            points = [
                outlook(of, Sizes(0, dram, 4, window), HERE)
                for dram in np.geomspace(10 * MIB, 120 * MIB, 30)
            ]
            misses = [p.demand.step.misses for p in points]
            assert misses == sorted(misses, reverse=True)
            assert misses[0] > 1.5 * misses[-1]
            slots = [p.slots for p in points]
            assert slots == sorted(slots)
            assert all(0 <= p.dram_hits <= 1 for p in points)


def test_all_rows_in_dram_leave_the_ssd_alone() -> None:
    of = model()
    for sizes in (Sizes(), Sizes(0, dram_for_all(of) * 1.2)):
        point = outlook(of, sizes, HERE)
        assert point.reads_per_s == point.written_bytes_a_day == 0
        assert point.bytes_a_step == {"link": 0, "ssd read": 0, "ssd written": 0}
        assert (point.dram_hits, point.slots) == (1, 500_000)
        assert point.life_years(1e15) == math.inf
        assert point.binding in ("layers", "dram")


def test_longer_layers_are_never_faster() -> None:
    sizes = Sizes(0, 20 * MIB)
    steps = [outlook(model(layers_s=s), sizes, HERE).step_s for s in (0, 1e-3, 1e-2, 0.1, 1)]
    assert steps == sorted(steps)
    assert steps[-1] > 1
    assert outlook(model(layers_s=1), sizes, HERE).binding == "layers"


def test_what_the_drive_does_by_hand() -> None:
    of = model(pool("a", 400_000, 32))
    (only,) = of.pools
    point = outlook(of, Sizes(0, 20 * MIB, 0, 16), HERE)  # nothing is held for batches ahead
    misses = only.curves[16].at(point.slots) * 4000
    assert point.demand.step.misses == pytest.approx(misses)
    assert point.dram_hits == pytest.approx(1 - misses / 2400)
    blocks = blocks_of(misses, 400_000 * 132)
    assert point.bytes_a_step["ssd read"] == pytest.approx(blocks * BLOCK_BYTES)
    assert point.reads_per_s == pytest.approx(blocks / point.step_s)
    written = misses * 132 * WRITTEN
    assert point.bytes_a_step["ssd written"] == pytest.approx(written)
    daily = written / point.step_s * 86_400
    assert point.written_bytes_a_day == pytest.approx(daily)
    # A drive of 1 TB, written once a day for five years.
    assert point.life_years(5 * 365.25 * 1e12) == pytest.approx(5 * 1e12 / daily)
    drive_s = point.busy_s["ssd"] + point.busy_s["plan"]
    assert point.busy_s["plan"] == pytest.approx(2e-7 * misses)
    assert point.step_s == pytest.approx(  # in line: all but what fetching takes from layers
        sum(point.busy_s.values()) - point.busy_s["fetch"]
    )
    ahead = outlook(of, Sizes(0, 20 * MIB, 4, 16), HERE)
    assert ahead.demand.step.misses > misses  # rows held for batches ahead
    assert ahead.step_s < point.step_s
    assert drive_s < point.step_s


def test_inference_writes_nothing() -> None:
    of = with_format(model(), RowFormat(None))
    point = outlook(of, Sizes(0, 20 * MIB), HERE)
    assert (point.written_bytes_a_day, point.reads_per_s > 0) == (0, True)
    assert of.bytes == 400_000 * 128 + 100_000 * 512
    assert point.life_years(1.0) == math.inf


def test_pools_of_different_dims_share_the_slots() -> None:
    of = model()
    point = outlook(of, Sizes(0, 30 * MIB, 0, 16), HERE)
    share = point.slots / 500_000
    expected = sum(p.misses(share * p.rows, 16) for p in of.pools)
    assert point.demand.step.misses == pytest.approx(expected, rel=1e-3)
    mean = of.bytes / 500_000
    assert point.slots * (mean + SLOT_BYTES) < 30 * MIB + FREE_BYTES
    assert point.slots == pytest.approx((30 * MIB + FREE_BYTES) / (mean + SLOT_BYTES), rel=0.2)
    per_row = (132 * 2400 + 516 * 600) / 3000
    assert of.per_row("row_bytes") == pytest.approx(per_row)


def test_fixed_shares() -> None:
    of = model()
    a, b = of.pools
    sizes = Sizes(0, 60 * MIB, 0, 16)
    shared = outlook(of, sizes, HERE)
    whole = outlook(replace(of, pools=(a, replace(b, share=1.0))), sizes, HERE)
    assert whole.slots < shared.slots  # b's rows are four times as long
    assert whole.demand.step.misses == pytest.approx(a.misses(whole.slots - 100_000, 16), rel=1e-6)
    both = replace(of, pools=(replace(a, share=0.1), replace(b, share=0.2)))
    point = outlook(both, sizes, HERE)
    assert point.slots == 60_000
    assert point.demand.step.misses == pytest.approx(a.misses(40_000, 16) + b.misses(20_000, 16))
    with pytest.raises(DataError, match=r"dram of 62,914,560 bytes holds 500 rows, a batch"):
        outlook(replace(of, pools=(replace(a, share=1e-3), replace(b, share=1e-3))), sizes, HERE)
    with pytest.raises(DataError, match=r"shares of single tables take 105,6\d\d,\d\d\d bytes"):
        outlook(replace(of, pools=(replace(a, share=0.7), replace(b, share=0.98))), sizes, HERE)


def test_dram_that_does_not_hold_a_batch() -> None:
    of = replace(model(), largest_batch=200_000.0)
    with pytest.raises(DataError, match=r"dram of 1,048,576 bytes holds \d+,\d+ rows, a batch has"):
        outlook(of, Sizes(0, MIB), HERE)


def test_the_error_of_sampling() -> None:
    """About what the step would gain with curves one standard error higher."""
    of = model(pool("a", 400_000, 32))
    (only,) = of.pools
    higher = {w: replace(c, misses=c.misses + c.error) for w, c in only.curves.items()}
    worse = replace(of, pools=[replace(only, curves=higher)])
    for sizes in (Sizes(0, 20 * MIB, 0), Sizes(0, 20 * MIB, 4)):
        point = outlook(of, sizes, HERE)
        expected = outlook(worse, sizes, HERE).step_s / point.step_s - 1
        assert point.error == pytest.approx(expected, rel=0.2)
    busy = outlook(replace(of, layers_s=1.0), Sizes(0, 20 * MIB), HERE)
    assert 0 < busy.error < 1e-4  # of fetching alone, which slows the layers
    assert outlook(of, Sizes(), HERE).error == 0


def test_a_device() -> None:
    """The more slots it has, the fewer rows come up; without any, all of a step's rows do."""
    of, there = model(), machine(device=True)
    points = [outlook(of, Sizes(hbm, 80 * MIB), there) for hbm in (0, 1.0, MIB, 10 * MIB, 50 * MIB)]
    link = [p.bytes_a_step["link"] for p in points]
    assert link == sorted(link, reverse=True)
    assert link[0] == pytest.approx(2 * 3000 * of.per_row("row_bytes"))
    assert link[1] == pytest.approx(link[0], rel=1e-3)
    assert points[0].hbm_hits == 0
    assert points[-1].hbm_hits > 0.5
    assert points[0].busy_s["dram"] > 3 * points[-1].busy_s["dram"]
    assert outlook(of, Sizes(0, 80 * MIB), HERE).bytes_a_step["link"] == 0
    everything = outlook(of, Sizes(of.hbm_bytes), there)
    assert (everything.hbm_hits, everything.bytes_a_step["link"]) == (1, 0)
    chosen = recommended(explore(of, there, Bounds(100 * MIB, 120 * MIB, 1e12)), of, Wish())
    assert chosen.sizes.hbm_bytes > 0
    # What belongs to its slots is in dram: 60 bytes each, 4 for each row there, whose slots begin
    # at multiples of 16 bytes as the device's do, and what rows pass through.
    without, held = points[0].slots, points[-1].slots
    mean, aligned = of.bytes / of.rows, of.hbm_bytes / of.rows
    passed = 8 * 80 * MIB / 256
    taken = 60 * 50 * MIB / aligned + held * (aligned + 4 + SLOT_BYTES) + passed
    assert without * (mean + SLOT_BYTES) == pytest.approx(taken, rel=0.01)
    passed = min(8 * 32 * MIB, of.hbm_bytes)
    assert everything.dram_bytes == pytest.approx(
        dram_for_all(of) + of.hbm_bytes - of.bytes + of.rows * 64 + passed, abs=8
    )
    full = explore(of, there, Bounds(of.bytes, dram_for_all(of) * 1.01, None))
    assert {p.sizes.dram_bytes for p in full} == {None}
    assert max(p.dram_bytes for p in full) <= dram_for_all(of) * 1.01


def dominates(a: Outlook, b: Outlook) -> bool:
    return (
        a is not b
        and a.sizes.hbm_bytes <= b.sizes.hbm_bytes
        and a.dram_bytes <= b.dram_bytes
        and a.step_s <= b.step_s
    )


@pytest.fixture(scope="module")
def points() -> list[Outlook]:
    return explore(model(layers_s=1e-4), machine(True), Bounds(40 * MIB, 300 * MIB, 1e12))


def test_the_front_has_no_point_that_another_beats(points: list[Outlook]) -> None:
    found = front(points)
    assert len(found) > 20
    assert not any(dominates(a, b) for a in points for b in found)
    steps = [p.step_s for p in found]
    assert steps == sorted(steps, reverse=True)
    assert any(p.sizes.dram_bytes is None for p in found)
    assert all(p.reads_a_step > 0 for p in found if p.sizes.dram_bytes is not None)
    assert {p.sizes.hbm_bytes for p in points} > {0.0, 40 * MIB}
    for point in points:  # each has a point of the front about as fast, and no larger
        assert any(
            other.step_s <= point.step_s * 1.01
            and other.sizes.hbm_bytes <= point.sizes.hbm_bytes
            and other.dram_bytes <= point.dram_bytes
            for other in found
        )


def test_what_is_recommended(points: list[Outlook]) -> None:
    of = model(layers_s=1e-4, batch_size=100)
    fastest = min(p.step_s for p in points)
    best = recommended(points, of, Wish())
    assert best.step_s <= fastest * 1.01
    assert not any(
        (p.sizes.hbm_bytes, p.dram_bytes) < (best.sizes.hbm_bytes, best.dram_bytes)
        for p in points
        if p.step_s <= fastest * 1.01
    )
    wanted = 0.4 / fastest
    enough = recommended(points, of, Wish(steps_per_s=wanted))
    assert enough.steps_per_s >= wanted
    assert not any(
        p.steps_per_s >= wanted
        and (p.sizes.hbm_bytes, p.dram_bytes) < (enough.sizes.hbm_bytes, enough.dram_bytes)
        for p in points
    )
    prices = {"hbm": 20.0, "dram": 4.0, "ssd": 0.1}
    cheap = recommended(points, of, Wish(steps_per_s=wanted, prices=prices))
    assert cheap.steps_per_s >= wanted
    assert price_of(cheap, of, prices) <= price_of(enough, of, prices)
    each = recommended(points, of, Wish(cheapest=True, prices=prices))
    assert all(
        price_of(each, of, prices) * each.step_s <= price_of(p, of, prices) * p.step_s
        for p in points
    )
    with pytest.raises(DataError) as told:
        recommended(points, of, Wish(steps_per_s=1e6))
    assert str(told.value) == (
        f"target of 100,000,000 samples/s: the fastest within these sizes does {100 / fastest:,.0f}"
    )


def test_prices_by_hand() -> None:
    of = model()
    prices = {"hbm": 20.0, "dram": 4.0, "ssd": 0.5}
    on_ssd = outlook(of, Sizes(512 * MIB, 256 * MIB), HERE)
    used = of.bytes * SPACE / 2**30
    assert price_of(on_ssd, of, prices) == pytest.approx(10 + 1 + 0.5 * used)
    assert price_of(outlook(of, Sizes(), HERE), of, prices) == pytest.approx(
        4 * dram_for_all(of) / 2**30
    )


def test_extras(points: list[Outlook]) -> None:
    of = model(layers_s=1e-4)
    bounds = Bounds(40 * MIB, 300 * MIB, 1e12)
    for point in points[::15]:
        found = extras(point, of, machine(True), bounds)
        sizes = point.sizes
        more = min(2**30, max(sizes.hbm_bytes, of.bytes / 100) / 10)
        tiers = [] if sizes.dram_bytes is None else ["dram"]
        if sizes.hbm_bytes + more <= (sizes.dram_bytes or bounds.dram_max):
            tiers.insert(0, "hbm")  # a row on the device keeps its place in dram
        assert [extra.tier for extra in found] == tiers
        assert all(extra.bytes > 0 for extra in found)
        assert all(extra.gain > -0.2 for extra in found)  # a device takes some of dram
        assert all(extra.gain > -1e-9 for extra in found if extra.tier == "dram")
    small = outlook(of, Sizes(0, 6 * MIB), HERE)
    (dram,) = extras(small, of, HERE, Bounds(0, 6 * MIB, 1e12))
    assert (dram.tier, dram.bytes, dram.gain > 0.01) == ("dram", 0.6 * MIB, True)


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        (Bounds(0, 50 * MIB, 10 * MIB), "ssd: the rows need 144 MiB there, there are 10 MiB"),
        (Bounds(0, 50 * MIB, None), "dram: all rows need 124 MiB, 50 MiB may be used, and there"),
        (Bounds(0, 1.0, 1e12), "does not hold the rows of a batch: up to 3,300"),
    ],
)
def test_bounds_that_are_too_small(bounds: Bounds, told: str) -> None:
    of = model()
    if bounds.dram_max == 1:  # some bytes of dram are free
        of = replace(of, pools=[replace(p, row_bytes=10_000) for p in of.pools])
    with pytest.raises(DataError) as error:
        explore(of, HERE, bounds)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_an_ssd_that_is_too_small_is_not_needed_where_all_rows_are_in_dram() -> None:
    of = model()
    (point,) = explore(of, HERE, Bounds(0, 300 * MIB, 10 * MIB))
    assert point.sizes.dram_bytes is None


def test_sizes_as_they_are_typed() -> None:
    texts = [size_text(x) for x in (1, 1023.2, 1024, 1 << 20, 123.4 * MIB, 5.001 * 2**30, 2**41)]
    assert texts == ["1", "1023", "1KiB", "1MiB", "123.4MiB", "5.001GiB", "2048GiB"]
    for nbytes in np.geomspace(100, 1e13, 200):
        assert 0.998 * nbytes - 1 <= te.tiers.parse_bytes(parsed(size_text(nbytes))) <= nbytes
    point = outlook(model(), Sizes(5 * MIB, 30 * MIB, 2, 64), HERE)
    assert tiers_text(point, "/d") == (
        'te.Tiers(hbm="5MiB", dram="30MiB", ssd="/d")\n'
        "te.Prefetcher(loader, model, rows_ahead=2, ids_ahead=64)"
    )
    assert tiers_text(outlook(model(), Sizes(), HERE)) == "te.Tiers()  # all rows in dram"


def parsed(text: str) -> int | str:
    return int(text) if text.isdigit() else text


@pytest.fixture(scope="module")
def two_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("trace") / "trace.parquet")


@pytest.fixture(scope="module")
def pyramid(two_tables: Path) -> Pyramid:
    return take_sample(Trace(two_tables), 1, warm_up=0.5)


def test_shares_of_a_hot_table_and_one_without_hot_rows(pyramid: Pyramid) -> None:
    load = Load(RowFormat())
    of = model_of(pyramid, load)
    assert (of.rows, of.lookups, of.largest_batch < 500) == (60_600, 500, True)
    for dram in (2e6, 8e6, 25e6, 45e6):
        point = outlook(of, Sizes(0, dram, 0, 16), HERE)
        found = placement(pyramid, of, load.rows, point, HERE)
        assert found is not None
        less = outlook(of, Sizes(0, dram * 31 / 32, 0, 16), HERE)  # some of it is not divided
        assert found.after.demand.step.misses <= less.demand.step.misses * 1.01
        slots = 60_000 * found.shares["large"] + 600 * found.shares["hot"]
        assert slots <= point.slots * (1 + 1e-9)  # all rows have the same length
        assert found.after.demand.step.lookups == 500
        assert found.after.demand.step.unique_rows == pytest.approx(of.unique_rows)
        assert found.is_worth_it == (found.gain >= 0.05)
        assert found.shares["hot"] > found.shares["large"]


def test_other_rows_have_to_fit_too(pyramid: Pyramid) -> None:
    """The same tiers, with rows of up to three times the length."""
    load = Load(RowFormat())
    of = model_of(pyramid, load)
    every = dram_for_all(of)
    for bounds in (Bounds(0, every * 1.01, None), Bounds(0, 20 * MIB, of.bytes * SPACE * 1.01)):
        found = {(o.rows.optimizer, o.rows.dtype): o for o in what_if_of(pyramid, load, bounds)}
        assert len(found) == 12
        for rows in (("rowwise-adagrad", "float32"), ("sgd", "float16"), ("sgd", "float32")):
            assert found[rows].step_s is not None
        for rows in (("adam", "float32"), ("adagrad", "float32"), ("adam", "float16")):
            assert found[rows].step_s is None
    assert found["sgd", "float16"].bytes == 60_600 * 512


def what_if_of(pyramid: Pyramid, load: Load, bounds: Bounds) -> Sequence[WhatIf]:
    return advise(pyramid, load, HERE, bounds, Wish()).what_if


def test_nothing_to_divide(pyramid: Pyramid) -> None:
    rows = RowFormat()
    of = model_of(pyramid, Load(rows))
    assert placement(pyramid, of, rows, outlook(of, Sizes(), HERE), HERE) is None
    one = pyramid.of_tables([0])
    only = replace(one, tables={"large": one.tables["large"]}, lookups=one.lookups[:1])
    alone = model_of(only, Load(rows))
    point = outlook(alone, Sizes(0, MIB), HERE)
    assert placement(only, alone, rows, point, HERE) is None
