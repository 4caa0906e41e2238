"""What `tiered-emb train` runs: the tiered model, and beside it what it is compared with.

All models of a job start from the same weights, see the same samples in the same order, and are
trained one after another in this process. Temporary stores are removed at the end, also of a job
that fails.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

import tiered_emb as te
from tiered_emb.cli.report import bytes_text
from tiered_emb.data.dataset import Samples
from tiered_emb.data.errors import DataError
from tiered_emb.models.dlrm import DLRM, Embeddings
from tiered_emb.models.peer import BagCollection, peer_optimizer
from tiered_emb.models.training import Outcome, Progress, TrainOptions, train_and_test
from tiered_emb.stats import Stats
from tiered_emb.tiers import parse_bytes

_INIT_LIMIT = 0.05
_COMPARED_ROWS = 65536
_OPTIMIZERS = {
    "sgd": te.optim.SGD,
    "adagrad": te.optim.Adagrad,
    "rowwise-adagrad": te.optim.RowwiseAdagrad,
    "adam": te.optim.Adam,
}


@dataclass(frozen=True)
class Job:
    """What to train, and what to compare it with. Fields are the options of the command line."""

    dim: int
    dtype: str
    dram: str
    ssd: str | None
    optimizer: str
    lr: float
    threads: int | None
    peer: bool
    compare_dram: str | None
    training: TrainOptions

    def check(self) -> None:
        """Raises `DataError` for sizes that are none, before anything is read or written."""
        for option, size in (("--dram", self.dram), ("--compare-dram", self.compare_dram)):
            if size is not None:
                dram_bytes(option, size, 1 << 40)


@dataclass(frozen=True)
class Run:
    """One trained model: its name in the report, what came out, its tiers' counters in training."""

    title: str
    outcome: Outcome
    stats: Stats | None

    def as_json(self) -> dict[str, Any]:
        """Everything but the predictions."""
        outcome = asdict(self.outcome)
        del outcome["logits"]
        outcome["samples_per_second"] = self.outcome.samples_per_second
        return {
            "title": self.title,
            **outcome,
            "tiers": None if self.stats is None else self.stats.as_dict(),
        }


