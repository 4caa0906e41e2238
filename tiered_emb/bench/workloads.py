"""The models that `tiered-emb bench` trains: their tables, layers and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from tiered_emb.bench.streams import (
    META_2022_POOLING,
    META_2022_ROWS_A_TABLE,
    IdStream,
    MetaIds,
    ZipfIds,
)
from tiered_emb.data.dataset import BagInput, Batch, Samples
from tiered_emb.data.errors import DataError
from tiered_emb.models.dcn import DCN
from tiered_emb.models.dlrm import DLRM, Embeddings

# Distinct values of the 26 categories of the Criteo Kaggle data set.
KAGGLE_ROWS = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
# Rows of the tables and ids a bag of MLPerf's recommendation benchmark since 2022 (training v2.1):
# the reference's --num_embeddings_per_feature and --multi_hot_sizes.
DCNV2_ROWS = (
    40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10,
    2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36,
)  # fmt: skip
DCNV2_POOLING = (
    3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1
)  # fmt: skip
ZIPF = 1.05
DENSE_FEATURES = 13
_META_TABLES = 16


@dataclass(frozen=True)
class Workload:
    """A model and the ids that it sees.

    Args:
        name: of the model.
        rows: by table.
        pooling: ids a bag, by table; unused with `samples`.
        dim: of every table.
        dense_features: a sample.
        bottom, top: hidden sizes of the layers below and above the interaction; no top: lookups
            and updates alone.
        cross: layers and rank of DCN-v2's interaction; None: dot products.
        batch_size: samples a step.
        exponent: of Zipf's law of the ids; 0: uniform; None: as in Meta's traces.
        samples: real ones, instead of drawn ids.
        about: a line for people.
    """

    name: str
    rows: Mapping[str, int]
    pooling: Mapping[str, int]
    dim: int
    dense_features: int
    bottom: Sequence[int]
    top: Sequence[int]
    batch_size: int
    about: str
    cross: tuple[int, int] | None = None
    exponent: float | None = ZIPF
    samples: Samples | None = None

    @property
    def total_rows(self) -> int:
        """Of all tables."""
        return sum(self.rows.values())

    @property
    def has_layers(self) -> bool:
        """Whether a step is more than lookups and updates."""
        return bool(self.top)

    def model(self, embeddings: Embeddings, seed: int = 0) -> nn.Module:
        """The model over an embedding part; its layers start from the seed's weights."""
        torch.manual_seed(seed)
        tables, dense = list(self.rows), self.dense_features
        if self.cross is not None:
            layers, rank = self.cross
            return DCN(embeddings, tables, self.dim, dense, self.bottom, self.top, layers, rank)
        return DLRM(embeddings, tables, self.dim, dense, self.bottom, self.top)

    def batches(self, seed: int = 0) -> Iterator[Batch]:
        """Batches without end, the same for one seed; real samples over and over, in order."""
        if self.samples is not None:
            while True:
                whole = len(self.samples.train) // self.batch_size * self.batch_size
                yield from self.samples.batches(self.samples.train[:whole], self.batch_size)
        rng = np.random.default_rng(seed)
        streams = {name: self._stream(name, seed) for name in self.rows}
        while True:
            sparse = {
                name: self._bags(stream.draw(self.batch_size * self.pooling[name]), name)
                for name, stream in streams.items()
            }
            dense = torch.from_numpy(
                rng.standard_normal((self.batch_size, self.dense_features), dtype=np.float32)
            )
            clicked = torch.from_numpy((rng.random(self.batch_size) < 0.25).astype(np.float32))
            yield Batch(dense, sparse, clicked)

    def _stream(self, name: str, seed: int) -> IdStream:
        if self.exponent is None:
            return MetaIds(self.rows[name], name, seed)
        return ZipfIds(self.rows[name], self.exponent, name, seed)

    def _bags(self, ids: np.ndarray, name: str) -> BagInput:
        tensor, pooling = torch.from_numpy(ids), self.pooling[name]
        if pooling == 1:
            return tensor
        return tensor, torch.arange(0, len(tensor), pooling)


