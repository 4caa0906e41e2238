"""Shared by the Python tests: hypothesis profiles, and a thread count that tests may change."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

import tiered_emb as te

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the kernels are imported

# `ci` draws the same examples in every run and keeps no files; HYPOTHESIS_PROFILE=long explores.
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


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    threads = te.get_num_threads()
    yield
    te.set_num_threads(threads)
