"""Forked children, and the end of the interpreter while threads are in the core.

Run by test_fork.py in a process of its own: what other tests leave in theirs (thread pools and
allocators of other libraries, which may not survive a fork) is not to be tested.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import tiered_emb as te

ROWS = 4000
DIM = 8


def opened(path: Path | None, **ssd: bool) -> te.TieredEmbedding:
    tiers = None if path is None else te.Tiers(dram="32KiB", ssd=te.SSD(path, **ssd))
    return te.TieredEmbedding(ROWS, DIM, mode="sum", tiers=tiers, optimizer=te.optim.SGD(lr=0.1))


def train(bag: te.TieredEmbedding, steps: int = 20) -> None:
    for _ in range(steps):
        bag(torch.randint(ROWS, (64, 2))).sum().backward()


def in_a_child(work: Callable[[], None], timeout_s: float = 60) -> int:
    """The exit status of a forked child that does the work; one that hangs says where, and ends."""
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(timeout_s / 2, file=sys.__stderr__)
        try:
            work()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)  # it may hang in what runs at a fork, before any line of ours
    os.waitpid(pid, 0)
    raise TimeoutError(f"the child has not ended within {timeout_s} s")


@pytest.fixture
def bag(tmp_path: Path) -> Iterator[te.TieredEmbedding]:
    made = opened(tmp_path / "store")
    train(made)
    yield made
    made.close()


def test_a_child_may_not_use_a_store_of_its_parent(bag: te.TieredEmbedding) -> None:
    ids = torch.arange(8).view(4, 2)
    before = bag.to_dense()

    def use() -> None:
        for call in (
            lambda: bag(ids),
            lambda: bag.rows(ids.view(-1)),
            lambda: bag.prefetch(ids),
            lambda: bag.flush(),
            lambda: bag.write_rows(torch.tensor([1]), torch.ones(1, DIM)),
        ):
            with pytest.raises(ValueError, match=r"opened by process \d+"):
                call()
        bag.close()

    assert in_a_child(use) == 0
    assert torch.equal(bag.to_dense(), before)
    train(bag)


def test_a_child_may_drop_and_collect_a_table_of_its_parent(tmp_path: Path) -> None:
    made = [opened(tmp_path / "store")]
    train(made[0])
    made[0].prefetch(torch.arange(64).view(32, 2))

    def drop() -> None:
        made.clear()
        gc.collect()

    assert in_a_child(drop) == 0
    made[0].cancel_prefetch()
    train(made[0])
    made[0].close()


def test_a_child_may_use_a_table_without_a_store() -> None:
    bag = opened(None)
    train(bag)
    expected = bag.to_dense()

    def use() -> None:
        assert torch.equal(bag.rows(torch.arange(ROWS)), expected)
        train(bag, 3)

    assert in_a_child(use) == 0
    assert torch.equal(bag.to_dense(), expected)


def test_a_child_may_prefetch_by_itself() -> None:
    bag = opened(None)
    batches = [torch.tensor([[i, i + 1]]) for i in range(8)]

    def use() -> None:
        torch.set_num_threads(1)
        for ids in te.Prefetcher(batches, bag, rows_ahead=2):
            bag(ids).sum().backward()
        assert bag.stats().prefetched_batches == len(batches)

    assert in_a_child(use) == 0


def test_a_child_gives_its_plans_back() -> None:
    bag = opened(None)
    ids = torch.randint(ROWS, (2000, 2))

    def use() -> None:
        def resident_bytes() -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        torch.set_num_threads(1)  # torch's own threads do not survive a fork
        for _ in range(50):
            bag(ids).sum().backward()
        before = resident_bytes()
        for _ in range(500):
            bag(ids).sum().backward()
        assert resident_bytes() - before < 10 << 20  # a plan takes 50 KB or more

    assert in_a_child(use) == 0


def test_a_child_may_not_use_a_table_that_prefetches() -> None:
    bag = opened(None)
    ids = torch.arange(8).view(4, 2)
    bag.prefetch(ids)

    def use() -> None:
        with pytest.raises(ValueError, match="fork"):
            bag(ids)

    assert in_a_child(use) == 0
    bag(ids)


class Batches(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.randint(ROWS, (2,), generator=torch.Generator().manual_seed(i))


def test_a_store_may_be_opened_again_while_workers_live(tmp_path: Path) -> None:
    bag = opened(tmp_path / "store")
    loader = DataLoader(
        Batches(),
        batch_size=4,
        num_workers=2,
        timeout=60,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    for ids in loader:
        bag(ids).sum().backward()
    rows = bag.to_dense()
    bag.close()
    bag = opened(tmp_path / "store", resume=True)
    assert torch.equal(bag.to_dense(), rows)
    assert len(list(loader)) == 10  # they do live
    bag.close()


@pytest.mark.parametrize("call", ["stats()", "flush()"])  # torch itself aborts here
def test_the_interpreter_may_end_while_a_thread_is_in_a_call(call: str, tmp_path: Path) -> None:
    script = f"""
        import sys, threading, time
        import torch
        import tiered_emb as te

        tiers = te.Tiers(dram="32KiB", ssd=te.SSD({str(tmp_path / "store")!r}))
        bag = te.TieredEmbedding(4000, 8, tiers=tiers)

        def work():
            while True:
                bag.{call}

        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.2)
        sys.exit(7)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert ran.returncode == 7, ran.stderr.decode()
