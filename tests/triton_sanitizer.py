"""Watches what Triton kernels load and store, where Triton's interpreter runs them.

    with Sanitizer({"scale": contract_of_scale}):
        scale[(4,)](x, out, n)

A launch stops with an `AccessError`, which names the kernel's line, the program and the byte, where

- an address is not one that its kernel's `Contract` lets it load, or store, through that argument,
  or is not a multiple of its element's size;
- a program touches what another program of the launch stores, or two lanes of one store meet;
- a value of which several warps hold copies is stored, and no barrier came after its load;
- there is an atomic: the order of its programs could be seen in a float, and ours need none;
- the launch is over, and bytes of its outputs were not stored.

Where a mask is off and nothing is given instead, a load gives NaN, -1: a GPU promises nothing.
Programs run in the order that `order` makes of theirs.

Not seen: races between the threads of a program, but for those copies; what a compiler makes of it.
Pointers remember their argument on the ways of `_CARRIES`; one that does not may go wherever some
argument may. For Triton 3.8, of whose interpreter some private names are used here.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

Program = tuple[int, ...]
Bytes = np.ndarray  # one flag, or one program, a byte
Order = Callable[[Sequence[Program]], Iterable[Program]]

_CARRIES = ("addptr", "bitcast", "broadcast", "expand_dims", "reshape", "splat", "trans", "unsplat")
_NOBODY, _MANY = -1, -2  # instead of a program's number
_BEYOND = 16  # places behind the last byte: no element is longer, and none may lie there
_OURS = (__file__, str(Path(triton.__file__).parent))


class AccessError(AssertionError):
    """What a kernel did and should not have done."""


@dataclass
class Contract:
    """By argument, the views that a kernel may load, and those of which it stores every byte."""

    loads: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    stores: dict[str, list[torch.Tensor]] = field(default_factory=dict)


class _Shadow:
    """The memory that a launch can know, laid end to end: addresses become places in it."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
        storages.pop(0, None)  # of tensors without elements
        self._begin = np.array(sorted(storages) or [0], np.int64)
        self._size = np.array([storages[b].nbytes() if b else 0 for b in self._begin.tolist()])
        self._first = np.cumsum(self._size) - self._size
        self.length = int(self._size.sum()) + _BEYOND

    def places(self, addresses: np.ndarray) -> np.ndarray:
        """Of addresses (int64); that of one outside is beyond the last."""
        memory = np.maximum(np.searchsorted(self._begin, addresses, side="right") - 1, 0)
        offset = addresses - self._begin[memory]
        inside = (offset >= 0) & (offset < self._size[memory])
        return np.where(inside, self._first[memory] + offset, self.length - _BEYOND)

    def address(self, place: int) -> int:
        """Whose place it is."""
        memory = int(np.searchsorted(self._first, place, side="right")) - 1
        return int(self._begin[memory]) + place - int(self._first[memory])

    def flags(self, views: Iterable[torch.Tensor]) -> Bytes:
        """True for the bytes of views."""
        flags = np.zeros(self.length, bool)
        whole = torch.from_numpy(flags)
        for view in views:
            if view.numel():
                size, memory = view.itemsize, view.untyped_storage().data_ptr()
                first = int(self._first[np.searchsorted(self._begin, memory)])
                shape, strides = (*view.shape, size), (*(s * size for s in view.stride()), 1)
                whole.as_strided(shape, strides, first + view.storage_offset() * size).fill_(True)
        return flags


