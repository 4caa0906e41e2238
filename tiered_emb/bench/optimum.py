"""The fewest misses that any cache could have: Belady's rule, batch by batch.

All rows of a batch must be resident together; the victim is a row outside the batch whose next use
lies furthest, or never comes. First touches take a slot but cost no read, whatever the policy, so
what is best for all misses is best for reads.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True)
def optimal_misses(
    ids: np.ndarray, rows: int, capacity: int, batch: int, warm_up: int
) -> tuple[int, int]:
    """Misses of rows seen before, and first touches, after `warm_up` lookups.

    Args:
        ids: int64, below `rows`.
        capacity: rows that the cache holds; at least the distinct rows of any batch.
        batch: lookups a batch; the last may have fewer.
        warm_up: batches that begin before this are not counted.
    """
    count = len(ids)
    batches = (count + batch - 1) // batch
    # The batch of the next use, at each row's first position in a batch; -1 at the others.
    following = np.full(count, batches, np.int32)
    last = np.full(rows, -1, np.int64)  # that position in the last batch with the row
    for i in range(count):
        before = last[ids[i]]
        if before >= 0 and before // batch == i // batch:
            following[i] = -1
            continue
        if before >= 0:
            following[before] = i // batch
        last[ids[i]] = i
    # Residents, in a list for each batch of their next use; those of no use in the last one.
    head = np.full(batches + 1, -1, np.int64)
    link = np.full(rows, -1, np.int64)
    is_resident = np.zeros(rows, np.bool_)
    was_seen = last
    was_seen[:] = 0
    used, furthest, misses, first_touches = 0, 0, 0, 0
    for b in range(batches):
        begin, end = b * batch, min((b + 1) * batch, count)
        for i in range(begin, end):
            row = ids[i]
            if following[i] < 0 or is_resident[row]:
                continue
            used += 1
            is_resident[row] = True
            if begin >= warm_up:
                misses += was_seen[row]
                first_touches += 1 - was_seen[row]
            was_seen[row] = 1
        head[b] = -1  # they are rows of this batch
        while used > capacity:
            while furthest >= 0 and head[furthest] < 0:
                furthest -= 1
            if furthest < 0:
                raise ValueError("a batch has more rows than the cache")
            row = head[furthest]
            head[furthest] = link[row]
            is_resident[row] = False
            used -= 1
        for i in range(begin, end):
            if following[i] < 0:
                continue
            link[ids[i]] = head[following[i]]
            head[following[i]] = ids[i]
            furthest = max(furthest, following[i])
    return misses, first_touches
