"""Traces: what is recorded of models and data files, and what is said of files that are none."""

from __future__ import annotations

import copy
import errno
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from trace_files import lookups_of, read, write

import tiered_emb as te
from tiered_emb.data.errors import DataError
from tiered_emb.models.dlrm import DLRM
from tiered_emb.models.peer import BagCollection
from tiered_emb.trace import reader, spool, writer
from tiered_emb.trace.format import TraceTable
from tiered_emb.trace.reader import Trace
from tiered_emb.trace.writer import TraceWriter


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_model_is_recorded_batch_by_batch(tmp_path: Path, form: str) -> None:
    tables = te.TieredEmbeddingCollection(
        [te.Table("user", 100, 8), te.Table("item", 50, 4, padding_idx=7)],
        optimizer=te.optim.RowwiseAdagrad(lr=0.1),
    )
    path = tmp_path / f"trace.{form}"
    bags = (torch.tensor([3, 7, 9]), torch.tensor([0, 1]))
    with te.record_trace(tables, path) as trace:
        tables({"user": torch.tensor([5, 5]), "item": bags})["user"].sum().backward()
        with torch.no_grad():
            tables({"item": torch.tensor([[1, 2]], dtype=torch.int32)})
        with pytest.raises(IndexError):
            tables({"user": torch.tensor([100])})
    tables({"user": torch.tensor([1])})  # no longer
    assert (trace.batches, trace.lookups) == (2, 6)
    assert lookups_of(path) == [
        (0, "user", 5), (0, "user", 5), (0, "item", 3), (0, "item", 9),
        (1, "item", 1), (1, "item", 2),
    ]  # fmt: skip
    found = Trace(path)
    assert found.tables == {"user": TraceTable(100, 8, 36), "item": TraceTable(50, 4, 20)}
    assert (found.lookups, found.total_rows, found.sample) == (6, 150, 1.0)
    assert read(found) == ([0, 0, 0, 0, 1, 1], [5, 5, 103, 109, 101, 102])


