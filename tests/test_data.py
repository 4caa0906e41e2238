"""The data layer alone: parsing, hashing, crosses, bags, splits and metrics. Needs no engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tiered_emb.data import (
    Bag,
    Cross,
    DataError,
    Spec,
    encode,
    open_data,
    parse_bag,
    parse_cross,
    split_samples,
)
from tiered_emb.data import dataset as dataset_module
from tiered_emb.data.frame import Column, Kind, MemorySource, Source
from tiered_emb.data.hashing import cross_keys, hashed_rows, number_keys, text_keys
from tiered_emb.models.metrics import auc, logloss


def ints(values: object, valid: object = None) -> Column:
    mask = None if valid is None else np.asarray(valid, dtype=bool)
    return Column(Kind.INTEGER, np.asarray(values, dtype=np.int64), mask)


def lists(values: list[list[int]]) -> Column:
    offsets = np.cumsum([0, *[len(v) for v in values]])
    flat = np.array([x for v in values for x in v], dtype=np.int64)
    return Column(Kind.INTEGER, flat, None, offsets)


# ---- Metrics


def test_auc_equals_the_share_of_pairs_ranked_right() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        n = int(rng.integers(2, 60))
        labels = rng.integers(0, 2, n)
        scores = np.round(rng.normal(size=n), 1)  # many ties
        positive, negative = scores[labels == 1], scores[labels == 0]
        if len(positive) == 0 or len(negative) == 0:
            assert np.isnan(auc(labels, scores))
            continue
        wins = (positive[:, None] > negative).sum() + 0.5 * (positive[:, None] == negative).sum()
        assert auc(labels, scores) == pytest.approx(wins / (len(positive) * len(negative)))


def test_logloss_is_cross_entropy_and_survives_large_logits() -> None:
    labels, logits = np.array([0, 1, 1]), np.array([0.5, -1.0, 2.0])
    p = 1 / (1 + np.exp(-logits))
    expected = -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    assert logloss(labels, logits) == pytest.approx(expected)
    assert logloss(np.array([1, 0]), np.array([1000.0, 1000.0])) == pytest.approx(500.0)


# ---- Keys and rows


def test_keys_are_fixed_for_ever() -> None:
    """Row numbers of trained tables depend on these values: they must never change."""
    assert text_keys(["", "abc"]).tolist() == [13020603013274838756, 6455300059550759896]
    assert number_keys(np.array([0, 1, -1])).tolist() == [
        16294208416658607535,  # SplitMix64's first output from seed 0
        10451216379200822465,
        16490336266968443936,
    ]
    pair = cross_keys([number_keys(np.array([1])), number_keys(np.array([2]))])
    assert hashed_rows(pair, "a*b", 1000).tolist() == [862]


def test_keys_do_not_depend_on_the_width_of_integers() -> None:
    wide = number_keys(np.array([3, 200], dtype=np.int64))
    assert (wide == number_keys(np.array([3, 200], dtype=np.uint8))).all()
    assert (wide == number_keys(np.array([3, 200], dtype=np.uint64))).all()


def test_a_cross_depends_on_order_and_on_every_part() -> None:
    a, b = number_keys(np.arange(100)), number_keys(np.arange(100, 200))
    assert (cross_keys([a, b]) != cross_keys([b, a])).all()
    assert len(np.unique(cross_keys([np.repeat(a, 100), np.tile(b, 100)]))) == 10_000


def test_hashed_rows_spread_evenly_and_differ_between_tables() -> None:
    keys = number_keys(np.arange(100_000))
    rows = hashed_rows(keys, "t", 100)
    counts = np.bincount(rows, minlength=100)
    assert counts.min() > 800
    assert counts.max() < 1200
    assert (rows != hashed_rows(keys, "u", 100)).mean() > 0.9
    # Neighbours do not stay neighbours.
    assert (np.abs(np.diff(hashed_rows(keys, "t", 1_000_000))) < 32).mean() < 0.001


# ---- Parquet and features


def small_table() -> pa.Table:
    return pa.table(
        {
            "label": [0, 1, 1, 0],
            "x": [0.5, None, 1.5, float("inf")],
            "color": ["red", "blue", None, "red"],
            "brand": pa.array(["a", "b", "a", "c"]).dictionary_encode(),
            "shop": pa.array([9, 9, 7, None], pa.uint16()),
            "when": pa.array([1, 2, 3, 4], pa.timestamp("us")),
            "tags": [[1, 2], [], None, [2]],
            "words": [["u"], ["v", "u"], [], ["w"]],
            "point": [{"a": 1}] * 4,
        }
    )


def test_parquet_columns_are_used_by_type(tmp_path: Path) -> None:
    pq.write_table(small_table(), tmp_path / "t.parquet")
    source, spec = open_data(str(tmp_path / "t.parquet"), time="when")
    assert spec.dense == ("x",)
    assert spec.categorical == ("color", "brand", "shop")
    assert spec.multihot == ("tags", "words")
    data = encode(source, spec)
    # A missing value is a value of its own.
    assert data.tables == {"color": 3, "brand": 3, "shop": 3, "tags": 2, "words": 3}
    ids, offsets = data.features["tags"].take(np.array([3, 0, 1]))
    assert offsets is not None
    assert offsets.tolist() == [0, 1, 3]
    assert ids[0] in ids[1:].tolist()
    color, _ = data.features["color"].take(np.arange(4))
    assert color[0] == color[3]
    assert len(set(color.tolist())) == 3
    assert np.isnan(data.dense[[1, 3], 0]).all()


def test_parquet_missing_columns_and_wrong_uses(tmp_path: Path) -> None:
    path = str(tmp_path / "t.parquet")
    pq.write_table(small_table(), path)
    with pytest.raises(DataError, match="no column 'click'; it has label, x, color"):
        open_data(path, label="click")
    source, spec = open_data(path)
    for wrong, message in [
        (Spec("label", categorical=("nope",)), "no column 'nope'"),
        (Spec("label", dense=("color",), categorical=("shop",)), "'color' must be a column of num"),
        (Spec("label", categorical=("tags",)), "list column 'tags' can only be multi-hot"),
        (Spec("label", multihot=("shop",)), "multi-hot column 'shop' must be a list"),
        (Spec("label", crosses=(Cross(("tags", "words")),)), "more than one list column"),
        (Spec("color", categorical=("shop",)), "label column 'color' must be a column of num"),
        (Spec("label", dense=("x",)), "nothing to embed"),
        (Spec("shop", categorical=("color",)), "label 'shop' at row 0 is 9; expected 0 or 1"),
    ]:
        with pytest.raises(DataError, match=message):
            encode(source, wrong)
    assert encode(source, spec).labels.tolist() == [0, 1, 1, 0]


def test_unreadable_input_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file, and not a named data set"):
        open_data(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="is a directory"):
        open_data(str(tmp_path))
    (tmp_path / "t.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        open_data(str(tmp_path / "t.parquet"))


def test_hashed_above_hash_rows_exact_below() -> None:
    frame = {"label": ints([0, 1] * 50), "id": ints(np.arange(100))}
    exact = encode(MemorySource("m", frame), Spec("label", categorical=("id",), hash_rows=100))
    ids, _ = exact.features["id"].take(np.arange(100))
    assert sorted(ids.tolist()) == list(range(100))
    assert (np.abs(np.diff(ids)) > 1).mean() > 0.8  # the original order is gone
    hashed = encode(MemorySource("m", frame), Spec("label", categorical=("id",), hash_rows=99))
    assert hashed.tables == {"id": 99}


def test_encoding_does_not_depend_on_the_chunks(tmp_path: Path) -> None:
    pq.write_table(small_table(), tmp_path / "t.parquet", row_group_size=4)
    pq.write_table(small_table(), tmp_path / "u.parquet", row_group_size=1)
    cross = (Cross(("shop", "tags"), 50), Cross(("color", "shop"), 50))
    encoded = []
    for name in ("t", "u"):
        source, _ = open_data(str(tmp_path / f"{name}.parquet"))
        encoded.append(encode(source, Spec("label", categorical=("color",), crosses=cross)))
    for name, feature in encoded[0].features.items():
        ours, theirs = feature.take(np.arange(4)), encoded[1].features[name].take(np.arange(4))
        assert np.array_equal(ours[0], theirs[0])
        assert (ours[1] is None) == (theirs[1] is None)
        if ours[1] is not None:
            assert np.array_equal(ours[1], theirs[1])


def test_cross_of_a_scalar_with_a_list_is_a_bag() -> None:
    frame = {
        "label": ints([0, 1, 1]),
        "user": ints([5, 6, 5]),
        "genres": lists([[1, 2], [], [2]]),
    }
    spec = Spec("label", crosses=(Cross(("user", "genres"), 10_000),))
    ids, offsets = encode(MemorySource("m", frame), spec).features["user*genres"].take(np.arange(3))
    assert offsets is not None
    assert offsets.tolist() == [0, 2, 2]
    assert len(ids) == 3
    assert ids[1] == ids[2]  # user 5, genre 2, in both samples
    assert ids[0] != ids[1]


def test_bag_holds_the_other_rows_of_the_group_without_the_samples_own_id() -> None:
    frame = {
        "label": ints([0, 1, 255, 1, 0, 1]),
        "customer": ints([1, 1, 1, 1, 2, 2]),
        "sku": ints([10, 11, 12, 10, 10, 13]),
        "invoice": ints([100, 100, 100, 100, 200, 300]),
    }
    bag = Bag(("customer", "sku"), "invoice", 100_000)
    cross = Cross(("customer", "sku"), 100_000)
    spec = Spec("label", crosses=(cross,), bags=(bag,), unlabelled=255)
    data = encode(MemorySource("m", frame), spec)
    own, _ = data.features["customer*sku"].take(np.arange(6))
    ids, offsets = data.features["customer*sku@invoice"].take(np.arange(6))
    assert offsets is not None
    bags = [sorted(bag.tolist()) for bag in np.split(ids, offsets[1:])]
    assert [len(bag) for bag in bags] == [2, 3, 3, 2, 0, 0]
    assert bags[0] == bags[3]  # the two lines of sku 10 see skus 11 and 12
    assert own[0] == own[3]
    eleven, twelve = bags[0]
    ten = bags[1][0] if bags[1].count(bags[1][0]) == 2 else bags[1][-1]
    assert sorted([sorted(bags[1]), sorted(bags[2])]) == sorted(
        [sorted([ten, ten, eleven]), sorted([ten, ten, twelve])]
    )
    assert data.labels.tolist() == [0, 1, -1, 1, 0, 1]


def test_bag_takes_the_nearest_rows_of_a_long_group() -> None:
    n = 100
    frame = {"label": ints(np.arange(n) % 2), "sku": ints(np.arange(n)), "g": ints(np.zeros(n))}
    spec = Spec("label", bags=(Bag(("sku",), "g", 1_000_000, length_max=10),))
    feature = encode(MemorySource("m", frame), spec).features["sku@g"]
    sku_of = {int(i): k for k, i in enumerate(feature.ids)}  # type: ignore[attr-defined]
    ids, offsets = feature.take(np.array([0, 50, 99]))
    assert offsets is not None
    found = [[sku_of[int(i)] for i in bag] for bag in np.split(ids, offsets[1:])]
    assert found[0] == list(range(1, 11))
    assert found[1] == [*range(45, 50), *range(51, 56)]
    assert found[2] == list(range(89, 99))


def test_parsing_of_crosses_and_bags() -> None:
    assert parse_cross("a,b") == Cross(("a", "b"))
    assert parse_cross("a,b,c:500") == Cross(("a", "b", "c"), 500)
    assert parse_bag("a,b:g:70") == Bag(("a", "b"), "g", 70)
    assert parse_bag("a:g") == Bag(("a",), "g")
    for wrong in ("a", "a,b:x", "a,b:0", ":5"):
        with pytest.raises(DataError):
            parse_cross(wrong)
    for wrong in ("a", "a:", ":g", "a:g:many"):
        with pytest.raises(DataError):
            parse_bag(wrong)


# ---- Splits and batches


def timed(times: list[int], labels: list[int] | None = None) -> MemorySource:
    n = len(times)
    frame = {
        "label": ints(labels if labels is not None else np.arange(n) % 2),
        "id": ints(np.arange(n)),
        "t": ints(times),
    }
    return MemorySource("m", frame)


def test_split_by_time_is_the_latest_part_and_divides_no_instant() -> None:
    times = [5, 1, 9, 9, 2, 9, 3, 4, 9, 6]
    data = encode(timed(times), Spec("label", categorical=("id",), time="t"))
    split = split_samples(data, "time", 0.2, seed=0)
    assert [times[i] for i in split.train] == [1, 2, 3, 4, 5, 6]
    assert sorted(split.test.tolist()) == [2, 3, 5, 8]
    later = split_samples(data, "time", 0.2, seed=0, train_from=3)
    assert [times[i] for i in later.train] == [3, 4, 5, 6]
    unordered = encode(timed(times), Spec("label", categorical=("id",)))
    assert split_samples(unordered, "time", 0.2, seed=0).test.tolist() == [8, 9]


def test_random_split_is_seeded_and_keeps_groups_whole() -> None:
    n = 1000
    frame = {
        "label": ints(np.arange(n) % 2),
        "sku": ints(np.arange(n) % 37),
        "invoice": ints(np.arange(n) // 5),
    }
    spec = Spec("label", categorical=("sku",), bags=(Bag(("sku",), "invoice", 50),))
    data = encode(MemorySource("m", frame), spec)
    split = split_samples(data, "random", 0.2, seed=3)
    assert set(split.train // 5) & set(split.test // 5) == set()
    assert 120 < len(split.test) < 280
    assert sorted([*split.train, *split.test]) == list(range(n))
    assert np.array_equal(split.test, split_samples(data, "random", 0.2, seed=3).test)
    assert not np.array_equal(split.test, split_samples(data, "random", 0.2, seed=4).test)


def test_splits_that_leave_nothing_are_errors() -> None:
    data = encode(timed([1, 2, 3, 4]), Spec("label", categorical=("id",), time="t"))
    with pytest.raises(DataError, match="no samples left for the training set"):
        split_samples(data, "time", 0.5, 0, train_from=100)
    with pytest.raises(DataError, match="between 0 and 1"):
        split_samples(data, "time", 1.0, 0)
    same = encode(timed([1, 2, 3], [0, 1, 1]), Spec("label", categorical=("id",), time="t"))
    with pytest.raises(DataError, match="all labels of the test set are alike"):
        split_samples(same, "time", 0.4, 0)


def test_batches_cover_every_sample_once_and_shuffle_by_seed() -> None:
    data = encode(timed(list(range(103))), Spec("label", categorical=("id",), time="t"))
    split = split_samples(data, "time", 0.2, 0)
    plain = [b.sparse["id"] for b in split.batches(split.train, 10)]
    assert [len(b) for b in plain] == [10] * 8 + [2]
    shuffled = [b.sparse["id"] for b in split.batches(split.train, 10, (7, 0))]
    again = [b.sparse["id"] for b in split.batches(split.train, 10, (7, 0))]
    other = [b.sparse["id"] for b in split.batches(split.train, 10, (7, 1))]
    assert all((a == b).all() for a, b in zip(shuffled, again, strict=True))
    assert not all((a == b).all() for a, b in zip(shuffled, other, strict=True))
    flat = [sorted(int(i) for b in run for i in b) for run in (plain, shuffled)]
    assert flat[0] == flat[1]


def test_dense_features_are_standardised_and_missing_values_become_the_mean() -> None:
    x = Column(Kind.FLOAT, np.array([1.0, 3.0, 0.0, 100.0]), np.array([True, True, False, True]))
    frame = {"label": ints([0, 1, 0, 1]), "id": ints([1, 2, 3, 4]), "x": x}
    data = encode(MemorySource("m", frame), Spec("label", dense=("x",), categorical=("id",)))
    split = split_samples(data, "time", 0.5, 0)
    assert split.batch(split.train).dense[:, 0].tolist() == [-1.0, 1.0]
    assert split.batch(split.test).dense[:, 0].tolist() == [0.0, 98.0]


def test_large_arrays_go_to_a_file_and_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "_SPOOL_MEMORY_BYTES", 100)
    spool = dataset_module.Spool(np.int32, width=3)
    parts = [np.arange(k * 3, dtype=np.int32).reshape(k, 3) for k in (0, 5, 20, 1)]
    for part in parts:
        spool.append(part)
    array = spool.array()
    assert isinstance(array, np.memmap)
    assert np.array_equal(array, np.concatenate(parts))


# ---- Named data sets


def test_movielens_is_read_without_importing_recbole(tmp_path: Path) -> None:
    code = (
        "import sys; from tiered_emb.data import open_data; s, _ = open_data('movielens-100k');"
        "assert 'recbole' not in sys.modules; print(len(s.frame['label']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    if "pip install --no-deps recbole==1.2.1" in result.stderr:
        pytest.skip("recbole is not installed: pip install --no-deps recbole==1.2.1")
    assert result.stdout.strip() == "100000", result.stderr


def test_movielens_features() -> None:
    source, spec = open_movielens()
    data = encode(source, spec)
    assert data.tables["user"] == 943
    assert data.tables["item"] == 1682
    assert data.tables["genres"] == 19
    assert data.tables["occupation"] == 21
    assert 0.55 < np.mean(data.labels) < 0.56
    _, offsets = data.features["genres"].take(np.arange(1000))
    assert offsets is not None
    assert 1.5 < np.diff(offsets).mean() < 3
    split = split_samples(data, "time", 0.2, 0)
    assert data.time is not None
    assert data.time[split.train].max() < data.time[split.test].min()


def open_movielens() -> tuple[Source, Spec]:
    try:
        return open_data("movielens-100k")
    except DataError as error:
        pytest.skip(str(error))


def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiered_emb.data import named

    with pytest.raises(DataError, match=r"install them: pip install --no-deps recbole==1\.2\.1"):
        named.package_file("no-such-package", "nothing/here", named._RECBOLE_HINT)
