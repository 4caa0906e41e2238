"""Rows on their way between dram and slots on a device.

A stage of a batch spills rows and fills others, as the core has decided. Rows pass through pinned
buffers of a fixed size, two each way, so that one is filled while the other is being copied. The
core does not touch a row that is under way: it has left its slot on the device, and is settled when
its bytes stand in dram again, at the latest before the next stage. What the core has decided is
written down before it begins: if it fails half way, the next call does it again from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from tiered_emb import _core
from tiered_emb.device.executor import Copier, LayoutMemory
from tiered_emb.device.runtime import Event, Runtime

_LIST_BYTES = 4  # of a slot's number
_ALIGNMENT = 16
_RELEASES_KEPT = 64  # later ones stand for those before
_STRANDED_ROWS = 4096  # that come down at a time


@dataclass(slots=True, eq=False)
class _Move:
    """Rows between slots of the device and slots in dram.

    `after`: the release that overwritten slots wait for; None: all that was launched.
    """

    layout: LayoutMemory
    slots: np.ndarray
    dram: np.ndarray
    is_down: bool
    left: bool = False
    after: int | None = None
    guests: torch.Tensor | None = None
    """Memory in place of the device's slots; the core does not ask for what comes from there."""
    settled: list[None] = field(default_factory=list)
    """One None once the core has been told that the rows stand in dram."""


