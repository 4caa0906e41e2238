from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiered_emb.bench import dlrm
from tiered_emb.bench.bound import DeviceRates, MachineRates, StepWork, busy
from tiered_emb.bench.contenders import OPTIMIZERS, Training
from tiered_emb.bench.demand import (
    Demand,
    IdTrace,
    LayerCost,
    blocks_of,
    demand_of,
    demand_of_run,
    layer_cost,
    row_bytes,
    slots_of,
)
from tiered_emb.bench.limits import Limits
from tiered_emb.bench.limits_figures import (
    DramLimits,
    Figure,
    MixedLimits,
    ReadLimits,
    RowLimits,
    SsdLimits,
    StreamLimits,
    SyncLimits,
)
from tiered_emb.bench.predict import (
    Coefficients,
    Host,
    Platform,
    bytes_by_tier,
    compare,
    fit,
    predict,
)
from tiered_emb.bench.report import shapes
from tiered_emb.bench.wall import (
    PLATFORMS,
    flop_per_byte,
    growth,
    parts,
    parts_of,
    platform,
    platforms,
    projection,
    trends,
    validated,
    years_of,
)
from tiered_emb.bench.workloads import named, resized
from tiered_emb.cli.main import main
from tiered_emb.data.errors import DataError

RATES = MachineRates(gather=lambda _: 4e9, update=lambda _: 2e9, reads_per_s=1e5,
                     write_bytes_per_s=1e9)  # fmt: skip
STEP = StepWork(0.0, lookups=1000, unique_rows=100, weight_bytes=64, row_bytes=68, trains=True,
                misses=20, blocks_read=10, written_bytes=4000)  # fmt: skip
DEMAND = Demand(STEP, LayerCost(flops=8e6, bytes=1e5), batch_size=50, bags=200, hbm_misses=40)
PLATFORM = Platform("p", flops=1e12, hbm=1e9, link=1e8, dram=2e8, reads_per_s=1e4,
                    write_bytes_per_s=1e7)  # fmt: skip
PLANTED = Coefficients(
    flop_s=2e-11, byte_s=1e-10, lookup_s=5e-8, miss_s=2e-6, fetch_s=1e-3, plan_s=5e-7,
    drive=2.0,
)  # fmt: skip


def test_bytes_of_each_tier() -> None:
    assert bytes_by_tier(DEMAND) == {
        "hbm": (1000 + 200) * 64 + 2 * 40 * 68 + 1000 * 64 + 2 * 100 * 68,
        "link": 1000 * 8 + 40 * 68,
        "dram": 2 * 3 * 40 * 68 + 2 * 10 * 4096 + 20 * 68,
        "ssd": 10 * 4096 + 4000,
    }
    only_read = replace(DEMAND, step=replace(STEP, trains=False, written_bytes=0.0))
    assert bytes_by_tier(only_read)["hbm"] == (1000 + 200) * 64 + 40 * 68


def test_platform_by_hand() -> None:
    moved = bytes_by_tier(DEMAND)
    found = predict(DEMAND, PLATFORM)
    assert found.busy_s == pytest.approx({
        "layers": 1e5 / 1e9,  # longer than 8e6 / 1e12
        "hbm": moved["hbm"] / 1e9,
        "link": moved["link"] / 1e8,
        "dram": moved["dram"] / 2e8,
        "ssd": 10 / 1e4 + 4000 / 1e7,
    })  # fmt: skip
    assert (found.step_s, found.binding) == (pytest.approx(1.4e-3), "ssd")
    assert found.in_line_s == pytest.approx(sum(found.busy_s.values()))
    slow_hbm = predict(DEMAND, replace(PLATFORM, hbm=1e7))
    assert slow_hbm.binding == "hbm"
    assert slow_hbm.step_s == pytest.approx((1e5 + moved["hbm"]) / 1e7)


def test_processor_by_hand() -> None:
    found = predict(DEMAND, Host(RATES, PLANTED))
    assert found.busy_s == pytest.approx({
        "layers": 2e-11 * 8e6 + 1e-10 * 1e5,
        "dram": 100 * 64 / 4e9 + 100 * 68 / 2e9 + 6 * 5e-8 * 1000,
        "fetch": 2e-6 * 20 + 1e-3,
        "plan": 5e-7 * 20,
        "ssd": 2.0 * (10 / 1e5 + 4000 / 1e9),
    })  # fmt: skip
    rows = found.busy_s["layers"] + found.busy_s["dram"]
    drive = found.busy_s["plan"] + found.busy_s["ssd"]
    assert found.step_s == pytest.approx(max(rows + found.busy_s["fetch"], drive))
    assert found.in_line_s == pytest.approx(rows + drive)
    measured = replace(DEMAND, step=replace(STEP, dense_s=0.25))
    assert predict(measured, Host(RATES, PLANTED)).busy_s["layers"] == 0.25


