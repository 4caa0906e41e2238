"""Recording which rows a model looks up."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tiered_emb.collection import TieredEmbeddingCollection, items_of
from tiered_emb.embedding import TieredEmbedding
from tiered_emb.table_spec import TableSpec
from tiered_emb.trace.format import TraceTable

if TYPE_CHECKING:
    from tiered_emb.trace.writer import TraceWriter

_TORCH = (nn.EmbeddingBag.forward, nn.Embedding.forward)


class TraceRecorder:
    """What `record_trace` gives. Thread-safe; lookups of several threads mix in one order."""

    def __init__(self, writer: TraceWriter) -> None:
        self.batches = 0
        """Batches so far."""
        self.failure: Exception | None = None
        """What went wrong; nothing is recorded after that."""
        self._writer = writer
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._in_model = False
        self._is_over = False

    @property
    def lookups(self) -> int:
        """Lookups recorded so far."""
        return self._writer.lookups

    def model_called(self, begins: bool) -> None:
        """A call of the whole model begins or has ended: what it looks up is one batch."""
        with self._lock:
            self._end_batch()
            self._in_model = begins

    def note(self, looked_up: Callable[[], list[tuple[str, torch.Tensor, int | None]]]) -> None:
        """Tables were looked up in one call: name, ids (see `_flat`) and padding id of each.

        Outside of a call of the model a second lookup of a table begins a batch. Never raises: it
        is the model's step.
        """
        with self._lock:
            if self._is_over or self.failure is not None:
                return
            try:
                tables = looked_up()
                names = [name for name, _, _ in tables]
                if not self._in_model and not self._seen.isdisjoint(names):
                    self._end_batch()
                self._seen.update(names)
                self._writer.write_tensors(self.batches, tables)
            except Exception as error:
                self.failure = error

    def finish(self) -> None:
        """No more is recorded, whoever still has the hooks."""
        with self._lock:
            self._end_batch()
            self._is_over = True

    def _end_batch(self) -> None:
        if self._seen:
            self.batches += 1
            self._seen.clear()


@contextmanager
def record_trace(
    model: nn.Module, path: str | os.PathLike[str], *, sample: float = 1.0
) -> Iterator[TraceRecorder]:
    """Records the rows that a model looks up within, in a file (docs/TRACES.md).

    Tables are those of `TieredEmbeddingCollection` modules, by their names; and `TieredEmbedding`,
    `nn.EmbeddingBag` and `nn.Embedding` modules, by the module's path in the model. A call of the
    model is a batch; so are calls of its parts between which no table is looked up twice. Lookups
    that fail, and of padding, are not recorded; those of a checkpointed part are each time that it
    is computed. Ids are copied in the step, written by a thread, and encoded when this ends. A
    model that has been compiled does not call hooks: record it before `torch.compile`.

    Args:
        model: or an embedding module alone.
        path: of the file (see `tiered_emb.trace.format`), which is complete when this ends, also by
            an exception; what is there is replaced then. ``*.arrow`` is made fastest at the end;
            any other name gives Parquet, which is smaller. Until that is made, 4 bytes a lookup (8
            where a table has more than 2**31 rows) and 24 a table of a batch are on the same disk,
            in a file without a name.
        sample: share of the rows to record, in (0, 1], all lookups of each; chosen by a hash of
            their ids.

    Raises:
        ValueError: the model has no embedding tables, is compiled, or nothing was looked up;
            `sample` is out of range.
        OSError: the file could not be written, told at the end.

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
    writer = TraceWriter(path, tables, float(sample))
    recorder = TraceRecorder(writer)
    begin = _Hook(lambda *_: recorder.model_called(True))
    end = _Hook(lambda *_: recorder.model_called(False))
    hooks = [model.register_forward_pre_hook(begin, prepend=True)]
    hooks += [
        module.register_forward_hook(_hook(recorder, module, names), with_kwargs=True)
        for module, names in modules
    ]
    hooks.append(model.register_forward_hook(end, always_call=True))
    try:
        yield recorder
    except BaseException:
        _end(recorder, hooks)
        try:
            _complete(recorder, writer)
        except Exception as error:
            warnings.warn(f"the trace was not written: {error}", RuntimeWarning, stacklevel=3)
        raise
    _end(recorder, hooks)
    _complete(recorder, writer)


def _end(recorder: TraceRecorder, hooks: list[Any]) -> None:
    for hook in hooks:
        hook.remove()
    recorder.finish()


