"""Streams, events and pinned memory of a device: all that the hbm tier asks of one.

Work on a device runs in order in one of two streams: `compute`, which the caller's own operations
share, and `copy`, for rows that move. Between the two, and towards the host, nothing is ordered but
by events. `CudaRuntime` is a GPU. `EmulatedRuntime` is this processor, as lazy as a device may be:
what was launched runs only when something waits for it, so that a wait that is missing shows.
Not thread-safe: callers hold the lock of their tables.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

Work = Callable[[], None]
Slots = Callable[[], Iterable[tuple[int, np.ndarray]]]
"""(Layout, its slots) that some work uses; only asked where the order is checked."""


class Event(Protocol):
    """A place in a stream: what was launched there before it."""


class Runtime(Protocol):
    """One device's streams."""

    device: torch.device

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Host memory that the device reaches, uint8 [nbytes]; what is in it means nothing."""

    def empty(self, nbytes: int) -> torch.Tensor:
        """Memory of the device for both streams, uint8 [nbytes]; what is in it means nothing."""

    def on_copy(
        self,
        work: Work,
        slots: Slots,
        reads: torch.Tensor | None = None,
        fills: torch.Tensor | None = None,
    ) -> None:
        """Launches `work` in the copy stream.

        Args:
            work: launches it.
            slots: of the device that it uses.
            reads: pinned memory that the host has written.
            fills: pinned memory that the host will read.
        """

    def on_compute(
        self, work: Work, slots: Slots, seen: bool, reads: torch.Tensor | None = None
    ) -> None:
        """Launches `work` in the compute stream.

        `seen`: operations of the caller use its results.
        """

    def record_copy(self) -> Event:
        """The end of what is in the copy stream now."""

    def record_compute(self) -> Event:
        """The end of what is in the compute stream now."""

    def copy_waits(self, event: Event) -> None:
        """What is launched in the copy stream from now on comes after `event`."""

    def compute_waits(self, event: Event) -> None:
        """What is launched in the compute stream from now on comes after `event`."""

    def host_waits(self, event: Event) -> None:
        """Returns when all before `event` is done."""

    def finish(self) -> None:
        """Returns when all that was launched is done, before memory is given back."""

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` as it is now, for work that is launched next in the compute stream."""


