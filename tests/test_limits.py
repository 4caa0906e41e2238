"""The limits of a machine: measured in smoke size, saved, reused, told apart; and the command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tiered_emb.bench import limits as module
from tiered_emb.bench import limits_command, options
from tiered_emb.bench.limits import Limits, measure, save, saved
from tiered_emb.bench.limits_figures import (
    DramLimits,
    Figure,
    LinkLimits,
    RowLimits,
    StreamLimits,
    interpolate,
)
from tiered_emb.bench.limits_measure import default_arena_bytes
from tiered_emb.bench.provenance import provenance
from tiered_emb.data.errors import DataError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Limits:
    directory = tmp_path_factory.mktemp("drive")
    limits = measure(directory, smoke=True)
    assert list(directory.iterdir()) == []
    return limits


def figures_of(value: Any) -> Iterator[Figure]:
    if isinstance(value, Figure):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from figures_of(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from figures_of(getattr(value, field.name))


def of_one_machine(rate_by_row_bytes: dict[int, float]) -> DramLimits:
    """Two threads twice as fast as one."""

    def figure(rate: float) -> Figure:
        return Figure(rate, rate, rate)

    rows = tuple(
        RowLimits(
            size, threads, 16, 1, figure(threads * rate / 3), figure(threads * rate),
            figure(threads * rate / 2),
        )
        for size, rate in rate_by_row_bytes.items()
        for threads in (1, 2)
    )  # fmt: skip
    streams = tuple(StreamLimits(n, *(figure(n * 1e10) for _ in range(3))) for n in (1, 2))
    return DramLimits(1 << 30, streams, rows)


# ---- Measuring


def test_smoke_figures_are_rates(measured: Limits) -> None:
    figures = list(figures_of(measured))
    assert len(figures) > 20
    for figure in figures:
        assert math.isfinite(figure.median)
        assert 0 < figure.p25 <= figure.median <= figure.p75
    assert measured.smoke
    assert measured.ssd is not None
    assert measured.ssd.best_reads_per_s(4096) > measured.ssd.best_reads_per_s(65536) > 0


def test_prefetch_costs_little(measured: Limits) -> None:
    """On one thread, by quartiles and generously: the machine may be busy."""
    for rows in measured.dram.rows:
        if rows.threads == 1:
            assert rows.gather_prefetched_bytes_per_s.p75 > rows.gather_bytes_per_s.p25 / 5


def test_without_a_drive() -> None:
    limits = measure(None, smoke=True, seconds_each=0.001, row_bytes=(132,), arena_bytes=1 << 20)
    assert limits.ssd is None
    assert limits.device is None
    assert [rows.row_bytes for rows in limits.dram.rows][:1] == [132]


def test_sizes_of_rows_are_checked() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        measure(None, smoke=True, row_bytes=(64, 6))


def test_arena_fits_the_machine() -> None:
    assert default_arena_bytes() >= 1 << 20


@pytest.mark.parametrize("name", ["none", "file"])
def test_bad_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"{name}: no such directory"):
        measure(tmp_path / name, smoke=True)
    with pytest.raises(DataError, match=f"{name}: no such directory"):
        Limits.current(tmp_path / name, path=tmp_path / "limits.json")


def test_directory_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "access", lambda *_: False)
    with pytest.raises(DataError, match="not writable"):
        measure(tmp_path, smoke=True)


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = argparse.Namespace(free=3 << 20)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="needs 128 MiB there, 3 MiB are free"):
        measure(tmp_path, smoke=True)


# ---- Between and beyond sizes


def test_interpolation() -> None:
    points = [(64, 4e9), (16, 1e9), (256, 4e9)]
    assert interpolate(16, points) == 1e9
    assert interpolate(32, points) == pytest.approx(2e9)
    assert interpolate(128, points) == pytest.approx(4e9)
    assert interpolate(4, points) == pytest.approx(0.25e9)  # as many rows a second
    assert interpolate(4096, points) == 4e9  # as many bytes a second
    with pytest.raises(ValueError, match="no rate for 0 bytes"):
        interpolate(0, points)


def test_rates_of_rows_are_those_of_all_threads() -> None:
    dram = of_one_machine({16: 1e9, 64: 4e9})
    assert dram.threads == 2
    assert dram.gather(64) == 8e9  # prefetched, which is faster
    assert dram.gather(32) == pytest.approx(4e9)
    assert dram.update(16) == 1e9
    assert dram.stream().copy_bytes_per_s.median == 2e10
    assert dram.stream(1).copy_bytes_per_s.median == 1e10
    with pytest.raises(ValueError, match="3 threads were not measured"):
        dram.stream(3)


# ---- Saving


def test_json_round_trip(measured: Limits) -> None:
    figure = Figure(2.0, 1.0, 3.0)
    with_link = dataclasses.replace(measured, link=LinkLimits("gpu", figure, figure, figure))
    for limits in (measured, with_link, dataclasses.replace(measured, ssd=None, device=None)):
        assert Limits.from_json(json.loads(json.dumps(limits.to_json()))) == limits


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("date",), 3),
        (("dram",), None),
        (("dram", "rows"), {}),
        (("dram", "arena_bytes"), 1.5),
        (("dram", "rows", 0, "gather_bytes_per_s", "median"), math.nan),
        (("ssd", "is_direct"), 1),
    ],
)
def test_json_of_another_form(measured: Limits, place: tuple[Any, ...], value: Any) -> None:
    data = json.loads(json.dumps(measured.to_json()))
    inner = data
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    with pytest.raises(ValueError, match=str(place[-1])):
        Limits.from_json(data)


def test_saved_ones_are_used_with_their_date(
    measured: Limits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache" / "limits.json"
    calls = []

    def measured_anew(directory: Any, **_: Any) -> Limits:
        calls.append(directory)
        return dataclasses.replace(
            measured, device=module.device_of(tmp_path), date=f"day {len(calls)}"
        )

    monkeypatch.setattr(module, "measure", measured_anew)
    said: list[str] = []
    first = Limits.current(tmp_path, path=path, say=said.append)
    again = Limits.current(tmp_path, path=path, say=said.append)
    assert again == first
    assert len(calls) == 1
    assert "day 1" in said[-1]
    assert Limits.current(tmp_path, True, path=path, say=said.append).date == "day 2"
    assert Limits.current(tmp_path, path=path, say=said.append).date == "day 2"
    assert len(json.loads(path.read_text())["limits"]) == 1


def test_machines_and_drives_are_told_apart(measured: Limits, tmp_path: Path) -> None:
    path = tmp_path / "limits.json"
    here = dataclasses.replace(measured, device=module.device_of(tmp_path))
    elsewhere = dataclasses.replace(here, device="another", date="long ago")
    of_another = dataclasses.replace(here, machine={**here.machine, "cpu": "another"})
    for limits in (elsewhere, of_another):
        save(limits, path)
    assert saved(tmp_path, path) is None
    assert saved(None, path) is None
    save(here, path)
    assert saved(tmp_path, path) == here
    assert len(json.loads(path.read_text())["limits"]) == 3


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 0}', '{"schema": 2}', '{"schema": 2, "limits": [{}]}', "\0"]
)
def test_a_damaged_file_is_measured_again(measured: Limits, tmp_path: Path, text: str) -> None:
    path = tmp_path / "limits.json"
    path.write_text(text)
    said: list[str] = []
    assert saved(tmp_path, path, say=said.append) is None
    assert len(said) == 1
    assert "\n" not in said[0]
    assert str(path) in said[0]
    save(measured, path)
    assert len(json.loads(path.read_text())["limits"]) == 1


def test_a_cache_that_cannot_be_written_is_told(
    measured: Limits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(module, "measure", lambda *_, **__: measured)
    said: list[str] = []
    path = tmp_path / "file" / "limits.json"
    assert Limits.current(tmp_path, path=path, say=said.append) == measured
    assert "not saved" in said[-1]


def test_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert module.default_path() == tmp_path / "tiered_emb" / "limits.json"


# ---- The command


def run_command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    limits_command.add_arguments(parser)
    return limits_command.run(parser.parse_args(arguments))


def test_command(
    measured: Limits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(options, "measure", lambda *_, **__: measured)
    figure = Figure(2e10, 1e10, 3e10)
    assert run_command("--smoke", "--out", str(tmp_path / "out")) == 0
    text = capsys.readouterr().out
    for part in (measured.date, "rows in random order", "4.0 KiB", "sync after an append"):
        assert part in text
    report = json.loads((tmp_path / "out" / "limits.json").read_text())
    assert report["command"] == "tiered-emb bench limits --smoke"
    assert report["smoke"]
    assert Limits.from_json(report["limits"]) == measured
    with_link = dataclasses.replace(measured, link=LinkLimits("a gpu", figure, figure, figure))
    assert "link, a gpu" in limits_command.limits_text(with_link)


def test_command_prints_json(
    measured: Limits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "measure", lambda *_, **__: measured)
    assert run_command("--smoke", "--json") == 0
    assert Limits.from_json(json.loads(capsys.readouterr().out)["limits"]) == measured


def test_commit_of_a_script(tmp_path: Path) -> None:
    """None outside a checkout, also where the folder above is one of something else."""
    script = tmp_path / "script.py"
    script.write_text("")
    for place in (script, ROOT / ".venv" / "none.py"):
        head = provenance(str(place), [])
        assert head["commit"] is None
        assert head["commit_changed"] is False
