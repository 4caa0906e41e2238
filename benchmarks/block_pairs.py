"""Two ways of doing the same, in blocks that take turns: what one takes of the other's time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def trimmed_mean(values: Floats) -> float:
    """Without the tenth at each end."""
    cut = len(values) // 10
    return float(np.sort(values)[cut : len(values) - cut].mean())


def ratio_of_sums(seconds: Floats) -> float:
    """Of pairs, [n, 2]: of all blocks, those of rare work too."""
    return float(seconds[:, 1].sum() / seconds[:, 0].sum())


def bounds(values: Floats, estimate: Callable[[Floats], float]) -> list[float]:
    """Within which the estimate is with a probability of 95%: a bootstrap's percentiles."""
    rng = np.random.default_rng(0)
    drawn = [estimate(values[rng.integers(len(values), size=len(values))]) for _ in range(2000)]
    return [float(v) for v in np.percentile(drawn, [2.5, 97.5])]
