"""What has been looked up lately: a sample that every engine keeps, to simulate caches on.

Internal. Sampling is by row: of a row that is in the sample, every batch that looks it up is. So a
cache of `rate` times as many rows, over the sample alone, has the miss ratio of the whole one, to a
few hundredths (SHARDS: Waldspurger et al., FAST 2015). How the core chooses the rate, and which
batches it watches, stands in `cpp/table/lookup_sample.h`: at most 65,536 entries of at most 16,384
batches, of a few thousand rows if so many are in use; a burst of batches one after another, then a
rest until they have been a small part of the work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiered_emb.engine import TableEngine


@dataclass(frozen=True)
class LookupSample:
    """Sampled rows of the last watched batches; an entry for each row that one looked up at all.

    In the order in which batches were planned, those too that were prefetched and then dropped. A
    batch that failed and was tried again may be there twice.
    """

    rate: float
    """Which part of all rows is in the sample: 1 divided by a power of two."""
    batches: npt.NDArray[np.int64]
    """[n] Number of each entry's batch among those that were watched, never falling."""
    tables: npt.NDArray[np.int32]
    """[n] Its table, by its place in the collection."""
    ids: npt.NDArray[np.int64]
    """[n] Its row in that table."""
    batches_spanned: int
    """Batches that the entries stand for, also those that have none."""


def lookup_sample(engine: TableEngine) -> LookupSample:
    """A copy of the engine's sample as it is now, or was when the engine was closed."""
    return LookupSample(*engine.core_lookup_sample())
