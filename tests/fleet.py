"""Operations on tables, and the fleet that runs them on all configurations and on the model."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from oracle import (
    CONFIGS,
    LR,
    STATES,
    TOLERANCE,
    Batch,
    Case,
    Config,
    Forward,
    ModelTable,
    Replica,
    TableCase,
)
from same_bits import assert_same_bits, same_bits

Tensor = torch.Tensor


@dataclass(frozen=True)
class Input:
    """One table's part of a lookup.

    The bags have `sizes`, again and again; those of 2-D input all have the first.
    """

    table: int
    sizes: tuple[int, ...]
    two_d: bool = False
    ids32: bool = False
    offsets32: bool = False
    weights: str = "none"  # or "const", "grad"; of tables with mode "sum"
    repeat: int = 1
    unused: bool = False  # no gradient comes back to this output


@dataclass(frozen=True)
class Lookup:
    """then: "no_grad", "drop" (the output), "keep" (backward later), "backward", "twice"."""

    inputs: tuple[Input, ...]
    then: str
    seed: int


@dataclass(frozen=True)
class BackwardKept:
    """One backward over all outputs kept so far."""

    seed: int


@dataclass(frozen=True)
class DropKept:
    """The kept outputs go, without a backward."""


@dataclass(frozen=True)
class Step:
    """`optimizer.step()`."""


@dataclass(frozen=True)
class ZeroGrad:
    """`optimizer.zero_grad()`."""


@dataclass(frozen=True)
class SetLr:
    """As a scheduler does."""

    lr: float


@dataclass(frozen=True)
class Write:
    """what: "weight", "state" or "both" of `count` rows, duplicates among them."""

    table: int
    count: int
    what: str
    seed: int


@dataclass(frozen=True)
class Flush:
    """`flush()`."""


@dataclass(frozen=True)
class Reopen:
    """Resumes the store after `close()`, or after the engine was dropped as it was."""

    clean: bool


@dataclass(frozen=True)
class Resize:
    """`resize()` of each engine, to a part of all rows drawn for it."""

    seed: int


Op = Lookup | BackwardKept | DropKept | Step | ZeroGrad | SetLr | Write | Flush | Reopen | Resize


def make_batch(case: Case, spec: Input, generator: torch.Generator) -> Batch:
    """Ids of at most `batch_rows` different rows, low positions of a random order more often."""
    table: TableCase = case.tables[spec.table]
    universe = table.universe
    pool = torch.randperm(len(universe), generator=generator)[: table.batch_rows]
    sizes = torch.tensor(spec.sizes * spec.repeat, dtype=torch.int64)
    count = len(sizes) * int(sizes[0]) if spec.two_d and len(sizes) else int(sizes.sum())
    skewed = torch.rand(count, generator=generator) ** 2 * len(pool)
    index = pool[skewed.long()]
    ids_dtype = torch.int32 if spec.ids32 and table.rows < 2**31 else torch.int64
    offsets = None
    if spec.two_d:
        index = index.reshape(len(sizes), int(sizes[0]) if len(sizes) else 0)
    else:
        ends = torch.cumsum(sizes, 0)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
        if not table.include_last_offset:
            offsets = offsets[:-1]
        offsets = offsets.to(torch.int32 if spec.offsets32 else torch.int64)
    weights = None
    if spec.weights != "none" and table.mode == "sum":
        weights = (torch.rand(index.shape, generator=generator) + 0.1).to(case.dtype)
    return Batch(
        spec.table,
        index,
        universe[index].to(ids_dtype),
        offsets,
        weights,
        weights is not None and spec.weights == "grad",
    )


def make_gradient(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Away from zero, and of one sign in each column, so that no sum over bags cancels.

    What is left of a cancelled sum is rounding error, and Adam divides it by its own size.
    """
    sign = 1.0 - 2.0 * (torch.arange(shape[1]) % 2)
    return (torch.rand(shape, generator=generator) * 2 + 0.2) * sign


@dataclass
class Record:
    """A forward whose backward may come: outputs and sample weights of each replica, by input."""

    outs: list[list[Tensor]]
    weights: list[list[Tensor | None]]
    forwards: list[Forward]
    unused: list[bool]


