"""The tuner's samples, stack distances and curves, beside what is computed without cleverness."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiered_emb import _core
from tiered_emb.bench.optimum import optimal_misses
from tiered_emb.data.errors import DataError
from tiered_emb.data.hashing import mix64
from tiered_emb.trace.format import TraceTable
from tiered_emb.trace.reader import Trace
from tiered_emb.trace.writer import TraceWriter
from tiered_emb.tuner.cost import RowFormat
from tiered_emb.tuner.curves import MissCurve, lru_curve, optimum_curve, policy_curve, sizes_of
from tiered_emb.tuner.model import pool_of
from tiered_emb.tuner.sample import _SALT, LOOKUPS_MIN, SEGMENTS, Pyramid, take_sample
from tiered_emb.tuner.stack import distance_counts

Batches = Sequence[dict[str, np.ndarray]]


def zipf(rng: np.random.Generator, rows: int, exponent: float) -> Callable[[int], np.ndarray]:
    """Draws ids of a Zipf distribution, whose hot rows lie anywhere."""
    weights = np.arange(1, rows + 1) ** -exponent
    bounds, order = np.cumsum(weights) / weights.sum(), rng.permutation(rows)
    return lambda count: order[
        np.minimum(np.searchsorted(bounds, rng.random(count)), rows - 1)
    ].astype(np.int64)


def trace_of(
    path: Path, tables: dict[str, int], batches: Batches, sample: float = 1.0, dim: int | None = 8
) -> Trace:
    about = {name: TraceTable(rows, dim) for name, rows in tables.items()}
    with TraceWriter(path, about, sample) as writer:
        for number, batch in enumerate(batches):
            for name, ids in batch.items():
                writer.write(number, name, np.asarray(ids, dtype=np.int64))
    return Trace(path)


def zipf_batches(batches: int, lookups: int, seed: int = 3) -> Batches:
    rng = np.random.default_rng(seed)
    a, b = zipf(rng, 40_000, 0.9), zipf(rng, 500, 1.0)
    return [{"a": a(lookups), "b": b(lookups // 4)} for _ in range(batches)]


TABLES = {"a": 40_000, "b": 500}


@pytest.fixture(scope="module")
def zipf_trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """400 batches of 1024 and 256 lookups."""
    path = tmp_path_factory.mktemp("trace") / "trace.parquet"
    return trace_of(path, TABLES, zipf_batches(400, 1024))


@pytest.fixture(scope="module")
def everything(zipf_trace: Trace) -> Pyramid:
    return take_sample(zipf_trace, 1)


@pytest.fixture(scope="module")
def pyramid(zipf_trace: Trace) -> Pyramid:
    """Of five levels or so."""
    return take_sample(zipf_trace, 0.1)


def brute_force(rows: np.ndarray, distinct: int, warm_up: int) -> np.ndarray:
    counts = np.zeros(distinct + 1, dtype=np.int64)
    stack: list[int] = []  # most recent last
    for i, row in enumerate(rows.tolist()):
        distance = 0
        if row in stack:
            distance = len(stack) - stack.index(row)
            stack.remove(row)
        stack.append(row)
        counts[distance] += i >= warm_up
    return counts


@given(
    st.integers(1, 30).flatmap(
        lambda distinct: st.tuples(
            st.just(distinct), st.lists(st.integers(0, distinct - 1), max_size=300)
        )
    ),
    st.integers(0, 40),
)
def test_stack_distances(stream: tuple[int, list[int]], warm_up: int) -> None:
    distinct, ids = stream
    rows = np.array(ids, dtype=np.int64)
    assert (
        distance_counts(rows, distinct, warm_up).tolist()
        == brute_force(rows, distinct, warm_up).tolist()
    )


@pytest.mark.parametrize("distinct", [63, 64, 65, 1500, 2100])
def test_stack_distances_across_words_and_sums(distinct: int) -> None:
    rng = np.random.default_rng(distinct)
    rows = rng.integers(0, distinct, 6000)
    expected = brute_force(rows, distinct, 100)
    assert distance_counts(rows, distinct, 100).tolist() == expected.tolist()


def test_stack_distances_of_cycles() -> None:
    """Each lookup of a cycle has the distance of all rows, in a bitmap of chunks that fills and
    moves together again and again."""
    for distinct in (4096, 4097, 131_072, 140_000):
        rows = np.tile(np.arange(distinct), 6)
        counts = distance_counts(rows, distinct)
        assert (counts[0], counts[distinct]) == (distinct, 5 * distinct)
        assert counts.sum() == len(rows)


def lru_misses(rows: np.ndarray, capacity: int) -> int:
    held: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for row in rows.tolist():
        if row in held:
            held.move_to_end(row)
            continue
        misses += 1
        held[row] = None
        if len(held) > capacity:
            held.popitem(last=False)
    return misses


def test_distances_are_the_hits_of_lru_also_after_the_bitmap_has_moved() -> None:
    draw = zipf(np.random.default_rng(5), 150_000, 0.7)
    rows = draw(620_000)  # more lookups than the bitmap has places
    counts = distance_counts(rows, 150_000)
    for capacity in (63, 64, 4096, 100_000):
        assert len(rows) - counts[1 : capacity + 1].sum() == lru_misses(rows, capacity)


def numbered(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows in the order of their first use, and of each lookup its row's number."""
    distinct, first, numbers = np.unique(rows, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return distinct[order], np.argsort(order)[numbers]


def test_share_1_keeps_everything(zipf_trace: Trace, everything: Pyramid) -> None:
    (level,) = everything.levels
    (whole,) = level
    expected = np.concatenate([
        np.concatenate([batch["a"], batch["b"] + TABLES["a"]])
        for batch in zipf_batches(400, 1024)
    ])  # fmt: skip
    names, numbers = numbered(expected)
    assert whole.rate == 1
    assert whole.rows.tolist() == numbers.tolist()
    assert whole.begins.tolist() == list(range(0, 400 * 1280 + 1, 1280))
    assert (everything.batches, everything.lookups.tolist()) == (400, [400 * 1024, 400 * 256])
    assert everything.lookups_a_batch == 1280
    assert (whole.table_of == (names >= TABLES["a"])).all()
    of_batches = [len(np.unique(part)) for part in np.split(expected, 400)]
    assert everything.rows_of_a_batch() == (np.mean(of_batches), max(of_batches))
    assert everything.rows_seen == len(names)


def test_a_level_has_every_lookup_of_its_rows(zipf_trace: Trace, pyramid: Pyramid) -> None:
    """In order, within its stretch of each segment."""
    expected = np.concatenate([piece.row for piece in zipf_trace.pieces()])
    first_row = np.array([0, TABLES["a"]])
    assert len(pyramid.levels) > 2
    for depth, level in enumerate(pyramid.levels):
        is_last = depth == len(pyramid.levels) - 1
        assert len(level) == (1 if is_last else SEGMENTS)
        kept = 0
        for number, sample in enumerate(level):
            kept += len(sample.rows)
            assert sample.rate == 0.5 ** (len(pyramid.levels) - 1 if is_last else depth)
            assert sample.begins[-1] == len(sample.rows)
            end = zipf_trace.lookups * (number + 1) // (1 if is_last else SEGMENTS)
            begin = end - int(sample.lookups.sum())  # its lookups are the last of its segment
            stretch = expected[begin:end]
            assert (begin, end) == (0, len(expected)) or is_last is False
            tables = np.searchsorted(first_row, stretch, "right") - 1
            assert sample.lookups.tolist() == np.bincount(tables, minlength=2).tolist()
            mixed = mix64(stretch.astype(np.uint64) ^ np.uint64(_SALT))
            chosen = stretch[mixed < sample.rate * 2.0**64]
            rows, numbers = numbered(chosen)
            assert sample.rows.tolist() == numbers.tolist()
            assert (sample.table_of == np.searchsorted(first_row, rows, "right") - 1).all()
        lookups = sum(float(sample.lookups.sum()) for sample in level)
        assert kept == pytest.approx(lookups * level[0].rate, rel=0.5)
    assert pyramid.lookups.tolist() == [400 * 1024, 400 * 256]


def test_a_level_lasts_twice_as_long_as_the_one_before(pyramid: Pyramid) -> None:
    lengths = [sum(s.lookups.sum() for s in level) for level in pyramid.levels]
    for shorter, longer in itertools.pairwise(lengths[:-1]):
        assert longer == pytest.approx(2 * shorter, rel=0.01)
    assert lengths[-1] == 400 * 1280


def test_rows_of_a_batch_are_those_of_all_rows(everything: Pyramid, pyramid: Pyramid) -> None:
    exact, most = everything.rows_of_a_batch()
    mean, largest = pyramid.rows_of_a_batch()
    assert mean == pytest.approx(exact, rel=0.02)
    assert 0.95 * most <= largest <= most
    for table in (0, 1):
        part, whole = pyramid.of_tables([table]), everything.of_tables([table])
        assert part.rows_of_a_batch()[0] == pytest.approx(whole.rows_of_a_batch()[0], rel=0.03)
        assert part.lookups_a_batch == whole.lookups_a_batch == (1024, 256)[table]


def test_a_trace_that_was_sampled_scales(tmp_path: Path, everything: Pyramid) -> None:
    trace = trace_of(tmp_path / "t.parquet", TABLES, zipf_batches(400, 1024), sample=0.25)
    assert trace.lookups < 400 * 1280 * 0.6
    for share in (1, 0.2):
        found = take_sample(trace, share)
        assert found.levels[0][0].rate == 0.25
        assert found.lookups_a_batch == pytest.approx(1280, rel=0.35)
        assert found.rows_seen == pytest.approx(everything.rows_seen, rel=0.05)
        sizes = np.array([2_000.0, 5_000, 15_000])
        at = policy_curve(found, sizes, with_error=False).misses * found.lookups_a_batch
        expected = policy_curve(everything, sizes).misses * everything.lookups_a_batch
        assert at == pytest.approx(expected, rel=0.12)


def test_strange_traces(tmp_path: Path) -> None:
    """One id; one batch; batches of different lengths; a table that is never looked up, or has no
    rows: figures, and no division by zero."""
    of = {"a": 50, "none": 0, "idle": 10**12}
    lengths = (1, 500, 3, 0, 70)
    cases: dict[str, Batches] = {
        "one id": [{"a": np.array([7])} for _ in range(40)],
        "one lookup": [{"a": np.array([7])}],
        "one batch": [{"a": np.arange(50)}],
        "lengths": [{"a": np.arange(n) % 50} for n in lengths * 30],
    }
    for name, batches in cases.items():
        trace = trace_of(tmp_path / f"{name}.parquet", of, batches)
        for warm_up in (0, 0.5):
            found = take_sample(trace, warm_up=warm_up)
            assert found.lookups.tolist() == [sum(len(b["a"]) for b in batches), 0, 0], name
            for tables in (["a", "none", "idle"], ["idle"], ["none"]):
                pool = pool_of(found, tables, 8, RowFormat(), (16,))
                assert pool.rows == sum(of[t] for t in tables)
                assert pool.unique_rows == (found.rows_of_a_batch()[0] if "a" in tables else 0)
                for slots in (0, 1, 30, 10**6):
                    assert 0 <= pool.misses(slots, 16) <= pool.unique_rows
    lengths_found = take_sample(Trace(tmp_path / "lengths.parquet"), 1)
    assert lengths_found.batches == 150  # one of five has no lookups, and is a batch all the same
    assert lengths_found.rows_of_a_batch() == ((1 + 50 + 3 + 0 + 50) / 5, 50)


def test_warm_up_is_counted_in_lookups(tmp_path: Path) -> None:
    """Where later batches are longer, a miss a lookup is still one a lookup."""
    ids = np.arange(11_000)
    batches = [{"a": part} for part in [*np.split(ids[:1000], 50), *np.split(ids[1000:], 50)]]
    trace = trace_of(tmp_path / "t.parquet", {"a": 11_000}, batches)
    found = take_sample(trace, 1, warm_up=0.5)
    assert found.whole.counted_lookups == 10_000
    assert lru_curve(found, np.array([500.0])).misses.tolist() == [1.0]


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_shares_that_are_none(zipf_trace: Trace, share: float) -> None:
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got "):
        take_sample(zipf_trace, share)
    with pytest.raises(ValueError, match=r"warm_up must be in \[0, 1\)"):
        take_sample(zipf_trace, 1, warm_up=1.0)


def test_a_share_that_takes_no_row(zipf_trace: Trace) -> None:
    with pytest.raises(DataError, match="none of its rows was sampled; take a larger share"):
        take_sample(zipf_trace, 1e-300)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"batch": [], "id": []}, "there are no lookups in it"),
        ({"batch": [1, 0], "id": [0, 1]}, "batch 0 comes after batch 1"),
        ({"batch": [0, 0], "id": [0, -1]}, "id -1 is not in"),
    ],
)
def test_traces_that_are_none(tmp_path: Path, columns: dict[str, list[int]], told: str) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({k: pa.array(v, pa.int64()) for k, v in columns.items()}), path)
    with pytest.raises(DataError, match=told):
        take_sample(Trace(path))


