"""The number of threads that the tables of this process share. Thread-safe."""

from __future__ import annotations

from tiered_emb import _core


def set_num_threads(threads: int) -> None:
    """Sets how many threads all tables of this process use together; at first torch's number.

    Results do not depend on it. Raises `ValueError` below 1.
    """
    if threads < 1:
        raise ValueError(f"set_num_threads: at least 1 thread is needed, got {threads}")
    _core.set_num_threads(threads)


def get_num_threads() -> int:
    """The number of threads that all tables of this process use together."""
    return _core.get_num_threads()
