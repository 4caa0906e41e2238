"""What checkpoints and stores need of a file system beside files: locks, and renames that last."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FileLock:
    """A flock that is held from construction to `release`, or to the end of a `with`.

    A forked child has the same open file, so closing it in one process alone would leave the lock
    in place until the other ends: `release` unlocks first, in the process that locked.
    """

    def __init__(self, path: Path, *, shared: bool = False, wait: bool = True) -> None:
        """Makes the file if an exclusive lock is wanted. `BlockingIOError`: held, and no `wait`."""
        self._owner = os.getpid()
        self._file = open(path, "rb" if shared else "ab")  # noqa: SIM115 - release closes it
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(self._file, kind if wait else kind | fcntl.LOCK_NB)
        except BaseException:
            self._file.close()
            raise

    def release(self) -> None:
        """Gives the lock back; a second time does nothing."""
        if self._file.closed:
            return
        if os.getpid() == self._owner:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def sync_directory(path: Path) -> None:
    """What was renamed, made or deleted in a directory is so after a loss of power, too."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