def test_an_id_beyond_its_table(tmp_path: Path) -> None:
    trace = trace_of(tmp_path / "t.parquet", {"a": 10}, [{"a": np.array([3, 10])}])
    with pytest.raises(DataError, match=r"lookup 1: table 'a': id 10 is not in \[0, 10\)"):
        take_sample(trace)


SIZES = np.array([1500.0, 3000, 6000, 12_000, 24_000, 40_500])


def test_curves_of_everything_are_those_of_a_simulation(everything: Pyramid) -> None:
    rows = np.concatenate([s.rows for s in everything.levels[0]])
    distinct = int(rows.max()) + 1
    for policy in ("lookahead", "lru"):
        for window in (0, 16):
            found = policy_curve(everything, SIZES, policy, window=window)
            for size, misses in zip(SIZES, found.misses, strict=True):
                counts = _core.simulate_cache(
                    policy, int(size), distinct, rows.ctypes.data, len(rows), 1280,
                    1280 * window, 0,
                )  # fmt: skip
                assert misses * len(rows) == pytest.approx(
                    counts["misses"] + counts["first_touches"]
                )
            assert (found.error == 0).all()
    optimum = optimum_curve(everything, SIZES)
    for size, misses in zip(SIZES, optimum.misses, strict=True):
        assert misses * len(rows) == pytest.approx(
            sum(optimal_misses(rows, distinct, int(size), 1280, 0))
        )


