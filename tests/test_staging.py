"""What the processor does for tables on a device, as the cost model has it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from test_wall import PLANTED, RATES, synthetic_run

from tiered_emb.bench.bound import DeviceRates, StepWork
from tiered_emb.bench.predict import Host, Staging, demand_of_run, fit_staging, predict

STAGING = Staging(pass_s=1e-3, lookup_s=2e-9, row_s=3e-8, move_s=4e-8)
ON_DEVICE = replace(RATES, device=DeviceRates(1e12, 5e10, 5e10))


def staged_run(trains: bool, lookups: float, unique: float, moved: float) -> dict[str, Any]:
    """A run with an hbm tier on a machine whose staging is `STAGING`."""
    run = synthetic_run("dlrm-small", 32, 512, 0, trains)
    step = StepWork(**run["work"])
    down = moved if trains else 0.0
    step = replace(step, lookups=lookups, unique_rows=unique, rows_up=moved, rows_down=down,
                   on_device=True)  # fmt: skip
    run["work"] = asdict(step)
    taken = predict(demand_of_run(run), Host(ON_DEVICE, PLANTED, STAGING))
    assert taken.binding in ("layers", "stage")
    run["contenders"]["tiered"]["round_ms_p50"] = taken.step_s * 1e3
    return run


def test_staging_is_found() -> None:
    """What the processor does for a device, from steps that train and that do not."""
    runs = [
        staged_run(True, 5e4, 1e4, 3e3),
        staged_run(True, 2e5, 6e4, 2e4),
        staged_run(True, 1e5, 9e4, 0),
        staged_run(False, 5e4, 2e4, 9e3),
        staged_run(False, 3e5, 2e4, 1e3),
    ]
    assert asdict(fit_staging(runs)) == pytest.approx(asdict(STAGING), rel=1e-4)
    with pytest.raises(ValueError, match="no runs"):
        fit_staging([])


def test_a_host_stages_what_is_on_a_device() -> None:
    demand = demand_of_run(staged_run(True, 1e5, 5e4, 1e4))
    unknown, known = (Host(ON_DEVICE, PLANTED, staging) for staging in (None, STAGING))
    stage_s = 2e-3 + 1e5 * 2e-9 + 5e4 * 3e-8 + 2e4 * 4e-8
    assert known.busy_s(demand)["stage"] == pytest.approx(stage_s)
    assert unknown.busy_s(demand)["stage"] == 0
    assert predict(demand, known).step_s == pytest.approx(demand.step.dense_s + stage_s)
    assert predict(demand, unknown).step_s < predict(demand, known).step_s
    assert known.busy_s(demand)["dram"] == 0  # a part of moving rows
    in_dram = replace(demand, step=replace(demand.step, on_device=False))
    taken = known.busy_s(in_dram)  # the processor looks up and updates, and the layers wait
    assert predict(in_dram, known).step_s == pytest.approx(taken["layers"] + taken["dram"])
    on_host = Host(RATES, PLANTED)
    assert on_host.busy_s(demand)["dram"] == on_host.busy_s(in_dram)["dram"]
    assert known.busy_s(in_dram)["stage"] == 0
    assert known.busy_s(in_dram)["dram"] > known.busy_s(demand)["dram"]  # which looks nothing up