def _complete(recorder: TraceRecorder, writer: TraceWriter) -> None:
    if recorder.failure is not None:
        writer.abandon()
        raise recorder.failure
    if writer.lookups == 0:
        writer.abandon()
        raise ValueError("record_trace: no row was looked up")
    writer.close()


def _flat(ids: torch.Tensor) -> torch.Tensor:
    if ids.dtype is torch.int64 and ids.is_cpu and ids.dim() == 1 and ids.is_contiguous():
        return ids  # as nearly always
    flat = ids.detach().cpu().reshape(-1).contiguous()
    return flat if flat.dtype is torch.int32 else flat.to(torch.int64)


def _nothing(*_: Any, **__: Any) -> None:
    """The hook of a copy of a model."""


def _make_nothing() -> Callable[..., None]:
    return _nothing


class _Hook:
    """A hook of a model that copies of it, in memory or in a file, do not have."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> None:
        self._function(*arguments)

    def __reduce__(self) -> Any:
        return _make_nothing, ()


def _hook(recorder: TraceRecorder, module: nn.Module, names: Mapping[str, str]) -> _Hook:
    """Tells the recorder of a module's lookups; `names` are its own -> the trace's."""
    if isinstance(module, TieredEmbeddingCollection):
        collection = module
        paddings = {
            name: None if lookup.padding_idx < 0 else lookup.padding_idx
            for name, lookup in collection._lookups.items()
        }

        def of_all(args: Any, kwargs: Any) -> list[tuple[str, torch.Tensor, int | None]]:
            batch = args[0] if args else kwargs["batch"]
            return [
                (names[name], _flat(ids_of(name, value)), paddings[name])
                for name, value in items_of(batch)
            ]

        def ids_of(name: str, value: Any) -> torch.Tensor:
            if type(value) is tuple:  # these two as nearly always
                ids: torch.Tensor = value[0]
                return ids
            if isinstance(value, torch.Tensor):
                return value
            feature = collection._feature(name, value)
            if feature.offsets is not None and feature.core[7]:  # the last one is where it ends
                return feature.ids[: int(feature.offsets[-1])]
            return feature.ids

        return _Hook(lambda _, args, kwargs, __: recorder.note(lambda: of_all(args, kwargs)))

    def of_one(args: Any, kwargs: Any) -> list[tuple[str, torch.Tensor, int | None]]:
        ids = args[0] if args else kwargs["input"]
        if getattr(module, "include_last_offset", False):
            offsets = args[1] if len(args) > 1 else kwargs.get("offsets")
            ids = ids if offsets is None else ids[: int(offsets[-1])]
        padding: Any = module.padding_idx
        return [(names[""], _flat(ids), padding)]

    return _Hook(lambda _, args, kwargs, __: recorder.note(lambda: of_one(args, kwargs)))


def _tables_of(
    model: nn.Module,
) -> tuple[dict[str, TraceTable], list[tuple[nn.Module, dict[str, str]]]]:
    """Tables by name; and the modules, with their own names of tables -> names in the trace."""
    tables: dict[str, TraceTable] = {}
    modules: list[tuple[nn.Module, dict[str, str]]] = []

    def add(path: str, own: str, table: TraceTable) -> str:
        name = own or path or "table"
        while name in tables:  # of another module
            name = f"{path}.{name}" if own else f"{name}'"
        tables[name] = table
        return name

    for path, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            raise ValueError(
                "record_trace: a compiled model does not call hooks; record it before torch.compile"
            )
        if isinstance(module, TieredEmbeddingCollection):
            names = {t.name: add(path, t.name, _table(module, t)) for t in module._engine.tables}
        elif isinstance(module, TieredEmbedding):
            spec = module._engine.tables[module._table]
            names = {"": add(path, "", _table(module, spec))}
        elif isinstance(module, nn.EmbeddingBag | nn.Embedding):
            if type(module).forward not in _TORCH:
                warnings.warn(
                    f"record_trace: module {path!r}, a {type(module).__name__}, is not recorded: "
                    "it has a forward of its own",
                    RuntimeWarning,
                    stacklevel=4,
                )
                continue
            # What torch's optimizer keeps of a row is not known here, so the row's bytes are not.
            table = TraceTable(int(module.num_embeddings), int(module.embedding_dim))
            names = {"": add(path, "", table)}
        else:
            continue
        modules.append((module, names))
    return tables, modules


def _table(module: TieredEmbedding | TieredEmbeddingCollection, spec: TableSpec) -> TraceTable:
    row_bytes = spec.row_bytes(module._engine.optimizer_kind)
    return TraceTable(spec.num_embeddings, spec.embedding_dim, row_bytes)
