"""`te.save` beside other saves, other threads and forked processes: nobody waits for ever."""

from __future__ import annotations

from pathlib import Path

from saved_model import run_script

FORKED_DURING_A_SAVE = """
import os, sys, threading, time, warnings
import torch
import tiered_emb as te
from tiered_emb.engine import TableEngine
warnings.simplefilter("ignore")
gate, finish = threading.Event(), TableEngine.finish_save
TableEngine.finish_save = lambda *args: gate.wait() and finish(*args)
bag = te.TieredEmbedding(100, 4)
saving = te.save(bag, sys.argv[1], wait=False)
child = os.fork()  # as a DataLoader's worker
if child == 0:
    time.sleep(300)
gate.set()
saving.wait()
te.save(bag, sys.argv[1], extra="again")
os.kill(child, 9)
print(te.load(bag, sys.argv[1]))
"""


def test_a_process_forked_during_a_save_keeps_no_lock(tmp_path: Path) -> None:
    assert run_script(FORKED_DURING_A_SAVE, tmp_path / "ck") == "again\n"


SHARED_IN_DIFFERENT_ORDER = """
import sys, threading
import torch
from torch import nn
import tiered_emb as te
from tiered_emb.engine import TableEngine
begin, both = TableEngine.begin_save, threading.Barrier(2)

def begin_together(*args):
    begin(*args)
    try:
        both.wait(timeout=0.5)  # both threads have one engine, if they can
    except threading.BrokenBarrierError:
        pass

TableEngine.begin_save = begin_together
bags = [te.TieredEmbedding(100, 4), te.TieredEmbedding(100, 4)]
models = [nn.ModuleList(bags), nn.ModuleList(bags[::-1])]
threads = [
    threading.Thread(target=te.save, args=(model, f"{sys.argv[1]}/{i}"))
    for i, model in enumerate(models)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""


def test_models_that_share_engines_are_saved_at_once(tmp_path: Path) -> None:
    assert run_script(SHARED_IN_DIFFERENT_ORDER, tmp_path) == "done\n"
