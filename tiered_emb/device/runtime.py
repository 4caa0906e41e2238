"""Streams, events and pinned memory of a device: all that the hbm tier asks of one.

Work on a device runs in order in one of two streams: `compute`, which the caller's own operations
share, and `copy`, for rows that move. Between the two, and towards the host, nothing is ordered but
by events. `CudaRuntime` is a GPU. `EmulatedRuntime` is this processor, as lazy as a device may be:
what was launched runs only when something waits for it, so that a wait that is missing shows.
Not thread-safe: callers hold the lock of their tables.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import torch

Work = Callable[[], None]


class Event(Protocol):
    """A place in a stream: what was launched there before it."""


class Runtime(Protocol):
    """One device's streams."""

    device: torch.device

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Host memory that the device reaches, uint8 [nbytes]; what is in it means nothing."""

    def on_copy(self, work: Work) -> None:
        """Launches `work` in the copy stream."""

    def on_compute(self, work: Work, seen: bool) -> None:
        """Launches `work` in the compute stream; `seen`: the caller's operations use its results."""

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

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` as it is now, for work that is launched next in the compute stream."""

    def forget(self, memory: torch.Tensor) -> None:
        """What is in `memory`, of a pinned buffer, means nothing any more."""

    def forget_after_copy(self, memory: torch.Tensor) -> None:
        """Likewise once the copy stream is so far."""


class CudaRuntime:
    """A CUDA device; compute is the caller's current stream there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copy = torch.cuda.Stream(device)
        self._compute_seen: torch.cuda.Stream | None = None

    def pinned(self, nbytes: int) -> torch.Tensor:
        """See `Runtime`."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def on_copy(self, work: Work) -> None:
        """See `Runtime`."""
        with torch.cuda.stream(self._copy):
            work()

    def on_compute(self, work: Work, seen: bool) -> None:
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
        return self._copy.record_event()

    def record_compute(self) -> Event:
        """See `Runtime`."""
        return self._compute().record_event()

    def copy_waits(self, event: Any) -> None:
        """See `Runtime`."""
        self._copy.wait_event(event)

    def compute_waits(self, event: Any) -> None:
        """See `Runtime`."""
        self._compute().wait_event(event)

    def host_waits(self, event: Any) -> None:
        """See `Runtime`."""
        event.synchronize()

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `Runtime`."""
        return tensor  # later operations of the caller come later in the same stream

    def forget(self, memory: torch.Tensor) -> None:
        """See `Runtime`."""

    def forget_after_copy(self, memory: torch.Tensor) -> None:
        """See `Runtime`."""


class _Queue:
    """A stream of the emulated device: what was launched and has not run."""

    def __init__(self) -> None:
        self._work: deque[Work] = deque()
        self._begun = 0

    def launch(self, work: Work) -> None:
        self._work.append(work)

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
        self._queue = queue
        self._end = queue.end()

    def run(self) -> None:
        """Runs what comes before it."""
        self._queue.run_to(self._end)


class EmulatedRuntime:
    """This processor as a device.

    What the caller's operations see has run; anything else waits until an event behind it is waited
    for.

    Args:
        hostile: pinned memory that no copy has come to holds NaNs.
    """

    def __init__(self, hostile: bool = False) -> None:
        self.device = torch.device("cpu")
        self._hostile = hostile
        self._copy = _Queue()
        self._compute = _Queue()

    def pinned(self, nbytes: int) -> torch.Tensor:
        """See `Runtime`."""
        memory = torch.empty(nbytes, dtype=torch.uint8)
        self.forget(memory)
        return memory

    def on_copy(self, work: Work) -> None:
        """See `Runtime`."""
        self._copy.launch(work)

    def on_compute(self, work: Work, seen: bool) -> None:
        """See `Runtime`."""
        self._compute.launch(work)
        if seen:
            self._compute.run_to(self._compute.end())

    def record_copy(self) -> EmulatedEvent:
        """See `Runtime`."""
        return EmulatedEvent(self._copy)

    def record_compute(self) -> EmulatedEvent:
        """See `Runtime`."""
        return EmulatedEvent(self._compute)

    def copy_waits(self, event: Any) -> None:
        """See `Runtime`."""
        self._copy.launch(event.run)

    def compute_waits(self, event: Any) -> None:
        """See `Runtime`."""
        self._compute.launch(event.run)

    def host_waits(self, event: Any) -> None:
        """See `Runtime`."""
        event.run()

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `Runtime`."""
        return tensor.clone()

    def forget(self, memory: torch.Tensor) -> None:
        """See `Runtime`."""
        if self._hostile:
            memory.fill_(0xFF)

    def forget_after_copy(self, memory: torch.Tensor) -> None:
        """See `Runtime`."""
        if self._hostile:
            self._copy.launch(lambda: self.forget(memory))
