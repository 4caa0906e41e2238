"""Work on a stream of items in threads, with the results in the order of the items.

For work that releases the GIL: a compiled parser, decompression, array operations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_order(items: Iterator[_T], work: Callable[[_T], _R], workers: int) -> Iterator[_R]:
    """``work(item)`` of each item, in order.

    One thread takes the items and `workers` threads work on them, at most ``workers + 2`` items
    ahead of the consumer. What `items` or `work` raise is raised in the place of its result. The
    threads start with the first result and end with the iteration, which closes `items` if it is a
    generator: the error that ended it may keep that alive, with the files that it has open.
    """
    end = object()

    def result(read: Future[object]) -> object:
        item = read.result()
        return end if item is end else work(item)  # type: ignore[arg-type]

    reader, pool = ThreadPoolExecutor(1), ThreadPoolExecutor(workers)
    try:
        waiting: deque[Future[object]] = deque()
        while True:
            while len(waiting) < workers + 2:
                waiting.append(pool.submit(result, reader.submit(next, items, end)))
            ready = waiting.popleft().result()
            if ready is end:
                return
            yield ready  # type: ignore[misc]
    finally:
        for executor in (reader, pool):
            executor.shutdown(cancel_futures=True)
        if isinstance(items, Generator):
            items.close()
