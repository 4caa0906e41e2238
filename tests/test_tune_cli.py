"""`tiered-emb tune`, from end to end and with what is no trace or no option."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tuner_case import MIB, know_machine, write_trace

from tiered_emb.cli.main import main


@pytest.fixture(scope="module")
def two_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("trace") / "trace.parquet")


def run(*arguments: Any) -> int:
    return main(["tune", *(str(argument) for argument in arguments)])


def strict(text: str) -> Any:
    """JSON without NaN and Infinity, which are none."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits and engine of a machine that need not be measured."""
    know_machine(monkeypatch)


def test_the_command_from_end_to_end(
    two_tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Limits and engine measured in smoke size, and nothing patched."""
    given = [two_tables, "--dram-max", "30MiB", "--ssd", "1GiB", "--smoke", "--dir", tmp_path]
    assert run(*given, "--layers-ms", "1", "--json", "--out", tmp_path / "out") == 0
    report = strict(capsys.readouterr().out)
    assert report == strict((tmp_path / "out" / "tune.json").read_text())
    names = ("tune-curves", "tune-tables", "tune-front", "tune-busy", "tune-validation")
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} > set(names)
    assert {
        "benchmark", "machine", "date", "command", "smoke", "limits", "trace", "model",
        "recommended", "front", "extra", "what_if", "placement", "life_years", "curves",
        "is_projection", "validation", "format_is_assumed",
    } <= set(report)  # fmt: skip
    assert (report["benchmark"], report["smoke"], report["is_projection"]) == ("tune", True, False)
    assert report["trace"]["lookups"] == 150 * 500
    assert report["model"]["rows"] == 60_600
    best = report["recommended"]
    assert best["dram_bytes"] <= 30 * MIB
    assert best["tiers"]["ssd"] is True
    assert best["step_ms"] >= 1
    assert best["steps_per_s"] == pytest.approx(1e3 / best["step_ms"])
    assert best["samples_per_s"] is None
    assert report["life_years"] > 0
    assert [curve["table"] for curve in report["curves"]] == ["all tables", "large", "hot"]
    assert list(report["curves"][0]["curves"]) == ["policy", "lru", "optimum"]
    assert report["command"].startswith("tiered-emb tune trace.parquet --dram-max 30MiB")


def test_what_people_read(
    two_tables: Path, capsys: pytest.CaptureFixture[str], known: None
) -> None:
    given = [two_tables, "--dram-max", "30MiB", "--ssd", "1GiB", "--batch-size", 100]
    assert run(*given, "--ssd-endurance", "1TB") == 0
    out = capsys.readouterr().out
    for text in (
        "2 tables, 60,600 rows, 59.4 MiB (float32, rowwise-adagrad); a step: 500 lookups of ",
        'ssd="/path/on/the/drive")', "te.Prefetcher(loader, model, rows_ahead=", "samples/s",
        " binds (", "TB written a day, of which the drive lasts", "Sizes that no other beats:",
        "What more would buy: ", "more dram: +", "rowwise-adagrad, float32 *",
        "Shares of single tables: none.", "How rows are kept is assumed: --dtype, and --optimizer",
        "Predicted against measured here, of steps that it was not fitted to: +10% (1 of 1 within",
    ):  # fmt: skip
        assert text in out, text
    assert " days; " in out or " years; " in out
    assert "projection" not in out
    assert run(*given, "--gpu", "H100", "--hbm-max", "10MiB", "--inference") == 0
    out = capsys.readouterr().out
    assert "A projection: the device's figures are those of its data sheet." in out
    assert "inference, float32 *" in out
    assert run(*given, "--dtype", "float16", "--inference") == 0
    assert "assumed" not in capsys.readouterr().out
    assert "0.00 TB written a day; " in out
    assert run(two_tables, "--dram-max", "1GiB") == 0
    out = capsys.readouterr().out
    assert "te.Tiers()  # all rows in dram" in out
    assert "nothing, all is in dram" in out
    assert "ssd:" not in out
    prices = ("--prices", "hbm=20", "dram=4", "ssd=0.1")
    assert run(*given, "--cheapest", *prices, "--json") == 0
    cheapest = strict(capsys.readouterr().out)["recommended"]
    assert run(*given, "--target", "1000", "--json") == 0
    assert strict(capsys.readouterr().out)["recommended"]["samples_per_s"] >= 1000
    assert run(*given, "--json") == 0
    assert cheapest["dram_bytes"] < strict(capsys.readouterr().out)["recommended"]["dram_bytes"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", "required: --dram-max"),
        ("--dram-max many", "--dram-max: size 'many' is not a number with one of the units"),
        ("--dram-max 0", "--dram-max: size must be at least one byte, got 0"),
        ("--dram-max " + "9" * 400 + "GiB", "--dram-max: "),
        ("--dram-max 1GiB --ssd x", "--ssd: size 'x'"),
        ("--dram-max 1GiB --ssd-endurance x", "--ssd-endurance: size 'x'"),
        ("--dram-max 1GiB --cheapest", "--cheapest: what a GiB of each tier costs: --prices"),
        (
            "--dram-max 1GiB --ssd 1GiB --prices dram=4",
            "--prices: what a GiB of ssd costs is missing",
        ),
        ("--dram-max 1GiB --prices disk=3", "--prices disk=3: expected a tier and its price"),
        ("--dram-max 1GiB --prices dram=-1", "--prices dram=-1: expected"),
        ("--dram-max 1GiB --prices dram=nan", "--prices dram=nan: expected"),
        ("--dram-max 1GiB --target 100", "--target 100: samples of a step: --batch-size"),
        ("--dram-max 1GiB --target nan --batch-size 4", "--target nan: expected above 0"),
        ("--dram-max 1GiB --target -1 --batch-size 4", "--target -1: expected above 0"),
        (
            "--dram-max 1GiB --target 1 --batch-size 4 --cheapest --prices dram=1",
            "--cheapest and --target: one of them",
        ),
        ("--dram-max 1GiB --layers-ms -1", "--layers-ms -1: expected 0 or more"),
        ("--dram-max 1GiB --layers-ms inf", "--layers-ms inf: expected 0 or more"),
        ("--dram-max 1GiB --sample 0", "--sample 0: expected a share above 0 and at most 1"),
        ("--dram-max 1GiB --sample 2", "--sample 2: expected"),
        ("--dram-max 1GiB --sample nan", "--sample nan: expected"),
        ("--dram-max 1GiB --batch-size 0", "'0' is no whole number above 0"),
        ("--dram-max 1GiB --optimizer lion", "invalid choice: 'lion'"),
        ("--dram-max 1GiB --inference --optimizer sgd", "--inference and --optimizer: one of"),
        ("--dram-max 1GiB --gpu H100", "--gpu H100: how much of its memory may be used: --hbm-max"),
        ("--dram-max 1GiB --gpu H0 --hbm-max 1GiB", "--gpu H0: not known; there is: "),
    ],
)
def test_bad_options_are_one_line(
    two_tables: Path, capsys: pytest.CaptureFixture[str], options: str, told: str
) -> None:
    """Nothing is measured before."""
    fails(capsys, told, two_tables, *options.split())


def fails(capsys: pytest.CaptureFixture[str], told: str, *arguments: Any) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("tiered-emb tune: error: ")
    assert told in captured.err
    assert captured.out == ""


def test_a_device_that_is_not_here(
    two_tables: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = "--hbm-max: no CUDA device is here to be measured; --gpu NAME projects one"
    fails(capsys, told, two_tables, "--dram-max", "1GiB", "--hbm-max", "1GiB")


def test_traces_that_cannot_be_tuned(
    two_tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], known: None
) -> None:
    path = tmp_path / "trace.parquet"
    given = (path, "--dram-max", "1GiB")
    fails(capsys, f"{path}: no such file", *given)
    path.write_bytes(two_tables.read_bytes()[:-200])
    fails(capsys, f"{path}: cannot read: ", *given)
    path = tmp_path / "trace.csv"
    given = (path, "--dram-max", "1GiB")
    path.write_text("batch,id\n1,5\n0,6\n")
    csv = ("--dim", "8")
    fails(capsys, "batch 0 comes after batch 1", *given, *csv)
    fails(capsys, "table 'table': the trace does not say how long its rows are: --dim", *given)
    path.write_text("id\n")
    fails(capsys, "there are no lookups in it", *given, *csv)
    path.write_text("id\n" + "7\n" * 50)
    assert run(*given, *csv) == 0
    assert "8 rows" in capsys.readouterr().out
    small = (write_trace(tmp_path / "small.parquet", 30), "--dram-max", "1MiB")
    fails(capsys, "dram: all rows need ", *small)
    fails(capsys, "ssd: the rows need ", *small, "--ssd", "10MiB")
    fails(
        capsys, "target of 1,000,000,000 samples/s: the fastest within these sizes does ",
        *small, "--ssd", "1GiB", "--target", "1e9", "--batch-size", "10",
    )  # fmt: skip