def test_a_device_takes_the_layers_and_rows_in_hbm() -> None:
    rates = replace(RATES, device=DeviceRates(hbm=1e9, up=1e6, down=2e6))
    step = replace(STEP, rows_up=40, rows_down=30)
    found = predict(replace(DEMAND, step=step), Host(rates, PLANTED))
    assert found.busy_s["hbm"] == pytest.approx((100 * 64 + 2 * 100 * 68) / 1e9)
    assert found.busy_s["link"] == pytest.approx(40 * 68 / 1e6)
    assert found.binding == "link"
    assert found.step_s == pytest.approx(40 * 68 / 1e6)


@pytest.mark.parametrize(
    "rate", ["flops", "hbm", "link", "dram", "reads_per_s", "write_bytes_per_s"]
)
def test_more_is_never_slower(rate: str) -> None:
    times = [
        predict(DEMAND, replace(PLATFORM, **{rate: getattr(PLATFORM, rate) * factor})).step_s
        for factor in (0.01, 0.1, 1, 10, 100)
    ]
    assert times == sorted(times, reverse=True)
    assert times[0] > 0


def test_flop_per_byte_says_which_is_longer() -> None:
    for tier in ("layers", "hbm", "link", "dram", "ssd"):
        model, machine = flop_per_byte(DEMAND, PLATFORM, tier)
        takes_s = PLATFORM.busy_s(DEMAND)[tier]
        assert takes_s * PLATFORM.flops / DEMAND.layers.flops == pytest.approx(machine / model)
    no_drive = replace(DEMAND, step=replace(STEP, blocks_read=0.0, written_bytes=0.0))
    assert flop_per_byte(no_drive, PLATFORM, "ssd") == (0.0, 0.0)


