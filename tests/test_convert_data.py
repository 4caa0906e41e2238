"""`tiered-emb convert-data`: values, atomicity, and one line for everything that can be wrong."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from criteo_files import log_lines, write_log

from tiered_emb.cli.main import main
from tiered_emb.data import DataError
from tiered_emb.data import criteo as criteo_module
from tiered_emb.data.criteo_convert import ConvertOptions, convert
from tiered_emb.data.criteo_format import COLUMNS

LINES = log_lines(500, seed=1)


def rows_of(lines: list[str]) -> list[list[int | None]]:
    bases = [10] * 14 + [16] * 26
    split = [zip(line.split("\t"), bases, strict=True) for line in lines]
    return [[int(field, base) if field else None for field, base in row] for row in split]


def rows_in(path: Path) -> list[list[int | None]]:
    table = pq.read_table(path)
    assert table.column_names == list(COLUMNS)
    return [list(row) for row in zip(*(column.to_pylist() for column in table), strict=True)]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    status = main(["convert-data", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return out


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command that must fail; gives the one line it says."""
    assert main(["convert-data", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("tiered-emb convert-data: error: ")
    return lines[0]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_several_logs_become_one_file(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    compression: str,
) -> None:
    monkeypatch.setattr(criteo_module, "_BLOCK_BYTES", 5000)
    inputs = [write_log(tmp_path / "day_0", LINES[:300])]
    inputs.append(write_log(tmp_path / "day_1.gz", LINES[300:]))
    out = tmp_path / "all.parquet"
    options = ["--compression", compression, "--rows-per-group", 128, "--json"]
    report: dict[str, Any] = json.loads(run(capsys, *inputs, "--out", out, *options))
    assert rows_in(out) == rows_of(LINES)
    metadata = pq.ParquetFile(out).metadata
    assert [metadata.row_group(i).num_rows for i in range(4)] == [128, 128, 128, 116]
    expected = {
        "outputs": [str(out)],
        "samples": 500,
        "missing": sum(value is None for row in rows_of(LINES) for value in row),
        "bad_lines": 0,
        "input_bytes": sum(path.stat().st_size for path in inputs),
        "output_bytes": out.stat().st_size,
    }
    assert report | expected == report
    assert report["lines_per_second"] == pytest.approx(500 / report["seconds"])
    types = {str(field.type) for field in pq.read_schema(out)}
    assert types == {"int8", "int32", "uint32"}


def test_a_directory_gets_a_file_for_each_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [write_log(tmp_path / f"day_{i}.gz", LINES[i * 100 : i * 100 + 90]) for i in range(4)]
    inputs.append(write_log(tmp_path / "train.txt", LINES[450:]))
    out = tmp_path / "new" / "parquet"
    text = run(capsys, *inputs, "--out", out, "--workers", 3)
    assert text.startswith("5 files: 410 samples, ")
    names = ["day_0", "day_1", "day_2", "day_3", "train"]
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.parquet" for name in names]
    assert rows_in(out / "day_2.parquet") == rows_of(LINES[200:290])
    assert rows_in(out / "train.parquet") == rows_of(LINES[450:])


def test_bad_lines_are_named_or_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = LINES[:20]
    lines[7] = "9" + lines[7][1:]
    path, out = write_log(tmp_path / "day", lines), tmp_path / "day.parquet"
    message = fails(capsys, path, "--out", out)
    assert f"{path}:8: label is '9'; expected 0 or 1" in message
    assert list(tmp_path.iterdir()) == [path]
    text = run(capsys, path, "--out", out, "--skip-bad-lines")
    assert "19 samples" in text
    assert "1 malformed lines left out" in text
    assert rows_in(out) == rows_of(lines[:7] + lines[8:])


def test_wide_values_need_wide_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteo_module, "_BLOCK_BYTES", 5000)
    wide = "\t".join(["0", "-12345678901", *["1"] * 12, "f" * 16, *["2"] * 25])
    path = write_log(tmp_path / "day", [*LINES[:100], wide, *LINES[100:200]])
    told: list[int] = []
    convert([path], tmp_path / "day.parquet", progress=told.append)
    assert rows_in(tmp_path / "day.parquet") == rows_of([*LINES[:100], wide, *LINES[100:200]])
    assert {str(f.type) for f in pq.read_schema(tmp_path / "day.parquet")} == {
        "int8", "int64", "uint64",
    }  # fmt: skip
    assert sum(told) == path.stat().st_size


def test_outputs_are_replaced_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_log(tmp_path / "day", LINES[:10]), tmp_path / "day.parquet"
    out.write_text("precious")
    assert "day.parquet: exists already (--force" in fails(capsys, path, "--out", out)
    assert "exists already" in fails(capsys, path, "--out", tmp_path)
    bad = write_log(tmp_path / "bad", [*LINES, "1"])
    assert "bad:501: 1 fields" in fails(capsys, bad, "--out", out, "--force")
    assert out.read_text() == "precious"
    run(capsys, path, "--out", out, "--force")
    assert rows_in(out) == rows_of(LINES[:10])


def test_a_run_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    path = write_log(tmp_path / "day", LINES)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert([path], tmp_path / "day.parquet", progress=interrupt)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_log(tmp_path / "day", LINES)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        message = fails(capsys, path, "--out", tmp_path / "day.parquet", "--rows-per-group", 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.endswith("day.parquet: cannot write: File too large")
    assert list(tmp_path.iterdir()) == [path]


def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_log(tmp_path / "day", LINES[:10]), tmp_path / "out.parquet"
    empty = write_log(tmp_path / "empty", [])
    other = write_log(tmp_path / "day.gz", LINES[:10])
    pq.write_table(pa.table({"label": [1]}), tmp_path / "p.parquet")
    cut = tmp_path / "cut.gz"
    cut.write_bytes(write_log(tmp_path / "whole.gz", LINES).read_bytes()[:5000])
    for arguments, message in [
        ([tmp_path / "absent", "--out", out], "absent: cannot read: No such file"),
        ([tmp_path, "--out", out], "is a directory; expected a file"),
        ([tmp_path / "p.parquet", "--out", out], "p.parquet: is Parquet already"),
        ([path, "--out", tmp_path / "no" / "out.parquet"], "no: no such directory"),
        ([path, "--out", path], "day: is not a directory; a file's name ends in .parquet"),
        ([path, other, "--out", tmp_path / "new"], "would both become"),
        ([empty, "--out", out], "empty: no samples"),
        ([cut, "--out", out], "cut.gz: cannot read near line"),
        ([path], "the following arguments are required: --out"),
        ([path, "--out", out, "--compression", "rar"], "invalid choice"),
        ([path, "--out", out, "--workers", "0"], "'0' is not a whole number above 0"),
    ]:
        assert message in fails(capsys, *arguments)
    assert not out.exists()


def test_help_fits_a_screen_and_ends_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert-data", "--help"])
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert len(lines) <= 24
    assert max(len(line) for line in lines) <= 88
    assert lines[-1].startswith("example: tiered-emb convert-data ")


def test_options_of_the_library(tmp_path: Path) -> None:
    path = write_log(tmp_path / "day", LINES)
    with pytest.raises(DataError, match="absent"):
        convert([tmp_path / "absent"], tmp_path / "day.parquet")
    done = convert([path], tmp_path / "day.parquet", ConvertOptions(compression="lz4"))
    assert (done.samples, done.bad_lines) == (500, 0)
