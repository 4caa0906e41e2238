"""`nn.EmbeddingBag` over memory-mapped files in a process of its own, with limited memory.

What one does without this package when tables exceed memory: the operating system keeps the pages
that were used last. A memory cgroup limits the page cache; where there is none that may be used,
the peer is left out, as its cache would be all of the machine's memory.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from tiered_emb.bench.contenders import INIT_LIMIT, Steps, TorchBags, Training, Watch
from tiered_emb.bench.memory_limit import MemoryLimit
from tiered_emb.bench.workloads import Workload, named, resized
from tiered_emb.data.dataset import BagInput, Batch

_CHUNK_ROWS = 1 << 18
_MORE_BYTES = 256 << 20  # for what a process of torch takes in its steps, tables aside
NAME = "nn.EmbeddingBag, mmap"
# Not `-m`: that looks for the package where the process starts, which may be a checkout.
_CHILD = "import sys; sys.path.remove(''); from tiered_emb.bench import mmap_peer as m; m.serve()"


class MmapPeer:
    """The peer as a contender: its process runs a round when told to.

    Args:
        workload: a named one, at `scale`.
        dram_bytes: its share of memory; what its steps compute with comes on top, generously.
        folder: for the files.

    Raises:
        OSError: no memory cgroup.
    """

    def __init__(
        self,
        workload: Workload,
        scale: float,
        training: Training,
        dram_bytes: int,
        folder: Path,
        watch: Watch,
    ) -> None:
        self.name = NAME
        self.steps = Steps()
        lookups = sum(workload.pooling.values()) * workload.batch_size
        self.limit_bytes = dram_bytes + _MORE_BYTES + 4 * lookups * workload.dim * 4
        try:
            self._limit = MemoryLimit(self.limit_bytes, f"tiered-emb-{os.getpid()}")
        except OSError as error:
            raise OSError(f"no memory cgroup to limit it: {error}") from error
        self.limited_by = f"{self._limit.kind}, {self.limit_bytes >> 20} MiB"
        self._process: subprocess.Popen[str] | None = None
        try:
            _write_tables(workload, folder, watch)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # a Ctrl-C is for the parent
            )
            options = {**asdict(training), "dtype": str(training.dtype).removeprefix("torch.")}
            del options["device"]  # the processor
            self._tell(
                name=workload.name,
                scale=scale,
                batch_size=workload.batch_size,
                dim=workload.dim,
                folder=str(folder),
                training=options,
                threads=torch.get_num_threads(),
            )
            self._limit.add(self._process.pid)
            self._tell(maps=True)
        except BaseException:
            self.close()
            raise

    def round(self, first: int, count: int, counts: bool = True) -> None:
        """Steps on batches `first` to `first + count` of the workload's."""
        answer = self._tell(first=first, count=count)
        if counts:
            seconds = answer["seconds"]
            self.steps.seconds += seconds
            self.steps.rounds.append(sum(seconds) / len(seconds))

    def _tell(self, **what: Any) -> dict[str, Any]:
        assert self._process is not None
        to, of = self._process.stdin, self._process.stdout
        assert to is not None
        assert of is not None
        line = ""
        with suppress(BrokenPipeError):
            to.write(json.dumps(what) + "\n")
            to.flush()
            line = of.readline()
        if not line:
            code = self._process.wait()
            why = "killed for its memory" if code == -9 else f"exit status {code}"
            raise RuntimeError(f"{self.name}: its process has ended ({why})")
        return dict(json.loads(line))

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            with suppress(BrokenPipeError):
                self._process.communicate()
        with suppress(OSError):  # an empty group is left where the kernel still counts its pages
            self._limit.remove()


def _write_tables(workload: Workload, folder: Path, watch: Watch) -> None:
    """Weights of all tables, and rowwise sums, on disk and not in the page cache."""
    folder.mkdir(parents=True)
    values = ((np.random.default_rng(0).random((_CHUNK_ROWS, workload.dim)) - 0.5) * 2).astype(
        np.float32
    ) * INIT_LIMIT
    for name, rows in watch(workload.rows.items(), len(workload.rows), "writing for mmap"):
        with (folder / f"{name}.weight").open("wb") as file:
            for first in range(0, rows, _CHUNK_ROWS):
                file.write(values[: min(_CHUNK_ROWS, rows - first)].tobytes())
            _leave_the_cache(file)
        with (folder / f"{name}.sum").open("wb") as file:
            file.truncate(rows * 4)


def _leave_the_cache(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _map(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """A float32 tensor over a file; what is read ahead of random rows would be wasted."""
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    memory.madvise(mmap.MADV_RANDOM)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)


def serve() -> None:
    """The peer's process: a line of JSON asks, a line answers."""

    def ask() -> dict[str, Any] | None:
        line = sys.stdin.readline()
        return dict(json.loads(line)) if line else None

    def answer(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    told = ask()
    assert told is not None
    torch.set_num_threads(told["threads"])
    workload = resized(
        named(told["name"], told["scale"]), dim=told["dim"], batch_size=told["batch_size"]
    )
    options = told["training"]
    training = Training(**{**options, "dtype": getattr(torch, options["dtype"])})
    bags = TorchBags(workload, training, rows=dict.fromkeys(workload.rows, 1), name=NAME)
    batches: Iterator[Batch] = workload.batches()
    # What the layers take, and the gradients of a step, is there before the limit counts.
    bags.run([_of_the_first_row(next(batches))] * 2, counts=False)
    batches = workload.batches()
    answer(ready=True)
    ask()
    folder = Path(told["folder"])
    sums = _maps(folder, workload, "sum") if training.optimizer == "rowwise-adagrad" else None
    bags.use(_maps(folder, workload, "weight", workload.dim), sums)
    answer(mapped=True)
    at = 0
    while (told := ask()) is not None:
        skipped = list(islice(batches, told["first"] - at))
        del skipped
        taken = list(islice(batches, told["count"]))
        at = told["first"] + told["count"]
        before = len(bags.steps.seconds)
        bags.run(taken)
        answer(seconds=bags.steps.seconds[before:])


def _of_the_first_row(batch: Batch) -> Batch:
    sparse: dict[str, BagInput] = {}
    for name, value in batch.sparse.items():
        if isinstance(value, tuple):
            sparse[name] = (torch.zeros_like(value[0]), value[1])
        else:
            sparse[name] = torch.zeros_like(value)
    return Batch(batch.dense, sparse, batch.labels)


def _maps(folder: Path, workload: Workload, what: str, *shape: int) -> Mapping[str, torch.Tensor]:
    return {
        name: _map(folder / f"{name}.{what}", (rows, *shape))
        for name, rows in workload.rows.items()
    }
