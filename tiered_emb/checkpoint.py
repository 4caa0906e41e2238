"""Checkpoints of whole models: tables, their optimizers and the dense part in one atomic cut.

A checkpoint is a directory:

    CHECKPOINT        JSON: which of the files below are the checkpoint; replaced atomically
    LOCK              empty; held with flock while a checkpoint is written or loaded
    state-<n>.pt      dense part, optimizers' settings and `extra`, by `torch.save`
    tables-<n>-<i>/   the i-th engine's store (docs/FORMAT.md), sharing its files by hard links

So a save costs what has changed since the last one, and a checkpoint keeps the disk space of the
files that the store has given up since. Saving to a path again replaces what is there; to keep
several checkpoints, use several paths.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tiered_emb import store_metadata
from tiered_emb.engine import TableEngine
from tiered_emb.files import FileLock, sync_directory

_FORMAT = 1
_ROOT = "CHECKPOINT"
_LOCK = "LOCK"
_PARTS = re.compile(r"(state-\d+\.pt|tables-\d+-\d+|CHECKPOINT\.tmp)")


class Saving:
    """A checkpoint that is being written. Thread-safe."""

    def __init__(self, finish: threading.Thread) -> None:
        self._thread = finish
        self._error: BaseException | None = None

    def wait(self) -> None:
        """Returns once the checkpoint is durable; raises what went wrong."""
        if self._thread.ident is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    @property
    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return not self._thread.is_alive()


def save(
    model: nn.Module, path: str | os.PathLike[str], extra: Any = None, *, wait: bool = True
) -> Saving:
    """Saves a model: all its tiered tables and optimizers, and its other parameters and buffers.

    The checkpoint is the state at the call. A kill at any moment leaves the checkpoint that was at
    `path` before, or this one. Tables with an ssd tier write what has changed since their last save
    or flush; tables without one write all their rows before the call returns.

    Args:
        model: its tiered tables may be anywhere in it.
        path: a directory; made if absent. An earlier checkpoint there is replaced.
        extra: anything that `torch.save` takes, saved in the same cut: the step, the state of the
            dense optimizer.
        wait: False returns as soon as the cut is taken; training may go on while it is written.

    Returns:
        The checkpoint being written; done if `wait`.

    Raises:
        FileExistsError: `path` is a directory of something else.
        ValueError: a table is closed, or its store is a part of the checkpoint at `path`.
        OSError: the disk is full, or fails. What was there before stays.
    """
    root = Path(path).absolute()
    _check_place(root)
    _check_apart(root, _engines(model))
    root.mkdir(parents=True, exist_ok=True)
    turn = FileLock(root / _LOCK)  # another save to this path ends first
    try:
        begun = _begin_at(root, model, extra)
    except BaseException:
        turn.release()
        raise

    def run() -> None:
        try:
            begun()
        except BaseException as error:
            saving._error = error
        finally:
            turn.release()

    thread = threading.Thread(target=run, name="tiered_emb.save")
    saving = Saving(thread)
    try:
        thread.start()
    except RuntimeError:  # no more threads: what was begun must end
        run()
        return saving
    if wait:
        saving.wait()
    return saving


def _begin_at(root: Path, model: nn.Module, extra: Any) -> Callable[[], None]:
    """Takes the cut; what is returned writes it."""
    engines = _engines(model)
    number, previous = _make_ready(root)
    state = io.BytesIO()
    torch.save(
        {
            "dense": _dense_state(model),
            "optimizers": [_optimizer_state(engine) for engine in engines],
            "extra": extra,
        },
        state,
    )
    names = [f"tables-{number}-{i}" for i in range(len(engines))]
    targets = [str(root / name) for name in names]
    _begin(engines, targets)

    def finish() -> None:
        _finish(engines, targets, [str(root / name) for name in previous])
        _publish(root, number, names, state.getbuffer())

    return finish


def _check_place(root: Path) -> None:
    if root.is_dir() and read_root(root) is None:
        names = (p.name for p in root.iterdir())
        foreign = [name for name in names if name != _LOCK and not _PARTS.fullmatch(name)]
        if foreign:
            raise FileExistsError(f"{root}: holds {foreign[0]!r} and no checkpoint")


def _make_ready(root: Path) -> tuple[int, list[str]]:
    """Number of the next checkpoint at `root`, and the stores of the one that is there."""
    earlier = read_root(root)
    if earlier is None:
        _remove_parts(root, keep=())
        return 1, []
    _remove_parts(root, keep=(earlier["state"], *earlier["tables"]))  # left by a killed save
    return earlier["number"] + 1, earlier["tables"]


def _begin(engines: list[TableEngine], targets: list[str]) -> None:
    """Takes the cut of every engine, or of none.

    In one order whatever the model, because an engine has one save at a time: two threads whose
    models share engines would wait for each other.
    """
    begun: list[int] = []
    try:
        for i in sorted(range(len(engines)), key=lambda i: id(engines[i])):
            engines[i].begin_save(targets[i])
            begun.append(i)
    except BaseException:
        for i in begun:  # what was begun must end; the first error is the one to tell
            with contextlib.suppress(Exception):
                engines[i].finish_save(targets[i], "")
        raise


def _finish(engines: list[TableEngine], targets: list[str], previous: list[str]) -> None:
    """Writes what was begun: each engine's, even if that of another fails."""
    errors: list[BaseException] = []
    for i, engine in enumerate(engines):
        try:
            engine.finish_save(targets[i], previous[i] if i < len(previous) else "")
        except BaseException as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _publish(root: Path, number: int, names: list[str], state: Any) -> None:
    """Makes the parts of this number the checkpoint, and removes those of others."""
    manifest = {
        "format": _FORMAT,
        "number": number,
        "state": f"state-{number}.pt",
        "tables": names,
    }
    _write(root / f"state-{number}.pt", state)
    _write(root / f"{_ROOT}.tmp", json.dumps(manifest).encode())
    sync_directory(root)
    os.replace(root / f"{_ROOT}.tmp", root / _ROOT)
    sync_directory(root)
    sync_directory(root.resolve().parent)
    _remove_parts(root, keep=(f"state-{number}.pt", *names))


