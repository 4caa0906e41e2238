"""The training loop, and predictions: the same code for a tiered model and for its plain peer.

A model whose embedding part updates itself in backward (a fused optimizer) needs no step of its
own; a peer brings the torch optimizer of its bags. The order of samples, and so every number that
comes out, depends on the options alone.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from tiered_emb.data.dataset import Batch, Samples
from tiered_emb.models.dlrm import DLRM
from tiered_emb.models.metrics import auc, logloss

Order = Literal["shuffled", "time"]
Progress = Callable[[Iterable[Batch], int, str], Iterable[Batch]]
_LOSS_EVERY_STEPS = 50


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Args:
        batch_size: samples a step.
        epochs: passes over the training samples.
        steps_max: stop after so many steps; None: after the epochs.
        order: "shuffled": anew each epoch, from the seed; "time": as they happened.
        dense_lr: learning rate of the MLPs (Adam).
        seed: of the order and of the MLPs' initial weights.
    """

    batch_size: int = 512
    epochs: int = 1
    steps_max: int | None = None
    order: Order = "shuffled"
    dense_lr: float = 1e-3
    seed: int = 0

    def steps(self, samples: int) -> int:
        """Steps that training on so many samples takes."""
        total = self.epochs * -(-samples // self.batch_size)
        return total if self.steps_max is None else min(total, self.steps_max)


@dataclass(frozen=True)
class Outcome:
    """What training came to.

    Args:
        steps, samples: how much was trained on.
        train_seconds: wall time of the steps, batches included.
        train_loss: mean loss of the last epoch's steps, each before its update.
        test_auc, test_logloss: on the test samples, after training.
        logits: of the test samples, float32, in their order.
    """

    steps: int
    samples: int
    train_seconds: float
    train_loss: float
    test_auc: float
    test_logloss: float
    logits: npt.NDArray[np.float32]

    @property
    def samples_per_second(self) -> float:
        """Training samples a second."""
        return self.samples / max(self.train_seconds, 1e-9)


def train_and_test(
    model: DLRM,
    samples: Samples,
    options: TrainOptions,
    embedding_optimizer: torch.optim.Optimizer | None = None,
    progress: Progress | None = None,
    caption: str = "training",
    on_trained: Callable[[], None] | None = None,
) -> Outcome:
    """Trains a model and judges it on the test samples.

    Args:
        embedding_optimizer: of a peer's bags; None where backward updates the rows itself.
        progress: wraps the batches, given their number and a caption; for a progress bar.
        on_trained: called between training and testing, e.g. to read counters.
    """
    watch: Progress = progress if progress is not None else (lambda batches, _steps, _: batches)
    dense_optimizer = torch.optim.Adam(model.dense_parameters(), lr=options.dense_lr)
    optimizers: list[torch.optim.Optimizer] = [dense_optimizer]
    if embedding_optimizer is not None:
        optimizers.append(embedding_optimizer)
    steps = options.steps(len(samples.train))
    steps_an_epoch = -(-len(samples.train) // options.batch_size)
    first_counted = (max(steps - 1, 0) // steps_an_epoch) * steps_an_epoch
    losses: list[torch.Tensor] = []
    seen = 0
    start = time.perf_counter()
    batches = itertools.islice(_batches(samples, options), steps)
    for step, batch in enumerate(watch(batches, steps, caption)):
        loss = _step(model, batch, optimizers)
        seen += len(batch.labels)
        if step >= first_counted:
            losses.append(loss)
        if step % _LOSS_EVERY_STEPS == 0:
            _check_finite(loss, step)
    mean_loss = torch.stack(losses).mean()
    _check_finite(mean_loss, steps)
    seconds = time.perf_counter() - start
    if on_trained is not None:
        on_trained()
    logits = predict(model, samples, samples.test, options.batch_size, progress)
    labels = samples.dataset.labels[samples.test]
    return Outcome(
        steps=steps,
        samples=seen,
        train_seconds=seconds,
        train_loss=float(mean_loss),
        test_auc=auc(labels, logits),
        test_logloss=logloss(labels, logits),
        logits=logits,
    )


def predict(
    model: DLRM,
    samples: Samples,
    which: npt.NDArray[np.int64],
    batch_size: int,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """Logits of the given samples, in order; changes no weight."""
    batches: Iterable[Batch] = samples.batches(which, batch_size)
    if progress is not None:
        batches = progress(batches, -(-len(which) // batch_size), "testing")
    model.eval()
    with torch.no_grad():
        logits = [model(batch.dense, batch.sparse).numpy() for batch in batches]
    model.train()
    return np.concatenate(logits).astype(np.float32)


def _check_finite(loss: torch.Tensor, step: int) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()} at step {step}: lower --lr")


def _batches(samples: Samples, options: TrainOptions) -> Iterator[Batch]:
    for epoch in range(options.epochs):
        shuffle = (options.seed, epoch) if options.order == "shuffled" else None
        yield from samples.batches(samples.train, options.batch_size, shuffle)


def _step(model: DLRM, batch: Batch, optimizers: Iterable[torch.optim.Optimizer]) -> torch.Tensor:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss = F.binary_cross_entropy_with_logits(model(batch.dense, batch.sparse), batch.labels)
    loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()