def _criteo(rows: Sequence[int], scale: float) -> dict[str, int]:
    """Rows by table; those of more than 1,000 rows are scaled."""
    return {
        f"C{i + 1}": n if n <= 1000 else max(1000, round(n * scale)) for i, n in enumerate(rows)
    }


def _small(scale: float) -> Workload:
    total = max(26_000, round(1_000_000 * scale))
    shares = np.array(KAGGLE_ROWS) / sum(KAGGLE_ROWS)
    rows = {f"C{i + 1}": max(4, round(total * s)) for i, s in enumerate(shares)}
    return Workload(
        "dlrm-small", rows, dict.fromkeys(rows, 1), 32, DENSE_FEATURES, (64,), (64, 32), 2048,
        "1 M rows of 32 over 26 tables in Criteo's proportions, small layers",
    )  # fmt: skip


def _kaggle(scale: float) -> Workload:
    rows = _criteo(KAGGLE_ROWS, scale)
    return Workload(
        "dlrm-kaggle", rows, dict.fromkeys(rows, 1), 16, DENSE_FEATURES, (512, 256, 64),
        (512, 256), 2048,
        "Criteo Kaggle: 33.8 M rows of 16 over 26 tables, layers of the reference DLRM",
    )  # fmt: skip


def _dcnv2(scale: float) -> Workload:
    rows = _criteo(DCNV2_ROWS, scale)
    pooling = dict(zip(rows, DCNV2_POOLING, strict=True))
    return Workload(
        "dlrm-dcnv2", rows, pooling, 128, DENSE_FEATURES, (512, 256), (1024, 1024, 512, 256), 512,
        "MLPerf's DLRM-DCNv2: 204 M rows of 128 over 26 tables, 214 lookups a sample",
        cross=(3, 512),
    )  # fmt: skip


def _meta(scale: float) -> Workload:
    rows = {}
    for i in range(_META_TABLES):
        rows[f"t{i}"] = max(1000, round(META_2022_ROWS_A_TABLE * scale))
    return Workload(
        "meta-2022", rows, dict.fromkeys(rows, META_2022_POOLING), 64, DENSE_FEATURES, (64,),
        (64, 32), 1024,
        "16 tables, reused as in Meta's traces of 2022: 2.2 M rows of 64, 14 lookups a sample each",
        exponent=None,
    )  # fmt: skip


MODELS: Mapping[str, Callable[[float], Workload]] = {
    "dlrm-small": _small,
    "dlrm-kaggle": _kaggle,
    "dlrm-dcnv2": _dcnv2,
    "meta-2022": _meta,
}


def named(name: str, scale: float = 1.0) -> Workload:
    """A named model with its tables' rows times `scale`."""
    if name not in MODELS:
        raise DataError(f"no model {name!r}; there is: {', '.join(MODELS)}, or a data file")
    if not 0 < scale <= 100:
        raise DataError(f"--scale {scale}: must be above 0 and at most 100")
    return MODELS[name](scale)


def of_samples(name: str, samples: Samples, dim: int, batch_size: int) -> Workload:
    """A DLRM over real samples."""
    rows = dict(samples.dataset.tables)
    if len(samples.train) < batch_size:
        raise DataError(f"{name}: {len(samples.train)} samples are fewer than one batch")
    return Workload(
        name, rows, {}, dim, samples.dataset.dense.shape[1], (64,), (64, 32), batch_size,
        f"{len(samples.train):,} samples of {name}, in order", samples=samples,
    )  # fmt: skip


def resized(workload: Workload, **changes: int) -> Workload:
    """The same with another `dim` or `batch_size`."""
    return replace(workload, **changes)  # type: ignore[arg-type]
