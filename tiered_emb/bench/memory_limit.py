"""A limit of the memory of some processes, page cache included."""

from __future__ import annotations

from pathlib import Path


class MemoryLimit:
    """A memory cgroup. `OSError` where the controller is not there or not ours.

    Args:
        limit_bytes: the most its processes may take, page cache included.
        name: of its folder.
    """

    def __init__(self, limit_bytes: int, name: str) -> None:
        old, new = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
        self.kind = "memory cgroup v1" if old.is_dir() else "memory cgroup v2"
        self.folder = (old if old.is_dir() else new) / name
        self.folder.mkdir()
        limit = "memory.limit_in_bytes" if old.is_dir() else "memory.max"
        try:
            (self.folder / limit).write_text(str(limit_bytes))
        except OSError:
            self.folder.rmdir()
            raise

    def add(self, pid: int) -> None:
        """Moves a process in; what it has taken already stays where it was counted."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """When all its processes have ended."""
        self.folder.rmdir()
