"""The hbm tier of one engine: batches are pooled and updated on a device.

For each batch the core plans, as without a device; then the batch is staged (`transfers`), its plan
copied to the device as one block, and an executor pools it. A backward updates rows where they are.
Every call holds the tier's lock, as autograd runs backward in threads of its own.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar
from weakref import WeakSet

import numpy as np
import torch

from tiered_emb import _core
from tiered_emb.batch import Feature
from tiered_emb.device.copies import CoreCopier
from tiered_emb.device.executor import (
    NUMBERS,
    OFTEN,
    Executor,
    FeatureUpdate,
    Image,
    LayoutMemory,
    PlannedFeature,
    PlannedRange,
    StagedBatch,
)
from tiered_emb.device.runtime import CudaRuntime, EmulatedRuntime, Event, Runtime, Slots
from tiered_emb.device.torch_executor import TorchExecutor
from tiered_emb.device.transfers import Transfers
from tiered_emb.table_spec import TableSpec
from tiered_emb.tiers import HBM

T = TypeVar("T")
# Of an image, in its order.
_ARRAYS = {
    "occurrence_slots": torch.int32,
    "bag_begin": torch.int64,
    "bag_of": torch.int32,
    "places": torch.int32,
    "rows": torch.int64,
    "which": torch.int32,
    "csr_begin": torch.int32,
    "csr_bags": torch.int32,
    "csr_occurrences": torch.int32,
    "bag_scale": torch.float32,
}
_IMAGE_BYTES_MIN = 1 << 16
_PLAN_BUFFERS = 4
_IMAGES_MIN = 3  # in turn, so that the host need not wait for the batch before
_NO_HYPER = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def check_device_tier(hbm: HBM) -> None:
    """Raises `RuntimeError` if the device lacks the memory, or its executor a package."""
    _make_executor(hbm, [], 0, 0)
    if hbm.torch_device.type == "cuda":
        torch.empty(int(hbm.size), dtype=torch.uint8, device=hbm.torch_device)


class _ImageBuffer:
    """Memory of one plan's image, here and on the device; kept for other plans."""

    def __init__(self, runtime: Runtime, nbytes: int, is_pinned: bool) -> None:
        self.is_pinned = is_pinned
        self.host = runtime.pinned(nbytes) if is_pinned else torch.empty(nbytes, dtype=torch.uint8)
        self.device = runtime.empty(nbytes)
        self.read: Event | None = None  # until then the device may read it


