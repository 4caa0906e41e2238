"""The Triton kernels compiled ahead of time for three generations of GPUs, as recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parent / "compiled_kernels.py"
RECORD = json.loads(SCRIPT.with_suffix(".json").read_text())


@pytest.mark.slow
def test_code_is_what_was_recorded() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    told = subprocess.run(
        [sys.executable, SCRIPT],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=240,
    )
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("kernel", RECORD)
def test_rows_are_loaded_in_128_bits_and_nothing_spills(kernel: str) -> None:
    for architecture, facts in RECORD[kernel].items():
        assert facts["spill_bytes"] == 0, architecture
        assert facts["registers"] <= 128, architecture
        if "gradients" not in kernel:  # there a thread has one column
            assert facts["loads_128"] > 0, architecture
            assert facts["stores_128"] > 0, architecture