@dataclass(slots=True)
class _Chunk:
    """A pinned buffer: numbers of slots, then their rows; and what it is in use for."""

    memory: torch.Tensor
    event: Event | None = None
    layout: LayoutMemory | None = None
    dram: np.ndarray | None = None  # where its rows have still to be brought
    is_unsure: bool = False  # something may use it that `event` does not tell of

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
        # Moves, and what the core has answered that is yet to become some. An answer comes here in
        # one step with the call that gives it, so that no signal comes between the two.
        self._planned: list[Any] = []
        self._unsettled: deque[_Move] = deque()
        self._releases: deque[tuple[int, Event]] = deque(maxlen=_RELEASES_KEPT)

    def stage(self, plan: _core.Plan) -> None:
        """Brings a batch's rows to where the device finds them, in the copy stream."""
        self.settle()
        self._planned.extend(zip((None,), map(self._core.stage, (plan,)), strict=True))
        self.launch()

    def in_dram(self, plan: _core.Plan) -> dict[int, np.ndarray]:
        """Slots in dram of a staged batch's rows that found no room on the device, by layout."""
        return {number: _slots(dram) for number, dram in self._core.in_dram(plan)}

    def released(self) -> None:
        """Plans have ended whose work is in the compute stream."""
        self._releases.append((self._core.releases, self._runtime.record_compute()))

    def _wait_for_release(self, number: int | None) -> None:
        """What is copied next comes after all that plans up to this release had launched."""
        if number == 0:
            return
        for release, event in self._releases:
            if number is not None and release >= number:
                self._runtime.copy_waits(event)
                return
        # All is wanted, or it was taken from a plan that still waits for its backward.
        self._runtime.copy_waits(self._runtime.record_compute())

    def launch(self) -> None:
        """Launches what is planned."""
        while self._planned:
            move = self._planned[0]
            if not isinstance(move, _Move):
                self._planned[:1] = self._moves_of(*move)
                continue
            if len(move.slots):
                self._wait_for_release(move.after)
                if move.is_down:
                    source = move.layout.device if move.guests is None else move.guests
                    self._go_down(move.layout, source, move.slots, move.dram)
                    if move.guests is None and move not in self._unsettled:
                        self._unsettled.append(move)
                else:
                    self._go_up(move.layout, move.layout.device, move.dram, move.slots)
            del self._planned[0]

    def _moves_of(self, layout: LayoutMemory | None, answer: Any) -> list[_Move]:
        """Of an answer to `stage`, or to a question for newer rows of a layout."""
        if layout is not None:
            device, dram = answer
            return [_Move(layout, _slots(device), _slots(dram), is_down=True)]
        moves = []
        for number, after, spill_from, spill_to, fill_from, fill_to in answer:
            of = self._layouts[number]
            down, up = (_slots(spill_from), _slots(spill_to)), (_slots(fill_to), _slots(fill_from))
            moves.append(_Move(of, *down, is_down=True, left=True, after=after))
            moves.append(_Move(of, *up, is_down=False, after=after))
        return moves

    def _go_up(
        self, layout: LayoutMemory, target: torch.Tensor, dram: np.ndarray, slots: np.ndarray
    ) -> None:
        """Rows in `dram` slots are copied to `slots` of `target`."""
        for part in self._parts(layout, len(slots)):
            chunk = self._up[0]
            self._up.rotate()
            self._make_sure(chunk)
            if chunk.event is not None:
                self._runtime.host_waits(chunk.event)
            to, rows = chunk.parts(len(slots[part]), layout.stride)
            to.numpy()[:] = slots[part]
            from_dram = dram[part]
            self._core.gather(layout.number, from_dram.ctypes.data, len(from_dram), rows.data_ptr())
            chunk.is_unsure = True
            self._runtime.on_copy(
                partial(self._copier.copy, rows, None, target, to),
                partial(_used, layout, target, slots[part]),
                reads=chunk.memory,
            )
            chunk.event = self._runtime.record_copy()
            chunk.is_unsure = False

    def _go_down(
        self, layout: LayoutMemory, source: torch.Tensor, slots: np.ndarray, dram: np.ndarray
    ) -> None:
        """Rows in `slots` of `source` are on their way to `dram` slots, until `_scatter`."""
        for part in self._parts(layout, len(slots)):
            chunk = self._down[0]
            self._down.rotate()
            self._scatter(chunk)
            self._make_sure(chunk)
            numbers, rows = chunk.parts(len(slots[part]), layout.stride)
            numbers.numpy()[:] = slots[part]
            chunk.is_unsure = True
            self._runtime.on_copy(
                partial(self._copier.copy, source, numbers, rows, None),
                partial(_used, layout, source, slots[part]),
                reads=numbers,
                fills=rows,
            )
            chunk.event = self._runtime.record_copy()
            chunk.is_unsure = False
            chunk.layout, chunk.dram = layout, dram[part]

    def _make_sure(self, chunk: _Chunk) -> None:
        """A launch from this buffer was broken off before its end was noted: all is waited for."""
        if chunk.is_unsure:
            self._runtime.finish()
            chunk.is_unsure = False

    def _parts(self, layout: LayoutMemory, count: int) -> list[slice]:
        """[0, count) in parts that a buffer holds."""
        rows = (self._bytes - _ALIGNMENT) // (layout.stride + _LIST_BYTES)
        return [slice(first, min(first + rows, count)) for first in range(0, count, rows)]

    def settle(self) -> None:
        """All rows that went down stand in dram."""
        self.launch()
        for chunk in self._down:
            self._scatter(chunk)
        while self._unsettled:
            move = self._unsettled[0]
            if not move.settled:
                where = (move.layout.number, move.dram.ctypes.data, len(move.dram), move.left)
                move.settled.extend(map(self._core.settle, *((value,) for value in where)))
            self._unsettled.popleft()

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
        for layout in self._layouts:
            answer = map(self._core.newer_copies, (layout.number,))
            self._planned.extend(zip((layout,), answer, strict=True))
        self.settle()

    def bring_down_rows(self, table: int, layout: int, ids: torch.Tensor) -> None:
        """Likewise for rows `ids` (int64 [n]) of a table."""
        self.settle()
        answer = map(self._core.copies_of, (table,), (ids.data_ptr(),), (ids.numel(),), (True,))
        self._planned.extend(zip((self._layouts[layout],), answer, strict=True))
        self.settle()

    def renew(self, table: int, layout: int, ids: torch.Tensor) -> None:
        """Rows `ids` (int64 [n]) of a table that are on the device are there as in dram.

        In the copy stream, for which every stage waits.
        """
        device, dram = self._core.copies_of(table, ids.data_ptr(), ids.numel(), False)
        slots, first = np.unique(_slots(device), return_index=True)
        self._planned.append(
            _Move(self._layouts[layout], slots, _slots(dram)[first], is_down=False)
        )
        self.launch()

    def fetch(self, number: int, dram: np.ndarray) -> torch.Tensor:
        """Rows in slots `dram` of a layout, in memory of their own: uint8 [n, stride]."""
        layout = self._layouts[number]
        guests = self._runtime.empty(len(dram) * layout.stride).view(len(dram), layout.stride)
        self._go_up(layout, guests, dram, np.arange(len(dram), dtype=np.int32))
        self._runtime.compute_waits(self._runtime.record_copy())
        return guests

    def bring_back(self, number: int, guests: torch.Tensor, dram: np.ndarray) -> None:
        """They are in dram again, as the compute stream has left them."""
        slots = np.arange(len(dram), dtype=np.int32)
        self._planned.append(_Move(self._layouts[number], slots, dram, is_down=True, guests=guests))
        self.launch()
        for chunk in self._down:
            self._scatter(chunk)

    def leave_stranded(self) -> None:
        """While dram becomes smaller: rows whose slots there go away leave the device."""
        self.settle()
        for layout in self._layouts:
            answer = map(self._core.stranded_copies, (layout.number,), (_STRANDED_ROWS,))
            self._planned.extend(zip((layout,), answer, strict=True))
        self.settle()
        self._core.drop_stranded()

    def empty(self) -> None:
        """Rows that no plan uses leave the device."""
        self.bring_down()
        self._core.drop_unused()


def _used(
    layout: LayoutMemory, memory: torch.Tensor, slots: np.ndarray
) -> list[tuple[int, np.ndarray]]:
    """Slots of the device's that a copy uses; none of memory that only one batch knows."""
    return [(layout.number, slots)] if memory is layout.device else []


def _slots(numbers: bytes) -> np.ndarray:
    """Slot numbers of the core, int32 [n]."""
    return np.frombuffer(numbers, dtype=np.int32)
