"""`Prefetcher`: a loader of batches whose rows are fetched ahead of the model.

It runs in the caller's thread: batches are taken from the loader a few steps early and announced to
the tables, which plan and fetch in threads of the core. Not thread-safe.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar, cast

from torch import nn

from tiered_emb.collection import TieredEmbeddingCollection
from tiered_emb.embedding import TieredEmbedding
from tiered_emb.engine import TableEngine

Batch = TypeVar("Batch")
Counts = tuple[int, ...]
_Tables = TieredEmbedding | TieredEmbeddingCollection


@dataclass
class PrefetchReport:
    """Where the time of a loop went, in seconds, since its beginning."""

    batches: int = 0
    total_s: float = 0.0
    loader_s: float = 0.0
    """Waiting for the loader's next batch."""
    announce_s: float = 0.0
    """Announcing batches to the tables."""
    planning_s: float = 0.0
    """The model waited while a batch was planned that had not been planned ahead."""
    rows_s: float = 0.0
    """The model waited for rows."""
    ready_batches: int = 0
    """Lookups whose rows were all there in time."""
    taken_batches: int = 0
    """Lookups of announced batches."""
    dropped_batches: int = 0
    """Announced to tables that then did not look them up."""

    def __str__(self) -> str:
        parts = [("loader", self.loader_s), ("rows", self.rows_s), ("planning", self.planning_s)]
        waits = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts)
        ready = self.ready_batches / self.taken_batches if self.taken_batches else 1.0
        line = f"{self.batches:,} batches in {self.total_s:.2f} s; stalled on {waits}; "
        line += f"{ready:.1%} of the lookups ready in time"
        return line + (f"; {self.dropped_batches:,} dropped" if self.dropped_batches else "")


class _Source(Generic[Batch]):
    """A loader's batches, and what ended them."""

    def __init__(self, loader: Iterable[Batch]) -> None:
        self._batches = iter(loader)
        self.end: Exception | None = None

    def has_ended(self) -> bool:
        return self.end is not None

    def take(self) -> Batch | None:
        """None at the end."""
        try:
            return next(self._batches)
        except StopIteration:
            self.end = StopIteration()  # the one that was raised would keep the loader alive
        except Exception as error:
            self.end = error
        return None


