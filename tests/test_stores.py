"""Stores and tables as files: inspect, verify, export and import."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from same_bits import assert_same_bits
from torch import nn

import tiered_emb as te
from tiered_emb.cli.main import main

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
OPTIMIZERS = [te.optim.SGD, te.optim.Adagrad, te.optim.RowwiseAdagrad, te.optim.Adam]


def trained(
    folder: Path | None, optimizer: Any = te.optim.Adagrad, dtype: torch.dtype = torch.float32
) -> te.TieredEmbedding:
    tiers = None if folder is None else te.Tiers(dram=30_000, ssd=te.SSD(str(folder / "store")))
    bag = te.TieredEmbedding(
        5000, 12, mode="sum", tiers=tiers, optimizer=optimizer(0.1), dtype=dtype, name="ads"
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        ids = torch.randint(0, 4000, (100,), generator=generator)
        bag(ids, torch.arange(0, 100, 4)).float().pow(2).sum().backward()
    return bag


def assert_same_tables(a: te.TieredEmbedding, b: te.TieredEmbedding) -> None:
    ids = torch.arange(a.num_embeddings)
    assert_same_bits(a.rows(ids), b.rows(ids), "weights")
    state = a.state_rows(ids)
    assert state.keys() == b.state_rows(ids).keys()
    for name, values in state.items():
        assert_same_bits(values, b.state_rows(ids)[name], name)


# ---- Files


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_export_and_import(
    tmp_path: Path, suffix: str, dtype: torch.dtype, optimizer: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("tiered_emb.engine_arguments._KNOWN_CHUNK_ROWS", 700)  # several pieces
    monkeypatch.setattr("tiered_emb.table_files._CHUNK_ROWS", 500)
    bag = trained(tmp_path, optimizer, dtype)
    file = tmp_path / f"rows{suffix}"
    count = te.export_rows(bag, file)
    assert 2000 < count < 4000
    other = te.TieredEmbedding(
        5000, 12, mode="sum", optimizer=optimizer(0.1), dtype=dtype, name="ads"
    )
    assert te.import_rows(other, file) == count
    assert_same_tables(bag, other)
    bag.close()  # and the same from the store alone
    again = tmp_path / f"again{suffix}"
    assert te.export_rows(tmp_path / "store", again) == count
    assert again.read_bytes() == file.read_bytes()


def test_what_other_programs_see(tmp_path: Path) -> None:
    bag = trained(None)
    te.export_rows(bag, tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.column_names == ["id", "weight", "state.sum"]
    described = json.loads(table.schema.metadata[b"tiered_emb"])
    assert described == {
        "table": "ads", "num_embeddings": 5000, "embedding_dim": 12, "dtype": "float32"
    }  # fmt: skip
    ids = table["id"].to_pylist()
    assert ids == sorted(ids)
    assert table["weight"][7].as_py() == bag.rows(ids[7:8])[0].tolist()
    te.export_rows(bag, tmp_path / "rows.safetensors")
    data = (tmp_path / "rows.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    begin, end = header["weight"]["data_offsets"]
    weight = torch.frombuffer(
        bytearray(data[8 + length + begin : 8 + length + end]), dtype=torch.float32
    )
    assert_same_bits(weight.reshape(header["weight"]["shape"]), bag.rows(ids), "weight")


def test_tables_of_a_collection_by_name(tmp_path: Path) -> None:
    tables = [te.Table("a", 100, 4), te.Table("b", 50, 8)]
    one, two = te.TieredEmbeddingCollection(tables), te.TieredEmbeddingCollection(tables, seed=5)
    one({"a": torch.arange(30), "b": torch.arange(20)})
    for name, rows in (("a", 30), ("b", 20)):
        assert te.export_rows(one, tmp_path / f"{name}.parquet", name) == rows
        te.import_rows(two, tmp_path / f"{name}.parquet", name)
        assert_same_bits(one.rows(name, range(rows)), two.rows(name, range(rows)), name)
    with pytest.raises(KeyError, match="no table 'c'"):
        te.export_rows(one, tmp_path / "c.parquet", "c")
    with pytest.raises(KeyError, match="no table None"):
        te.export_rows(one, tmp_path / "c.parquet")


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    bag = trained(None)
    before = bag.to_dense()
    for suffix in (".parquet", ".safetensors"):
        file = tmp_path / f"rows{suffix}"
        te.export_rows(bag, file)
        for other, message in (
            (te.TieredEmbedding(5000, 13, optimizer=te.optim.Adagrad(0.1)), "'weight' is"),
            (te.TieredEmbedding(5000, 12, optimizer=te.optim.Adam(0.1)), "the file"),
            (te.TieredEmbedding(5000, 12, dtype=torch.float16), "in the table|the file"),
        ):
            want = other.to_dense()
            with pytest.raises(ValueError, match=message):
                te.import_rows(other, file)
            assert_same_bits(other.to_dense(), want, "nothing changed")
        small = te.TieredEmbedding(10, 12, optimizer=te.optim.Adagrad(0.1))
        with pytest.raises(IndexError, match="out of range for 10 rows"):
            te.import_rows(small, file)
    for junk in (b"", b"\xff" * 100, b"\x08" + b"\0" * 7 + b'{"id":1}'):
        (tmp_path / "junk.safetensors").write_bytes(junk)
        with pytest.raises(ValueError, match="not a safetensors file"):
            te.import_rows(bag, tmp_path / "junk.safetensors")
    for attempt in (te.export_rows, te.import_rows):
        with pytest.raises(ValueError, match="must end in"):
            attempt(bag, tmp_path / "rows.csv")
    with pytest.raises(TypeError, match="Linear"):
        te.export_rows(nn.Linear(1, 1), tmp_path / "x.parquet")
    assert_same_bits(bag.to_dense(), before, "rows")
    assert not list(tmp_path.glob("*.tmp"))


# ---- The newest state


@pytest.mark.parametrize("rows", [3, 500])
@pytest.mark.parametrize("dim", [600, 4096])
def test_rows_larger_than_a_block(rows: int, dim: int, tmp_path: Path) -> None:
    """In small stores, too, and in the store that a save of a model without one makes."""
    arguments = {"mode": "sum", "optimizer": te.optim.RowwiseAdagrad(0.1), "name": "wide"}
    plain = te.TieredEmbedding(rows, dim, **arguments)
    tiers = te.Tiers(dram=(rows + 9) // 10 * dim * 4 + 8000, ssd=te.SSD(str(tmp_path / "store")))
    with te.TieredEmbedding(rows, dim, tiers=tiers, **arguments) as bag:
        for step in range(120):
            ids = torch.arange(step, step + 20) % rows
            for table in (plain, bag):
                for id in ids:  # dram holds few rows
                    table(id.view(1, 1)).sum().backward()
        assert torch.equal(bag.to_dense(), plain.to_dense())
        stats = bag.stats()
        assert stats.ssd_used_bytes <= 1.6 * stats.ssd_rows_bytes + 8 * (256 << 10)
    te.save(plain, tmp_path / "ck")
    copy = te.TieredEmbedding(rows, dim, **arguments)
    te.load(copy, tmp_path / "ck")
    assert torch.equal(copy.to_dense(), plain.to_dense())


def test_newest_after_a_kill(tmp_path: Path) -> None:
    """Rows that were evicted after the last flush are there; the cut itself still opens too."""
    bag = trained(tmp_path)
    bag.flush()
    cut = bag.to_dense()
    generator = torch.Generator().manual_seed(2)
    states = [cut]
    for _ in range(200):
        ids = torch.randint(0, 4000, (100,), generator=generator)
        bag(ids, torch.arange(0, 100, 4)).pow(2).sum().backward()
        states.append(bag.to_dense())
    shutil.copytree(tmp_path / "store", tmp_path / "copy")  # as a kill leaves it

    def opened(name: str, resume: Any) -> te.TieredEmbedding:
        tiers = te.Tiers(dram=30_000, ssd=te.SSD(str(tmp_path / name), resume=resume))
        return te.TieredEmbedding(
            5000, 12, mode="sum", tiers=tiers, optimizer=te.optim.Adagrad(0.1), name="ads"
        )

    index = next((tmp_path / "copy").glob("index-*"))
    shutil.copytree(tmp_path / "copy", tmp_path / "damaged")
    (tmp_path / "damaged" / index.name).write_bytes(b"x" * 4096)
    with pytest.raises(OSError, match="index-"):
        opened("damaged", True)
    for name in ("copy", "damaged"):
        newest = opened(name, "newest")
        rows = newest.to_dense()
        changed = (rows != cut).any(1)
        assert changed.sum() > 1000
        history = torch.stack(states)
        assert ((history == rows).all(2)).any(0).all()  # each row as it once was
        newest.close()
        again = opened(name, True)
        assert_same_bits(again.to_dense(), rows, "the newest state is the store's now")
        again.close()
    with pytest.raises(ValueError, match="'newest'"):
        te.SSD("x", resume="oldest")


# ---- Commands


def run_json(capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, Any]:
    status = main([*map(str, args), "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag = trained(tmp_path)
    te.save(bag, tmp_path / "ck")
    bag.close()
    for path in (tmp_path / "store", tmp_path / "ck"):
        status, (report,) = run_json(capsys, "inspect", path)
        assert status == 0
        (table,) = report["tables"]
        assert table["name"] == "ads"
        assert table["updates"] == 40
        assert 2000 < table["rows_stored"] < 4000
        assert report["live_bytes"] >= table["rows_stored"] * table["row_bytes"]
        assert sum(report["segments_by_live_fraction"]) == report["segments"] > 0
        assert report["io_engine"] in ("io_uring", "portable")
        assert main(["inspect", str(path)]) == 0
        assert "ads" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path)]) == 2
    assert "neither a store nor a checkpoint" in capsys.readouterr().err


def test_verify_finds_nothing_in_a_good_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = trained(tmp_path)
    te.save(bag, tmp_path / "ck")
    bag.close()
    for path in (tmp_path / "store", tmp_path / "ck"):
        status, report = run_json(capsys, "verify", path)
        assert (status, report["faults"]) == (0, [])
        assert report["segments"] > 0


def test_verify_names_every_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag = trained(tmp_path)
    bag.close()
    segments = sorted((tmp_path / "store").glob("segment-*"))
    damaged = [s for s in segments if s.read_bytes()[8192:8196] == b"TEBK"][:2]
    assert len(damaged) == 2
    for segment in damaged:
        data = bytearray(segment.read_bytes())
        data[4096 * 2 + 300] ^= 1  # one bit of block 2
        segment.write_bytes(data)
    status, report = run_json(capsys, "verify", tmp_path / "store")
    assert status == 1
    assert {fault["file"] for fault in report["faults"]} == {str(s) for s in damaged}
    for fault in report["faults"]:
        assert (fault["block"], fault["blocks"]) == (2, 1)
        assert "checksum" in fault["what"]
    lost = [row["row"] for fault in report["faults"] for row in fault["rows"]]
    bag = te.TieredEmbedding(
        5000, 12, mode="sum", optimizer=te.optim.Adagrad(0.1), name="ads",
        tiers=te.Tiers(dram=30_000, ssd=te.SSD(str(tmp_path / "store"), resume=True)),
    )  # fmt: skip
    for row in range(5000):  # exactly the rows that cannot be read
        if row in lost:
            with pytest.raises(OSError, match=f"row {row}"):
                bag.rows([row])
        else:
            bag.rows([row])
    assert main(["verify", str(tmp_path / "store")]) == 1
    assert "rows lost: ads[" in capsys.readouterr().out
    (tmp_path / "store" / "MANIFEST").write_bytes(b"x" * 4096)
    status, report = run_json(capsys, "verify", tmp_path / "store")
    assert status == 1
    assert "MANIFEST" in report["faults"][0]["what"]


def test_export_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag = trained(tmp_path)
    te.save(bag, tmp_path / "ck")
    target = tmp_path / "rows.parquet"
    assert main(["export", str(tmp_path / "ck"), str(target), "--table", "ads"]) == 0
    assert "rows" in capsys.readouterr().out
    assert pq.read_metadata(target).num_rows > 2000
    assert main(["export", str(tmp_path / "ck"), str(target), "--table", "other"]) == 2
    assert "must be one of ['ads']" in capsys.readouterr().err
