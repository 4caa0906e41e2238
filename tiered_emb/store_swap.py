"""`StoreSwap`: an ssd store becomes a copy of another, and a kill at any moment leaves one of both.

All happens in the store's own directory, which may be a mount point or the only place to write:

    LOADING/    the copy while it is made; means nothing
    LOADED/     the copy, complete. It is the store from now on; what lies beside it is not

`commit` renames one to the other, `finish` deletes what lies beside it and moves its files up, the
MANIFEST last. The old MANIFEST is deleted after all other old files and before the first new one
comes up: so what has been done can be told, and `recover` finishes what a killed process left.
Whoever opens a store for writing calls it first; who only reads calls `check_readable`.

Not thread-safe. `finish` and `recover` hold the store's LOCK; before, the open store has it.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from tiered_emb import _core
from tiered_emb.files import FileLock, sync_directory

_MANIFEST = "MANIFEST"
_LOADING = "LOADING"
_LOADED = "LOADED"
_OTHER_FILES = re.compile(r"MANIFEST\.tmp|index-\d+|segment-[0-9a-f]{8}")
_FILES = re.compile(rf"{_OTHER_FILES.pattern}|MANIFEST|LOCK")


class StoreSwap:
    """The store at `path` becomes a copy of another one: `stage`, `commit`, `finish`."""

    def __init__(self, path: str) -> None:
        self._store = Path(path)
        self._lock: FileLock | None = None
        self._is_staged = False

    def stage(self, source: str, is_open: bool) -> None:
        """Copies the store at `source`. `is_open`: the caller has this one open, with its lock."""
        if not is_open:
            self._store.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self._store)
            _settle(self._store)
        self._remove_copy()
        self._is_staged = True
        _core.copy_checkpoint(source, str(self._store / _LOADING), "")

    def commit(self) -> None:
        """The copy is the store from now on."""
        os.rename(self._store / _LOADING, self._store / _LOADED)
        sync_directory(self._store)

    def cancel(self) -> None:
        """The old store stays. Not after it was closed, when `commit` has returned."""
        try:
            if self._is_staged:
                self._remove_copy()
                self._is_staged = False
        finally:
            self._unlock()

    def finish(self) -> None:
        """Puts the copy in the place of the old store, which must be closed.

        Raises `OSError` naming both if that fails; `recover` then tries again.
        """
        try:
            if self._lock is None:
                self._lock = _lock(self._store)
            _settle(self._store)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self._store}: the store that takes its place, {self._store / _LOADED}, could "
                f"not be moved there; opening it for writing tries again: {error}",
            ) from error
        finally:
            self._is_staged = False
            self._unlock()

    def _remove_copy(self) -> None:
        loading, loaded = self._store / _LOADING, self._store / _LOADED
        _remove_files(loading)
        if (loaded / _MANIFEST).exists():  # by one rename: a part of it must never count
            os.rename(loaded, loading)
            sync_directory(self._store)
            _remove_files(loading)
        _remove_files(loaded)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def recover(path: str) -> None:
    """Finishes, or removes, what a process that was killed during a load left at `path`.

    Raises `BlockingIOError` if the store is open elsewhere, which may be that load.
    """
    store = Path(path)
    if (store / _LOADING).exists() or (store / _LOADED).exists():
        with _lock(store):
            _settle(store)
            _remove_files(store / _LOADING)


def check_readable(path: str) -> None:
    """Raises `ValueError` if a load has replaced the store at `path` and not ended."""
    loaded = Path(path) / _LOADED
    if (loaded / _MANIFEST).exists():
        raise ValueError(
            f"{path}: a load that has not ended replaces this store by {loaded}; if its process "
            f"is gone, open it once for writing, with te.SSD({str(path)!r}, resume=True)"
        )


def _lock(store: Path) -> FileLock:
    try:
        return FileLock(store / "LOCK", wait=False)
    except BlockingIOError:
        text = f"{store}: the store is open elsewhere ({store / 'LOCK'} is held)"
        raise BlockingIOError(errno.EWOULDBLOCK, text) from None


def _settle(store: Path) -> None:
    """Moves what is in LOADED/ up; may be done again after a kill at any point."""
    loaded = store / _LOADED
    if (loaded / _MANIFEST).exists():
        if (store / _MANIFEST).exists():
            for file in list(store.iterdir()):
                if _OTHER_FILES.fullmatch(file.name):
                    file.unlink()
            sync_directory(store)
            (store / _MANIFEST).unlink()
            sync_directory(store)
        for file in list(loaded.iterdir()):
            if _OTHER_FILES.fullmatch(file.name):
                os.rename(file, store / file.name)
        sync_directory(store)
        os.rename(loaded / _MANIFEST, store / _MANIFEST)
        sync_directory(store)
    _remove_files(loaded)


def _remove_files(folder: Path) -> None:
    """Raises `OSError` (ENOTEMPTY) where there is something of somebody else's."""
    if folder.exists():
        for file in list(folder.iterdir()):
            if _FILES.fullmatch(file.name):
                file.unlink()
        folder.rmdir()
