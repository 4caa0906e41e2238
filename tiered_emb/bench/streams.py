"""Synthetic ids: Zipf's law, and the reuse that Meta's published embedding traces have.

Ids are scattered over a table by a fixed bijection or permutation, so that rows that are used often
do not lie side by side.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tiered_emb.data.hashing import text_key

Ids = npt.NDArray[np.int64]

# Of the traces of 2022 (github.com/facebookresearch/dlrm_datasets, MIT), the mean of its 16 files:
# shares of rows, and of lookups, whose row was looked up 1, 2, 3-4, 5-8, ... times in one batch of
# 131,072 samples (1.405 G lookups of 110.26 M rows in 788 tables).
META_2022_ROWS = (0.342, 0.144, 0.149, 0.138, 0.112, 0.068, 0.029, 0.010, 0.004, 0.002, 0.001)
META_2022_LOOKUPS = (
    *(0.027, 0.023, 0.040, 0.068, 0.105, 0.120, 0.099, 0.070, 0.059),
    *(0.054, 0.040, 0.072, 0.064, 0.047, 0.021, 0.017, 0.075),
)
META_2022_LOOKUPS_PER_ROW = 12.74
META_2022_ROWS_A_TABLE = 139_900
META_2022_POOLING = 14
"""Lookups a sample a table, 13.6, as a whole number."""


class IdStream(Protocol):
    """Ids of one table, as many as are asked for, in order."""

    def draw(self, count: int) -> Ids:
        """The next `count` ids, int64."""


class Zipf:
    """Draws ranks 1..n with probability proportional to rank ** -exponent, many at a time.

    Exact; about one draw in twenty is repeated. Source: Hörmann and Derflinger,
    "Rejection-inversion to generate variates from monotone discrete distributions", ACM TOMACS
    6(3), 1996.
    """

    def __init__(self, n: int, exponent: float) -> None:
        if n < 1 or exponent <= 0 or exponent == 1:
            raise ValueError(f"Zipf needs n >= 1 and an exponent above 0, not 1: {n}, {exponent}")
        self._n = n
        self._s = exponent
        self._low = self._integral(np.array(1.5)) - 1.0
        self._high = self._integral(np.array(n + 0.5))
        self._certain = 2.0 - self._inverse(
            self._integral(np.array(2.5)) - np.array(2.0) ** -exponent
        )

    def _integral(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return (x ** (1.0 - self._s) - 1.0) / (1.0 - self._s)

    def _inverse(self, y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.maximum(1.0 + y * (1.0 - self._s), 1e-300) ** (1.0 / (1.0 - self._s))

    def draw(self, rng: np.random.Generator, count: int) -> Ids:
        """`count` ranks, at least 1 and at most n."""
        ranks = np.empty(count, dtype=np.int64)
        left = np.arange(count)
        while len(left):
            u = self._high + rng.random(len(left)) * (self._low - self._high)
            x = self._inverse(u)
            k = np.clip(np.rint(x), 1, self._n)
            taken = (k - x <= self._certain) | (u >= self._integral(k + 0.5) - k**-self._s)
            ranks[left[taken]] = k[taken]
            left = left[~taken]
        return ranks


class Scatter:
    """A fixed bijection of 0..rows-1 that keeps no neighbours: multiply, add, modulo."""

    def __init__(self, rows: int, salt: str) -> None:
        self._rows = rows
        self._add = text_key(salt) % rows
        factor = max(1, int(rows * 0.6180339887498949))
        while math.gcd(factor, rows) != 1:
            factor += 1
        self._factor = factor

    def __call__(self, values: Ids) -> Ids:
        """Where these values go."""
        return (values * self._factor + self._add) % self._rows


class ZipfIds:
    """Ids whose popularity follows Zipf's law; exponent 0: all alike."""

    def __init__(self, rows: int, exponent: float, salt: str, seed: int) -> None:
        self._rng = np.random.default_rng([seed, text_key(salt) & 0xFFFFFFFF])
        self._rows = rows
        self._zipf = Zipf(rows, exponent) if exponent else None
        self._scatter = Scatter(rows, salt)

    def draw(self, count: int) -> Ids:
        """See `IdStream`."""
        if self._zipf is None:
            return self._rng.integers(0, self._rows, count)
        return self._scatter(self._zipf.draw(self._rng, count) - 1)


def reuse_counts(
    rows: int, of_rows: tuple[float, ...], of_lookups: tuple[float, ...], lookups_per_row: float
) -> Ids:
    """How often each of about `rows` rows is used in a stream with the given histogram of reuse.

    A bin's rows are spread evenly over the logarithms of its counts, bent so that the bin's mean is
    right.

    Args:
        of_rows, of_lookups: shares of rows, and of lookups, whose row occurs 1, 2, 3-4, 5-8, ...
            times.
    """
    total = rows * lookups_per_row
    counts = []
    for k, share in enumerate(of_lookups):
        low, high = (2 ** (k - 1) + 1 if k else 1), 2**k
        # Shares of rows are given to three places: of the larger bins too few to go by.
        exact = k < len(of_rows) - 3
        mean = share * total / (of_rows[k] * rows) if exact else math.sqrt(low * high)
        number = round(share * total / float(np.clip(mean, low, high)))
        position = (np.arange(number) + 0.5) / max(number, 1)
        bend = 1.0
        for _ in range(30):  # the mean falls as the bend grows
            spread = low * (high / low) ** (position**bend)
            bend *= (spread.mean() / np.clip(mean, low, high)) ** 2 if number else 1.0
        counts.append(np.clip(np.rint(low * (high / low) ** (position**bend)), low, high))
    return np.concatenate(counts).astype(np.int64)


class MetaIds:
    """Ids reused as in one batch of Meta's traces of 2022, over and over in another order.

    The traces say how often rows are used, not in which order: a random one favours no policy.

    Args:
        rows: of the table.
    """

    def __init__(self, rows: int, salt: str, seed: int) -> None:
        counts = reuse_counts(rows, META_2022_ROWS, META_2022_LOOKUPS, META_2022_LOOKUPS_PER_ROW)
        # About as many rows as asked for; some that are used once make up for the rest.
        counts = np.concatenate([np.ones(max(rows - len(counts), 0), np.int64), counts[-rows:]])
        self._rng = np.random.default_rng([seed, text_key(salt) & 0xFFFFFFFF])
        at = self._rng.permutation(rows)
        self._pass = np.repeat(at, counts)
        self._at = len(self._pass)

    def draw(self, count: int) -> Ids:
        """See `IdStream`."""
        parts = []
        while count:
            if self._at == len(self._pass):
                self._rng.shuffle(self._pass)
                self._at = 0
            part = self._pass[self._at : self._at + count].copy()
            self._at += len(part)
            count -= len(part)
            parts.append(part)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
