"""What a benchmark trains side by side: one model over tiered tables, and over its peers' tables.

All take the same batches. A contender whose package is not installed, or that does not fit, is left
out with a line that says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import tiered_emb as te
from tiered_emb.bench.workloads import Workload
from tiered_emb.data.dataset import BagInput, Batch
from tiered_emb.models.dlrm import Embeddings
from tiered_emb.models.peer import BagCollection, peer_optimizer

WRITE_ROWS = 1 << 18  # of one call, while tables are filled
INIT_LIMIT = 0.05
OPTIMIZERS: Mapping[str, Callable[[float], te.optim.RowOptimizer]] = {
    "sgd": lambda lr: te.optim.SGD(lr=lr),
    "adagrad": lambda lr: te.optim.Adagrad(lr=lr),
    "rowwise-adagrad": lambda lr: te.optim.RowwiseAdagrad(lr=lr),
    "adam": lambda lr: te.optim.Adam(lr=lr),
}
Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]


@dataclass(frozen=True)
class Training:
    """How a model is trained, or only looked up; its layers on `device`."""

    optimizer: str = "rowwise-adagrad"
    lr: float = 0.05
    dtype: torch.dtype = torch.float32
    trains: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass
class Steps:
    """Seconds of each step, and by round what the tables' counters say of a step."""

    seconds: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    """Mean seconds of a step, by round."""
    counters: list[dict[str, float]] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


class Contender:
    """The layers of a workload over some embedding part, and what its steps took.

    A step trains: forward, backward and the updates; or it is a forward without a graph. Without
    layers the gradients of the pooled rows are constants.

    Args:
        name: in reports.
        embeddings: the embedding part.
        embedding_optimizer: of its parameters, if it has any.

    The layers are on `training.device`.
    """

    def __init__(
        self,
        name: str,
        workload: Workload,
        training: Training,
        embeddings: Embeddings,
        embedding_optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.name = name
        self.steps = Steps()
        self._embeddings = embeddings
        self._training = training
        self._clock = _Clock(training.device)
        self._optimizers: list[torch.optim.Optimizer] = []
        self._model: nn.Module | None = None
        self._grads: list[torch.Tensor] = []
        if workload.has_layers:
            self._model = workload.model(embeddings).to(training.device)
            own = {id(p) for p in _parameters_of(embeddings)}
            dense = [p for p in self._model.parameters() if id(p) not in own]
            self._optimizers.append(torch.optim.Adam(dense, lr=1e-3))
        else:
            shape = (workload.batch_size, workload.dim)
            self._grads = [
                torch.randn(shape).to(training.device, training.dtype) for _ in workload.rows
            ]
        if embedding_optimizer is not None:
            self._optimizers.append(embedding_optimizer)

    def run(self, batches: Sequence[Batch], counts: bool = True) -> None:
        """One round: steps on all batches."""
        batches = [self._placed(batch) for batch in batches]
        before = self.counters()
        cpu = time.process_time()
        self._clock.start()
        for batch in self.loop(batches):
            self._step(batch)
            self._clock.tick()
        seconds = self._clock.stop()
        if not counts:
            return
        self.steps.cpu_seconds.append((time.process_time() - cpu) / len(batches))
        self.steps.seconds += seconds
        self.steps.rounds.append(sum(seconds) / len(batches))
        after = self.counters()
        self.steps.counters.append({k: (after[k] - before[k]) / len(batches) for k in after})

    def loop(self, batches: Sequence[Batch]) -> Iterable[Batch]:
        """The batches, as the round takes them."""
        return batches

    def counters(self) -> dict[str, float]:
        """Counters that only grow."""
        return {}

    def close(self) -> None:
        """Gives its memory back."""

    def _placed(self, batch: Batch) -> Batch:
        """A batch where the layers take it. Its ids stay: tiered tables plan them here."""
        device = self._training.device
        return replace(batch, dense=batch.dense.to(device), labels=batch.labels.to(device))

    def _step(self, batch: Batch) -> None:
        with torch.set_grad_enabled(self._training.trains):
            for optimizer in self._optimizers:
                optimizer.zero_grad()
            if self._model is None:
                outs = list(self._embeddings(batch.sparse).values())
            else:
                logits = self._model(batch.dense, batch.sparse)
                outs = [F.binary_cross_entropy_with_logits(logits, batch.labels)]
            if not self._training.trains:
                return
            torch.autograd.backward(outs, self._grads or None)
        for optimizer in self._optimizers:
            optimizer.step()


class _Clock:
    """Times steps: by the processor's clock, or, where a device lags behind, by the device's."""

    def __init__(self, device: torch.device) -> None:
        self._is_device = device.type == "cuda"
        self._times: list[Any] = []

    def start(self) -> None:
        """Of a round; what a device has been given before is done."""
        if self._is_device:
            torch.cuda.synchronize()
        self._times = []
        self.tick()

    def tick(self) -> None:
        """A step has ended, or, on a device, will have."""
        if not self._is_device:
            self._times.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._times.append(event)

    def stop(self) -> list[float]:
        """Seconds of each step."""
        if not self._is_device:
            return [float(s) for s in np.diff(self._times)]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in pairwise(self._times)]


