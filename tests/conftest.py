"""Shared by the Python tests: hypothesis profiles, and a thread count that tests may change."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

import tiered_emb as te
from tiered_emb.device import tier
from tiered_emb.device.runtime import EmulatedRuntime, Runtime

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the kernels are imported

# `ci` draws the same examples in every run and keeps no files; HYPOTHESIS_PROFILE=long explores
# (with pytest --timeout 0).
_COMMON = {
    "deadline": None,
    "print_blob": True,
    "report_multiple_bugs": False,
    "suppress_health_check": [
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
    ],
}
hypothesis.settings.register_profile(
    "ci", derandomize=True, database=None, max_examples=30, **_COMMON
)
hypothesis.settings.register_profile("long", max_examples=3000, **_COMMON)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


_runtime_of = tier.runtime_of


def _hostile_runtime_of(device: torch.device) -> Runtime:
    """What is emulated is hostile in tests: memory that has not arrived holds NaNs."""
    return EmulatedRuntime(hostile=True) if device.type == "cpu" else _runtime_of(device)


tier.runtime_of = _hostile_runtime_of


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    threads = te.get_num_threads()
    yield
    te.set_num_threads(threads)