def test_layers_by_hand() -> None:
    workload = resized(named("dlrm-small", 0.01), batch_size=10)
    vectors, dim = 27, 32
    weights = 13 * 64 + 64 * dim + (dim + vectors * (vectors - 1) // 2) * 64 + 64 * 32 + 32
    forward = layer_cost(workload, trains=False)
    assert forward.flops == 2 * 10 * (weights + vectors * vectors * dim)
    training = layer_cost(workload, trains=True)
    assert 2.8 < training.flops / forward.flops <= 3  # the first layer's input has no gradient
    assert training.bytes > forward.bytes > 4 * 10 * vectors * dim
    twice = layer_cost(resized(workload, batch_size=20), trains=True)
    assert twice.flops == 2 * training.flops


def test_layer_cost_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    layer_cost(named("dlrm-dcnv2", 0.001), trains=True)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_row_bytes_are_the_tables(optimizer: str) -> None:
    workload = resized(named("dlrm-small", 0.01), dim=16)
    for training in (Training(optimizer), Training(optimizer, trains=False)):
        assert row_bytes(workload, training) == dlrm.row_bytes(workload, training)


@pytest.mark.parametrize(
    ("dram", "rows", "row", "unique", "trains", "slots"),
    [
        (13_200_330, 1_000_025, 132, 8531, True, 64_643),
        (76_801_920, 1_000_025, 256, 5177, False, 254_608),
        (52_641_326, 1_020_181, 516, 4407, True, 91_638),
        (13_600_340, 1_000_025, 68, 14_096, True, 83_284),
        (6_600_165, 1_000_025, 132, 5177, True, 44_076),
        (130_003_250, 1_000_025, 260, 8531, True, 396_617),
        (25_801_393, 500_027, 516, 4556, True, 49_987),
        (46_558_720, 447_680, 260, 51_853, True, 157_154),
    ],
)
def test_slots_are_about_those_of_engines(
    dram: int, rows: int, row: int, unique: float, trains: bool, slots: int
) -> None:
    assert slots_of(dram, rows, row, unique, trains) == pytest.approx(slots, rel=0.11)


def test_slots_hold_no_more_than_all_rows() -> None:
    assert slots_of(1e12, 1000, 132, 100, True) == 1000
    assert slots_of(1000, 1_000_000, 132, 100, True) <= 7


def test_several_rows_of_a_block_are_one_read() -> None:
    assert blocks_of(0, 1e9) == 0
    assert blocks_of(1000, 1e12) == pytest.approx(1000, rel=1e-3)
    assert blocks_of(1e6, 1.45e6) <= 1.45e6 * 1.45 / 4096


@pytest.fixture(scope="module")
def trace() -> IdTrace:
    return IdTrace(resized(named("dlrm-small", 0.03), batch_size=128), warm_up=6, counted=6)


def test_fewer_misses_with_more_slots(trace: IdTrace) -> None:
    rows = trace.workload.total_rows
    found = [trace.misses(int(rows * share)) for share in (0.1, 0.2, 0.4, 0.8, 1.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-2] > found[-1] == 0
    assert found[0] <= trace.unique_rows
    assert trace.lookups == 26 * 128


def test_demand_of_tiers(trace: IdTrace) -> None:
    training = Training()
    total = trace.workload.total_rows * row_bytes(trace.workload, training)
    all_dram = demand_of(trace, training)
    assert all_dram.step.misses == all_dram.step.blocks_read == all_dram.step.written_bytes == 0
    assert all_dram.hbm_misses == all_dram.step.unique_rows == trace.unique_rows
    tiers = demand_of(trace, training, dram_bytes=0.3 * total, hbm_bytes=0.1 * total)
    assert 0 < tiers.step.blocks_read <= tiers.step.misses < tiers.hbm_misses < trace.unique_rows
    assert tiers.step.written_bytes == tiers.step.misses * tiers.step.row_bytes
    assert Demand.of_dict(json.loads(json.dumps(tiers.as_dict()))) == tiers
    with pytest.raises(DataError, match=r"rows fit, but a batch has"):
        demand_of(trace, training, dram_bytes=1000)


def synthetic_run(
    model: str, dim: int, batch: int, misses: float, trains: bool, factor: float = 1.0
) -> dict[str, Any]:
    """A run on a machine with the planted coefficients; what prefetches takes `factor` longer."""
    workload = resized(named(model, 0.01), dim=dim, batch_size=batch)
    training = Training(trains=trains)
    lookups = batch * sum(workload.pooling.values())
    row = row_bytes(workload, training)
    written = misses * row if trains else 0.0
    step = StepWork(
        dense_s=0.0, lookups=lookups, unique_rows=0.2 * lookups, weight_bytes=4 * dim,
        row_bytes=row, trains=trains, misses=misses, blocks_read=misses, written_bytes=written,
    )  # fmt: skip
    run: dict[str, Any] = {
        "workload": {
            "name": model, "dim": dim, "batch_size": batch, "tables": len(workload.rows),
        },
        "training": {"trains": trains},
        "tiers": {"ssd": misses > 0, "dram_share": 0.1},
        "work": asdict(step),
    }  # fmt: skip
    machine = Host(RATES, PLANTED)
    step = replace(step, dense_s=predict(demand_of_run(run), machine).busy_s["layers"])
    run["work"] = asdict(step)
    demand = demand_of_run(run)
    found = predict(demand, machine)
    in_dram = predict(replace(demand, step=replace(step, misses=0, blocks_read=0)), machine)
    seconds = {
        "tiered": found.step_s * factor,
        "layers alone": found.busy_s["layers"],
        "tiered, in line": found.in_line_s,
        "tiered, all in dram": in_dram.busy_s["layers"] + in_dram.busy_s["dram"],
    }
    names = seconds if misses else ("tiered", "layers alone")
    counted = {"plan_ahead_ns": found.busy_s["plan"] * 1e9, "move_ns": found.busy_s["ssd"] * 1e9}
    run["contenders"] = {
        name: {"round_ms_p50": seconds[name] * 1e3, "a_step": counted} for name in names
    }
    return run


@pytest.fixture(scope="module")
def runs() -> list[dict[str, Any]]:
    return [
        synthetic_run("dlrm-small", 32, 512, 3000, True),
        synthetic_run("dlrm-kaggle", 16, 1024, 20000, True),  # the drive decides
        synthetic_run("dlrm-kaggle", 64, 256, 100, False),
        synthetic_run("dlrm-kaggle", 64, 2048, 900, True),
        synthetic_run("dlrm-small", 16, 2048, 0, True),
    ]


def test_fit_finds_planted_coefficients(runs: list[dict[str, Any]]) -> None:
    assert busy(demand_of_run(runs[1]).step, RATES).ssd > 0
    assert predict(demand_of_run(runs[1]), Host(RATES, PLANTED)).binding == "ssd"
    assert asdict(fit(runs, RATES).coefficients) == pytest.approx(asdict(PLANTED), rel=1e-4)
    with pytest.raises(ValueError, match="no runs"):
        fit([], RATES)


def test_no_coefficient_is_negative() -> None:
    run = synthetic_run("dlrm-small", 32, 512, 3000, True)
    run["contenders"]["tiered, all in dram"]["round_ms_p50"] = 1e-6  # less than its layers
    assert min(asdict(fit([run], RATES).coefficients).values()) >= 0


def test_compare_says_how_far_off(runs: list[dict[str, Any]]) -> None:
    machine = Host(RATES, PLANTED)
    slower = synthetic_run("dlrm-small", 32, 512, 3000, True, factor=1.25)
    exact, off = compare([runs[0], {"name": "slower", **slower}], machine)
    assert exact["error"] == pytest.approx(0)
    assert exact["name"] == "dlrm-small, dim 32, batch 512, 10% in dram"
    assert (off["name"], off["error"]) == ("slower", pytest.approx(-0.2))
    simulated = {**slower, "demand": replace(DEMAND, step=replace(STEP, misses=7)).as_dict()}
    assert compare([simulated], machine)[0]["misses_predicted"] == 7


def test_every_part_has_a_source_and_sane_figures() -> None:
    found = parts()
    assert {name for row in PLATFORMS.values() for name in row} <= set(found)
    for part in found.values():
        assert part.checked >= "2026-01-01"
        assert part.source
        assert 2005 <= part.year <= 2030
        assert part.bandwidth_gb_s > 0
        if part.kind == "gpu":
            assert part.tflops_of == "bf16 dense"
            assert part.tflops is not None
            assert part.capacity_gb is not None
            assert 20 <= part.tflops * 1e3 / part.bandwidth_gb_s <= 1000
        if part.kind == "ssd":
            assert part.reads_per_s is not None
            assert part.reads_per_s * 4096 <= 1.3e9 * part.bandwidth_gb_s
    assert {part.kind for part in found.values()} == {"gpu", "link", "dram", "ssd"}
    for name in PLATFORMS:
        assert [part.kind for part in parts_of(name)] == ["gpu", "link", "dram", "ssd"]
    used = {part.part for _, row in platforms() for part in row}
    assert used == set(found)


def test_projection_says_what_does_not_fit() -> None:
    rows = {row["platform"]: row for row in projection(DEMAND, 50e9, 1e9)}
    assert not rows["A100-40"]["fits"]
    assert rows["A100-80"]["fits"]
    for row in rows.values():
        assert row["samples_per_s"] == pytest.approx(50 / row["step_s"])
        assert row["binding"] in row["busy_s"]
    first = projection(DEMAND, 0, 0, Host(RATES, PLANTED))[0]
    assert first["platform"] == "the fitted machine"
    assert first["step_s"] == predict(DEMAND, Host(RATES, PLANTED)).step_s


@pytest.mark.parametrize(
    ("edition", "of", "in_20_years"),
    [
        ("2021", "compute", 90_000),
        ("2021", "dram", 30),
        ("2021", "link", 30),
        ("2024", "compute", 60_000),
        ("2024", "dram", 100),
        ("2024", "link", 30),
    ],
)
def test_growth_is_the_articles(edition: str, of: str, in_20_years: float) -> None:
    assert growth()[edition][of] ** 20 == pytest.approx(in_20_years, rel=0.15)
    assert growth()[edition]["capacity"] ** 2 == pytest.approx(2)


def test_trends_grow_from_the_base() -> None:
    rows = trends(DEMAND, (2022, 2032))
    base = predict(DEMAND, platform("H100", *parts_of("H100")))
    assert [(row["edition"], row["year"]) for row in rows] == [
        ("2021", 2022), ("2021", 2032), ("2024", 2022), ("2024", 2032),
    ]  # fmt: skip
    assert rows[0]["busy_s"] == pytest.approx(dict(base.busy_s))
    assert rows[3]["busy_s"]["link"] == pytest.approx(base.busy_s["link"] / 1.4**5)
    assert rows[3]["busy_s"]["dram"] == pytest.approx(base.busy_s["dram"] / 1.6**5)
    assert rows[1]["capacity_factor"] == pytest.approx(2**5)
    wall = [row["machine_flop_per_byte"] for row in rows]
    assert wall[1] > wall[0]
    assert list(years_of("2024-2029")) == [2024, 2026, 2028]


def limits_json() -> dict[str, Any]:
    """Those of `RATES`; figures that nobody reads here are 1."""

    def filled(kind: Any, **known: Any) -> Any:
        known = {k: Figure(v, v, v) if isinstance(v, float) else v for k, v in known.items()}
        rest = {f.name: Figure(1.0, 1.0, 1.0) if f.type == "Figure" else 1 for f in fields(kind)}
        return kind(**(rest | known))

    row = filled(RowLimits, row_bytes=64, threads=1, ahead_rows=8, gather_bytes_per_s=4e9,
                 gather_prefetched_bytes_per_s=4e9, update_bytes_per_s=2e9)  # fmt: skip
    dram = filled(
        DramLimits, arena_bytes=1, streams=(filled(StreamLimits, threads=1),), rows=(row,)
    )
    read = filled(ReadLimits, block_bytes=4096, queue_depth=64, threads=1, reads_per_s=1e5)
    mixed = filled(MixedLimits, read_block_bytes=4096, write_block_bytes=4096, read_share=1)
    ssd = filled(SsdLimits, is_direct=True, file_bytes=1, reads=(read,), mixed=mixed,
                 sequential_write_bytes_per_s=1e9, fsync_us=filled(SyncLimits))  # fmt: skip
    limits = filled(Limits, date="", smoke=False, machine={}, versions={}, device="", dram=dram,
                    ssd=ssd, link=None)  # fmt: skip
    return asdict(limits)


def report_file(tmp_path: Path, runs: list[dict[str, Any]]) -> Path:
    path = tmp_path / "runs.json"
    path.write_text(json.dumps({"runs": runs, "limits": limits_json()}))
    return path


def test_validated_splits_runs(tmp_path: Path, runs: list[dict[str, Any]]) -> None:
    off = synthetic_run("dlrm-small", 32, 512, 3000, True, factor=2)
    _, found = validated(report_file(tmp_path, [*runs, runs[0], off]))
    assert len(found["fitted_on"]) == 4
    assert [round(row["error"], 3) for row in found["predicted"]] == [0, 0, -0.5]
    assert found["within_15_percent"] == 2
    marked = [{**run, "use": "fit" if i else "validation"} for i, run in enumerate(runs)]
    _, found = validated(report_file(tmp_path, marked))
    assert (len(found["fitted_on"]), len(found["predicted"])) == (4, 1)


def test_command(
    tmp_path: Path, runs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--smoke", "--from", str(report_file(tmp_path, runs))]
    arguments = ["bench", "wall", "dlrm-small", *given]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert shapes.checked(report, "wall.json") == [report]
    assert report["is_projection"] is True
    assert str(tmp_path) not in report["command"]
    row: Mapping[str, Any] = report["projection"][1]
    assert {"step_s", "binding", "busy_s"} <= set(row)
    assert {"model_flop_per_byte", "machine_flop_per_byte"} <= set(row)
    assert {"edition", "year", "busy_s"} <= set(report["trends"][0])
    assert report["validation"]["within_15_percent"] == 1
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "A projection from data sheets" in text
    assert "nothing of it measured" in text
    assert "1 of 1 others within 15%" in text


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["no-model"], "no model 'no-model'"),
        (["dlrm-small", "--years", "2036-2024"], "--years 2036-2024"),
        (["dlrm-small", "--years", "soon"], "--years soon"),
        (["dlrm-small", "--hbm", "1KiB"], "rows fit, but a batch has"),
        (["dlrm-small", "--dram", "0%"], "--dram 0%"),
        (["dlrm-small", "--from", "FILE"], "FILE: No such file"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "wall", *arguments, "--smoke"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert what in error


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", "null", '{"runs": [1], "limits": {}}', '{"runs": [], "limits": null}',
     '{"runs": [{"use": "fit"}], "limits": {"dram": 1, "ssd": null}}', "\xff"],
)  # fmt: skip
def test_damaged_reports_are_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.json"
    path.write_bytes(text.encode("latin-1"))
    assert main(["bench", "wall", "dlrm-small", "--smoke", "--from", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no report of DLRM runs" in error


def test_no_platform_of_that_name() -> None:
    with pytest.raises(DataError, match="no platform 'X100'"):
        parts_of("X100")


def test_ids_are_those_of_the_batches(trace: IdTrace) -> None:
    batch = next(iter(trace.workload.batches()))
    first = np.concatenate([
        ids.numpy() if not isinstance(ids, tuple) else ids[0].numpy()
        for ids in batch.sparse.values()
    ])  # fmt: skip
    assert len(first) == trace.lookups