def _parameters_of(embeddings: Any) -> Iterable[nn.Parameter]:
    return embeddings.parameters() if isinstance(embeddings, nn.Module) else []


class Tiered(Contender):
    """Over a `TieredEmbeddingCollection`; several may share one.

    Args:
        prefetch: batches whose rows are fetched ahead; 0: none.
        ids_ahead: batches whose ids are known ahead of those.
    """

    def __init__(
        self,
        name: str,
        workload: Workload,
        training: Training,
        tables: te.TieredEmbeddingCollection,
        prefetch: int = 0,
        ids_ahead: int = 0,
    ) -> None:
        super().__init__(name, workload, training, tables)
        self.tables = tables
        self._prefetch = prefetch
        self._ids_ahead = ids_ahead
        self._announce_s = 0.0
        self._loader: te.Prefetcher[Batch] | None = None

    def loop(self, batches: Sequence[Batch]) -> Iterable[Batch]:
        """See `Contender`."""
        if self._loader is not None:
            self._announce_s += self._loader.report.announce_s
        self._loader = None
        if self._prefetch == 0:
            return batches
        self._loader = te.Prefetcher(
            batches,
            self.tables,
            lambda batch: batch.sparse,
            rows_ahead=self._prefetch,
            ids_ahead=max(self._ids_ahead, self._prefetch),
        )
        return self._loader

    def counters(self) -> dict[str, float]:
        """Those of the tables, and nanoseconds that announcing took."""
        numbers = {k: v for k, v in self.tables.stats().as_dict().items() if _is_number(v)}
        report = 0.0 if self._loader is None else self._loader.report.announce_s
        return {**numbers, "announce_ns": (self._announce_s + report) * 1e9}

    def close(self) -> None:
        """See `Contender`."""
        self.tables.close()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def make_tables(
    workload: Workload, training: Training, tiers: te.Tiers | None, watch: Watch
) -> te.TieredEmbeddingCollection:
    """Tables of which every row has been written, so that a row that is missing has to be read."""
    tables = te.TieredEmbeddingCollection(
        [te.Table(name, rows, workload.dim) for name, rows in workload.rows.items()],
        tiers=tiers,
        optimizer=OPTIMIZERS[training.optimizer](training.lr) if training.trains else None,
        dtype=training.dtype,
        init=te.init.Uniform(-INIT_LIMIT, INIT_LIMIT),
    )
    values = torch.rand(WRITE_ROWS, workload.dim).sub_(0.5).mul_(2 * INIT_LIMIT).to(training.dtype)
    parts = [
        (name, first, min(first + WRITE_ROWS, rows))
        for name, rows in workload.rows.items()
        for first in range(0, rows, WRITE_ROWS)
    ]
    for name, first, end in watch(parts, len(parts), "filling"):
        tables.write_rows(name, torch.arange(first, end), values[: end - first])
    tables.flush()
    return tables


class Dense(Contender):
    """The layers alone: pooled rows are constants, whose gradients are computed."""

    def __init__(self, workload: Workload, training: Training) -> None:
        shape = (workload.batch_size, workload.dim)
        pooled = {
            name: torch.rand(shape, device=training.device).requires_grad_(training.trains)
            for name in workload.rows
        }
        self._pooled = pooled
        super().__init__("layers alone", workload, training, lambda _: pooled)

    def _step(self, batch: Batch) -> None:
        for rows in self._pooled.values():
            rows.grad = None  # else they would be added up
        super()._step(batch)


