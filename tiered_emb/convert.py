"""`convert`: swaps every `nn.EmbeddingBag` of a model for a tiered table with the same weights."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from tiered_emb.embedding import TieredEmbedding
from tiered_emb.engine import TableEngine
from tiered_emb.init import Zeros
from tiered_emb.optim import RowOptimizer
from tiered_emb.table_spec import TableSpec
from tiered_emb.tiers import Tiers

Model = TypeVar("Model", bound=nn.Module)


def convert(
    model: Model,
    *,
    tiers: Tiers | None = None,
    optimizer: RowOptimizer | None = None,
    seed: int = 0,
) -> Model | TieredEmbedding:
    """Replaces every `nn.EmbeddingBag` in `model`, in place, by a `TieredEmbedding`.

    Each table takes its bag's arguments and weights. All tables share one engine: one budget, one
    optimizer, one store. A table's name is its path in the model, so a converted model can be
    resumed from its store. A bag that the model refers to twice stays one.

    Args:
        model: any module; if it is itself a bag, the result is the table.
        tiers: budgets; None: all rows in dram.
        optimizer: one of `te.optim.*` for all rows; None: they are frozen.
        seed: of stochastic rounding.

    Returns:
        `model`, or the table if `model` is a bag.

    Raises:
        ValueError: no `nn.EmbeddingBag` in the model, a dtype that tables do not have, or a budget
            too small. The model is unchanged then.

    >>> model = nn.Sequential(nn.EmbeddingBag(100, 4), nn.Linear(4, 1))
    >>> model = convert(model)
    >>> type(model[0]).__name__
    'TieredEmbedding'
    """
    bags = {
        path: module
        for path, module in model.named_modules()  # a shared module is listed once
        if isinstance(module, nn.EmbeddingBag)
    }
    if not bags:
        raise ValueError("convert: the model has no nn.EmbeddingBag")
    specs = [
        TableSpec(
            name=path or "embedding",
            num_embeddings=bag.num_embeddings,
            embedding_dim=bag.embedding_dim,
            mode=bag.mode,
            dtype=bag.weight.dtype,
            init=Zeros(),
            padding_idx=bag.padding_idx,
        )
        for path, bag in bags.items()
    ]
    engine = TableEngine(specs, tiers, optimizer, seed)
    tables: dict[nn.Module, TieredEmbedding] = {}
    for number, bag in enumerate(bags.values()):
        options = {
            "max_norm": bag.max_norm,
            "norm_type": bag.norm_type,
            "scale_grad_by_freq": bag.scale_grad_by_freq,
            "sparse": bag.sparse,
            "include_last_offset": bag.include_last_offset,
        }
        tables[bag] = TieredEmbedding._view(engine, number, options)
        tables[bag].train(bag.training)
        if not engine.resumed:
            engine.load_dense(number, bag.weight.detach())
    if not engine.resumed:
        engine.flush()  # a killed process comes back to these weights
    if isinstance(model, nn.EmbeddingBag):
        return tables[model]
    for module in list(model.modules()):
        for name, child in module.named_children():
            if child in tables:
                setattr(module, name, tables[child])
        # named_children lists a module once; other attributes may refer to the same bag.
        for name, other in module._modules.items():
            if other in tables:
                module._modules[name] = tables[other]
    return model