class HbmTier:
    """The slots on a device of all tables of an engine.

    Args:
        core: the engine, made with an hbm budget.
        hbm: that budget and its device.
        buffer_bytes: of a pinned buffer for rows. There are four, and as much for plans.
        tables: of the engine.
        optimizer: its number in the core.
        seed: of the engine.
    """

    def __init__(
        self,
        core: _core.Engine,
        hbm: HBM,
        buffer_bytes: int,
        tables: Sequence[TableSpec],
        optimizer: int,
        seed: int,
    ) -> None:
        self.device = hbm.torch_device
        self.lock = threading.RLock()
        self._core = core
        self._runtime = runtime_of(self.device)
        self._executor = _make_executor(hbm, tables, optimizer, seed)
        self._layouts, self._layout_of = _layouts(core, self._runtime, len(tables))
        copier = self._executor or CoreCopier()
        self._transfers = Transfers(core, self._layouts, self._runtime, copier, buffer_bytes)
        self._images: deque[_ImageBuffer] = deque()
        self._all_images: WeakSet[_ImageBuffer] = WeakSet()  # those of plans under way too
        self._pinned_plan_bytes = _PLAN_BUFFERS * buffer_bytes

    def batch(self, plan: _core.Plan, features: list[Feature], will_update: bool) -> StagedBatch:
        """A planned batch, to be staged."""
        layouts = [self._layout_of[f.lookup.table] for f in features]
        weights = [None if f.weights is None else f.weights.to(self.device) for f in features]
        return StagedBatch(plan, features, will_update, layouts, weights)

    def with_room(self, call: Callable[[], T]) -> T:
        """`call()`; again, where dram is short of slots, once rows have left the device."""
        try:
            return call()
        except _core.BudgetExceededError:
            self._transfers.empty()
        return call()

    def empty(self) -> None:
        """Rows that no batch uses leave the device."""
        self._transfers.empty()

    def leave_stranded(self) -> None:
        """While dram becomes smaller, before each batch: some rows leave the device for it."""
        if self._core.is_resizing:  # and not closed
            self._transfers.leave_stranded()

    def bring_down(self, table: int | None = None, ids: torch.Tensor | None = None) -> None:
        """Dram has the newest bytes of all rows, or of rows `ids` (int64) of a table."""
        if table is None or ids is None:
            self._transfers.bring_down()
        else:
            self._transfers.bring_down_rows(table, self._layout_of[table], ids)

    def renew(self, table: int, ids: torch.Tensor) -> None:
        """Rows `ids` (int64) of a table have changed in dram: those on the device follow."""
        self._transfers.renew(table, self._layout_of[table], ids)

    def stage(self, batch: StagedBatch) -> None:
        """Brings the rows of a planned batch to the device, and its plan."""
        if not batch.plan.is_staged:  # or no longer
            batch.is_ready = False
            self.with_room(lambda: self._transfers.stage(batch.plan))
        if not batch.is_ready:
            self._transfers.launch()  # what was left of a stage that failed
            batch.in_dram = self._transfers.in_dram(batch.plan)
            if self._executor is not None:
                self._send_image(batch, self._executor)
            batch.is_ready = True
        self._runtime.compute_waits(self._runtime.record_copy())

    def pool(self, batch: StagedBatch) -> list[torch.Tensor]:
        """Pooled rows of each feature, [bags, dim]; then the backward may come."""
        executor = self._executor
        if executor is None:
            outs = [
                torch.empty(f.bags, f.lookup.dim, dtype=f.lookup.dtype, device=self.device)
                for f in batch.features
            ]
            self._runtime.on_compute(
                lambda: self._pool_in_core(batch, outs), self._slots_of(batch), seen=True
            )
        else:
            assert batch.image is not None
            batch.argmax = [None] * len(batch.features)
            self._fetch_guests(batch)
            of_groups = [self._empty_outputs(batch, group) for group in batch.image.groups]
            self._runtime.on_compute(
                lambda: self._pool(executor, batch, [group for group, _ in of_groups]),
                self._slots_of(batch),
                seen=True,
            )
            batch.buffer.read = self._runtime.record_compute()
            self._core.pooled(batch.plan)
            batch.guests = {}
            outs = [out for _, of_group in of_groups for out in of_group]
        return outs

    def _empty_outputs(
        self, batch: StagedBatch, group: range
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Memory for the outputs of a group, one tensor, and those of its features in it.

        They are no views: whoever has one may write to it.
        """
        features = [batch.features[f] for f in group]
        dim, dtype = features[0].lookup.dim, features[0].lookup.dtype
        together = torch.empty(sum(f.bags for f in features), dim, dtype=dtype, device=self.device)
        if len(features) == 1:
            return together, [together]
        storage, outs, first = together.untyped_storage(), [], 0
        for f in features:
            out = torch.empty(0, dtype=dtype, device=self.device)
            outs.append(out.set_(storage, first * dim, (f.bags, dim), (dim, 1)))
            first += f.bags
        return together, outs

    def _pool_in_core(self, batch: StagedBatch, outs: Sequence[torch.Tensor]) -> None:
        tensors = [
            (_address(w), out.data_ptr() or 1, 0.0, 0.0)
            for w, out in zip(batch.weights, outs, strict=True)
        ]
        self._core.forward(batch.plan, tensors)

    def _pool(self, executor: Executor, batch: StagedBatch, outs: Sequence[torch.Tensor]) -> None:
        assert batch.image is not None
        for group, out in zip(batch.image.groups, outs, strict=True):
            executor.pool(self._layouts[batch.layouts[group.start]], batch, group, out)

    def backward(
        self,
        batch: StagedBatch,
        updates: Sequence[FeatureUpdate | None],
        hyper: _core.HyperTuple | None,
    ) -> None:
        """Gradients of weights, then updates or gradients of rows.

        `hyper` None: rows are frozen.
        """
        if self._executor is None:
            self._runtime.on_compute(
                lambda: self._update_in_core(batch, updates, hyper or _NO_HYPER),
                self._slots_of(batch),
                seen=True,
            )
        else:
            self._fetch_guests(batch)
            self._launch_backward(self._executor, batch, updates, hyper)
            for layout, guests in batch.guests.items():
                self._transfers.bring_back(layout, guests, batch.in_dram[layout])
            batch.guests = {}

    def _update_in_core(
        self,
        batch: StagedBatch,
        updates: Sequence[FeatureUpdate | None],
        hyper: _core.HyperTuple,
    ) -> None:
        calls = [_backward_tuple(f, u) for f, u in zip(batch.features, updates, strict=True)]
        self._core.backward(batch.plan, calls, hyper, False)

    def _launch_backward(
        self,
        executor: Executor,
        batch: StagedBatch,
        updates: Sequence[FeatureUpdate | None],
        hyper: _core.HyperTuple | None,
    ) -> None:
        flags = [u is not None and u.row_grad is None and hyper is not None for u in updates]
        steps = self._core.begin_update(batch.plan, flags)
        seen = False
        for update, step in zip(updates, steps, strict=True):
            if update is not None:
                update.step = step
                update.grad = self._runtime.keep(update.grad)
                seen |= update.row_grad is not None or update.weights_grad is not None
        assert batch.image is not None
        self._runtime.on_compute(
            lambda: executor.backward(self._layouts, batch, updates, hyper or _NO_HYPER),
            self._slots_of(batch),
            seen,
            reads=batch.image.numbers[0],
        )

    def _slots_of(self, batch: StagedBatch) -> Slots:
        return lambda: [
            (layout, np.frombuffer(slots, dtype=np.int32))
            for layout, slots in self._core.slots_of(batch.plan)
        ]

    def _fetch_guests(self, batch: StagedBatch) -> None:
        """Rows that found no room come for the length of a forward or backward.

        In between they are in dram, where other batches may move them.
        """
        batch.guests = {
            layout: self._transfers.fetch(layout, dram) for layout, dram in batch.in_dram.items()
        }

    def finish(self) -> None:
        """Returns when nothing is under way on the device."""
        self._runtime.finish()

    def __del__(self) -> None:
        with suppress(Exception):  # of one that never was
            self.finish()  # before the memory goes that it works on

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Within, nothing is under way on the device; its memory is given back at the end."""
        with self.lock:
            try:
                self.finish()
            finally:  # a device that is broken keeps no store open
                yield
            self._give_back()

    def _give_back(self) -> None:
        self._layouts.clear()
        self._images.clear()
        del self._transfers

    def end(self, batch: StagedBatch) -> None:
        """The batch's work is launched: its rows may leave the device after it."""
        batch.plan.release()
        self._transfers.released()
        if batch.buffer is not None:
            batch.buffer.read = self._runtime.record_compute()
            self._images.append(batch.buffer)
            batch.buffer = None

    def _send_image(self, batch: StagedBatch, executor: Executor) -> None:
        """Copies the plan's arrays to the device."""
        plan_bytes, *begins = self._core.image(batch.plan)
        nbytes = plan_bytes + NUMBERS * 4 * len(batch.features)
        buffer = batch.buffer
        if buffer is None or buffer.host.numel() < nbytes:
            buffer = self._take_image_buffer(nbytes)
        if buffer.read is not None:
            self._runtime.host_waits(buffer.read)
        features = [PlannedFeature(*numbers) for numbers in self._core.features(batch.plan)]
        groups = executor.groups(batch, features)
        group_of = [group.start for group in groups for _ in group]
        host = buffer.host.data_ptr()
        seldom = self._core.write_image(batch.plan, group_of, OFTEN, host)
        source, target = buffer.host[:plan_bytes], buffer.device[:plan_bytes]
        self._runtime.on_copy(lambda: _copy_bytes(source, target), tuple, reads=source)
        ranges = self._core.ranges(batch.plan) if batch.will_update else []
        batch.buffer = buffer
        batch.image = Image(
            **{
                name: buffer.device[begin : max(begin, end)].view(dtype)
                for (name, dtype), begin, end in zip(
                    _ARRAYS.items(), begins, [*begins[1:], plan_bytes], strict=True
                )
            },
            numbers=[
                memory[plan_bytes:nbytes].view(torch.int32).view(-1, NUMBERS)
                for memory in (buffer.host, buffer.device)
            ],
            features=features,
            groups=groups,
            ranges=[PlannedRange(*numbers, n) for numbers, n in zip(ranges, seldom, strict=False)],
        )

    def _take_image_buffer(self, nbytes: int) -> _ImageBuffer:
        """The one whose last use is longest ago, or a new one."""
        if len(self._all_images) >= _IMAGES_MIN and self._images:
            buffer = self._images.popleft()
            if buffer.host.numel() >= nbytes:
                return buffer
            del buffer  # too small for these batches
        size = max(_IMAGE_BYTES_MIN, 1 << (nbytes - 1).bit_length())
        pinned = sum(image.host.numel() for image in self._all_images if image.is_pinned)
        buffer = _ImageBuffer(self._runtime, size, pinned + size <= self._pinned_plan_bytes)
        self._all_images.add(buffer)
        return buffer


def _copy_bytes(source: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr() or 1


def runtime_of(device: torch.device) -> Runtime:
    """The streams of a device, or of this processor in its place."""
    return EmulatedRuntime() if device.type == "cpu" else CudaRuntime(device)


def _host_memory(address: int, nbytes: int) -> torch.Tensor:
    """Memory of the core as uint8 [nbytes]; the core keeps it."""
    if nbytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype=torch.uint8)


def _layouts(
    core: _core.Engine, runtime: Runtime, tables: int
) -> tuple[list[LayoutMemory], list[int]]:
    """The memory of each layout, and the layout of each table."""
    layouts: dict[int, LayoutMemory] = {}
    layout_of = []
    for table in range(tables):
        number, slots, stride, address, nbytes = core.hbm_layout(table)
        layout_of.append(number)
        if number in layouts:
            continue
        memory = _host_memory(address, nbytes) if address else runtime.empty(slots * stride)
        layouts[number] = LayoutMemory(number, slots, stride, memory.view(-1, stride))
    return [layouts[n] for n in sorted(layouts)], layout_of


def _make_executor(
    hbm: HBM, tables: Sequence[TableSpec], optimizer: int, seed: int
) -> Executor | None:
    """None: the core's own kernels."""
    if hbm.executor == "torch":
        return TorchExecutor(tables, optimizer, seed)
    if hbm.executor == "triton":
        try:
            from tiered_emb.device.triton_executor import TritonExecutor
        except ImportError as error:
            raise RuntimeError(
                "HBM(executor='triton') needs the package triton, which CUDA builds of torch "
                f"bring ({error}); executor='torch' does without"
            ) from error
        return TritonExecutor(tables, optimizer, seed)
    return None


def _backward_tuple(feature: Feature, update: FeatureUpdate | None) -> _core.BackwardTuple:
    by_count = feature.lookup.scale_grad_by_freq
    if update is None:
        return (0, 0, 0, 0, by_count)
    return (
        update.grad.data_ptr() or 1,
        _address(update.weights),
        _address(update.weights_grad),
        _address(update.row_grad),
        by_count,
    )
