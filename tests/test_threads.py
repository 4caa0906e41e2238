"""Threads: shared with torch while both use the same number."""

from __future__ import annotations

import subprocess
import sys

SHARING = """
import os
import torch
import tiered_emb as te

def threads_here():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(3)
te.set_num_threads(3)
torch.rand(1000, 1000) @ torch.rand(1000, 1000)
torch.rand(4_000_000).exp_()  # a loop that torch runs on all its threads
bag = te.TieredEmbedding(5000, 64, mode="sum", optimizer=te.optim.SGD(0.1))
before = threads_here()
bag(torch.arange(5000), torch.arange(5000)).sum().backward()
shared = threads_here()
te.set_num_threads(2)
bag(torch.arange(5000), torch.arange(5000)).sum().backward()
print(before, shared, threads_here())
"""


def test_torchs_workers_do_the_work() -> None:
    """No thread is added, unless the package is told to use another number than torch."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", SHARING],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    before, shared, other = map(int, done.stdout.split())
    assert shared == before
    assert other == before + 1


FORKING = """
import multiprocessing
import torch
import tiered_emb as te

def child(queue):
    bag = te.TieredEmbedding(5000, 64, mode="sum", optimizer=te.optim.SGD(0.1))
    out = bag(torch.arange(5000), torch.arange(5000))
    queue.put(float(out[4999, 63]))

torch.set_num_threads(2)
te.set_num_threads(2)
torch.rand(4_000_000).exp_()
queue = multiprocessing.get_context("fork").Queue()
process = multiprocessing.get_context("fork").Process(target=child, args=(queue,))
process.start()
value = queue.get(timeout=60)
process.join()
bag = te.TieredEmbedding(5000, 64, mode="sum", optimizer=te.optim.SGD(0.1))
assert value == float(bag(torch.arange(5000), torch.arange(5000))[4999, 63])
"""


def test_a_forked_child_works() -> None:
    """Although the parent's OpenMP workers do not exist in it."""
    subprocess.run([sys.executable, "-I", "-c", FORKING], check=True, timeout=120)
