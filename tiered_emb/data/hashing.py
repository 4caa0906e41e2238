"""Stable 64-bit keys for values and crosses, and the step from a key to a row number.

A *key* stands for one value of one column: equal values give equal keys in every process, on every
machine and in every chunk of a file. Integers and text go through different functions; a missing
value has a key of its own. A *row* is ``mix(key, table) % rows``.

Keys are mixed before they become rows, so neighbouring ids never share a page just because the
data set numbered them by age or category.

Source of the mixer: SplitMix64's finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom
number generators", OOPSLA 2014). All functions are pure, vectorised and O(n).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MUL1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL2 = np.uint64(0x94D049BB133111EB)

MISSING_KEY = np.uint64(0x6D697373696E6721)


def mix64(values: Keys) -> Keys:
    """A bijection of the 64-bit integers whose output bits all depend on all input bits."""
    z = values + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MUL1
    z = (z ^ (z >> np.uint64(27))) * _MUL2
    mixed: Keys = z ^ (z >> np.uint64(31))  # numba compiles this function, too
    return mixed


def text_key(text: str | bytes) -> int:
    """The key of one piece of text."""
    raw = text.encode() if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def text_keys(texts: Iterable[str | bytes]) -> Keys:
    """The keys of many pieces of text, in order. About 1 us each: hash distinct values only."""
    return np.fromiter((text_key(t) for t in texts), dtype=np.uint64)


def number_keys(values: npt.NDArray[np.generic]) -> Keys:
    """The keys of numbers: integers by value, floats by their bits (-0.0 counts as 0.0)."""
    if values.dtype.kind == "f":
        doubles = values.astype(np.float64) + 0.0
        return mix64(doubles.view(np.uint64))
    if values.dtype == np.uint64:
        return mix64(values.astype(np.uint64))
    return mix64(values.astype(np.int64).view(np.uint64))


def cross_keys(parts: Sequence[Keys]) -> Keys:
    """The keys of a cross: depends on every part and on their order."""
    result = mix64(parts[0])
    for part in parts[1:]:
        result = mix64(result * np.uint64(3) + part)
    return result


def table_keys(keys: Keys, table: str) -> Keys:
    """Keys mixed with the name of a table, so that no two tables order their rows alike."""
    return mix64(keys ^ np.uint64(text_key(table)))


def hashed_rows(keys: Keys, table: str, rows: int) -> Ids:
    """Row numbers in ``[0, rows)`` for keys: the hashing trick."""
    return (table_keys(keys, table) % np.uint64(rows)).astype(np.int64)