class _Announced(Generic[Batch]):
    """A batch that was taken from the loader, and the last ticket that each engine gave for it."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.tickets: dict[TableEngine, int] = {}
        self.is_prefetched = False

    def is_waiting(self) -> bool:
        return all(engine.is_prefetched(ticket) for engine, ticket in self.tickets.items())

    def prefetch(self) -> None:
        if not self.is_prefetched:
            self.is_prefetched = True
            for engine, ticket in self.tickets.items():
                engine.prefetch(ticket)

    def cancel(self) -> int:
        """Drops what the tables have not taken; how many lookups that are."""
        return sum(engine.cancel_prefetch(ticket) for engine, ticket in self.tickets.items())


class Prefetcher(Generic[Batch]):
    """Iterates over a loader, unchanged, while the rows of the batches to come are fetched.

    The tables of `model` (every `TieredEmbedding` and `TieredEmbeddingCollection` in it) learn of
    each batch `ids_ahead` steps early and fetch its rows `rows_ahead` steps early. Results are the
    same bits as without a prefetcher.

    Args:
        loader: any iterable of batches, a `DataLoader` for instance.
        model: a module with tiered tables, or one itself.
        ids: function from a batch to what the tables will be looked up with: the input of the
            model's only table module (the arguments of its `forward`, a tuple if there are several)
            or, if there are more, a mapping from their names in `model.named_modules()` to their
            inputs, or a sequence in that order; None leaves a module out. Default: the batch.
        rows_ahead: batches whose rows are fetched before their turn, at least 1. Where dram has no
            room for the rows of so many batches, fewer are.
        ids_ahead: batches that are taken from the loader before their turn, so that their ids steer
            which rows stay in dram (`Tiers(policy="lookahead")`). They are kept until then; what
            is known of their ids takes 20 to 46 bytes each of the dram budget, an eighth of it at
            most. Where every row has room in dram, `rows_ahead` of them are taken.

    A loop over the same tables within another one (a validation) drops the batches that the outer
    one has announced; that announces them anew. What the loader or `ids` raises is raised when its
    batch would have come.

    Raises:
        TypeError, ValueError: a model without tiered tables; `ids` that returns something else.

    >>> import torch, tiered_emb as te
    >>> bag = te.TieredEmbedding(1000, 4, mode="sum", optimizer=te.optim.SGD(lr=0.1))
    >>> batches = [(torch.randint(1000, (8, 3)), torch.ones(8, 4)) for _ in range(5)]
    >>> loop = te.Prefetcher(batches, bag, ids=lambda batch: batch[0], rows_ahead=2)
    >>> for ids, target in loop:
    ...     loss = ((bag(ids) - target) ** 2).sum()
    ...     loss.backward()
    >>> loop.report.batches
    5
    """

    def __init__(
        self,
        loader: Iterable[Batch],
        model: nn.Module,
        ids: Callable[[Batch], Any] | None = None,
        *,
        rows_ahead: int = 4,
        ids_ahead: int = 64,
    ) -> None:
        if rows_ahead < 1:
            raise ValueError(f"rows_ahead must be at least 1, got {rows_ahead}")
        self._loader = loader
        self._modules: dict[str, _Tables] = {
            name: module for name, module in model.named_modules() if isinstance(module, _Tables)
        }
        if not self._modules:
            raise ValueError(f"there is no tiered table in this {type(model).__name__}")
        self._ids = ids
        self._rows_ahead = rows_ahead
        self._ids_ahead = ids_ahead
        self._engines = list({id(m._engine): m._engine for m in self._modules.values()}.values())
        self._ended_s: float | None = None
        self._begin()

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]  # as the loader says

    @property
    def report(self) -> PrefetchReport:
        """Where the time of the loop went so far; of the last one once it has ended."""
        if self._ended_s is None:
            self._measure(time.perf_counter())
        return self._report

    def __iter__(self) -> Iterator[Batch]:
        for engine in self._engines:
            engine.cancel_prefetch()  # an outer loop announces its batches anew
        self._begin()
        source = _Source(self._loader)
        ahead: deque[_Announced[Batch]] = deque()
        try:
            while True:
                self._take(source, ahead)
                if not ahead:
                    if isinstance(source.end, StopIteration):
                        return
                    assert source.end is not None
                    raise source.end
                if not ahead[0].is_waiting():  # a `load`, or cancel_prefetch()
                    for announced in ahead:
                        announced.cancel()
                        self._announce(announced)
                for announced in islice(ahead, self._rows_ahead + 1):
                    announced.prefetch()
                current = ahead.popleft()
                self._report.batches += 1
                try:
                    yield current.batch
                finally:
                    # It is taken by now, unless the model did not look the batch up.
                    self._report.dropped_batches += current.cancel()
        finally:
            for announced in ahead:
                announced.cancel()
            self._measure(time.perf_counter())
            self._ended_s = self._report.total_s

    def _begin(self) -> None:
        self._report = PrefetchReport()
        self._start = time.perf_counter()
        self._ended_s = None
        self._waits_before = [_waits(engine) for engine in self._engines]

    def _take(self, source: _Source[Batch], ahead: deque[_Announced[Batch]]) -> None:
        """Takes batches from the loader and announces them, up to the first that fails.

        The first step waits for those whose rows are to be fetched; then there are two a step until
        there are enough.
        """
        looks_ahead = any(engine.looks_ahead for engine in self._engines)
        wanted = max(self._ids_ahead, self._rows_ahead) if looks_ahead else self._rows_ahead
        for _ in range(max(self._rows_ahead + 1 - len(ahead), 2)):
            if len(ahead) > wanted or source.has_ended():
                return
            began = time.perf_counter()
            batch = source.take()
            self._report.loader_s += time.perf_counter() - began
            if source.has_ended():
                return
            announced = _Announced(cast(Batch, batch))
            try:
                self._announce(announced)
            except Exception as error:  # its turn comes after those before it
                source.end = error
                return
            ahead.append(announced)

    def _announce(self, announced: _Announced[Batch]) -> None:
        began = time.perf_counter()
        announced.tickets.clear()
        announced.is_prefetched = False
        try:
            for module, arguments in self._inputs(announced.batch):
                ticket = module._announce(*arguments)
                if ticket is not None:
                    announced.tickets[module._engine] = ticket
        except BaseException:
            announced.cancel()
            raise
        self._report.announce_s += time.perf_counter() - began

    def _inputs(self, batch: Batch) -> Iterator[tuple[_Tables, tuple[Any, ...]]]:
        """Each module that will look something up, with the arguments of its forward."""
        given: Any = batch if self._ids is None else self._ids(batch)
        names = list(self._modules)
        if len(names) == 1:
            named: Any = {names[0]: given}
        elif isinstance(given, Mapping):
            named = given
        elif isinstance(given, Sequence) and not isinstance(given, str):
            if len(given) != len(names):
                raise ValueError(f"ids gave {len(given)} inputs for {len(names)} tables: {names}")
            named = dict(zip(names, given, strict=True))
        else:
            raise TypeError(
                f"ids must give a mapping or a sequence of inputs for the tables {names}, "
                f"got {type(given).__name__}"
            )
        for name, arguments in named.items():
            if name not in self._modules:
                raise ValueError(f"ids names {name!r}, which is no tiered table: {names}")
            if arguments is None:
                continue
            module = self._modules[name]
            is_list = isinstance(arguments, (tuple, list)) and isinstance(module, TieredEmbedding)
            yield module, tuple(arguments) if is_list else (arguments,)

    def _measure(self, now_s: float) -> None:
        report = self._report
        report.total_s = now_s - self._start
        waits = [
            _since(before, _waits(engine))
            for engine, before in zip(self._engines, self._waits_before, strict=True)
        ]
        planning_ns, rows_ns, taken, ready = (sum(column) for column in zip(*waits, strict=True))
        report.planning_s = planning_ns / 1e9
        report.rows_s = rows_ns / 1e9
        report.taken_batches = taken
        report.ready_batches = ready


def _since(before: Counts, now: Counts) -> Counts:
    differences = [n - b for n, b in zip(now, before, strict=True)]
    return now if min(differences) < 0 else tuple(differences)  # a `load` begins to count anew


def _waits(engine: TableEngine) -> Counts:
    """Nanoseconds a model waited for planning and for rows, batches taken, batches ready."""
    stats = engine.stats()
    rows_ns = stats.move_ns + stats.prefetch_stall_ns
    return stats.plan_ns, rows_ns, stats.prefetched_batches, stats.prefetched_batches_ready