class CudaRuntime:
    """A CUDA device; compute is the caller's current stream there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copy = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._compute_seen: torch.cuda.Stream | None = None

    def pinned(self, nbytes: int) -> torch.Tensor:
        """See `Runtime`."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def empty(self, nbytes: int) -> torch.Tensor:
        """See `Runtime`."""
        memory = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        # torch may have had it from work that is still queued in the caller's stream, and may give
        # it away again to such.
        self._copy.wait_stream(self._compute())
        memory.record_stream(self._copy)
        return memory

    def on_copy(
        self,
        work: Work,
        slots: Slots,
        reads: torch.Tensor | None = None,
        fills: torch.Tensor | None = None,
    ) -> None:
        """See `Runtime`."""
        with torch.cuda.stream(self._copy):
            work()

    def on_compute(
        self, work: Work, slots: Slots, seen: bool, reads: torch.Tensor | None = None
    ) -> None:
        """See `Runtime`."""
        with torch.cuda.device(self.device):
            self._compute()
            work()

    def _compute(self) -> torch.cuda.Stream:
        """The caller's stream, which comes after the one that it had before."""
        stream = torch.cuda.current_stream(self.device)
        if self._compute_seen is not None and self._compute_seen != stream:
            stream.wait_stream(self._compute_seen)
        self._compute_seen = stream
        return stream

    def record_copy(self) -> Event:
        """See `Runtime`."""
        event: Event = self._copy.record_event()
        return event

    def record_compute(self) -> Event:
        """See `Runtime`."""
        event: Event = self._compute().record_event()
        return event

    def copy_waits(self, event: Any) -> None:
        """See `Runtime`."""
        self._copy.wait_event(event)

    def compute_waits(self, event: Any) -> None:
        """See `Runtime`."""
        self._compute().wait_event(event)

    def host_waits(self, event: Any) -> None:
        """See `Runtime`."""
        event.synchronize()

    def finish(self) -> None:
        """See `Runtime`."""
        torch.cuda.synchronize(self.device)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `Runtime`."""
        return tensor  # later operations of the caller come later in the same stream


class RaceError(RuntimeError):
    """Two parties may have used the same memory at the same time."""


class _Queue:
    """A stream of the emulated device: what was launched and has not run."""

    def __init__(self) -> None:
        self._work: deque[Work] = deque()
        self._begun = 0
        self.known = 0
        """How many launches the host knows to be done."""
        self.waits: deque[tuple[int, EmulatedEvent]] = deque()
        """Launches that wait for others, of those that the host does not know to be done."""
        self.after: dict[_Queue, int] = {}
        """How many launches of other streams come before what is launched from now on."""

    def come_after(self, event: EmulatedEvent) -> None:
        """What is launched from now on comes after `event`."""
        for queue, end in [(event.queue, event.end), *event.after.items()]:
            if queue is not self:
                self.after[queue] = max(self.after.get(queue, 0), end)

    def launch(self, work: Work) -> int:
        """Returns the number of the launch."""
        self._work.append(work)
        return self.end() - 1

    def end(self) -> int:
        """The number of launches so far."""
        return self._begun + len(self._work)

    def run_to(self, end: int) -> None:
        """Runs the launches before number `end`."""
        while self._begun < end:
            self._begun += 1
            self._work.popleft()()


class EmulatedEvent:
    """See `Event`."""

    def __init__(self, queue: _Queue) -> None:
        self.queue = queue
        self.end = queue.end()
        self.after = dict(queue.after)

    def run(self) -> None:
        """Runs what comes before it."""
        self.queue.run_to(self.end)

    def know(self) -> None:
        """The host knows that what comes before it is done, and all that waited for."""
        queue = self.queue
        if self.end <= queue.known:
            return
        queue.known = self.end
        while queue.waits and queue.waits[0][0] < self.end:
            queue.waits.popleft()[1].know()


@dataclass(slots=True)
class _Use:
    """Of pinned memory by launch number `number`, until the host knows that it is done."""

    queue: _Queue
    number: int
    memory: torch.Tensor
    content: torch.Tensor | None = None
    """What it read, or what it will show to the host."""

    @property
    def is_known(self) -> bool:
        return self.number < self.queue.known


class EmulatedRuntime:
    """This processor as a device.

    What the caller's operations see has run; anything else runs when an event behind it is waited
    for.

    Args:
        hostile: what the device does to pinned memory is seen by the host once it has waited for
            it, until when there are NaNs. `RaceError` is raised if the host writes pinned memory
            that it does not know to have been read, or if a stream uses a slot that the other one
            has used and nothing says which comes first.
    """

    def __init__(self, hostile: bool = False) -> None:
        self.device = torch.device("cpu")
        self._hostile = hostile
        self._copy = _Queue()
        self._compute = _Queue()
        self._reads: list[_Use] = []
        self._fills: list[_Use] = []
        self._used: dict[tuple[int, int], dict[_Queue, int]] = {}  # slots: last launches

    def pinned(self, nbytes: int) -> torch.Tensor:
        """See `Runtime`."""
        return torch.full((nbytes,), 0xFF, dtype=torch.uint8)

    def empty(self, nbytes: int) -> torch.Tensor:
        """See `Runtime`."""
        memory = torch.empty(nbytes, dtype=torch.uint8)
        if self._hostile:
            memory.fill_(0xFF)
        return memory

    def on_copy(
        self,
        work: Work,
        slots: Slots,
        reads: torch.Tensor | None = None,
        fills: torch.Tensor | None = None,
    ) -> None:
        """See `Runtime`."""
        self._launch(self._copy, work, slots, reads, fills)

    def on_compute(
        self, work: Work, slots: Slots, seen: bool, reads: torch.Tensor | None = None
    ) -> None:
        """See `Runtime`."""
        self._launch(self._compute, work, slots, reads, None)
        if seen:
            self._compute.run_to(self._compute.end())

    def _launch(
        self,
        queue: _Queue,
        work: Work,
        slots: Slots,
        reads: torch.Tensor | None,
        fills: torch.Tensor | None,
    ) -> None:
        if not self._hostile:
            queue.launch(work)
            return
        self._check_slots(queue, slots)
        if reads is not None:
            self._check_reads()
            used = _Use(queue, queue.end(), reads)
            self._reads.append(used)
        if fills is not None:
            filled = _Use(queue, queue.end(), fills)
            self._fills.append(filled)

        def run() -> None:
            work()
            if reads is not None:
                used.content = reads.clone()
            if fills is not None:
                filled.content = fills.clone()
                fills.fill_(0xFF)

        queue.launch(run)

    def _check_slots(self, queue: _Queue, slots: Slots) -> None:
        """Raises `RaceError` if the other stream may be using some of `slots`."""
        for layout, numbers in slots():
            for number in numbers.tolist():
                uses = self._used.setdefault((layout, number), {})
                for other, last in uses.items():
                    # Before this launch by an event, or as the host has waited for it.
                    done = max(queue.after.get(other, 0), other.known)
                    if other is not queue and last >= done:
                        raise RaceError(
                            f"slot {number} of layout {layout} is used in two streams at once"
                        )
                uses[queue] = queue.end()

    def _check_reads(self) -> None:
        """Raises `RaceError` if memory has changed that the device may still be reading."""
        for use in self._reads:
            if use.content is not None and not torch.equal(use.memory, use.content):
                raise RaceError(
                    "the host has written pinned memory before it waited for the device to read it"
                )

    def record_copy(self) -> EmulatedEvent:
        """See `Runtime`."""
        return EmulatedEvent(self._copy)

    def record_compute(self) -> EmulatedEvent:
        """See `Runtime`."""
        return EmulatedEvent(self._compute)

    def copy_waits(self, event: Any) -> None:
        """See `Runtime`."""
        self._wait(self._copy, event)

    def compute_waits(self, event: Any) -> None:
        """See `Runtime`."""
        self._wait(self._compute, event)

    def _wait(self, queue: _Queue, event: EmulatedEvent) -> None:
        number = queue.launch(event.run)
        if self._hostile:
            queue.waits.append((number, event))
            queue.come_after(event)

    def host_waits(self, event: Any) -> None:
        """See `Runtime`."""
        event.run()
        if not self._hostile:
            return
        self._check_reads()
        event.know()
        self._reads = [use for use in self._reads if not use.is_known]
        for use in self._fills:
            if use.is_known and use.content is not None:
                use.memory.copy_(use.content)
        self._fills = [use for use in self._fills if not use.is_known]

    def finish(self) -> None:
        """See `Runtime`."""
        self._copy.run_to(self._copy.end())
        self._compute.run_to(self._compute.end())

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `Runtime`."""
        return tensor.clone()