class Fleet:
    """The engines of a case, and the model. `run` raises AssertionError at the first difference."""

    def __init__(self, case: Case, path: Path, configs: tuple[Config, ...] = CONFIGS) -> None:
        self.case = case
        self.replicas = [
            Replica(case, config, path / f"store{i}")
            for i, config in enumerate(configs)
            if config.ssd or not case.is_huge
        ]
        self.tables = [ModelTable(case, table) for table in case.tables]
        self.kept: list[Record] = []
        for model in self.tables:
            model.moved[:] = True
        self._adopt()
        self._take_snapshot()

    def close(self) -> None:
        self.kept.clear()
        for replica in self.replicas:
            replica.any_table().close()

    def run(self, op: Op) -> None:
        getattr(self, f"_{type(op).__name__.lower()}")(op)
        self.check()

    # -- operations

    def _lookup(self, op: Lookup) -> None:
        generator = torch.Generator().manual_seed(op.seed)
        batches = [make_batch(self.case, spec, generator) for spec in op.inputs]
        record = Record([], [], [], [spec.unused for spec in op.inputs])
        for replica in self.replicas:
            weights = [
                None if b.weights is None else b.weights.clone().requires_grad_(b.weights_grad)
                for b in batches
            ]
            with torch.set_grad_enabled(op.then != "no_grad"):
                record.outs.append(replica.lookup(batches, weights))
            record.weights.append(weights)
        for i, batch in enumerate(batches):
            expected, forward = self.tables[batch.table].forward(batch)
            record.forwards.append(forward)
            outs = [outs[i] for outs in record.outs]
            self._agree(outs, f"output {i} of {op}")
            error = self.tables[batch.table].forward_error(batch)
            self._near(outs[0], expected, f"output {i} of {op}", error)
        if op.then == "keep":
            self.kept.append(record)
        elif op.then in ("backward", "twice"):
            self._run_backward([record], generator, retain=op.then == "twice")
            if op.then == "twice":
                record.forwards = [self.tables[b.table].forward(b)[1] for b in batches]
                self._run_backward([record], generator, retain=False)

    def _backwardkept(self, op: BackwardKept) -> None:
        kept, self.kept = self.kept, []
        self._run_backward(kept, torch.Generator().manual_seed(op.seed), retain=False)

    def _dropkept(self, op: DropKept) -> None:
        self.kept.clear()

    def _run_backward(
        self, records: list[Record], generator: torch.Generator, retain: bool
    ) -> None:
        grads = [
            [make_gradient(out.shape, generator).to(self.case.dtype) for out in record.outs[0]]
            for record in records
        ]
        for r, replica in enumerate(self.replicas):
            replica.use_threads()
            pairs = [
                (out, grad.to(out.device))
                for record, of_record in zip(records, grads, strict=True)
                for out, grad, unused in zip(record.outs[r], of_record, record.unused, strict=True)
                if out.requires_grad and not unused
            ]
            if pairs:
                torch.autograd.backward(*zip(*pairs, strict=True), retain_graph=retain)
        # Autograd runs the latest forward first.
        for record, of_record in zip(reversed(records), reversed(grads), strict=True):
            for i in reversed(range(len(of_record))):
                if not record.unused[i]:
                    self._model_backward(record, i, of_record[i])

    def _model_backward(self, record: Record, i: int, grad: Tensor) -> None:
        forward = record.forwards[i]
        model = self.tables[forward.batch.table]
        expected = model.backward(forward, grad)
        if expected is None:
            return
        got = [weights[i].grad for weights in record.weights]
        self._agree(got, "gradient of sample weights")
        self._near(got[0], expected, "gradient of sample weights")
        for weights in record.weights:
            weights[i].grad = None

    def _step(self, op: Step) -> None:
        for replica in self.replicas:
            if replica.optimizer is not None:
                replica.use_threads()
                replica.optimizer.step()
        for model in self.tables:
            if model.waiting:
                model.update(model.grad, model.grad_rows)

    def _zerograd(self, op: ZeroGrad) -> None:
        for replica in self.replicas:
            if replica.optimizer is not None:
                replica.optimizer.zero_grad()
        for model in self.tables:
            model.clear_gradients()

    def _setlr(self, op: SetLr) -> None:
        for replica in self.replicas:
            if replica.optimizer is not None:
                replica.optimizer.param_groups[0]["lr"] = op.lr
        for model in self.tables:
            model.lr = op.lr

    def _write(self, op: Write) -> None:
        generator = torch.Generator().manual_seed(op.seed)
        model = self.tables[op.table]
        index = torch.randint(len(model.universe), (op.count,), generator=generator)
        dim = model.table.dim
        weight = state = None
        if op.what != "state":
            weight = torch.randn(op.count, dim, generator=generator).to(self.case.dtype)
        if op.what != "weight":
            state = {
                name: torch.rand(op.count, width(dim), generator=generator)
                for name, width in STATES[self.case.optimizer].items()
            }
            if self.case.optimizer == "rowwise":
                state["sum"] = state["sum"][:, 0]
        for replica in self.replicas:
            replica.use_threads()
            replica.write_rows(op.table, model.universe[index], weight, state)
        model.moved[index] = True
        for k, row in enumerate(index.tolist()):  # the last of duplicates wins
            if weight is not None:
                model.weight[row] = weight[k].double()
            for name, values in (state or {}).items():
                model.state[name][row] = values[k].double()

    def _flush(self, op: Flush) -> None:
        for replica in self.replicas:
            replica.any_table().flush()
        self._take_snapshot()

    def _resize(self, op: Resize) -> None:
        rng = random.Random(op.seed)
        for replica in self.replicas:
            replica.resize(rng.choice([0.0, 0.05, 0.3, 0.7, 1.5]))

    def _reopen(self, op: Reopen) -> None:
        self.kept.clear()
        if op.clean:
            self._take_snapshot()
        else:  # nothing to resume without a store
            self.replicas = [r for r in self.replicas if r.config.ssd]
        for replica in self.replicas:
            replica.reopen(op.clean)
        for model, (weight, state, step) in zip(self.tables, self.snapshot, strict=True):
            model.weight = weight.clone()
            model.state = {name: value.clone() for name, value in state.items()}
            model.step = step
            model.clear_gradients()
            model.moved[:] = False
            model.lr = LR
        for t, model in enumerate(self.tables):
            model.seen = self.snapshot_bits[t]

    # -- comparison

    def _take_snapshot(self) -> None:
        self.snapshot = [
            (m.weight.clone(), {n: v.clone() for n, v in m.state.items()}, m.step)
            for m in self.tables
        ]
        self.snapshot_bits = [m.seen for m in self.tables]

    def _agree(self, values: list[Tensor], what: str) -> None:
        first = values[0].cpu()
        for replica, value in zip(self.replicas[1:], values[1:], strict=True):
            assert_same_bits(first, value.cpu(), f"{what}: {replica.config}")

    def _near(
        self, value: Tensor, expected: Tensor, what: str, error: Tensor | None = None
    ) -> None:
        rtol, atol = TOLERANCE[self.case.dtype]
        if error is not None and error.numel() > 0:
            atol = max(atol, float(error.max()))
        torch.testing.assert_close(
            value.detach().cpu().double(),
            expected,
            rtol=rtol,
            atol=atol,
            equal_nan=True,
            msg=lambda text: f"{what}: {text}",
        )

    def _values(self, replica: Replica, t: int) -> dict[str, Tensor]:
        ids = self.tables[t].universe
        state = replica.state_rows(t, ids)
        return {"weight": replica.rows(t, ids), **state}

    def check(self) -> None:
        """All rows: the same bits in all engines, untouched ones as before, near the model."""
        for t, model in enumerate(self.tables):
            values = [self._values(replica, t) for replica in self.replicas]
            for name in values[0]:
                self._agree([v[name] for v in values], f"table {t}, {name}")
            for name, value in values[0].items():
                kept = ~model.moved
                before = model.seen[name]
                assert same_bits(value[kept], before[kept]), f"table {t}: an untouched {name} moved"
                expected = model.weight if name == "weight" else model.state[name]
                self._near(value.reshape(expected.shape), expected, f"table {t}, {name}")
        self._check_gradients()
        self._check_stats()
        self._adopt()

    def _check_gradients(self) -> None:
        if self.case.fused or self.case.optimizer == "frozen":
            return
        waiting = [replica.waiting_gradients() for replica in self.replicas]
        for t, model in enumerate(self.tables):
            grads = [of_replica[t] for of_replica in waiting]
            assert all((grad is not None) == model.waiting for grad in grads)
            if model.waiting:
                self._agree(grads, f"table {t}, waiting gradients")
                torch.testing.assert_close(
                    grads[0].cpu().double(), model.grad[model.grad_rows], rtol=1e-4, atol=1e-4
                )

    def _check_stats(self) -> None:
        lookups = set()
        for replica in self.replicas:
            stats = replica.any_table().stats()
            if replica.config.ssd:  # the others were not reopened
                lookups.add(stats.lookups)
            assert stats.lookup_hits <= stats.lookups
            assert stats.missing_rows <= stats.unique_rows
            assert stats.dirty_rows <= stats.resident_rows <= stats.slots <= stats.total_rows
            dram = replica.dram
            assert dram is None or stats.dram_resizing or stats.dram_bytes <= dram
            assert dram is not None or replica.config.ssd or stats.ssd_blocks_read == 0
        assert len(lookups) <= 1, lookups

    def _adopt(self) -> None:
        """The model goes on from the engines' values."""
        for t, model in enumerate(self.tables):
            model.seen = self._values(self.replicas[0], t)
            model.weight = model.seen["weight"].double()
            for name in model.state:
                model.state[name] = model.seen[name].double().reshape(model.state[name].shape)
            model.moved[:] = False
