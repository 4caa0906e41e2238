"""The contenders of bench_store.py: how they are built, started, asked, limited; and the drive.

Each contender is a process of `te_store_bench` (benchmarks/store) with a folder of its own, that
answers commands line by line, so that what it uses is what its process uses. They take turns: one
that is not asked does nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from tiered_emb.bench.memory_limit import MemoryLimit

DEPTHS = (32, 64, 128, 256)

Answer = dict[str, Any]


class Contender:
    """One process of the program.

    Args:
        program: its path.
        folder: where it keeps its store; made here, removed by `close`.
        peer: log, rocksdb, page or mmap.
        rows, row_bytes: the shape of the store.
        options: further arguments of the program.
    """

    def __init__(
        self, program: Path, folder: Path, peer: str, rows: int, row_bytes: int, **options: Any
    ) -> None:
        folder.mkdir()
        self.folder = folder
        self.peer = peer
        self.options = options
        self.row_bytes = row_bytes
        arguments = {"peer": peer, "directory": folder, "rows": rows, "row_bytes": row_bytes}
        self.process = subprocess.Popen(
            [
                str(program),
                *(f"{name}={value}" for name, value in {**arguments, **options}.items()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._limit: MemoryLimit | None = None
        self._answer()

    def _answer(self) -> Answer:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer: Answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise RuntimeError(f"{self.peer} {self.options}: {answer['error']}")
        return answer

    def ask(self, *command: Any) -> Answer:
        """What the command used and did."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, command)) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def set_threads(self, count: int) -> None:
        """From now on, `count` threads serve a batch."""
        self.ask("threads", count)
        self.options["threads"] = count

    def limit_memory(self, limit_bytes: int) -> str:
        """Limits what it takes from now on, page cache included; says how.

        What it holds already stays with the group that it came from.
        """
        self._limit = MemoryLimit(limit_bytes, f"te-store-bench-{self.process.pid}")
        self._limit.add(self.process.pid)
        return self._limit.kind

    def close(self) -> None:
        """Ends the process and removes its store; once is enough."""
        if not self.folder.exists():
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        if self._limit is not None:
            self._limit.remove()
        shutil.rmtree(self.folder)

    def __enter__(self) -> Contender:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def can_limit_memory() -> bool:
    """Tries it, and says so loudly where it fails."""
    try:
        MemoryLimit(64 << 20, f"te-store-bench-{os.getpid()}").remove()
    except OSError as error:
        print(f"memory cgroup: left out, {error}; the page cache is dropped now and then instead")
        return False
    return True


def works(program: Path, folder: Path, peer: str, **options: Any) -> bool:
    """Whether such a contender can be had here; says so loudly where not."""
    try:
        Contender(program, folder / "try", peer, 1000, 132, **options).close()
    except RuntimeError as error:
        print(f"left out: {error}")
        shutil.rmtree(folder / "try")
        return False
    return True


def fio(folder: Path, *options: str) -> Answer | None:
    """The report of a job of the drive's own benchmark, or None without it."""
    if shutil.which("fio") is None:
        return None
    command = [
        "fio", "--name=limit", f"--filename={folder / 'fio'}", "--ioengine=io_uring", "--direct=1",
        "--fixedbufs", "--registerfiles",
        "--output-format=json", "--randrepeat=0", "--norandommap", *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    job: Answer = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return job


def fio_reads(folder: Path, size: int, seconds: float, depth: int) -> Answer | None:
    """4 KiB random reads of the drive at a queue depth."""
    job = fio(
        folder, "--rw=randread", "--bs=4k", f"--size={size}", f"--iodepth={depth}",
        f"--runtime={int(seconds * 1e3)}ms", "--time_based",
    )  # fmt: skip
    if job is None:
        return None
    return {
        "blocks_per_s": job["read"]["iops"],
        "cores": (job["usr_cpu"] + job["sys_cpu"]) / 100,
    }


def fio_writes(folder: Path, size: int, depth: int) -> Answer | None:
    """Sequential writes of 1 MiB to a new file at a queue depth."""
    job = fio(folder, "--rw=write", "--bs=1M", f"--size={size}", f"--iodepth={depth}")
    if job is None:
        return None
    (folder / "fio").unlink()
    return {"bytes_per_s": job["write"]["bw_bytes"]}
