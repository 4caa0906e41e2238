"""What each kernel of `tiered_emb.device.kernels` may load, and must store, in a launch.

As narrow as the kernels' docstrings allow: of rows, the columns of those rows that the launch is
about, in their slots; of lists, the entries that it names; of arguments that stand in for absent
ones, nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from triton_sanitizer import Contract

from tiered_emb.device.slots import ADAGRAD, ADAM, ROWWISE_ADAGRAD, SGD

Arguments = Mapping[str, Any]
Views = list[torch.Tensor]
MEAN, MAX = 1, 2
_PADDING = -1


class KernelContracts(dict[str, Callable[[Arguments], Contract]]):
    """By kernel; `elsewhere` are memories that launches reach by a shift, uint8 [slots, stride]."""

    def __init__(self) -> None:
        self.elsewhere: list[torch.Tensor] = []
        super().__init__(
            copy_rows=_copy_rows,
            pool=self._pool,
            sample_weight_gradients=self._sample_weight_gradients,
            sum_gradients=_sum_gradients,
            update=self._update,
        )

    def _rows(self, a: Arguments, base: str, slots: torch.Tensor, columns: slice) -> Views:
        """Columns of the rows in `slots`, here or elsewhere."""
        here = a[base]
        row_bytes = here.stride(0) * here.itemsize
        shift = a[{"states": "state_shift"}.get(base, "weight_shift" if "states" in a else "shift")]
        numbers = sorted({*slots[slots != _PADDING].tolist()})
        if not a["ELSEWHERE"]:
            return [here[slot, columns] for slot in numbers]
        begin = here.data_ptr() + a["here"] * row_bytes + shift * here.itemsize
        found = [m.view(here.dtype) for m in self.elsewhere if m.data_ptr() == begin]
        assert found, "no memory of `elsewhere` begins where the shift leads"
        (there,), first = found, a["here"]
        return [here[s, columns] if s < first else there[s - first, columns] for s in numbers]

    def _pool(self, a: Arguments) -> Contract:
        begin = a["bag_begin"][: a["bags"] + 1]
        at = slice(int(begin[0]), int(begin[-1]))
        slots = a["slots"][at]
        loads = {
            "weights": self._rows(a, "weights", slots, slice(a["dim"])),
            "slots": [slots],
            "bag_begin": [begin],
        }
        stores = {"out": [a["out"][: a["bags"]]]}
        if a["HAS_WEIGHTS"]:
            loads["sample_weights"] = [a["sample_weights"][at]]
        if a["KEEP_ARGMAX"]:
            stores["argmax"] = [a["argmax"][: a["bags"]]]
        return Contract(loads, stores)

    def _sample_weight_gradients(self, a: Arguments) -> Contract:
        slots, bag_of, out = (a[k][: a["occurrences"]] for k in ("slots", "bag_of", "out"))
        loads = {
            "weights": self._rows(a, "weights", slots, slice(a["dim"])),
            "slots": [slots],
            "bag_of": [bag_of],
            "grad": [a["grad"][bag] for bag in {*bag_of[slots != _PADDING].tolist()}],
        }
        return Contract(loads, {"out": [out]})

    def _update(self, a: Arguments) -> Contract:
        listed, dim = a["which"][: a["count"]], a["dim"]
        which, slots = listed.tolist(), a["slots"][listed]
        weights = self._rows(a, "weights", slots, slice(dim))
        begin = a["state_offset"]
        floats = {SGD: 0, ADAGRAD: dim, ROWWISE_ADAGRAD: 1, ADAM: 2 * dim}[a["OPTIMIZER"]]
        states = self._rows(a, "states", slots, slice(begin, begin + floats))
        loads = {
            "weights": weights,
            "states": states,
            "which": [listed],
            "slots": _entries(a["slots"], which),
            "numbers": [a["numbers"]],
        }
        if a["SUMMED"]:
            loads["gradients"] = [a["gradients"]]
        else:
            loads |= _gradients(a, which)
        if a["weights"].dtype != torch.float32:
            loads |= {"rows": _entries(a["rows"], which), "counters": [a["counters"]]}
        return Contract(loads, {"weights": weights, "states": states})


def _copy_rows(a: Arguments) -> Contract:
    def rows(base: str, has_list: bool) -> tuple[Views, Views]:
        given = a[f"{base}_slots"][: a["count"]]
        numbers = sorted({*given.tolist()}) if has_list else range(a["count"])
        return [a[base][slot] for slot in numbers], [given] if has_list else []

    source, source_slots = rows("source", a["FROM_LIST"])
    target, target_slots = rows("target", a["TO_LIST"])
    loads = {"source": source, "source_slots": source_slots, "target_slots": target_slots}
    return Contract(loads, {"target": target})


def _sum_gradients(a: Arguments) -> Contract:
    return Contract(
        {"which": [a["which"]], **_gradients(a, a["which"].tolist())}, {"out": [a["out"]]}
    )


def _entries(of: torch.Tensor, which: Iterable[int], length: int = 1) -> Views:
    return [of[i : i + length] for i in which]


def _gradients(a: Arguments, which: list[int]) -> dict[str, Views]:
    """What the sum of the gradients of unique rows loads."""
    begin = a["csr_begin"]
    ranges = [slice(int(begin[u]), int(begin[u + 1])) for u in which]
    bags = [a["csr_bags"][at] for at in ranges]
    positions = [a["csr_occurrences"][at] for at in ranges]
    in_bags = sorted({*_values(bags)})
    loads = {
        "csr_begin": _entries(begin, which, 2),
        "csr_bags": bags,
        "grad": [a["grad"][bag] for bag in in_bags],
    }
    if a["HAS_WEIGHTS"] or a["MODE"] == MAX:
        loads["csr_occurrences"] = positions
    if a["HAS_WEIGHTS"]:
        loads["sample_weights"] = _entries(a["sample_weights"], _values(positions))
    if a["MODE"] == MEAN:
        loads["bag_scale"] = _entries(a["bag_scale"], in_bags)
    if a["MODE"] == MAX:
        loads["argmax"] = [a["argmax"][bag] for bag in in_bags]
    return loads


def _values(lists: Views) -> list[int]:
    return [value for of in lists for value in of.tolist()]
