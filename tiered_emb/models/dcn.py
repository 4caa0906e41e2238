"""DLRM-DCNv2: a DLRM whose features interact through low-rank cross layers.

Source: Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale
Learning to Rank Systems", arXiv:2008.13535; sizes as in MLPerf's reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn

from tiered_emb.models.dlrm import BagInput, Embeddings, mlp


class _Cross(nn.Module):
    """x -> x0 * (W V x + b) + x, where V has `rank` rows."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width)

    def forward(self, first: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(x, first, self.up(self.down(x)))


class DCN(nn.Module):
    """A DLRM with cross layers in place of dot products.

    Args:
        embeddings, tables, dim, dense_features, bottom, top: see `DLRM`.
        layers: number of cross layers.
        rank: of their matrices.

    Shapes: dense [batch, dense_features] and ids of each table -> logits [batch].
    """

    def __init__(
        self,
        embeddings: Embeddings,
        tables: Sequence[str],
        dim: int,
        dense_features: int,
        bottom: Sequence[int],
        top: Sequence[int],
        layers: int,
        rank: int,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.tables = tuple(tables)
        width = dim * (len(self.tables) + 1)
        self.bottom = mlp([dense_features, *bottom, dim], last_activation=True)
        self.cross = nn.ModuleList(_Cross(width, rank) for _ in range(layers))
        self.top = mlp([width, *top, 1], last_activation=False)

    def forward(self, dense: torch.Tensor, sparse: Mapping[str, BagInput]) -> torch.Tensor:
        """Logits of a batch."""
        pooled = self.embeddings(sparse)
        low = cast(torch.Tensor, self.bottom(dense))
        first = torch.cat([low, *(pooled[name].to(low.dtype) for name in self.tables)], dim=1)
        x = first
        for layer in self.cross:
            x = layer(first, x)
        return cast(torch.Tensor, self.top(x)).squeeze(1)
