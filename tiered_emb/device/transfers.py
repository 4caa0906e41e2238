"""Rows on their way between dram and slots on a device.

A stage of a batch spills rows and fills others, as the core has decided. Rows pass through pinned
buffers of a fixed size, two each way, so that one is filled while the other is being copied. The
core does not touch a row that is under way: it has left its slot on the device, and is settled when
its bytes stand in dram again, at the latest before the next stage.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from tiered_emb import _core
from tiered_emb.device.executor import Copier, LayoutMemory
from tiered_emb.device.runtime import Event, Runtime

_LIST_BYTES = 4  # of a slot's number
_ALIGNMENT = 16
_RELEASES_KEPT = 64  # later ones stand for those before


@dataclass(slots=True)
class _Chunk:
    """A pinned buffer: numbers of slots, then their rows; and what it is in use for."""

    memory: torch.Tensor
    event: Event | None = None
    layout: LayoutMemory | None = None
    dram: np.ndarray | None = None  # where its rows have still to be brought

    def parts(self, count: int, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
        """int32 [count] and uint8 [count, stride]."""
        at = -(-count * _LIST_BYTES // _ALIGNMENT) * _ALIGNMENT
        slots = self.memory[: count * _LIST_BYTES].view(torch.int32)
        return slots, self.memory[at : at + count * stride].view(count, stride)


class Transfers:
    """Moves rows of one engine.

    Args:
        core: the engine.
        layouts: by their numbers.
        runtime: of the device.
        copier: of rows there.
        buffer_bytes: of one pinned buffer; there are four. At least a row has to fit.
    """

    def __init__(
        self,
        core: _core.Engine,
        layouts: Sequence[LayoutMemory],
        runtime: Runtime,
        copier: Copier,
        buffer_bytes: int,
    ) -> None:
        self._core = core
        self._layouts = layouts
        self._runtime = runtime
        self._copier = copier
        self._bytes = buffer_bytes
        self._up = deque(_Chunk(runtime.pinned(buffer_bytes)) for _ in range(2))
        self._down = deque(_Chunk(runtime.pinned(buffer_bytes)) for _ in range(2))
        self._unsettled: list[tuple[LayoutMemory, np.ndarray, bool]] = []
        self._releases: deque[tuple[int, Event]] = deque(maxlen=_RELEASES_KEPT)

    def stage(self, plan: _core.Plan) -> tuple[int, bool]:
        """Brings a batch's rows to where the device finds them, in the copy stream.

        Returns the number of unique rows that stay in dram, and whether the places are new.
        """
        self.settle()
        moves, places_in_dram, is_new = self._core.stage(plan)
        for number, after, spill_from, spill_to, fill_from, fill_to in moves:
            self._wait_for_release(after)
            layout = self._layouts[number]
            self._go_down(layout, _slots(spill_from), _slots(spill_to), left=True)
            self._go_up(layout, _slots(fill_from), _slots(fill_to))
        return places_in_dram, is_new

    def released(self) -> None:
        """Plans have ended whose work is in the compute stream."""
        self._releases.append((self._core.releases, self._runtime.record_compute()))

    def _wait_for_release(self, number: int) -> None:
        """What is copied next comes after all that plans up to this release had launched."""
        if number == 0:
            return
        for release, event in self._releases:
            if release >= number:
                self._runtime.copy_waits(event)
                return
        # It was taken from a plan that still waits for its backward.
        self._runtime.copy_waits(self._runtime.record_compute())

    def _go_up(self, layout: LayoutMemory, dram: np.ndarray, slots: np.ndarray) -> None:
        """Rows in `dram` slots are copied to `slots` of the device."""
        for part in self._parts(layout, len(slots)):
            chunk = self._up[0]
            self._up.rotate()
            if chunk.event is not None:
                self._runtime.host_waits(chunk.event)
            to, rows = chunk.parts(len(slots[part]), layout.stride)
            to.numpy()[:] = slots[part]
            from_dram = dram[part]
            self._core.gather(layout.number, from_dram.ctypes.data, len(from_dram), rows.data_ptr())
            self._runtime.on_copy(
                partial(self._copier.copy, rows, None, layout.device, to),
                partial(_listed, layout, slots[part]),
                reads=chunk.memory,
            )
            chunk.event = self._runtime.record_copy()

    def _go_down(
        self, layout: LayoutMemory, slots: np.ndarray, dram: np.ndarray, left: bool
    ) -> None:
        """Rows in `slots` of the device are on their way to `dram` slots, until `settle`."""
        for part in self._parts(layout, len(slots)):
            chunk = self._down[0]
            self._down.rotate()
            self._scatter(chunk)
            source, rows = chunk.parts(len(slots[part]), layout.stride)
            source.numpy()[:] = slots[part]
            self._runtime.on_copy(
                partial(self._copier.copy, layout.device, source, rows, None),
                partial(_listed, layout, slots[part]),
                reads=source,
                fills=rows,
            )
            chunk.event = self._runtime.record_copy()
            chunk.layout, chunk.dram = layout, dram[part]
        if len(dram):
            self._unsettled.append((layout, dram, left))

    def _parts(self, layout: LayoutMemory, count: int) -> list[slice]:
        """[0, count) in parts that a buffer holds."""
        rows = (self._bytes - _ALIGNMENT) // (layout.stride + _LIST_BYTES)
        return [slice(first, min(first + rows, count)) for first in range(0, count, rows)]

    def settle(self) -> None:
        """All rows that went down stand in dram."""
        for chunk in self._down:
            self._scatter(chunk)
        for layout, dram, left in self._unsettled:
            self._core.settle(layout.number, dram.ctypes.data, len(dram), left)
        self._unsettled.clear()

    def _scatter(self, chunk: _Chunk) -> None:
        """The rows in a buffer go to their slots in dram, once they have come."""
        if chunk.dram is None or chunk.layout is None or chunk.event is None:
            return
        self._runtime.host_waits(chunk.event)
        _, rows = chunk.parts(len(chunk.dram), chunk.layout.stride)
        self._core.scatter(
            chunk.layout.number, chunk.dram.ctypes.data, len(chunk.dram), rows.data_ptr()
        )
        chunk.dram = None

    def bring_down(self) -> None:
        """All rows that are newer on the device are in dram as well."""
        self.settle()
        copies = [self._core.newer_copies(layout.number) for layout in self._layouts]
        self._bring_down(list(zip(self._layouts, copies, strict=True)))

    def bring_down_rows(self, table: int, layout: int, ids: torch.Tensor) -> None:
        """Likewise for rows `ids` (int64 [n]) of a table."""
        self.settle()
        copies = self._core.copies_of(table, ids.data_ptr(), ids.numel(), True)
        self._bring_down([(self._layouts[layout], copies)])

    def _bring_down(self, copies: list[tuple[LayoutMemory, tuple[bytes, bytes]]]) -> None:
        self._runtime.copy_waits(self._runtime.record_compute())
        for layout, (device, dram) in copies:
            self._go_down(layout, _slots(device), _slots(dram), left=False)
        self.settle()

    def renew(self, table: int, layout: int, ids: torch.Tensor) -> None:
        """Rows `ids` (int64 [n]) of a table that are on the device are there as in dram.

        In the copy stream, where `bring_down` of them has waited for what used them; the next stage
        is waited for.
        """
        device, dram = self._core.copies_of(table, ids.data_ptr(), ids.numel(), False)
        slots, first = np.unique(_slots(device), return_index=True)
        self._go_up(self._layouts[layout], _slots(dram)[first], slots)

    def empty(self) -> None:
        """Rows that no plan uses leave the device."""
        self.bring_down()
        self._core.drop_unused()


def _listed(layout: LayoutMemory, slots: np.ndarray) -> list[tuple[int, np.ndarray]]:
    return [(layout.number, slots)]


def _slots(numbers: bytes) -> np.ndarray:
    """Slot numbers of the core, int32 [n]."""
    return np.frombuffer(numbers, dtype=np.int32)
