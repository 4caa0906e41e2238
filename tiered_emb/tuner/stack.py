"""Stack distances: for each lookup, how many distinct rows came since the last one of its row.

An LRU cache of c rows hits exactly the lookups whose distance is at most c (counting the row
itself), so that one pass gives the hits at all sizes (Mattson et al., "Evaluation Techniques for
Storage Hierarchies", 1970). The last lookup of each row is a bit in a bitmap over time; a distance
is the number of bits behind the row's own. They are counted in words of 64 bits, and by sums over
64 words and 64 * 64 of them, so that a lookup costs some tens of additions in a row whatever the
number of rows, and no tree. Where the bitmap is full, the bits move together.
"""

from __future__ import annotations

import numpy as np

from tiered_emb.compiled import compiled
from tiered_emb.trace.format import Ids

_WORD, _GROUP, _CHUNK = 6, 12, 18  # log2 of bits in a word, of a sum of 64, of a sum of 64 of those


def distance_counts(rows: Ids, distinct: int, warm_up: int = 0) -> Ids:
    """How many lookups have which distance.

    Args:
        rows: int64 [n], below `distinct`.
        warm_up: lookups before the first that counts.

    Returns:
        int64 [distinct + 1]: [d] lookups of distance d, at least 1; [0] those of rows that had not
        come before.
    """
    counts = np.zeros(distinct + 1, dtype=np.int64)
    _count(np.ascontiguousarray(rows, dtype=np.int64), distinct, warm_up, counts)
    return counts


@compiled
def _ones(word: np.uint64) -> np.int64:
    """Bits that are set; compilers make one instruction of it."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + (
        (word >> np.uint64(2)) & np.uint64(0x3333333333333333)
    )
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def _after(place: int, words: Ids, ones: Ids, groups: Ids, chunks: Ids) -> int:
    """Bits that are set behind `place`."""
    word = place >> _WORD
    above = np.uint64(place & 63) + np.uint64(1)
    found = 0
    if above < np.uint64(64):
        found += _ones(words[word] >> above)
    for i in range(word + 1, ((word >> 6) + 1) << 6):
        found += ones[i]
    group = place >> _GROUP
    for i in range(group + 1, ((group >> 6) + 1) << 6):
        found += groups[i]
    for i in range((place >> _CHUNK) + 1, len(chunks)):
        found += chunks[i]
    return found


@compiled
def _count(rows: Ids, distinct: int, warm_up: int, counts: Ids) -> None:
    chunk_count = ((2 * distinct) >> _CHUNK) + 1
    places = chunk_count << _CHUNK
    words = np.zeros(places >> _WORD, dtype=np.uint64)
    ones = np.zeros(places >> _WORD, dtype=np.uint8)
    groups = np.zeros(places >> _GROUP, dtype=np.int32)
    chunks = np.zeros(chunk_count, dtype=np.int64)
    last = np.full(distinct, -1, dtype=np.int64)
    row_at = np.empty(places, dtype=np.int64)
    now = 0
    for i in range(len(rows)):
        if now == places:
            now = _move_together(words, ones, groups, chunks, last, row_at)
        row = rows[i]
        place = last[row]
        distance = 0
        if place >= 0:
            distance = _after(place, words, ones, groups, chunks) + 1
            words[place >> _WORD] &= ~(np.uint64(1) << np.uint64(place & 63))
            ones[place >> _WORD] -= np.uint8(1)
            groups[place >> _GROUP] -= np.int32(1)
            chunks[place >> _CHUNK] -= 1
        if i >= warm_up:
            counts[distance] += 1
        words[now >> _WORD] |= np.uint64(1) << np.uint64(now & 63)
        ones[now >> _WORD] += np.uint8(1)
        groups[now >> _GROUP] += np.int32(1)
        chunks[now >> _CHUNK] += 1
        last[row] = now
        row_at[now] = row
        now += 1


@compiled
def _move_together(words: Ids, ones: Ids, groups: Ids, chunks: Ids, last: Ids, row_at: Ids) -> int:
    """Bits move to the front, in order; returns how many there are."""
    at = 0
    for place in range(len(row_at)):
        row = row_at[place]
        if last[row] == place:
            last[row] = at
            row_at[at] = row
            at += 1
    words[:] = 0
    ones[:] = 0
    groups[:] = 0
    chunks[:] = 0
    for place in range(at):
        words[place >> _WORD] |= np.uint64(1) << np.uint64(place & 63)
        ones[place >> _WORD] += np.uint8(1)
        groups[place >> _GROUP] += np.int32(1)
        chunks[place >> _CHUNK] += 1
    return at