def load(model: nn.Module, path: str | os.PathLike[str]) -> Any:
    """Makes a model what it was when it was saved, and returns `extra`.

    Tier sizes, eviction policies and thread counts may differ from those of the saved model. The
    ssd store of a table is replaced; it may be one that a killed process left behind
    (`te.SSD(path, resume=True)`). `extra` is unpickled: load only what you trust.

    The checkpoint of every table is first opened, with memory for its index beside that in use, and
    linked into its store's directory (copied, if that is on another disk, with space for both). If
    anything fails until then, nothing has changed. After a kill each store is the old one or the
    new one: one that was being replaced is put in place by the next process that opens it for
    writing, and refused to readers with the paths of both. Tables without an ssd tier are filled
    anew, after every block of the checkpoint has been checked; if that fails all the same, they are
    closed.

    Args:
        model: with the same tables (names, sizes, dims, dtypes, initial values, optimizers, seeds),
            in the same order, and the same other parameters and buffers.
        path: what was given to `save`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the model is not the one that was saved: names the first difference; or a
            table's store is a part of the checkpoint. Nothing has changed then.
        OSError: a part of the checkpoint is missing or damaged, or the disk is full: nothing has
            changed. A new store could not be put in place: the tables are closed, and both named.
    """
    root = Path(path)
    if read_root(root) is None:
        raise FileNotFoundError(f"{root}: there is no checkpoint")
    _check_apart(root, _engines(model))
    if not (root / _LOCK).exists():  # a copy of somebody's who knew what matters
        return _load_from(root, model)
    with FileLock(root / _LOCK, shared=True):
        return _load_from(root, model)


def _load_from(root: Path, model: nn.Module) -> Any:
    checkpoint = read_root(root)
    assert checkpoint is not None
    engines = _engines(model)
    names = checkpoint["tables"]
    if len(engines) != len(names):
        raise ValueError(
            f"{root}: the checkpoint has {len(names)} sets of tables, the model {len(engines)}"
        )
    for engine, name in zip(engines, names, strict=True):
        store_metadata.check_store(str(root / name), engine.metadata)
    state = torch.load(root / checkpoint["state"], weights_only=False)
    _check_dense(root, _dense_state(model), state["dense"])

    _load_tables(engines, [str(root / name) for name in names])
    for engine, saved in zip(engines, state["optimizers"], strict=True):
        if engine.optimizer is not None:
            engine.optimizer.param_groups[0].update(saved)
    model.load_state_dict(state["dense"], strict=False)
    return state["extra"]