class _Launch:
    """One launch of a kernel: its arguments' bytes, and which program has touched them."""

    def __init__(
        self, kernel: str, arguments: Mapping[str, Any], contract: Contract, threads: int
    ) -> None:
        self.kernel, self.threads = kernel, threads
        self.tensors = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor)}
        for tensor in self.tensors.values():
            assert tensor.device.type == "cpu", "the sanitizer sees the memory of the host"
        views = [v for may in (contract.loads, contract.stores) for of in may.values() for v in of]
        self.shadow = _Shadow([*self.tensors.values(), *views])
        self.nothing = self.shadow.flags([])
        self.may_load = {k: self.shadow.flags(of) for k, of in contract.loads.items()}
        self.may_store = {k: self.shadow.flags(of) for k, of in contract.stores.items()}
        self.shared = np.logical_or.reduce([self.nothing, *self.may_store.values()])
        self.writer = np.full(self.shadow.length, _NOBODY, np.int32)
        self.reader = np.full(self.shadow.length, _NOBODY, np.int32)
        self.loaded_in = np.zeros(self.shadow.length, np.int32)
        """In which interval between barriers; they are counted over all programs."""
        self.interval = 0
        self.store_lines: dict[str, set[str]] = {}
        self.programs: list[Program] = []

    def load(self, pointer: Any, mask: np.ndarray) -> None:
        """Checks and notes a load."""
        _, places = self._places(pointer, mask, "loads", self.may_load)
        places = places[self.shared[places]]
        self._check_others(pointer, "loads", places, self.writer)
        number = len(self.programs) - 1
        before = self.reader[places]
        self.reader[places] = np.where((before == _NOBODY) | (before == number), number, _MANY)
        self.loaded_in[places] = self.interval

    def store(self, pointer: Any, _: Any, mask: Any, *rest: Any) -> None:
        """Checks and notes a store."""
        name = pointer.attr.get("argument", "?")
        self.store_lines.setdefault(name, set()).add(_where())
        first, places = self._places(pointer, mask.data, "stores", self.may_store)
        sorted_first = np.sort(first)
        twice = sorted_first[1:][sorted_first[1:] == sorted_first[:-1]]
        self._check(pointer, "stores by several lanes", twice)
        self._check_others(pointer, "stores", places, self.writer)
        self._check_others(pointer, "stores", places, self.reader)
        if pointer.data.size < self.threads:
            held = places[self.loaded_in[places] == self.interval]
            self._check(pointer, "stores, with no barrier since several warps loaded it,", held)
        self.writer[places] = len(self.programs) - 1

    def barrier(self) -> None:
        """Notes that what the program has loaded is loaded by all its threads."""
        self.interval += 1

    def atomic(self, pointer: Any, *rest: Any) -> None:
        """No atomic is right."""
        place = self.shadow.places(pointer.data.astype(np.int64).ravel()[:1])
        self._check(pointer, "has an atomic on", place)

    def end(self) -> None:
        """Checks that what should have been stored was."""
        for name, stores in self.may_store.items():
            missed = np.flatnonzero(stores & (self.writer == _NOBODY))
            if len(missed):
                lines = "; ".join(sorted(self.store_lines.get(name, {"no line"})))
                at = self._offset(name, self.shadow.address(int(missed[0])))
                what = f"{len(missed)} bytes were not stored, the first of them {at}"
                raise AccessError(f"{self.kernel}: {what}; {lines} stores there")

    def _places(
        self, pointer: Any, mask: np.ndarray, what: str, may: Mapping[str, Bytes]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Places of the elements' first bytes, and of all their bytes: checked."""
        size = max(1, pointer.get_element_ty().primitive_bitwidth // 8)
        addresses = pointer.data[np.broadcast_to(mask, pointer.data.shape)].astype(np.int64)
        places = self.shadow.places(addresses)
        if "argument" in pointer.attr:
            allowed = may.get(pointer.attr["argument"], self.nothing)
        else:
            allowed = np.logical_or.reduce([self.nothing, *may.values()])
        wrong = ~(allowed[places] & allowed[places + size - 1])
        if wrong.any():
            self._fail(pointer, f"{what}, where it may not,", int(addresses[wrong][0]))
        if (addresses % size).any():
            self._fail(pointer, f"{what}, unaligned,", int(addresses[addresses % size != 0][0]))
        return places, (places[:, None] + np.arange(size)).ravel()

    def _check_others(self, pointer: Any, what: str, places: np.ndarray, touched: Bytes) -> None:
        who = touched[places]
        others = (who != _NOBODY) & (who != len(self.programs) - 1)
        if others.any():
            other = int(who[others][0])
            did = "stored" if touched is self.writer else "loaded"
            by = f"program {self.programs[other]}" if other != _MANY else "several programs"
            self._check(pointer, f"{what}, as {by} {did},", places[others])

    def _check(self, pointer: Any, what: str, places: np.ndarray) -> None:
        if len(places):
            self._fail(pointer, what, self.shadow.address(int(places[0])))

    def _fail(self, pointer: Any, what: str, address: int) -> None:
        at = self._offset(pointer.attr.get("argument", ""), address)
        raise AccessError(f"{self.kernel}, {_where()}: program {self.programs[-1]} {what} {at}")

    def _offset(self, name: str, address: int) -> str:
        if name not in self.tensors:
            return f"address {address:#x}, of no known argument"
        tensor = self.tensors[name]
        return f"byte {address - tensor.data_ptr()} of `{name}` {list(tensor.shape)}"


def _where() -> str:
    """The line of the kernel that is running, and those it was called from."""
    frame: FrameType | None = sys._getframe(1)
    lines, launched = [], Sanitizer.launch.__code__
    while frame is not None and frame.f_code is not launched:
        code = frame.f_code
        if not code.co_filename.startswith(_OURS):
            lines.append(f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}")
        frame = frame.f_back
    return ", called from ".join(lines)


class Sanitizer(contextlib.ExitStack):
    """Watches all launches inside its `with` block.

    Args:
        contracts: by kernel, what its contract is for the arguments of a launch; all kernels that
            are launched.
        order: of the programs of a grid.
    """

    def __init__(
        self,
        contracts: Mapping[str, Callable[[Mapping[str, Any]], Contract]],
        order: Order = lambda programs: programs,
    ) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        """How often kernels were launched, by name."""
        self._contracts, self._order = contracts, order
        self._now: _Launch | None = None

    def __enter__(self) -> Sanitizer:
        super().__enter__()
        builder = interpreter.InterpreterBuilder
        hooks = {f"create_{name}": _carrying for name in _CARRIES} | {
            "create_masked_load": self._load,
            "create_masked_store": self._before(_Launch.store),
            "create_atomic_rmw": self._before(lambda now, _, pointer, *rest: now.atomic(pointer)),
            "create_atomic_cas": self._before(_Launch.atomic),
            "create_barrier": self._before(_Launch.barrier),
        }
        for name, hook in hooks.items():
            self.enter_context(mock.patch.object(builder, name, hook(getattr(builder, name))))
        run = lambda executor, *args, **options: self.launch(executor, args, options)  # noqa: E731
        self.enter_context(mock.patch.object(interpreter.GridExecutor, "__call__", run))
        return self

    def launch(self, executor: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        """Instead of the interpreter's: `args` are those of the kernel and are on the host."""
        kernel, names = executor.fn, executor.arg_names
        named = {k: v for k, v in options.items() if k in names}
        arguments = inspect.getcallargs(kernel, *args, **named)
        contract = self._contracts[kernel.__name__](arguments)
        threads = 32 * options.get("num_warps", 4)
        launch = self._now = _Launch(kernel.__name__, arguments, contract, threads)
        self.launched[kernel.__name__] += 1
        grid = (*executor.grid, 1, 1)[:3]
        interpreter.interpreter_builder.set_grid_dim(*grid)
        patches = interpreter._patch_lang(kernel)
        try:
            for name in names:
                if name not in executor.constexprs:
                    arguments[name] = interpreter._implicit_cvt(arguments[name])
                    if name in launch.tensors:
                        arguments[name].handle.attr["argument"] = name
            for program in self._order(list(product(*map(range, grid)))):
                launch.programs.append(program)
                launch.barrier()
                interpreter.interpreter_builder.set_grid_idx(*program)
                kernel(**arguments)
        except InterpreterError as error:  # of a function that the kernel calls
            raise _cause(error) from None
        finally:
            patches.restore()
            self._now = None
        launch.end()

    def _load(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def load(builder: Any, pointer: Any, mask: Any, other: Any, *rest: Any, **more: Any) -> Any:
            assert self._now is not None
            self._now.load(pointer, mask.data)
            if other is None:
                element = pointer.get_element_ty()
                dtype = interpreter._get_np_dtype(element)
                ones = np.full((*pointer.data.shape, dtype.itemsize), 0xFF, np.uint8)
                other = interpreter.TensorHandle(ones.view(dtype)[..., 0], element)
            return original(builder, pointer, mask, other, *rest, **more)

        return load

    def _before(self, note: Callable[..., None]) -> Callable[..., Any]:
        def hook(original: Callable[..., Any]) -> Callable[..., Any]:
            def noted(builder: Any, *args: Any) -> Any:
                note(self._now, *args)
                return original(builder, *args)

            return noted

        return hook


def _carrying(original: Callable[..., Any]) -> Callable[..., Any]:
    """An operation whose result has the argument of its pointer."""

    def carrying(builder: Any, *args: Any, **more: Any) -> Any:
        result = original(builder, *args, **more)
        for arg in args:
            if isinstance(arg, interpreter.TensorHandle) and "argument" in arg.attr:
                result.attr["argument"] = arg.attr["argument"]
        return result

    return carrying


def _cause(error: BaseException) -> BaseException:
    """The finding that an error was made of, or the error."""
    at: BaseException | None = error
    while at is not None and not isinstance(at, AccessError):
        at = at.__cause__
    return error if at is None else at
