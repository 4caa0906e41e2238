"""Streams of Criteo batches: the same from every form of file, with any number of workers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from criteo_files import log_lines, write_log
from torch.utils.data import DataLoader

from tiered_emb.data import Batch, CriteoStream, DataError, encode, open_data
from tiered_emb.data import criteo as criteo_module
from tiered_emb.data import criteo_stream as stream_module
from tiered_emb.data.criteo_convert import ConvertOptions, convert
from tiered_emb.data.criteo_format import CATEGORIES
from tiered_emb.data.spec import with_hash_rows

LINES = log_lines(700)
ROWS = [100 + table for table in range(26)]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteo_module, "_BLOCK_BYTES", 16384)  # some 70 lines
    monkeypatch.setattr(stream_module, "_PARQUET_ROWS", 60)


@pytest.fixture
def days(tmp_path: Path) -> list[Path]:
    parts = LINES[:300], LINES[300:310], LINES[310:]
    return [write_log(tmp_path / f"day_{i}", part) for i, part in enumerate(parts)]


def assert_same(ours: Iterable[Batch], theirs: Iterable[Batch]) -> None:
    for one, two in zip(ours, theirs, strict=True):
        assert torch.equal(one.dense, two.dense)
        assert torch.equal(one.labels, two.labels)
        assert one.sparse.keys() == two.sparse.keys()
        for name in CATEGORIES:
            assert torch.equal(one.sparse[name], two.sparse[name])  # type: ignore[arg-type]


def samples(batches: Iterable[Batch]) -> list[tuple[float, ...]]:
    """Each sample as a tuple of all it has."""
    found = []
    for batch in batches:
        ids = torch.stack([batch.sparse[name] for name in CATEGORIES], dim=1)  # type: ignore[misc]
        rows = torch.cat([batch.labels[:, None], batch.dense, ids], dim=1)
        found += [tuple(row) for row in rows.tolist()]
    return found


def test_batches_hold_the_lines_in_order(days: list[Path]) -> None:
    stream = CriteoStream(days, 64, ROWS)
    batches = list(stream)
    assert [len(batch.labels) for batch in batches] == [64] * 10 + [60]
    fields = [line.split("\t") for line in LINES]
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.tolist() == [float(f[0]) for f in fields]
    dense = torch.cat([batch.dense for batch in batches])
    expected = [[math.log1p(max(int(v or 0), 0)) for v in f[1:14]] for f in fields]
    assert torch.equal(dense, torch.tensor(expected))
    assert batches[0].sparse["C7"].dtype == torch.int64  # type: ignore[union-attr]
    assert stream.tables == {f"C{i}": 99 + i for i in range(1, 27)}


def test_the_same_whatever_the_form_and_the_workers(days: list[Path], tmp_path: Path) -> None:
    expected = list(CriteoStream(days, 100, ROWS))
    zipped = write_log(tmp_path / "all.gz", LINES)
    parquet, tail = tmp_path / "head.parquet", tmp_path / "tail.parquet"
    convert(days[:2], parquet, ConvertOptions(group_rows=128))
    convert(days[2:], tail)
    for paths in (days, zipped, [parquet, tail], [parquet, days[2]]):
        for workers in (1, 3):
            assert_same(CriteoStream(paths, 100, ROWS, workers=workers), expected)
    again = CriteoStream(str(zipped), 100, dict(zip(CATEGORIES, ROWS, strict=True)))
    assert_same(again, expected)
    assert_same(again, expected)  # a second pass


def test_ids_are_those_of_train(tmp_path: Path) -> None:
    """Whether `tiered-emb train` reads the log or the Parquet file made from it."""
    tsv, parquet = write_log(tmp_path / "log.tsv", LINES), tmp_path / "log.parquet"
    convert([tsv], parquet)
    batches = list(CriteoStream(tsv, 50, 500))
    for path in (tsv, parquet):
        source, spec = open_data(str(path))
        data = encode(source, with_hash_rows(spec, 500))
        assert data.tables == dict.fromkeys(CATEGORIES, 500)
        for name in CATEGORIES:
            ids, _ = data.features[name].take(np.arange(len(LINES)))
            ours = torch.cat([batch.sparse[name] for batch in batches])  # type: ignore[misc]
            assert ours.tolist() == ids.tolist()
        assert data.dense.shape == (len(LINES), 13)
    with pytest.raises(DataError, match="clicked"):  # a label of one's own is not passed over
        open_data(str(parquet), label="clicked")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("form", ["three files", "one file", "gz", "parquet"])
def test_worker_processes_share_the_samples(days: list[Path], tmp_path: Path, form: str) -> None:
    """By files, or by blocks of one file; each sample once."""
    paths = days
    if form != "three files":
        paths = [write_log(tmp_path / f"all.{form}".removesuffix(".one file"), LINES)]
    if form == "parquet":
        convert(days, paths[0])
    stream = CriteoStream(paths, 32, 50)
    loader = DataLoader(stream, batch_size=None, num_workers=2, timeout=60)
    assert Counter(samples(loader)) == Counter(samples(stream))


def test_bad_lines_are_named_or_counted(tmp_path: Path) -> None:
    lines = LINES.copy()
    lines[500] = "1\tbroken"
    lines[650] += "\t"
    path = write_log(tmp_path / "day", lines)
    for workers in (1, 3):
        with pytest.raises(DataError, match=r"day:501: 2 fields; expected 40"):
            list(CriteoStream(path, 64, 100, workers=workers))
    stream = CriteoStream(path, 64, 100, skip_bad_lines=True)
    for _ in range(2):
        assert sum(len(batch.labels) for batch in stream) == len(LINES) - 2
        assert stream.bad_lines == 2


def test_a_consumer_may_stop_early(days: list[Path]) -> None:
    batches = iter(CriteoStream(days, 8, 100, workers=2))
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_wrong_arguments_are_data_errors(days: list[Path], tmp_path: Path) -> None:
    for arguments, message in [
        ((tmp_path / "absent", 8, 100), "absent: cannot read: No such file"),
        ((tmp_path, 8, 100), "cannot read: Is a directory"),
        (([], 8, 100), "no files"),
        ((days, 0, 100), "batch_size is 0"),
        ((days, 8, 0), "rows has a 0"),
        ((days, 8, [1, 2]), "rows has 2 numbers; expected 26"),
        ((days, 8, {"C1": 5}), "keys C1 to C26"),
        ((days, 8, 100, 0), "workers is 0"),
    ]:
        with pytest.raises(DataError, match=message):
            CriteoStream(*arguments)  # type: ignore[arg-type]
    pq.write_table(pa.table({"label": [1], "C1": [1]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet: expected integer columns .* has label, C1"):
        CriteoStream(tmp_path / "t.parquet", 8, 100)


def test_parquet_with_another_label_is_a_data_error(days: list[Path], tmp_path: Path) -> None:
    convert(days[:1], tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    table = table.set_column(0, "label", pa.array([2] * len(table), pa.int8()))
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet: row 0 and after: a label is neither"):
        list(CriteoStream(tmp_path / "t.parquet", 8, 100))