def test_the_lru_curve_is_that_of_the_cores_lru_with_batches_of_one(everything: Pyramid) -> None:
    part = everything.of_tables([1])
    rows = part.whole.rows
    sizes = np.array([1.0, 2, 10, 63, 64, 65, 200, 500])
    found = lru_curve(part, sizes)
    for size, misses in zip(sizes, found.misses, strict=True):
        counts = _core.simulate_cache(
            "lru", int(size), 500, rows.ctypes.data, len(rows), 1, 0, 0
        )  # fmt: skip
        assert misses * len(rows) == pytest.approx(counts["misses"] + counts["first_touches"])


def test_sampled_curves_are_near_the_true_ones(everything: Pyramid, pyramid: Pyramid) -> None:
    """What comes for the first time is set aside: small caches are simulated on stretches."""
    warm = replace(everything, levels=[[replace(everything.whole, warm_up=200)]])
    sampled = replace(
        pyramid,
        levels=[*pyramid.levels[:-1], [replace(pyramid.whole, warm_up=200)]],
    )
    for curve in (lru_curve, optimum_curve, policy_curve):
        true, found = curve(warm, SIZES), curve(sampled, SIZES)
        assert found.misses == pytest.approx(true.misses, abs=0.03)
        assert (found.error < 0.03).all()
        assert found.error[0] > 0
        assert (np.diff(found.misses) <= 0).all()


