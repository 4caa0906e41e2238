"""A machine and a trace for tests of the tuner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tiered_emb.bench import options
from tiered_emb.bench.bound import DeviceRates, MachineRates
from tiered_emb.bench.calibration import Engine
from tiered_emb.bench.predict import Coefficients, Host
from tiered_emb.trace.format import TraceTable
from tiered_emb.trace.writer import TraceWriter

MIB = float(1 << 20)


def machine(device: bool = False) -> Host:
    rates = MachineRates(
        gather=lambda _: 1e9,
        update=lambda _: 5e8,
        reads_per_s=1e5,
        write_bytes_per_s=1e9,
        device=DeviceRates(1e12, 2e10, 2e10) if device else None,
    )
    return Host(rates, Coefficients(0, 0, 1e-9, 1e-7, 1e-5, 2e-7, 1.0))


HERE = machine()
VALIDATION = {
    "predicted": [{"name": "one", "measured_ms": 10.0, "predicted_ms": 11.0, "error": 0.1}],
    "within_15_percent": 1,
}


def know_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands take `HERE` for the machine, which need not be measured."""

    class Known:
        def to_json(self) -> None:
            return None

    monkeypatch.setattr(options, "limits_of", lambda *_, **__: Known())
    monkeypatch.setattr(options, "engine_of", lambda *_, **__: Engine(HERE, VALIDATION))


def write_trace(path: Path, batches: int = 150, dim: int | None = 256) -> Path:
    """A large table of which any row is as likely, and a small hot one."""
    rng = np.random.default_rng(0)
    tables = {"large": TraceTable(60_000, dim), "hot": TraceTable(600, dim)}
    with TraceWriter(path, tables) as writer:
        for number in range(batches):
            writer.write(number, "large", rng.integers(0, 60_000, 200))
            writer.write(number, "hot", rng.integers(0, 600, 300))
    return path
