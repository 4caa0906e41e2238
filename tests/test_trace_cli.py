"""`tiered-emb trace`: traces of data files."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trace_files import lookups_of, read, write

from tiered_emb.cli.main import main
from tiered_emb.data.hashing import hashed_rows, number_keys, text_keys
from tiered_emb.trace.format import TraceTable
from tiered_emb.trace.reader import Trace


def command(*arguments: object) -> int:
    return main(["trace", *map(str, arguments)])


def test_a_data_file_becomes_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data.parquet", tmp_path / "trace.parquet"
    table = pa.table({
        "user": [4, 1, 4], "seen": [[7, 8], [], [8]], "city": ["Oslo", "Bern", "Oslo"],
    })  # fmt: skip
    pq.write_table(table, data, row_group_size=2)
    assert command(data, "--out", out, "--columns", "user", "seen", "--batch-size", 2) == 0
    assert "6 lookups of 3 samples, 2 tables of 14 rows" in capsys.readouterr().out
    assert lookups_of(out) == [
        (0, "user", 4), (0, "user", 1), (0, "seen", 7), (0, "seen", 8),
        (1, "user", 4), (1, "seen", 8),
    ]  # fmt: skip
    assert Trace(out).tables == {"user": TraceTable(5), "seen": TraceTable(9)}
    hashed = ["--columns", "city", "user", "--hash-rows", 50, "--out", out]
    assert command(data, *hashed) == 2
    assert "--force" in capsys.readouterr().err
    assert command(data, *hashed, "--force") == 0
    cities = hashed_rows(text_keys(["Oslo", "Bern", "Oslo"]), "city", 50).tolist()
    users = hashed_rows(number_keys(np.array([4, 1, 4])), "user", 50).tolist()
    assert [id for _, _, id in lookups_of(out)] == cities + users


def test_a_criteo_log_becomes_a_trace(tmp_path: Path) -> None:
    line = "1" + "\t7" * 13 + "\t68fd1e64" * 25 + "\t\n"
    (tmp_path / "day_0").write_text(line * 3)
    out = tmp_path / "trace.parquet"
    assert command(tmp_path / "day_0", "--out", out, "--hash-rows", 100, "--batch-size", 2) == 0
    trace = Trace(out)
    assert (len(trace.tables), trace.total_rows, trace.lookups) == (26, 2600, 78)
    batches, rows = read(trace)
    assert batches == [0] * 52 + [1] * 26
    assert rows[::2][:26] == rows[1::2][:26]  # the same in both samples


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "cannot read"),
        (["data.parquet"], "--columns"),
        (["data.parquet", "--columns", "nosuch"], "no column 'nosuch'; there is: a, s, f, n, m"),
        (["data.parquet", "--columns", "s"], "--hash-rows"),
        (["data.parquet", "--columns", "f"], "of type double"),
        (["data.parquet", "--columns", "n"], "empty places"),
        (["data.parquet", "--columns", "a"], "no lookups"),
        (["data.parquet", "--columns", "a", "a"], "named twice"),
        (["data.parquet", "--columns", "m"], "-1 is no id"),
        (["data.parquet", "--columns", "a", "--batch-size", "0"], "--batch-size 0"),
        (["data.parquet", "--columns", "a", "--sample", "1.5"], "--sample 1.5"),
        (["log"], "--hash-rows"),
        (["log", "--columns", "C1"], "--columns"),
        (["log", "--hash-rows", "9"], "expected 40"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    columns = {
        "a": pa.array([[], []], pa.list_(pa.int64())), "s": ["x", "y"], "f": [1.0, 2.0],
        "n": [1, None], "m": [3, -1],
    }  # fmt: skip
    write(tmp_path / "data.parquet", columns)
    (tmp_path / "log").write_text("1\t2\n")
    assert command(*arguments, "--out", "trace.parquet") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert line.startswith("tiered-emb trace: error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.parquet", "log"]


def test_a_trace_that_cannot_be_written_is_not_said_to_be_unreadable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data.parquet", tmp_path / "trace.parquet"
    write(data, {"a": np.arange(100_000)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        assert command(data, "--out", out, "--columns", "a") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{out}: cannot write: " in line
    assert "too large" in line
    assert list(tmp_path.iterdir()) == [data]