class TorchBags(Contender):
    """Over `nn.EmbeddingBag(sparse=True)`, one a table.

    Args:
        rows: by table, of weights made here; None: as the workload has them.
    """

    def __init__(
        self,
        workload: Workload,
        training: Training,
        rows: Mapping[str, int] | None = None,
        name: str = "nn.EmbeddingBag",
    ) -> None:
        with training.device:
            self._bags = BagCollection(rows or workload.rows, workload.dim)
        for bag in self._each():
            weight = bag.weight.detach().to(training.dtype).uniform_(-INIT_LIMIT, INIT_LIMIT)
            bag.weight = nn.Parameter(weight)
        super().__init__(name, workload, training, self._bags, self._row_optimizer(training))

    def _placed(self, batch: Batch) -> Batch:
        device = self._training.device
        sparse = {
            name: (value[0].to(device), value[1].to(device))
            if isinstance(value, tuple)
            else value.to(device)
            for name, value in batch.sparse.items()
        }
        return replace(super()._placed(batch), sparse=sparse)

    def _each(self) -> list[nn.EmbeddingBag]:
        return [cast(nn.EmbeddingBag, bag) for bag in self._bags.bags]

    def _row_optimizer(self, training: Training) -> torch.optim.Optimizer | None:
        if not training.trains:
            return None
        with suppress(AttributeError):  # torch warns once about unchecked gradients otherwise
            check: Any = torch.sparse.check_sparse_tensor_invariants
            check.disable()
        return peer_optimizer(training.optimizer, self._bags.parameters(), training.lr)

    def use(
        self, weights: Mapping[str, torch.Tensor], sums: Mapping[str, torch.Tensor] | None
    ) -> None:
        """From now on tables of these weights, in place, and rowwise sums of squares."""
        for table, bag in zip(self._bags.names, self._each(), strict=True):
            bag.weight = nn.Parameter(weights[table])
            bag.num_embeddings = len(weights[table])
        optimizer = self._row_optimizer(self._training)
        if optimizer is None:
            return
        if sums is not None:
            for table, bag in zip(self._bags.names, self._each(), strict=True):
                optimizer.state[bag.weight]["sum"] = sums[table]
        self._optimizers[-1] = optimizer


class Fbgemm(Contender):
    """Over FBGEMM's table-batched embeddings on the CPU, updated in backward."""

    def __init__(self, workload: Workload, training: Training) -> None:
        super().__init__("FBGEMM (CPU)", workload, training, _FbgemmTables(workload, training))

    @staticmethod
    def why_not(training: Training) -> str | None:
        """Why it cannot run, or None."""
        if training.device.type != "cpu":
            return "the layers are on a device"
        try:
            import fbgemm_gpu  # noqa: F401
        except ImportError:
            return "fbgemm-gpu-cpu is not installed"
        except (OSError, RuntimeError) as error:  # of another torch
            return f"fbgemm_gpu cannot be loaded: {error}"
        if training.optimizer == "adam":
            return "no Adam on the CPU"
        if training.dtype is torch.bfloat16:
            return "no bfloat16"
        return None


class _FbgemmTables:
    """Called like a collection."""

    def __init__(self, workload: Workload, training: Training) -> None:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        kinds = {
            "sgd": EmbOptimType.EXACT_SGD,
            "adagrad": EmbOptimType.EXACT_ADAGRAD,
            "rowwise-adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        }
        precision = SparseType.FP32 if training.dtype is torch.float32 else SparseType.FP16
        self._names = list(workload.rows)
        self._dim = workload.dim
        self._tables = SplitTableBatchedEmbeddingBagsCodegen(
            [
                (rows, workload.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)
                for rows in workload.rows.values()
            ],
            optimizer=kinds[training.optimizer],
            learning_rate=training.lr,
            eps=1e-8,
            weights_precision=precision,
            output_dtype=SparseType.FP32,
        )
        self._tables.init_embedding_weights_uniform(-INIT_LIMIT, INIT_LIMIT)

    def __call__(self, features: Mapping[str, BagInput]) -> dict[str, torch.Tensor]:
        ids, ends, before = [], [torch.zeros(1, dtype=torch.int64)], 0
        for name in self._names:
            value = features[name]
            if isinstance(value, tuple):
                ids.append(value[0])
                ends.append(value[1][1:] + before)
                before += len(value[0])
                ends.append(torch.tensor([before]))
            else:
                ids.append(value)
                ends.append(torch.arange(1, len(value) + 1) + before)
                before += len(value)
        pooled = self._tables(torch.cat(ids), torch.cat(ends))
        return dict(zip(self._names, pooled.split(self._dim, dim=1), strict=True))


def free_bytes(device: torch.device | None = None) -> int:
    """Memory of a device that is free; of this machine, or holding nothing but clean pages."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
