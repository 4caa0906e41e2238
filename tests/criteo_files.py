"""Small click logs of the real form: heavy-tailed integers, hashed categories, missing values."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


def log_lines(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        integers = np.exp(rng.normal(2, 2, 13)).astype(int) - 2
        categories = rng.zipf(1.3, 26) * 2654435761 % 2**32
        fields = [str(rng.integers(0, 2))]
        fields += ["" if rng.random() < 0.2 else str(value) for value in integers]
        fields += ["" if rng.random() < 0.2 else f"{value:08x}" for value in categories]
        lines.append("\t".join(fields))
    return lines


def write_log(path: Path, lines: list[str]) -> Path:
    """As text, or gzipped where the name ends in .gz."""
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path
