"""DLRM: bottom MLP, embedding tables, pairwise dot interactions, top MLP.

The embedding part is anything that maps the batch's ids to one vector a table: a
`TieredEmbeddingCollection`, or its peer of plain ``nn.EmbeddingBag`` modules
(`tiered_emb.models.peer.BagCollection`). Its parameters, if it has any, are not the dense part's.

Source: Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
Systems", arXiv:1906.00091.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Protocol, cast

import torch
from torch import nn

BagInput = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class Embeddings(Protocol):
    """What a DLRM needs of its embedding part."""

    def __call__(self, features: Mapping[str, BagInput], /) -> Mapping[str, torch.Tensor]:
        """Table name -> ids [batch], or (ids, offsets [batch]); gives name -> [batch, dim]."""


class DLRM(nn.Module):
    """A DLRM over any embedding part.

    Args:
        embeddings: the embedding part.
        tables: names of its tables, in the order in which they interact.
        dim: embedding dimension of every table.
        dense_features: number of dense features; with none, the bottom MLP sees a constant.
        bottom: hidden sizes of the bottom MLP, whose output has size ``dim``.
        top: hidden sizes of the top MLP, whose output is one logit.

    Shapes: dense [batch, dense_features] and ids of each table -> logits [batch].

    Example:
        >>> from tiered_emb.models.peer import BagCollection
        >>> tables = BagCollection({"user": 10, "item": 20}, dim=4)
        >>> model = DLRM(tables, ["user", "item"], dim=4, dense_features=2)
        >>> ids = {"user": torch.tensor([1, 2]), "item": torch.tensor([3, 4])}
        >>> model(torch.zeros(2, 2), ids).shape
        torch.Size([2])
    """

    def __init__(
        self,
        embeddings: Embeddings,
        tables: Sequence[str],
        dim: int,
        dense_features: int,
        bottom: Sequence[int] = (64,),
        top: Sequence[int] = (64, 32),
    ) -> None:
        super().__init__()
        if not tables:
            raise ValueError("a DLRM needs at least one table")
        self.embeddings = embeddings
        self.tables = tuple(tables)
        self.dense_features = dense_features
        vectors = len(self.tables) + 1
        row, column = torch.tril_indices(vectors, vectors, offset=-1)
        self.pairs: torch.Tensor
        self.register_buffer("pairs", row * vectors + column, persistent=False)
        self.bottom = mlp([max(dense_features, 1), *bottom, dim], last_activation=True)
        self.top = mlp([dim + len(row), *top, 1], last_activation=False)

    def forward(self, dense: torch.Tensor, sparse: Mapping[str, BagInput]) -> torch.Tensor:
        """Logits of a batch."""
        if self.dense_features == 0:
            dense = torch.ones(dense.shape[0], 1, device=dense.device)
        pooled = self.embeddings(sparse)
        low = cast(torch.Tensor, self.bottom(dense))
        vectors = torch.stack([low, *(pooled[name].to(low.dtype) for name in self.tables)], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        dots = products.index_select(1, self.pairs)  # half the time of indexing
        logits = cast(torch.Tensor, self.top(torch.cat([low, dots], dim=1)))
        return logits.squeeze(1)

    def dense_modules(self) -> tuple[nn.Module, nn.Module]:
        """The two MLPs: everything but the embedding part."""
        return self.bottom, self.top

    def dense_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the two MLPs."""
        for module in self.dense_modules():
            yield from module.parameters()


def mlp(sizes: Sequence[int], last_activation: bool) -> nn.Sequential:
    """Linear layers of the given sizes with ReLUs between them, and behind the last if asked."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*(layers if last_activation else layers[:-1]))
