"""Steps with an hbm tier, predicted and then measured: a part of `bench_tuner.py`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tuner_tables import in_order, runs_text

import tiered_emb as te
from tiered_emb.bench import options
from tiered_emb.bench.calibration import SMOKE_STEPS, STEPS_HBM, Setup
from tiered_emb.bench.dlrm import TIERED, measure
from tiered_emb.bench.predict import WITHIN, Host
from tiered_emb.bench.workloads import Workload
from tiered_emb.trace.reader import Trace
from tiered_emb.tuner.cost import Model, RowFormat, Sizes, outlook
from tiered_emb.tuner.model import Load, model_of
from tiered_emb.tuner.sample import take_sample

Report = dict[str, Any]
BATCHES = 200  # of the trace that the tuner is given

# Shares of the rows in hbm; all are in dram. None of these is among those that the engine is fitted
# to. As many as fill in the steps before those that count.
MODELS = (
    (Setup("dlrm-small", 0.7, 64, 2048, 1.0), (0.03, 0.06, 0.10)),
    (Setup("dlrm-kaggle", 0.08, 32, 1024, 1.0), (0.015, 0.03, 0.06)),
    (Setup("meta-2022", 0.35, 48, 384, 1.0), (0.15, 0.30, 0.50)),
    (Setup("meta-2022", 0.25, 64, 512, 1.0, optimizer=None), (0.30, 0.60)),
    (Setup("dlrm-small", 0.9, 32, 1536, 1.0, optimizer=None), (0.05, 0.10)),
)
SMOKE_MODELS = ((Setup("dlrm-small", 0.05, 16, 128, 1.0), (0.2, 0.6)),)


def bench_hbm(
    host: Host,
    device: str,
    folder: Path,
    smoke: bool,
    record: Callable[[Workload, int, Path], Trace],
) -> Report:
    """Each model at its shares.

    Args:
        host: the engine on this machine, with the device.
        record: other batches of a workload's streams, so many, as a trace.
    """
    rows: list[Report] = []
    pairs: list[bool] = []
    for setup, shares in SMOKE_MODELS if smoke else MODELS:
        trace = record(setup.workload, 20 if smoke else BATCHES, folder / "trace.parquet")
        load = Load(RowFormat(setup.optimizer), batch_size=setup.batch)
        model = model_of(take_sample(trace, warm_up=0.5), load)
        of_model = [_run(replace(setup, hbm=share), model, host, device, folder, smoke)
                    for share in shares]  # fmt: skip
        rows += of_model
        pairs += in_order(of_model)
    within = sum(abs(row["error"]) <= WITHIN for row in rows)
    print(runs_text(rows, "hbm", "rows_up"))
    print(f"{within} of {len(rows)} within 15%; {sum(pairs)} of {len(pairs)} pairs in order")
    assert host.staging is not None
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "emulated",
        "rows": rows,
        "within_15_percent": within,
        "pairs_apart": len(pairs),
        "pairs_in_order": sum(pairs),
        "staging": vars(host.staging),
    }


def _run(setup: Setup, model: Model, host: Host, device: str, folder: Path, smoke: bool) -> Report:
    """Predicts a step, then measures it."""
    hbm_bytes = setup.hbm_bytes
    assert hbm_bytes is not None
    training = replace(setup.training, device=torch.device(device))
    steps = SMOKE_STEPS if smoke else STEPS_HBM
    with tempfile.TemporaryDirectory(dir=folder) as store:
        run = measure(
            setup.workload, training, replace(steps, hbm=te.HBM(hbm_bytes, device)),
            host.rates, Path(store), options.watch,
        )  # fmt: skip
    told = replace(model, layers_s=run["work"]["dense_s"])
    found = outlook(told, Sizes(hbm_bytes=hbm_bytes), host)
    taken = run["contenders"][TIERED]
    measured_ms, predicted_ms = taken["round_ms_p50"], found.step_s * 1e3
    row = {
        "model": replace(setup, hbm=None).name, "hbm_share": setup.hbm, "hbm_bytes": hbm_bytes,
        "layers_ms": run["work"]["dense_s"] * 1e3, "measured_ms": measured_ms,
        "measured_ms_quartiles": [taken["round_ms_p25"], taken["round_ms_p75"]],
        "predicted_ms": predicted_ms, "error": predicted_ms / measured_ms - 1,
        "samples_per_s": setup.batch / measured_ms * 1e3, "binding": found.binding,
        "busy_ms": {name: s * 1e3 for name, s in found.busy_s.items()},
        "rows_up_measured": run["work"]["rows_up"], "rows_up_predicted": found.demand.hbm_misses,
        "rows_down_measured": run["work"]["rows_down"],
    }  # fmt: skip
    print(
        f"{setup.name}: {measured_ms:.2f} ms, predicted {predicted_ms:.2f} ({row['error']:+.0%})",
        flush=True,
    )
    return row
