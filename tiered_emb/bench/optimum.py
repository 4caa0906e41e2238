"""The fewest misses that any cache could have: Belady's rule, batch by batch.

All rows of a batch must be resident together; the victim is a row outside the batch whose next use
lies furthest, or never comes.
"""

from __future__ import annotations

import numpy as np

from tiered_emb.compiled import compiled


def optimal_misses(
    ids: np.ndarray, rows: int, capacity: int, batch: int, warm_up: int
) -> tuple[int, int]:
    """`optimal_misses_of_batches` for batches of `batch` lookups; `warm_up` in lookups."""
    begins = np.append(np.arange(0, len(ids), batch), len(ids))
    first, again = optimal_misses_of_batches(ids, rows, capacity, begins, -(-warm_up // batch))
    return again, first


@compiled
def optimal_misses_of_batches(
    ids: np.ndarray, rows: int, capacity: int, begins: np.ndarray, warm_up: int
) -> tuple[int, int]:
    """First touches of rows, and misses of rows seen before, after `warm_up` batches.

    Args:
        ids: int64, below `rows`.
        capacity: rows that the cache holds; at least the distinct rows of any batch.
        begins: int64 [batches + 1]; batch b is ids[begins[b]:begins[b + 1]].
        warm_up: batches before this are not counted.
    """
    batches = len(begins) - 1
    # The batch of the next use, at each row's first position in a batch; -1 at the others.
    following = np.full(len(ids), batches, np.int32)
    last = np.full(rows, -1, np.int64)  # that position in the last batch with the row
    for b in range(batches):
        for i in range(begins[b], begins[b + 1]):
            before = last[ids[i]]
            if before >= begins[b]:
                following[i] = -1
                continue
            if before >= 0:
                following[before] = b
            last[ids[i]] = i
    # Residents, in a list for each batch of their next use; those of no use in the last one.
    head = np.full(batches + 1, -1, np.int64)
    link = np.full(rows, -1, np.int64)
    is_resident = np.zeros(rows, np.bool_)
    was_seen = last
    was_seen[:] = 0
    used, furthest, misses, first_touches = 0, 0, 0, 0
    for b in range(batches):
        for i in range(begins[b], begins[b + 1]):
            row = ids[i]
            if following[i] < 0 or is_resident[row]:
                continue
            used += 1
            is_resident[row] = True
            if b >= warm_up:
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
        for i in range(begins[b], begins[b + 1]):
            if following[i] < 0:
                continue
            link[ids[i]] = head[following[i]]
            head[following[i]] = ids[i]
            furthest = max(furthest, following[i])
    return first_touches, misses
