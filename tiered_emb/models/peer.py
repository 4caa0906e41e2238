"""The peer of a tiered collection: plain ``nn.EmbeddingBag(sparse=True)`` and torch optimizers.

Used to compare: same names, same initial weights, same inputs, same results up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn

BagInput = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class BagCollection(nn.Module):
    """One ``nn.EmbeddingBag(sparse=True)`` a table, called like a `TieredEmbeddingCollection`.

    Args:
        tables: name -> number of rows.
        dim: embedding dimension.
        mode: pooling of a bag.
    """

    def __init__(self, tables: Mapping[str, int], dim: int, mode: str = "sum") -> None:
        super().__init__()
        self.names = tuple(tables)
        bags = [nn.EmbeddingBag(rows, dim, mode=mode, sparse=True) for rows in tables.values()]
        self.bags = nn.ModuleList(bags)

    def forward(self, features: Mapping[str, BagInput]) -> dict[str, torch.Tensor]:
        """Table name -> ids, or (ids, offsets); gives name -> [bags, dim]."""
        pooled = {}
        for name, bag in zip(self.names, self.bags, strict=True):
            value = features[name]
            if isinstance(value, tuple):
                pooled[name] = cast(torch.Tensor, bag(*value))
            else:
                pooled[name] = cast(torch.Tensor, bag(value.unsqueeze(1)))
        return pooled

    def set_weight(self, name: str, weight: torch.Tensor) -> None:
        """Copies the rows of a table."""
        bag = cast(nn.EmbeddingBag, self.bags[self.names.index(name)])
        with torch.no_grad():
            bag.weight.copy_(weight)


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one sum of squares a row: the mean of the squared gradient's elements.

    Takes sparse gradients only. Source: FBGEMM's "exact rowwise Adagrad".
    """

    def __init__(self, params: Iterable[torch.Tensor], lr: float = 0.01, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["sum"] = torch.zeros(p.shape[0], dtype=torch.float32, device=p.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of the rows that have a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                grad = p.grad.coalesce()
                rows, values = grad.indices()[0], grad.values().float()
                total = self.state[p]["sum"]
                total[rows] += values.pow(2).mean(dim=1)
                scale = group["lr"] / (total[rows].sqrt() + group["eps"])
                p.index_add_(0, rows, (values * -scale.unsqueeze(1)).to(p.dtype))


_PEERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rowwise-adagrad": RowwiseAdagrad,
    "adam": torch.optim.SparseAdam,
}


def peer_optimizer(
    name: str, parameters: Iterable[torch.Tensor], lr: float, **options: Any
) -> torch.optim.Optimizer:
    """The torch optimizer that does to sparse gradients what the tiered one of that name does."""
    return _PEERS[name](list(parameters), lr=lr, **options)
