"""Where the Parquet files of real data are that the benchmarks use; absent ones are left out."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(
    os.environ.get(
        "TIERED_EMB_SHARED_DATA",
        Path(__file__).resolve().parent.parent.parent / "shared" / "data",
    )
)