def test_torch_models_are_recorded_too(tmp_path: Path) -> None:
    """Before they have anything of this package. A call of the model is a batch, though it looks a
    table up twice."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 4, padding_idx=0)
            self.click = DLRM(BagCollection({"a": 30, "b": 40}, 4), ["a", "b"], 4, 0)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            first = self.words(ids).sum()
            second = self.words(input=ids + 1).sum()
            ones = torch.zeros(len(ids), 0)
            return first + second + self.click(ones, {"a": ids, "b": ids}).sum()

    model, path = Twice(), tmp_path / "trace.parquet"
    with te.record_trace(model, path):
        model(torch.tensor([0, 3]))
        with pytest.raises(IndexError):
            model(torch.tensor([29]))
        model(torch.tensor([1]))
    assert lookups_of(path) == [
        (0, "words", 3), (0, "words", 1), (0, "words", 4),
        (0, "click.embeddings.bags.0", 0), (0, "click.embeddings.bags.0", 3),
        (0, "click.embeddings.bags.1", 0), (0, "click.embeddings.bags.1", 3),
        (1, "words", 1), (1, "words", 2),
        (1, "click.embeddings.bags.0", 1), (1, "click.embeddings.bags.1", 1),
    ]  # fmt: skip
    assert Trace(path).tables["words"] == TraceTable(20, 4)


def test_outside_of_its_model_a_table_is_looked_up_once_a_batch(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.EmbeddingBag(10, 2), "b": te.TieredEmbedding(10, 2)})
    path = tmp_path / "trace.parquet"
    with te.record_trace(model, path) as trace:
        for step in range(3):
            model["a"](torch.tensor([[step]]))
            model["b"](torch.tensor([[step]]))
    assert trace.batches == 3
    assert [batch for batch, _, _ in lookups_of(path)] == [0, 0, 1, 1, 2, 2]


def test_ids_may_change_after_their_lookup(tmp_path: Path) -> None:
    bag, ids = te.TieredEmbedding(1000, 2), torch.zeros(1, 1, dtype=torch.int64)
    with te.record_trace(bag, tmp_path / "t.parquet"):
        for i in range(300):
            ids.fill_(i)
            bag(ids)
    assert [id for _, _, id in lookups_of(tmp_path / "t.parquet")] == list(range(300))


def test_a_trace_is_whole_after_an_exception(tmp_path: Path) -> None:
    bag, path = te.TieredEmbedding(10, 2), tmp_path / "trace.parquet"

    def fail_in_between() -> None:
        with te.record_trace(bag, path):
            bag(torch.tensor([[4]]))
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail_in_between()
    assert lookups_of(path) == [(0, "table", 4)]
    assert not bag._forward_hooks
    assert not bag._forward_pre_hooks


def test_calls_of_a_collection_are_batches_whatever_tables_they_have(tmp_path: Path) -> None:
    tables = te.TieredEmbeddingCollection([te.Table("user", 100, 8), te.Table("item", 50, 4)])
    one, two = {"user": torch.tensor([1])}, {"item": torch.tensor([2]), "user": torch.tensor([3])}
    for model in (tables, nn.ModuleDict({"tables": tables})):
        with te.record_trace(model, tmp_path / "t.parquet"):
            for batch in (one, two, two):
                tables(batch)
        assert lookups_of(tmp_path / "t.parquet") == [
            (0, "user", 1), (1, "item", 2), (1, "user", 3), (2, "item", 2), (2, "user", 3),
        ]  # fmt: skip


def test_ids_behind_the_last_bag_belong_to_none(tmp_path: Path) -> None:
    ids, offsets = torch.tensor([1, 2, 3]), torch.tensor([0, 2])
    for bag in (
        te.TieredEmbedding(9, 2, include_last_offset=True),
        nn.EmbeddingBag(9, 2, include_last_offset=True),
    ):
        with te.record_trace(bag, tmp_path / "t.parquet"):
            bag(ids, offsets)
            bag(input=ids, offsets=offsets)
        assert [id for _, _, id in lookups_of(tmp_path / "t.parquet")] == [1, 2, 1, 2]


@pytest.mark.parametrize("fails", ["_write", "_spooled"])
def test_a_failing_writer_is_told_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    bag, path = te.TieredEmbedding(10, 2), tmp_path / "t.parquet"
    path.write_text("what was there")
    monkeypatch.setattr(writer, "_GROUP_LOOKUPS", 3)
    monkeypatch.setattr(TraceWriter, fails, fail)

    def record() -> None:
        with te.record_trace(bag, path):
            for _ in range(20):
                bag(torch.tensor([[4]]))

    with pytest.raises(OSError, match="disk is full"):
        record()
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]
    assert path.read_text() == "what was there"


@pytest.mark.parametrize("direct", [True, False])
def test_lookups_are_on_the_disk_without_a_name_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EINVAL, "not on this file system")

    if not direct:
        monkeypatch.setattr(spool.fcntl, "fcntl", refuse)
    monkeypatch.setattr(writer, "_GROUP_LOOKUPS", 2000)
    ids = np.arange(9000)
    with TraceWriter(tmp_path / "t.parquet", {"a": TraceTable(9000)}) as to:
        with pytest.raises(TypeError, match="table 'a': ids must be int32 or int64, got int16"):
            to.write(2, "a", ids.astype(np.int16))
        to.write(3, "a", ids)
        to.wait()
        file = os.fstat(to._spool._file.fileno())
        assert file.st_dev == tmp_path.stat().st_dev
        assert file.st_size >= 8000 * 4
        assert list(tmp_path.iterdir()) == []
    assert lookups_of(tmp_path / "t.parquet") == [(3, "a", i) for i in range(9000)]


def test_copies_of_a_model_are_not_recorded(tmp_path: Path) -> None:
    model = nn.Sequential(nn.EmbeddingBag(10, 2))
    with te.record_trace(model, tmp_path / "t.parquet") as trace:
        other = copy.deepcopy(model)
        third = pickle.loads(pickle.dumps(model))
        for each in (model, other, third):
            each(torch.tensor([[4]]))
    assert trace.lookups == 1
    other(torch.tensor([[4]]))
    third(torch.tensor([[4]]))


def test_threads_may_call_a_model(tmp_path: Path) -> None:
    bag = nn.EmbeddingBag(1000, 2)
    with te.record_trace(bag, tmp_path / "t.parquet"), ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: bag(torch.full((1, 50), i)), range(400)))
    ids = [id for _, _, id in lookups_of(tmp_path / "t.parquet")]
    assert sorted(ids) == sorted(list(range(400)) * 50)


class OwnForward(nn.Embedding):
    def forward(self, mask: torch.Tensor) -> torch.Tensor:
        return super().forward(mask.cumsum(0))


def record_of(model: nn.Module, path: Path, **options: Any) -> None:
    with te.record_trace(model, path, **options):
        pass


def test_nothing_to_record(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    for model, options, message in (
        (nn.Linear(2, 2), {}, "Linear has no embedding tables"),
        (nn.Embedding(2, 2), {"sample": 0}, "sample"),
        (nn.Embedding(2, 2), {}, "no row was looked up"),
        (torch.compile(nn.Embedding(2, 2)), {}, "before torch.compile"),
    ):
        with pytest.raises(ValueError, match=message):
            record_of(model, path, **options)  # type: ignore[arg-type]
    with pytest.warns(RuntimeWarning, match="forward of its own"):  # noqa: SIM117
        with pytest.raises(ValueError, match="no embedding tables"):
            record_of(OwnForward(5, 2), path)
    with pytest.raises(IsADirectoryError):
        record_of(nn.Embedding(2, 2), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sample_keeps_some_rows_with_all_their_lookups(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 20_000, 100_000)
    tables = {"a": TraceTable(20_000), "b": TraceTable(20_000)}
    with TraceWriter(tmp_path / "t.parquet", tables, sample=0.1) as to:
        to.write(0, "a", ids)
        to.write(0, "b", ids)
        to.write(1, "a", ids)
    kept = lookups_of(tmp_path / "t.parquet")
    rows = {(table, id) for _, table, id in kept}
    assert 0.09 < len(rows) / 40_000 < 0.11
    expected = [(batch, table, id) for batch, table in ((0, "a"), (0, "b"), (1, "a"))
                for id in ids.tolist() if (table, id) in rows]  # fmt: skip
    assert kept == expected
    assert {id for table, id in rows if table == "a"} != {id for table, id in rows if table == "b"}
    assert Trace(tmp_path / "t.parquet").sample == 0.1


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize(("written", "read_at_once"), [(1, 1), (7, 7), (64, 64), (64, 3)])
def test_traces_go_through_memory_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int, read_at_once: int, form: str
) -> None:
    path = tmp_path / f"t.{form}"
    monkeypatch.setattr(writer, "_GROUP_LOOKUPS", written)
    monkeypatch.setattr(reader, "_READ_LOOKUPS", read_at_once)
    rng = np.random.default_rng(written)
    expected_batches, expected_rows = [], []
    with TraceWriter(path, {"a": TraceTable(9), "b": TraceTable(5)}) as to:
        for batch in range(30):
            tensors = []
            for first, (table, rows) in ((0, ("a", 9)), (9, ("b", 5))):
                ids = rng.integers(0, rows, rng.integers(0, 6), [np.int32, np.int64][batch % 2])
                tensors.append((table, torch.from_numpy(ids), None))
                if batch % 3:
                    to.write(batch, table, np.repeat(ids, 2)[::2])
                expected_batches += [batch] * len(ids)
                expected_rows += (first + ids).tolist()
            if batch % 3 == 0:
                to.write_tensors(batch, tensors)
    assert read(Trace(path)) == (expected_batches, expected_rows)


@pytest.mark.parametrize(("sample", "padding"), [(1.0, 7), (0.4, None), (0.4, 7)])
def test_a_group_may_end_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: float, padding: int | None
) -> None:
    found = []
    batches = [np.random.default_rng(i).integers(0, 40, 300) for i in range(5)]
    for group in (1 << 12, 97):
        monkeypatch.setattr(writer, "_GROUP_LOOKUPS", group)
        with TraceWriter(tmp_path / "t.arrow", {"a": TraceTable(40)}, sample) as to:
            for number, ids in enumerate(batches):
                to.write(number, "a", ids, padding)
        found.append(lookups_of(tmp_path / "t.arrow"))
    kept = {id for _, _, id in found[0]}
    assert found[0] == found[1]
    assert found[0] == [(n, "a", i) for n, ids in enumerate(batches) for i in ids if i in kept]
    assert padding not in kept
    assert len(kept) == (39 if sample == 1 else pytest.approx(16, abs=9))


def test_a_size_may_be_a_number_of_numpy(tmp_path: Path) -> None:
    bag = nn.EmbeddingBag(np.int64(9), 2)  # type: ignore[arg-type]
    one: Any = np.float32(1)
    with te.record_trace(bag, tmp_path / "t.parquet", sample=one):
        bag(torch.tensor([[4]]))
    assert Trace(tmp_path / "t.parquet").tables == {"table": TraceTable(9, 2)}


@pytest.mark.parametrize(("rows", "kind"), [(1 << 31, pa.int32()), ((1 << 31) + 1, pa.int64())])
def test_ids_of_an_arrow_file_are_as_wide_as_they_must_be(
    tmp_path: Path, rows: int, kind: pa.DataType
) -> None:
    path = tmp_path / "t.arrow"
    with TraceWriter(path, {"a": TraceTable(5), "b": TraceTable(rows)}) as to:
        to.write(0, "b", np.array([rows - 1, 0, rows - 1]), padding=0)
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
        assert file.schema.field("id").type == kind
    assert lookups_of(path) == [(0, "b", rows - 1)] * 2
    assert read(Trace(path)) == ([0, 0], [rows + 4] * 2)


def test_a_parquet_trace_has_only_so_many_tables(tmp_path: Path) -> None:
    tables = {f"t{i}": TraceTable(2) for i in range(1 << 15)}
    with pytest.raises(ValueError, match="32768 tables; a Parquet trace holds 32767"):
        TraceWriter(tmp_path / "t.parquet", tables)
    with TraceWriter(tmp_path / "t.arrow", tables) as to:
        to.write(0, "t32767", np.array([1]))
    assert lookups_of(tmp_path / "t.arrow") == [(0, "t32767", 1)]


def write_arrow(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write(table)


@pytest.mark.parametrize(
    ("form", "save"),
    [("parquet", pq.write_table), ("csv", pa.csv.write_csv), ("arrow", write_arrow)],
)
def test_lookups_of_other_programs(tmp_path: Path, form: str, save: Any) -> None:
    table = pa.table({"table": ["x", "y", "x"], "weight": [1.0, 2.0, 3.0], "id": [3, 0, 8]})
    path = tmp_path / f"lookups.{form}"
    save(table, path)
    trace = Trace(path, batch_lookups=2)
    assert trace.tables == {"x": TraceTable(9), "y": TraceTable(1)}
    assert read(trace) == ([0, 0, 1], [3, 9, 8])
    alone = write(tmp_path / "ids.parquet", {"id": [5, 6]})
    assert read(Trace(alone)) == ([0, 0], [5, 6])


ABOUT = {"version": 1, "sample": 1.0, "tables": {"a": {"rows": 5}}}


@pytest.mark.parametrize(
    ("columns", "about", "message"),
    [
        ({"id": pa.array([], pa.int64())}, None, "no lookups"),
        ({"batch": [0], "table": ["a"]}, ABOUT, "no column 'id'"),
        ({"id": ["1"]}, None, "column 'id' is of type string"),
        ({"id": [1.5]}, None, "column 'id' is of type double"),
        ({"id": [1, None]}, None, "column 'id' has empty places"),
        ({"id": [1, -2]}, None, r"lookup 1: table 'table': id -2 is not in \[0, 2\)"),
        ({"table": ["a"], "id": [5]}, ABOUT, r"lookup 0: table 'a': id 5 is not in \[0, 5\)"),
        ({"table": ["b"], "id": [1]}, ABOUT, "table 'b' is not in the trace's metadata"),
        ({"batch": [0, 3, 2], "id": [0, 0, 0]}, None, "lookup 2: batch 2 comes after batch 3"),
        ({"id": [1]}, {"version": 2, "more": 1}, "version 2; this release reads 1"),
        ({"id": [2**63 - 1]}, None, "no such tables"),
        ({"table": ["a"], "id": [1]}, {**ABOUT, "tables": {}}, "not in the trace's metadata"),
        ({"id": [1]}, {"version": 1}, "metadata are damaged"),
        ({"id": [1]}, {**ABOUT, "tables": {"a": {"rows": "x"}}}, "metadata are damaged"),
    ],
)
def test_files_that_are_no_traces(
    tmp_path: Path, columns: dict[str, Any], about: Any, message: str
) -> None:
    path = write(tmp_path / "t.parquet", columns, about)
    with pytest.raises(DataError, match=message) as raised:
        read(Trace(path))
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_damaged_arrow_files(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    with TraceWriter(path, {"a": TraceTable(5)}) as to:
        to.write(3, "a", np.zeros(777, dtype=np.int64))
        to.write(4, "a", np.zeros(888, dtype=np.int64))
    good = path.read_bytes()
    for cut in (1, 100, len(good) - 7):
        path.write_bytes(good[:-cut])
        with pytest.raises(DataError, match="cannot read"):
            Trace(path)
    ends = np.array([777, 1665], dtype=np.int32)
    assert good.count(ends.tobytes()) == 2  # of batches and of tables
    for wrong in ([1665, 777], [-1, 1665], [777, 1664], [1665, 1665]):
        path.write_bytes(good.replace(ends.tobytes(), np.array(wrong, dtype=np.int32).tobytes()))
        with pytest.raises(DataError, match="cannot read"):
            read(Trace(path))
    with pa.ipc.new_stream(str(path), pa.schema([("id", pa.int64())])) as stream:
        stream.write(pa.table({"id": [1, 2]}))
    with pytest.raises(DataError, match="cannot read"):  # a stream, not a file
        Trace(path)
    names = pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["a", None]))
    write_arrow(pa.table({"table": names, "id": [1, 2]}), path)
    with pytest.raises(DataError, match="column 'table' has a name that is empty"):
        Trace(path)
    unknown = pa.array([None], pa.int64())
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), unknown)
    write_arrow(pa.table({"batch": runs, "id": [1, 2]}), path)
    with pytest.raises(DataError, match="column 'batch' has empty places"):
        Trace(path)


def test_damaged_and_absent_files(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", {"id": np.arange(100_000)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot read"):
        Trace(path)
    with pytest.raises(DataError, match="no such file"):
        Trace(tmp_path / "absent.parquet")
    (tmp_path / "text.csv").write_text("id\n1\nx\n")
    with pytest.raises(DataError, match="cannot read"):
        Trace(tmp_path / "text.csv")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="cannot read"):
        Trace(tmp_path / "binary.csv")
    (tmp_path / "places.csv").write_text("table,id\na,1\n,2\n")
    with pytest.raises(DataError, match="column 'table' has empty places"):
        Trace(tmp_path / "places.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="cannot read"):
        Trace(tmp_path / "empty.csv")
    with pytest.raises(DataError, match="cannot read"):
        Trace(tmp_path)
