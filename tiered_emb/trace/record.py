"""Recording which rows a model looks up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tiered_emb.collection import TieredEmbeddingCollection
from tiered_emb.embedding import TieredEmbedding
from tiered_emb.table_spec import TableSpec
from tiered_emb.trace.format import TraceTable

if TYPE_CHECKING:
    from tiered_emb.trace.writer import TraceWriter


class TraceRecorder:
    """What `record_trace` gives."""

    def __init__(self, writer: TraceWriter) -> None:
        self.batches = 0
        """Batches so far."""
        self.failure: BaseException | None = None
        """What went wrong; nothing is recorded after that."""
        self._writer = writer
        self._seen: set[str] = set()
        self._in_model = 0

    @property
    def lookups(self) -> int:
        """Lookups recorded so far."""
        return self._writer.lookups

    def begin_model(self) -> None:
        """The whole model is called: what it looks up is one batch."""
        if self._in_model == 0:
            self.end_batch()
        self._in_model += 1

    def end_model(self) -> None:
        """Its call has ended."""
        self._in_model -= 1
        if self._in_model == 0:
            self.end_batch()

    def end_batch(self) -> None:
        """What comes belongs to another."""
        if self._seen:
            self.batches += 1
            self._seen.clear()

    def note(self, table: str, ids: torch.Tensor, padding: int) -> None:
        """A table was looked up. Outside of a call of the model a second lookup of a table begins a
        batch."""
        if self.failure is not None:
            return
        if self._in_model == 0 and table in self._seen:
            self.end_batch()
        self._seen.add(table)
        flat = ids.detach().cpu().reshape(-1)
        if flat.dtype is not torch.int32:
            flat = flat.to(torch.int64)
        try:
            self._writer.write(self.batches, table, flat.numpy(), padding)
        except Exception as error:  # not the model's: told at the end
            self.failure = error


@contextmanager
def record_trace(
    model: nn.Module, path: str | os.PathLike[str], *, sample: float = 1.0
) -> Iterator[TraceRecorder]:
    """Records the rows that a model looks up within, as a file for `tiered-emb tune`.

    Tables are those of `TieredEmbeddingCollection`, `TieredEmbedding`, `nn.EmbeddingBag` and
    `nn.Embedding` modules in it, named as there, or by the module's path. A call of the model is a
    batch; so are lookups between which no table is looked up twice. Lookups that fail, and of
    padding, are not recorded. Ids are copied in the step and encoded by a thread.

    Args:
        model: or an embedding module alone.
        path: of the file (see `tiered_emb.trace.format`), which is complete when this ends, also by
            an exception.
        sample: share of the rows to record, in (0, 1], all lookups of each; chosen by a hash of
            their ids.

    Raises:
        ValueError: the model has no embedding tables, or `sample` is out of range.

    Example:
        >>> model = nn.EmbeddingBag(10, 4)
        >>> with record_trace(model, "/tmp/trace.parquet") as trace:
        ...     _ = model(torch.tensor([[1, 2], [3, 1]]))
        >>> trace.batches, trace.lookups
        (1, 4)
    """
    from tiered_emb.trace.writer import TraceWriter  # pyarrow takes a while to load

    tables, modules = _tables_of(model)
    if not tables:
        raise ValueError(f"record_trace: {type(model).__name__} has no embedding tables")
    writer = TraceWriter(path, tables, sample)
    recorder = TraceRecorder(writer)
    hooks = [
        module.register_forward_hook(_hook(recorder, module, names), with_kwargs=True)
        for module, names in modules
    ]
    if all(module is not model for module, _ in modules):
        hooks.append(model.register_forward_pre_hook(lambda *_: recorder.begin_model()))
        hooks.append(model.register_forward_hook(lambda *_: recorder.end_model(), always_call=True))
    try:
        yield recorder
    finally:
        for hook in hooks:
            hook.remove()
        recorder.end_batch()
        if recorder.failure is not None:
            writer.abandon()
            raise recorder.failure
        writer.close()


def _hook(recorder: TraceRecorder, module: nn.Module, names: Mapping[str, str]) -> Any:
    """Tells the recorder of a module's lookups; of `names` from its own to the trace's."""
    if isinstance(module, TieredEmbeddingCollection):

        def note_all(_: nn.Module, args: Any, kwargs: Any, __: Any) -> None:
            for feature in module._features(args[0] if args else kwargs["batch"]):
                lookup = feature.lookup
                recorder.note(names[lookup.name], feature.ids, lookup.padding_idx)

        return note_all
    padding = getattr(module, "padding_idx", None)

    def note(_: nn.Module, args: Any, kwargs: Any, __: Any) -> None:
        ids = args[0] if args else kwargs["input"]
        recorder.note(names[""], ids, -1 if padding is None else padding)

    return note


def _tables_of(
    model: nn.Module,
) -> tuple[dict[str, TraceTable], list[tuple[nn.Module, dict[str, str]]]]:
    """Tables by name; and the modules, with their own names of tables -> names in the trace."""
    tables: dict[str, TraceTable] = {}
    modules: list[tuple[nn.Module, dict[str, str]]] = []

    def add(path: str, own: str, table: TraceTable) -> str:
        name = own or path or "table"
        if name in tables:  # of another module
            name = f"{path}.{own}"
        tables[name] = table
        return name

    for path, module in model.named_modules():
        if isinstance(module, TieredEmbeddingCollection):
            names = {t.name: add(path, t.name, _table(module, t)) for t in module._engine.tables}
        elif isinstance(module, TieredEmbedding):
            spec = module._engine.tables[module._lookup.table]
            names = {"": add(path, "", _table(module, spec))}
        elif isinstance(module, nn.EmbeddingBag | nn.Embedding):
            dim = module.embedding_dim
            table = TraceTable(module.num_embeddings, dim, dim * module.weight.element_size())
            names = {"": add(path, "", table)}
        else:
            continue
        modules.append((module, names))
    return tables, modules


def _table(module: TieredEmbedding | TieredEmbeddingCollection, spec: TableSpec) -> TraceTable:
    row_bytes = spec.row_bytes(module._engine.optimizer_kind)
    return TraceTable(spec.num_embeddings, spec.embedding_dim, row_bytes)