@dataclass(frozen=True)
class JobReport:
    """What a job came to.

    Args:
        runs: the tiered model first.
        rows_bytes: of all rows with their optimizer state.
        dram_bytes: the budget of the tiered model.
        identical: whether the second tiered run gave the same bits; None if there was none.
        rows_compared: how many rows of the two were compared.
    """

    runs: Sequence[Run]
    rows_bytes: int
    dram_bytes: int
    identical: bool | None
    rows_compared: int

    def auc_difference(self) -> float | None:
        """The tiered model's AUC less its peer's."""
        peers = [run for run in self.runs if run.stats is None]
        return self.runs[0].outcome.test_auc - peers[0].outcome.test_auc if peers else None

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table of results, a column a run."""
        header = ["", *(run.title for run in self.runs)]
        rows = [[name, *(f"{get(run.outcome)}" for run in self.runs)] for name, get in _RESULTS]
        for name, read in _TIERS:
            rows.append([name, *("-" if r.stats is None else read(r.stats) for r in self.runs)])
        return header, rows

    def verdicts(self) -> list[str]:
        """What the comparisons show, a line each."""
        lines = []
        difference = self.auc_difference()
        if difference is not None:
            lines.append(f"AUC differs from nn.EmbeddingBag's by {difference:+.6f}")
        if self.identical is not None:
            predictions = f"{len(self.runs[0].outcome.logits):,} predictions"
            same = "identical to the last bit" if self.identical else "NOT IDENTICAL"
            lines.append(
                f"{self.runs[0].title} and {self.runs[-1].title}: {predictions} and "
                f"{self.rows_compared:,} rows {same}"
            )
        return ["", *lines] if lines else []

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "rows_bytes": self.rows_bytes,
            "dram_bytes": self.dram_bytes,
            "runs": [run.as_json() for run in self.runs],
            "auc_difference": self.auc_difference(),
            "identical": self.identical,
            "rows_compared": self.rows_compared,
        }


_RESULTS: tuple[tuple[str, Any], ...] = (
    ("train loss", lambda o: f"{o.train_loss:.5f}"),
    ("test AUC", lambda o: f"{o.test_auc:.5f}"),
    ("test logloss", lambda o: f"{o.test_logloss:.5f}"),
    ("samples/s", lambda o: f"{o.samples_per_second:,.0f}"),
)
_TIERS: tuple[tuple[str, Any], ...] = (
    ("dram: hit ratio", lambda s: f"{s.hit_ratio:.1%}"),
    ("dram: first touches", lambda s: f"{s.rows_filled_initial:,} rows"),
    ("dram: rows of all", lambda s: f"{s.slots / max(s.total_rows, 1):.1%}"),
    ("dram: filled from ssd", lambda s: _rows_text(s, s.rows_filled_from_ssd)),
    ("dram: spilled to ssd", lambda s: _rows_text(s, s.rows_spilled_dirty)),
    ("ssd: read", lambda s: bytes_text(s.ssd_read_bytes)),
    ("ssd: written", lambda s: bytes_text(s.ssd_written_bytes)),
)


def _rows_text(stats: Stats, rows: int) -> str:
    """The bytes of so many rows; all rows of a job are of one size."""
    return bytes_text(rows * stats.total_row_bytes / max(stats.total_rows, 1))


def dram_bytes(option: str, size: str, rows_bytes: int) -> int:
    """The budget that a size means, e.g. ``64MiB``, or ``10%`` of the bytes of all rows."""
    text = size.strip()
    try:
        if not text.endswith("%"):
            return parse_bytes(int(text) if text.isdigit() else text)
        percent = float(text[:-1])
    except ValueError:
        percent = -1.0
    if not 0 < percent <= 100:
        raise DataError(f"{option} {size}: expected a size as 64MiB, or 0% to 100% of the rows")
    return math.ceil(rows_bytes * percent / 100)


def run_job(job: Job, samples: Samples, progress: Progress) -> JobReport:
    """Trains everything the job asks for.

    Raises:
        DataError: a budget too small, a directory that cannot be used: in one line.
    """
    if job.threads is not None:
        torch.set_num_threads(job.threads)
        te.set_num_threads(job.threads)
    tables = samples.dataset.tables
    try:
        with contextlib.ExitStack() as stack:
            rows_bytes = _row_bytes(job) * sum(tables.values())
            tiered = stack.enter_context(_collection(job, tables, job.dram, job.ssd, rows_bytes))
            peer = _peer_of(tiered, job, tables) if job.peer else None
            runs = [_run_tiered(job, tiered, f"DRAM {job.dram}", samples, progress)]
            if peer is not None:
                runs.append(_run_peer(job, peer, samples, progress))
            identical = None
            if job.compare_dram is not None:
                size = job.compare_dram
                other = stack.enter_context(_collection(job, tables, size, None, rows_bytes))
                runs.append(_run_tiered(job, other, f"DRAM {size}", samples, progress))
                identical = _identical(runs[0], runs[-1], tiered, other, tables)
            budget = dram_bytes("--dram", job.dram, rows_bytes)
            compared = 0 if identical is None else sum(tables.values())
            return JobReport(runs, rows_bytes, budget, identical, compared)
    except (ValueError, MemoryError, FloatingPointError) as error:
        raise DataError(str(error)) from error


@contextlib.contextmanager
def _collection(
    job: Job, tables: Mapping[str, int], dram: str, ssd: str | None, rows_bytes: int
) -> Iterator[te.TieredEmbeddingCollection]:
    """The tables with a DRAM budget, and the rest in `ssd` or a directory that is removed."""
    with contextlib.ExitStack() as stack:
        tiers = None
        budget = dram_bytes("--dram", dram, rows_bytes)
        if budget < rows_bytes or ssd is not None:
            if ssd is None:
                ssd = stack.enter_context(tempfile.TemporaryDirectory(prefix="tiered-emb-"))
            tiers = te.Tiers(dram=budget, ssd=te.SSD(ssd))
        yield stack.enter_context(_open(job, tables, tiers))


def _open(
    job: Job, tables: Mapping[str, int], tiers: te.Tiers | None
) -> te.TieredEmbeddingCollection:
    init = te.init.Uniform(-_INIT_LIMIT, _INIT_LIMIT)
    return te.TieredEmbeddingCollection(
        [te.Table(name, rows, job.dim, mode="sum", init=init) for name, rows in tables.items()],
        tiers=tiers,
        optimizer=_OPTIMIZERS[job.optimizer](lr=job.lr),
        dtype=getattr(torch, job.dtype),
        seed=job.training.seed,
    )


def _row_bytes(job: Job) -> int:
    """Bytes of one row with its optimizer state."""
    with _open(job, {"one": 1}, None) as one:
        return int(one.row_bytes)


def _peer_of(
    tiered: te.TieredEmbeddingCollection, job: Job, tables: Mapping[str, int]
) -> BagCollection:
    needed = sum(tables.values()) * job.dim * 4
    if needed > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise DataError(f"--peer: nn.EmbeddingBag needs {needed} bytes of memory for its weights")
    peer = BagCollection(tables, job.dim)
    for name in tables:
        peer.set_weight(name, tiered.to_dense(name).float())
    return peer


def _dlrm(job: Job, embeddings: Embeddings, samples: Samples) -> DLRM:
    """A model whose MLPs start from the seed's weights, whatever its embedding part is."""
    torch.manual_seed(job.training.seed)
    dense_features = samples.dataset.dense.shape[1]
    return DLRM(embeddings, list(samples.dataset.tables), job.dim, dense_features)


def _run_tiered(
    job: Job,
    tiered: te.TieredEmbeddingCollection,
    title: str,
    samples: Samples,
    progress: Progress,
) -> Run:
    model = _dlrm(job, tiered, samples)
    stats: list[Stats] = []
    outcome = train_and_test(
        model,
        samples,
        job.training,
        progress=progress,
        caption=title,
        on_trained=lambda: stats.append(tiered.stats()),
    )
    return Run(title, outcome, stats[0])


def _run_peer(job: Job, peer: BagCollection, samples: Samples, progress: Progress) -> Run:
    model = _dlrm(job, peer, samples)
    optimizer = peer_optimizer(job.optimizer, peer.parameters(), job.lr)
    title = "nn.EmbeddingBag"
    # Torch warns once unless told whether to check the sparse gradients that its own bags make.
    unchecked: Any = torch.sparse.check_sparse_tensor_invariants
    with unchecked(enable=False):
        outcome = train_and_test(model, samples, job.training, optimizer, progress, title)
    return Run(title, outcome, None)


def _identical(
    one: Run,
    two: Run,
    ours: te.TieredEmbeddingCollection,
    theirs: te.TieredEmbeddingCollection,
    tables: Mapping[str, int],
) -> bool:
    """Whether predictions and all rows of two tiered runs have the same bits."""
    if one.outcome.logits.tobytes() != two.outcome.logits.tobytes():
        return False
    for name, rows in tables.items():
        for first in range(0, rows, _COMPARED_ROWS):
            ids = torch.from_numpy(np.arange(first, min(rows, first + _COMPARED_ROWS)))
            if not torch.equal(ours.rows(name, ids), theirs.rows(name, ids)):
                return False
    return True
