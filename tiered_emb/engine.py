"""The engine as the modules see it: tables of one budget, with their rows and their life.

`TableEngine` owns the core's engine and turns tensors into what it takes; lookups go through
`autograd`. `TieredEmbedding`, `TieredEmbeddingCollection` and `convert` are thin modules over it.
Thread-safe as the core is.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tiered_emb import _core, store_metadata, store_swap
from tiered_emb.autograd import Pooling
from tiered_emb.batch import Feature
from tiered_emb.engine_arguments import (
    available_bytes,
    check_arguments,
    check_memory,
    check_not_in_checkpoint,
    check_rows,
    known_rows,
    pack_state,
    row_ids,
    row_values,
)
from tiered_emb.errors import IdOutOfRangeError
from tiered_emb.optim import RowOptimizer
from tiered_emb.stats import Stats
from tiered_emb.store_swap import StoreSwap
from tiered_emb.table_spec import TableSpec
from tiered_emb.tiers import HBM, PINNED_BUFFERS, SSD, Size, Tiers, format_bytes, parse_bytes

if TYPE_CHECKING:
    from tiered_emb.device.tier import HbmTier

_TIMES_KEPT = 65  # of lookups
_DENSE_CHUNK_ROWS = 1 << 18  # of one read or write of a whole table
_BUFFER_HEAD_BYTES = 64  # of a pinned buffer, beside a row
_READER_DRAM_BYTES = 16 << 20  # of tables that are opened to copy their rows


class TableEngine:
    """Tables with one budget, one optimizer and one store."""

    def __init__(
        self,
        tables: Sequence[TableSpec],
        tiers: Tiers | None,
        optimizer: RowOptimizer | None,
        seed: int,
    ) -> None:
        tiers = Tiers() if tiers is None else tiers
        check_arguments(tables, tiers, optimizer, seed)
        self.tables = list(tables)
        self.tiers = tiers
        self.optimizer = optimizer
        self._kind = 0 if optimizer is None else optimizer.kind
        if tiers.dram is None:
            check_memory(self.row_bytes)
        self._state_value = 0.0 if optimizer is None else optimizer.initial_state()
        self._seed = seed
        self.metadata = store_metadata.describe(tables, self._kind, self._state_value, seed)
        self._ssd = ssd = tiers.ssd if isinstance(tiers.ssd, SSD) else None
        self.resumed = ssd is not None and bool(ssd.resume)
        self._loaded = False
        self.store_path = None if ssd is None else os.path.abspath(ssd.path)
        self.is_read_only = ssd is not None and ssd.read_only
        self._swap: StoreSwap | None = None
        if self.store_path is not None and not self.is_read_only:
            check_not_in_checkpoint(Path(self.store_path))
            store_swap.recover(self.store_path)
            self._swap = StoreSwap(self.store_path)
        if self.store_path is not None and self.resumed:
            store_metadata.check_store(self.store_path, self.metadata)
        self._hbm = hbm = tiers.hbm if isinstance(tiers.hbm, HBM) else None
        self.device = None if hbm is None else hbm.torch_device
        if hbm is not None:
            from tiered_emb.device.tier import check_device_tier

            check_device_tier(hbm)  # before there is a store
        self._core = self._make_core(self.resumed)
        self._last_stats: Stats | None = None
        self.lookup_times: deque[float] = deque(maxlen=_TIMES_KEPT)  # when lookups began
        self._grad_parameters = [
            None if optimizer is None else optimizer.add_table(self, t, table.embedding_dim)
            for t, table in enumerate(tables)
        ]
        self._make_pooling()

    def _make_pooling(self) -> None:
        """The hbm tier if there is one, and lookups, of the present core."""
        self._tier: HbmTier | None = None
        if self._hbm is None:
            self._pooling = Pooling(self._core, self.optimizer, self._grad_parameters)
            return
        # Imported here, as it costs others time.
        from tiered_emb.device.pooling import DevicePooling
        from tiered_emb.device.tier import HbmTier

        self._tier = HbmTier(
            self._core, self._hbm, self._buffer_bytes, self.tables, self._kind, self._seed
        )
        self._pooling = DevicePooling(self._core, self.optimizer, self._grad_parameters, self._tier)

    def _close_core(self, close: Callable[[], None]) -> None:
        """`close()`, with nothing under way on the device, whose memory is given back then."""
        with nullcontext() if self._tier is None else self._tier.closing():
            close()
        self._tier = None

    @contextmanager
    def _rows_in_dram(
        self, table: int | None = None, ids: torch.Tensor | None = None
    ) -> Iterator[None]:
        """Within, dram has the newest bytes of all rows, or of rows `ids` of a table."""
        tier = self._tier
        if tier is None:
            yield
            return
        with tier.lock:
            if not self._core.is_closed:  # else what comes says so
                tier.bring_down(table, ids)
            yield

    def _make_core(self, resume: bool, source: str | None = None) -> _core.Engine:
        """The core; of the store at `source`, read only and with little dram, if that is given."""
        ssd, path = self._ssd, self.store_path
        if source is not None:
            ssd, path = SSD(source, resume=True, read_only=True), source
        dram = _READER_DRAM_BYTES if source is not None else self.tiers.dram
        return _core.make_engine(
            [t.core(self._state_value, self._seed, shares=source is None) for t in self.tables],
            self._kind,
            self.tiers.policy,
            0 if dram is None else int(dram),
            path or "",
            0 if ssd is None or ssd.capacity is None else int(ssd.capacity),
            SSD.space_bound if ssd is None else ssd.space_bound,
            resume,
            resume and ssd is not None and ssd.resume == "newest" and not self._loaded,
            ssd is not None and ssd.read_only,
            *self._hbm_budget(source),
            json.dumps(self.metadata),
        )

    def _hbm_budget(self, source: str | None) -> tuple[int, bool, int]:
        """Bytes of slots, whether they are here, bytes of pinned buffers."""
        hbm = self._hbm
        if hbm is None or source is not None:
            return 0, False, 0
        return int(hbm.size), hbm.executor == "core", PINNED_BUFFERS * self._buffer_bytes

    @property
    def _buffer_bytes(self) -> int:
        """Of one pinned buffer, which holds a row at least."""
        row = max(table.row_bytes(self._kind) for table in self.tables)
        return max(self.tiers.buffer_bytes, row + _BUFFER_HEAD_BYTES)

    def begin_save(self, path: str) -> None:
        """Takes the cut; batches may go on. `finish_save` must follow, in any thread."""
        with self._rows_in_dram():
            self._core.begin_save(path)

    def finish_save(self, path: str, previous: str) -> None:
        """Writes the cut of `begin_save` to `path`; files that `previous` has too are shared."""
        self._core.finish_save(path, previous)

    def prepare_load(self, path: str) -> None:
        """First of a load's steps: looks at the store at `path`, and copies it beside this one's.

        Raises `ValueError` if that is a store of other tables, `OSError` if it is damaged, as far
        as its indexes tell, or all its blocks where there is no ssd tier. `cancel_load` undoes it.
        """
        store_metadata.check_store(path, self.metadata)
        if self.store_path is not None and self.is_read_only:
            raise ValueError(f"{self.store_path}: the store is open for reading only")
        reader = self._make_core(resume=True, source=path)
        try:
            if self._swap is None:
                check_rows(reader)
        finally:
            reader.close()
        if self._swap is not None:
            self._swap.stage(path, is_open=not self.is_closed)

    def commit_load(self) -> None:
        """The copy is the store from now on; the tables go on with the old one until `discard`."""
        if self._swap is not None:
            self._swap.commit()

    def cancel_load(self) -> None:
        """These tables and their store stay."""
        if self._swap is not None:
            self._swap.cancel()

    def discard(self) -> None:
        """Closes without a flush."""
        self._close_core(self._core.discard)

    def finish_load(self, path: str) -> None:
        """After `discard`: becomes the tables of the store at `path`, which stays as it is.

        Closed if it fails.
        """
        if self._swap is not None:
            self._swap.finish()
        self._loaded = True
        self._core = self._make_core(resume=self._swap is not None)
        self._last_stats = None
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        try:
            self._make_pooling()
            if self._swap is None:
                self._copy_rows(path)
        except BaseException:
            self._close_core(self._core.discard)  # some rows of both are nobody's tables
            raise

    def _copy_rows(self, path: str) -> None:
        """Writes all rows that the store at `path` has into these tables."""
        source = self._make_core(resume=True, source=path)
        try:
            for table, spec in enumerate(self.tables):
                self._core.set_step(table, source.step(table))
                width = sum(math.prod(s) for s in spec.state_shapes(self._kind).values())
                for ids in known_rows(source, table):
                    count = len(ids)
                    weights = torch.empty((count, spec.embedding_dim), dtype=spec.dtype)
                    state = torch.empty((count, width))
                    addresses = (ids.data_ptr(), count, weights.data_ptr(), state.data_ptr())
                    source.read_rows(table, *addresses)
                    self._core.write_rows(table, *addresses)
        finally:
            source.close()

    def known_rows(self, table: int) -> Iterator[torch.Tensor]:
        """Ids of rows that were ever written or looked up, ascending, in pieces of some 65,536.

        All others have their initial values.
        """
        return known_rows(self._core, table)

    def lookup(self, features: list[Feature]) -> list[torch.Tensor]:
        """Pooled rows of each feature, [bags, dim] each, differentiable."""
        self.lookup_times.append(time.perf_counter())
        return self._pooling.lookup(features)

    def announce(self, features: list[Feature]) -> int:
        """Tells of a batch before its lookup; see `Pooling.announce`."""
        return self._pooling.announce(features)

    def prefetch(self, ticket_last: int) -> None:
        """Has the batches up to a ticket planned and their rows fetched in the background."""
        self._core.prefetch(ticket_last)

    @property
    def looks_ahead(self) -> bool:
        """Whether announced batches change anything before they are prefetched."""
        return self._core.looks_ahead

    def is_prefetched(self, ticket: int) -> bool:
        """Whether the batch of this ticket waits for its lookup."""
        return self._core.is_prefetched(ticket)

    def cancel_prefetch(self, ticket_last: int = 2**64 - 1) -> int:
        """Drops the batches up to a ticket that wait for their lookup; how many there were."""
        return self._core.cancel_prefetch(ticket_last)

    def grad_parameter(self, table: int) -> torch.nn.Parameter | None:
        """The parameter that carries a table's gradients with `fused=False`."""
        return self._grad_parameters[table]

    def rows(self, table: int, ids: Any) -> torch.Tensor:
        """Present weights [n, dim] of `ids`, wherever they are. Changes no cache state."""
        spec = self.tables[table]
        index = row_ids(spec, ids)
        weights = torch.empty((len(index), spec.embedding_dim), dtype=spec.dtype)
        self._read(table, index, weights, None)
        return weights

    def state_rows(self, table: int, ids: Any) -> dict[str, torch.Tensor]:
        """Present optimizer state of `ids`: name -> float32 [n, *`TableSpec.state_shapes`]."""
        spec = self.tables[table]
        index = row_ids(spec, ids)
        count = len(index)
        shapes = spec.state_shapes(self._kind)
        widths = [math.prod(shape) for shape in shapes.values()]
        weights = torch.empty((count, spec.embedding_dim), dtype=spec.dtype)
        packed = torch.empty((count, sum(widths)))
        self._read(table, index, weights, packed)
        parts = zip(shapes.items(), torch.split_with_sizes(packed, widths, dim=1), strict=True)
        return {name: part.reshape(count, *shape).contiguous() for (name, shape), part in parts}

    def tier_of(self, table: int, ids: Any) -> torch.Tensor:
        """Where each row is: 0 nowhere yet, 1 ssd, 2 dram, 3 hbm; uint8 [n]. Moves nothing."""
        index = row_ids(self.tables[table], ids)
        tiers = torch.empty(len(index), dtype=torch.uint8)
        try:
            self._core.locate(table, index.data_ptr(), len(index), tiers.data_ptr())
        except IndexError as error:
            raise IdOutOfRangeError(*error.args) from None
        return tiers

    def _read(
        self, table: int, index: torch.Tensor, weights: torch.Tensor, state: torch.Tensor | None
    ) -> None:
        try:
            with self._rows_in_dram(table, index):
                self._core.read_rows(
                    table,
                    index.data_ptr(),
                    len(index),
                    weights.data_ptr(),
                    0 if state is None else state.data_ptr(),
                )
        except IndexError as error:
            raise IdOutOfRangeError(*error.args) from None

    def write_rows(
        self,
        table: int,
        ids: Any,
        weight: torch.Tensor | None,
        state: dict[str, torch.Tensor] | None,
    ) -> None:
        """Replaces weights [n, dim] and state, None keeps them; the last of duplicate ids wins."""
        spec = self.tables[table]
        index = row_ids(spec, ids)
        if weight is not None:
            shape = (len(index), spec.embedding_dim)
            weight = row_values(spec, "weight", weight, shape, spec.dtype)
        packed = None if state is None else pack_state(spec, self._kind, len(index), state)

        def write() -> None:
            self._core.write_rows(
                table,
                index.data_ptr(),
                len(index),
                0 if weight is None else weight.data_ptr(),
                0 if packed is None else packed.data_ptr(),
            )

        try:
            if self._tier is None:
                write()
                return
            with self._rows_in_dram(table, index):
                try:
                    self._tier.with_room(write)
                finally:
                    self._tier.renew(table, index)
        except IndexError as error:
            raise IdOutOfRangeError(*error.args) from None

    def to_dense(self, table: int) -> torch.Tensor:
        """All weights of a table, [num_embeddings, dim]; `ValueError` where memory is short."""
        spec = self.tables[table]
        needed = spec.num_embeddings * spec.embedding_dim * spec.dtype.itemsize
        available = available_bytes()
        if needed > available:
            raise ValueError(
                f"table '{spec.name}': to_dense needs {needed} bytes ({format_bytes(needed)}), "
                f"{available} bytes are free"
            )
        dense = torch.empty((spec.num_embeddings, spec.embedding_dim), dtype=spec.dtype)
        for first in range(0, spec.num_embeddings, _DENSE_CHUNK_ROWS):
            last = min(first + _DENSE_CHUNK_ROWS, spec.num_embeddings)
            dense[first:last] = self.rows(table, torch.arange(first, last))
        return dense

    def load_dense(self, table: int, weight: torch.Tensor) -> None:
        """Replaces all weights of a table by `weight` [num_embeddings, dim]; state is kept."""
        for first in range(0, weight.shape[0], _DENSE_CHUNK_ROWS):
            part = weight[first : first + _DENSE_CHUNK_ROWS]
            self.write_rows(table, torch.arange(first, first + len(part)), part, None)

    def apply_gradients(
        self,
        table: int,
        rows: torch.Tensor,
        grads: torch.Tensor,
        continues: bool,
        applied: torch.Tensor,
    ) -> None:
        """One update of distinct `rows` with summed gradients [n, dim].

        `applied` [1], int64, becomes the number of leading rows that have moved, also where this
        raises; the others may be given again as an update that `continues` the same step.
        """
        index = rows.contiguous()
        values = grads.detach().to(torch.float32).contiguous()
        applied.zero_()
        with self._rows_in_dram(table, index):
            try:
                self._apply(table, index, values, continues, applied)
            except _core.BudgetExceededError:
                if self._tier is None:
                    raise
                self._tier.empty()
                done = applied.clone()
                n = int(done)
                try:
                    self._apply(table, index[n:], values[n:], continues or n > 0, applied)
                finally:
                    applied += done
            finally:
                if self._tier is not None:
                    self._tier.renew(table, index)

    def _apply(
        self,
        table: int,
        rows: torch.Tensor,
        grads: torch.Tensor,
        continues: bool,
        applied: torch.Tensor,
    ) -> None:
        """One call of `apply_gradients` to the core."""
        assert self.optimizer is not None
        self._core.apply_gradients(
            table,
            rows.data_ptr(),
            len(rows),
            grads.data_ptr(),
            self.optimizer.hyper(),
            continues,
            applied.data_ptr(),
        )

    def resize(self, dram: Size) -> None:
        """Another dram budget from now on; see `TieredEmbedding.resize`."""
        size = parse_bytes(dram)
        with nullcontext() if self._tier is None else self._tier.lock:
            self._core.resize(size)
            self.tiers = replace(self.tiers, dram=size)

    def stats(self) -> Stats:
        """Counters; those at the time of closing once closed."""
        if self._last_stats is None or not self._core.is_closed:
            self._last_stats = Stats(**self._core.stats())
            self._last_stats.belong_to(self)
        return self._last_stats

    def core_lookup_sample(self) -> _core.SampleTuple:
        """As the core gives it; see `lookup_sample`."""
        return self._core.lookup_sample()

    def flush(self) -> None:
        """Makes the present state durable: exactly what `resume=True` finds in the store."""
        with self._rows_in_dram():
            self._core.flush()

    def close(self) -> None:
        """Flushes and gives everything back. Closing twice is fine."""
        if not self._core.is_closed:
            self.stats()
            with self._rows_in_dram():
                self._close_core(self._core.close)

    def step(self, table: int) -> int:
        """Updates of a table so far."""
        return self._core.step(table)

    def segments(self) -> list[tuple[int, int, int]]:
        """(number, blocks used, live bytes) of each segment of the store."""
        return self._core.segments()

    def verify(self, segment: int) -> list[_core.FaultTuple]:
        """What is wrong with a segment of a store that is open for reading only."""
        return self._core.verify(segment)

    @property
    def optimizer_kind(self) -> int:
        """The core's number of the optimizer; 0 without one."""
        return self._kind

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._core.is_closed

    @property
    def row_bytes(self) -> int:
        """Bytes of all rows of all tables with their optimizer state."""
        return sum(t.num_embeddings * t.row_bytes(self._kind) for t in self.tables)
