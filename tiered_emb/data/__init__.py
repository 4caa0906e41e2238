"""Data for training: sources of columns, features and crosses, encoded samples in batches.

`open_data` gives a source and a `Spec` that says which columns to use; `encode` turns both into a
`Dataset`; `split_samples` divides it and gives batches. `CriteoStream` gives batches of click logs
of any size as they are read.
"""

from tiered_emb.data.criteo_stream import CriteoStream
from tiered_emb.data.dataset import Batch, Dataset, Samples, split_samples
from tiered_emb.data.encode import encode
from tiered_emb.data.errors import DataError
from tiered_emb.data.open import open_data
from tiered_emb.data.spec import Bag, Cross, Spec, parse_bag, parse_cross

__all__ = [
    "Bag",
    "Batch",
    "CriteoStream",
    "Cross",
    "DataError",
    "Dataset",
    "Samples",
    "Spec",
    "encode",
    "open_data",
    "parse_bag",
    "parse_cross",
    "split_samples",
]
