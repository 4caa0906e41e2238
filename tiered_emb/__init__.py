"""tiered_emb: `nn.EmbeddingBag` for tables larger than memory, split over dram and ssd.

>>> import tempfile, torch
>>> import tiered_emb as te
>>> store = tempfile.TemporaryDirectory()  # rather a directory on an NVMe drive
>>> bag = te.TieredEmbedding(
...     1_000_000,
...     64,
...     mode="sum",
...     tiers=te.Tiers(dram="64MiB", ssd=te.SSD(store.name)),
...     optimizer=te.optim.RowwiseAdagrad(lr=0.05),
... )
>>> y = bag(torch.tensor([7, 999_999, 7]), torch.tensor([0, 2]))  # two bags
>>> y.shape
torch.Size([2, 64])
>>> y.sum().backward()  # applies the update
>>> bag.close()
>>> store.cleanup()

See README.md for a tour, docs/ARCHITECTURE.md for how it works.
"""

from importlib.metadata import version as _version

import torch as _torch

from tiered_emb import _core, init, optim
from tiered_emb.autograd import not_prefetched
from tiered_emb.checkpoint import Saving, load, save
from tiered_emb.collection import Table, TieredEmbeddingCollection
from tiered_emb.convert import convert
from tiered_emb.embedding import TieredEmbedding
from tiered_emb.errors import ArgumentError, DtypeError, IdOutOfRangeError, OffsetsError
from tiered_emb.prefetch import Prefetcher
from tiered_emb.stats import Stats
from tiered_emb.table_files import export_rows, import_rows
from tiered_emb.threads import get_num_threads, set_num_threads
from tiered_emb.tiers import HBM, SSD, Tiers
from tiered_emb.trace.record import record_trace

__version__ = _version("tiered-emb")

__all__ = [
    "HBM",
    "SSD",
    "ArgumentError",
    "DtypeError",
    "IdOutOfRangeError",
    "OffsetsError",
    "Prefetcher",
    "Saving",
    "Stats",
    "Table",
    "TieredEmbedding",
    "TieredEmbeddingCollection",
    "Tiers",
    "convert",
    "export_rows",
    "get_num_threads",
    "import_rows",
    "init",
    "load",
    "not_prefetched",
    "optim",
    "record_trace",
    "save",
    "set_num_threads",
]

_core.set_num_threads(_torch.get_num_threads())