def test_no_policy_misses_less_than_the_optimum(pyramid: Pyramid) -> None:
    sizes = sizes_of(pyramid)
    assert (np.diff(sizes) > 0).all()
    assert sizes[-1] == pytest.approx(pyramid.rows_seen, abs=1)
    best = optimum_curve(pyramid, sizes).misses
    for policy in ("lookahead", "lru", "lfu", "s3fifo"):
        found = policy_curve(pyramid, sizes, policy, with_error=False).misses
        assert (found >= best - 0.005).all()
        assert (np.diff(found) <= 0).all()
        assert found[-1] == pytest.approx(best[-1], abs=0.005)  # all fits: first lookups alone


def test_sizes_below_a_batch_miss_all_of_it(everything: Pyramid) -> None:
    expected = everything.rows_of_a_batch()[0] / everything.lookups_a_batch
    for curve in (policy_curve, optimum_curve):
        assert curve(everything, np.array([2.0, 20.0])).misses == pytest.approx(expected)


def test_a_small_table_has_a_curve_of_its_own_where_its_rows_are_not_sampled(
    tmp_path: Path,
) -> None:
    """All levels but the first few may be without a row of it."""
    rng = np.random.default_rng(2)
    draw = zipf(rng, 100_000, 0.6)
    batches = [{"a": draw(2000), "b": rng.integers(0, 6, 200)} for _ in range(400)]
    trace = trace_of(tmp_path / "t.parquet", {"a": 100_000, "b": 6}, batches)
    found = take_sample(trace, 0.05)
    assert len(found.levels) == 6
    part = found.of_tables([1])
    assert part.rows_seen == 6
    assert part.rows_of_a_batch() == (6, 6)
    (size,) = sizes_of(part)
    assert size == 6
    assert policy_curve(part, np.array([6.0])).misses.tolist() == [0]  # they have come before
    pool = pool_of(found, ["b"], 8, RowFormat(), (16,))
    assert (pool.lookups, pool.unique_rows, pool.misses(6, 16)) == (200, 6, 0)
    assert pool.misses(2, 16) <= 6