def _load_tables(engines: list[TableEngine], paths: list[str]) -> None:
    """All engines become the tables of these stores, or none."""
    prepared: list[TableEngine] = []
    try:
        for engine, path in zip(engines, paths, strict=True):
            prepared.append(engine)
            engine.prepare_load(path)
        for engine in engines:
            engine.commit_load()
    except BaseException:
        for engine in prepared:
            try:
                engine.cancel_load()
            except BaseException:  # the next open may find the new store: this one has ended
                with contextlib.suppress(Exception):  # the others are cancelled all the same
                    engine.discard()
        raise
    errors: list[BaseException] = []
    for engine, path in zip(engines, paths, strict=True):
        for step in (engine.discard, lambda e=engine, p=path: e.finish_load(p)):
            try:
                step()
            except BaseException as error:  # the others are loaded all the same
                errors.append(error)
    if errors:
        raise errors[0]


def _check_apart(root: Path, engines: list[TableEngine]) -> None:
    """No store that is written may lie in the checkpoint's folder, or be it."""
    for engine in engines:
        if engine.store_path is not None and not engine.is_read_only:
            store = Path(engine.store_path).resolve()
            if root.resolve() in (store, store.parent):
                raise ValueError(f"the tables' store, {store}, is a part of the checkpoint {root}")


def _engines(model: nn.Module) -> list[TableEngine]:
    """The engines of a model's tiered tables, each once, in the order of its modules."""
    found: dict[int, TableEngine] = {}
    for module in model.modules():
        engine = getattr(module, "_engine", None)
        if isinstance(engine, TableEngine):
            found.setdefault(id(engine), engine)
    return list(found.values())


def _dense_state(model: nn.Module) -> dict[str, Any]:
    """The state dict of everything but the tiered tables."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        if not isinstance(getattr(module, "_engine", None), TableEngine):
            module._save_to_state_dict(state, f"{name}." if name else "", False)
    return state


def _check_dense(root: Path, have: dict[str, Any], saved: dict[str, Any]) -> None:
    for key in sorted(have.keys() ^ saved.keys()):
        owner = "the checkpoint" if key in saved else "the model"
        raise ValueError(f"{root}: only {owner} has {key!r}")
    for key, value in have.items():
        if isinstance(value, torch.Tensor) and value.shape != saved[key].shape:
            raise ValueError(
                f"{root}: {key!r} has shape {tuple(saved[key].shape)}, "
                f"in the model {tuple(value.shape)}"
            )


def _optimizer_state(engine: TableEngine) -> dict[str, Any]:
    """Learning rate and the like; the state of rows is stored beside them."""
    if engine.optimizer is None:
        return {}
    return {k: v for k, v in engine.optimizer.param_groups[0].items() if k != "params"}


def read_root(root: Path) -> dict[str, Any] | None:
    """What the checkpoint in a directory consists of; None if there is none."""
    try:
        text = (root / _ROOT).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        checkpoint: dict[str, Any] = json.loads(text)
        version = checkpoint["format"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{root / _ROOT}: not a checkpoint of this package") from None
    if version != _FORMAT:
        raise ValueError(f"{root / _ROOT}: format {version}, this release reads {_FORMAT}")
    return checkpoint


def _remove_parts(root: Path, keep: tuple[str, ...]) -> None:
    for part in list(root.iterdir()):
        if not _PARTS.fullmatch(part.name) or part.name in keep:
            continue
        if not part.is_dir():
            part.unlink()
        elif not _is_open(part):
            shutil.rmtree(part)


def _is_open(store: Path) -> bool:
    """Whether somebody has opened a store for writing."""
    try:
        FileLock(store / "LOCK", wait=False).release()
    except BlockingIOError:
        return True
    return False


def _write(path: Path, data: Any) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
