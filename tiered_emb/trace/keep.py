"""Which of the ids that are looked up a trace keeps: compiled, for it is part of a model's step."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic

from tiered_emb.compiled import compiled

NO_ID = int(np.iinfo(np.int64).min)
_HASHED_AT_ONCE = 128


def _as_pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))


def _pointer_to(kind: Any) -> Any:
    """What makes, in compiled code, a pointer of an address."""

    def pointer(_: Any, address: Any) -> Any:
        return numba.types.CPointer(kind)(address), _as_pointer  # type: ignore[no-untyped-call]

    return intrinsic(pointer)


_int32s: Any = _pointer_to(numba.int32)
_int64s: Any = _pointer_to(numba.int64)
_array: Any = numba.carray  # type: ignore[attr-defined]


@compiled
def _hash(keyed: Any) -> Any:
    """Its high bits depend on all bits of the id. Of 32 bits: more products fit in a vector.
    Multipliers: C. Wellons, "Prospecting for Hash Functions", 2018."""
    high = np.uint32(keyed >> np.uint64(32))  # numba's products are of 64 bits
    h = np.uint32(np.uint32(keyed) + high * np.uint32(0x9E3779B9))
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(16))) * np.uint32(0x21F0AAAD))
    return np.uint32(np.uint32(h ^ (h >> np.uint32(15))) * np.uint32(0xD35A2D97))


@compiled
def _keep(
    ids: Any, padding: int, keeps_all: bool, key: Any, threshold: Any, out: Any
) -> tuple[int, int]:
    """Copies ids that are to be kept until all are looked at or `out` is full; how many of each."""
    if keeps_all and padding == NO_ID:
        kept = min(len(ids), len(out))
        for j in range(kept):  # faster than slices, whose bounds are checked against each other
            out[j] = ids[j]
        return kept, kept
    kept = 0
    hashed = np.zeros(_HASHED_AT_ONCE, dtype=np.uint32)  # where all are kept it stays so
    for at in range(0, len(ids), _HASHED_AT_ONCE):
        part = ids[at : at + _HASHED_AT_ONCE]
        if not keeps_all:
            found = 0
            for j in range(len(part)):  # loops of their own become vector instructions
                hashed[j] = _hash(np.uint64(part[j]) ^ key)
            for j in range(len(part)):
                found += hashed[j] < threshold
            if found == 0:
                continue
        for j in range(len(part)):
            if hashed[j] < threshold and part[j] != padding:
                if kept == len(out):
                    return at + j, kept
                out[kept] = part[j]
                kept += 1
    return len(ids), kept


@compiled
def keep(
    batch: int,
    lookups: Any,
    keys: Any,
    threshold: Any,
    keeps_all: bool,
    ids: Any,
    runs: Any,
    at: Any,
) -> None:
    """Copies the ids of one batch that are to be kept, until all are looked at or `ids` is full.

    Args:
        lookups: [n, 5] of each table: address of its ids, how many, bytes of one, place of the
            table in `keys`, id to leave out.
        keys: [tables] what an id is mixed with before it is hashed.
        threshold: of a 32-bit hash, which is below for ids that are kept.
        keeps_all: whether all are.
        ids: where to.
        runs: [len(ids), 3] batch, table and number of kept ids, of all that are next to each other.
        at: [4] place in `lookups`, place in those ids, how many `ids` and `runs` are filled. All
            are moved on.
    """
    while at[0] < len(lookups) and at[2] < len(ids):
        address, length, width, table, padding = lookups[at[0]]
        key, room = keys[table], ids[at[2] :]
        if width == 4:
            narrow = _array(_int32s(address), length)[at[1] :]
            looked_at, kept = _keep(narrow, padding, keeps_all, key, threshold, room)
        else:
            wide = _array(_int64s(address), length)[at[1] :]
            looked_at, kept = _keep(wide, padding, keeps_all, key, threshold, room)
        at[1] += looked_at
        if at[1] == length:
            at[0] += 1
            at[1] = 0
        if kept > 0:
            run = runs[at[3]]
            run[0], run[1], run[2] = batch, table, kept
            at[2] += kept
            at[3] += 1