def test_between_sizes() -> None:
    curve = MissCurve(np.array([2.0, 8.0]), np.array([0.5, 0.1]), np.array([0.02, 0.0]))
    assert [curve.at(rows) for rows in (0, 1, 2, 4, 8, 100)] == pytest.approx(
        [0.5, 0.5, 0.5, 0.3, 0.1, 0.1]
    )
    assert curve.error_at(4) == pytest.approx(0.01)


def test_batches_of_which_nothing_was_recorded_count(tmp_path: Path) -> None:
    """A trace of a thousandth of the rows tells as many lookups a step as one of all."""
    rng = np.random.default_rng(0)
    for sample, near in ((1.0, 1e-3), (0.01, 0.1), (0.003, 0.2)):
        path = tmp_path / f"{sample}.parquet"
        with TraceWriter(path, {"t": TraceTable(100_000, 8)}, sample) as writer:
            for number in range(3000):
                writer.write(number, "t", rng.integers(0, 100_000, 64))
        found = take_sample(Trace(path), 1.0)
        assert found.lookups_a_batch == pytest.approx(64, rel=near)
        assert found.rows_of_a_batch()[0] == pytest.approx(64, rel=near)


def test_a_trace_of_one_row_needs_no_luck(tmp_path: Path) -> None:
    ids, unlucky = np.zeros(600_000, dtype=np.int64), 0
    for row in range(5):
        path = tmp_path / f"{row}.parquet"
        with TraceWriter(path, {"t": TraceTable(5, 8)}) as writer:
            for batch in range(4):
                writer.write(batch, "t", ids[:150_000] + row)
        assert len(take_sample(Trace(path)).whole.table_of) == 1
        with suppress(DataError):
            take_sample(Trace(path), LOOKUPS_MIN / 600_000)  # as by default at first
            continue
        unlucky += 1
    assert 0 < unlucky < 5


def test_batches_that_are_numbered_far_apart_are_refused(tmp_path: Path) -> None:
    for sample, apart, rows in ((1.0, 70, 50), (0.01, 10**9, 900)):
        path = tmp_path / f"{sample}.parquet"
        with TraceWriter(path, {"t": TraceTable(1000, 8)}, sample) as writer:
            for number in range(40):
                writer.write(number * apart, "t", np.arange(rows) + number)
        with pytest.raises(DataError, match="numbers batches one after another"):
            take_sample(Trace(path), 1)
